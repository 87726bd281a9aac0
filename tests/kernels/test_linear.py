"""The product of a fully connected layer: oneDNN's against F.linear in float64, and when it is taken."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from alexnet_mp.kernels import dispatch, linear, linear_op
from cases import values
from inner_cases import every

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available()
    or "cpu" not in dispatch.built()
    or not torch._C._dispatch_has_kernel_for_dispatch_key("mkldnn::_linear_pointwise", "CPU"),
    reason="needs compiled CPU kernels and a torch with oneDNN",
)


@pytest.fixture
def products(monkeypatch):
    """Has oneDNN's products taken whatever the processor and the size; a list of their operands."""
    calls, real = [], linear_op._product
    monkeypatch.setattr(linear_op, "_onednn_is_faster", lambda: True)
    monkeypatch.setattr(linear_op, "LARGE", 1)
    monkeypatch.setattr(linear_op, "_product", lambda *operands: calls.append(operands) or real(*operands))
    return calls


def floats(*shape, seed=1):
    return values(*shape, seed=seed, scale=1).float()


@needs_onednn
@every("biased", [True, False])
@every("images, inputs, outputs", [(1, 5, 1), (3, 96, 40), (128, 70, 33), (16, 1024, 1030)])
def test_value_and_gradients_are_those_of_float64(images, inputs, outputs, biased, products):
    """Hardly further off than PyTorch's own: oneDNN adds up one after the other what MKL adds in parts, so its rounding
    adds up, too."""
    products.clear()
    operands = [floats(images, inputs), floats(outputs, inputs, seed=2), *([floats(outputs, seed=3)] if biased else [])]
    for dy in (
        floats(images, outputs, seed=4),
        floats(outputs, images, seed=5).t(),
        torch.ones(1, 1).expand(images, outputs),
    ):
        actual, plain, exact = (
            [y.detach(), *torch.autograd.grad(y, leaves, dy.to(y))]
            for y, leaves in (
                (product(*leaves), leaves)
                for product, leaves in (
                    (product, [tensor.to(dtype).requires_grad_() for tensor in operands])
                    for product, dtype in (
                        (linear, torch.float32),
                        (F.linear, torch.float32),
                        (F.linear, torch.float64),
                    )
                )
            )
        )
        for one, other, right in zip(actual, plain, exact, strict=True):
            error, own = ((y - right).square().mean().sqrt() for y in (one, other))
            assert error <= 3 * own + torch.finfo(torch.float32).eps * right.square().mean().sqrt()
    assert len(products) == 3 * 3


@needs_onednn
@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_wanted_gradients_are_computed(wanted, products):
    operands = [floats(*shape).requires_grad_(want) for shape, want in zip(((4, 6), (5, 6), (5,)), wanted, strict=True)]
    linear(*operands).sum().backward()
    assert [tensor.grad is not None for tensor in operands] == list(wanted)
    assert len(products) == 1 + (wanted[0] or wanted[1])


@needs_onednn
def test_an_operand_whose_rows_lie_apart_is_not_onednns(products):
    """It would take a thousand times as long: half of a layer's weights, half of what both towers computed."""
    x, weight = floats(4, 6), floats(5, 6)
    for operands in (
        (x, floats(5, 12)[:, 6:]),
        (floats(4, 12)[:, :6], weight),
        (x, floats(6, 5).t()),
        (x[::2], weight),
        (x, weight, floats(10)[::2]),
        (x, weight, floats(1).expand(5)),
    ):
        assert torch.equal(linear(*operands), F.linear(*operands))
    assert products == []
    x, weight = x.requires_grad_(), weight.requires_grad_()
    linear(x, weight).sum().backward()
    assert len(products) == 3 and all(b.is_contiguous() or b.t().is_contiguous() for _, b, *_ in products)


@pytest.mark.run
@needs_onednn
def test_what_else_onednn_is_not_asked_for(products, monkeypatch):
    """Other dtypes, the reference, autocast, tangents, transforms, no images, other shapes; small products: F.linear,
    to the bit."""
    x, weight, bias = floats(4, 6), floats(5, 6), floats(5)
    for dtype in (torch.float64, torch.bfloat16):
        operands = [tensor.to(dtype) for tensor in (x, weight, bias)]
        assert torch.equal(linear(*operands), F.linear(*operands))
    assert torch.equal(linear(x, weight, bias, kernels="reference"), F.linear(x, weight, bias))
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight, bias).dtype == torch.bfloat16
    _, tangent = torch.func.jvp(lambda x: linear(x, weight, bias), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, F.linear(torch.ones_like(x), weight))
    assert torch.func.vmap(lambda row: linear(row[None], weight, bias))(x).shape == (4, 1, 5)
    assert torch.func.grad(lambda x: linear(x, weight, bias).sum())(x).shape == x.shape
    for images in (torch.zeros(0, 6), x[0], x[None]):
        assert torch.equal(linear(images, weight, bias), F.linear(images, weight, bias))
    for arguments in ((x, floats(5, 7)), (x, weight, floats(4))):
        with pytest.raises(RuntimeError, match="shape|size"):
            linear(*arguments)
    monkeypatch.setattr(linear_op, "LARGE", 31)
    linear(x, weight, bias)
    assert products == []
    monkeypatch.setattr(linear_op, "LARGE", 30)
    linear(x, weight, bias)
    assert len(products) == 1


@needs_onednn
def test_the_same_bits_every_time(products):
    operands = floats(32, 200), floats(70, 200, seed=2), floats(70, seed=3)
    y = linear(*operands)
    assert all(torch.equal(linear(*operands), y) for _ in range(5)) and len(products) == 6


@pytest.mark.compile
@pytest.mark.process
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler, and there is none")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_the_compiler_chooses(backend, tmp_path, monkeypatch):
    """Nothing replaced, in one graph, of a size that is oneDNN's where the processor has AVX-512."""
    # torch's cache gives a process with AVX2 alone what was compiled for AVX-512, and that computes nonsense there.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    operands = [
        floats(8, 1024).requires_grad_(),
        floats(1024, 1024, seed=2).requires_grad_(),
        floats(1024, seed=3).requires_grad_(),
    ]
    y, expected = torch.compile(linear, fullgraph=True, backend=backend)(*operands), F.linear(*operands)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-4)
    for one, other in zip(
        torch.autograd.grad(y.sum(), operands), torch.autograd.grad(expected.sum(), operands), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("capability, faster", [("AVX512", True), ("AVX2", False), ("DEFAULT", False)])
def test_when_onednn_is_the_faster(capability, faster, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda name, key: True)
    assert linear_op._onednn_is_faster.__wrapped__() is (faster and torch.backends.mkldnn.is_available())
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda name, key: False)
    assert not linear_op._onednn_is_faster.__wrapped__()
