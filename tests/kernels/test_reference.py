"""The operations against their formulas: written as loops, worked out by hand, and in float64 beside 16-bit storage."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from alexnet_mp.kernels import reference as ops
from alexnet_mp.kernels.philox import philox
from inner_cases import every

STRONG = {"alpha": 3e-3, "beta": 0.75, "k": 2.0}  # for values of 30 or so: neither the sum nor k hides the other
MAP_OPERATIONS = {  # each with every argument that has a gradient
    "lrn": lambda x, b: ops.lrn(x, b, **STRONG),
    "lrn_max_pool": lambda x, b: ops.lrn_max_pool(x, b, **STRONG),
    "lrn_max_pool, relu after, all ties": lambda x, b: ops.lrn_max_pool(x, b, relu="after", ties="all", **STRONG),
    "lrn_max_pool, no relu": lambda x, b: ops.lrn_max_pool(x, b, relu="none", **STRONG),
    "max_pool": lambda x, b: ops.max_pool(x, b),
    "max_pool, no relu, all ties": lambda x, b: ops.max_pool(x, b, relu=False, ties="all"),
    "spatial_norm": lambda x, b: ops.spatial_norm(x, **STRONG),
    "spatial_norm_max_pool": lambda x, b: ops.spatial_norm_max_pool(x, **STRONG),
    "spatial_norm_max_pool, all ties": lambda x, b: ops.spatial_norm_max_pool(x, ties="all", **STRONG),
    "avg_pool": lambda x, b: ops.avg_pool(x),
}
every_map_operation = every("operation", MAP_OPERATIONS.values(), ids=MAP_OPERATIONS)
pytestmark = pytest.mark.usefixtures("one_thread")
both_ties = every("ties", ["first", "all"])


def maps(*shape, seed=1, scale=30, dtype=torch.float64):
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


def shuffled(*shape):
    """0, 1, 2, ... in random order: no two equal."""
    return torch.randperm(math.prod(shape), generator=torch.Generator().manual_seed(4)).double().view(shape)


def cells(*rows, dtype=torch.float64):
    """One image with one map, written out."""
    return torch.tensor([[rows]], dtype=dtype)


def lrn_loops(a, size, alpha, beta, k):
    """Section 3.3 as printed: j from max(0, i - n/2) to min(N - 1, i + n/2)."""
    b = torch.empty_like(a)
    for n, i, y, x in itertools.product(*map(range, a.shape)):
        window = range(max(0, i - size // 2), min(a.shape[1] - 1, i + size // 2) + 1)
        b[n, i, y, x] = a[n, i, y, x] / (k + alpha * sum(float(a[n, j, y, x]) ** 2 for j in window)) ** beta
    return b


def spatial_loops(a, size, alpha, beta, k):
    """2012 source: rows y - size/2 .. y - size/2 + size - 1, and columns alike, clipped."""
    b, before, after = torch.empty_like(a), size // 2, size - size // 2
    for n, i, y, x in itertools.product(*map(range, a.shape)):
        window = a[n, i, max(0, y - before) : y + after, max(0, x - before) : x + after]
        b[n, i, y, x] = a[n, i, y, x] / (k + alpha * sum(float(value) ** 2 for value in window.flatten())) ** beta
    return b


def pool_loops(a, pool, stride, reduce=torch.amax):
    """Windows of cells [y s, y s + pool) x [x s, x s + pool); a slice clips them at the edge."""
    height, width = (math.ceil((side - pool) / stride) + 1 for side in a.shape[2:])
    rows = [
        torch.stack(
            [
                reduce(a[:, :, y * stride : y * stride + pool, x * stride : x * stride + pool], dim=(2, 3))
                for x in range(width)
            ],
            dim=2,
        )
        for y in range(height)
    ]
    return torch.stack(rows, dim=2)


def gradient(operation, x, dy, *others):
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    return torch.autograd.grad(operation(x, *others), x, dy)[0]


def half_ulp(exact, dtype):
    """The largest error that rounding float64 values to a storage type makes."""
    info = torch.finfo(dtype)
    return 0.5 * info.eps * torch.exp2(exact.abs().clamp(min=info.tiny).log2().floor())


def close(actual, expected, rtol=1e-13):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=rtol * float(expected.abs().max()))


@every("channels", [1, 3, 4, 5, 48])
@every("size", [1, 3, 5])
def test_lrn_is_the_printed_formula(channels, size):
    x = maps(2, channels, 3, 2)
    expected = lrn_loops(x, size, **STRONG)
    close(ops.lrn(x, size=size, relu="none", **STRONG), expected)
    close(F.local_response_norm(x, size, STRONG["alpha"] * size, STRONG["beta"], STRONG["k"]), expected)
    bias = maps(channels, seed=2)
    close(ops.lrn(x, bias, size=size, **STRONG), lrn_loops(torch.relu(x + bias[:, None, None]), size, **STRONG))


@every("size", [2, 4])
def test_lrn_of_an_even_window_reaches_further_down(size):
    """i - size/2 .. i + size/2 - 1, as cuda-convnet and PyTorch have it; the paper's n is odd."""
    x = maps(2, 7, 3, 2)
    expected = F.local_response_norm(x, size, STRONG["alpha"] * size, STRONG["beta"], STRONG["k"])
    close(ops.lrn(x, size=size, relu="none", **STRONG), expected)


