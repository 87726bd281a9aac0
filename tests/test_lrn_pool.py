"""The fused operations on every implementation that can run here, against `reference.py` in float64."""
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from alexnet_mp.kernels import lrn, lrn_max_pool, max_pool, ops, reference, spatial_norm_max_pool

pytestmark = pytest.mark.usefixtures("one_thread")
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
FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
both_formats = pytest.mark.parametrize("memory_format", FORMATS)


def implementations():
    for name in LEVELS:
        yield pytest.param(name, id=f"cpu-{name}")
    for name in ("cuda", "triton"):
        yield pytest.param(name, id=name, marks=pytest.mark.skipif(not GPU, reason=f"{name} kernels need a GPU"))


@pytest.fixture(params=implementations())
def implementation(request):
    """(kernels, device); on a CPU with the instructions named."""
    if request.param not in LEVELS:
        if request.param not in ops.built():
            pytest.skip(f"{request.param} kernels were not built")
        yield request.param, "cuda"
        return
    if ops.compiled() is None:
        pytest.skip("there was no compiler to build the CPU kernels")
    try:
        before = ops.compiled().use_cpu_instructions(LEVELS[request.param])
    except RuntimeError as error:
        pytest.skip(f"this processor lacks {request.param}: {str(error).splitlines()[0]}")
    yield "cpu", "cpu"
    ops.compiled().use_cpu_instructions(before)


def values(*shape, seed=1, scale=30):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def in_format(x, name):
    return x.contiguous(memory_format=FORMATS[name])


def takes_bias(operation):
    return OPERATIONS[operation][0] is not spatial_norm_max_pool


def call(operation, x, bias, kernels):
    function, arguments = OPERATIONS[operation]
    return function(x, *[bias] if takes_bias(operation) else [], **arguments, kernels=kernels)


