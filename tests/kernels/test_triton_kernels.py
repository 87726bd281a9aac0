"""The Triton kernels against `reference.py` in float64: in Triton's interpreter on a CPU, compiled where there is a
GPU.

The interpreter takes some 5 ms for every step that a program makes, so shapes are small and most runs are one program.
What it cannot show, the state of compiled loops, is in `test_triton_offline.py`.
"""

import itertools
import os

import pytest
import torch
from alexnet_mp.kernels import reference
from inner_cases import every

triton = pytest.importorskip("triton", reason="triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton's interpreter is off (TRITON_INTERPRET=1) and there is no GPU", allow_module_level=True)

from alexnet_mp.kernels import (
    augmentation,
    augmentation_triton,
    lrn_pool,
    lrn_pool_backward_triton,
    lrn_pool_forward_triton,
    sgd_triton,
)

# alpha for values of 30 or so: neither the sum nor k hides the other.
BASE = {
    "norm": "lrn",
    "size": 5,
    "alpha": 3e-3,
    "beta": 0.75,
    "k": 2.0,
    "relu": "before",
    "pool": 3,
    "stride": 2,
    "ties": "first",
}
VARIANTS = {
    "lrn_max_pool": {},
    "lrn_max_pool, all ties": {"ties": "all"},
    "lrn_max_pool, relu after": {"relu": "after"},
    "lrn_max_pool, relu after, all ties": {"relu": "after", "ties": "all"},
    "lrn_max_pool, no relu": {"relu": "none"},
    "lrn": {"pool": 0},
    "lrn, no relu": {"pool": 0, "relu": "none"},
    "max_pool": {"norm": "none", "relu": "after"},
    "max_pool, no relu": {"norm": "none", "relu": "none"},
    "max_pool, all ties": {"norm": "none", "relu": "after", "ties": "all"},
    "spatial_norm_max_pool": {"norm": "spatial", "relu": "none"},
    "spatial_norm_max_pool, all ties": {"norm": "spatial", "relu": "none", "ties": "all"},
    "spatial_norm": {"norm": "spatial", "relu": "none", "pool": 0},
}
pytestmark = [pytest.mark.run, pytest.mark.usefixtures("one_thread")]
every_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


def maps(*shape, seed=1, scale=30.0, dtype=torch.float32):
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


def operation(x, bias, call):
    """What a call means, in the functions of `reference.py`."""
    norm = {name: call[name] for name in ("size", "alpha", "beta", "k")}
    pool = {name: call[name] for name in ("pool", "stride", "ties")}
    match call["norm"], call["pool"]:
        case "lrn", 0:
            return reference.lrn(x, bias, relu=call["relu"], **norm)
        case "lrn", _:
            return reference.lrn_max_pool(x, bias, relu=call["relu"], **norm, **pool)
        case "spatial", 0:
            return reference.spatial_norm(x, **norm)
        case "spatial", _:
            return reference.spatial_norm_max_pool(x, **norm, **pool)
        case "none", _:
            return reference.max_pool(x, bias, relu=call["relu"] == "after", **pool)


def by_reference(x, bias, dy, call, dtype):
    """y, dx and dbias (or None) in a dtype, from the same inputs."""
    inputs = [t.detach().to(dtype).requires_grad_() for t in (x, bias) if t is not None]
    y = operation(inputs[0], inputs[1] if len(inputs) > 1 else None, call)
    gradients = torch.autograd.grad(y, inputs, dy.to(dtype))
    return y.detach(), gradients[0], gradients[1] if len(gradients) > 1 else None


def by_triton(x, bias, dy, call, like=torch.empty_like):
    """y, dx, dbias and argmax. x and dy keep their strides on the way to the GPU; `like` allocates dx."""
    x, bias, dy = (t if t is None or DEVICE == "cpu" else _to_gpu(t) for t in (x, bias, dy))
    order = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    y = torch.full(dy.shape, 777.0, device=DEVICE).to(x.dtype).contiguous(memory_format=order)
    needs_argmax = call["pool"] and call["ties"] == "first"
    argmax = (
        torch.full_like(y, 200, dtype=torch.uint8) if needs_argmax else torch.empty(0, dtype=torch.uint8, device=DEVICE)
    )
    dx = like(x).fill_(777.0)
    lrn_pool_forward_triton.forward(x, bias, y, argmax, **call)
    dbias = lrn_pool_backward_triton.backward(dy, x, bias, argmax, dx, **call)
    return y.cpu(), dx.cpu(), None if dbias is None else dbias.cpu(), argmax.cpu()