@every("shape", [(2, 3, 7, 6), (1, 2, 1, 1), (1, 1, 2, 9)])
def test_spatial_norm_is_the_sources_formula(shape):
    x = maps(*shape)
    close(ops.spatial_norm(x, alpha=4e-5), spatial_loops(x, 5, 4e-5, 0.75, 1.0))
    for size in (1, 3, 4):
        close(ops.spatial_norm(x, size=size, **STRONG), spatial_loops(x, size, **STRONG))
    mean = F.avg_pool2d(x**2, 5, 1, 2, count_include_pad=True)
    close(ops.spatial_norm(x, alpha=1e-3 / 25), x * (1 + 1e-3 * mean) ** -0.75)


def test_normalisation_by_hand():
    one = {"alpha": 1.0, "beta": 1.0, "k": 1.0}
    x = torch.tensor([1.0, 2, 3], dtype=torch.float64).view(1, 3, 1, 1)
    expected = torch.tensor([1 / 6, 2 / 15, 3 / 14], dtype=torch.float64).view(1, 3, 1, 1)  # 1+1+4, 1+1+4+9, 1+4+9
    close(ops.lrn(x, size=3, **one), expected)
    close(ops.lrn(x[:, :1] + 1, alpha=0.5, beta=0.5, k=2.0), torch.ones(1, 1, 1, 1).double())  # 2 / sqrt(2 + 4 / 2)
    close(
        ops.spatial_norm(cells([1, 0, 2], [0, 3, 0], [0, 0, 4]), size=3, **one),
        cells([1 / 11, 0, 2 / 14], [0, 3 / 31, 0], [0, 0, 4 / 26]),
    )


def test_lrn_max_pool_by_hand():
    """a / (1 + a^2): the largest input does not have the largest response, so the norm must come before the maximum."""
    one = {"size": 1, "alpha": 1.0, "beta": 1.0, "k": 1.0}
    x = cells([4.0, -3, -2], [1, -1, 0], [2, -8, -9])
    for relu, expected in (("before", 1 / 2), ("after", 1 / 2), ("none", 1 / 2)):
        close(ops.lrn_max_pool(x, relu=relu, **one), cells([expected]))
    for relu, expected in (("before", 0), ("after", 0), ("none", -9 / 82)):
        close(ops.lrn_max_pool(-x.abs() - 5 * (x.abs() < 8), relu=relu, **one), cells([expected]))
    bias = torch.tensor([-2.0], dtype=torch.float64)  # the 1 becomes -1, the 4 a 2, and the 2 a 0
    close(ops.lrn_max_pool(x, bias, **one), cells([2 / 5]))


