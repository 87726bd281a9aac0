"""The fused operations as torch operators: what they refuse, who computes, and how they live with the rest of torch."""

import math
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from alexnet_mp.kernels import (
    augment,
    augmentation,
    dispatch,
    linear,
    linear_op,
    lrn,
    lrn_max_pool,
    lrn_pool,
    max_pool,
    paper_sgd_,
    relu_dropout,
    relu_dropout_op,
    sgd,
    spatial_norm_max_pool,
)
from cases import FORMATS, GPU, OPERATIONS, all_operations, call, gradients, in_format, takes_bias, values
from inner_cases import every
from torch._subclasses.fake_tensor import FakeTensorMode

from alexnet_mp.system.devices import _say_uncompiled, check_kernels

pytestmark = pytest.mark.usefixtures("one_thread")
# In `torch.library.opcheck`; the first runs the kernel and looks for what it wrote to.
OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@every(
    "change, named",
    [
        (dict(relu="during"), "relu is 'during'"),
        (dict(ties="last"), "ties is 'last'"),
        (dict(pool=6), "5x5.*6x6"),
        (dict(stride=0), "stride is 0"),
        (dict(stride=4), "stride is 4.*3x3"),
        (dict(size=0), "size is 0"),
        (dict(size=2.0), "size is 2.0"),
        (dict(k=0.0), "k is 0.0"),
        (dict(k=math.nan), "k is nan"),
        (dict(alpha=-1.0), "alpha is -1.0"),
        (dict(beta=math.inf), "beta inf"),
        (dict(kernels="fortran"), "fortran"),
        (dict(x=torch.zeros(4, 5, 5)), r"\(4, 5, 5\)"),
        (dict(x=torch.zeros(2, 0, 5, 5)), r"\(2, 0, 5, 5\).*C at least 1"),
        (dict(x=torch.zeros(2, 0, 5, 5), kernels="reference"), r"\(2, 0, 5, 5\).*C at least 1"),
        (dict(x=torch.zeros(1, 4, 5, 5, dtype=torch.int32)), "int32"),
        (dict(x=torch.zeros(1, 4, 5, 5, dtype=torch.complex64)), "complex64"),
        (dict(bias=torch.zeros(3)), r"\(3,\).*4 maps"),
        (dict(bias=torch.zeros(4, 1)), r"\(4, 1\)"),
        (dict(bias=torch.zeros(4, dtype=torch.float64)), "float64"),
        (dict(bias=torch.zeros(4, device="meta")), "meta.*cpu"),
    ],
)
def test_wrong_arguments_are_refused_by_name(change, named):
    arguments = dict(x=torch.zeros(1, 4, 5, 5), bias=None, alpha=1e-4) | change
    with pytest.raises(ValueError, match=named):
        lrn_max_pool(arguments.pop("x"), arguments.pop("bias"), **arguments)


def test_a_window_of_more_cells_than_a_byte_counts_is_left_to_the_reference():
    x = values(1, 2, 17, 16)
    expected = lrn_max_pool(x, alpha=1e-4, pool=16, stride=1, kernels="reference")
    assert torch.equal(lrn_max_pool(x, alpha=1e-4, pool=16, stride=1), expected)
    if dispatch.compiled() is not None:
        with pytest.raises(ValueError, match="pool is 16.*at most 15"):
            lrn_max_pool(x, alpha=1e-4, pool=16, stride=1, kernels="cpu")