def exactly(operation, x, bias):
    """The reference in float64 on the same stored values."""
    return call(operation, x.detach().double().cpu(), None if bias is None else bias.detach().double().cpu(), "reference")


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
    clear = (best - second > 1e-5 * best.abs().clamp(min=1e-3)) & ((best.abs() > 1e-5) | (second < -1e-5))
    return clear.double().view(*u.shape[:2], (u.shape[2] - 3) // 2 + 1, -1)


def half_ulp(exact, dtype):
    info = torch.finfo(dtype)
    return 0.5 * info.eps * torch.exp2(exact.abs().clamp(min=info.tiny).log2().floor())


def assert_as_exact_as_pytorch(actual, exact, torchs, least):
    """At most twice the largest error of PyTorch's own float32 operations, which on a handful of values may all round well: it is
    taken to be `least` at least."""
    worst, error = (float((other.double().cpu() - exact).abs().max()) for other in (torchs, actual))
    assert error <= 2 * max(worst, least), f"error {error}, PyTorch's {worst}, at least {least}"


def assert_rounded_once(actual, exact):
    wide = actual.double().cpu()
    slack = 2e-6 * exact.abs() + 2e-7 * (exact.abs().max() if exact.numel() else 0)
    assert ((wide - exact).abs() <= half_ulp(exact, actual.dtype) + slack).all()


# Thousands of values each: the largest error of a few hundred is a matter of luck.
SHAPES = [(3, 48, 9, 8), (300, 1, 3, 3), (60, 3, 4, 5), (50, 4, 5, 4), (20, 5, 6, 7), (6, 47, 5, 3), (3, 96, 5, 5), (1, 128, 27, 27),
          (1, 48, 55, 55), (2, 17, 13, 13), (2, 8, 4, 131)]


# Every operation on every small shape; on the paper's shapes those of the two recipes.
OPERATIONS_AND_SHAPES = [
    pytest.param(operation, shape, id=f"{operation}-{'x'.join(map(str, shape))}")
    for operation, shape in itertools.product(OPERATIONS, SHAPES)
    if math.prod(shape) < 20000 or operation in ("before", "after, all", "max_pool", "spatial, all")]


@both_formats
@pytest.mark.parametrize("operation, shape", OPERATIONS_AND_SHAPES)
def test_float32_errs_at_most_twice_as_much_as_pytorch(implementation, operation, shape, memory_format):
    kernels, device = implementation
    x, bias = in_format(values(*shape).float(), memory_format).to(device), values(shape[1], seed=2).float().to(device)
    exact, torchs = exactly(operation, x, bias), call(operation, x, bias, "reference")
    y = call(operation, x, bias, kernels)
    assert y.shape == exact.shape and y.dtype == x.dtype and ops.memory_format(y) == ops.memory_format(x)
    ulp = 2**-23 * float(exact.abs().max())
    assert_as_exact_as_pytorch(y, exact, torchs, ulp)
    dy = (values(*y.shape, seed=3) * clear_winners(operation, x, bias)).float().to(device)
    exact = gradients(operation, x.double().cpu(), bias.double().cpu(), dy.double().cpu(), "reference")
    ours, torchs = (gradients(operation, x, bias, dy, name) for name in (kernels, "reference"))
    ulp = 2**-23 * float(exact[0].abs().max())
    assert_as_exact_as_pytorch(ours[0], exact[0], torchs[0], ulp)
    if takes_bias(operation):  # a sum of n rounded terms errs by the root of n roundings
        assert_as_exact_as_pytorch(ours[1], exact[1], torchs[1], ulp * math.sqrt(x.numel() / shape[1]))


@both_formats
@every_operation
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_rounded_once(implementation, operation, dtype, memory_format):
    kernels, device = implementation
    for shape, bias_dtype in (((2, 24, 9, 8), dtype), ((1, 5, 5, 5), torch.float32)):
        x, bias = in_format(values(*shape).to(dtype), memory_format).to(device), values(shape[1], seed=2).to(bias_dtype).to(device)
        y = call(operation, x, bias, kernels)
        assert y.dtype == dtype
        assert_rounded_once(y, exactly(operation, x, bias))
        dy = (values(*y.shape, seed=3, scale=1) * clear_winners(operation, x, bias)).to(dtype).to(device)
        exact = gradients(operation, x.double().cpu(), bias.double().cpu(), dy.double().cpu(), "reference")
        ours = gradients(operation, x, bias, dy, kernels)
        assert_rounded_once(ours[0], exact[0])
        assert [gradient.dtype for gradient in ours] == [dtype, bias_dtype][:len(ours)]
        for actual, wanted in zip(ours[1:], exact[1:]):
            assert_rounded_once(actual, wanted)


@every_operation
def test_float64_is_the_reference(operation):
    if ops.compiled() is None:
        pytest.skip("there was no compiler to build the CPU kernels")
    for level, memory_format in itertools.product(LEVELS.values(), FORMATS):
        try:
            before = ops.compiled().use_cpu_instructions(level)
        except RuntimeError:
            continue  # this processor has not that level
        x, bias = in_format(values(2, 13, 9, 8), memory_format), values(13, seed=2)
        y, expected = call(operation, x, bias, "cpu"), call(operation, x, bias, "reference")
        torch.testing.assert_close(y, expected, rtol=1e-13, atol=1e-13)
        dy = values(*y.shape, seed=3)
        for actual, wanted in zip(*(gradients(operation, x, bias, dy, name) for name in ("cpu", "reference")), strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-11, atol=1e-11)
        ops.compiled().use_cpu_instructions(before)


@every_operation
def test_gradcheck(operation):
    if ops.compiled() is None:
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
@pytest.mark.parametrize("name", ["zeros", "constant", "few values", "nan", "inf", "huge", "denormal"])
def test_ties_nan_and_extremes_are_the_references(implementation, operation, name, memory_format):
    """In float32 beside the reference in float32: the same NaN, the same infinities, and a tie given to the same cells."""
    kernels, device = implementation
    x = in_format(special(name, (2, 9, 7, 8)).float(), memory_format).to(device)
    y, expected = (call(operation, x, None, by) for by in (kernels, "reference"))
    torch.testing.assert_close(y, expected, rtol=2e-6, atol=1e-44, equal_nan=True)
    dy = values(*y.shape, seed=3, scale=1).float().to(device)
    if name in ("nan", "inf", "huge", "denormal"):  # the ties of the other inputs are exact, here near ones may fall differently
        dy = dy * clear_winners(operation, torch.nan_to_num(x, nan=0, posinf=0, neginf=0), None).float().to(device)
    ours, theirs = (gradients(operation, x, None, dy, by)[0] for by in (kernels, "reference"))
    scale = float(theirs[theirs.isfinite()].abs().max())
    torch.testing.assert_close(ours, theirs, rtol=5e-6, atol=2e-6 * scale, equal_nan=True)


@both_formats
@every_operation
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["zeros", "few values", "nan", "inf", "largest", "denormal"])
def test_sixteen_bit_extremes_are_the_references(implementation, operation, name, dtype, memory_format):
    """NaN stays NaN, what is too large becomes infinite, what is small is rounded: as PyTorch converts."""
    kernels, device = implementation
    x = 60000 * special("few values", (2, 9, 7, 8)).sign() if name == "largest" else special(name, (2, 9, 7, 8))
    bias = torch.full((9,), 10000.0 if name == "largest" else 0.0, device=device)  # max_pool: 70000 is too much for float16
    x = in_format((x * 1e35 if name == "denormal" and dtype == torch.float16 else x).to(dtype), memory_format).to(device)
    y, expected = (call(operation, x, bias, by) for by in (kernels, "reference"))
    torch.testing.assert_close(y, expected, rtol=torch.finfo(dtype).eps, atol=0 if name != "denormal" else 1e-7, equal_nan=True)
    if name in ("zeros", "few values"):
        dy = values(*y.shape, seed=3, scale=1).to(dtype).to(device)
        ours, theirs = (gradients(operation, x, bias, dy, by)[0] for by in (kernels, "reference"))
        torch.testing.assert_close(ours, theirs, rtol=2 * torch.finfo(dtype).eps, atol=2e-6 * float(theirs.float().abs().max()),
                                   equal_nan=True)


