"""Bias, ReLU and dropout as a torch operator: arguments, who computes, autograd.

The kernels are in `relu_dropout_triton.py` and, for a CPU, in `csrc/cpu/relu_dropout.h`. Kept for the backward pass: y
alone. Where it is not positive, the ReLU or the mask stopped the value, and stops the gradient."""

import torch

from . import reference
from .checks import FLOAT_DTYPES, check_bias, check_mask, differentiated_otherwise, memory_format
from .dispatch import compiled, resolve
from .philox import DROPOUT_STREAM, dropout_threshold


def relu_dropout(
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    probability: float = 0.0,
    seed: int = 0,
    step: int | torch.Tensor | None = None,
    layer: int = 0,
    tower: int = 0,
    first_row: int = 0,
    kernels: str = "auto",
) -> torch.Tensor:
    """Bias, ReLU and classic dropout (paper 3.1, 4.2) in one pass: (N, F) -> (N, F), (N, C, H, W) -> (N, C, H, W).

    y = relu(x + bias) * keep, computed in float32 and rounded once; keep is the mask of `reference.dropout`, zero with
    `probability` and a function of (seed, step, layer, tower, position in x) alone. No rescaling. first_row: images of
    the minibatch before the first of x, in which the positions are counted on.

    x: float32, bfloat16, float16, or float64, which on a GPU the reference computes; channels_last stays so, other
    orders come out contiguous. bias: (F,) or (C,), of x's dtype, or float32 beside 16 bits. probability: in [0, 1); 0
    draws nothing and needs no step. seed, layer, tower: ints in [0, 2^32). step: an int, or an int64 tensor without
    dimensions on x's device, which is read by the device: a CUDA graph may count it up. Its low 32 bits count. kernels:
    see `resolve`; "cuda" is the Triton kernel here, "cpu" has one for dropout without a bias in (N, F) or NCHW, and
    leaves the rest to the reference. The gradient: dy where not y <= 0, else 0, so where y is NaN dy. (Plain autograd,
    in the reference, gives a NaN that was dropped 0.) The bias gets its sum, added up in float32, in the same order
    every time. Raises ValueError, with the value named, for arguments that don't fit."""
    name = resolve(kernels, x.device, "relu_dropout")
    _check(x, bias, probability, seed, step, layer, tower, first_row)
    support = {"triton": x.dtype != torch.float64, "cpu": probability > 0 and bias is None and x.is_contiguous()}
    if not support.get(name) or differentiated_otherwise(x, bias):
        mask = dict(probability=probability, seed=seed, step=step, layer=layer, tower=tower, first_row=first_row)
        return reference.relu_dropout(x, bias, **mask)
    if probability == 0:
        step = None
    elif not isinstance(step, torch.Tensor):
        # a fill: a copy from the host would wait
        step = torch.full((), step & 0xFFFFFFFF, dtype=torch.int64, device=x.device)
    return torch.ops.alexnet_mp.relu_dropout(x, bias, step, float(probability), seed, layer, tower, first_row, name)


def _check(x, bias, probability, seed, step, layer, tower, first_row):
    """Raise ValueError, naming the value, for what does not fit."""
    if x.dim() not in (2, 4):
        raise ValueError(f"x has the shape {tuple(x.shape)}; it must be (N, F) or (N, C, H, W)")
    if x.dtype not in FLOAT_DTYPES:
        raise ValueError(f"x is {x.dtype}; it must be float32, bfloat16, float16 or float64")
    check_bias(x, bias)
    check_mask(x, probability, seed, step, layer, tower, first_row)


@torch.library.custom_op(
    "alexnet_mp::relu_dropout",
    mutates_args=(),
    schema="(Tensor x, Tensor? bias, Tensor? step, float probability, int seed, int layer, int tower, "
    "int first_row, str kernels) -> Tensor",
)
def _forward(x, bias, step, probability, seed, layer, tower, first_row, kernels):
    y = _dense_like(x)
    if kernels == "cpu":
        offset = first_row * x.shape[1:].numel()
        compiled().relu_dropout(x, step, dropout_threshold(probability), seed, DROPOUT_STREAM, layer, tower, offset, y)
    elif y.numel():
        from . import relu_dropout_triton

        relu_dropout_triton.forward(
            x.contiguous(memory_format=memory_format(x)),
            bias if bias is None else bias.contiguous(),
            step,
            y,
            probability=probability,
            seed=seed,
            layer=layer,
            tower=tower,
            first_row=first_row,
        )
    return y


@_forward.register_fake
def _(x, bias, step, probability, seed, layer, tower, first_row, kernels):
    return _dense_like(x)


@torch.library.custom_op(
    "alexnet_mp::relu_dropout_backward",
    mutates_args=(),
    schema="(Tensor dy, Tensor y, bool sums, str kernels) -> (Tensor, Tensor)",
)
def _backward(dy, y, sums, kernels):
    dx, dbias = _gradients(y, sums)
    if kernels == "cpu":
        return torch.ops.aten.threshold_backward.grad_input(dy, y, 0, grad_input=dx), dbias
    if dx.numel() == 0:
        return dx, dbias.zero_()
    from . import relu_dropout_triton

    dy, y = (tensor.contiguous(memory_format=memory_format(dx)) for tensor in (dy, y))
    total = relu_dropout_triton.backward(dy, y, dx, sums)
    return dx, total if sums else dbias


@_backward.register_fake
def _(dy, y, sums, kernels):
    return _gradients(y, sums)


def _gradients(y, sums):
    """dx and dbias, not yet written; dbias is empty unless `sums`."""
    return _dense_like(y), y.new_empty(y.shape[1] if sums else 0, dtype=torch.float32)


def _dense_like(x):
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


def _save(ctx, inputs, output):
    ctx.save_for_backward(output)
    ctx.bias_dtype, ctx.kernels = None if inputs[1] is None else inputs[1].dtype, inputs[-1]


def _differentiate(ctx, dy):
    (y,) = ctx.saved_tensors
    bias_needs_grad = ctx.bias_dtype is not None and ctx.needs_input_grad[1]
    if torch.is_grad_enabled():  # the gradients are to be differentiated in their turn
        dx = torch.where(y <= 0, 0, dy)
        dims = [dim for dim in range(dx.dim()) if dim != 1]
        return dx, dx.sum(dims, dtype=torch.float32).to(ctx.bias_dtype) if bias_needs_grad else None, *[None] * 7
    dx, dbias = torch.ops.alexnet_mp.relu_dropout_backward(dy, y, bias_needs_grad, ctx.kernels)
    return dx, dbias.to(ctx.bias_dtype) if bias_needs_grad else None, *[None] * 7


_forward.register_autograd(_differentiate, setup_context=_save)
