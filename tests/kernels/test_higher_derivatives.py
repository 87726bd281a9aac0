"""Gradients of gradients, forward mode and torch.func through the fused operations: the reference's in float64."""

import pytest
import torch
import torch.nn.functional as F
from alexnet_mp.kernels import dispatch, linear, linear_op, lrn_pool, reference, relu_dropout, relu_dropout_op
from alexnet_mp.kernels import lrn as fused_lrn
from cases import all_operations, both_formats, call, in_format, takes_bias, values
from inner_cases import every
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

pytestmark = pytest.mark.usefixtures("one_thread")
MASK = dict(probability=0.4, seed=3, step=5, layer=1, tower=1)
SHAPE = (2, 6, 7, 6)  # the last windows hang over
needs_compiled = pytest.mark.skipif(
    dispatch.compiled() is None, reason="there was no compiler to build the CPU kernels"
)


def inputs(operation, dtype=torch.float64, memory_format="nchw"):
    x, bias = in_format(values(*SHAPE), memory_format), values(SHAPE[1], seed=2)
    return [tensor.to(dtype).requires_grad_() for tensor in ([x, bias] if takes_bias(operation) else [x])]


def orders(function, tensors, count):
    """[gradients of every order up to `count`]; those of an order are those of the sum of squares of the order
    before."""
    by_order, scalar = [], function(*tensors).square().sum()
    for order in range(1, count + 1):
        gradients = torch.autograd.grad(scalar, tensors, create_graph=order < count)
        by_order.append([gradient.detach() for gradient in gradients])
        scalar = sum((gradient / gradient.detach().abs().max()).square().sum() for gradient in gradients)
    return by_order


@pytest.mark.run
@needs_compiled
@all_operations
@both_formats
def test_gradients_of_gradients(operation, memory_format):
    """Also where dy depends on x; float32 beside float64 as far as it reaches."""
    expected = orders(lambda *tensors: called(operation, tensors, "reference"), inputs(operation), 3)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 2e-3)):
        tensors = inputs(operation, dtype, memory_format)
        actual = orders(lambda *tensors: called(operation, tensors, "cpu"), tensors, 3)
        for order, (a, b) in enumerate(zip(actual, expected, strict=True), 1):
            for mine, exact in zip(a, b, strict=True):
                assert mine.dtype == dtype and exact.abs().max() > 0
                error = float((mine.double() - exact).abs().max() / exact.abs().max())
                assert error <= tolerance, f"order {order}, {dtype}: {error}"


def called(operation, tensors, kernels):
    return call(operation, tensors[0], tensors[1] if len(tensors) > 1 else None, kernels)


@pytest.mark.slow
@pytest.mark.run
@all_operations
def test_the_references_derivatives_are_those_of_differences(operation):
    x, bias = values(1, 3, 5, 4).requires_grad_(), values(3, seed=2).requires_grad_()
    tensors = [x, bias] if takes_bias(operation) else [x]
    torch.autograd.gradcheck(
        lambda *tensors: called(operation, tensors, "reference"), tensors, check_forward_ad=True, atol=1e-4
    )
    torch.autograd.gradgradcheck(lambda *tensors: called(operation, tensors, "reference"), tensors, atol=1e-4)


def views_in_vmap():
    """Not in torch 2.11; in 2.13."""
    try:
        vmap(lambda x: x.view(torch.int64))(torch.ones(1, 1, dtype=torch.float64))
    except RuntimeError:
        return False
    return True


VMAP_VIEWS = views_in_vmap()
TRANSFORMS = {
    "grad": lambda function, x: grad(lambda x: function(x).square().sum())(x),
    "jacrev": lambda function, x: jacrev(function)(x),
    "jacfwd": lambda function, x: jacfwd(function)(x),
    "hessian": lambda function, x: hessian(lambda x: function(x).square().sum())(x),
    "jacrev of jacrev": lambda function, x: jacrev(jacrev(lambda x: function(x).square().sum()))(x),
    "jacfwd of jacfwd": lambda function, x: jacfwd(jacfwd(lambda x: function(x).square().sum()))(x),
    "vmap": lambda function, x: vmap(lambda image: function(image[None])[0])(x),
    "vmap of grad": lambda function, x: vmap(grad(lambda image: function(image[None]).square().sum()))(x),
    "vmap of dy": lambda function, x: vmap(vjp(function, x)[1])(torch.stack([function(x), 2 * function(x)]))[0],
    "jvp": lambda function, x: jvp(function, (x,), (x.sin(),))[1],
}


@pytest.mark.run
@needs_compiled
@every("name", TRANSFORMS)
@all_operations
def test_transforms(name, operation):
    if name in ("vmap", "vmap of grad") and not VMAP_VIEWS:
        pytest.skip("this torch has no vmap of view(dtype), which the reference takes")
    x, bias = values(2, 3, 3, 4), values(3, seed=2)
    actual = TRANSFORMS[name](lambda x: call(operation, x, bias, "cpu"), x)
    expected = by_loops(name, lambda x: call(operation, x, bias, "reference"), x)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    assert expected.abs().max() > 0