@every_operation
def test_a_gradient_that_is_not_finite_goes_where_the_others_go(implementation, operation):
    kernels, device = implementation
    x = special("few values", (2, 6, 7, 8)).float().to(device)
    dy = torch.ones(call(operation, x, None, kernels).shape, device=device)
    dy[0, 1, 1, 1], dy[1, 2, 0, 1] = math.nan, math.inf
    ours, theirs = (gradients(operation, x, None, dy, by)[0] for by in (kernels, "reference"))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, equal_nan=True)


@both_formats
@every_operation
def test_no_images_and_one(implementation, operation, memory_format):
    kernels, device = implementation
    x, bias = in_format(values(3, 6, 5, 6).float(), memory_format).to(device), values(6, seed=2).float().to(device)
    y = call(operation, x, bias, kernels)
    empty = call(operation, x[:0], bias, kernels)
    assert empty.shape == (0, *y.shape[1:])
    none = gradients(operation, x[:0], bias, y[:0], kernels)
    assert none[0].shape == (0, 6, 5, 6) and all((gradient == 0).all() for gradient in none[1:])
    assert torch.equal(call(operation, x[1:2], bias, kernels), y[1:2])


@every_operation
def test_any_strides(implementation, operation):
    kernels, device = implementation
    x, bias = values(2, 6, 6, 7).float().to(device), values(6, seed=2).float().to(device)
    y = call(operation, x, bias, kernels)
    dy = values(*y.shape, seed=3).float().to(device)
    expected = gradients(operation, x, bias, dy, kernels)
    wide = torch.zeros(2, 6, 6, 14, device=device)
    wide[:, :, :, ::2] = x
    for other in (wide[:, :, :, ::2], x.mT.contiguous().mT, x.transpose(0, 1).contiguous().transpose(0, 1)):
        assert not other.is_contiguous()
        torch.testing.assert_close(call(operation, other, bias, kernels), y, rtol=1e-6, atol=1e-6)
        for dy_other in (dy, dy.contiguous(memory_format=torch.channels_last), dy.mT.contiguous().mT):
            for actual, wanted in zip(gradients(operation, other, bias, dy_other, kernels), expected, strict=True):
                torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("pool, stride", [(2, 2), (3, 1), (3, 3), (4, 3), (5, 2), (15, 1), (1, 1)])
