"""What `--gpus` means, and which devices there are."""

import functools
from collections.abc import Iterable

import torch

from ..kernels import dispatch
from .errors import UserError
from .ranks import Ranks
from .terminal import say

CHOICES = "0,1 (two GPUs) | 0,0 or 0 (both towers on one) | cpu (both on the CPU) | cpu,0 (one on each) | auto"


def resolve(gpus: str, towers: int, one: bool = False) -> list[torch.device]:
    """The device of each tower, a list of `towers` torch devices: "0,1" -> [cuda:0, cuda:1], "cpu" -> [cpu, cpu].

    one: all of them have to be the same. Raises UserError for a device that is not there, naming those that are and a
    flag that would work.
    """
    if gpus == "auto":
        gpus = _best(1 if one else towers)
    names = _names(gpus, CHOICES)
    if len(names) > towers:
        raise UserError(f"--gpus {gpus}: the recipe has {towers} tower(s), so it takes at most {towers} device(s)")
    devices = _devices(gpus, names, _best(towers))
    if one:
        _refuse_two(gpus, devices)
    return devices * towers if len(devices) == 1 else devices


def named(device: torch.device | str | int) -> torch.device:
    """A torch device that a caller names, "cpu" or "cuda:1". Raises UserError for what is none, or is not there."""
    count = torch.cuda.device_count()
    try:
        torch_device = torch.device(device)
        if torch_device.type != "cuda":
            torch.empty(0, device=torch_device)  # torch knows many kinds that it was not built for
        # "meta" holds no values.
        if (torch_device.index or 0) < count if torch_device.type == "cuda" else torch_device.type != "meta":
            return torch_device
    except (RuntimeError, AssertionError, TypeError, NotImplementedError):
        pass
    names = ", ".join(["cpu", *(f"cuda:{number}" for number in range(count))])
    raise UserError(f"device {str(device)!r:.50}: there is none of this name; {names} would work")


def here(gpus: str, towers: int, ranks: Ranks, one: bool = False) -> list[torch.device]:
    """The device of each tower that this process of a job has. one: all of them have to be the same. Raises
    UserError."""
    place = ranks.local_rank, ranks.local_count
    if ranks.apart:
        return [of_process(gpus, *place)]
    if ranks.count == 1:
        return resolve(gpus, towers, one)
    devices = of_pair(gpus, towers, *place)
    if one:
        _refuse_two(gpus, devices)
    return devices


def _refuse_two(gpus, devices):
    if len(set(devices)) > 1:
        raise UserError(
            f"--gpus {gpus}: the recipe's field lrn_crosses is true, normalisation reads across the towers' border, so "
            f"both towers have to be on one device; --gpus {_best(1)} would work"
        )


def of_process(gpus: str, number: int, count: int) -> torch.device:
    """The device of a process that has one, `number` of `count` on this machine, whose devices `gpus` lists: of "2,3"
    the first process has cuda:2. Raises UserError, also where two would share a GPU, which NCCL refuses."""
    advice = ",".join(map(str, range(count))) if torch.cuda.device_count() >= count else "cpu"
    if gpus == "auto":
        _refuse_too_few(count)
        gpus = advice
    names = _names(gpus, "cpu, or a GPU for each process on this machine, as in 0,1")
    if names == ["cpu"]:
        names *= count
    devices = _devices(gpus, names, advice)
    kinds = {device.type for device in devices}
    if len(devices) != count or len(kinds) > 1 or kinds == {"cuda"} and len(set(devices)) < count:
        raise UserError(
            f"--gpus {gpus}: the {count} process(es) on this machine need a GPU each, or all the CPU; "
            f"--gpus {advice} would work"
        )
    return devices[number]


