"""Which implementation of the operations a network runs on.

An implementation is a module with the functions of `reference.py`. Today there is one, `reference.py` itself; the fused CUDA,
Triton and CPU kernels take their places beside it.
"""
from . import reference

CHOICES = ("auto", "cuda", "triton", "cpu", "reference")


def resolve(kernels):
    """The name of the implementation that a choice means. Raises ValueError for a choice that is unknown or not built."""
    if kernels in ("auto", "reference"):
        return "reference"
    if kernels in CHOICES:
        raise ValueError(f"kernels {kernels!r} are not built yet; --kernels reference (plain PyTorch) works on every device")
    raise ValueError(f"kernels {kernels!r} do not exist; choose one of {', '.join(CHOICES)}")


def implementation(name):
    """The module of a name that `resolve` returned."""
    return {"reference": reference}[name]
