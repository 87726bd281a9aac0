"""The Triton kernels of bias, ReLU and dropout, through their operator: in the interpreter on a CPU, compiled where
there is a GPU."""

import math
import os

import pytest
import torch
from alexnet_mp.kernels import checks, reference
from cases import values
from inner_cases import every

triton = pytest.importorskip("triton", reason="triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton's interpreter is off (TRITON_INTERPRET=1) and there is no GPU", allow_module_level=True)

from alexnet_mp.kernels import relu_dropout_triton

pytestmark = pytest.mark.usefixtures("one_thread")
MASK = {"probability": 0.5, "seed": 3, "layer": 6, "tower": 1}
LAST, NCHW = torch.channels_last, torch.contiguous_format


def by_triton(x, bias=None, step=40, *, probability=0.0, seed=0, layer=0, tower=0, first_row=0):
    step = torch.tensor(step, device=x.device) if probability else None
    return torch.ops.alexnet_mp.relu_dropout(x, bias, step, probability, seed, layer, tower, first_row, "triton")


def rounded(y, dtype):
    """float32 as the kernel stores it: the interpreter makes bfloat16 by cutting off, where hardware and PyTorch
    round."""
    if DEVICE == "cpu" and dtype == torch.bfloat16:
        return y.view(torch.int32).bitwise_and(-0x10000).view(torch.float32).to(dtype)
    return y.to(dtype)


def check(shape, order=NCHW, dtype=torch.float32, bias_dtype=torch.float32, mask=MASK, x=None, dy=None):
    """Forward to the bit, dx to the bit, dbias to float32's rounding."""
    x = values(*shape, scale=1).to(dtype) if x is None else x
    x = x.to(DEVICE).contiguous(memory_format=order).requires_grad_()
    bias = None if bias_dtype is None else values(shape[1], seed=2, scale=1).to(bias_dtype).to(DEVICE).requires_grad_()
    dy = (values(*shape, seed=3, scale=1) if dy is None else dy).to(DEVICE, dtype)
    y = by_triton(x, bias, **mask)
    step = {"step": 40} if mask else {}
    expected = reference.relu_dropout(x.float(), None if bias is None else bias.float(), **mask, **step)
    torch.testing.assert_close(y, rounded(expected, dtype), rtol=0, atol=0, equal_nan=True)
    assert checks.memory_format(y) == checks.memory_format(x)
    dx, *dbias = torch.autograd.grad(y, (x,) if bias is None else (x, bias), dy)
    exact = torch.where(y <= 0, 0, dy)
    torch.testing.assert_close(dx, exact, rtol=0, atol=0, equal_nan=True)
    assert checks.memory_format(dx) == checks.memory_format(x)
    if bias is not None:
        sums = exact.double().sum([0, *range(2, x.dim())])
        # Added up in float32, then rounded to the bias's dtype.
        terms = 1e-6 * exact.double().abs().sum([0, *range(2, x.dim())]) + torch.finfo(bias_dtype).eps * sums.abs()
        assert dbias[0].dtype == bias_dtype and ((dbias[0].double() - sums).abs() <= terms).all()
    return y, dx


@pytest.mark.run
@every("mask", [{}, MASK], ids=["no dropout", "dropout"])
@every(
    "shape, order",
    [
        ((3, 5), NCHW),
        ((33, 20), NCHW),
        ((9, 192), NCHW),
        ((2, 1000), NCHW),
        ((3, 2048), NCHW),
        ((1, 1), NCHW),
        ((6, 7, 1, 1), LAST),
        ((2, 5, 3, 2), LAST),
        ((3, 192, 5, 5), LAST),
        ((2, 5, 3, 2), NCHW),
        ((2, 20, 13, 13), NCHW),
    ],
)
def test_shapes(shape, order, mask):
    """Counters shared by neighbours and not; tiles cut in rows, in maps, in both; images of several tiles; one
    value."""
    check(shape, order, mask=mask)


@every(
    "dtype, bias_dtype",
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float16, torch.float16),
        (torch.float32, None),
    ],
)
def test_dtypes(dtype, bias_dtype):
    check((5, 36), dtype=dtype, bias_dtype=bias_dtype)
    check((2, 8, 3, 3), LAST, dtype=dtype, bias_dtype=bias_dtype, mask={})


@pytest.mark.run
@every("shape", [(5, 36), (3, 7)])
@every(
    "change",
    [
        {"probability": 0.1},
        {"probability": 0.75},
        {"probability": 1 - 2**-32},
        {"probability": 2.0**-32},
        {"probability": 2.0**-33},
        {"seed": 0},
        {"seed": 2**32 - 1},
        {"layer": 1, "tower": 0},
        {"layer": 2**32 - 1, "tower": 2**31},
        {"step": 0},
        {"step": -1},
        {"step": 2**32 + 40},
        {"step": 2**31 + 1},
    ],
)
def test_the_mask_is_that_of_dropout(shape, change):
    mask = MASK | {"step": 40} | change
    x = torch.ones(shape, device=DEVICE)
    assert torch.equal(by_triton(x, **mask), reference.dropout(x, **mask))


