"""Bias, ReLU, local response normalisation and max-pool as one torch operator: arguments, who computes, autograd.

The kernels are in `lrn_pool_*_triton.py`, `csrc/cuda/lrn_pool.cu` and `csrc/cpu/lrn_pool.h`.

Every map operation is one case of `alexnet_mp::lrn_pool`: bias, ReLU, a norm or none, max-pool or none. It is a torch
operator with a fake and an autograd implementation, so torch.compile and autocast know it, and it launches on the
current stream. With

    v = x + bias,  a = relu(v) or v,  d_c = k + alpha * (sum of a_j^2 over the window of c),  u = a d^-beta,
    y = max over each window of u

the gradient g of u is what the pool's windows give to their maxima, and

    da_c = g_c d_c^-beta - 2 alpha beta a_c (sum of g_j a_j d_j^(-beta-1) over the j whose window holds c),
    dbias = sum of dx,

dx being da where no ReLU stopped it. Kept for the backward pass: x, the bias, and one byte an output, the place of the
maximum in its window (with ties "all" nothing: the maxima are computed again). A max-pool with neither a norm nor ties
"all" doesn't read x again; it keeps it for gradients of gradients, which are the reference's and begin with x.
`reference.py` has the rules for ties and NaN, and computes itself what is to be differentiated twice, in forward mode,
or by torch.func."""

from typing import Literal

import torch

from . import reference
from .checks import (
    FLOAT_DTYPES,
    at_least,
    check_bias,
    check_maps,
    check_norm,
    check_windows,
    differentiated_otherwise,
    memory_format,
    one_of,
)
from .dispatch import compiled, description, resolve

NORMS, RELUS, TIES = ("none", "lrn", "spatial"), ("none", "before", "after"), ("first", "all")
# What a GPU's approximations may add to d^(-3/4), relative (PTX ISA). CUDA: 3/2 of 2^-22.9 from d^(-1/2), and 2^-23
# from its root; a gradient's d^(-7/4) has that root twice more, squared. Triton: 2^-22.9 from d^(-3/4), and half of
# 2^-23 from the root before; a gradient's division adds two units, 2^-22.
CUDA_APPROXIMATION = 1.5 * 2**-22.9 + 2**-23
CUDA_SQUARE = 2 * 2**-22.9
TRITON_APPROXIMATION = 2**-22.9 + 2**-24
TRITON_DIVISION = 2**-22
# So that the place in a window, and "nowhere", fit in a byte. Triton compiles a kernel in which every cell of the
# window is code of its own: minutes for a large one.
LARGEST_POOL = {"cpu": 15, "cuda": 7, "triton": 7}


def approximation(implementation: str, device: torch.device | str) -> tuple[float, float]:
    """What an implementation's approximations may add to (an output, a gradient) of the norms, relative to the largest
    value: 0 but on a GPU. Of CUDA the larger of both, since it leaves to Triton what it can't compute."""
    if torch.device(device).type != "cuda":
        return 0.0, 0.0
    triton = TRITON_APPROXIMATION, TRITON_APPROXIMATION + TRITON_DIVISION
    cuda = tuple(map(max, (CUDA_APPROXIMATION, CUDA_APPROXIMATION + CUDA_SQUARE), triton))
    return {"cuda": cuda, "triton": triton}.get(implementation, (0.0, 0.0))