def test_the_registered_operator_refuses_what_would_read_out_of_bounds():
    if dispatch.compiled() is None:
        pytest.skip("there was no compiler to build the CPU kernels")
    x = torch.ones(1, 2, 3, 3)

    def pool_maps(pool, stride, kernels="cpu"):
        return torch.ops.alexnet_mp.lrn_pool(x, None, "none", 1, 0.0, 0.75, 1.0, "none", pool, stride, "first", kernels)

    for pool, stride, maps, out in ((2, 3, x, 1), (3, 0, x, 1), (16, 1, torch.ones(1, 2, 17, 17), 2)):
        y = torch.empty(1, 2, out, out)
        with pytest.raises(RuntimeError, match="do not fit maps of"):
            dispatch.compiled().lrn_pool_forward(maps, None, y, y.byte(), 0, 1, 0.0, 0.75, 1.0, 0, pool, stride, 0)
    with pytest.raises(RuntimeError, match="do not fit maps of"):
        pool_maps(2, 3)
    with pytest.raises(ValueError, match="kernels is 'fortran'"):
        pool_maps(3, 2, "fortran")
    y, argmax = pool_maps(2, 1)
    arguments = (0, 1, 0.0, 0.75, 1.0, 0, 2, 1, 0)
    for tensors in (
        (y, x, None, argmax[:, :1], x.clone()),
        (y, x, None, argmax, x[:, :, :, :2].clone()),
        (y, x[:, :, :2], None, argmax, x.clone()),
        (y, x.double(), None, argmax, x.clone()),
    ):
        with pytest.raises(RuntimeError, match="must be of|has the wrong size"):
            dispatch.compiled().lrn_pool_backward(*tensors, torch.empty(0), *arguments)


def test_a_library_that_does_not_load_is_named(tmp_path, monkeypatch):
    (tmp_path / "compiled.so").write_bytes(b"not a library")
    monkeypatch.setattr(dispatch, "LIBRARY", tmp_path / "compiled.so")
    with pytest.raises(RuntimeError, match="compiled.so does not fit torch.*--kernels reference"):
        dispatch.compiled.__wrapped__()
    monkeypatch.setattr(dispatch, "built", lambda: pytest.fail("the reference needs no library"))
    assert dispatch.resolve("reference", "cpu") == "reference"


@pytest.mark.skipif(dispatch.compiled() is None, reason="there was no compiler to build the CPU kernels")
def test_a_library_without_a_newer_operator_is_named(monkeypatch):
    monkeypatch.setattr(dispatch, "OPERATORS", (*dispatch.OPERATORS, "of_tomorrow"))
    with pytest.raises(RuntimeError, match="compiled.so does not fit.*builds it again.*of_tomorrow"):
        dispatch.compiled.__wrapped__()


def test_the_choice_of_kernels(monkeypatch, capsys):
    assert dispatch.resolve("auto", "cpu") == ("cpu" if dispatch.compiled() is not None else "reference")
    assert dispatch.resolve("reference", "cuda:1") == "reference" and dispatch.resolve("auto", "meta") == "reference"
    with pytest.raises(ValueError, match="'triton' can't compute on cpu.*reference"):
        dispatch.resolve("triton", "cpu")
    with pytest.raises(ValueError, match="'cpu' can't compute on cuda"):
        dispatch.resolve("cpu", "cuda:0")
    if GPU:
        assert dispatch.resolve("auto", "cuda:0") == next(
            name for name in ("cuda", "triton", "reference") if name in (*dispatch.built(), "reference")
        )
    check_kernels("auto", [torch.device("cpu")])
    assert "WARNING" not in capsys.readouterr().out or dispatch.compiled() is None
    monkeypatch.setattr(dispatch, "compiled", lambda: None)
    monkeypatch.setattr(dispatch, "_built", lambda: ())
    _say_uncompiled.cache_clear()
    for kernels in ("reference", "auto", "auto"):
        check_kernels(kernels, [torch.device("cpu")] * 2)
    assert capsys.readouterr().out.count("WARNING: no compiled kernels: a C++ compiler and pip install ") == 1
    _say_uncompiled.cache_clear()


