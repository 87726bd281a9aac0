"""The printed update on every implementation that can run here, against `reference.py`."""

import math
import weakref
from contextlib import nullcontext

import pytest
import torch
from alexnet_mp.kernels import dispatch, paper_sgd_, sgd
from inner_cases import every

GPU = torch.cuda.is_available()
needs = {
    "cuda": pytest.mark.gpu(reason="cuda kernels need a GPU"),
    "triton": pytest.mark.gpu(reason="triton kernels need a GPU"),
    "reference": (),
    "cpu": pytest.mark.skipif(dispatch.compiled() is None, reason="there was no compiler to build the CPU kernels"),
}
every_implementation = pytest.mark.parametrize(
    "kernels", [pytest.param(name, marks=mark) for name, mark in needs.items()]
)
RATES, DECAYS = (0.1, 0.0, 0.02, 0.3), (0.5, 0.1, 0.0, 5e-4)


def tensors(kernels, dtype, seed=0, shapes=((1,), (33,), (7, 5, 3, 3), (40_000,))):
    """Lists of parameters, gradients and velocities; odd sizes, so that no vector length divides them."""
    draws = torch.Generator().manual_seed(seed)
    device = "cpu" if kernels in ("cpu", "reference") else "cuda"
    return [
        [torch.randn(shape, generator=draws, dtype=torch.float64).to(dtype).to(device) for shape in shapes]
        for _ in range(3)
    ]


def update(kernels, w, g, v, rates=RATES, decays=DECAYS, momentum=0.9):
    paper_sgd_(w, g, v, learning_rates=rates, momentum=momentum, weight_decays=decays, kernels=kernels)


