"""The machine in one page: devices, versions, kernels, the self-check on each device, and what to install or type next.

examples
  python -m alexnet_mp.doctor            a page to read, and to paste into a report of a fault: no user names, no homes
  python -m alexnet_mp.doctor --json     the same for programs

Ends with status 1 where something is missing that every run needs, or where the self-check finds a fault.
"""

# Nothing but the standard library is imported up here: this has to run where anything else is broken.
import json
import os
import platform
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from .system import machine
from .system.command_line import command_parser
from .system.errors import nobody_reads, run_command

DALI = "nvidia-dali-cuda130", "nvidia-dali-cuda120"
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
    "faiss": "faiss-cpu",
    "jinja2": "jinja2",
}  # import: what pip calls it
OPTIONAL = ("triton", "nvidia.dali")
VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "TRITON_INTERPRET", "NVIDIA_TF32_OVERRIDE", "LD_PRELOAD")
CHECKED = (("paper", "fp32", "pixels"), ("source2012", "bf16", "jpeg"))  # recipe, precision, what the data holds
COPY_BYTES = 256 << 20  # of each buffer: more than a cache holds
COPIES = 5  # of which the fastest counts
ABSENT = "not installed"
BUILD = "pip install --no-build-isolation --no-deps -e ."
BARE = ("version", "name", "problem")  # parts of a fact that need no word before them

Found = TypeVar("Found")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("doctor", __doc__)
    parser.add_argument("--json", action="store_true", help="print JSON; default: a page to read")
    options = parser.parse_args(arguments)
    report = {}
    for name, section in SECTIONS.items():
        report[name] = told(section, report)
        if not options.json:
            print("\n".join(lines(name, report[name])), flush=True)
            if nobody_reads():
                return 0
    if options.json:
        print(json.dumps(report, indent=1, ensure_ascii=False))
    return 1 if faults(report) else 0


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


def lines(name: str, section: dict) -> Iterator[str]:
    """A section as a person reads it: a line a fact."""
    yield {"self_check": "self-check"}.get(name, name)
    for key, value in section.items():
        parts = value if isinstance(value, list) else [value]
        if name == "self_check" and isinstance(value, dict) and "problem" not in value:
            parts = summary(value)
        if name == "next" and isinstance(value, list):
            parts = [line for step in value for line in (step["command"], f"    {step['why']}")]
        for number, part in enumerate(parts or ["none"]):
            yield f"  {key.replace('_', ' ') if number == 0 else '':<18} {text(part)}".rstrip()


def text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(
            text(part) if name in BARE else f"{name.replace('_', ' ')} {text(part)}"
            for name, part in value.items()
            if part is not None
        )
    return "none" if value is None else ("yes" if value else "no") if isinstance(value, bool) else str(value)


def summary(outcomes: Mapping[str, str]) -> list[str]:
    """Of {what was checked: outcome}: how many passed, each that didn't, and once why others were not checked."""
    wrong = {}
    for what, outcome in outcomes.items():
        if outcome != "passed":
            wrong.setdefault(outcome if outcome.startswith("not checked") else what, []).append((what, outcome))
    passed = len(outcomes) - sum(map(len, wrong.values()))
    return [
        f"{passed} of {len(outcomes)} checks passed",
        *(
            f"{what}{f' and {len(others)} more' if others else ''}: {outcome}"
            for (what, outcome), *others in wrong.values()
        ),
    ]


# --- what can be told without torch