@pytest.mark.skipif(dispatch.compiled() is None, reason="there was no compiler to build the CPU kernels")
def test_the_description_tells_how_to_learn_why_there_are_no_cuda_kernels(monkeypatch):
    """pip shows nothing of a build that went well, and with it not the line that says so."""
    monkeypatch.setattr(dispatch, "_compiled_for_cuda", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert dispatch.description() == f"kernels built: {', '.join(dispatch.built())}"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert dispatch.description().endswith(
        "; for CUDA none: pip install -v --no-build-isolation --no-deps -e . says why"
    )
    monkeypatch.setattr(dispatch, "_compiled_for_cuda", lambda: True)
    assert "none" not in dispatch.description()


@every(
    "change, triton",
    [
        ({}, False),
        (dict(norm="none", size=1), False),
        (dict(norm="spatial"), True),
        (dict(size=3), True),
        (dict(beta=0.5), True),
        (dict(pool=2), True),
        (dict(pool=0, stride=1), True),
        (dict(all_ties=True), True),
        (dict(kernels="triton"), True),
        (dict(maps=12), True),
        (dict(maps=1032), True),
        (dict(memory_format="nchw"), True),
        (dict(offset=4), False),
        (dict(offset=1), True),
        (dict(kernels="cpu", memory_format="nchw", size=3), False),
    ],
)
def test_what_is_left_to_triton(change, triton):
    """`kernels="cuda"`: the paper's case in channels_last, from addresses that 16 bytes divide; nothing of this looks
    at a GPU."""
    case = (
        dict(
            kernels="cuda",
            norm="lrn",
            size=5,
            beta=0.75,
            pool=3,
            stride=2,
            all_ties=False,
            maps=16,
            memory_format="channels_last",
            offset=0,
        )
        | change
    )
    maps, offset = case.pop("maps"), case.pop("offset")
    x = torch.zeros(2 * maps * 25 + offset)[offset:].view(2, 5, 5, maps).permute(0, 3, 1, 2)
    x = x if case.pop("memory_format") == "channels_last" else x.contiguous()
    assert lrn_pool._in_triton(tensors=[x], **case) == triton


@pytest.mark.run
@all_operations
def test_opcheck(implementation, operation, request):
    """What the instructions of a processor can change, for each; the rest, which asks no kernel how, once."""
    kernels, device = implementation
    once = request.node.callspec.params["implementation"] not in ("avx2", "avx512")
    norm = {lrn: "lrn", lrn_max_pool: "lrn", max_pool: "none", spatial_norm_max_pool: "spatial"}[
        OPERATIONS[operation][0]
    ]
    arguments = OPERATIONS[operation][1]
    relu = {True: "after", False: "none"}.get(arguments.get("relu", norm == "none"), arguments.get("relu"))
    for memory_format in FORMATS:
        x, bias = in_format(values(2, 8, 7, 6).float(), memory_format).to(device), values(8, seed=2).float().to(device)
        torch.library.opcheck(
            torch.ops.alexnet_mp.lrn_pool.default,
            (
                x.requires_grad_(),
                bias.requires_grad_() if takes_bias(operation) else None,
                norm,
                5,
                3e-3,
                0.75,
                2.0,
                relu if norm != "spatial" else "none",
                0 if OPERATIONS[operation][0] is lrn else 3,
                2,
                arguments.get("ties", "first"),
                kernels,
            ),
            test_utils=OPCHECKS if once else OPCHECKS[:1],
        )


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.compile
@pytest.mark.process
def test_compile_and_autocast(implementation, backend):
    """Traced whole, forward and backward; and compiled."""
    kernels, device = implementation
    convolution = torch.nn.Conv2d(3, 8, 3, bias=False).to(device)
    bias = torch.nn.Parameter(values(8, seed=2, scale=1).float().to(device))
    images = values(2, 3, 11, 11).float().to(device)

    def layer(images):
        return lrn_max_pool(convolution(images), bias, alpha=1e-4, kernels=kernels)

    expected = layer(images)
    expected.sum().backward()
    gradient, bias.grad = bias.grad.clone(), None
    y = torch.compile(layer, fullgraph=True, backend=backend)(images)
    y.sum().backward()
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bias.grad, gradient, rtol=1e-4, atol=1e-4)
    bias.grad = None
    with torch.autocast(device, dtype=torch.bfloat16):
        half = layer(images)
        assert half.dtype == torch.bfloat16 and bias.dtype == torch.float32
        half.float().sum().backward()
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.3)
    assert bias.grad.dtype == torch.float32


def saved_bytes(function, x, bias):
    sizes = {}

    def pack(tensor):
        sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = function(x, bias)
    return sum(sizes.values()), y


