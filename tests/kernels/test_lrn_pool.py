"""The fused operations on every implementation that can run here, against `reference.py` in float64."""

import itertools
import math

import pytest
import torch
from alexnet_mp.kernels import checks, dispatch, lrn, lrn_max_pool, lrn_pool, max_pool, spatial_norm_max_pool
from cases import (
    FORMATS,
    LEVELS,
    OPERATIONS,
    STRONG,
    all_operations,
    assert_as_exact_as_pytorch,
    assert_rounded_once,
    both_formats,
    call,
    clear_winners,
    every_operation,
    exactly,
    gradients,
    in_format,
    outputs,
    takes_bias,
    values,
)
from inner_cases import every

pytestmark = pytest.mark.usefixtures("one_thread")

# Thousands of values each: the largest error of a few hundred is a matter of luck.
SHAPES = [
    (3, 48, 9, 8),
    (300, 1, 3, 3),
    (60, 3, 4, 5),
    (50, 4, 5, 4),
    (20, 5, 6, 7),
    (6, 47, 5, 3),
    (3, 96, 5, 5),
    (2, 17, 13, 13),
    (2, 8, 4, 131),
]
PAPERS = [(1, 128, 27, 27), (1, 48, 55, 55)]


@both_formats
@every("shape", SHAPES)
@every_operation
def test_float32_errs_at_most_twice_as_much_as_pytorch(implementation, operation, shape, memory_format):
    check_float32(*implementation, operation, shape, memory_format)


@both_formats
@every("shape", PAPERS)
@pytest.mark.parametrize("operation", ["before", "after, all", "max_pool", "spatial, all"])  # of the two recipes
def test_float32_on_the_papers_maps_errs_at_most_twice_as_much_as_pytorch(
    implementation, operation, shape, memory_format
):
    check_float32(*implementation, operation, shape, memory_format)


def check_float32(kernels, device, operation, shape, memory_format):
    x, bias = in_format(values(*shape).float(), memory_format).to(device), values(shape[1], seed=2).float().to(device)
    exact, torchs = exactly(operation, x, bias), call(operation, x, bias, "reference")
    most = float(exact.abs().max())
    norm = OPERATIONS[operation][0] is not max_pool
    of_output, of_gradient = (norm * error for error in lrn_pool.approximation(kernels, device))
    for y in outputs(operation, x, bias, kernels):
        assert y.shape == exact.shape and y.dtype == x.dtype and checks.memory_format(y) == checks.memory_format(x)
        assert_as_exact_as_pytorch(y, exact, torchs, 2**-23 * most, of_output * most)
    dy = (values(*y.shape, seed=3) * clear_winners(operation, x, bias)).float().to(device)
    exact = gradients(operation, x.double().cpu(), bias.double().cpu(), dy.double().cpu(), "reference")
    ours, torchs = (gradients(operation, x, bias, dy, name) for name in (kernels, "reference"))
    most, total = float(exact[0].abs().max()), float(exact[0].abs().sum((0, 2, 3)).max())
    assert_as_exact_as_pytorch(ours[0], exact[0], torchs[0], 2**-23 * most, of_gradient * most)
    if takes_bias(operation):  # a sum of n rounded terms errs by the root of n roundings; what is approximate adds up
        least = 2**-23 * most * math.sqrt(x.numel() / shape[1])
        assert_as_exact_as_pytorch(ours[1], exact[1], torchs[1], least, of_gradient * total)


def test_only_a_gpu_approximates():
    assert lrn_pool.approximation("triton", "cpu") == lrn_pool.approximation("reference", "cuda:0") == (0.0, 0.0)
    for implementation in ("cuda", "triton"):
        output, gradient = lrn_pool.approximation(implementation, "cuda:1")
        assert 2**-23 < output <= gradient < 5 * 2**-23


