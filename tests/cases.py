"""The fused operations, their inputs, and the implementations that can run here: shared by test_lrn_pool.py and
test_ops.py."""

import math
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from alexnet_mp.kernels import dispatch, lrn, lrn_max_pool, max_pool, reference, spatial_norm_max_pool
from inner_cases import every

GPU = torch.cuda.is_available()
LEVELS = {"portable": 0, "avx2": 1, "avx512": 2}
STRONG = {"alpha": 3e-3, "beta": 0.75, "k": 2.0}  # for values of 30 or so: neither the sum nor k hides the other
OPERATIONS = {
    "before": (lrn_max_pool, {"relu": "before", **STRONG}),
    "after": (lrn_max_pool, {"relu": "after", **STRONG}),
    "none": (lrn_max_pool, {"relu": "none", **STRONG}),
    "before, all": (lrn_max_pool, {"relu": "before", "ties": "all", **STRONG}),
    "after, all": (lrn_max_pool, {"relu": "after", "ties": "all", **STRONG}),
    "none, all": (lrn_max_pool, {"relu": "none", "ties": "all", **STRONG}),
    "lrn": (lrn, {"relu": "before", **STRONG}),
    "lrn, none": (lrn, {"relu": "none", **STRONG}),
    "max_pool": (max_pool, {}),
    "max_pool, all": (max_pool, {"ties": "all"}),
    "max_pool, no relu": (max_pool, {"relu": False}),
    "spatial": (spatial_norm_max_pool, STRONG),
    "spatial, all": (spatial_norm_max_pool, {"ties": "all", **STRONG}),
}
every_operation = pytest.mark.parametrize("operation", OPERATIONS)
all_operations = every("operation", OPERATIONS)  # for what takes no time
FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
both_formats = every("memory_format", FORMATS)


def implementations():
    for name in LEVELS:
        yield pytest.param(name, id=f"cpu-{name}")
    for name in ("cuda", "triton"):
        yield pytest.param(name, id=name, marks=pytest.mark.gpu(reason=f"{name} kernels need a GPU"))


@pytest.fixture(params=implementations())
def implementation(request):
    """(kernels, device); on a CPU with the instructions named."""
    if request.param not in LEVELS:
        if request.param not in dispatch.built():
            pytest.skip(f"{request.param} kernels were not built")
        yield request.param, "cuda"
        return
    with instructions(request.param):
        yield "cpu", "cpu"


@contextmanager
def instructions(level):
    """The CPU kernels use these instructions; skips where they can't."""
    if dispatch.compiled() is None:
        pytest.skip("there was no compiler to build the CPU kernels")
    try:
        before = dispatch.compiled().use_cpu_instructions(LEVELS[level])
    except RuntimeError as error:
        pytest.skip(f"this processor lacks {level}: {str(error).splitlines()[0]}")
    try:
        yield
    finally:
        dispatch.compiled().use_cpu_instructions(before)


def values(*shape, seed=1, scale=30):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def in_format(x, name):
    return x.contiguous(memory_format=FORMATS[name])


def takes_bias(operation):
    return OPERATIONS[operation][0] is not spatial_norm_max_pool


def call(operation, x, bias, kernels):
    function, arguments = OPERATIONS[operation]
    return function(x, *[bias] if takes_bias(operation) else [], **arguments, kernels=kernels)


def outputs(operation, x, bias, kernels):
    """y of a test, and y of a training step, which keeps the places of the maxima: that may be another kernel."""
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    return [call(operation, x.detach(), bias, kernels), call(operation, leaf, bias, kernels).detach()]


def exactly(operation, x, bias):
    """The reference in float64 on the same stored values."""
    return call(
        operation, x.detach().double().cpu(), None if bias is None else bias.detach().double().cpu(), "reference"
    )


def gradients(operation, x, bias, dy, kernels):
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    inputs = [x]
    if bias is not None and takes_bias(operation):
        bias = bias.detach().clone().requires_grad_()
        inputs.append(bias)
    return torch.autograd.grad(call(operation, x, bias, kernels), inputs, dy)


def clear_winners(operation, x, bias):
    """1 for every output whose window has one maximum, ahead of the others by more than float32 can err; else 0."""
    function, arguments = OPERATIONS[operation]
    if function is lrn:
        return torch.ones_like(x, dtype=torch.float64, device="cpu")
    wide, wide_bias = x.detach().double().cpu(), None if bias is None else bias.detach().double().cpu()
    if function is max_pool:
        u = wide if bias is None else wide + wide_bias[:, None, None]
    elif function is spatial_norm_max_pool:
        u = reference.spatial_norm(wide, **STRONG)
    else:
        u = reference.lrn(wide, wide_bias, relu="before" if arguments["relu"] == "before" else "none", **STRONG)
    height, width = u.shape[2:]
    u = F.pad(u, (0, -(width - 3) % 2, 0, -(height - 3) % 2), value=-math.inf)
    best, second = F.unfold(u.flatten(0, 1)[:, None], 3, stride=2).topk(2, dim=1).values.unbind(1)
    least = min(1.0, float(u[u.isfinite()].abs().max())) if u.isfinite().any() else 1.0  # of tiny values all are tiny
    apart = best - second > 1e-5 * best.abs().clamp(min=1e-3 * least)
    clear = apart & ((best.abs() > 1e-5 * least) | (second < -1e-5 * least))
    return clear.double().view(*u.shape[:2], (u.shape[2] - 3) // 2 + 1, -1)


def half_ulp(exact, dtype):
    info = torch.finfo(dtype)
    return 0.5 * info.eps * torch.exp2(exact.abs().clamp(min=info.tiny).log2().floor())


def assert_as_exact_as_pytorch(actual, exact, torchs, least, approximation=0.0):
    """At most twice the largest error of PyTorch's own float32 operations, which on a handful of values may all round
    well: it is taken to be `least` at least; and what a GPU's approximations may add."""
    worst, error = (float((other.double().cpu() - exact).abs().max()) for other in (torchs, actual))
    assert error <= 2 * max(worst, least) + approximation, f"error {error}, PyTorch's {worst}, at least {least}"


def assert_rounded_once(actual, exact, packed=False):
    """Rounded to its dtype from nearly the exact value. packed: four bits of float32 hold the place of a maximum."""
    wide = actual.double().cpu()
    slack = (4e-6 if packed else 2e-6) * exact.abs() + 2e-7 * (exact.abs().max() if exact.numel() else 0)
    assert ((wide - exact).abs() <= half_ulp(exact, actual.dtype) + slack).all()