@every_implementation
@every("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_five_steps_are_the_references(kernels, dtype):
    """Half a dozen roundings in float32 (float64 for float64), then one to the storage type."""
    eps, inner = torch.finfo(dtype).eps, 2.0**-53 if dtype == torch.float64 else 2.0**-24
    w, g, v = tensors(kernels, dtype)
    before = w[1].clone(), v[1].clone()
    for _ in range(5):
        exact_w, exact_v = ([x.to("cpu", torch.float64, copy=True) for x in part] for part in (w, v))
        update("reference", exact_w, [x.double().cpu() for x in g], exact_v)
        update(kernels, w, g, v)
        for actual, exact in zip((*w, *v), (*exact_w, *exact_v), strict=True):
            torch.testing.assert_close(
                actual.double().cpu(), exact, rtol=eps / 2, atol=6 * inner * float(exact.abs().max())
            )
    assert torch.equal(w[1], before[0]) and torch.equal(v[1], before[1])


@every_implementation
def test_a_rate_of_zero_is_not_even_read(kernels):
    w, g, v = tensors(kernels, torch.float32)
    before = [x.clone() for x in (*w, *v)]
    update(kernels, w, [torch.full_like(x, math.nan) for x in g], v, rates=(0.0,) * 4)
    assert all(torch.equal(a, b) for a, b in zip((*w, *v), before, strict=True))


@every_implementation
def test_changed_rates_and_moved_tensors_are_obeyed(kernels):
    """What an implementation keeps from call to call must not outlive a change."""
    for seed, rates, momentum in ((0, RATES, 0.9), (0, (0.01,) * 4, 0.9), (1, (0.01,) * 4, 0.5), (2, RATES, 0.0)):
        w, g, v = tensors(kernels, torch.float32, seed)
        exact = [[x.clone().cpu() for x in part] for part in (w, g, v)]
        update("reference", *exact, rates=rates, momentum=momentum)
        update(kernels, w, g, v, rates=rates, momentum=momentum)
        for actual, expected in zip((*w, *v), (*exact[0], *exact[2]), strict=True):
            torch.testing.assert_close(actual.cpu(), expected, rtol=1e-6, atol=1e-6)


@every_implementation
def test_any_strides_and_the_graph_of_autograd(kernels):
    """Gradients of channels_last convolutions have other strides than their weights; parameters require gradients."""
    w, g, v = tensors(kernels, torch.float32, shapes=((7, 5, 3, 3), (6, 8)))
    g = [g[0].contiguous(memory_format=torch.channels_last), g[1].mT.contiguous().mT]
    exact = [[x.clone().cpu().contiguous() for x in part] for part in (w, g, v)]
    update("reference", *exact, rates=RATES[::2], decays=DECAYS[::2])
    parameters = [torch.nn.Parameter(x) for x in w]
    update(kernels, parameters, g, v, rates=RATES[::2], decays=DECAYS[::2])
    for actual, expected in zip((*parameters, *v), (*exact[0], *exact[2]), strict=True):
        torch.testing.assert_close(actual.detach().cpu(), expected, rtol=1e-6, atol=1e-6)
    update(kernels, [], [], [], rates=(), decays=())


@pytest.mark.run
@every_implementation
def test_opcheck(kernels):
    w, g, v = tensors(kernels, torch.float32, shapes=((5,), (3, 4)))
    copies, sums = [x.bfloat16() for x in w], torch.zeros(2, device=w[0].device)
    for more in (([], None), (copies, sums)):
        torch.library.opcheck(
            torch.ops.alexnet_mp.paper_sgd_.default, (w, g, v, *more, [0.1, 0.2], 0.9, [0.5, 0.0], kernels)
        )


@every_implementation
@every("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_read_and_written_in_the_same_pass(kernels, dtype):
    """The bits of gradients widened before, and of weights rounded and added up after; a tensor with the rate 0 keeps
    its copy.
    """
    shapes = (1,), (33,), (7, 5, 3, 3), (40_000,), (6, 8)
    rates, decays = (*RATES, 0.1), (*DECAYS, 0.0)
    w, g, v = tensors(kernels, torch.float32, shapes=shapes)
    g = [x.to(dtype) for x in g]
    g[4] = g[4].mT.contiguous().mT  # in another order of memory
    expected = [[x.float().clone() for x in part] for part in (w, g, v)]
    copies, sums = [torch.full_like(x, 7, dtype=dtype) for x in w], torch.full((5,), 7.0, device=w[0].device)
    for _ in range(3):
        update(kernels, *expected, rates=rates, decays=decays)
        paper_sgd_(
            w, g, v, copies=copies, sums=sums, learning_rates=rates, momentum=0.9, weight_decays=decays, kernels=kernels
        )
        for actual, exact in zip((*w, *v), (*expected[0], *expected[2]), strict=True):
            if kernels in ("cpu", "reference"):
                assert torch.equal(actual, exact)
            else:  # another kernel to its compiler, which may fuse a product and a sum otherwise
                torch.testing.assert_close(actual, exact, rtol=1e-6, atol=1e-6)
        for number, (copy, weight) in enumerate(zip(copies, w, strict=True)):
            assert torch.equal(copy, weight.to(dtype) if rates[number] else torch.full_like(copy, 7))
            exact, size = weight.double().sum().item() if rates[number] else 7.0, weight.abs().double().sum().item()
            assert sums[number].item() == pytest.approx(exact, abs=1e-6 * size)


@every_implementation
@every("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@every("value", [math.nan, math.inf, -math.inf])
def test_the_sums_see_what_is_not_finite(kernels, dtype, value):
    """Wherever it is, and in no other tensor's sum."""
    for number, place in ((0, 0), (2, -1), (3, 5000), (3, -1)):
        w, g, v = tensors(kernels, dtype)
        sums = torch.empty(4, device=w[0].device)
        g[number].view(-1)[place] = value
        paper_sgd_(w, g, v, sums=sums, learning_rates=(0.1,) * 4, momentum=0.9, weight_decays=DECAYS, kernels=kernels)
        assert sums.isfinite().tolist() == [number != each for each in range(4)]


@every(
    "spoil, named",
    [
        (lambda w, g, v: w.__setitem__(1, w[1].int()), "parameter 1 is torch.int32"),
        (lambda w, g, v: g.pop(), "3 gradients"),
        (lambda w, g, v: v.append(v[0]), "5 velocities"),
        (lambda w, g, v: g.__setitem__(1, g[1][:5]), r"parameter 1 .*\(33,\).*gradient .*\(5,\)"),
        (lambda w, g, v: v.__setitem__(2, v[2].double()), "parameter 2 .*float32.*velocity .*float64"),
        (lambda w, g, v: g.__setitem__(0, g[0].to("meta")), "parameter 0 .*cpu.*gradient .*meta"),
        (lambda w, g, v: g.__setitem__(1, g[1].double()), "parameter 1 .*float32.*gradient .*float64"),
        (lambda w, g, v: v.__setitem__(1, v[1].bfloat16()), "parameter 1 .*float32.*velocity .*bfloat16"),
        (
            lambda w, g, v: (w.__setitem__(1, w[1].bfloat16()), v.__setitem__(1, v[1].bfloat16())),
            "parameter 1 .*bfloat16.*gradient .*float32",
        ),
    ],
)
def test_lists_that_do_not_fit_are_refused_by_name(spoil, named):
    w, g, v = tensors("reference", torch.float32)
    spoil(w, g, v)
    before = [x.clone() for x in w]
    with pytest.raises(ValueError, match=named):
        update("reference", w, g, v)
    assert all(torch.equal(a, b) for a, b in zip(w, before))


@every(
    "more, named",
    [
        (dict(copies=[torch.empty(1).half()]), "1 copies of 4 parameters"),
        (
            dict(copies=[torch.empty(shape) for shape in ((1,), (33,), (7, 5, 3, 3), (40_000,))]),
            "parameter 0 .*copy .*float32.*16 bits",
        ),
        (
            dict(copies=[torch.empty(shape).half() for shape in ((1,), (32,), (7, 5, 3, 3), (40_000,))]),
            r"parameter 1 .*copy .*\(32,\)",
        ),
        (dict(sums=torch.empty(3)), r"sums are .*\(3,\).*must be .*\(4,\)"),
        (dict(sums=torch.empty(4).double()), "sums are .*float64"),
        (dict(sums=torch.empty(4, device="meta")), "sums are .*meta"),
        (dict(learning_rates=[0.1, math.nan, 0.1, 0.1]), "a learning rate is nan"),
        (dict(learning_rates=[-0.1] * 4), "a learning rate is -0.1"),
        (dict(weight_decays=[math.inf] * 4), "a weight decay is inf"),
        (dict(momentum=math.nan), "momentum is nan"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(more, named):
    w, g, v = tensors("reference", torch.float32)
    before = [x.clone() for x in w]
    with pytest.raises(ValueError, match=named):
        numbers = dict(learning_rates=RATES, momentum=0.9, weight_decays=DECAYS)
        paper_sgd_(w, g, v, **numbers | more, kernels="reference")
    assert all(torch.equal(a, b) for a, b in zip(w, before))


def test_an_owner_of_tables_keeps_them_and_nobody_else_does():
    """What a graph reads lives as long as its owner wants, however many other rates come in between, and no longer."""
    sgd_triton = pytest.importorskip("alexnet_mp.kernels.sgd_triton", reason="Triton is not installed")
    # on a CPU in Triton's interpreter
    w, g, v = tensors("triton" if GPU else "reference", torch.float32, shapes=((33,), (5, 3)))

    def step(rate):
        sgd_triton.paper_sgd_(w, g, v, [rate, rate], 0.9, [0.0, 0.1], owner=sgd._table_owner.get())

    others, owner = (dict(sgd_triton._remembered), dict(sgd_triton._captured)), {}
    with sgd.update_tables_in(owner):
        step(0.25)
        (tables,) = owner.values()
        with sgd.update_tables_in({}):
            step(0.25)
        step(0.25)
    assert list(owner.values()) == [tables] and others == (sgd_triton._remembered, sgd_triton._captured)
    for number in range(2 * sgd_triton.REMEMBERED):
        step(0.01 * number + 0.001)
    assert len(sgd_triton._remembered) <= sgd_triton.REMEMBERED and sgd_triton._captured == others[1]
    assert list(owner.values()) == [tables]
    table_reference = weakref.ref(tables[0])
    del tables
    owner.clear()
    assert table_reference() is None


@pytest.mark.gpu(reason="needs a GPU")
@pytest.mark.parametrize("owned", [False, True])
def test_a_graph_replays_the_update(owned):
    """After one call to warm up, a capture copies nothing from the host."""
    w, g, v = tensors("triton", torch.float32)
    graph, owner = torch.cuda.CUDAGraph(), {}
    with sgd.update_tables_in(owner) if owned else nullcontext():
        update("triton", w, g, v)
        with torch.cuda.graph(graph):
            update("triton", w, g, v)
    exact = [[x.clone() for x in part] for part in (w, g, v)]
    graph.replay()
    update("reference", *exact)
    for actual, expected in zip((*w, *v), (*exact[0], *exact[2]), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
