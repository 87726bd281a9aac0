"""csrc/cuda/lrn_pool.cuh without a GPU: the device code compiled by g++, its threads emulated, against reference.py in
float64.

A gradient is checked in two steps. The saved argmax must name a maximum, up to the rounding that decides near-ties; and
given that argmax, dx and dbias must be those of float64 autograd through the cells it names. PyTorch's own eager chain
in the same dtype is measured in the same way, against its own argmax, and our error may be twice its error."""

import ctypes
import importlib.util
import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from alexnet_mp.kernels import reference
from alexnet_mp.kernels.lrn_pool import CUDA_APPROXIMATION
from inner_cases import every

SOURCE = Path(__file__).parents[1].joinpath("cuda_on_host.cpp")
FAILURES = {
    1: "no such kernel",
    2: "threads ended while others of their block waited at a barrier",
    3: "wrote behind its shared memory",
}
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
RELUS = {"none": 0, "before": 1, "after": 2}
ALPHA, K = 5e-3, 2.0  # for values of 10 or so: neither the sum nor k hides the other
MANY = 1 << 40
dtypes = every("dtype", TYPES)
relus = every("relu", RELUS)
norms = every("norm", ["lrn", "none"])

pytestmark = [
    pytest.mark.compile,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to compile the device code for the host"),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("cuda_on_host") / "lrn_pool.so"
    subprocess.run(
        [
            "g++",
            "-std=c++17",
            "-O1",
            "-fno-strict-aliasing",
            "-ffp-contract=off",
            "-shared",
            "-fPIC",
            "-Wall",
            "-Wno-unknown-pragmas",
            "-o",
            path,
            SOURCE,
        ],
        check=True,
    )
    return ctypes.CDLL(str(path))


def channels_last(maps):
    return maps.contiguous(memory_format=torch.channels_last)


def poisoned(shape, dtype):
    """(N, C, H, W) channels_last full of a value that no kernel writes, and the buffer with as much again on either
    side."""
    n, c, h, w = shape
    poison = 0xA5 if dtype == torch.uint8 else -12345.0
    buffer = torch.full((3, n, h, w, c), poison, dtype=dtype)
    return buffer[1].permute(0, 3, 1, 2), buffer


def untouched(buffer):
    return (buffer[::2] == buffer.flatten()[:1]).all() if buffer.numel() else True


def pointer(tensor):
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())


def out_shape(x):
    return (*x.shape[:2], *(math.ceil((side - 3) / 2) + 1 for side in x.shape[2:]))


def bias_code(x, bias):
    return 0 if bias is None else 1 if bias.dtype == torch.float32 else 2


def forward(library, x, bias, relu, norm, codes=True, alpha=ALPHA, k=K, slots=4, backwards=False):
    """y and argmax (or None) of the device code."""
    y, y_buffer = poisoned(out_shape(x), x.dtype)
    argmax, argmax_buffer = poisoned(out_shape(x), torch.uint8) if codes else (None, None)
    failure = library.lrn_pool_forward_on_host(
        pointer(x),
        pointer(bias),
        pointer(y),
        pointer(argmax),
        (ctypes.c_int64 * 4)(*x.shape),
        TYPES[x.dtype],
        bias_code(x, bias),
        int(norm == "lrn"),
        RELUS[relu],
        ctypes.c_float(alpha),
        ctypes.c_float(k),
        ctypes.c_int64(slots),
        int(backwards),
    )
    assert not failure, FAILURES[failure]
    assert untouched(y_buffer) and (not codes or untouched(argmax_buffer))
    return y, argmax


def backward(library, dy, x, bias, argmax, relu, norm, alpha=ALPHA, k=K, slots=MANY, backwards=False):
    """dx, dbias (or None) of the device code."""
    dx, dx_buffer = poisoned(x.shape, x.dtype)
    dbias = None if bias is None else torch.full((x.shape[1],), -12345.0)
    failure = library.lrn_pool_backward_on_host(
        pointer(dy),
        pointer(x),
        pointer(bias),
        pointer(argmax),
        pointer(dx),
        pointer(dbias),
        (ctypes.c_int64 * 4)(*x.shape),
        TYPES[x.dtype],
        bias_code(x, bias),
        int(norm == "lrn"),
        RELUS[relu],
        ctypes.c_float(alpha),
        ctypes.c_float(k),
        ctypes.c_int64(slots),
        int(backwards),
    )
    assert not failure, FAILURES[failure]
    assert untouched(dx_buffer)
    return dx, dbias