@both_formats
@all_operations
@every("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_rounded_once(implementation, operation, dtype, memory_format):
    kernels, device = implementation
    for shape, bias_dtype in (((2, 24, 9, 8), dtype), ((1, 5, 5, 5), torch.float32)):
        x, bias = (
            in_format(values(*shape).to(dtype), memory_format).to(device),
            values(shape[1], seed=2).to(bias_dtype).to(device),
        )
        for train, y in enumerate(outputs(operation, x, bias, kernels)):
            assert y.dtype == dtype
            assert_rounded_once(y, exactly(operation, x, bias), packed=kernels == "cuda" and train)
        dy = (values(*y.shape, seed=3, scale=1) * clear_winners(operation, x, bias)).to(dtype).to(device)
        exact = gradients(operation, x.double().cpu(), bias.double().cpu(), dy.double().cpu(), "reference")
        ours = gradients(operation, x, bias, dy, kernels)
        assert_rounded_once(ours[0], exact[0])
        assert [gradient.dtype for gradient in ours] == [dtype, bias_dtype][: len(ours)]
        for actual, expected in zip(ours[1:], exact[1:]):
            assert_rounded_once(actual, expected)


@all_operations
def test_float64_is_the_reference(operation):
    if dispatch.compiled() is None:
        pytest.skip("there was no compiler to build the CPU kernels")
    for level, memory_format in itertools.product(LEVELS.values(), FORMATS):
        try:
            before = dispatch.compiled().use_cpu_instructions(level)
        except RuntimeError:
            continue  # this processor has not that level
        x, bias = in_format(values(2, 13, 9, 8), memory_format), values(13, seed=2)
        expected = call(operation, x, bias, "reference")
        for y in outputs(operation, x, bias, "cpu"):
            torch.testing.assert_close(y, expected, rtol=1e-13, atol=1e-13)
        dy = values(*y.shape, seed=3)
        for actual, reference in zip(
            *(gradients(operation, x, bias, dy, name) for name in ("cpu", "reference")), strict=True
        ):
            torch.testing.assert_close(actual, reference, rtol=1e-11, atol=1e-11)
        dispatch.compiled().use_cpu_instructions(before)


@pytest.mark.run
@all_operations
def test_gradcheck(operation):
    if dispatch.compiled() is None:
        pytest.skip("there was no compiler to build the CPU kernels")
    # Values 0.5 apart and 0.25 off zero: a step of the numeric derivative meets no kink of ReLU or of a maximum.
    x = (torch.randperm(80, generator=torch.Generator().manual_seed(4)).double().view(1, 5, 4, 4) - 40) / 2 + 0.25
    bias = torch.tensor([0.0, 0.125, -0.125, 0.0625, -0.0625], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, bias: call(operation, x, bias, "cpu"), (x.requires_grad_(), bias))


def special(name, shape):
    """Inputs where the rules decide: who wins a tie, what becomes of NaN and of what float32 cannot hold."""
    x = values(*shape)
    if name == "zeros":
        return torch.zeros(shape, dtype=torch.float64)
    if name == "constant":
        return torch.full(shape, 7.0, dtype=torch.float64)
    if name == "few values":
        return (x / 30).round() * 8
    if name == "nan":
        x[0, 1, 2, 3] = x[-1, -1, -1, -1] = x[0, 0, 0, 0] = math.nan
        x[0, 1, 2, 4] = math.nan
    if name == "inf":
        x[0, 1, 2, 3], x[-1, -1, -1, -1], x[0, 2, 3, 3] = math.inf, -math.inf, -math.inf
    if name == "huge":
        return x * 1e19  # squares near 1e41 overflow float32, as the reference in float32 has it
    if name == "denormal":
        return x * 1e-41
    return x


@both_formats
@every_operation
@every("name", ["zeros", "constant", "few values", "nan", "inf", "huge", "denormal"])
def test_ties_nan_and_extremes_are_the_references(implementation, operation, name, memory_format):
    """In float32 beside the reference in float32: the same NaN, the same infinities, and a tie given to the same
    cells."""
    kernels, device = implementation
    x = in_format(special(name, (2, 9, 7, 8)).float(), memory_format).to(device)
    expected = call(operation, x, None, "reference")
    for y in outputs(operation, x, None, kernels):
        torch.testing.assert_close(y, expected, rtol=2e-6, atol=1e-44, equal_nan=True)
    if name == "huge" and OPERATIONS[operation][0] is not max_pool:
        return  # whose sums of squares are infinite, so that all gradients are 0 or NaN
    dy = values(*y.shape, seed=3, scale=1).float().to(device)
    # the ties of the other inputs are exact, here near ones may fall differently
    if name in ("nan", "inf", "huge", "denormal"):
        dy = dy * clear_winners(operation, torch.nan_to_num(x, nan=0, posinf=0, neginf=0), None).float().to(device)
    ours, theirs = (gradients(operation, x, None, dy, by)[0] for by in (kernels, "reference"))
    scale = float(theirs[theirs.isfinite()].abs().max())
    assert scale > 0 or name == "zeros"
    torch.testing.assert_close(ours, theirs, rtol=5e-6, atol=2e-6 * scale, equal_nan=True)


@both_formats
@all_operations
@every("dtype", [torch.bfloat16, torch.float16])
@every("name", ["zeros", "few values", "nan", "inf", "largest", "denormal"])
def test_sixteen_bit_extremes_are_the_references(implementation, operation, name, dtype, memory_format):
    """NaN stays NaN, what is too large becomes infinite, what is small is rounded: as PyTorch converts."""
    kernels, device = implementation
    x = 60000 * special("few values", (2, 9, 7, 8)).sign() if name == "largest" else special(name, (2, 9, 7, 8))
    # max_pool: 70000 is too much for float16
    bias = torch.full((9,), 10000.0 if name == "largest" else 0.0, device=device)
    x = in_format((x * 1e35 if name == "denormal" and dtype == torch.float16 else x).to(dtype), memory_format).to(
        device
    )
    expected, info = call(operation, x, bias, "reference"), torch.finfo(dtype)
    least = info.smallest_normal * info.eps  # denormal: the step of rounding
    for y in outputs(operation, x, bias, kernels):
        torch.testing.assert_close(y, expected, rtol=info.eps, atol=least if name == "denormal" else 0, equal_nan=True)
    assert name == "zeros" or expected.any()
    if name in ("zeros", "few values"):
        dy = values(*y.shape, seed=3, scale=1).to(dtype).to(device)
        ours, theirs = (gradients(operation, x, bias, dy, by)[0] for by in (kernels, "reference"))
        torch.testing.assert_close(
            ours, theirs, rtol=2 * torch.finfo(dtype).eps, atol=2e-6 * float(theirs.float().abs().max()), equal_nan=True
        )


@all_operations
def test_a_gradient_that_is_not_finite_goes_where_the_others_go(implementation, operation):
    kernels, device = implementation
    x = special("few values", (2, 6, 7, 8)).float().to(device)
    dy = torch.ones(call(operation, x, None, kernels).shape, device=device)
    dy[0, 1, 1, 1], dy[1, 2, 0, 1] = math.nan, math.inf
    ours, theirs = (gradients(operation, x, None, dy, by)[0] for by in (kernels, "reference"))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, equal_nan=True)