@pytest.mark.parametrize("ties", ["first", "all"])
def test_other_windows(implementation, pool, stride, ties):
    kernels, device = implementation
    if pool > ops.LARGEST_POOL[kernels]:
        with pytest.raises(ValueError, match=f"pool is {pool}.*at most {ops.LARGEST_POOL[kernels]}"):
            lrn_max_pool(torch.zeros(1, 1, 16, 17, device=device), alpha=1e-4, pool=pool, kernels=kernels)
        return
    x, bias = values(2, 7, 16, 17).float().to(device), values(7, seed=2).float().to(device)
    for size, beta in ((5, 0.75), (3, 0.75), (4, 0.75), (1, 0.75), (7, 0.5), (5, 1.0), (5, 0.0)):
        arguments = dict(size=size, alpha=3e-3, beta=beta, k=1.5, pool=pool, stride=stride, ties=ties)
        for function in (lrn_max_pool, lambda x, bias, **options: spatial_norm_max_pool(x + bias[:, None, None], **options)):
            results = []
            for by in (kernels, "reference"):
                x, bias = x.detach().requires_grad_(), bias.detach().requires_grad_()
                y = function(x, bias, **arguments, kernels=by)
                results.append((y, *torch.autograd.grad(y, (x, bias), values(*y.shape, seed=3).float().to(device))))
            for actual, wanted in zip(*results):
                torch.testing.assert_close(actual, wanted, rtol=2e-5, atol=2e-5 * float(wanted.abs().max()))


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
                lambda t: t.clone(memory_format=order) if t.dim() == 4 and t.nbytes > bytes_ else t, lambda t: t):
            x.requires_grad_()
            y = lrn_max_pool(x, bias, **STRONG, kernels=kernels)
            dx, = torch.autograd.grad(y, x, torch.ones_like(y))
        torch.testing.assert_close(dx, expected[0], rtol=1e-5, atol=1e-6)


def test_forward_mode_is_left_to_the_reference(implementation):
    kernels, device = implementation
    x, t = values(2, 6, 5, 5).to(device).float(), values(2, 6, 5, 5, seed=2).to(device).float()
    derivative, expected = (torch.func.jvp(lambda x: lrn_max_pool(x, **STRONG, kernels=by), (x,), (t,))[1]
                            for by in (kernels, "reference"))
    assert expected.abs().sum() > 0 and torch.equal(derivative, expected)


def test_a_second_derivative_is_refused(implementation):
    kernels, device = implementation
    x = values(2, 6, 5, 5).to(device).float().requires_grad_()
    dx, = torch.autograd.grad(lrn_max_pool(x, **STRONG, kernels=kernels).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="lrn_pool_backward|does not require grad|autograd"):
        torch.autograd.grad(dx.sum(), x)


@both_formats
@every_operation
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


@pytest.mark.parametrize("change, named", [
    (dict(relu="during"), "relu is 'during'"), (dict(ties="last"), "ties is 'last'"), (dict(pool=6), "5x5.*6x6"),
    (dict(stride=0), "stride is 0"), (dict(stride=4), "stride is 4.*3x3"), (dict(size=0), "size is 0"),
    (dict(size=2.0), "size is 2.0"), (dict(k=0.0), "k is 0.0"), (dict(k=math.nan), "k is nan"), (dict(alpha=-1.0), "alpha is -1.0"),
    (dict(beta=math.inf), "beta inf"), (dict(kernels="fortran"), "fortran"), (dict(x=torch.zeros(4, 5, 5)), r"\(4, 5, 5\)"),
    (dict(x=torch.zeros(1, 4, 5, 5, dtype=torch.int32)), "int32"), (dict(x=torch.zeros(1, 4, 5, 5, dtype=torch.complex64)), "complex64"),
    (dict(bias=torch.zeros(3)), r"\(3,\).*4 maps"), (dict(bias=torch.zeros(4, 1)), r"\(4, 1\)"),
    (dict(bias=torch.zeros(4, dtype=torch.float64)), "float64"), (dict(bias=torch.zeros(4, device="meta")), "meta.*cpu"),
])
def test_wrong_arguments_are_refused_by_name(change, named):
    arguments = dict(x=torch.zeros(1, 4, 5, 5), bias=None, alpha=1e-4) | change
    with pytest.raises(ValueError, match=named):
        lrn_max_pool(arguments.pop("x"), arguments.pop("bias"), **arguments)


def test_a_window_of_more_cells_than_a_byte_counts_is_left_to_the_reference():
    x = values(1, 2, 17, 16)
    expected = lrn_max_pool(x, alpha=1e-4, pool=16, stride=1, kernels="reference")
    assert torch.equal(lrn_max_pool(x, alpha=1e-4, pool=16, stride=1), expected)
    if ops.compiled() is not None:
        with pytest.raises(ValueError, match="pool is 16.*at most 15"):
            lrn_max_pool(x, alpha=1e-4, pool=16, stride=1, kernels="cpu")


