"""What a machine lacks, and what to install or type next. Its facts are those of `inventory.py`, section by section."""

import os
import platform
import re
import shutil
from contextlib import suppress
from importlib import metadata

from . import inventory, machine
from .inventory import ABSENT, DALI, OPTIONAL, names

BUILD = "pip install --no-build-isolation --no-deps -e ."


def faults(report: dict) -> list[str]:
    """What every run needs and isn't there, and what the self-check found wrong."""
    broken_packages = [
        name
        for name, status in report["packages"].items()
        if name not in OPTIONAL and (name == "problem" or status["problem"])
    ]
    self_check = report["self_check"]
    failed_checks = [
        check
        for outcomes in self_check.values()
        if isinstance(outcomes, dict)
        for check, outcome in outcomes.items()
        if outcome != "passed"
    ]
    return broken_packages + failed_checks + [name for name in self_check if name == "problem"]


def advice(report: dict) -> dict[str, list[dict[str, str]]]:
    """What to install or type next, most pressing first."""
    steps = [*_packages_to_install(report), *_for_gpus(report), *_kernels_to_build(report), *_what_to_run(report)]
    return {"type": [{"command": command, "why": why} for command, why in steps]}


def _packages_to_install(report):
    for name, status in report["packages"].items():
        requirement = _requirement(inventory.PACKAGES[name])
        if name in OPTIONAL or not status["problem"]:
            continue
        option = "" if status["problem"] == ABSENT else "--force-reinstall "
        yield f"pip install {option}{requirement}", f"{name} {'is ' if not option else ''}{status['problem']}"
    dali = report["packages"]["nvidia.dali"]["problem"]
    if dali and platform.machine() == "x86_64":
        option, driver_cuda = "" if dali == ABSENT else "--force-reinstall ", machine.cuda_of_driver()
        package = DALI[1] if driver_cuda and driver_cuda < (13, 0) else _requirement(DALI[0])
        yield f"pip install {option}{package}", "without DALI Pillow decodes JPEGs, on the processor and more slowly"


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
    devices, problem = report["devices"], report["packages"]["torch"]["problem"]
    if devices.get("driver") is None and devices.get("cuda_of_driver") is None:
        if machine.gpu_on_the_bus():
            yield (
                "install NVIDIA's driver (https://www.nvidia.com/drivers); in a container, start it with --gpus all",
                "there is an NVIDIA GPU, and no driver",
            )
        return
    if problem or len(names(report)) > 1:
        return
    if devices.get("cuda_of_torch") is None:
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
            f"torch, for CUDA {devices['cuda_of_torch']}, can't use this one, for {devices.get('cuda_of_driver')}",
        )


def _kernels_to_build(report):
    kernels, gpus = report["kernels"], len(names(report)) > 1
    if "cpu" not in kernels:  # without torch nothing can be said
        return
    if "problem" in kernels["cpu"]:
        if shutil.which((os.environ.get("CXX") or "c++").split()[0]) is None:
            yield "apt-get install g++ (Debian, Ubuntu; elsewhere the package of that name)", "there is no C++ compiler"
        yield BUILD, "the compiled kernels are missing or don't load; run it in the directory of setup.py"
    elif gpus and "problem" in kernels["cuda"]:
        if "nvcc" in kernels["cuda"]["problem"] and "fits" not in kernels["cuda"]["problem"]:
            major = report["devices"]["cuda_of_torch"].split(".")[0]
            yield (
                f"install the toolkit of CUDA {major} (https://developer.nvidia.com/cuda-downloads); {BUILD}",
                "the CUDA kernels are missing, and Triton's take their place",
            )
        else:
            yield BUILD, "the CUDA kernels are missing, Triton's take their place; run it in the directory of setup.py"
    # Without a GPU torch imports Triton all the same where it is installed.
    if (problem := kernels["triton"].get("problem")) and (gpus or "can't be imported" in problem):
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