def _to_gpu(t):
    """The whole storage, so that of `expand` one element is one there, too, and the same view of it."""
    memory = t.new_empty(0).set_(t.untyped_storage()).to(DEVICE)
    return memory.as_strided(t.shape, t.stride(), t.storage_offset())


def no_worse_than_pytorch(actual, pytorch, exact, units=4, approximate=0.0):
    """At most twice PyTorch's own largest error in the same dtype, and four units of float32: among a few dozen values
    luck can bring PyTorch's error near 0, and a gradient is the small difference of two terms. approximate: what a
    GPU's roots and quotients may be off by.

    The interpreter truncates to bfloat16 where hardware and PyTorch round: there a unit of bfloat16 is added.
    """
    assert actual.shape == exact.shape
    if exact.numel() == 0:
        return
    error, own = ((t.double() - exact).abs().max() for t in (actual, pytorch))
    scale = exact.abs().max()
    truncation = torch.finfo(actual.dtype).eps if DEVICE == "cpu" and actual.dtype == torch.bfloat16 else 0
    most = 2 * own + (units * torch.finfo(torch.float32).eps + truncation + approximate) * scale
    assert error <= most, f"{error=} {own=} {scale=}"


def check(x, bias=None, like=torch.empty_like, dy=None, units=4, **variant):
    """One call, forward and backward, against float64 and against PyTorch in the dtype of x."""
    call = BASE | variant
    y_shape = operation(x.double(), None, call).shape
    dy = maps(*y_shape, seed=3, scale=1.0, dtype=x.dtype) if dy is None else dy
    if call["norm"] == "spatial":
        bias = None
    actual = by_triton(x, bias, dy, call, like)
    of_output, of_gradient = lrn_pool.approximation("triton", DEVICE) if call["norm"] != "none" else (0.0, 0.0)
    results = actual, by_reference(x, bias, dy, call, x.dtype), by_reference(x, bias, dy, call, torch.float64)
    for ours, pytorch, exact, approximate in zip(*results, (of_output, of_gradient, of_gradient), strict=False):
        if exact is None:
            assert ours is None
        else:
            no_worse_than_pytorch(ours, pytorch, exact, units, approximate)
    return actual


@every_variant
def test_every_variant(variant):
    """7x6: the last window hangs over the right edge."""
    check(maps(1, 5, 7, 6), maps(5, seed=2), **variant)


@pytest.fixture
def one_tile(monkeypatch):
    """The interpreter takes as long for a large tile as for a small one."""
    if DEVICE == "cpu":
        monkeypatch.setattr(lrn_pool_forward_triton, "FORWARD_TILE", 4096)
        monkeypatch.setattr(lrn_pool_backward_triton, "BACKWARD_TILE", 4096)


@pytest.mark.slow
@every("beta", [0.75, 0.7])
@every("scale", [0.3, 30.0, 3000.0])
def test_twice_pytorchs_error_is_not_luck(scale, beta, one_tile):
    """Some ten thousand values, and nothing added to the bound but what a GPU approximates."""
    check(maps(1, 6, 50, 50, scale=scale), pool=0, beta=beta, units=0)


@every("dtype, bias_dtype", [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)])
@every("variant", ["lrn_max_pool", "max_pool, all ties", "spatial_norm_max_pool"])
def test_sixteen_bit_storage(variant, dtype, bias_dtype):
    check(maps(1, 3, 5, 5, dtype=dtype), maps(3, seed=2, dtype=bias_dtype), **VARIANTS[variant])


@pytest.mark.slow
@every("channels, pool", [(1, 2), (3, 2), (4, 2), (5, 2), (47, 0), (48, 0)])
def test_numbers_of_maps(channels, pool):
    check(maps(1, channels, 3, 4), maps(channels, seed=2), pool=pool)