def responses(x, bias, relu, norm, alpha=ALPHA, k=K):
    """What the windows compare, by reference.py in x's own type (float32 or float64)."""
    if norm == "lrn":
        return reference.lrn(x, bias, alpha=alpha, k=k, relu="before" if relu == "before" else "none")
    a = x if bias is None else x + bias.to(x.dtype).view(-1, 1, 1)
    return torch.relu(a) if relu == "before" else a


def expected_y(x, bias, relu, norm, alpha=ALPHA, k=K):
    if norm == "lrn":
        return reference.lrn_max_pool(x, bias, alpha=alpha, k=k, relu=relu)
    return reference.max_pool(x, bias, relu=relu != "none")


def eager(x, bias, relu, norm):
    """y and the index of each maximum, every operation rounded to x's type. F.local_response_norm has no 16-bit CPU
    version."""
    a = x if bias is None else x + bias.to(x.dtype).view(-1, 1, 1)
    a = torch.relu(a) if relu == "before" else a
    if norm == "lrn" and x.dtype == torch.float32:
        a = F.local_response_norm(a, 5, ALPHA * 5, 0.75, K)
    elif norm == "lrn":
        squares = F.pad(a * a, (0, 0, 0, 0, 2, 2))
        a = a / (K + ALPHA * sum(squares[:, j : j + x.shape[1]] for j in range(5))).pow(0.75)
    y, index = F.max_pool2d(a, 3, 2, ceil_mode=True, return_indices=True)
    return torch.relu(y) if relu == "after" else y, index


def cells(argmax, width):
    """(N, C, OH, OW) codes 3 i + j to indices into a flattened map; whether a code names a cell at all."""
    code, (height, across) = argmax.long(), argmax.shape[2:]
    named = code != 255
    code = code.where(named, 0)
    rows, columns = 2 * torch.arange(height).view(-1, 1) + code // 3, 2 * torch.arange(across) + code % 3
    return rows * width + columns, named


def gradients(x, bias, dy, index, named, relu, norm, dtype=torch.float64, alpha=ALPHA, k=K):
    """dx and dbias where each dy goes to the cell `index` of its map."""
    x = x.to(dtype).requires_grad_()
    bias = None if bias is None else bias.to(dtype).requires_grad_()
    u = responses(x, bias, relu, norm, alpha, k)
    y = u.flatten(2).gather(2, index.flatten(2)).view(index.shape)
    inputs = (x,) if bias is None else (x, bias)
    return [*torch.autograd.grad(y, inputs, torch.where(named, dy.to(dtype), 0)), None][:2]


def maps(*shape, dtype=torch.float32, seed=1, scale=10.0):
    values = scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return channels_last(values.to(dtype)) if len(shape) == 4 else values.to(dtype)


def near_tie(dtype, norm):
    """How far below the maximum the chosen response may lie: roundings of float32, and for packed codes their 4
    bits."""
    return 2.0**-20 if norm == "none" or dtype == torch.float32 else 2.0**-18


def error(actual, expected):
    return float((actual.double() - expected).abs().max()) if expected.numel() else 0.0


