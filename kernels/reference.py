"""Every operation of the network in plain PyTorch: the only definition, and the oracle of all tests.

Shapes are (N, C, H, W), of dropout also (N, F), in any memory format. float32, bfloat16 and float16 are computed in
float32 and rounded once at the end; float64 is computed in float64. The rules for ties and NaN are written here and
nowhere else:

* forward, a window that holds a NaN gives NaN (as torch.nn.functional.max_pool2d);
* backward, `ties="first"` gives a window's gradient to the first maximum in scan order (PyTorch, cuDNN); `ties="all"`
  gives it in full to every cell that equals the maximum, the rule of the 2012 source (`kLocalMaxUndo` of cuda-convnet).
  Equality is decided on the values that were compared, in float32 or float64, before they are rounded to a 16-bit
  storage type; a NaN equals nothing;
* the last window may hang over the bottom and right edges; the cells outside are ignored (2012 source,
  `layer.py:1164`).
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F

from .checks import check_maps, check_mask, check_norm, check_windows, differentiated_otherwise, one_of
from .philox import DROPOUT_STREAM, dropout_threshold, philox

BLOCK = 2**15  # values: on a CPU these stay in a cache


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
) -> torch.Tensor:
    """Bias, ReLU, local response normalisation and overlapping max-pool: (N, C, H, W) -> (N, C, H', W').

    relu: "before" = ReLU -> LRN -> pool (paper 3.5, layers 1 and 2); "after" = LRN -> pool -> ReLU (2012 source, layer
    1); "none". The other arguments as in `lrn` and `max_pool`. Raises ValueError on another `relu` or `ties`."""
    one_of("relu", relu, ("before", "after", "none"))
    v = _lrn(_add_bias(x, bias, relu == "before"), size, alpha, beta, k)
    return _pool(v, relu == "after", pool, stride, ties).to(x.dtype)


def lrn(
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    size: int = 5,
    alpha: float,
    beta: float = 0.75,
    k: float = 2.0,
    relu: Literal["before", "none"] = "before",
) -> torch.Tensor:
    """b_i = a_i / (k + alpha * sum of a_j^2 over the `size` maps around i)^beta (paper 3.3), maps outside [0, C) left
    out.

    a = relu(x + bias) for relu="before", x + bias for "none"; bias: (C,). alpha multiplies the *sum*:
    torch.nn.functional.local_response_norm divides its own alpha by size, so this alpha = a is that function's a *
    size. (N, C, H, W) -> (N, C, H, W)."""
    one_of("relu", relu, ("before", "none"))
    return _lrn(_add_bias(x, bias, relu == "before"), size, alpha, beta, k).to(x.dtype)


def max_pool(
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    relu: bool = True,
    pool: int = 3,
    stride: int = 2,
    ties: Literal["first", "all"] = "first",
) -> torch.Tensor:
    """Bias, ReLU and max-pool over pool x pool windows `stride` apart (paper 3.4): (N, C, H, W) -> (N, C, H', W').

    H' = ceil((H - pool) / stride) + 1. ReLU before or after the maximum is the same function. Raises ValueError on
    another `ties` than "first" or "all", and where H or W is smaller than the window."""
    return _pool(_add_bias(x, bias, False), relu, pool, stride, ties).to(x.dtype)


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
) -> torch.Tensor:
    """`spatial_norm`, then max-pool: the end of layer 2 in the 2012 source. (N, C, H, W) -> (N, C, H', W')."""
    return _pool(_spatial_norm(_accumulator(x), size, alpha, beta, k), False, pool, stride, ties).to(x.dtype)


def spatial_norm(x: torch.Tensor, *, size: int = 5, alpha: float, beta: float = 0.75, k: float = 1.0) -> torch.Tensor:
    """x_p / (k + alpha * sum of x_q^2 over the size x size positions q around p of the same map)^beta, cells outside
    left out.

    Layer type `rnorm` of the 2012 source (named cnorm2 in net 145), absent from the paper. alpha multiplies the sum.
    (N, C, H, W) -> (N, C, H, W). Raises ValueError, with the value named, for arguments that don't fit.
    """
    check_maps(x)
    check_norm(size, alpha, beta, k)
    return _spatial_norm(_accumulator(x), size, alpha, beta, k).to(x.dtype)


def avg_pool(x: torch.Tensor, *, pool: int = 3, stride: int = 2) -> torch.Tensor:
    """Mean over pool x pool windows `stride` apart, an overhanging window divided by the area inside (2012 source).

    (N, C, H, W) -> (N, C, H', W'). Raises ValueError, with the value named, for arguments that don't fit."""
    check_maps(x)
    check_windows(x, pool, stride)
    return F.avg_pool2d(_accumulator(x), pool, stride, ceil_mode=True).to(x.dtype)