def test_maps_cut_between_programs(monkeypatch):
    """Where a program starts or ends in the middle of the maps, and positions fill several tiles."""
    monkeypatch.setattr(lrn_pool_forward_triton, "FORWARD_MAPS", 3)
    monkeypatch.setattr(lrn_pool_backward_triton, "BACKWARD_MAPS", 4)
    monkeypatch.setattr(lrn_pool_forward_triton, "FORWARD_TILE", 32)
    monkeypatch.setattr(lrn_pool_backward_triton, "BACKWARD_TILE", 32)
    for size in (5, 4):
        check(maps(1, 7, 7, 6), maps(7, seed=2), size=size, pool=1, stride=1)


def test_a_map_of_13x13():
    check(maps(1, 3, 13, 13), maps(3, seed=2))


@pytest.mark.slow
@every("height, width", [(3, 3), (3, 5), (4, 3), (5, 4)])
def test_small_maps(height, width):
    check(maps(1, 2, height, width), maps(2, seed=2), ties="first")
    check(maps(1, 2, height, width), **VARIANTS["max_pool"])


@every("variant", ["lrn_max_pool", "lrn_max_pool, all ties", "spatial_norm_max_pool", "max_pool"])
def test_no_images(variant):
    y, dx, dbias, _ = check(maps(0, 4, 5, 5), maps(4), **VARIANTS[variant])
    assert y.shape == (0, 4, 2, 2) and dx.shape == (0, 4, 5, 5)
    assert dbias is None or torch.equal(dbias, torch.zeros(4))


def sliced(memory):
    return memory[1::2, 1:3, 2:7, 1:7]


def swapped(memory):
    return memory.transpose(2, 3)[:1, :2, :6, :5]


def channels_last(memory):
    return memory[:1, :2, :5, :6].contiguous(memory_format=torch.channels_last)


@every("layout", [sliced, swapped, channels_last])
@every("variant", ["lrn_max_pool", "max_pool, all ties", "spatial_norm_max_pool"])
def test_any_strides(variant, layout):
    """Two images sliced in every dimension; swapped axes; channels_last; dx reversed; one element of memory for all of
    dy."""
    x = layout(maps(4, 6, 9, 8))
    dy = torch.tensor(0.5).expand(operation(x, None, BASE | VARIANTS[variant]).shape)
    check(x, maps(2, seed=2), dy=dy, like=lambda t: t.new_empty(t.shape[::-1]).permute(3, 2, 1, 0), **VARIANTS[variant])


@pytest.mark.slow
@every("pool, stride", [(2, 2), (2, 1), (3, 1), (3, 3), (2, 3), (4, 2), (5, 3), (1, 1)])
def test_other_windows_of_the_pool(pool, stride):
    x = maps(1, 2, 6, 7)
    check(x, maps(2, seed=2), size=3, pool=pool, stride=stride)
    check(x, norm="none", relu="after", ties="all", pool=pool, stride=stride)


@pytest.mark.slow
def test_the_largest_window_of_the_pool():
    """Code 14 * 15 + 14 = 224 fits a byte beside 255."""
    x = maps(1, 1, 15, 16, dtype=torch.float32)
    x[0, 0, 14, 14] = 1e3
    *_, argmax = check(x, norm="none", relu="after", pool=15, stride=1)
    assert argmax.flatten().tolist() == [224, 223]


def test_steps_with_more_cells_than_3x3_are_not_unrolled(monkeypatch):
    """Which Triton would compile for a minute."""
    factors = {}

    class Kernel:
        def __getitem__(self, grid):
            return lambda *_, POOL, SIZE, UNROLL, **more: factors.setdefault((POOL, SIZE), UNROLL)

    monkeypatch.setattr(lrn_pool_forward_triton, "_forward_kernel", Kernel())
    x = maps(1, 6, 7, 7)
    for pool, size in ((0, 5), (2, 5), (3, 5), (3, 4), (4, 5), (5, 5), (7, 3)):
        lrn_pool_forward_triton.forward(x, None, x[:, :, :1, :1], x[:0], **BASE | {"pool": pool, "size": size})
    assert factors == {(1, 5): 1, (2, 5): 4, (3, 5): 4, (3, 4): 1, (4, 5): 1, (5, 5): 1, (7, 3): 1}