def check(library, x, bias, relu, norm):
    """Forward and backward against float64, errors at most twice those of eager PyTorch in x's type."""
    y, argmax = forward(library, x, bias, relu, norm)
    exact_x, exact_bias = x.double(), None if bias is None else bias.double()
    exact = expected_y(exact_x, exact_bias, relu, norm)
    eager_x, eager_bias = x.detach().clone(memory_format=torch.preserve_format).requires_grad_(), None
    if bias is not None:
        eager_bias = bias.clone().requires_grad_()
    eager_y, eager_index = eager(eager_x, eager_bias, relu, norm)
    # The emulation is off by as much as a GPU may be. The CPU's pow is nearly exact, so twice its error alone would
    # leave no room for it in float32.
    floor = CUDA_APPROXIMATION * float(exact.abs().max())
    assert error(y, exact) <= 2 * error(eager_y.detach(), exact) + floor

    index, named = cells(argmax, x.shape[3])
    u = responses(exact_x, exact_bias, relu, norm).flatten(2)
    picks, maxima = u.gather(2, index.flatten(2)).view(index.shape), F.max_pool2d(u.view(x.shape), 3, 2, ceil_mode=True)
    slack = near_tie(x.dtype, norm) * maxima.abs() + floor
    assert (picks >= maxima - slack)[named].all()
    assert torch.equal(named, (y > 0) if relu == "after" else torch.ones_like(named))

    dy = maps(*y.shape, dtype=x.dtype, seed=3, scale=1.0)
    dx, dbias = backward(library, dy, x, bias, argmax, relu, norm)
    exact_dx, exact_dbias = gradients(x, bias, dy, index, named, relu, norm)
    eager_named = eager_y > 0 if relu == "after" else torch.ones_like(named)
    eager_exact = gradients(x, bias, dy, eager_index, eager_named, relu, norm)
    eager_gradients = torch.autograd.grad(eager_y, (eager_x,) if bias is None else (eager_x, eager_bias), dy)
    assert error(dx, exact_dx) <= 2 * error(eager_gradients[0], eager_exact[0]) + 4e-7 * float(exact_dx.abs().max())
    if bias is not None:
        assert dbias.dtype == torch.float32
        total = float(exact_dx.abs().sum((0, 2, 3)).max())
        assert error(dbias, exact_dbias) <= 2 * error(eager_gradients[1], eager_exact[1]) + 4e-7 * total
    return y, argmax, dx, dbias


@dtypes
@relus
@every("height", [3, 4, 5])
@every("width", [3, 4, 5])
def test_small_maps(library, dtype, relu, height, width):
    for norm in ("lrn", "none"):
        check(library, maps(2, 8, height, width, dtype=dtype), maps(8, seed=2), relu, norm)
    check(library, maps(1, 24, height, width, dtype=dtype, seed=5), maps(24, dtype=dtype, seed=2), relu, "lrn")


@dtypes
@every(
    "shape, relu, bias",
    [
        ((1, 48, 55, 55), "before", True),
        ((2, 128, 27, 27), "before", True),
        ((1, 96, 27, 5), "after", False),
        ((1, 128, 4, 61), "before", True),
        ((1, 256, 13, 13), "none", True),
        ((1, 1024, 5, 8), "after", True),
        ((3, 64, 7, 6), "none", False),
    ],
)
def test_maps_of_the_network_and_wide_ones(library, dtype, shape, relu, bias):
    """Among them several tiles a row, groups of lanes that do not divide a warp, and the most channels there are."""
    norm = "none" if shape[1] == 256 else "lrn"
    check(library, maps(*shape, dtype=dtype), maps(shape[1], dtype=dtype, seed=2) if bias else None, relu, norm)


@dtypes
@norms
@relus
def test_ties_go_to_the_first_in_scan_order(library, dtype, norm, relu):
    """Constant maps, all-zero maps, and a few values that repeat: equal responses are equal in every bit."""
    few_values = channels_last(torch.randint(-2, 3, (2, 8, 9, 8), generator=torch.Generator().manual_seed(1)).to(dtype))
    spread = few_values.clone(memory_format=torch.preserve_format)
    spread[:, [0, 1, 3, 4, 6, 7]] = 1  # one map of values amid constants: no rounding can separate equal values
    for x in (
        torch.zeros_like(few_values),
        torch.full_like(few_values, 3.0),
        torch.full_like(few_values, -3.0),
        torch.full_like(few_values, -0.0),
        spread,
    ):
        y, argmax = forward(library, x, None, relu, norm)
        u = responses(x.float(), None, relu, norm)
        maxima, index = F.max_pool2d(u, 3, 2, ceil_mode=True, return_indices=True)
        ours, named = cells(argmax, x.shape[3])
        assert torch.equal(named, maxima > 0 if relu == "after" else torch.ones_like(named))
        assert torch.equal(ours[named], index[named])
        check(library, x, None, relu, norm)