def test_the_registered_operator_refuses_what_would_read_out_of_bounds():
    if ops.compiled() is None:
        pytest.skip("there was no compiler to build the CPU kernels")
    x = torch.ones(1, 2, 3, 3)

    def pooled(pool, stride, kernels="cpu"):
        return torch.ops.alexnet_mp.lrn_pool(x, None, "none", 1, 0.0, 0.75, 1.0, "none", pool, stride, "first", kernels)

    for pool, stride in ((2, 3), (3, 0), (16, 1)):
        with pytest.raises((RuntimeError, ZeroDivisionError)):
            pooled(pool, stride)
    with pytest.raises(ValueError, match="kernels is 'fortran'"):
        pooled(3, 2, "fortran")
    y, argmax = pooled(2, 1)
    arguments = (0, 1, 0.0, 0.75, 1.0, 0, 2, 1, 0)
    for wrong in ((y, x, None, argmax[:, :1], x.clone()), (y, x, None, argmax, x[:, :, :, :2].clone()),
                  (y, x[:, :, :2], None, argmax, x.clone()), (y, x.double(), None, argmax, x.clone())):
        with pytest.raises(RuntimeError, match="must be of|has the wrong size"):
            ops.compiled().lrn_pool_backward(*wrong, torch.empty(0), *arguments)


def test_a_library_that_does_not_load_is_named(tmp_path, monkeypatch):
    (tmp_path / "compiled.so").write_bytes(b"not a library")
    monkeypatch.setattr(ops, "LIBRARY", tmp_path / "compiled.so")
    with pytest.raises(RuntimeError, match="compiled.so does not fit torch.*--kernels reference"):
        ops.compiled.__wrapped__()
    monkeypatch.setattr(ops, "built", lambda: pytest.fail("the reference needs no library"))
    assert ops.resolve("reference", "cpu") == "reference"


def test_the_choice_of_kernels():
    assert ops.resolve("auto", "cpu") == ("cpu" if ops.compiled() is not None else "reference")
    assert ops.resolve("reference", "cuda:1") == "reference" and ops.resolve("auto", "meta") == "reference"
    with pytest.raises(ValueError, match="'triton' can't compute on cpu.*reference"):
        ops.resolve("triton", "cpu")
    with pytest.raises(ValueError, match="'cpu' can't compute on cuda"):
        ops.resolve("cpu", "cuda:0")
    if GPU:
        assert ops.resolve("auto", "cuda:0") == next(name for name in ("cuda", "triton", "reference") if name in (*ops.built(), "reference"))


@pytest.mark.parametrize("change, triton", [
    ({}, False), (dict(norm="none", size=1), False), (dict(norm="spatial"), True), (dict(size=3), True), (dict(beta=0.5), True),
    (dict(pool=2), True), (dict(pool=0, stride=1), True), (dict(all_ties=True), True), (dict(kernels="triton"), True),
    (dict(maps=12), True), (dict(maps=1032), True), (dict(memory_format="nchw"), True), (dict(offset=4), False), (dict(offset=1), True),
    (dict(kernels="cpu", memory_format="nchw", size=3), False)])
def test_what_is_left_to_triton(change, triton):
    """`kernels="cuda"`: the paper's case in channels_last, from addresses that 16 bytes divide; nothing of this looks at a GPU."""
    case = dict(kernels="cuda", norm="lrn", size=5, beta=0.75, pool=3, stride=2, all_ties=False, maps=16, memory_format="channels_last",
                offset=0) | change
    maps, offset = case.pop("maps"), case.pop("offset")
    x = torch.zeros(2 * maps * 25 + offset)[offset:].view(2, 5, 5, maps).permute(0, 3, 1, 2)
    x = x if case.pop("memory_format") == "channels_last" else x.contiguous()
    assert ops._in_triton(tensors=[x], **case) == triton


@every_operation
def test_opcheck(implementation, operation):
    kernels, device = implementation
    norm = {lrn: "lrn", lrn_max_pool: "lrn", max_pool: "none", spatial_norm_max_pool: "spatial"}[OPERATIONS[operation][0]]
    arguments = OPERATIONS[operation][1]
    relu = {True: "after", False: "none"}.get(arguments.get("relu", norm == "none"), arguments.get("relu"))
    for memory_format in FORMATS:
        x, bias = in_format(values(2, 8, 7, 6).float(), memory_format).to(device), values(8, seed=2).float().to(device)
        torch.library.opcheck(torch.ops.alexnet_mp.lrn_pool.default,
                              (x.requires_grad_(), bias.requires_grad_() if takes_bias(operation) else None, norm, 5, 3e-3, 0.75, 2.0,
                               relu if norm != "spatial" else "none", 0 if OPERATIONS[operation][0] is lrn else 3, 2,
                               arguments.get("ties", "first"), kernels))


