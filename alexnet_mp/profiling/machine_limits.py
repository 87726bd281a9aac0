"""What a device can do at most, measured where and when it is asked for: the roof that a step's times are held
against."""

import functools
import mmap
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from ..kernels import linear

SECONDS = 0.3  # that each of the two is measured for
COPY_BYTES = 256 << 20  # of each buffer, at least: five times the last cache of an H100 or H200
CACHES = 2  # and so many times a processor's largest cache
LARGEST_COPY = 1 << 30
PRODUCT = {"cpu": 1024, "cuda": 8192}  # rows and columns


@dataclass(frozen=True)
class Ceilings:
    """bandwidth: GB/s that a copy reads and writes together; tflops: TFLOP/s of a square product."""

    bandwidth: float
    tflops: float
    copy_bytes: int  # of one of the two buffers
    product: int  # rows and columns


def measure(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """`Ceilings` of a device, products in `dtype`, with the settings of this process (threads, TF32); the best of some
    repeats.

    Draws from no generator but its own. Raises RuntimeError or OSError where there is no memory for it.
    """
    size, n = copy_bytes(device), PRODUCT[device.type]
    source, target = _buffer(size, device).fill_(1), _buffer(size, device)
    copy_seconds = _least_seconds(functools.partial(target.copy_, source), device)
    del source, target
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(n, n, generator=generator, device=device).to(dtype) for _ in range(2))
    product_seconds = _least_seconds(lambda: linear(a, b), device)
    return Ceilings(2e-9 * size / copy_seconds, 2e-12 * n**3 / product_seconds, size, n)


def copy_bytes(device: torch.device) -> int:
    """Bytes of a buffer that no cache of the device holds."""
    largest_cache = 0
    if device.type == "cpu":
        for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
            text = path.read_text(encoding="utf-8").strip()  # "32768K"
            if text.endswith("K") and text[:-1].isdecimal():
                largest_cache = max(largest_cache, int(text[:-1]) << 10)
    return min(max(COPY_BYTES, CACHES * largest_cache), LARGEST_COPY)


def _buffer(size, device):
    """On the host pages of their own, which go back at the end: a training run keeps what it frees (`memory.py`)."""
    if device.type == "cpu":
        return torch.frombuffer(mmap.mmap(-1, size), dtype=torch.float32)
    return torch.empty(size // 4, device=device)


def _least_seconds(work, device):
    """The least seconds that `work()` takes, of at least three times after one that isn't counted."""
    times, start = [], time.perf_counter()
    with torch.no_grad():
        _seconds(work, device)
        while len(times) < 3 or time.perf_counter() - start < SECONDS:
            times.append(_seconds(work, device))
    return min(times)


def _seconds(work, device):
    if device.type == "cpu":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    with torch.cuda.device(device):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        return 1e-3 * begin.elapsed_time(end)