def lrn_max_pool(
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    size: int = 5,
    alpha: float,
    beta: float = 0.75,
    k: float = 2.0,
    relu: Literal["before", "after", "none"] = "before",
    pool: int = 3,
    stride: int = 2,
    ties: Literal["first", "all"] = "first",
    kernels: str = "auto",
) -> torch.Tensor:
    """Bias, ReLU, local response normalisation and overlapping max-pool: (N, C, H, W) -> (N, C, H', W').

    With a = relu(x + bias): y = maximum over each window of a_i / (k + alpha * sum of a_j^2 over the `size` maps around
    i)^beta (paper 3.3, 3.4); the gradients are at the top of this file.

    x: float32, bfloat16, float16 or (not on a GPU) float64, in any memory format; bias: (C,), of x's dtype, or float32
    beside 16 bits. alpha multiplies the *sum* of squares over `size` maps: torch.nn.functional.local_response_norm's
    alpha is size times this one. relu: "before" = ReLU -> LRN -> pool (paper 3.5, layers 1 and 2); "after" = LRN ->
    pool -> ReLU (2012 source, layer 1); "none". H' = ceil((H - pool) / stride) + 1. ties: who gets the gradient of tied
    maxima, "first" (PyTorch) or "all" (2012 source). kernels: who computes, see `resolve`. The output is channels_last
    where x is. Raises ValueError, with the value named, for arguments that fit no kernel."""
    at_least("pool", pool, 1)
    return _lrn_pool(x, bias, "lrn", size, alpha, beta, k, relu, pool, stride, ties, kernels)


def lrn(
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    size: int = 5,
    alpha: float,
    beta: float = 0.75,
    k: float = 2.0,
    relu: Literal["before", "none"] = "before",
    kernels: str = "auto",
) -> torch.Tensor:
    """Bias, ReLU ("before" or "none") and local response normalisation alone; arguments as in `lrn_max_pool`. (N, C, H,
    W)."""
    one_of("relu", relu, ("before", "none"))
    return _lrn_pool(x, bias, "lrn", size, alpha, beta, k, relu, 0, 1, "first", kernels)


def max_pool(
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    relu: bool = True,
    pool: int = 3,
    stride: int = 2,
    ties: Literal["first", "all"] = "first",
    kernels: str = "auto",
) -> torch.Tensor:
    """Bias, ReLU and max-pool (layer 5); arguments as in `lrn_max_pool`. (N, C, H, W) -> (N, C, H', W')."""
    at_least("pool", pool, 1)
    return _lrn_pool(x, bias, "none", 1, 0.0, 0.75, 1.0, "after" if relu else "none", pool, stride, ties, kernels)


def spatial_norm_max_pool(
    x: torch.Tensor,
    *,
    size: int = 5,
    alpha: float,
    beta: float = 0.75,
    k: float = 1.0,
    pool: int = 3,
    stride: int = 2,
    ties: Literal["first", "all"] = "first",
    kernels: str = "auto",
) -> torch.Tensor:
    """The norm over size x size positions of a map (2012 source, cnorm2), then max-pool. (N, C, H, W) -> (N, C, H',
    W')."""
    at_least("pool", pool, 1)
    return _lrn_pool(x, None, "spatial", size, alpha, beta, k, "none", pool, stride, ties, kernels)


def _lrn_pool(x, bias, norm, size, alpha, beta, k, relu, pool, stride, ties, kernels):
    function = {"lrn": "lrn_max_pool" if pool else "lrn", "none": "max_pool", "spatial": "spatial_norm_max_pool"}[norm]
    name = resolve(kernels, x.device, function)
    if differentiated_otherwise(x, bias):
        name = "reference"
    if kernels == "auto" and (pool > LARGEST_POOL.get(name, pool) or (x.dtype == torch.float64 and x.is_cuda)):
        name = "reference"
    _check(x, bias, norm, size, alpha, beta, k, relu, pool, stride, ties, name)
    if name == "reference":
        return _reference(x, bias, norm, size, alpha, beta, k, relu, pool, stride, ties)
    if not (torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))):
        ties = "all"  # the same output, and no argmax to write
    bias = bias if bias is None else bias.contiguous()
    return torch.ops.alexnet_mp.lrn_pool(x, bias, norm, size, alpha, beta, k, relu, pool, stride, ties, name)[0]