def dropout(
    x: torch.Tensor,
    *,
    probability: float,
    seed: int,
    step: int | torch.Tensor,
    layer: int,
    tower: int,
    first_row: int = 0,
) -> torch.Tensor:
    """Classic dropout (paper 4.2): zero each value with `probability`, leave the others as they are; any shape.

    No rescaling here; the test pass multiplies by 1 - probability instead. The mask is a function of (seed, step,
    layer, tower, position in x) alone: the same on every device and after every restart. step: an int, or an int64
    tensor without dimensions on x's device, which the host does not wait for; its low 32 bits count. first_row: images
    of the minibatch before the first of x: the positions are those in the minibatch. Raises ValueError, with the value
    named, for arguments that don't fit."""
    check_mask(x, probability, seed, step, layer, tower, first_row)
    offset = first_row * x.shape[1:].numel()
    blocks = torch.arange(offset // 4, (offset + x.numel() + 3) // 4, device=x.device)  # four words a counter
    words = torch.stack(philox((blocks & 0xFFFFFFFF, step & 0xFFFFFFFF, layer, tower), (seed, DROPOUT_STREAM)), dim=1)
    keep = words.flatten()[offset % 4 :][: x.numel()].view(x.shape) >= dropout_threshold(probability)
    return x * keep


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
) -> torch.Tensor:
    """Bias, ReLU and `dropout`: relu(x + bias) * keep, (N, F) or (N, C, H, W), any order; bias: (F,) or (C,). (Paper
    3.1, 4.2.)

    probability 0 draws nothing and needs no step. Rounding to the dtype of x comes before the ReLU: the same y, and a
    value that rounds to 0 gets no gradient, so that y alone says where the gradient goes."""
    y = torch.relu(_add_bias(x, bias, False).to(x.dtype))
    mask = dict(probability=probability, seed=seed, step=step, layer=layer, tower=tower, first_row=first_row)
    return dropout(y, **mask) if probability else y


def paper_sgd_(
    parameters: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    velocities: Sequence[torch.Tensor],
    *,
    learning_rates: Sequence[float],
    momentum: float,
    weight_decays: Sequence[float],
    copies: Sequence[torch.Tensor] = (),
    sums: torch.Tensor | None = None,
) -> None:
    """The update of paper section 5, in place, for lists of tensors: v <- m v - d e w - e g; w <- w + v.

    e, d: one learning rate and weight decay a tensor. The velocity carries the learning rate, unlike torch.optim.SGD:
    after a drop the old steps coast on at their old size. A rate of 0 leaves tensor and velocity alone (2012 source,
    `weights.cu:148`). bfloat16 and float16 are computed in float32, w from the v that is not rounded yet. copies, sums:
    see `note_weights`."""
    with torch.no_grad():
        entries = enumerate(zip(parameters, gradients, velocities, learning_rates, weight_decays, strict=True))
        for number, (w, g, v, rate, decay) in entries:
            if rate == 0:
                continue
            wide_w, wide_v = (w, v) if w.dtype in (torch.float32, torch.float64) else (w.float(), v.float())
            wide_v.mul_(momentum).add_(wide_w, alpha=-decay * rate).add_(g, alpha=-rate)
            wide_w.add_(wide_v)
            if wide_w is not w:
                w.copy_(wide_w)
                v.copy_(wide_v)
            note_weights(number, w, copies, sums)