@dtypes
@norms
@relus
@every("kind", ["nan", "inf", "-inf", "mixed"])
def test_values_that_are_not_finite(library, dtype, norm, relu, kind):
    x = maps(2, 24, 9, 10, dtype=dtype)
    random = torch.Generator().manual_seed(7)
    for value in ("nan", "inf", "-inf") if kind == "mixed" else (kind,):
        x[torch.rand(x.shape, generator=random) < 0.02] = float(value)
    bias = maps(24, seed=2)
    compare_in_float32(library, x, bias, relu, norm)


@norms
@relus
@every("scale", [1e20, 1e-20, 1e-39])
def test_huge_and_denormal_values(library, norm, relu, scale):
    """Squares of 1e20 overflow to inf, and inf^(-3/4) is 0; those of 1e-39 vanish. Both beside ordinary values."""
    x = maps(1, 24, 9, 10)
    x[:, ::7] *= scale
    x[:, :, 4, 5] *= scale
    for bias in (None, torch.zeros(24)):
        compare_in_float32(library, x, bias, relu, norm)
        compare_in_float32(library, x.bfloat16(), bias, relu, norm)


def compare_in_float32(library, x, bias, relu, norm):
    """The same NaN and inf as reference.py in float32, the same argmax up to rounding (the last NaN), the same
    gradients."""
    y, argmax = forward(library, x, bias, relu, norm)
    expected = expected_y(x, bias, relu, norm)
    bound = {torch.float32: 1e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}[x.dtype]  # both rounded, once each
    smallest = 1e-7 if x.dtype == torch.float16 else 1e-38
    torch.testing.assert_close(y.float(), expected.float(), rtol=bound, atol=smallest, equal_nan=True)

    index, named = cells(argmax, x.shape[3])
    u = responses(x.float(), bias, relu, norm)
    maxima, theirs = F.max_pool2d(u, 3, 2, ceil_mode=True, return_indices=True)
    assert torch.equal(named, ~(maxima <= 0) if relu == "after" else torch.ones_like(named))
    picks = u.flatten(2).gather(2, index.flatten(2)).view(index.shape)
    not_finite = ~maxima.isfinite()
    assert torch.equal(index[not_finite & named], theirs[not_finite & named])
    finite = named & ~not_finite
    assert (picks >= maxima - 1.5 * near_tie(x.dtype, norm) * maxima.abs() - 1e-38)[finite].all()

    dy = maps(*y.shape, dtype=x.dtype, seed=3, scale=1.0)
    dx, dbias = backward(library, dy, x, bias, argmax, relu, norm)
    expected_dx, expected_dbias = gradients(x, bias, dy, index, named, relu, norm, torch.float32)
    rounded_dx = expected_dx.to(x.dtype).float()
    torch.testing.assert_close(dx.float(), rounded_dx, rtol=max(bound, 1e-5), atol=1e-6, equal_nan=True)
    if bias is not None:
        torch.testing.assert_close(dbias, expected_dbias, rtol=1e-4, atol=1e-4, equal_nan=True)


@dtypes
@norms
def test_without_a_gradient_the_same_y(library, dtype, norm):
    """No argmax wanted: other kernels, the same maxima. Packed codes cost a response its 4 lowest bits before
    rounding."""
    x, bias = maps(1, 48, 9, 11, dtype=dtype), maps(48, seed=2)
    for relu in RELUS:
        y, _ = forward(library, x, bias, relu, norm)
        alone, _ = forward(library, x, bias, relu, norm, codes=False)
        if dtype == torch.float32 or norm == "none":
            assert torch.equal(alone, y)
        exact = expected_y(x.double(), bias.double(), relu, norm)
        assert error(alone, exact) <= error(y, exact)


@dtypes
@every("bias", ["none", "float32", "storage"])
def test_bias_types(library, dtype, bias):
    x = maps(2, 24, 6, 7, dtype=dtype)
    values = {"none": None, "float32": maps(24, seed=2), "storage": maps(24, seed=2, dtype=dtype)}[bias]
    for norm in ("lrn", "none"):
        check(library, x, values, "before", norm)