def test_special_values():
    """NaN, infinities, zeros of both signs and denormal values, kept and dropped; a NaN lets the gradient through."""
    x = values(20, 32, scale=1).float()
    for column, value in enumerate((math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-41, 3e38)):
        x[:, column] = value
    for mask in ({}, MASK):
        y, dx = check((20, 32), bias_dtype=None, x=x, mask=mask)
        assert y[:, 0].isnan().all() and y[:, 1].isnan().any() == bool(mask) and (dx[:, 0] != 0).all()
    dy = values(20, 32, seed=3).float()
    dy[0, 8:], dy[1, 8:] = math.nan, math.inf  # where y is 0 they are not multiplied but left out
    check((20, 32), bias_dtype=None, x=x, dy=dy)


@every("shape, order", [((9, 7), NCHW), ((9, 64), NCHW), ((9, 5, 3, 2), NCHW), ((9, 5, 3, 2), LAST)])
def test_a_part_of_a_minibatch_has_the_masks_of_its_rows(shape, order):
    x = (values(*shape).abs().float() + 1).to(DEVICE).contiguous(memory_format=order)
    whole = by_triton(x, **MASK)
    for cut in (1, 4):
        parts = by_triton(x[:cut], **MASK), by_triton(x[cut:], **MASK, first_row=cut)
        assert torch.equal(torch.cat(parts), whole) and not torch.equal(by_triton(x[cut:], **MASK), parts[1])


def test_a_value_that_rounds_to_zero_gets_no_gradient():
    x, bias = (
        torch.zeros(1, 1, dtype=torch.float16, device=DEVICE).requires_grad_(),
        torch.full((1,), 1e-9, device=DEVICE),
    )
    y = by_triton(x, bias)
    assert y == 0 and torch.autograd.grad(y, x, torch.ones_like(y))[0] == 0


def test_other_memory_orders_are_made_contiguous():
    x = values(6, 8, 5, scale=1).float().to(DEVICE)[:, ::2, 1].T.requires_grad_()  # (4, 6) of strides 10 and 40
    bias = values(12, seed=2, scale=1).float().to(DEVICE)[::2].requires_grad_()
    y = by_triton(x, bias, **MASK)
    expected = reference.relu_dropout(x, bias, step=40, **MASK)
    assert torch.equal(y, expected) and y.is_contiguous()
    dy = torch.tensor(0.5, device=DEVICE).expand(4, 6)
    for actual, exact in zip(
        torch.autograd.grad(y, (x, bias), dy), torch.autograd.grad(expected, (x, bias), dy), strict=True
    ):
        assert torch.equal(actual, exact)


@every("shape", [(0, 8), (0, 4, 5, 5), (3, 0)])
def test_nothing(shape):
    x, bias = torch.zeros(shape, device=DEVICE).requires_grad_(), torch.ones(shape[1], device=DEVICE).requires_grad_()
    y = by_triton(x, bias, **MASK)
    dx, dbias = torch.autograd.grad(y, (x, bias), torch.ones_like(y))
    assert y.shape == dx.shape == shape and torch.equal(dbias, torch.zeros_like(bias))


@pytest.mark.run
def test_small_tiles_and_the_same_bits_every_time(monkeypatch):
    """Many programs, cut in both directions; their sums are added in one order."""
    monkeypatch.setattr(relu_dropout_triton, "FORWARD_TILE", 512)
    monkeypatch.setattr(relu_dropout_triton, "BACKWARD_TILE", 512)
    for shape, order in (((41, 72), NCHW), ((2, 40, 5, 5), NCHW), ((2, 40, 5, 5), LAST)):
        first, again = (check(shape, order) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_only_y_is_kept():
    x, bias = values(4, 32).float().to(DEVICE).requires_grad_(), values(32).float().to(DEVICE).requires_grad_()
    tensors = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: tensors.append(tensor) or tensor, lambda tensor: tensor
    ):
        y = by_triton(x, bias, **MASK)
    assert [tensor.data_ptr() for tensor in tensors] == [y.data_ptr()]


@pytest.mark.run
@every(
    "shape, order, step, has_bias",
    [((3, 8), NCHW, 40, True), ((2, 5, 3, 2), LAST, None, True), ((2, 5), NCHW, 40, False)],
)
def test_opcheck(shape, order, step, has_bias):
    x = values(*shape, scale=1).float().to(DEVICE).contiguous(memory_format=order).requires_grad_()
    bias = values(shape[1], seed=2, scale=1).float().to(DEVICE).requires_grad_() if has_bias else None
    step_tensor = None if step is None else torch.tensor(step, device=DEVICE)
    torch.library.opcheck(
        torch.ops.alexnet_mp.relu_dropout.default, (x, bias, step_tensor, 0.5 if step else 0.0, 3, 6, 1, 2, "triton")
    )


@pytest.mark.compile
def test_traced():
    """What torch.compile makes of the operator, short of generated code."""
    x, bias = (
        values(4, 8, scale=1).float().to(DEVICE).requires_grad_(),
        values(8, seed=2, scale=1).float().to(DEVICE).requires_grad_(),
    )
    graph = torch.compile(lambda x, bias: by_triton(2 * x, bias, **MASK).square(), fullgraph=True, backend="aot_eager")
    actual, expected = graph(x, bias), reference.relu_dropout(2 * x, bias, step=40, **MASK).square()
    assert torch.equal(actual, expected)
    for one, other in zip(*(torch.autograd.grad(y.sum(), (x, bias)) for y in (actual, expected)), strict=True):
        torch.testing.assert_close(one, other)