def note_weights(
    number: int, w: torch.Tensor, copies: Sequence[torch.Tensor] = (), sums: torch.Tensor | None = None
) -> None:
    """Keep of an updated weight its copy in another dtype, and its sum in float32: finite only where no weight is NaN
    or infinite.

    copies: a tensor a weight, or none. sums: (weights,) float32, or None; those of weights that are left alone are not
    written.
    """
    if copies:
        copies[number].copy_(w)
    if sums is not None:
        sums[number] = w.float().sum()


def augment(
    pictures: torch.Tensor,
    top: torch.Tensor,
    left: torch.Tensor,
    flip: torch.Tensor,
    mean: torch.Tensor,
    shift: torch.Tensor,
    scale: float = 1.0,
    *,
    crop: int,
    mean_follows_crop: bool,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.channels_last,
) -> torch.Tensor:
    """Crop, flip, minus the mean image, plus a colour shift, times a scale (paper 2, 4.1): -> (N, 3, crop, crop) in
    `dtype`.

    pictures: (N, S, S, 3) uint8; top, left: (N,) int64, flip: (N,) bool; mean: (S, S, 3); shift: (N, 3), grey levels.
    The mean is the one under the pixel (`mean_follows_crop`) or always its centre window, never flipped (2012 source,
    `convdata_jpeg.py:95`). y = ((pixel - mean) + shift) * scale in this order, in the dtype of `mean`, float32 or
    float64; rounded once at the end."""
    side, device = torch.arange(crop), pictures.device
    rows, columns = top[:, None] + side, left[:, None] + torch.where(flip[:, None], crop - 1 - side, side)
    rows, columns = rows[:, :, None].to(device), columns[:, None, :].to(device)
    offset = (mean.shape[0] - crop) // 2
    mean_pixels = mean[rows, columns] if mean_follows_crop else mean[offset : offset + crop, offset : offset + crop]
    pixels = pictures[torch.arange(len(pictures), device=device)[:, None, None], rows, columns]  # (N, crop, crop, 3)
    y = (pixels.to(mean.dtype) - mean_pixels + shift.to(device)[:, None, None, :]) * torch.tensor(
        scale, dtype=mean.dtype, device=device
    )
    return y.permute(0, 3, 1, 2).to(dtype).contiguous(memory_format=memory_format)


def _accumulator(x):
    return x if x.dtype == torch.float64 else x.float()


def _add_bias(x, bias, relu):
    a = _accumulator(x)
    if bias is not None:
        a = a + bias.to(a.dtype).view(-1, *[1] * (x.dim() - 2))
    return torch.relu(a) if relu else a


def _lrn(a, size, alpha, beta, k):
    maps, low = a.shape[1], size // 2  # the window is i - size/2 .. i - size/2 + size - 1
    squares = F.pad(a * a, (0, 0, 0, 0, low, size - 1 - low))
    return a * _inverse_power(k + alpha * sum(squares[:, j : j + maps] for j in range(size)), beta)


def _spatial_norm(a, size, alpha, beta, k):
    height, width, low, high = *a.shape[2:], size // 2, size - 1 - size // 2
    squares = F.pad(a * a, (low, high, low, high))
    rows = sum(squares[:, :, i : i + height] for i in range(size))
    return a * _inverse_power(k + alpha * sum(rows[:, :, :, j : j + width] for j in range(size)), beta)


def _inverse_power(d, beta):
    """d^-beta of positive values and its derivatives, as functions of the value alone, wherever in a tensor it lies.

    torch.pow on a CPU is none: its vectors and the scalar code for what is left over differ in the last place, so that
    equal cells would not stay equal, and ties="all" would depend on their position. Here are only operations that
    IEEE 754 rounds in one way, in float64, rounded to the dtype of d at the end. torch.compile has its own power.
    """
    if torch.compiler.is_compiling():
        return d.pow(-beta)
    if differentiated_otherwise(d):
        constant = d.detach().clamp(max=torch.finfo(d.dtype).max)  # infinite d: no NaN
        return _rounded_inverse_power(constant, beta) * (d / constant).pow(-beta)  # the same function; 1^-beta is 1
    return _InversePower.apply(d, beta)


