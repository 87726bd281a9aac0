"""Bias, ReLU and dropout: the definition by hand, what the public function refuses, who computes, and GPUs.

The Triton kernels themselves are in `test_relu_dropout_triton.py`.
"""

import itertools
import math
from contextlib import nullcontext

import pytest
import torch
from alexnet_mp.kernels import dispatch, reference, relu_dropout, relu_dropout_op
from alexnet_mp.kernels.philox import philox
from cases import LEVELS, instructions, values
from inner_cases import every

pytestmark = pytest.mark.usefixtures("one_thread")
MASK = {"probability": 0.5, "seed": 3, "layer": 6, "tower": 1}
both_dims = every("shape", [(3, 7), (2, 5, 3, 2)])


def kept(shape, step=40, **changes):
    return reference.dropout(torch.ones(shape), step=step, **MASK | changes) == 1


@both_dims
@every("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_definition_by_hand(shape, dtype):
    """One value at a time, in Python's floats, which are float64."""
    x, bias = values(*shape, scale=1).to(dtype), values(shape[1], seed=2, scale=1).to(dtype)
    expected = torch.empty_like(x)
    for number, index in enumerate(itertools.product(*map(range, shape))):
        word = philox((torch.tensor(number // 4), 40, 6, 1), (3, 5))[number % 4]
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        expected[index] = max((x[index].to(kind) + bias[index[1]].to(kind)).item(), 0.0) if word >= 2**31 else 0.0
    for kernels in ("reference", "auto"):
        assert torch.equal(relu_dropout(x, bias, step=40, **MASK, kernels=kernels), expected)
    assert 0 < (expected > 0).sum() < expected.numel()


@both_dims
def test_the_mask_is_that_of_dropout_and_of_no_memory_order(shape):
    x = values(*shape).abs() + 1
    for probability, step in itertools.product((0.1, 0.5, 0.75), (0, 40)):
        y = relu_dropout(x, step=step, **MASK | {"probability": probability})
        assert torch.equal(y, x * kept(shape, step, probability=probability))
    order = (
        x.transpose(-1, -2).contiguous().transpose(-1, -2)
        if x.dim() == 2
        else x.contiguous(memory_format=torch.channels_last)
    )
    assert torch.equal(relu_dropout(order, step=40, **MASK), relu_dropout(x, step=40, **MASK))


def test_without_dropout_no_step_is_needed():
    x, bias = values(4, 6), values(6, seed=2)
    assert torch.equal(relu_dropout(x, bias), torch.relu(x + bias)) and torch.equal(relu_dropout(x), torch.relu(x))


@every("step", [0, 40, 2**31 + 5, 2**32 + 40, 2**40 - 1, -1])
def test_a_step_on_the_device_is_the_same_step(step):
    """Its low 32 bits, in any of the reference's operations; a tensor's arithmetic wraps, Python's does not."""
    step_tensor, x = torch.tensor(step), torch.ones(3, 7)
    for shape in ((3, 7), (1, 1), (0, 4)):
        mask = dict(**MASK, step=step_tensor)
        assert torch.equal(
            reference.dropout(torch.ones(shape), **mask), reference.dropout(torch.ones(shape), step=step, **MASK)
        )
    expected = [[philox((torch.tensor(i // 4), step & 0xFFFFFFFF, 6, 1), (3, 5))[i % 4] >= 2**31 for i in range(21)]]
    assert torch.equal(relu_dropout(x, step=step_tensor, **MASK).bool(), torch.tensor(expected).view(3, 7))
    assert step_tensor.item() == step


def test_nan_and_infinity():
    """NaN stays NaN, infinity that is dropped becomes NaN (0 times infinity), minus infinity 0; a NaN lets the gradient
    through."""
    x, mask = values(6, 8, scale=1), kept((6, 8))
    x[:3, 0], x[:3, 1], x[:3, 2] = math.nan, math.inf, -math.inf
    y = relu_dropout(x, step=40, **MASK)
    assert 0 < mask[:3, :2].sum() < 6
    assert y[:3, 0].isnan().all() and torch.equal(y[:3, 1].isnan(), ~mask[:3, 1]) and (y[:3, 2] == 0).all()
    x.requires_grad_()
    (dx,) = torch.autograd.grad(relu_dropout(x), x, torch.ones_like(x))
    assert torch.equal(dx, ((x > 0) | x.isnan()).to(dx))


@both_dims
def test_gradients(shape):
    x, bias = values(*shape, scale=1).requires_grad_(), values(shape[1], seed=2, scale=1).requires_grad_()
    x.data += 0.1 * torch.sign(x + bias.view(-1, *[1] * (len(shape) - 2))).data  # away from the kink
    assert torch.autograd.gradcheck(lambda x, bias: relu_dropout(x, bias, step=40, **MASK), (x, bias))
    assert torch.autograd.gradcheck(lambda x: relu_dropout(x, bias.detach()), (x,))


def test_a_value_that_rounds_to_zero_gets_no_gradient():
    """y alone decides, so it must not matter that the sum in float32 is above 0."""
    x, bias = torch.zeros(1, 1, dtype=torch.float16, requires_grad=True), torch.full((1,), 1e-9, requires_grad=True)
    dx, dbias = torch.autograd.grad(relu_dropout(x, bias), (x, bias), torch.ones(1, 1).half())
    assert dx == 0 and dbias == 0


@every(
    "change, named",
    [
        (dict(x=torch.zeros(4)), r"\(4,\)"),
        (dict(x=torch.zeros(2, 3, 4)), r"\(2, 3, 4\)"),
        (dict(x=torch.zeros(2, 4, dtype=torch.int32)), "int32"),
        (dict(bias=torch.zeros(3)), r"\(3,\).*4 maps"),
        (dict(bias=torch.zeros(4, 1)), r"\(4, 1\)"),
        (dict(bias=torch.zeros(4, device="meta")), "meta.*cpu"),
        (dict(bias=torch.zeros(4).double()), "float64.*float32"),
        (dict(bias=torch.zeros(4).bfloat16()), "bfloat16.*float32"),
        (dict(probability=1.0), "probability is 1.0"),
        (dict(probability=-0.1), "probability is -0.1"),
        (dict(probability=math.nan), "probability is nan"),
        (dict(seed=-1), "seed is -1"),
        (dict(seed=2**32), "seed is 4294967296"),
        (dict(layer=2**32), "layer is"),
        (dict(tower=0.5), "tower is 0.5"),
        (dict(first_row=-1), "first_row is -1"),
        (dict(first_row=1.0), "first_row is 1.0"),
        (dict(step=None), "step is None.*0.5"),
        (dict(step=1.0), "step is 1.0"),
        (dict(step=torch.tensor([1])), r"step is torch.int64 \(1,\)"),
        (dict(step=torch.tensor(1.0)), "step is torch.float32"),
        (dict(step=torch.tensor(1, device="meta")), "step is .*meta.*cpu"),
        (dict(kernels="fortran"), "fortran"),
        (dict(kernels="triton"), "'triton' can't compute on cpu"),
    ],
)
def test_wrong_arguments_are_refused_by_name(change, named):
    arguments = dict(x=torch.zeros(2, 4), bias=None, step=0, **MASK) | change
    with pytest.raises(ValueError, match=named):
        relu_dropout(**arguments)


@pytest.mark.run
@pytest.mark.parametrize("level", LEVELS)
@every("shape", [(1, 1), (3, 5), (7, 9), (1, 64), (1, 65), (3, 2048), (2, 20, 13, 13), (0, 4)])
@every("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_cpus_kernel_gives_the_references_bits(shape, dtype, level):
    """Blocks of 64 values, whole and begun; NaN, infinities and both zeros."""
    x, dy = values(*shape, scale=1).to(dtype), values(*shape, seed=3, scale=1).to(dtype)
    for first, value in enumerate((math.nan, math.inf, -math.inf, -0.0)):
        x.view(-1)[first :: 7 + 2 * first] = value
    x.requires_grad_()
    for change in (
        {},
        {"probability": 0.1},
        {"probability": 1 - 2**-32},
        {"probability": 2.0**-33},
        {"seed": 2**32 - 1, "tower": 2**31},
    ):
        for step in (0, 2**31 + 5, 2**32 + 40, -1, torch.tensor(2**40 - 1)):
            mask = MASK | change | {"step": step}
            with instructions(level):
                y = relu_dropout(x, **mask, kernels="cpu")
            expected = relu_dropout(x, **mask, kernels="reference")
            torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
            assert torch.equal(y.signbit()[~y.isnan()], expected.signbit()[~y.isnan()])
    (dx,) = torch.autograd.grad(y, x, dy)
    torch.testing.assert_close(dx, torch.where(y <= 0, 0, dy), rtol=0, atol=0)
    assert y.is_contiguous() and dx.is_contiguous()


@pytest.mark.parametrize("level", ["reference", *LEVELS])
@every("shape", [(9, 7), (9, 64), (9, 65), (9, 2, 3, 5), (3, 20_001)])
def test_a_part_of_a_minibatch_has_the_masks_of_its_rows(shape, level):
    """Rows that end within a counter's four words, within a block of 64, and at their ends; far into a minibatch."""
    x = values(*shape).abs().float() + 1
    kernels = "reference" if level == "reference" else "cpu"
    with nullcontext() if level == "reference" else instructions(level):
        whole = relu_dropout(x, step=40, **MASK, first_row=3, kernels=kernels)
        assert torch.equal(whole, reference.dropout(torch.cat([x[:3], x]), step=40, **MASK)[3:])
        for cut in range(len(x) + 1):
            parts = [
                relu_dropout(part, step=40, **MASK, first_row=first, kernels=kernels)
                for first, part in ((3, x[:cut]), (3 + cut, x[cut:]))
            ]
            assert torch.equal(torch.cat(parts), whole)
        far_part = relu_dropout(x, step=40, **MASK, first_row=2**34, kernels=kernels)  # counters wrap
        assert torch.equal(far_part, relu_dropout(x, step=40, **MASK, first_row=0, kernels=kernels))


@pytest.mark.skipif("cpu" not in dispatch.built(), reason="there was no compiler to build the CPU kernels")
@every("threads", [1, 2, 3])
def test_the_cpus_threads_share_the_blocks(threads):
    x, before = values(5, 20_001), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        y = relu_dropout(x, step=40, **MASK, kernels="cpu")
    finally:
        torch.set_num_threads(before)
    assert torch.equal(y, relu_dropout(x, step=40, **MASK, kernels="reference"))


@pytest.mark.run
@pytest.mark.skipif("cpu" not in dispatch.built(), reason="there was no compiler to build the CPU kernels")
def test_the_cpus_kernel_keeps_nothing_but_its_result():
    tensors, x = [], values(8, 100).float().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: tensors.append(tensor) or tensor, lambda tensor: tensor
    ):
        y = relu_dropout(x, step=40, **MASK)
    assert len(tensors) == 1 and tensors[0].data_ptr() == y.data_ptr()
    torch.library.opcheck(
        torch.ops.alexnet_mp.relu_dropout.default, (x, None, torch.tensor(40), 0.5, 3, 6, 1, 5, "cpu")
    )


@every(
    "x, bias",
    [
        (torch.ones(2, 8, 3, 3).contiguous(memory_format=torch.channels_last), None),
        (torch.ones(4, 6).t(), None),
        (torch.ones(4, 6), torch.ones(6)),
    ],
    ids=["channels_last", "transposed", "a bias"],
)
def test_what_the_cpu_leaves_to_the_reference(x, bias):
    for probability in (0.0, 0.5):
        arguments = MASK | {"probability": probability, "step": 40}
        assert torch.equal(relu_dropout(x, bias, **arguments), reference.relu_dropout(x, bias, **arguments))


@every(
    "name, dtype, by",
    [
        ("triton", torch.bfloat16, "triton"),
        ("cuda", torch.float32, "reference"),
        ("cpu", torch.float32, "cpu"),
        ("reference", torch.float32, "reference"),
        ("triton", torch.float64, "reference"),
    ],
)
def test_who_computes(name, dtype, by, monkeypatch):
    """What `resolve` says of a GPU, whether or not there is one."""
    monkeypatch.setattr(relu_dropout_op, "resolve", lambda kernels, device, operation: name)
    calls = []
    monkeypatch.setattr(
        torch.ops.alexnet_mp, "relu_dropout", lambda *arguments: calls.append(arguments) or arguments[0]
    )
    x = torch.ones(2, 4, dtype=dtype)
    relu_dropout(x, step=2**32 + 7, **MASK)
    relu_dropout(x, step=torch.tensor(9), **MASK)
    relu_dropout(x, step=torch.tensor(9))
    steps = [arguments[2] for arguments in calls]
    if by == "triton":
        assert (
            steps[0].dtype == torch.int64
            and steps[0].dim() == 0
            and steps[0] == 7
            and steps[1] == 9
            and steps[2] is None
        )
    assert [arguments[-1] for arguments in calls] == {"triton": ["triton"] * 3, "cpu": ["cpu"] * 2}.get(by, [])


needs_gpu = pytest.mark.gpu(besides="triton" in dispatch.built(), reason="needs a GPU and Triton")


@needs_gpu
@every(
    "shape, order",
    [
        ((16, 192, 13, 13), torch.channels_last),
        ((16, 192, 13, 13), torch.contiguous_format),
        ((3, 5, 3, 2), torch.channels_last),
        ((3, 5, 3, 2), torch.contiguous_format),
        ((16, 2048), torch.contiguous_format),
        ((7, 10), torch.contiguous_format),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_kernel_gives_the_references_bits(shape, order, dtype):
    x = values(*shape, scale=1).to(dtype).cuda().contiguous(memory_format=order).requires_grad_()
    dy = values(*shape, seed=3, scale=1).to(dtype).cuda()
    for mask, kind in itertools.product(({}, MASK | {"step": 40}), {dtype, torch.float32}):
        bias = values(shape[1], seed=2, scale=1).to(kind).cuda().requires_grad_()
        actual, expected = (relu_dropout(x, bias, **mask, kernels=kernels) for kernels in ("triton", "reference"))
        assert torch.equal(actual, expected) and actual.stride() == x.stride()
        (dx, dbias), (exact_dx, exact) = (torch.autograd.grad(y, (x, bias), dy) for y in (actual, expected))
        assert torch.equal(dx, exact_dx) and dx.stride() == x.stride()
        sums = exact_dx.double().sum([0, *range(2, x.dim())])
        eps = torch.finfo(kind).eps
        torch.testing.assert_close(dbias.double(), sums, rtol=eps, atol=1e-5 * sums.abs().max().item())
        assert dbias.dtype == kind and torch.equal(
            dbias, torch.autograd.grad(relu_dropout(x, bias, **mask), bias, dy)[0]
        )


@needs_gpu
def test_a_graph_that_counts_steps_draws_new_masks():
    x, bias = (
        values(8, 2048, scale=1).cuda().bfloat16().requires_grad_(),
        values(2048, seed=2, scale=1).float().cuda().requires_grad_(),
    )
    step = torch.zeros((), dtype=torch.int64, device="cuda")

    def both():
        y = relu_dropout(x, bias, step=step.add_(1), **MASK)
        return y, *torch.autograd.grad(y, (x, bias), torch.ones_like(y))

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            both()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = both()
    step.fill_(40)
    masks = []
    for number in (41, 42, 43):
        graph.replay()
        expected = reference.relu_dropout(x, bias, step=number, **MASK)
        assert torch.equal(outputs[0], expected) and step.item() == number
        dx, dbias = torch.autograd.grad(expected, (x, bias), torch.ones_like(expected))
        assert torch.equal(outputs[1], dx)
        torch.testing.assert_close(outputs[2], dbias, rtol=1e-6, atol=1e-6)
        masks.append(outputs[0] > 0)
    assert not torch.equal(masks[0], masks[1]) and not torch.equal(masks[1], masks[2])


@needs_gpu
def test_the_host_does_not_wait_for_the_step():
    x, step = torch.ones(8, 64, device="cuda"), torch.tensor(40, device="cuda")
    for kernels in ("triton", "reference"):
        relu_dropout(x, step=step, **MASK, kernels=kernels)
        torch.cuda.set_sync_debug_mode("error")
        try:
            relu_dropout(x, step=step, **MASK, kernels=kernels)
            relu_dropout(x, step=40, **MASK, kernels=kernels)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_compiled_and_under_autocast():
    linear, bias = (
        torch.nn.Linear(12, 20, bias=False).cuda(),
        torch.nn.Parameter(values(20, seed=2, scale=1).float().cuda()),
    )
    x, step = values(8, 12, scale=1).float().cuda(), torch.tensor(40, device="cuda")

    def layer(x):
        return relu_dropout(linear(x), bias, step=step, **MASK, kernels="triton")

    with torch.autocast("cuda", dtype=torch.bfloat16):
        expected, actual = layer(x), torch.compile(layer, fullgraph=True)(x)
        assert actual.dtype == torch.bfloat16
        for one, other in (
            (actual, expected),
            *zip(
                *(torch.autograd.grad(y.float().sum(), (linear.weight, bias)) for y in (actual, expected)), strict=True
            ),
        ):
            torch.testing.assert_close(one, other, rtol=0.02, atol=0.05)


@needs_gpu
def test_addresses_beyond_two_to_the_31():
    rows, maps = 2**31 // 2048 + 3, 2048
    try:
        x = torch.ones(rows, maps, dtype=torch.float16, device="cuda").requires_grad_()
        y = relu_dropout(x, step=40, **MASK, kernels="triton")
        (dx,) = torch.autograd.grad(y, x, x.detach())
    except torch.OutOfMemoryError as error:
        pytest.skip(f"needs a GPU with 20 GB: {str(error).splitlines()[0]}")
    counters = torch.arange((rows - 4) * maps // 4, rows * maps // 4, device="cuda")
    words = torch.stack(philox((counters, 40, 6, 1), (3, 5)), 1).view(4, maps)
    assert torch.equal(y[-4:] > 0, words >= 2**31) and torch.equal(dx[-4:], y[-4:])


@pytest.mark.gpu(2, besides="triton" in dispatch.built(), reason="needs two GPUs and Triton")
def test_the_second_device_while_the_first_is_current():
    x, step = values(4, 40).float(), torch.tensor(40)
    with torch.cuda.device(0):
        y = relu_dropout(x.to("cuda:1"), step=step.to("cuda:1"), **MASK, kernels="triton")
    assert y.device.index == 1 and torch.equal(y.cpu(), relu_dropout(x, step=40, **MASK))