@pytest.mark.slow
@every("size", [1, 2, 4, 9])
def test_other_windows_of_the_norm(size):
    """An even window reaches one map further down; one of nine is wider than there are maps."""
    check(maps(1, 5, 3, 3), maps(5, seed=2), size=size, pool=2, stride=1)
    check(maps(1, 2, 4, 5), size=size, **VARIANTS["spatial_norm_max_pool"])


@pytest.mark.slow
def test_a_large_window_normalises_in_a_pass_of_its_own(monkeypatch):
    monkeypatch.setattr(lrn_pool_forward_triton, "ROLLING", 1)
    for relu in ("before", "after", "none"):
        check(maps(1, 4, 4, 5), maps(4, seed=2), relu=relu)


@pytest.mark.slow
@every("beta", [0.5, 1.0, 0.0, 1.3])
def test_other_exponents(beta):
    check(maps(1, 4, 3, 5), maps(4, seed=2), beta=beta, pool=2)


def special_values():
    """(1, 3, 5, 50): ties, zeros, a constant, two NaN, infinities, huge and denormal values side by side."""
    x = maps(1, 3, 5, 50)
    x[..., :10] = torch.randint(-2, 3, (1, 3, 5, 10), generator=torch.Generator().manual_seed(6)).float()
    x[..., 10:15], x[..., 15:20] = 0.0, 3.0
    x[0, 1, 1, 22], x[0, 1, 2, 22] = float("nan"), float("nan")
    x[0, 0, 2, 26], x[0, 2, 3, 30] = float("inf"), float("-inf")
    x[0, 1, :, 33:36] = float("-inf")
    x[0, 1, 2, 39], x[0, 0, 0, 42], x[0, 2, 4, 44] = 1e30, -3e18, 2e25
    x[..., 46:] *= 1e-41
    return x


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(values, id=name, marks=[pytest.mark.slow] if values.get("norm") == "spatial" else [])
        for name, values in VARIANTS.items()
    ],
)
def test_special_values(variant, one_tile):
    """NaN and infinity where `reference.py` has them in float32, and the same values elsewhere."""
    call = BASE | variant
    x, bias = special_values(), None if call["norm"] == "spatial" else torch.zeros(3)
    dy = maps(*operation(x, None, call).shape, seed=3, scale=1.0)
    pairs = zip(by_triton(x, bias, dy, call), by_reference(x, bias, dy, call, torch.float32), strict=False)
    for number, (ours, expected) in enumerate(pairs):
        if expected is not None:  # y to the last denormal; gradients are sums, which cancel
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6 if number else 1e-44, equal_nan=True)