def by_loops(name, function, x):
    """What a transform gives, by torch.autograd alone."""

    def total(x):
        return function(x).square().sum()

    def first(function, x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(function(x), x)[0]

    if name in ("jacrev", "jacfwd"):
        return torch.autograd.functional.jacobian(function, x)
    if name in ("hessian", "jacrev of jacrev", "jacfwd of jacfwd"):
        return torch.autograd.functional.hessian(total, x)
    if name == "vmap":
        return function(x)
    if name == "vmap of dy":
        leaf = x.detach().requires_grad_()
        y = function(leaf)
        return torch.stack([torch.autograd.grad(y, leaf, factor * y, retain_graph=True)[0] for factor in (1, 2)])
    if name == "jvp":
        return (torch.autograd.functional.jacobian(function, x) * x.sin()).flatten(-x.dim()).sum(-1)
    return first(total, x)


def test_the_hessian_of_the_norm_is_that_of_pytorchs():
    x = values(1, 6, 2, 1)
    actual = hessian(lambda x: fused_lrn(x, relu="none", alpha=3e-3, k=2.0).sum())(x)
    expected = hessian(lambda x: F.local_response_norm(x, 5, 5 * 3e-3, 0.75, 2.0).sum())(x)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-14)


@needs_compiled
@all_operations
def test_an_ordinary_backward_pass_asks_no_reference(operation, monkeypatch):
    tensors = inputs(operation)
    monkeypatch.setattr(lrn_pool, "_reference", lambda *arguments: pytest.fail("the reference was called"))
    called(operation, tensors, "cpu").sum().backward()
    with pytest.raises(pytest.fail.Exception):
        torch.autograd.grad(called(operation, tensors, "cpu").sum(), tensors, create_graph=True)


@needs_compiled
def test_a_gradient_that_is_not_wanted_is_none():
    x, bias = values(*SHAPE), values(SHAPE[1], seed=2)
    for tensor in (x, bias):
        leaf = tensor.clone().requires_grad_()
        y = call("before", *(leaf if each is tensor else each for each in (x, bias)), "cpu")
        (first,) = torch.autograd.grad(y.square().sum(), leaf, create_graph=True)
        assert first.shape == tensor.shape and torch.autograd.grad(first.sum(), leaf)[0].abs().max() > 0


# --- dropout and the product


@needs_compiled
@every("shape", [(4, 6), (2, 4, 3, 2)])
def test_dropout(shape, monkeypatch):
    x = values(*shape, scale=1).requires_grad_()
    expected = orders(lambda x: reference.relu_dropout(x, **MASK).pow(2), [x], 3)
    assert all(torch.allclose(a[0], b[0]) for a, b in zip(orders(lambda x: dropped(x).pow(2), [x], 3), expected))
    for name in ("grad", "jacrev", "hessian", "jvp"):
        actual = TRANSFORMS[name](lambda x: dropped(x).pow(2), x.detach())
        torch.testing.assert_close(
            actual, by_loops(name, lambda x: reference.relu_dropout(x, **MASK).pow(2), x.detach())
        )
    monkeypatch.setattr(reference, "relu_dropout", lambda *arguments: pytest.fail("the reference was called"))
    dropped(x).sum().backward()


def dropped(x):
    return relu_dropout(x, kernels="cpu", **MASK)


@every("biased", [True, False])
@every("dtype", [torch.float32, torch.bfloat16])
def test_dropouts_second_formula_is_its_first(biased, dtype):
    """Triton's operator has a bias; its backward pass is computed by PyTorch where a history is wanted."""
    y = values(5, 6, scale=1).relu().to(dtype).requires_grad_()
    dy = values(5, 6, seed=3, scale=1).to(dtype).requires_grad_()

    class Context:
        saved_tensors, needs_input_grad, kernels = (y,), (True, biased), "triton"
        bias_dtype = torch.float32 if biased else None

    dx, dbias, *rest = relu_dropout_op._differentiate(Context, dy)
    assert torch.equal(dx, dy * (y > 0)) and rest == [None] * 7
    assert (dbias is None) if not biased else torch.equal(dbias, (dy * (y > 0)).float().sum(0))
    (ddy,) = torch.autograd.grad(dx.sum() + (dbias.sum() if biased else 0), dy)
    assert torch.equal(ddy, (y > 0).to(dtype) * (2 if biased else 1))


@pytest.mark.skipif(
    not torch.backends.mkldnn.is_available()
    or "cpu" not in dispatch.built()
    or not torch._C._dispatch_has_kernel_for_dispatch_key("mkldnn::_linear_pointwise", "CPU"),
    reason="needs compiled CPU kernels and a torch with oneDNN",
)
@every("biased", [True, False])
def test_the_product(biased, monkeypatch):
    monkeypatch.setattr(linear_op, "_onednn_is_faster", lambda: True)
    monkeypatch.setattr(linear_op, "LARGE", 1)
    tensors = [values(4, 6, scale=1), values(5, 6, seed=2, scale=1), *([values(5, seed=3, scale=1)] if biased else [])]
    narrow_tensors = [tensor.float().requires_grad_() for tensor in tensors]
    assert "OneDnn" in linear(*narrow_tensors).grad_fn.name()
    actual = orders(lambda *tensors: linear(*tensors).pow(2), narrow_tensors, 3)
    expected = orders(lambda *tensors: F.linear(*tensors).pow(2), [tensor.requires_grad_() for tensor in tensors], 3)
    for a, b in zip(actual, expected, strict=True):
        for mine, exact in zip(a, b, strict=True):
            torch.testing.assert_close(mine.double(), exact, rtol=1e-4, atol=1e-4 * float(exact.abs().max()))