def installation(report: dict) -> dict[str, str | None]:
    return {
        "version": machine.version("alexnet_mp"),
        "commit": _commit(),
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def _commit():
    """Of the checkout that this runs from, "+changes" where files differ; None outside of one."""
    root = Path(__file__).resolve().parent.parent
    found = machine.asked("git", "-C", str(root), "rev-parse", "HEAD") if (root / ".git").exists() else None
    changed = machine.asked("git", "-C", str(root), "status", "--porcelain", "-uno") if found else None
    return found.strip() + ("+changes" if changed else "") if found else None


def packages(report: dict) -> dict[str, dict[str, str | None]]:
    """{import: {"version", "problem": what keeps it from being imported}}."""
    found = {}
    for name, why in machine.imports(PACKAGES).items():
        installed = machine.version(PACKAGES[name]) or (machine.version(DALI[1]) if name == "nvidia.dali" else None)
        problem = why and (f"can't be imported: {why}" if installed or "No module named" not in why else ABSENT)
        found[name] = {"version": installed, "problem": problem}
    return found


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


# --- what needs torch


def torch_of(report: dict) -> ModuleType:
    if report["packages"].get("torch", {}).get("problem"):
        raise ImportError("torch can't be imported")
    import torch

    return torch


def names(report: dict) -> list[str]:
    """["cpu", "cuda:0", ...]"""
    return ["cpu", *(name for name in report["devices"] if re.fullmatch(r"cuda:\d+", name))]


def devices(report: dict) -> dict:
    newest = machine.cuda_of_driver()
    found = {"driver": machine.driver(), "cuda_of_driver": newest and "{}.{}".format(*newest)}
    torch = told(torch_of, report)
    if isinstance(torch, dict):
        return found | torch
    found |= {"cuda_of_torch": torch.version.cuda, "threads": torch.get_num_threads()}
    count = torch.cuda.device_count()
    for index in range(count):
        found[f"cuda:{index}"] = told(_gpu, torch, index)
    for first, second in combinations(range(count), 2):
        found[f"{first} and {second}"] = told(_peers, torch, first, second)
    if newest and torch.version.cuda and not count:
        found |= told(torch.cuda.init) or {"problem": "torch finds no CUDA device"}
    return found


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
    from .kernels import dispatch

    library = {"problem": why} if (why := machine.deadly(dispatch.LIBRARY)) else told(dispatch.compiled)
    if library is None:
        library = {"problem": "not built: there was no C++ compiler, or no torch, at the installation"}
    found = (
        {"cpu": library, "cuda": library}
        if isinstance(library, dict)
        else {"cpu": told(_cpu_kernels, library), "cuda": told(_cuda_kernels, torch, dispatch.LIBRARY)}
    )
    found["triton"] = _triton(report)
    on = {} if why else {f"on_{device}": told(dispatch.resolve, "auto", device) for device in names(report)}
    return found | on


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
    wanted, there = torch.version.cuda, machine.nvcc()
    if wanted is None:
        return "not built: torch is a build without CUDA"
    if there is None:
        return f"not built: there is no nvcc; torch wants one of CUDA {wanted.split('.')[0]}"
    if there.split(".")[0] != wanted.split(".")[0]:
        return f"not built: nvcc is of CUDA {there}, torch of {wanted}"
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
    ways |= {f"{a} to {b}": (a, b) for one, other in combinations(gpus, 2) for a, b in ((one, other), (other, one))}
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


def self_checks(report: dict) -> dict[str, dict[str, str]]:
    """{device, or pair of them: {what was checked: outcome}}."""
    torch = torch_of(report)
    from .kernels import dispatch
    from .system.terminal import lines_on_stderr
    from .training import self_check

    if why := machine.deadly(dispatch.LIBRARY):
        raise RuntimeError(why)
    found, gpus = {}, names(report)[1:]
    with lines_on_stderr():
        try:
            for name in names(report):
                found[name] = {}
                for recipe, precision, storage in CHECKED:
                    found[name] |= told(
                        _check, torch, [name] * 2, recipe, precision, storage, report, self_check.checks
                    )
            for pair in combinations(gpus, 2):
                found[" and ".join(pair)] = told(_check, torch, pair, *CHECKED[0], report, self_check.crossings)
        finally:
            dispatch.leave_out(())
    return found


def _check(torch, on, recipe, precision, storage, report, needed):
    from .recipes.named import PRESETS
    from .system.errors import UserError
    from .training import self_check

    on = tuple(map(torch.device, on))
    dali = not report["packages"]["nvidia.dali"]["problem"]
    pipeline = "raw" if storage == "pixels" else "dali" if dali else "torch"
    old = any(device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0) for device in on)
    dtype = torch.bfloat16 if precision == "bf16" and not old else torch.float32
    asked = self_check.Asked(PRESETS[recipe](), 1000, on, dtype, "auto", pipeline, storage)
    try:
        found = self_check.examine(asked, fresh=True, tell=lambda line: None, needed=needed)[1]
    except UserError as error:
        found = {"the check": str(error)}
    case = f"{recipe}, {str(dtype).removeprefix('torch.')}"
    return {f"{what}, {case}": machine.shown(outcome) for what, outcome in found.items()}


# --- what follows


def faults(report: dict) -> list[str]:
    """What every run needs and isn't there, and what the self-check found wrong."""
    broken = [
        name
        for name, found in report["packages"].items()
        if name not in OPTIONAL and (name == "problem" or found["problem"])
    ]
    checked = report["self_check"]
    wrong = [
        what
        for found in checked.values()
        if isinstance(found, dict)
        for what, outcome in found.items()
        if outcome != "passed"
    ]
    return broken + wrong + [name for name in checked if name == "problem"]


def advice(report: dict) -> dict[str, list[dict[str, str]]]:
    """What to install or type next, most pressing first."""
    steps = [*_packages_to_install(report), *_for_gpus(report), *_kernels_to_build(report), *_what_to_run(report)]
    return {"type": [{"command": command, "why": why} for command, why in steps]}