def _check(x, bias, norm, size, alpha, beta, k, relu, pool, stride, ties, kernels):
    """Raise ValueError, naming the value, for what the kernels can't compute."""
    one_of("relu", relu, RELUS)
    one_of("ties", ties, TIES)
    check_maps(x)
    if x.dtype not in FLOAT_DTYPES or (x.dtype == torch.float64 and kernels in ("cuda", "triton")):
        raise ValueError(
            f"x is {x.dtype}; {kernels} kernels take float32, bfloat16 and float16"
            + ("" if kernels in ("cuda", "triton") else ", and float64")
        )
    check_bias(x, bias)
    check_norm(size, alpha, beta, k)
    if pool:
        check_windows(x, pool, stride)
    if pool > LARGEST_POOL.get(kernels, pool):
        raise ValueError(
            f"pool is {pool}; {kernels} kernels take at most {LARGEST_POOL[kernels]}, kernels='reference' any"
        )
    if pool and stride > pool:
        raise ValueError(f"stride is {stride}, larger than the {pool}x{pool} pooling window")


def _reference(x, bias, norm, size, alpha, beta, k, relu, pool, stride, ties):
    constants = dict(size=size, alpha=alpha, beta=beta, k=k)
    if norm == "none":
        return reference.max_pool(x, bias, relu=relu == "after", pool=pool, stride=stride, ties=ties)
    if norm == "spatial":
        return reference.spatial_norm_max_pool(x, **constants, pool=pool, stride=stride, ties=ties)
    if pool == 0:
        return reference.lrn(x, bias, relu=relu, **constants)
    return reference.lrn_max_pool(x, bias, relu=relu, **constants, pool=pool, stride=stride, ties=ties)


# The operators. Python's part: outputs, memory formats, the choice of the CUDA kernels or Triton; the arithmetic is
# elsewhere.

_ARGUMENTS = (
    "str norm, int size, float alpha, float beta, float k, str relu, int pool, int stride, str ties, str kernels"
)