def of_pair(gpus: str, towers: int, number: int, count: int) -> list[torch.device]:
    """The device of each tower of a process that has all of them, `number` of `count` on this machine, whose devices
    `gpus` lists: of "0,1,2,3" the second process has [cuda:2, cuda:3], of "0,0,1,1" cuda:1 twice. Raises UserError,
    also where two would share a GPU, which NCCL refuses."""
    gpu_count, tower_count = torch.cuda.device_count(), towers * count
    advice = [*range(tower_count)] if gpu_count >= tower_count else [gpu for gpu in range(count) for _ in range(towers)]
    advice = ",".join(map(str, advice)) if gpu_count >= count else "cpu"
    if gpus == "auto":
        _refuse_too_few(count)
        gpus = advice
    names = _names(gpus, "cpu, or a GPU for each tower of each process on this machine, as in 0,1,2,3 or 0,0,1,1")
    if names == ["cpu"]:
        names *= tower_count
    devices = _devices(gpus, names, advice)
    pairs = [devices[first : first + towers] for first in range(0, len(devices), towers)]
    pair_devices = sum((list(dict.fromkeys(pair)) for pair in pairs), [])
    alike = len({tuple(pair.index(device) for device in pair) for pair in pairs}) == 1
    if (
        len(devices) != tower_count
        or not alike
        or any(device.type == "cuda" and pair_devices.count(device) > 1 for device in pair_devices)
    ):
        raise UserError(
            f"--gpus {gpus}: the {count} process(es) on this machine have {towers} tower(s) each, which need a device "
            f"each, or one in each process, and no GPU of another's; --gpus {advice} would work"
            + ("; a process a tower is --towers apart" if len(devices) == count and towers > 1 else "")
        )
    return pairs[number]


def _refuse_too_few(count):
    """Raise UserError where there are GPUs, but not one for each process: on CPUs a run takes a hundred times as
    long."""
    if 0 < (gpu_count := torch.cuda.device_count()) < count:
        raise UserError(
            f"--gpus auto: {count} processes on this machine, and each sees {gpu_count} GPU{'s' * (gpu_count > 1)}; "
            f"torchrun --nproc-per-node {gpu_count} would work, if all see the same, and so would --gpus cpu"
        )


def _names(gpus, choices):
    names = [name.strip() for name in gpus.split(",")]
    if not all(name == "cpu" or (name.isascii() and name.isdigit()) for name in names):
        raise UserError(f"--gpus {gpus}: write {choices}")
    return names


def _devices(gpus, names, advice):
    count = torch.cuda.device_count()
    for name in names:
        if name != "cpu" and int(name) >= count:
            gpus_here = (
                f"the GPUs here are {', '.join(map(str, range(count)))}" if count else "no CUDA device was found here"
            )
            raise UserError(f"--gpus {gpus}: GPU {name} is not there; {gpus_here}; --gpus {advice} would work")
    return [torch.device("cpu" if name == "cpu" else f"cuda:{int(name)}") for name in names]


def _best(towers):
    count = torch.cuda.device_count()
    return "cpu" if count == 0 else "0" if count == 1 or towers == 1 else "0,1"


def device_name(device: torch.device) -> str:
    """What a record says of a device: "NVIDIA H200", or the processor's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")
    threads = torch.get_num_threads()
    return f"{model}, {threads} thread{'' if threads == 1 else 's'}"


def make_current(devices: Iterable[torch.device]) -> None:
    """Make the first GPU of these the current CUDA device of this thread.

    Else it is GPU 0, whatever `--gpus` says: a thread that locks memory, and a stream that is left, would make a
    context there. That takes memory, and fails where that GPU is full or has been given to one process alone.
    """
    for device in devices:
        if device.type == "cuda":
            torch.cuda.set_device(device)
            return


@functools.cache
def stream_for(device: torch.device, use: str) -> torch.cuda.Stream:
    """The stream of a CUDA device for one use, as "graphs", the same in the whole process.

    torch has 32 a device, and gives one that is in use to who asks for one more: what another thread launches would
    come into a graph that is captured there. `claims` trains more often than that in one process.
    """
    return torch.cuda.Stream(device)


def check_kernels(kernels: str, devices: Iterable[torch.device]) -> None:
    """Refuse `--kernels` that can't compute on one of the devices: UserError, one line. Says once in a process where
    an installation without a compiler leaves everything to plain PyTorch."""
    try:
        implementations = {dispatch.resolve(kernels, device) for device in devices}
        if kernels == "auto" and "reference" in implementations and dispatch.compiled() is None:
            _say_uncompiled()
    except (ValueError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise UserError(f"--kernels: {error}") from None


@functools.cache
def _say_uncompiled():
    say(f"WARNING: {dispatch.description()}; it is slower")
