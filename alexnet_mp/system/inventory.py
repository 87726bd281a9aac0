"""What there is on this machine: versions, packages, devices, kernels, and how fast memory is copied.

Each function is a section of the doctor's report, and gets the sections before it: {name of the section: its facts}.
Nothing but the standard library is imported before it is asked for: this has to run where anything else is broken."""

import os
import platform
import re
import shutil
import time
import warnings
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from . import machine

DALI = "nvidia-dali-cuda130", "nvidia-dali-cuda120"
# import: what pip calls it
PACKAGES = {
    "torch": "torch",
    "triton": "triton",
    "nvidia.dali": DALI[0],
    "numpy": "numpy",
    "PIL": "pillow",
    "pydantic": "pydantic",
    "safetensors": "safetensors",
    "rich": "rich",
    "matplotlib": "matplotlib",
    "tensorboard": "tensorboard",
    "google.protobuf": "protobuf",
    "faiss": "faiss-cpu",
    "jinja2": "jinja2",
    "scipy.stats": "scipy",
    "mpmath": "mpmath",
}
OPTIONAL = ("triton", "nvidia.dali")
VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "TRITON_INTERPRET", "NVIDIA_TF32_OVERRIDE", "LD_PRELOAD")
COPY_BYTES = 256 << 20  # of each buffer: more than a cache holds
COPIES = 5  # of which the fastest counts
ABSENT = "not installed"
Found = TypeVar("Found")