@dtypes
def test_no_order_of_threads_or_blocks_changes_a_bit(library, dtype):
    """Threads of a block in reverse order (a missing barrier shows), other strips, and the same call again."""
    x, bias = maps(2, 48, 13, 12, dtype=dtype), maps(48, seed=2)
    for norm in ("lrn", "none"):
        y, argmax = forward(library, x, bias, "before", norm)
        dy = maps(*y.shape, dtype=dtype, seed=3)
        dx, dbias = backward(library, dy, x, bias, argmax, "before", norm)
        for change in ({}, {"backwards": True}, {"slots": 1}, {"slots": MANY}):
            other = forward(library, x, bias, "before", norm, **change)
            assert torch.equal(other[0], y) and torch.equal(other[1], argmax)
        for change in ({}, {"backwards": True}):
            other = backward(library, dy, x, bias, argmax, "before", norm, **change)
            assert torch.equal(other[0], dx) and torch.equal(other[1], dbias)


def test_blocks_that_walk_over_many_quads(library):
    """More images than the grid covers at once; another grid adds dbias up in another order, and changes nothing
    else."""
    x, bias = maps(9, 128, 9, 9), maps(128, seed=2)
    y, argmax = forward(library, x, bias, "before", "lrn")
    dy = maps(*y.shape, seed=3)
    dx, dbias = backward(library, dy, x, bias, argmax, "before", "lrn")
    few_dx, few_dbias = backward(library, dy, x, bias, argmax, "before", "lrn", slots=3)
    assert torch.equal(few_dx, dx)
    torch.testing.assert_close(few_dbias, dbias, rtol=1e-5, atol=1e-4)


@dtypes
def test_paper_alpha_and_a_small_k(library, dtype):
    for alpha, k in ((1e-4, 2.0), (0.0, 1.0), (1.0, 1e-3)):
        x = maps(1, 24, 7, 7, dtype=dtype)
        y, argmax = forward(library, x, None, "before", "lrn", alpha=alpha, k=k)
        exact = expected_y(x.double(), None, "before", "lrn", alpha, k)
        bound = {torch.float32: 1e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype] * 1.01
        torch.testing.assert_close(y.double(), exact, rtol=bound, atol=0)
        dy = maps(*y.shape, dtype=dtype, seed=3, scale=1.0)
        dx, _ = backward(library, dy, x, None, argmax, "before", "lrn", alpha=alpha, k=k)
        exact_dx, _ = gradients(x, None, dy, *cells(argmax, 7), "before", "lrn", alpha=alpha, k=k)
        torch.testing.assert_close(dx.double(), exact_dx, rtol=bound, atol=bound * float(exact_dx.abs().max()))


@dtypes
def test_no_images(library, dtype):
    x = torch.empty(0, 8, 5, 5, dtype=dtype)
    bias = torch.zeros(8)
    y, argmax = forward(library, x, bias, "before", "lrn")
    dx, dbias = backward(library, y, x, bias, argmax, "before", "lrn")
    assert y.numel() == dx.numel() == 0 and torch.equal(dbias, torch.zeros(8))


@every("images", [1, 32, 128, 1024])
def test_the_instruction_counter_knows_the_launches(library, images):
    """tools/count_sass.py weights machine code by the blocks and warps that the plans launch; its own copy must be
    theirs."""
    specification = importlib.util.spec_from_file_location("count_sass", SOURCE.parents[1] / "tools" / "count_sass.py")
    count_sass = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(count_sass)
    for channels, (height, width) in {**count_sass.STAGES, 96: (5, 300)}.items():
        for backward, kernel in enumerate(("forward", "backward")):
            for dtype in ("float32", "bfloat16"):
                numbers = (ctypes.c_int64 * 3)()
                sizes = (ctypes.c_int64 * 4)(images, channels, height, width)
                library.lrn_pool_plan_on_host(
                    sizes,
                    int(dtype == "bfloat16"),
                    1,
                    1,
                    backward,
                    ctypes.c_int64(2 * count_sass.MULTIPROCESSORS),
                    numbers,
                )
                blocks, warps = count_sass.plan(kernel, images, channels, height, width)[:2]
                assert list(numbers) == [blocks, 32 * warps, count_sass.shared_bytes(kernel, dtype, channels)]