@every("dtype", [torch.float32, torch.bfloat16])
def test_x_the_bias_and_a_byte_an_output_are_kept(dtype):
    kernels = (
        "cpu" if dispatch.compiled() is not None else pytest.skip("there was no compiler to build the CPU kernels")
    )
    x, bias = torch.randn(2, 48, 15, 15).to(dtype).requires_grad_(), torch.randn(48).to(dtype).requires_grad_()
    for ties, codes in (("first", 2 * 48 * 7 * 7), ("all", 0)):
        size, _ = saved_bytes(lambda x, bias: lrn_max_pool(x, bias, alpha=1e-4, ties=ties, kernels=kernels), x, bias)
        assert size == x.numel() * x.element_size() + bias.numel() * bias.element_size() + codes


needs_gpu = pytest.mark.gpu(reason="needs a GPU")


@needs_gpu
@pytest.mark.parametrize("kernels", ["cuda", "triton"])
@all_operations
def test_a_side_stream_is_obeyed(kernels, operation):
    x, bias = (
        values(8, 48, 27, 27).float().cuda().contiguous(memory_format=torch.channels_last),
        values(48, seed=2).float().cuda(),
    )
    expected = call(operation, x * 2, bias, kernels)
    gradient = gradients(operation, x * 2, bias, expected, kernels)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # what is launched on another stream would read x before it is doubled
        product = x.mul(2)
        y = call(operation, product, bias, kernels)
        results = gradients(operation, product, bias, y, kernels)
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
        outputs = both()
    with torch.no_grad():
        x.mul_(1.5)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(outputs, both(), strict=True))


@pytest.mark.gpu(2, reason="needs two GPUs")
@pytest.mark.parametrize("kernels", ["cuda", "triton"])
def test_the_second_device_while_the_first_is_current(kernels):
    x, bias = values(2, 48, 15, 15).float().contiguous(memory_format=torch.channels_last), values(48, seed=2).float()
    with torch.cuda.device(0):
        first = gradients(
            "before", x.to("cuda:0"), bias.to("cuda:0"), torch.ones(2, 48, 7, 7, device="cuda:0"), kernels
        )
        second = gradients(
            "before", x.to("cuda:1"), bias.to("cuda:1"), torch.ones(2, 48, 7, 7, device="cuda:1"), kernels
        )
    assert all(a.device.index == 1 and torch.equal(a.cpu(), b.cpu()) for a, b in zip(second, first, strict=True))