class _InversePower(torch.autograd.Function):
    @staticmethod
    def forward(ctx, d, beta):
        y = _rounded_inverse_power(d, beta)
        ctx.save_for_backward(d, y)
        ctx.beta = beta
        return y

    @staticmethod
    def backward(ctx, dy):
        d, y = ctx.saved_tensors
        return dy * (-ctx.beta * (y / d)), None  # 0 where d is infinite


def _rounded_inverse_power(d, beta):
    blocks = d.reshape(-1).split(BLOCK if d.device.type == "cpu" else max(1, d.numel()))
    return torch.cat([_inverse_power_of_block(block, float(beta)) for block in blocks]).view(d.shape)


def _inverse_power_of_block(d, beta):
    """d^-beta by products of d and of its roots, d^(1/2), d^(1/4), ...: as many as beta has binary digits."""
    base, (fraction, integer) = d.double(), math.modf(beta)
    product, factor, integer = torch.ones_like(base), base, int(integer)
    while integer:
        product = product * factor if integer & 1 else product
        factor, integer = factor * factor, integer >> 1
    factor = base
    while fraction:
        factor, fraction = _root(factor), 2 * fraction
        if fraction >= 1:
            product, fraction = product * factor, fraction - 1
    y = product.reciprocal_()
    return (torch.where(d.isinf(), 0.0, y) if beta else y).to(d.dtype)


def _root(d):
    """The square root of float64 values above 0 to their last place or two, by Heron's rule; torch.sqrt may be a
    library's, which IEEE 754 does not bind."""
    root = ((d.view(torch.int64) >> 1) + (1023 << 51)).view(torch.float64)  # half the exponent: 6 % too large at most
    for _ in range(4):  # 2e-3, 2e-6, 2e-12, 1e-24
        root = (d / root).add_(root).mul_(0.5)
    return root


def _pool(a, relu, pool, stride, ties):
    one_of("ties", ties, ("first", "all"))
    check_windows(a, pool, stride)
    y = _max_pool_all_ties(a, pool, stride) if ties == "all" else F.max_pool2d(a, pool, stride, ceil_mode=True)
    return torch.relu(y) if relu else y


def _max_pool_all_ties(a, pool, stride):
    if torch.compiler.is_compiling() or not differentiated_otherwise(a):
        return _MaxPoolAllTies.apply(a, pool, stride)
    values = a.detach()
    y = F.max_pool2d(values, pool, stride, ceil_mode=True)
    change = torch.where(values.isfinite(), a - values, 0)  # zeros, with a's derivatives
    changes = 0
    for window, inside in _cells(a, y, pool, stride):
        share = torch.where(values[window][inside] == y[inside], change[window][inside], 0)
        changes = changes + F.pad(share, (0, y.shape[3] - share.shape[3], 0, y.shape[2] - share.shape[2]))
    return y + changes


class _MaxPoolAllTies(torch.autograd.Function):
    """Max-pool whose backward pass gives every tied maximum the whole gradient of its window."""

    @staticmethod
    def forward(ctx, a, pool, stride):
        y = F.max_pool2d(a, pool, stride, ceil_mode=True)
        ctx.save_for_backward(a, y)
        ctx.pool, ctx.stride = pool, stride
        return y

    @staticmethod
    def backward(ctx, dy):
        a, y = (tensor.detach() for tensor in ctx.saved_tensors)  # which cells are equal has no derivative
        da = torch.zeros_like(a)
        for window, inside in _cells(a, y, ctx.pool, ctx.stride):
            da[window][inside] += torch.where(a[window][inside] == y[inside], dy[inside], 0)
        return da, None, None


def _cells(a, y, pool, stride):
    """(places of cell (i, j) of every window in a, which of them and of y are there) of each cell of a window."""
    for i in range(pool):
        for j in range(pool):
            # One window a column; an overhanging window may not have this cell.
            window = (slice(None), slice(None), slice(i, None, stride), slice(j, None, stride))
            rows, columns = (min(s, o) for s, o in zip(a[window].shape[2:], y.shape[2:]))
            yield window, (slice(None), slice(None), slice(rows), slice(columns))
