"""The product of a fully connected layer, by oneDNN or by PyTorch's choice of library. A GPU's is always PyTorch's."""
import functools

import torch
import torch.nn.functional as F

from .choice import has_tangent, resolve


def linear(x, weight, bias=None, *, kernels="auto"):
    """x weight^T + bias: (N, I) -> (N, O); weight: (O, I), bias: (O,), all of one dtype, in any memory order.

    kernels: see `resolve`; "cpu" takes for float32 oneDNN's product, which the convolutions and bfloat16 have anyway, where it is the
    faster one. All else, and "reference", is F.linear.
    """
    if (resolve(kernels, x.device) == "cpu" and x.dtype == weight.dtype == torch.float32 and x.numel() and weight.numel()
            and _onednn_is_faster() and not torch.is_autocast_enabled("cpu") and not any(map(has_tangent, (x, weight, bias)))):
        return _OneDnn.apply(x, weight, bias)
    return F.linear(x, weight, bias)


@functools.cache
def _onednn_is_faster():
    """With AVX-512, where MKL, F.linear's library, reaches 65 to 85 % of its speed on an AMD EPYC of 2022. With AVX2 MKL is as fast.

    The operator is the one that torch.compile calls; PyTorch has none that is public.
    """
    return (torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.backends.mkldnn.is_available()
            and torch._C._dispatch_has_kernel_for_dispatch_key("mkldnn::_linear_pointwise", "CPU"))


_onednn_is_faster._dynamo_marked_constant = True


class _OneDnn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        (x, weight), (x_wanted, weight_wanted, bias_wanted) = ctx.saved_tensors, ctx.needs_input_grad
        return (_product(dy, weight.t()) if x_wanted else None, _product(dy.t(), x.t()) if weight_wanted else None,
                dy.sum(0) if bias_wanted else None)


def _product(a, b, bias=None):
    """a b^T + bias."""
    return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