@every("relu", ["after", "none"])
def test_the_code_is_the_first_maximum_or_the_last_nan(relu):
    """Equal to PyTorch's index, on values that are exact; 255 where the ReLU after the pool stops every gradient."""
    x = torch.randint(-2, 3, (1, 2, 7, 8), generator=torch.Generator().manual_seed(6)).float()
    x[0, 1, 2, 2], x[0, 1, 3, 4], x[0, 0, :3, :3] = float("nan"), float("nan"), float("-inf")
    y, index = torch.nn.functional.max_pool2d(x, 3, 2, ceil_mode=True, return_indices=True)
    code = 3 * (index // 8 - 2 * torch.arange(3)[:, None]) + index % 8 - 2 * torch.arange(4)
    code[(y <= 0) & torch.tensor(relu == "after")] = 255
    *_, argmax = by_triton(x, None, torch.ones(1, 2, 3, 4), BASE | {"norm": "none", "relu": relu})
    assert torch.equal(argmax.long(), code)


@every("variant", ["lrn_max_pool", "lrn_max_pool, all ties", "spatial_norm_max_pool"])
def test_the_same_bits_every_time(variant):
    count, side = (3, 7) if DEVICE == "cuda" else (2, 5)
    x, bias = maps(1, count, side, side), None if "spatial" in variant else maps(count, seed=2)
    dy = maps(1, count, side // 2, side // 2, seed=3)
    first, again = (by_triton(x, bias, dy, BASE | VARIANTS[variant]) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        assert a is b is None or torch.equal(a, b)


def test_images_four_gigabytes_apart():
    """The second image starts beyond 2^31 elements; only the pages that are used are ever touched."""
    distance = 2**31 + 64
    try:
        memory = torch.empty(distance + 1000, dtype=torch.float16, device=DEVICE)
    except RuntimeError as error:
        pytest.skip(f"no {2 * distance / 1e9:.1f} GB: {str(error).splitlines()[0]}")
    x = memory.as_strided((2, 1, 5, 5), (distance, 25, 5, 1)).copy_(maps(2, 1, 5, 5))
    dx = memory.as_strided((2, 1, 5, 5), (distance, 25, 5, 1), 500)
    call, dy = BASE | {"pool": 2}, maps(2, 1, 3, 3, seed=3, scale=1.0, dtype=torch.float16).to(DEVICE)
    y, argmax = torch.empty_like(dy), torch.empty_like(dy, dtype=torch.uint8)
    lrn_pool_forward_triton.forward(x, None, y, argmax, **call)
    lrn_pool_backward_triton.backward(dy, x, None, argmax, dx, **call)
    x_cpu = x.contiguous().cpu()
    for ours, pytorch, exact in zip(
        (y, dx),
        by_reference(x_cpu, None, dy.cpu(), call, torch.float16),
        by_reference(x_cpu, None, dy.cpu(), call, torch.float64),
        strict=False,
    ):
        no_worse_than_pytorch(ours.cpu(), pytorch, exact)


# The printed update.

RATES = {"learning_rates": [0.1, 0.02, 0.0, 0.3, 0.1], "momentum": 0.9, "weight_decays": [5e-4, 0.0, 0.1, 0.2, 5e-4]}


def states(dtype, seed, shapes=((3,), (9001,), (40,), (4, 3, 2, 2), ())):
    return [maps(*shape, seed=seed + number, scale=1.0, dtype=dtype).to(DEVICE) for number, shape in enumerate(shapes)]


def clones(*lists):
    return [[t.clone() for t in tensors] for tensors in lists]


@every("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_sgd_is_the_printed_update(dtype):
    """Two steps; the third tensor, whose rate is 0, keeps its bits."""
    ours = states(dtype, 1), states(dtype, 11), states(dtype, 21)
    theirs, exact = clones(*ours), [[t.to(torch.float64, copy=True) for t in tensors] for tensors in ours]
    before = clones(*ours)
    for _ in range(2):
        sgd_triton.paper_sgd_(*ours, **RATES)
        reference.paper_sgd_(*theirs, **RATES)
        reference.paper_sgd_(*exact, **RATES)
    for kind in (0, 2):
        assert torch.equal(ours[kind][2], before[kind][2])
        for a, b, e in zip(ours[kind], theirs[kind], exact[kind], strict=True):
            rounding = 2 * torch.finfo(dtype).eps  # fused multiply-adds, and truncation to bfloat16 in the interpreter
            assert (a.double() - e).abs().max() <= 2 * (b.double() - e).abs().max() + rounding * e.abs().max()


@every("dtype", [torch.bfloat16, torch.float16])
def test_sgd_reads_and_writes_sixteen_bits_and_adds_up(dtype, monkeypatch):
    """The bits of widened gradients; sums over one program, over several with a rest, and in several rounds of the
    second kernel.
    """
    if DEVICE == "cpu" and triton.__version__.startswith("3.6."):
        pytest.skip("the interpreter of Triton 3.6 can't count to a number that was loaded, with NumPy 2.4 or newer")
    monkeypatch.setattr(sgd_triton, "SUMMED", 2)
    sizes = 4096, 3, 7 * 4096 + 5
    w, g, v = ([maps(size, seed=seed + size % 7, scale=1.0).to(DEVICE) for size in sizes] for seed in (1, 11, 21))
    g = [each.to(dtype) for each in g]
    references = [[each.float() for each in part] for part in clones(w, g, v)]
    copies, sums = [torch.zeros_like(each) for each in g], torch.full((4,), 7.0, device=DEVICE)
    rates = dict(learning_rates=[0.1, 0.2, 0.3], momentum=0.9, weight_decays=[0.1, 0.0, 5e-4])
    sgd_triton.paper_sgd_(w, g, v, **rates, copies=copies, sums=sums[:3])
    sgd_triton.paper_sgd_(*references, **rates)
    for one, other in zip((*w, *v), (*references[0], *references[2]), strict=True):
        if DEVICE == "cpu":
            assert torch.equal(one, other)
        else:  # another kernel to the compiler, which may fuse a product and a sum otherwise
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    assert all(
        torch.equal(copy.cpu(), truncated(each.cpu(), dtype) if DEVICE == "cpu" else each.to(dtype))
        for copy, each in zip(copies, w, strict=True)
    )
    for each, total in zip(w, sums):
        assert total.item() == pytest.approx(each.double().sum().item(), abs=1e-6 * each.abs().double().sum().item())
    assert sums[3] == 7
    w[2][-1] = float("nan")
    sgd_triton.paper_sgd_(w, g, v, **rates, copies=copies, sums=sums[:3])
    assert sums.isnan().tolist() == [False, False, True, False] and copies[2][-1].isnan()


def test_sgd_does_not_read_what_it_leaves_alone():
    w, g, v = torch.ones(5, device=DEVICE), torch.full((5,), float("nan"), device=DEVICE), torch.ones(5, device=DEVICE)
    sgd_triton.paper_sgd_([w], [g], [v], [0.0], 0.9, [0.1])
    assert torch.equal(w, torch.ones_like(w)) and torch.equal(v, torch.ones_like(v))


def test_sgd_in_any_order_of_memory():
    """channels_last weights in place; a slice, and a gradient in another order, by way of `reference.py`."""

    def scene():
        w, g, v = ([maps(4, 3, 2, 2, seed=seed + n, scale=1.0).to(DEVICE) for n in range(3)] for seed in (1, 11, 21))
        last = torch.channels_last
        w[0], g[0], v[0] = (t.contiguous(memory_format=last) for t in (w[0], g[0], v[0]))
        g[1] = g[1].contiguous(memory_format=last)
        w[2], g[2], v[2] = (t[:, 1:] for t in (w[2], g[2], v[2]))
        return w, g, v

    ours, theirs = scene(), scene()
    arguments = {"learning_rates": [0.1] * 3, "momentum": 0.9, "weight_decays": [0.1] * 3}
    sgd_triton.paper_sgd_(*ours, **arguments)
    reference.paper_sgd_(*theirs, **arguments)
    for a, b in zip(itertools.chain(*ours), itertools.chain(*theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_sgd_remembers_tables_but_not_for_ever(monkeypatch):
    keys = []
    build = sgd_triton._tables
    monkeypatch.setattr(sgd_triton, "_tables", lambda *key: keys.append(key) or build(*key))
    monkeypatch.setattr(sgd_triton, "_remembered", {})
    memory = torch.ones(64, device=DEVICE)
    g, v = torch.ones(64, device=DEVICE), torch.zeros(64, device=DEVICE)

    def step(count, rate, dtype=torch.float32):
        state = [t.view(dtype)[:count] for t in (memory, g, v)]
        sgd_triton.paper_sgd_(*([t] for t in state), [rate], 0.9, [0.0])
        return state

    for _ in range(3):
        step(64, 0.1)
    assert len(keys) == 1
    step(64, 0.01), step(32, 0.01), step(64, 0.1)  # another rate; other sizes at the same addresses; the first again
    assert len(keys) == 3
    w, gradient, velocity = (t.clone() for t in step(8, 0.5, torch.float64))
    assert w.dtype == torch.float64 and len(keys) == 4
    for n in range(2 * sgd_triton.REMEMBERED):
        step(64, 1.0 + n)
    assert len(sgd_triton._remembered) == sgd_triton.REMEMBERED
    keys.clear()
    step(64, 0.1)
    assert len(keys) == 1  # was dropped, is made again


def test_sgd_refuses_lists_of_different_lengths():
    w, g, v = (torch.ones(3, device=DEVICE) for _ in range(3))
    with pytest.raises(ValueError):
        sgd_triton.paper_sgd_([w, w], [g], [v], [0.1], 0.9, [0.0])


@pytest.mark.gpu(reason="CUDA graphs need a GPU")
def test_sgd_in_a_cuda_graph():
    state = states(torch.float32, 1), states(torch.float32, 11), states(torch.float32, 21)
    expected = clones(*state)
    with pytest.raises(RuntimeError, match="before the capture"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        sgd_triton.paper_sgd_(*state, **RATES)
    sgd_triton.paper_sgd_(*state, **RATES)
    graph = torch.cuda.CUDAGraph()  # another: an error of Python's ends a capture as its end does, and leaves a graph
    with torch.cuda.graph(graph):
        sgd_triton.paper_sgd_(*state, **RATES)
    for n in range(sgd_triton.REMEMBERED + 1):  # the cache forgets the graph's tables
        sgd_triton.paper_sgd_(*clones(*state), [0.1 + n] * 5, 0.9, [0.0] * 5)
    graph.replay()
    for _ in range(2):
        reference.paper_sgd_(*expected, **RATES)
    for a, b in zip(itertools.chain(*state), itertools.chain(*expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


# Pictures to what the network sees.


def truncated(y, dtype):
    """What the interpreter makes of float32: bfloat16 by cutting it off; float16 it rounds."""
    return (
        y.view(torch.int32).bitwise_and(-0x10000).view(torch.float32).to(dtype)
        if dtype == torch.bfloat16
        else y.to(dtype)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@every("order", [torch.channels_last, torch.contiguous_format], ids=["channels_last", "NCHW"])
@every("mean_follows_crop", [True, False], ids=["mean follows", "centre of the mean"])
@every("side, crop", [(24, 19), (20, 8)])
def test_augment_gives_the_references_bits(side, crop, mean_follows_crop, order, dtype, monkeypatch):
    """Images of one program with a rest, and of two programs; the first picture and the last flipped."""
    monkeypatch.setattr(augmentation_triton, "BLOCK", 128 if crop == 8 else 2048)
    draws, count = torch.Generator().manual_seed(3), 3
    pictures = torch.randint(0, 256, (count, side, side, 3), generator=draws, dtype=torch.uint8)
    top, left = torch.tensor([0, side - crop, 2]), torch.tensor([side - crop, 0, 1])
    mean, shift = 255 * torch.rand(side, side, 3, generator=draws), maps(count, 3, scale=20.0)
    flip = torch.tensor([True, False, True])
    y = torch.full((count, 3, crop, crop), 777.0, dtype=dtype, device=DEVICE).contiguous(memory_format=order)
    crops = augmentation.crops_of(top, left, flip, shift, 1 / 1.1, crop=crop, side=side).to(DEVICE)
    augmentation_triton.augment(pictures.to(DEVICE), crops, mean.to(DEVICE), mean_follows_crop, y)
    exact = reference.augment(
        pictures, top, left, flip, mean, shift, 1 / 1.1, crop=crop, mean_follows_crop=mean_follows_crop
    )
    assert torch.equal(y.cpu(), truncated(exact, dtype) if DEVICE == "cpu" else exact.to(dtype))


@pytest.mark.gpu(reason="the interpreter would run three million programs; needs a GPU")
def test_augment_finds_pictures_beyond_two_gigabytes():
    side, count = 16, 2**31 // 768 + 2
    pictures = torch.zeros(count, side, side, 3, dtype=torch.uint8, device=DEVICE)
    pictures[-1] = maps(side, side, 3).byte()
    places, y = (
        torch.zeros(count, dtype=torch.int64),
        torch.empty(count, 3, side, side, dtype=torch.float16, device=DEVICE),
    )
    mean = torch.zeros(side, side, 3, device=DEVICE)
    crops = augmentation.crops_of(places, places, places.bool(), torch.zeros(count, 3), 1.0, crop=side, side=side)
    augmentation_triton.augment(pictures, crops.to(DEVICE), mean, True, y)
    assert torch.equal(y[-1], pictures[-1].permute(2, 0, 1).half())
