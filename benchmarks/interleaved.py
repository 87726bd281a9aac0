"""Interleaved timing: every round runs each variant of a group once, in a new order, over buffers that no cache holds
any more. The variants are the project's own code and the baselines that it is compared with.

A ratio of two variants is a ratio of medians of the same rounds, so that a machine whose clock or load drifts is unjust
to nobody. The timings of a group are taken once; each variant's test then replays its own into pytest-benchmark, whose
statistics, tables and JSON so hold what was measured (`replay`).
"""

import functools
import platform
import random
import statistics
import subprocess
import time
import traceback
from importlib import metadata
from pathlib import Path

import torch

from alexnet_mp.system.devices import device_name
from alexnet_mp.system.provenance import source_commit

LEAST_ROUNDS, MOST_ROUNDS, SECONDS = 5, 15, 20.0  # of a group; the quartiles of fewer rounds would say nothing
UNKNOWN_CACHE = 64 * 2**20  # bytes, where the system doesn't say
GRAPH_CALLS = 20  # at least, in one CUDA graph: launching 20 to 100 us of work one by one would time the launches


@functools.cache
def last_level_cache(device):
    """Bytes of the device's last cache, all of its slices together."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    caches = {}  # the processors that share a cache -> (level, bytes)
    for cache in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cache/index*"):
        try:
            level, size, sharers = (
                (cache / name).read_text(encoding="utf-8").strip() for name in ("level", "size", "shared_cpu_list")
            )
            caches[level, sharers] = int(level), int(size.removesuffix("K")) * 1024
        except (OSError, ValueError):
            continue
    last_level = max((level for level, _ in caches.values()), default=0)
    return sum(size for level, size in caches.values() if level == last_level) or UNKNOWN_CACHE


def once(measure):
    """`functools.cache` that keeps an error, too: a group whose set-up fails isn't set up again for every variant."""

    @functools.cache
    def outcome(*arguments):
        try:
            return measure(*arguments), None
        except Exception as error:
            return None, bare(error)

    def answer(*arguments):
        result, error = outcome(*arguments)
        if error is not None:
            raise error
        return result

    return answer