def test_compile_and_autocast(implementation):
    kernels, device = implementation
    convolution = torch.nn.Conv2d(3, 8, 3, bias=False).to(device)
    bias = torch.nn.Parameter(values(8, seed=2, scale=1).float().to(device))
    images = values(2, 3, 11, 11).float().to(device)

    def layer(images):
        return lrn_max_pool(convolution(images), bias, alpha=1e-4, kernels=kernels)

    expected = layer(images)
    expected.sum().backward()
    gradient, bias.grad = bias.grad.clone(), None
    compiled = torch.compile(layer, fullgraph=True)(images)
    compiled.sum().backward()
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bias.grad, gradient, rtol=1e-4, atol=1e-4)
    bias.grad = None
    with torch.autocast(device, dtype=torch.bfloat16):
        half = layer(images)
        assert half.dtype == torch.bfloat16 and bias.dtype == torch.float32
        half.float().sum().backward()
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.3)
    assert bias.grad.dtype == torch.float32


def saved_bytes(function, x, bias):
    kept = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = function(x, bias)
    return sum(kept.values()), y


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_x_the_bias_and_a_byte_an_output_are_kept(dtype):
    kernels = "cpu" if ops.compiled() is not None else pytest.skip("there was no compiler to build the CPU kernels")
    x, bias = torch.randn(2, 48, 15, 15).to(dtype).requires_grad_(), torch.randn(48).to(dtype).requires_grad_()
    for ties, codes in (("first", 2 * 48 * 7 * 7), ("all", 0)):
        kept, _ = saved_bytes(lambda x, bias: lrn_max_pool(x, bias, alpha=1e-4, ties=ties, kernels=kernels), x, bias)
        assert kept == x.numel() * x.element_size() + bias.numel() * bias.element_size() + codes


needs_gpu = pytest.mark.skipif(not GPU, reason="needs a GPU")


@needs_gpu
@pytest.mark.parametrize("kernels", ["cuda", "triton"])
@every_operation
def test_a_side_stream_is_obeyed(kernels, operation):
    x, bias = values(8, 48, 27, 27).float().cuda().contiguous(memory_format=torch.channels_last), values(48, seed=2).float().cuda()
    expected = call(operation, x * 2, bias, kernels)
    gradient = gradients(operation, x * 2, bias, expected, kernels)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # what is launched on another stream would read x before it is doubled
        doubled = x.mul(2)
        y = call(operation, doubled, bias, kernels)
        results = gradients(operation, doubled, bias, y, kernels)
    stream.synchronize()
    assert torch.equal(y, expected) and all(torch.equal(a, b) for a, b in zip(results, gradient, strict=True))


@needs_gpu
@pytest.mark.parametrize("kernels", ["cuda", "triton"])
def test_a_graph_replays_the_operation(kernels):
    x = values(4, 48, 15, 15).float().cuda().contiguous(memory_format=torch.channels_last).requires_grad_()
    bias = values(48, seed=2).float().cuda().requires_grad_()

    def both():
        y = lrn_max_pool(x, bias, alpha=1e-4, kernels=kernels)
        return y, *torch.autograd.grad(y, (x, bias), torch.ones_like(y))

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            both()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both()
    with torch.no_grad():
        x.mul_(1.5)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, both(), strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("kernels", ["cuda", "triton"])
def test_the_second_device_while_the_first_is_current(kernels):
    x, bias = values(2, 48, 15, 15).float().contiguous(memory_format=torch.channels_last), values(48, seed=2).float()
    with torch.cuda.device(0):
        first = gradients("before", x.to("cuda:0"), bias.to("cuda:0"), torch.ones(2, 48, 7, 7, device="cuda:0"), kernels)
        second = gradients("before", x.to("cuda:1"), bias.to("cuda:1"), torch.ones(2, 48, 7, 7, device="cuda:1"), kernels)
    assert all(a.device.index == 1 and torch.equal(a.cpu(), b.cpu()) for a, b in zip(second, first, strict=True))