@both_ties
def test_lrn_max_pool_is_its_parts_in_order(ties):
    x, bias = maps(2, 4, 7, 6), maps(4, seed=2)
    a = x + bias[:, None, None]
    for relu, expected in (
        ("before", pool_loops(lrn_loops(torch.relu(a), 5, **STRONG), 3, 2)),
        ("after", torch.relu(pool_loops(lrn_loops(a, 5, **STRONG), 3, 2))),
        ("none", pool_loops(lrn_loops(a, 5, **STRONG), 3, 2)),
    ):
        close(ops.lrn_max_pool(x, bias, relu=relu, ties=ties, **STRONG), expected)
    close(ops.spatial_norm_max_pool(x, ties=ties, **STRONG), pool_loops(spatial_loops(x, 5, **STRONG), 3, 2))


@both_ties
def test_maps_shrink_from_55_to_27_to_13_to_6(ties):
    for before, after in ((55, 27), (27, 13), (13, 6), (6, 3), (3, 1)):
        assert ops.max_pool(maps(1, 2, before, before), ties=ties).shape == (1, 2, after, after)


@both_ties
@every("pool, stride", [(3, 2), (2, 2), (3, 1), (4, 3)])
@every("height, width", [(4, 4), (6, 5), (7, 8), (9, 6)])
def test_max_pool_windows(height, width, pool, stride, ties):
    x, bias = maps(2, 3, height, width), maps(3, seed=2)
    expected = pool_loops(x + bias[:, None, None], pool, stride)
    close(ops.max_pool(x, bias, relu=False, pool=pool, stride=stride, ties=ties), expected)
    close(ops.max_pool(x, bias, pool=pool, stride=stride, ties=ties), torch.relu(expected))


@both_ties
def test_nothing_outside_the_maps_is_ever_the_maximum(ties):
    """An overhanging window that saw zeros would report 0 here."""
    x = cells(*[[-9.0, -8, -7, -6, -5, -4]] * 3)
    assert torch.equal(ops.max_pool(x, relu=False, ties=ties), cells([-7.0, -5, -4]))


@every("ties, row", [("all", [1, 1, 11, 10, 110, 100]), ("first", [1, 0, 10, 0, 100, 0])])
def test_gradient_of_tied_maxima(ties, row):
    """Windows over columns 0-2, 2-4 and 4-5 (overhanging) of equal cells, with gradients 1, 10 and 100."""
    x, dy = cells(*[[7.0] * 6] * 3), cells([1.0, 10, 100])
    below = row if ties == "all" else [0] * 6  # scan order: the first row wins
    expected = cells(row, below, below).double()
    assert torch.equal(gradient(lambda x: ops.max_pool(x, ties=ties), x, dy), expected)
    assert torch.equal(gradient(lambda x: ops.max_pool(x, ties=ties), x.mT, dy.mT), expected.mT)


@both_ties
@every("height, width", [(7, 7), (6, 8)])
def test_without_ties_the_gradient_is_pytorchs(height, width, ties):
    x = shuffled(2, 3, height, width)
    dy = maps(2, 3, *pool_loops(x, 3, 2).shape[2:], seed=5)
    expected = gradient(lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True), x, dy)
    close(gradient(lambda x: ops.max_pool(x, relu=False, ties=ties), x, dy), expected)


@every("dtype", [torch.bfloat16, torch.float16])
def test_ties_are_decided_before_rounding(dtype):
    """Map 0 is 1 everywhere, map 1 has one 0: nine responses of map 0, one larger in float32, all equal rounded."""
    x = torch.ones(1, 2, 3, 3, dtype=dtype)
    x[0, 1, 1, 1] = 0
    response = ops.lrn(x.float(), alpha=1e-4)[0, 0]
    assert (response == response[1, 1]).sum() == 1 and (response.to(dtype) == response[1, 1].to(dtype)).all()
    dy = torch.tensor([1.0, 0], dtype=dtype).view(1, 2, 1, 1)
    for operation in (
        lambda x: ops.lrn_max_pool(x, alpha=1e-4, ties="all"),
        lambda x: ops.lrn_max_pool(x, alpha=1e-4, ties="all", relu="after"),
    ):
        dx = gradient(operation, x, dy)[0, 0]
        assert dx[1, 1] > 0.5 and dx.count_nonzero() == 1
    # Ones under the spatial norm: the corners (4 cells in the window) beat the sides (6) and the centre (9) by a hair.
    x, corners = torch.ones(1, 1, 3, 3, dtype=dtype), cells([1, 0, 1], [0, 0, 0], [1, 0, 1])
    assert len(ops.spatial_norm(x, size=3, alpha=1e-4).unique()) == 1
    dx = gradient(lambda x: ops.spatial_norm_max_pool(x, size=3, alpha=1e-4, ties="all"), x, x[:, :, :1, :1])
    assert torch.equal(dx > 0.5, corners > 0)


