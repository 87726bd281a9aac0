"""The product of a fully connected layer: PyTorch's, or on a CPU oneDNN's where it is the faster one."""

import functools

import torch
import torch.nn.functional as F

from .checks import differentiated_otherwise
from .dispatch import resolve

LARGE = 2**20  # weights; of small products MKL makes the faster ones


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, kernels: str = "auto"
) -> torch.Tensor:
    """x weight^T + bias: F.linear, with its arguments, shapes and errors.

    kernels: see `resolve`; "cpu" takes oneDNN's product, as the convolutions and bfloat16 do, for large dense float32
    matrices where the processor has AVX-512. It adds in another order."""
    if (
        not torch.compiler.is_compiling()
        and resolve(kernels, x.device, "linear") == "cpu"
        and _fits_onednn(x, weight, bias)
    ):
        return _OneDnn.apply(x, weight, bias)
    return F.linear(x, weight, bias)


def _fits_onednn(x, weight, bias):
    # The operator looks at no shape, and operands whose rows lie apart (half a layer's weights) take it a thousand
    # times as long.
    return (
        _onednn_is_faster()
        and weight.numel() >= LARGE
        and x.numel() > 0
        and x.dim() == weight.dim() == 2
        and x.shape[1] == weight.shape[1]
        and (bias is None or tuple(bias.shape) == (weight.shape[0],))
        and all(
            tensor is None or tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in (x, weight, bias)
        )
        and not torch.is_autocast_enabled("cpu")
        and not differentiated_otherwise(x, weight, bias)
    )


@functools.cache
def _onednn_is_faster():
    """With AVX-512: two cores of an AMD EPYC (Zen 4) multiplied fc6 and fc7 in 149 and 69 ms a step of 128 images, with
    MKL, F.linear's library, in 186 and 81 (`train --profile`, one run each, torch 2.13.0, 2026-11-26). With AVX2
    neither was always the faster; Intel's processors were not measured.

    The operator is not public: torch.compile calls it for frozen weights.
    """
    return (
        torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkldnn.is_available()
        and torch._C._dispatch_has_kernel_for_dispatch_key("mkldnn::_linear_pointwise", "CPU")
    )


class _OneDnn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx, dy):
        (x, weight), (x_needs_grad, weight_needs_grad, bias_needs_grad) = ctx.saved_tensors, ctx.needs_input_grad
        product = F.linear if torch.is_grad_enabled() else _product  # to be differentiated in its turn: PyTorch's
        return (
            product(dy, weight.t()) if x_needs_grad else None,
            product(dy.t(), x.t()) if weight_needs_grad else None,
            dy.sum(0) if bias_needs_grad else None,
        )


def _product(a, b, bias=None):
    """a b^T + bias; b dense, or the transpose of a dense matrix."""
    return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