def told(section: Callable[..., Found], *arguments: object) -> Found | dict[str, str]:
    """What a function finds, or {"problem": why}: nothing that is broken may keep the rest from being told."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they name files
            return section(*arguments)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an import may raise anything, SystemExit too
        words = (str(error).strip().splitlines() or [""])[0]
        return {"problem": machine.shown(f"{type(error).__name__}: {words}" if words else type(error).__name__)}


def installation(report: dict) -> dict[str, str | None]:
    return {
        "version": machine.version("alexnet_mp"),
        "commit": _commit(),
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def _commit():
    """Of the checkout that this runs from, "+changes" where files differ; None outside of one."""
    root = Path(__file__).resolve().parents[2]
    commit = machine.asked("git", "-C", str(root), "rev-parse", "HEAD") if (root / ".git").exists() else None
    changes = machine.asked("git", "-C", str(root), "status", "--porcelain", "-uno") if commit else None
    return commit.strip() + ("+changes" if changes else "") if commit else None


def packages(report: dict) -> dict[str, dict[str, str | None]]:
    """{import: {"version", "problem": what keeps it from being imported}}."""
    statuses = {}
    for name, why in machine.imports(PACKAGES).items():
        version = machine.version(PACKAGES[name]) or (machine.version(DALI[1]) if name == "nvidia.dali" else None)
        problem = why and (f"can't be imported: {why}" if version or "No module named" not in why else ABSENT)
        statuses[name] = {"version": version, "problem": problem}
    return statuses


def computer(report: dict) -> dict:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": gigabytes(pages * size),
        "free_disk_here": gigabytes(shutil.disk_usage(".").free),
        "variables": [f"{name}={machine.shown(os.environ[name])}" for name in VARIABLES if name in os.environ],
    }


def gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB"


def torch_of(report: dict) -> ModuleType:
    if report["packages"].get("torch", {}).get("problem"):
        raise ImportError("torch can't be imported")
    import torch

    return torch


def names(report: dict) -> list[str]:
    """["cpu", "cuda:0", ...]"""
    return ["cpu", *(name for name in report["devices"] if re.fullmatch(r"cuda:\d+", name))]


def devices(report: dict) -> dict:
    driver_cuda = machine.cuda_of_driver()
    facts = {"driver": machine.driver(), "cuda_of_driver": driver_cuda and "{}.{}".format(*driver_cuda)}
    torch = told(torch_of, report)
    if isinstance(torch, dict):
        return facts | torch
    facts |= {"cuda_of_torch": torch.version.cuda, "threads": torch.get_num_threads()}
    count = torch.cuda.device_count()
    for index in range(count):
        facts[f"cuda:{index}"] = told(_gpu, torch, index)
    for first, second in combinations(range(count), 2):
        facts[f"{first} and {second}"] = told(_peers, torch, first, second)
    if driver_cuda and torch.version.cuda and not count:
        facts |= told(torch.cuda.init) or {"problem": "torch finds no CUDA device"}
    return facts


def _gpu(torch, index):
    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    return {
        "name": properties.name,
        "memory": gigabytes(total),
        "free": gigabytes(free),
        "compute_capability": f"{properties.major}.{properties.minor}",
    }


def _peers(torch, first, second):
    ways = [torch.cuda.can_device_access_peer(*way) for way in ((first, second), (second, first))]
    return {"peer_access": {(True, True): "both ways", (False, False): "none"}.get(tuple(ways), "one way")}


def kernels(report: dict) -> dict:
    torch = torch_of(report)
    from ..kernels import dispatch

    library = {"problem": why} if (why := machine.deadly(dispatch.LIBRARY)) else told(dispatch.compiled)
    if library is None:
        library = {"problem": "not built: there was no C++ compiler, or no torch, at the installation"}
    facts = (
        {"cpu": library, "cuda": library}
        if isinstance(library, dict)
        else {"cpu": told(_cpu_kernels, library), "cuda": told(_cuda_kernels, torch, dispatch.LIBRARY)}
    )
    facts["triton"] = _triton(report)
    selections = {} if why else {f"on_{device}": told(dispatch.resolve, "auto", device) for device in names(report)}
    return facts | selections


def _cpu_kernels(library):
    level = library.use_cpu_instructions(-1)  # what was in use
    library.use_cpu_instructions(level)
    return {"version": "built", "instructions": ("portable", "AVX2", "AVX-512")[level]}


def _cuda_kernels(torch, library):
    if not torch._C._dispatch_has_kernel_for_dispatch_key("alexnet_mp_csrc::lrn_pool_forward", "CUDA"):
        return {"problem": _why_no_cuda(torch)}
    code = machine.architectures(library)
    return {"version": "built", "for": ", ".join(code) if code else "(cuobjdump, which would tell, is missing)"}


def _why_no_cuda(torch):
    """Why the compiled kernels have none for GPUs."""
    torch_cuda, nvcc_cuda = torch.version.cuda, machine.nvcc()
    if torch_cuda is None:
        return "not built: torch is a build without CUDA"
    if nvcc_cuda is None:
        return f"not built: there is no nvcc; torch wants one of CUDA {torch_cuda.split('.')[0]}"
    if nvcc_cuda.split(".")[0] != torch_cuda.split(".")[0]:
        return f"not built: nvcc is of CUDA {nvcc_cuda}, torch of {torch_cuda}"
    return "not built, though nvcc fits torch: it was not there at the installation, or the build failed"


def _triton(report):
    if problem := report["packages"]["triton"]["problem"]:
        return {"problem": problem}
    if not any(map(shutil.which, (os.environ.get("CC") or "gcc", "gcc", "clang"))):
        return {"problem": "can't be used: it needs a C compiler, gcc or clang, on PATH"}
    return {"version": report["packages"]["triton"]["version"], "kernels": "compiled at their first use"}


def copies(report: dict) -> dict:
    """{way: GB/s}: the bytes of a buffer over the time of a copy."""
    torch = torch_of(report)
    gpus = names(report)[1:]
    ways = {"within memory": ("cpu", "cpu")} | {f"cpu to {gpu}": ("cpu", gpu) for gpu in gpus}
    ways |= {f"{gpu} to cpu": (gpu, "cpu") for gpu in gpus} | {f"within {gpu}": (gpu, gpu) for gpu in gpus}
    ways |= {
        f"{source} to {target}": (source, target)
        for first, second in combinations(gpus, 2)
        for source, target in ((first, second), (second, first))
    }
    return {way: told(_copy, torch, *pair) for way, pair in ways.items()}


def _copy(torch, source, target):
    # Page-locked where one side is a GPU: as the pipelines have it.
    pinned = "cuda" in source + target
    a, b = (
        torch.ones(COPY_BYTES // 4, device=device, pin_memory=pinned and device == "cpu") for device in (source, target)
    )
    seconds = []
    for _ in range(COPIES + 1):
        start = time.perf_counter()
        b.copy_(a, non_blocking=True)
        for device in {source, target} - {"cpu"}:
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return f"{1e-9 * a.nbytes / min(seconds[1:]):,.1f} GB/s"