@both_ties
@every("relu", ["before", "after", "none"])
def test_nan_reaches_its_windows_and_no_others(relu, ties):
    x = maps(1, 6, 6, 7)
    x[0, 1, 2, 6] = math.nan  # rows 0 and 1 of the output, its last column; normalisation carries it to maps 0..3
    y = ops.lrn_max_pool(x, relu=relu, ties=ties, **STRONG).isnan()
    expected = torch.zeros(1, 6, 3, 3, dtype=torch.bool)
    expected[0, :4, :2, 2] = True
    assert torch.equal(y, expected)
    expected[0, [0, 2, 3]] = False
    assert torch.equal(ops.max_pool(x, relu=relu != "none", ties=ties).isnan(), expected)


def test_nan_equals_nothing_backward():
    """A window whose maximum is NaN has no cell equal to it: under "all" its gradient goes nowhere."""
    x = cells(*[[1.0, 5, 2, 6, 3]] * 2, [1, 5, 2, 6, math.nan])
    expected = cells(*[[0.0, 1, 0, 0, 0]] * 3)
    assert torch.equal(gradient(lambda x: ops.max_pool(x, relu=False, ties="all"), x, cells([1.0, 10])), expected)


@pytest.mark.run
@every_map_operation
def test_gradcheck(operation):
    # Values 0.5 apart and 0.25 off zero: a step of the numeric derivative meets no kink of ReLU or of a maximum.
    x = (shuffled(1, 5, 4, 4) - 40) / 2 + 0.25
    bias = torch.tensor([0.0, 0.125, -0.125, 0.0625, -0.0625], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(operation, (x.requires_grad_(), bias))


@every("dtype", [torch.bfloat16, torch.float16, torch.float32])
@every_map_operation
def test_storage_types_are_rounded_once(operation, dtype):
    """Half an ulp of the storage type from the float64 result, and what some ten roundings of float32 can add."""
    x, bias = maps(2, 6, 7, 8, scale=300, dtype=dtype), maps(6, scale=300, seed=2, dtype=dtype)
    y, exact = operation(x, bias), operation(x.double(), bias.double())
    assert y.dtype == dtype and torch.isfinite(y).all()
    slack = 2e-6 * exact.abs() + 1e-7 * exact.abs().max()
    assert ((y.double() - exact).abs() <= half_ulp(exact, dtype) + slack).all()


@every("dtype", [torch.bfloat16, torch.float16])
@every("operation", ["lrn", "spatial_norm"])
def test_gradients_are_rounded_once(operation, dtype):
    x, dy = maps(2, 6, 7, 8, dtype=dtype), maps(2, 6, 7, 8, seed=3, dtype=dtype)
    dx = gradient(MAP_OPERATIONS[operation], x, dy, None)
    exact = gradient(MAP_OPERATIONS[operation], x.double(), dy.double(), None)
    assert dx.dtype == dtype
    assert ((dx.double() - exact).abs() <= half_ulp(exact, dtype) + 1e-6 * exact.abs().max()).all()


@every_map_operation
def test_memory_layout_changes_nothing(operation):
    x, bias = maps(2, 5, 6, 7), maps(5, seed=2)
    y = operation(x, bias)
    dy = maps(*y.shape, seed=3)
    dx = gradient(operation, x, dy, bias)
    memory = torch.zeros(2, 5, 6, 14, dtype=torch.float64)
    memory[:, :, :, ::2] = x
    for other in (x.contiguous(memory_format=torch.channels_last), memory[:, :, :, ::2], x.mT.contiguous().mT):
        assert not other.is_contiguous()
        close(operation(other, bias), y, rtol=1e-15)  # vector and scalar code may differ by one rounding of pow
        close(gradient(operation, other, dy.contiguous(memory_format=torch.channels_last), bias), dx, rtol=1e-15)


@every_map_operation
def test_no_images_and_one_image(operation):
    x, bias = maps(3, 4, 5, 6), maps(4, seed=2)
    y = operation(x, bias)
    assert operation(x[:0], bias).shape == (0, *y.shape[1:])
    assert gradient(operation, x[:0], y[:0], bias).shape == (0, 4, 5, 6)
    close(operation(x[1:2], bias), y[1:2], rtol=1e-15)


@every(
    "call, named",
    [
        (lambda x: ops.lrn_max_pool(x, alpha=1, relu="during"), "relu is 'during'.*'before', 'after', 'none'"),
        (lambda x: ops.lrn(x, alpha=1, relu="after"), "relu is 'after'.*'before', 'none'"),
        (lambda x: ops.max_pool(x, ties="last"), "ties is 'last'.*'first', 'all'"),
        (lambda x: ops.lrn_max_pool(x, alpha=1, ties=None), "ties is None"),
        (lambda x: ops.spatial_norm_max_pool(x, alpha=1, ties="none"), "ties is 'none'"),
        (lambda x: ops.max_pool(x[:, :, :2]), "2x5.*3x3"),
        (lambda x: ops.max_pool(x[:, :, :, :2], ties="all"), "4x2.*3x3"),
        (lambda x: ops.lrn_max_pool(x, alpha=1, pool=5), "4x5.*5x5"),
        (lambda x: ops.spatial_norm_max_pool(x[:, :, :1], alpha=1), "1x5.*3x3"),
        (lambda x: ops.spatial_norm(x, alpha=1, size=0), "size is 0"),
        (lambda x: ops.spatial_norm(x, alpha=1, k=0), "k is 0"),
        (lambda x: ops.spatial_norm(x, alpha=-1), "alpha is -1"),
        (lambda x: ops.spatial_norm(x[0], alpha=1), r"\(2, 4, 5\)"),
        (lambda x: ops.avg_pool(x, pool=0), "pool is 0"),
        (lambda x: ops.avg_pool(x, stride=0), "stride is 0"),
        (lambda x: ops.avg_pool(x[:, :0]), r"\(1, 0, 4, 5\).*C at least 1"),
        (lambda x: ops.dropout(x, **DROPOUT | {"probability": 2.0}), "probability is 2.0"),
        (lambda x: ops.dropout(x, **DROPOUT | {"probability": -1.0}), "probability is -1.0"),
        (lambda x: ops.dropout(x, **DROPOUT | {"seed": 2**32}), "seed is 4294967296"),
    ],
)
def test_wrong_arguments_are_refused_by_name(call, named):
    with pytest.raises(ValueError, match=named):
        call(maps(1, 2, 4, 5))


def test_avg_pool_divides_by_the_area_inside():
    """Columns 0-2, 2-4 and 4-5 of rows 1, 2, ... 6: the last window has two columns."""
    assert torch.equal(ops.avg_pool(cells(*[[1.0, 2, 3, 4, 5, 6]] * 3)), cells([2.0, 4, 5.5]))
    x = maps(2, 3, 8, 6)
    close(ops.avg_pool(x), pool_loops(x, 3, 2, torch.mean))


DROPOUT = {"probability": 0.5, "seed": 3, "step": 40, "layer": 6, "tower": 1}


def kept(*shape, **changes):
    return ops.dropout(torch.ones(shape), **DROPOUT | changes) == 1


@every("probability", [0.0, 0.1, 0.5, 0.75])
def test_dropout_zeroes_its_share_and_leaves_the_rest_untouched(probability):
    x = maps(250, 400, dtype=torch.float32)
    y = ops.dropout(x, **DROPOUT | {"probability": probability})
    dropped = y == 0
    assert torch.equal(y[~dropped], x[~dropped])  # classic dropout: no rescaling
    bound = 5 * math.sqrt(x.numel() * probability * (1 - probability))
    for part, count in ((dropped, x.numel()), (dropped[:, ::4], x.numel() / 4), (dropped[::2], x.numel() / 2)):
        assert abs(part.sum() - count * probability) <= bound


def test_the_dropout_mask_is_a_function_of_its_arguments():
    mask = kept(100, 100)
    assert torch.equal(mask, kept(100, 100))
    for change in ({"seed": 4}, {"step": 41}, {"layer": 7}, {"tower": 0}):
        assert abs((mask == kept(100, 100, **change)).sum() - 5000) <= 5 * 50, change  # independent masks agree on half
    assert (kept(100, 100, probability=0.75) <= mask).all()
    assert torch.equal(kept(100, 100, step=40 + 2**32), mask)  # 32 bits of the step are used


@every("shape", [(3, 7), (1, 1), (2, 1), (5, 3), (0, 8)])
def test_dropout_of_sizes_that_four_does_not_divide(shape):
    """Value i is decided by word i % 4 of counter i // 4, whatever the shape, the type and the memory order."""
    words = [philox((torch.tensor(i // 4), 40, 6, 1), (3, 5))[i % 4] for i in range(math.prod(shape))]
    expected = torch.tensor([word >= 2**31 for word in words], dtype=torch.bool).view(shape)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x = torch.full(shape, -3.0, dtype=dtype)
        for other in (x, x.T.contiguous().T):
            y = ops.dropout(other, **DROPOUT)
            assert y.dtype == dtype and torch.equal(y, x * expected)


def test_the_gradient_of_dropout_uses_the_same_mask():
    x, dy = maps(30, 7), maps(30, 7, seed=2)
    assert torch.equal(gradient(lambda x: ops.dropout(x, **DROPOUT), x, dy), dy * kept(30, 7))


def sgd(weights, gradients, velocities, rates, decays, momentum=0.9):
    ops.paper_sgd_(weights, gradients, velocities, learning_rates=rates, momentum=momentum, weight_decays=decays)


def test_three_steps_of_sgd_by_hand():
    """v <- 0.9 v - d e w - e g, w <- w + v, for a tensor with decay (e 0.1, d 0.5) and one without (e 0.2)."""
    w = [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (1.0, 2.0)]
    v = [torch.zeros_like(part) for part in w]
    for g, expected_v, expected_w in [
        ((2.0, 1.0), (-0.05 - 0.2, -0.2), (0.75, 1.8)),
        ((-1.0, 1.0), (-0.225 - 0.0375 + 0.1, -0.38), (0.5875, 1.42)),
        ((0.0, 1.0), (-0.14625 - 0.029375, -0.542), (0.411875, 0.878)),
    ]:
        sgd(w, [torch.tensor([value], dtype=torch.float64) for value in g], v, (0.1, 0.2), (0.5, 0.0))
        close(torch.cat(v), torch.tensor(expected_v, dtype=torch.float64))
        close(torch.cat([part.detach() for part in w]), torch.tensor(expected_w, dtype=torch.float64))


def test_velocity_carries_the_learning_rate():
    """After the rate is divided by 10 the old velocity coasts on in full; torch.optim.SGD would move a tenth as far."""
    w, v, g = [maps(4)], [torch.zeros(4, dtype=torch.float64)], [maps(4, seed=2)]
    sgd(w, g, v, (0.1,), (0.0,))
    before, velocity = w[0].clone(), v[0].clone()
    assert torch.equal(velocity, -0.1 * g[0])
    sgd(w, [torch.zeros_like(g[0])], v, (0.01,), (0.0,))
    assert torch.equal(v[0], 0.9 * velocity) and torch.equal(w[0], before + 0.9 * velocity)


def test_a_rate_of_zero_leaves_weights_and_velocities_alone():
    w, v = [maps(4), maps(4)], [maps(4, seed=2), maps(4, seed=2)]
    weights, velocity = w[0].clone(), v[0].clone()
    sgd(w, [torch.full((4,), math.nan).double(), torch.zeros(4).double()], v, (0.0, 0.1), (0.5, 0.5))
    assert torch.equal(w[0], weights) and torch.equal(v[0], velocity)
    assert not torch.equal(w[1], weights) and not torch.equal(v[1], velocity)


def test_sgd_refuses_lists_of_different_lengths():
    with pytest.raises(ValueError):
        sgd([maps(2), maps(2)], [maps(2)], [maps(2), maps(2)], (0.1, 0.1), (0.0, 0.0))


# --- equal cells


@pytest.mark.run
@every("dtype", [torch.float32, torch.float64])
@every("beta", [0.75, 0.5, 1.0, 0.6, 1.3])
@every("norm", ["lrn", "spatial"])
def test_equal_cells_stay_equal_wherever_they_lie(norm, beta, dtype):
    """In whole vectors, in what is left over, in another memory format, in a part of a tensor; so do gradients."""
    size = 5 if norm == "lrn" else 1
    value = maps(60, 6, 1, 1, dtype=dtype)

    def function(x):
        return (ops.lrn if norm == "lrn" else ops.spatial_norm)(x, size=size, alpha=3e-3, beta=beta)

    def both(x):
        x = x.detach().requires_grad_()
        y = function(x)
        return y, torch.autograd.grad(y, x, torch.ones_like(y))[0]

    alone = both(value)
    for height, width in ((1, 37), (5, 3), (4, 4)):
        x = value.expand(-1, -1, height, width)
        for tensor in (
            x.contiguous(),
            x.contiguous(memory_format=torch.channels_last),
            x.repeat(1, 1, 2, 2)[..., ::2, 1::2],
        ):
            for actual, expected in zip(both(tensor), alone, strict=True):
                assert torch.equal(actual, expected.expand_as(actual))


@every("dtype", [torch.float32, torch.float64])
def test_all_equal_cells_get_the_gradient(dtype):
    """Every window of equal cells gives each its whole gradient: a cell gets as many as it is in windows."""
    x = maps(200, 6, 1, 1, dtype=dtype).expand(-1, -1, 7, 9).contiguous()

    def pool(x):
        return ops.max_pool(ops.lrn(x, relu="none", **STRONG), relu=False, ties="all")

    u = ops.lrn(x, relu="none", **STRONG)
    actual = gradient(lambda u: ops.max_pool(u, relu=False, ties="all"), u, pool(x).sign().abs())
    counts = [torch.tensor([1 + (i % 2 == 0 and 0 < i < side - 1) for i in range(side)]) for side in (7, 9)]
    assert torch.equal(actual, (counts[0][:, None] * counts[1]).to(dtype).expand_as(actual))


@every("dtype", [torch.float32, torch.float64])
@every("beta", [0.0, 0.25, 0.75, 1.0, 0.6, 2.5, 1 / 3])
def test_the_power_is_as_exact_as_its_dtype(beta, dtype):
    d = torch.exp(
        80 * torch.rand(5000, generator=torch.Generator().manual_seed(3), dtype=torch.float64) / (1 + beta)
    ).to(dtype)
    d[:3] = torch.tensor([math.inf, math.nan, 1e-5])
    d.requires_grad_()
    y = ops._inverse_power(d, beta)
    (slope,) = torch.autograd.grad(y.sum(), d)
    exact = d.detach().double()
    places = 2 if dtype == torch.float32 else 60  # of 2^-53 each; torch.pow's own error is in it
    assert torch.allclose(
        y.double(), exact.pow(-beta), rtol=places * torch.finfo(dtype).eps / 2, atol=0, equal_nan=True
    )
    expected = -beta * exact.pow(-beta - 1)
    assert torch.allclose(slope.double(), expected, rtol=4 * places * torch.finfo(dtype).eps, atol=0, equal_nan=True)