@both_formats
@all_operations
def test_no_images_and_one(implementation, operation, memory_format):
    kernels, device = implementation
    x, bias = in_format(values(3, 6, 5, 6).float(), memory_format).to(device), values(6, seed=2).float().to(device)
    y = call(operation, x, bias, kernels)
    empty_y = call(operation, x[:0], bias, kernels)
    assert empty_y.shape == (0, *y.shape[1:])
    none = gradients(operation, x[:0], bias, y[:0], kernels)
    assert none[0].shape == (0, 6, 5, 6) and all((gradient == 0).all() for gradient in none[1:])
    assert torch.equal(call(operation, x[1:2], bias, kernels), y[1:2])


@all_operations
def test_any_strides(implementation, operation):
    kernels, device = implementation
    x, bias = values(2, 6, 6, 7).float().to(device), values(6, seed=2).float().to(device)
    y = call(operation, x, bias, kernels)
    dy = values(*y.shape, seed=3).float().to(device)
    expected = gradients(operation, x, bias, dy, kernels)
    memory = torch.zeros(2, 6, 6, 14, device=device)
    memory[:, :, :, ::2] = x
    for other in (memory[:, :, :, ::2], x.mT.contiguous().mT, x.transpose(0, 1).contiguous().transpose(0, 1)):
        assert not other.is_contiguous()
        torch.testing.assert_close(call(operation, other, bias, kernels), y, rtol=1e-6, atol=1e-6)
        for dy_other in (dy, dy.contiguous(memory_format=torch.channels_last), dy.mT.contiguous().mT):
            for actual, reference in zip(gradients(operation, other, bias, dy_other, kernels), expected, strict=True):
                torch.testing.assert_close(actual, reference, rtol=1e-5, atol=1e-4)


@pytest.mark.run
@pytest.mark.parametrize(  # a GPU compiles each anew, the largest for longest: two workers share them out
    "windows", [[(2, 2), (3, 1), (3, 3), (4, 3)], [(5, 2), (15, 1), (1, 1)]], ids=["small", "large"]
)
@every("ties", ["first", "all"])
def test_other_windows(implementation, windows, ties):
    for pool, stride in windows:
        check_window(*implementation, pool, stride, ties)