def _packages_to_install(report):
    for name, found in report["packages"].items():
        wanted = _requirement(PACKAGES[name])
        if name in OPTIONAL or not found["problem"]:
            continue
        again = "" if found["problem"] == ABSENT else "--force-reinstall "
        yield f"pip install {again}{wanted}", f"{name} {'is ' if not again else ''}{found['problem']}"
    dali = report["packages"]["nvidia.dali"]["problem"]
    if dali and platform.machine() == "x86_64":
        again, newest = "" if dali == ABSENT else "--force-reinstall ", machine.cuda_of_driver()
        package = DALI[1] if newest and newest < (13, 0) else _requirement(DALI[0])
        yield f"pip install {again}{package}", "without DALI Pillow decodes JPEGs, on the processor and more slowly"


def _requirement(package):
    """As pip takes it: what torch pins, else what this package asks for, else the bare name."""
    for owner in ("torch", "alexnet_mp"):
        with suppress(Exception):
            for requirement in metadata.requires(owner) or ():
                if re.match(rf"{re.escape(package)}\b(?!-)", requirement):
                    words = requirement.split(";")[0].strip().replace(" ", "")
                    return f"'{words}'" if re.search("[<>!~]", words) else words
    return package


def _for_gpus(report):
    found, problem = report["devices"], report["packages"]["torch"]["problem"]
    if found.get("driver") is None and found.get("cuda_of_driver") is None:
        if machine.gpu_on_the_bus():
            yield (
                "install NVIDIA's driver (https://www.nvidia.com/drivers); in a container, start it with --gpus all",
                "there is an NVIDIA GPU, and no driver",
            )
        return
    if problem or len(names(report)) > 1:
        return
    if found.get("cuda_of_torch") is None:
        release = (machine.version("torch") or "").split("+")[0]
        yield (
            f"pip install --force-reinstall --index-url https://pypi.org/simple torch=={release}; {BUILD}",
            "there is NVIDIA's driver, and torch is a build without CUDA",
        )
    elif os.environ.get("CUDA_VISIBLE_DEVICES") is not None:
        value = os.environ["CUDA_VISIBLE_DEVICES"]
        yield "unset CUDA_VISIBLE_DEVICES", f"torch finds no GPU, and it is set to {value!r}"
    else:
        yield (
            "install a newer NVIDIA driver (https://www.nvidia.com/drivers)",
            f"torch, for CUDA {found['cuda_of_torch']}, can't use this one, for {found.get('cuda_of_driver')}",
        )


def _kernels_to_build(report):
    found, gpus = report["kernels"], len(names(report)) > 1
    if "cpu" not in found:  # without torch nothing can be said
        return
    if "problem" in found["cpu"]:
        if shutil.which((os.environ.get("CXX") or "c++").split()[0]) is None:
            yield "apt-get install g++ (Debian, Ubuntu; elsewhere the package of that name)", "there is no C++ compiler"
        yield BUILD, "the compiled kernels are missing or don't load; run it in the directory of setup.py"
    elif gpus and "problem" in found["cuda"]:
        if "nvcc" in found["cuda"]["problem"] and "fits" not in found["cuda"]["problem"]:
            wanted = report["devices"]["cuda_of_torch"].split(".")[0]
            yield (
                f"install the toolkit of CUDA {wanted} (https://developer.nvidia.com/cuda-downloads); {BUILD}",
                "the CUDA kernels are missing, and Triton's take their place",
            )
        else:
            yield BUILD, "the CUDA kernels are missing, Triton's take their place; run it in the directory of setup.py"
    # Without a GPU torch imports Triton all the same where it is installed.
    if (problem := found["triton"].get("problem")) and (gpus or "can't be imported" in problem):
        command = f"pip install {'' if problem == ABSENT else '--force-reinstall '}{_requirement('triton')}"
        yield (
            "apt-get install gcc (Debian, Ubuntu)" if "compiler" in problem else command,
            "without Triton plain PyTorch computes what CUDA kernels don't"
            if gpus
            else "nothing needs Triton here, but torch imports it if it is there; pip uninstall triton does, too",
        )


def _what_to_run(report):
    if report["packages"]["torch"]["problem"]:
        return
    if faults(report):
        yield "python -m alexnet_mp.doctor --json", "a fault was found: report it with this page"
    gpus = len(names(report)) - 1
    if gpus > 1:
        yield "python -m alexnet_mp.train --gpus 0,1 --data DIR", "there are two GPUs, a tower each"
    elif gpus == 1:
        yield "python -m alexnet_mp.train --gpus 0 --data DIR", "there is one GPU, for both towers"
    else:
        yield "python -m alexnet_mp.train --gpus cpu", "a first run, of a few minutes on the processor"


SECTIONS = {
    "alexnet_mp": installation,
    "packages": packages,
    "computer": computer,
    "devices": devices,
    "kernels": kernels,
    "copies": copies,
    "self_check": self_checks,
    "next": advice,
}

if __name__ == "__main__":
    run_command(main)