def test_cuda_kernels_are_not_chosen_on_a_gpu_that_they_are_not_compiled_for(monkeypatch):
    monkeypatch.setattr(dispatch, "built", lambda: ("cuda", "triton"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: {0: (7, 5), 1: (8, 0)}[device.index])
    dispatch._below_sm80.cache_clear()
    try:
        assert [dispatch.resolve("auto", f"cuda:{index}") for index in range(2)] == ["triton", "cuda"]
        with pytest.raises(
            ValueError, match="'cuda' can't compute on cuda here; usable there: auto, triton, reference"
        ):
            dispatch.resolve("cuda", "cuda:0")
    finally:
        dispatch._below_sm80.cache_clear()


def test_an_implementation_that_is_left_out_gives_way_to_the_next(with_gpu_kernels):
    first, second = "cuda:0", torch.device("cuda:1")
    dispatch.leave_out(
        {
            ("lrn_max_pool", "cuda", "cuda:0"),
            ("relu_dropout", "triton", "cuda:0"),
            ("max_pool", "cuda", "cuda:1"),
            ("max_pool", "triton", "cuda:1"),
        }
    )
    for operation, on_first, on_second in (
        ("lrn_max_pool", "triton", "cuda"),
        ("relu_dropout", "reference", "triton"),
        ("max_pool", "cuda", "reference"),
    ):
        assert dispatch.resolve("auto", first, operation) == on_first
        assert dispatch.resolve("auto", second, operation) == on_second
    assert dispatch.resolve("cuda", first, "lrn_max_pool") == "cuda", "an explicit choice is obeyed"
    assert dispatch.resolve("auto", first) == "cuda"
    assert dispatch.used("auto", first) == "cuda (lrn_max_pool: triton, relu_dropout: reference)"
    assert dispatch.used("auto", second) == "cuda (max_pool: reference)" and dispatch.used("cuda", first) == "cuda"
    dispatch.leave_out(())
    assert dispatch.resolve("auto", first, "lrn_max_pool") == "cuda" and dispatch.used("auto", first) == "cuda"


def test_augmentation_that_is_left_out_is_left_out_of_a_step_too(with_gpu_kernels, monkeypatch):
    """Then the host looks at the crops, which no graph can hold. Without a GPU: tensors that have no memory."""
    calls, crop = [], dict(crop=4, mean_follows_crop=True, dtype=torch.float32, memory_format=torch.channels_last)
    monkeypatch.setattr(augmentation, "augment", lambda *arguments, **options: calls.append(options))
    with FakeTensorMode():
        pictures, crops, mean = (
            torch.empty(shape, dtype=dtype, device="cuda:0")
            for shape, dtype in (((0, 6, 6, 3), torch.uint8), ((0, 7), torch.float32), ((6, 6, 3), torch.float32))
        )
        assert augmentation.augments_in_graphs("cuda:0")
        assert augmentation.augment_crops(pictures, crops, mean, **crop).shape == (0, 3, 4, 4)
        assert calls == []
        dispatch.leave_out({("augment", "triton", "cuda:0")})
        augmentation.augment_crops(pictures, crops, mean, **crop)
    assert calls == [crop]
    assert [augmentation.augments_in_graphs(device) for device in ("cuda:0", "cuda:1", "cpu")] == [False, True, True]


@pytest.mark.parametrize("operation", dispatch.WITHOUT_CUDA)
def test_operations_without_cuda_code_are_tritons(operation, with_gpu_kernels, monkeypatch):
    assert dispatch.resolve("auto", "cuda:0", operation) == dispatch.resolve("cuda", "cuda:0", operation) == "triton"
    monkeypatch.setattr(dispatch, "built", lambda: ("triton",))
    assert dispatch.resolve("auto", "cuda:0", operation) == "triton"


@pytest.mark.skipif(dispatch.compiled() is None, reason="there was no compiler to build the CPU kernels")
def test_every_operation_obeys_what_is_left_out(monkeypatch):
    """Each by the name of its public function; the compiled kernels must not be called."""
    x, pictures = torch.ones(2, 8, 5, 5, requires_grad=True), torch.zeros(2, 6, 6, 3, dtype=torch.uint8)
    zeros = torch.zeros(2, dtype=torch.int64)
    calls = {
        "lrn_max_pool": lambda: lrn_max_pool(x, alpha=1.0),
        "lrn": lambda: lrn(x, alpha=1.0),
        "max_pool": lambda: max_pool(x),
        "spatial_norm_max_pool": lambda: spatial_norm_max_pool(x, alpha=1.0),
        "relu_dropout": lambda: relu_dropout(x, probability=0.5, step=3),
        "paper_sgd_": lambda: paper_sgd_(
            [torch.ones(3)], [torch.ones(3)], [torch.ones(3)], learning_rates=[0.1], momentum=0.9, weight_decays=[0.1]
        ),
        "augment": lambda: augment(
            pictures,
            zeros,
            zeros,
            zeros.bool(),
            torch.zeros(6, 6, 3),
            torch.zeros(2, 3),
            crop=4,
            mean_follows_crop=True,
        ),
        "linear": lambda: linear(torch.ones(2, 3), torch.ones(4, 3)),
    }
    expected = {name: call() for name, call in calls.items()}
    for module in (lrn_pool, sgd, augmentation, relu_dropout_op):
        monkeypatch.setattr(module, "compiled", lambda: pytest.fail("a compiled kernel was called"))
    monkeypatch.setattr(linear_op, "_fits_onednn", lambda *arguments: pytest.fail("oneDNN was called"))
    try:
        for name, call in calls.items():
            with pytest.raises(pytest.fail.Exception):
                call()
            dispatch.leave_out({(name, "cpu", "cpu")})
            y = call()
            assert y is None or torch.allclose(y, expected[name])
    finally:
        dispatch.leave_out(())


def test_triton_kernels_are_launched_one_at_a_time():
    """By whatever thread: backward has one a GPU."""
    inside, most = [], []

    def launch(_):
        with dispatch.triton_on(torch.zeros(1)):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.002)
            inside.pop()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(launch, range(20)))
    assert max(most) == 1