def _outputs(x, pool, stride, ties):
    """y and argmax, not yet written; argmax is empty where the backward pass does without."""
    sides = [-(-(side - pool) // stride) + 1 if pool else side for side in x.shape[2:]]
    y = torch.empty((*x.shape[:2], *sides), dtype=x.dtype, device=x.device, memory_format=memory_format(x))
    has_argmax = pool > 0 and ties == "first"
    return y, torch.empty_like(y, dtype=torch.uint8) if has_argmax else x.new_empty(0, dtype=torch.uint8)


def _in_triton(kernels, tensors, norm, size, beta, pool, stride, all_ties=False):
    """Whether Triton computes this case: also with kernels "cuda", whose code is for the paper's window, exponent and
    pool alone.

    tensors: those that are read; the CUDA kernels take 16 bytes at a time, of channels_last maps.
    """
    x = tensors[-1]
    tuned = (
        (norm == "none" or (norm == "lrn" and size == 5 and beta == 0.75))
        and (pool, stride) == (3, 2)
        and not all_ties
        and 0 < x.shape[1] <= 1024
        and x.shape[1] % 8 == 0
        and x[0:1].numel() < 2**31
        and x.numel() < 2**31 * x.shape[1]
    )
    return kernels == "triton" or (
        kernels == "cuda"
        and not (
            tuned
            and all(
                tensor.is_contiguous(memory_format=torch.channels_last) and tensor.data_ptr() % 16 == 0
                for tensor in tensors
            )
        )
    )


@torch.library.custom_op(
    "alexnet_mp::lrn_pool", mutates_args=(), schema=f"(Tensor x, Tensor? bias, {_ARGUMENTS}) -> (Tensor, Tensor)"
)
def _forward(x, bias, norm, size, alpha, beta, k, relu, pool, stride, ties, kernels):
    one_of("kernels", kernels, ("cuda", "triton", "cpu"))
    y, argmax = _outputs(x, pool, stride, ties)
    if y.numel() == 0:
        return y, argmax
    if _in_triton(kernels, [x], norm, size, beta, pool, stride):
        from . import lrn_pool_forward_triton

        lrn_pool_forward_triton.forward(
            x,
            bias,
            y,
            argmax,
            norm=norm,
            size=size,
            alpha=alpha,
            beta=beta,
            k=k,
            relu=relu,
            pool=pool,
            stride=stride,
            ties=ties,
        )
    else:
        if (library := compiled()) is None:  # a program of torch.export, made elsewhere
            raise RuntimeError(description())
        library.lrn_pool_forward(
            x.contiguous(memory_format=memory_format(x)),
            bias,
            y,
            argmax,
            NORMS.index(norm),
            size,
            alpha,
            beta,
            k,
            RELUS.index(relu),
            pool,
            stride,
            TIES.index("first"),
        )
    return y, argmax


@_forward.register_fake
def _(x, bias, norm, size, alpha, beta, k, relu, pool, stride, ties, kernels):
    return _outputs(x, pool, stride, ties)


@torch.library.custom_op(
    "alexnet_mp::lrn_pool_backward",
    mutates_args=(),
    schema=f"(Tensor dy, Tensor x, Tensor? bias, Tensor argmax, {_ARGUMENTS}) -> (Tensor, Tensor)",
)
def _backward(dy, x, bias, argmax, norm, size, alpha, beta, k, relu, pool, stride, ties, kernels):
    dx, dbias = _gradients(x, bias)
    if dx.numel() == 0:
        return dx, dbias.zero_()
    if kernels != "triton":
        dy, x = (tensor.contiguous(memory_format=memory_format(dx)) for tensor in (dy, x))
    if _in_triton(kernels, [dy, x], norm, size, beta, pool, stride, all_ties=ties == "all"):
        from . import lrn_pool_backward_triton

        sums = lrn_pool_backward_triton.backward(
            dy,
            x,
            bias,
            argmax,
            dx,
            norm=norm,
            size=size,
            alpha=alpha,
            beta=beta,
            k=k,
            relu=relu,
            pool=pool,
            stride=stride,
            ties=ties,
        )
        return dx, dbias if sums is None else sums
    if argmax.numel():  # a hook on saved tensors may have changed its order
        argmax = argmax.contiguous(memory_format=memory_format(dx))
    compiled().lrn_pool_backward(
        dy,
        x,
        bias,
        argmax,
        dx,
        dbias,
        NORMS.index(norm),
        size,
        alpha,
        beta,
        k,
        RELUS.index(relu),
        pool,
        stride,
        TIES.index(ties),
    )
    return dx, dbias


@_backward.register_fake
def _(dy, x, bias, argmax, norm, size, alpha, beta, k, relu, pool, stride, ties, kernels):
    return _gradients(x, bias)


def _gradients(x, bias):
    """dx and dbias, not yet written; dbias is empty without a bias."""
    dbias = x.new_empty(
        0 if bias is None else x.shape[1], dtype=torch.float64 if x.dtype == torch.float64 else torch.float32
    )
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x)), dbias


def _save(ctx, inputs, output):
    x, bias, *ctx.arguments = inputs
    ctx.save_for_backward(x, bias, output[1])


def _differentiate(ctx, dy, _):
    x, bias, argmax = ctx.saved_tensors
    if torch.is_grad_enabled():  # the gradients are to be differentiated in their turn
        return *_differentiable_gradients(ctx, dy, x, bias), *[None] * len(ctx.arguments)
    dx, dbias = torch.ops.alexnet_mp.lrn_pool_backward(dy, x, bias, argmax, *ctx.arguments)
    return dx, None if bias is None else dbias.to(bias.dtype), *[None] * len(ctx.arguments)


def _differentiable_gradients(ctx, dy, x, bias):
    """dx and dbias with a history, by the reference; None where they aren't wanted."""
    inputs = [None if tensor is None else tensor.view_as(tensor) for tensor in (x, bias)]  # dy may depend on x, too
    y = _reference(*inputs, *ctx.arguments[:-1])
    needed_inputs = [tensor for tensor, needed in zip(inputs, ctx.needs_input_grad) if needed]
    gradients = iter(torch.autograd.grad(y, needed_inputs, dy, create_graph=True))
    return [next(gradients) if needed else None for needed in ctx.needs_input_grad[:2]]


_forward.register_autograd(_differentiate, setup_context=_save)