def bare(error):
    """An error to be kept: its traceback is a note, since the frames would keep all that a group had made alive."""
    error.add_note("".join(traceback.format_exception(error)))
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def buffer_sets(bytes_, device):
    """How many sets of buffers of `bytes_` each it takes to go round three times the last cache; at least two."""
    return max(2, -(-3 * last_level_cache(device) // bytes_))


@functools.cache
def provenance(device):
    """What a record says of where it was taken: device, versions, commit ("+changes" if files differ from it)."""
    facts = {
        "device": device_name(device),
        "last_level_cache": last_level_cache(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": source_commit(),
        "dirty": "+changes" in (source_commit() or ""),
    }
    try:
        facts["triton"] = metadata.version("triton")
    except metadata.PackageNotFoundError:
        facts["triton"] = None
    if device.type == "cuda":
        facts |= {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": _nvidia_smi(device, "driver_version"),
            "tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
        }
    else:
        facts |= {"threads": torch.get_num_threads(), "cpu_capability": torch.backends.cpu.get_cpu_capability()}
    return facts


def clocks(device):
    """The clocks now: MHz of the processor's fastest core, or the GPU's SM and memory clock, power and temperature."""
    if device.type == "cuda":
        return _nvidia_smi(device, "clocks.sm,clocks.mem,power.draw,temperature.gpu")
    rates = [
        float(line.split(":")[1])
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("cpu MHz")
    ]
    return f"{max(rates):.0f} MHz" if rates else None


def _nvidia_smi(device, query):
    """One line of nvidia-smi, None where it can't be had."""
    uuid = torch.cuda.get_device_properties(device).uuid
    command = ["nvidia-smi", f"--id=GPU-{uuid}", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=20, encoding="utf-8"
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def rounds_in(seconds=SECONDS, rounds=None, warm_up=0):
    """The numbers of rounds: `rounds` of them from 0, or as many as begin within these seconds, 5 to 15.

    The warm-up comes before, in negative numbers, and is no longer than `rounds`.
    """
    start = 0.0
    for number in range(-min(warm_up, rounds or warm_up), rounds or MOST_ROUNDS):
        if number == 0:
            start = time.perf_counter()
        if rounds is None and number >= LEAST_ROUNDS and time.perf_counter() - start > seconds:
            return
        yield number


def time_interleaved(variants, device, rounds=None, seed=0):
    """Seconds of one call: ({variant: {pass: [one a round]}}, the same by the host's clock).

    variants: {name: variant}. A variant has `runs`, {pass: function}, called in this order, `calls`, how many calls
    each of them makes, and `sets`, after how many rounds its buffers come round again. rounds: see `rounds_in`. Before
    the first round that counts all buffers were used, and one result more was made than is kept, so that the allocator
    knows them all (fewer than that only if `rounds` is smaller). On a CPU both figures are the host's clock around the
    function. On a GPU the first is that of CUDA events around it, and the second includes launching and waiting."""
    order = random.Random(seed)
    seconds, wall = (
        {name: {step: [] for step in variant.runs} for name, variant in variants.items()} for _ in range(2)
    )
    for turn in rounds_in(rounds=rounds, warm_up=1 + max((variant.sets for variant in variants.values()), default=0)):
        for name in order.sample(list(variants), len(variants)):
            for step, run in variants[name].runs.items():
                times = _clock(run, device)
                if turn >= 0:
                    for series, value in zip((seconds, wall), times):
                        series[name][step].append(value / variants[name].calls)
    return seconds, wall


def _clock(run, device):
    if device.type == "cpu":
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        return seconds, seconds
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1e3, time.perf_counter() - start


class CopyRoof:
    """`torch.empty_like(x).copy_(x)` that reads and writes as many bytes as each pass of an operation: what 100 %
    means.

    pass_bytes: {pass: bytes read plus bytes written}.
    """

    def __init__(self, pass_bytes, device):
        self.calls = GRAPH_CALLS if device.type == "cuda" else 1
        self.sets = max(buffer_sets(bytes_ // 2, device) for bytes_ in pass_bytes.values())
        self.runs = {}
        for step, bytes_ in pass_bytes.items():
            copy = _Copies(
                [torch.randn(max(1, bytes_ // 8), device=device) for _ in range(buffer_sets(bytes_ // 2, device))]
            )
            self.runs[step] = graph_of(copy, self.calls) if device.type == "cuda" else copy


class _Copies:
    """Copies the next buffer at every call; a copy is kept until its turn comes again, so that the target rotates as
    well."""

    def __init__(self, buffers):
        self.buffers, self.kept, self.turn = buffers, [None] * len(buffers), 0

    def __call__(self):
        self.turn = (self.turn + 1) % len(self.buffers)
        x = self.buffers[self.turn]
        self.kept[self.turn] = torch.empty_like(x).copy_(x)


def graph_of(function, calls):
    """A CUDA graph of that many calls, as a function that replays it."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(calls):
            function()
    return graph.replay


def compare(seconds, step, bytes_, against):
    """{variant: figures} of one pass: how many times faster it is than each variant in `against`; GB/s; % of the roof.

    `ratio_to_x` is the ratio of the medians, `quartiles_to_x` are those of the rounds' own ratios.
    The drift of the roof, second half of the rounds over first, tells a quiet machine from a busy one. Without a
    variant "copy" there is no roof, and bytes_ means nothing.
    """
    medians = {name: statistics.median(steps[step]) for name, steps in seconds.items()}
    figures = {
        name: {f"ratio_to_{variant}": medians[variant] / median for variant in against if variant in medians}
        for name, median in medians.items()
    }
    for name, steps in seconds.items():
        for baseline in against:
            if baseline in seconds and baseline != name and len(steps[step]) > 1:
                ratios = [theirs / own for theirs, own in zip(seconds[baseline][step], steps[step], strict=True)]
                q1, _, q3 = statistics.quantiles(ratios, n=4, method="inclusive")
                figures[name][f"quartiles_to_{baseline}"] = [q1, q3]
    if "copy" in seconds:
        roof = seconds["copy"][step]
        half = max(1, len(roof) // 2)
        drift = 100 * (statistics.median(roof[-half:]) / statistics.median(roof[:half]) - 1)
        for name, median in medians.items():
            figures[name] |= {
                "gb_per_s": bytes_ / median / 1e9,
                "pct_of_roof": 100 * medians["copy"] / median,
                "roof_drift_pct": drift,
            }
    return figures


class ReplayClock:
    """A clock that stands still until a recorded time is replayed; for `@pytest.mark.benchmark(timer=REPLAY)`."""

    __name__ = "replay of interleaved rounds"

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


REPLAY = ReplayClock()


def replay(benchmark, seconds):
    """Hand a variant's rounds to pytest-benchmark, one call of its function each."""
    rounds = iter(seconds)
    REPLAY.now = 0.0

    def one_round():
        REPLAY.now += next(rounds)

    benchmark.pedantic(one_round, rounds=len(seconds))
