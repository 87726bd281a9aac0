"""The product of a fully connected layer: oneDNN's against F.linear in float64, and when it is taken."""
import pytest
import torch
import torch.nn.functional as F
from cases import values

from alexnet_mp.kernels import linear, linear_op, ops

needs_onednn = pytest.mark.skipif(
    "cpu" not in ops.built() or not torch._C._dispatch_has_kernel_for_dispatch_key("mkldnn::_linear_pointwise", "CPU"),
    reason="needs compiled CPU kernels and a torch with oneDNN")
WIDTHS = {"every second": lambda x: torch.stack((x, x), -1).flatten(-2)[..., ::2], "dense": torch.Tensor.contiguous,
          "transposed": lambda x: x.t().contiguous().t(), "half": lambda x: torch.cat((x, x), 1)[:, x.shape[1]:]}


@pytest.fixture
def products(monkeypatch):
    """Counts oneDNN's products, and has it taken whatever the processor."""
    counted, real = [], linear_op._product
    monkeypatch.setattr(linear_op, "_onednn_is_faster", lambda: True)
    monkeypatch.setattr(linear_op, "_product", lambda *arguments: counted.append(1) or real(*arguments))
    return counted


@needs_onednn
@pytest.mark.parametrize("order", WIDTHS)
@pytest.mark.parametrize("images, inputs, outputs", [(1, 5, 1), (3, 96, 40), (128, 70, 33)])
def test_value_and_gradients_are_those_of_float64(images, inputs, outputs, order, products):
    exact = [values(*shape, seed=seed, scale=1) for seed, shape in enumerate(((images, inputs), (outputs, inputs), (outputs,)))]
    dy = values(images, outputs, seed=7, scale=1)
    x, weight, bias = (WIDTHS[order](tensor.float()) if tensor.dim() == 2 else tensor.float() for tensor in exact)
    for operands, tensors in (((x, weight, bias), exact), ((x, weight), exact[:2])):
        operands = [tensor.detach().requires_grad_() for tensor in operands]
        tensors = [tensor.requires_grad_() for tensor in tensors]
        y, expected = linear(*operands), F.linear(*tensors)
        torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
        for g in (WIDTHS[order](dy.float()), torch.ones(1, 1).expand(images, outputs)):  # a sum's gradient has no memory of its own
            found = torch.autograd.grad(y, operands, g, retain_graph=True)
            for one, other in zip(found, torch.autograd.grad(expected, tensors, g.double(), retain_graph=True), strict=True):
                torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-4)
    assert len(products) == 2 + 2 * 2 * 2


@needs_onednn
@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_wanted_gradients_are_computed(wanted, products):
    operands = [values(*shape).float().requires_grad_(want) for shape, want in zip(((4, 6), (5, 6), (5,)), wanted, strict=True)]
    linear(*operands).sum().backward()
    assert [tensor.grad is not None for tensor in operands] == list(wanted)
    assert len(products) == 1 + (wanted[0] or wanted[1])


@needs_onednn
def test_what_onednn_is_not_asked_for(products):
    """Another dtype, the reference kernels, autocast, a tangent and no images get F.linear, to the bit."""
    x, weight, bias = values(4, 6), values(5, 6), values(5)
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    x, weight, bias = x.bfloat16(), weight.bfloat16(), bias.bfloat16()
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    x, weight, bias = x.float(), weight.float(), bias.float()
    assert torch.equal(linear(x, weight, bias, kernels="reference"), F.linear(x, weight, bias))
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight, bias).dtype == torch.bfloat16
    _, tangent = torch.func.jvp(lambda x: linear(x, weight, bias), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, F.linear(torch.ones_like(x), weight))
    nothing = torch.zeros(0, 6, requires_grad=True)
    y = linear(nothing, weight.requires_grad_(), bias)
    assert y.shape == (0, 5) and torch.equal(torch.autograd.grad(y.sum(), weight)[0], torch.zeros_like(weight))
    assert products == []
    linear(x, weight, bias)
    assert products == [1]


@needs_onednn
def test_the_same_bits_every_time_and_compiled(products):
    x, weight, bias = values(32, 200).float(), values(70, 200, seed=2).float(), values(70, seed=3).float()
    y = linear(x, weight, bias)
    assert all(torch.equal(linear(x, weight, bias), y) for _ in range(5))
    assert torch.equal(torch.compile(linear, backend="aot_eager")(x, weight, bias), y)


@pytest.mark.parametrize("capability, faster", [("AVX512", True), ("AVX2", False), ("DEFAULT", False)])
def test_when_onednn_is_the_faster(capability, faster, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda name, key: True)
    assert linear_op._onednn_is_faster.__wrapped__() is (faster and torch.backends.mkldnn.is_available())
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda name, key: False)
    assert not linear_op._onednn_is_faster.__wrapped__()
