"""Which implementation computes: compiled CUDA or CPU code, Triton, or `reference.py`."""

import functools
import importlib.util
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch

CHOICES = ("auto", "cuda", "triton", "cpu", "reference")
LIBRARY = Path(__file__).parent / "compiled.so"  # built by setup.py
OPERATORS = ("lrn_pool_forward", "augment", "relu_dropout")  # that a library must have: some of every age
# operations that "cuda" leaves to Triton
WITHOUT_CUDA = ("lrn", "spatial_norm_max_pool", "relu_dropout", "paper_sgd_", "augment", "topk_credit")

_exclusions = frozenset()


@functools.cache
def compiled() -> ModuleType | None:
    """The compiled operators, torch.ops.alexnet_mp_csrc, or None where they were not built.

    Raises RuntimeError where they were built for another torch, or from sources without all of them.
    """
    if not LIBRARY.exists():
        return None
    try:
        torch.ops.load_library(LIBRARY)
        for name in OPERATORS:
            getattr(torch.ops.alexnet_mp_csrc, name)
    except (OSError, AttributeError) as error:
        why = str(error.__cause__ or error).splitlines()[0]
        raise RuntimeError(
            f"{LIBRARY} does not fit torch {torch.__version__} and this source; pip install --no-build-isolation "
            "--no-deps "
            f"-e . builds it again, --kernels reference does without ({why})"
        ) from error
    return torch.ops.alexnet_mp_csrc


def built() -> tuple[str, ...]:
    """The implementations that are there, of ("cuda", "triton", "cpu"), whether or not there is a device for them."""
    return _built()


# what torch.compiler.assume_constant_result does, which would import the whole compiler
built._dynamo_marked_constant = True


@functools.cache
def _built():
    implementations = []
    compilers = os.environ.get("CC", ""), "gcc", "clang"  # one of which Triton needs at run time
    if importlib.util.find_spec("triton") is not None and any(map(shutil.which, compilers)):
        implementations.append("triton")
        if compiled() is not None and _compiled_for_cuda():
            implementations.insert(0, "cuda")  # the norms and pools of the paper; all else is left to Triton
    return (*implementations, "cpu") if compiled() is not None else tuple(implementations)


def _compiled_for_cuda():
    return torch._C._dispatch_has_kernel_for_dispatch_key("alexnet_mp_csrc::lrn_pool_forward", "CUDA")


def _too_old(device):
    """Whether a GPU is older than what the CUDA kernels are compiled for (setup.py)."""
    return _below_sm80(device)


_too_old._dynamo_marked_constant = True  # the compiler heeds that of no function with a cache


@functools.cache
def _below_sm80(device):
    return torch.cuda.is_available() and torch.cuda.get_device_capability(device) < (8, 0)


def leave_out(exclusions: Iterable[tuple[str, str, str]]) -> None:
    """From now on "auto" passes over these: (operation, implementation, device) each, as ("lrn_max_pool", "cuda",
    "cuda:0").

    In place of those of the call before, in the whole process. An explicit choice is obeyed all the same.
    """
    global _exclusions
    _exclusions = frozenset(exclusions)


def left_out() -> frozenset[tuple[str, str, str]]:
    return _exclusions


left_out._dynamo_marked_constant = True


def resolve(kernels: str, device: torch.device | str, operation: str | None = None) -> str:
    """The implementation that a choice means on a device: "cuda", "triton", "cpu" or "reference".

    "auto" takes on a GPU CUDA, then Triton; on a CPU the compiled kernels; elsewhere, and where nothing else is there,
    the reference. operation: the public function that is to be computed, of which an implementation may not exist, or
    be left out. Raises ValueError for a choice that does not exist, was not built, or cannot compute on this device.
    """
    if kernels not in CHOICES:
        raise ValueError(f"kernels {kernels!r} do not exist; choose one of {', '.join(CHOICES)}")
    kind = torch.device(device).type
    if kernels == "reference":
        return kernels
    options = [
        name
        for name in built()
        if kind == ("cpu" if name == "cpu" else "cuda") and not (name == "cuda" and _too_old(torch.device(device)))
    ] + ["reference"]
    if kernels != "auto" and kernels not in options:
        raise ValueError(f"kernels {kernels!r} can't compute on {kind} here; usable there: auto, {', '.join(options)}")
    names = options if kernels == "auto" else [kernels]
    if operation in WITHOUT_CUDA and "triton" in options:
        names = ["triton" if name == "cuda" else name for name in names]
    if kernels == "auto" and left_out():
        names = [name for name in names if (operation, name, str(device)) not in left_out()]
    return names[0]


def used(kernels: str, device: torch.device | str) -> str:
    """`resolve` in words, with the operations that are computed by others: "cuda (lrn_max_pool: triton)"."""
    substitutes = {
        operation: resolve(kernels, device, operation)
        for operation, _, where in sorted(left_out())
        if where == str(device) and kernels == "auto"
    }
    name = resolve(kernels, device)
    return name + (
        f" ({', '.join(f'{operation}: {substitute}' for operation, substitute in substitutes.items())})"
        if substitutes
        else ""
    )


_launch_lock = threading.Lock()


@contextmanager
def triton_on(tensor: torch.Tensor) -> Iterator[None]:
    """Around the launch of a Triton kernel: the tensor's device is the current one, and no other thread launches one.

    In a backward pass two GPUs have a thread each, and Triton isn't known to compile one kernel in two threads at once.
    """
    with _launch_lock, torch.cuda.device_of(tensor):
        yield


def description() -> str:
    """One line on what was built."""
    if compiled() is None:
        return (
            "no compiled kernels: a C++ compiler and pip install --no-build-isolation --no-deps -e . in the source's "
            "folder would build them; --kernels reference, plain PyTorch, computes everything"
        )
    line = f"kernels built: {', '.join(built())}"
    if torch.version.cuda is not None and not _compiled_for_cuda():
        line += "; for CUDA none: pip install -v --no-build-isolation --no-deps -e . says why"
    return line