def check_window(kernels, device, pool, stride, ties):
    if pool > lrn_pool.LARGEST_POOL[kernels]:
        with pytest.raises(ValueError, match=f"pool is {pool}.*at most {lrn_pool.LARGEST_POOL[kernels]}"):
            lrn_max_pool(torch.zeros(1, 1, 16, 17, device=device), alpha=1e-4, pool=pool, kernels=kernels)
        return
    x, bias = values(2, 7, 16, 17).float().to(device), values(7, seed=2).float().to(device)
    for size, beta in ((5, 0.75), (3, 0.75), (4, 0.75), (1, 0.75), (7, 0.5), (5, 1.0), (5, 0.0)):
        arguments = dict(size=size, alpha=3e-3, beta=beta, k=1.5, pool=pool, stride=stride, ties=ties)
        for function in (
            lrn_max_pool,
            lambda x, bias, **options: spatial_norm_max_pool(x + bias[:, None, None], **options),
        ):
            results = []
            for by in (kernels, "reference"):
                x, bias = x.detach().requires_grad_(), bias.detach().requires_grad_()
                y = function(x, bias, **arguments, kernels=by)
                results.append((y, *torch.autograd.grad(y, (x, bias), values(*y.shape, seed=3).float().to(device))))
            for actual, expected in zip(*results):
                torch.testing.assert_close(actual, expected, rtol=2e-5, atol=2e-5 * float(expected.abs().max()))


def test_a_window_wider_than_all_maps_is_the_sum_of_all(implementation):
    kernels, device = implementation
    x = values(2, 3, 4, 4).float().to(device)
    for size in (4, 5, 6, 7, 30):
        y, expected = (lrn(x, size=size, **STRONG, kernels=by) for by in (kernels, "reference"))
        torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)
    if kernels == "cpu":  # and takes no memory
        torch.testing.assert_close(lrn(x, size=10**12, **STRONG, kernels=kernels), expected, rtol=1e-6, atol=1e-6)


@both_formats
def test_saved_tensors_may_come_back_in_another_order(implementation, memory_format):
    """As hooks do that keep the large ones elsewhere."""
    kernels, device = implementation
    x, bias = in_format(values(4, 8, 9, 9).float(), memory_format).to(device), values(8, seed=2).float().to(device)
    expected = gradients("before", x, bias, torch.ones(4, 8, 4, 4, device=device), kernels)
    for bytes_, order in itertools.product((0, 4096), FORMATS.values()):
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: t.clone(memory_format=order) if t.dim() == 4 and t.nbytes > bytes_ else t, lambda t: t
        ):
            x.requires_grad_()
            y = lrn_max_pool(x, bias, **STRONG, kernels=kernels)
            (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
        torch.testing.assert_close(dx, expected[0], rtol=1e-5, atol=1e-6)


def test_forward_mode_is_left_to_the_reference(implementation):
    kernels, device = implementation
    x, t = values(2, 6, 5, 5).to(device).float(), values(2, 6, 5, 5, seed=2).to(device).float()
    derivative, expected = (
        torch.func.jvp(lambda x: lrn_max_pool(x, **STRONG, kernels=by), (x,), (t,))[1] for by in (kernels, "reference")
    )
    assert expected.abs().sum() > 0 and torch.equal(derivative, expected)


def test_a_second_derivative_is_the_references(implementation):
    kernels, device = implementation
    derivatives = []
    for by, dtype, where in ((kernels, torch.float32, device), ("reference", torch.float64, "cpu")):
        x = values(2, 6, 5, 5).to(where, dtype).requires_grad_()
        (dx,) = torch.autograd.grad(lrn_max_pool(x, **STRONG, kernels=by).sum(), x, create_graph=True)
        derivatives.append(torch.autograd.grad(dx.square().sum(), x)[0].double().cpu())
    torch.testing.assert_close(*derivatives, rtol=1e-4, atol=1e-4 * float(derivatives[1].abs().max()))


@both_formats
@all_operations
def test_the_same_bits_every_run_and_for_every_number_of_threads(implementation, operation, memory_format):
    kernels, device = implementation
    x, bias = in_format(values(5, 24, 9, 9).float(), memory_format).to(device), values(24, seed=2).float().to(device)

    def run():
        y = call(operation, x, bias, kernels)
        return y, *gradients(operation, x, bias, y, kernels)

    first = run()
    torch.set_num_threads(3)
    again = run()
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
