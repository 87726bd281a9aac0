"""The public operations as torch operators; `choice.py` says which implementation computes, `relu_dropout_op.py` has one more.

Every map operation is one case of `alexnet_mp::lrn_pool`: bias, ReLU, a norm or none, max-pool or none. It is a torch operator with a
fake and an autograd implementation, so torch.compile and autocast know it, and it launches on the current stream. With

    v = x + bias,  a = relu(v) or v,  d_c = k + alpha * (sum of a_j^2 over the window of c),  u = a d^-beta,  y = max over each window of u

the gradient g of u is what the pool's windows give to their maxima, and

    da_c = g_c d_c^-beta - 2 alpha beta a_c (sum of g_j a_j d_j^(-beta-1) over the j whose window holds c),  dbias = sum of dx,

dx being da where no ReLU stopped it. Kept for the backward pass: x, the bias, and one byte an output, the place of the maximum in
its window (with ties "all" nothing: the maxima are computed again). `reference.py` has the rules for ties and NaN.
"""
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from . import reference
from .choice import (CHOICES, STORAGE, at_least, built, check_bias, compiled, describe, description, has_tangent,  # noqa: F401
                     leave_out, memory_format, one_of, resolve, used)
from .linear_op import linear  # noqa: F401
from .reference import avg_pool, dropout, spatial_norm  # noqa: F401  (plain PyTorch on every device)
from .relu_dropout_op import relu_dropout  # noqa: F401

SIXTEEN_BITS = (torch.bfloat16, torch.float16)
NORMS, RELUS, TIES = ("none", "lrn", "spatial"), ("none", "before", "after"), ("first", "all")
# So that the place in a window, and "nowhere", fit in a byte. Triton compiles a kernel in which every cell of the window is code of
# its own: minutes for a large one.
LARGEST_POOL = {"cpu": 15, "cuda": 7, "triton": 7}
_table_owner = ContextVar("table_owner", default=None)


def lrn_max_pool(x, bias=None, *, size=5, alpha, beta=0.75, k=2.0, relu="before", pool=3, stride=2, ties="first", kernels="auto"):
    """Bias, ReLU, local response normalisation and overlapping max-pool: (N, C, H, W) -> (N, C, H', W').

    With a = relu(x + bias): y = maximum over each window of a_i / (k + alpha * sum of a_j^2 over the `size` maps around i)^beta
    (paper 3.3, 3.4); the gradients are at the top of this file.

    x: float32, bfloat16, float16 or (not on a GPU) float64, in any memory format; bias: (C,), of x's dtype, or float32 beside 16 bits.
    alpha multiplies the *sum* of squares over `size` maps: torch.nn.functional.local_response_norm's alpha is size times this one.
    relu: "before" = ReLU -> LRN -> pool (paper 3.5, layers 1 and 2); "after" = LRN -> pool -> ReLU (2012 source, layer 1); "none".
    H' = ceil((H - pool) / stride) + 1. ties: who gets the gradient of tied maxima, "first" (PyTorch) or "all" (2012 source).
    kernels: who computes, see `resolve`. The output is channels_last where x is.
    Raises ValueError, with the value named, for arguments that fit no kernel.
    """
    at_least("pool", pool, 1)
    return _lrn_pool(x, bias, "lrn", size, alpha, beta, k, relu, pool, stride, ties, kernels)


def lrn(x, bias=None, *, size=5, alpha, beta=0.75, k=2.0, relu="before", kernels="auto"):
    """Bias, ReLU ("before" or "none") and local response normalisation alone; arguments as in `lrn_max_pool`. (N, C, H, W)."""
    one_of("relu", relu, ("before", "none"))
    return _lrn_pool(x, bias, "lrn", size, alpha, beta, k, relu, 0, 1, "first", kernels)


def max_pool(x, bias=None, *, relu=True, pool=3, stride=2, ties="first", kernels="auto"):
    """Bias, ReLU and max-pool (layer 5); arguments as in `lrn_max_pool`. (N, C, H, W) -> (N, C, H', W')."""
    at_least("pool", pool, 1)
    return _lrn_pool(x, bias, "none", 1, 0.0, 0.75, 1.0, "after" if relu else "none", pool, stride, ties, kernels)


def spatial_norm_max_pool(x, *, size=5, alpha, beta=0.75, k=1.0, pool=3, stride=2, ties="first", kernels="auto"):
    """The norm over size x size positions of a map (2012 source, cnorm2), then max-pool. (N, C, H, W) -> (N, C, H', W')."""
    at_least("pool", pool, 1)
    return _lrn_pool(x, None, "spatial", size, alpha, beta, k, "none", pool, stride, ties, kernels)


def paper_sgd_(parameters, gradients, velocities, *, learning_rates, momentum, weight_decays, copies=(), sums=None,
               kernels="auto"):
    """The update of paper section 5, in place, for lists of tensors on one device: v <- m v - d e w - e g; w <- w + v.

    One learning rate e and weight decay d a tensor; a rate of 0 leaves tensor and velocity alone. Lists of equal length; a tensor,
    its gradient and its velocity have one shape, dtype and device; but beside float32 a gradient may have 16 bits. On a
    GPU one launch for all tensors. In the same pass are written, of tensors that are updated: copies, none or a 16-bit
    tensor for each parameter, the next weights rounded; sums, (parameters,) float32, the sum of each, finite only where
    no weight is NaN or infinite. Raises ValueError where they don't fit.
    """
    parameters, gradients, velocities, copies = list(parameters), list(gradients), list(velocities), list(copies)
    rates, decays = [float(rate) for rate in learning_rates], [float(decay) for decay in weight_decays]
    if not len(parameters) == len(gradients) == len(velocities) == len(rates) == len(decays):
        raise ValueError(f"{len(parameters)} parameters, {len(gradients)} gradients, {len(velocities)} velocities, {len(rates)} "
                         f"learning rates and {len(decays)} weight decays; there must be as many of each")
    for number, (w, g, v) in enumerate(zip(parameters, gradients, velocities)):
        if w.dtype not in STORAGE:
            raise ValueError(f"parameter {number} is {w.dtype}; it must be float32, bfloat16, float16 or float64")
        for name, other in (("gradient", g), ("velocity", v), ("first parameter", parameters[0])):
            narrow = name == "gradient" and w.dtype == torch.float32 and other.dtype in SIXTEEN_BITS
            if other.device != w.device or (name != "first parameter" and (
                    other.shape != w.shape or not (narrow or other.dtype == w.dtype))):
                raise ValueError(f"parameter {number} is {describe(w)}, the {name} {describe(other)}")
    if copies and len(copies) != len(parameters):
        raise ValueError(f"{len(copies)} copies of {len(parameters)} parameters; there must be none, or as many")
    for number, (w, copy) in enumerate(zip(parameters, copies)):
        if (copy.shape, copy.device) != (w.shape, w.device) or copy.dtype not in SIXTEEN_BITS:
            raise ValueError(f"parameter {number} is {describe(w)}, its copy {describe(copy)}; it must have 16 bits")
    if sums is not None and (tuple(sums.shape), sums.dtype, parameters and sums.device) != (
            (len(parameters),), torch.float32, parameters and parameters[0].device):
        raise ValueError(f"sums are {describe(sums)}; "
                         f"they must be torch.float32 {(len(parameters),)} beside the parameters")
    if not parameters:
        return
    with torch.no_grad():
        torch.ops.alexnet_mp.paper_sgd_(parameters, gradients, velocities, copies, sums, rates, float(momentum), decays,
                                        resolve(kernels, parameters[0].device, "paper_sgd_"))


@contextmanager
def update_tables_in(owner):
    """What `paper_sgd_` keeps on a device for its launches is, of calls in here, kept in the dict `owner`, and looked for there.

    A CUDA graph reads it at every replay: who captures the update keeps `owner` as long as the graph, and drops both together.
    """
    before = _table_owner.set(owner)
    try:
        yield
    finally:
        _table_owner.reset(before)


def update_tables():
    """The dict given to `update_tables_in`, or None outside of it."""
    return _table_owner.get()


def augment(pictures, top, left, flip, mean, shift, scale=1.0, *, crop, mean_follows_crop, dtype=torch.float32,
            memory_format=torch.channels_last, kernels="auto"):
    """Crop, flip, minus the mean image, plus a colour shift, times a scale, in one pass: uint8 pictures -> (N, 3, crop, crop).

    y = ((pixel - mean) + shift) * scale in float32 and in this order, rounded once to `dtype`: every implementation gives the
    same bits. The mean is the one under the pixel, cropped and flipped with its picture (`mean_follows_crop`), or always its
    centre window, never flipped (2012 source). Not differentiable.

    pictures: (N, S, S, 3) uint8, contiguous; or, on a CPU, a list of N contiguous (S, S, 3), say views of a memory map. mean:
    (S, S, 3) float32 on the same device. On the host whatever the device, since they are small and checked: top, left: (N,) int64,
    pixels from the upper left corner; flip: (N,) bool; shift: (N, 3) float32, grey levels. scale: a float. dtype: float32, bfloat16
    or float16. memory_format: of the output, channels_last or contiguous. kernels: see `resolve`; "cuda" is the Triton kernel here.
    Raises ValueError, with the value named, for a crop that leaves its picture and for arguments that don't fit.
    """
    name = resolve(kernels, mean.device, "augment")
    pictures = [pictures] if isinstance(pictures, torch.Tensor) else list(pictures)
    _check_augment(pictures, top, left, flip, mean, shift, crop, dtype, memory_format)
    return torch.ops.alexnet_mp.augment(pictures, top, left, flip, mean, shift, float(scale), crop, bool(mean_follows_crop), dtype,
                                        memory_format == torch.channels_last, name)


def crops_of(top, left, flip, shift, scale, *, crop, side):
    """(N, 7) float32 on the host, what `augment_crops` needs of each crop: top, left, flip (0 or 1), shift of R, G, B,
    scale.

    The arguments are those of `augment`. Raises ValueError for a crop that leaves its picture of side x side: later
    nobody looks.
    """
    _check_draws(top, left, flip, shift)
    _check_places(top, left, crop, side)
    return _crops(top, left, flip, shift, scale)


def augment_crops(pictures, crops, mean, *, crop, mean_follows_crop, dtype, memory_format):
    """`augment` with all that it needs on the device of the pictures, so that a CUDA graph can hold it; the same bits.

    pictures: (N, S, S, 3) uint8, contiguous. crops: (N, 7) float32, of `crops_of`. mean and the rest as in `augment`;
    who computes is "auto". Raises ValueError for shapes that don't fit.
    """
    count, side = len(pictures), mean.shape[0]
    if tuple(crops.shape) != (count, 7) or crops.dtype != torch.float32 or crops.device != pictures.device:
        raise ValueError(f"crops are {describe(crops)}; with pictures {describe(pictures)} they must be torch.float32 "
                         f"{(count, 7)} there")
    if (tuple(pictures.shape), pictures.dtype, pictures.is_contiguous()) != ((count, side, side, 3), torch.uint8, True):
        raise ValueError(f"pictures are {describe(pictures)}; with a mean of {describe(mean)} they must be "
                         f"{(count, side, side, 3)} torch.uint8, contiguous")
    if resolve("auto", pictures.device, "augment") == "triton":
        from .augmentation import augment as launch
        y = _augmented(crops, mean, crop, dtype, memory_format == torch.channels_last)
        if y.numel():
            launch(pictures, crops, mean, mean_follows_crop, y)
        return y
    host = crops.cpu()
    top, left = host[:, 0].long(), host[:, 1].long()
    scale = host[0, 6].item() if count else 1.0
    return augment(pictures, top, left, host[:, 2] != 0, mean, host[:, 3:6].contiguous(), scale, crop=crop, dtype=dtype,
                   mean_follows_crop=mean_follows_crop, memory_format=memory_format)


def augments_in_graphs(device):
    """Whether a CUDA graph can hold `augment_crops` on a GPU: not where the host has to look at the crops."""
    return torch.device(device).type != "cuda" or resolve("auto", device, "augment") == "triton"


def _crops(top, left, flip, shift, scale):
    """Places are below 2^24, so nothing is rounded."""
    places = torch.stack([top, left, flip.long()], 1).float()
    return torch.cat([places, shift, torch.full((len(top), 1), scale, dtype=torch.float32)], 1)


def _check_places(top, left, crop, side):
    """Raise ValueError for a crop that leaves its picture."""
    most = side - crop
    for what, places in (("top", top), ("left", left)):
        if places.numel() == 0:
            continue
        low, high = (int(place) for place in places.aminmax())
        if low < 0 or high > most:
            raise ValueError(f"{what} is {low if low < 0 else high}; crops of {crop}x{crop} lie in pictures of "
                             f"{side}x{side} from 0 to {most}")


def _check_draws(top, left, flip, shift):
    """Raise ValueError, naming the value, for what doesn't say of each crop where it lies."""
    count = len(top)
    for what, tensor, shape, kind in (
            ("top", top, (count,), torch.int64), ("left", left, (count,), torch.int64),
            ("flip", flip, (count,), torch.bool), ("shift", shift, (count, 3), torch.float32)):
        if tuple(tensor.shape) != shape or tensor.dtype != kind or tensor.device.type != "cpu":
            raise ValueError(f"{what} is {describe(tensor)}; it must be {kind} {shape} on the host")


def _check_augment(pictures, top, left, flip, mean, shift, crop, dtype, memory_format):
    """Raise ValueError, naming the value, for what can't be augmented; whether the crops lie in their pictures is seen later."""
    side, count = mean.shape[0] if mean.dim() == 3 else 0, len(top)
    if tuple(mean.shape) != (side, side, 3) or mean.dtype != torch.float32 or not mean.is_contiguous():
        raise ValueError(f"mean is {describe(mean)}; it must be (S, S, 3) float32, contiguous")
    whole = len(pictures) == 1 and pictures[0].dim() == 4
    if not whole and (len(pictures) != count or mean.device.type == "cuda"):
        raise ValueError(f"there are {len(pictures)} pictures for {count} places in `top`; it must be one (N, S, S, 3) tensor, or "
                         "on a CPU N of (S, S, 3)")
    for picture in pictures:
        if (tuple(picture.shape) != (count, side, side, 3)[0 if whole else 1:] or picture.dtype != torch.uint8
                or picture.device != mean.device or not picture.is_contiguous()):
            raise ValueError(f"pictures are {describe(picture)}; with {count} places in `top` and a mean of {describe(mean)} "
                             f"they must be {(count, side, side, 3)} torch.uint8 on {mean.device}, contiguous")
    _check_draws(top, left, flip, shift)
    at_least("crop", crop, 1)
    if crop > side:
        raise ValueError(f"crop is {crop}, larger than the pictures of {side}x{side}")
    one_of("dtype", dtype, (torch.float32, torch.bfloat16, torch.float16))
    one_of("memory_format", memory_format, (torch.channels_last, torch.contiguous_format))


def _lrn_pool(x, bias, norm, size, alpha, beta, k, relu, pool, stride, ties, kernels):
    function = {"lrn": "lrn_max_pool" if pool else "lrn", "none": "max_pool", "spatial": "spatial_norm_max_pool"}[norm]
    name = resolve(kernels, x.device, function)
    if has_tangent(x) or has_tangent(bias):
        name = "reference"  # forward-mode differentiation is known to plain PyTorch alone
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
    if x.dim() != 4:
        raise ValueError(f"x has the shape {tuple(x.shape)}; it must be (N, C, H, W)")
    if x.dtype not in STORAGE or (x.dtype == torch.float64 and kernels in ("cuda", "triton")):
        raise ValueError(f"x is {x.dtype}; {kernels} kernels take float32, bfloat16 and float16"
                         + ("" if kernels in ("cuda", "triton") else ", and float64"))
    check_bias(x, bias)
    at_least("size", size, 1)
    at_least("stride", stride, 1)
    if not k >= torch.finfo(torch.float32).tiny:
        raise ValueError(f"k is {k!r}; it must be above 0, and no denormal number in float32")
    if not (0 <= alpha < float("inf") and 0 <= beta < float("inf")):
        raise ValueError(f"alpha is {alpha!r} and beta {beta!r}; they must be finite and not negative")
    if pool and min(x.shape[2:]) < pool:
        raise ValueError(f"maps of {x.shape[2]}x{x.shape[3]} are smaller than the {pool}x{pool} pooling window")
    if pool > LARGEST_POOL.get(kernels, pool):
        raise ValueError(f"pool is {pool}; {kernels} kernels take at most {LARGEST_POOL[kernels]}, kernels='reference' any")
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


# The operators. Python's part: outputs, memory formats, the choice of the CUDA kernels or Triton; the arithmetic is elsewhere.

_ARGUMENTS = "str norm, int size, float alpha, float beta, float k, str relu, int pool, int stride, str ties, str kernels"


def _outputs(x, pool, stride, ties):
    """y and argmax, not yet written; argmax is empty where the backward pass does without."""
    sides = [-(-(side - pool) // stride) + 1 if pool else side for side in x.shape[2:]]
    y = torch.empty((*x.shape[:2], *sides), dtype=x.dtype, device=x.device, memory_format=memory_format(x))
    saved = pool > 0 and ties == "first"
    return y, torch.empty_like(y, dtype=torch.uint8) if saved else x.new_empty(0, dtype=torch.uint8)


def _in_triton(kernels, tensors, norm, size, beta, pool, stride, all_ties=False):
    """Whether Triton computes this case: also with kernels "cuda", whose code is for the paper's window, exponent and pool alone.

    tensors: those that are read; the CUDA kernels take 16 bytes at a time, of channels_last maps.
    """
    x = tensors[-1]
    tuned = ((norm == "none" or (norm == "lrn" and size == 5 and beta == 0.75)) and (pool, stride) == (3, 2) and not all_ties
             and 0 < x.shape[1] <= 1024 and x.shape[1] % 8 == 0 and x[0:1].numel() < 2**31 and x.numel() < 2**31 * x.shape[1])
    return kernels == "triton" or (kernels == "cuda" and not (tuned and all(
        tensor.is_contiguous(memory_format=torch.channels_last) and tensor.data_ptr() % 16 == 0 for tensor in tensors)))


@torch.library.custom_op("alexnet_mp::lrn_pool", mutates_args=(), schema=f"(Tensor x, Tensor? bias, {_ARGUMENTS}) -> (Tensor, Tensor)")
def _forward(x, bias, norm, size, alpha, beta, k, relu, pool, stride, ties, kernels):
    one_of("kernels", kernels, ("cuda", "triton", "cpu"))
    y, argmax = _outputs(x, pool, stride, ties)
    if y.numel() == 0:
        return y, argmax
    if _in_triton(kernels, [x], norm, size, beta, pool, stride):
        from . import lrn_pool
        lrn_pool.forward(x, bias, y, argmax, norm=norm, size=size, alpha=alpha, beta=beta, k=k, relu=relu, pool=pool, stride=stride,
                         ties=ties)
    else:
        compiled().lrn_pool_forward(x.contiguous(memory_format=memory_format(x)), bias, y, argmax, NORMS.index(norm), size, alpha,
                                    beta, k, RELUS.index(relu), pool, stride, TIES.index("first"))
    return y, argmax


@_forward.register_fake
def _(x, bias, norm, size, alpha, beta, k, relu, pool, stride, ties, kernels):
    return _outputs(x, pool, stride, ties)


@torch.library.custom_op("alexnet_mp::lrn_pool_backward", mutates_args=(),
                         schema=f"(Tensor dy, Tensor x, Tensor? bias, Tensor argmax, {_ARGUMENTS}) -> (Tensor, Tensor)")
def _backward(dy, x, bias, argmax, norm, size, alpha, beta, k, relu, pool, stride, ties, kernels):
    dx, dbias = _gradients(x, bias)
    if dx.numel() == 0:
        return dx, dbias.zero_()
    if kernels != "triton":
        dy, x = (tensor.contiguous(memory_format=memory_format(dx)) for tensor in (dy, x))
    if _in_triton(kernels, [dy, x], norm, size, beta, pool, stride, all_ties=ties == "all"):
        from . import lrn_pool
        sums = lrn_pool.backward(dy, x, bias, argmax, dx, norm=norm, size=size, alpha=alpha, beta=beta, k=k, relu=relu, pool=pool,
                                 stride=stride, ties=ties)
        return dx, dbias if sums is None else sums
    if argmax.numel():  # a hook on saved tensors may have changed its order
        argmax = argmax.contiguous(memory_format=memory_format(dx))
    compiled().lrn_pool_backward(dy, x, bias, argmax, dx, dbias, NORMS.index(norm), size, alpha, beta, k, RELUS.index(relu), pool,
                                 stride, TIES.index(ties))
    return dx, dbias


@_backward.register_fake
def _(dy, x, bias, argmax, norm, size, alpha, beta, k, relu, pool, stride, ties, kernels):
    return _gradients(x, bias)


def _gradients(x, bias):
    """dx and dbias, not yet written; dbias is empty without a bias."""
    dbias = x.new_empty(0 if bias is None else x.shape[1], dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x)), dbias


def _save(ctx, inputs, output):
    x, bias, *ctx.arguments = inputs
    ctx.save_for_backward(x, bias, output[1])


def _differentiate(ctx, dy, _):
    x, bias, argmax = ctx.saved_tensors
    dx, dbias = torch.ops.alexnet_mp.lrn_pool_backward(dy, x, bias, argmax, *ctx.arguments)
    return dx, None if bias is None else dbias.to(bias.dtype), *[None] * len(ctx.arguments)


_forward.register_autograd(_differentiate, setup_context=_save)


@torch.library.custom_op("alexnet_mp::paper_sgd_", mutates_args=("parameters", "velocities", "copies", "sums"),
                         schema="(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] velocities, "
                                "Tensor(c!)[] copies, Tensor(d!)? sums, float[] learning_rates, float momentum, "
                                "float[] weight_decays, str kernels) -> ()")
def _update(parameters, gradients, velocities, copies, sums, learning_rates, momentum, weight_decays, kernels):
    if kernels in ("cuda", "triton"):
        from .sgd import paper_sgd_ as launch
        launch(parameters, gradients, velocities, learning_rates, momentum, weight_decays, copies, sums)
    elif kernels == "cpu":
        lists = zip(parameters, gradients, velocities, learning_rates, weight_decays)
        for number, (w, g, v, rate, decay) in enumerate(lists):
            g = g.to(w.dtype)
            if rate != 0 and dense_alike(w, g, v):
                compiled().paper_sgd_(w, g, v, rate, momentum, decay)
            else:
                reference.paper_sgd_([w], [g], [v], learning_rates=[rate], momentum=momentum, weight_decays=[decay])
            if rate != 0:
                reference.note_weights(number, w, copies, sums)
    else:
        reference.paper_sgd_(parameters, gradients, velocities, learning_rates=learning_rates, momentum=momentum,
                             weight_decays=weight_decays, copies=copies, sums=sums)


def dense_alike(*tensors):
    """Whether element i in memory is the same element of all tensors."""
    first = tensors[0]
    return (first.is_contiguous() or (first.dim() == 4 and first.is_contiguous(memory_format=torch.channels_last))) and all(
        tensor.stride() == first.stride() for tensor in tensors)


@_update.register_fake
def _(parameters, gradients, velocities, copies, sums, learning_rates, momentum, weight_decays, kernels):
    return None


@torch.library.custom_op("alexnet_mp::augment", mutates_args=(),
                         schema="(Tensor[] pictures, Tensor top, Tensor left, Tensor flip, Tensor mean, Tensor shift, float scale, "
                                "int crop, bool mean_follows_crop, ScalarType dtype, bool channels_last, str kernels) -> Tensor")
def _augment(pictures, top, left, flip, mean, shift, scale, crop, mean_follows_crop, dtype, channels_last, kernels):
    y = _augmented(top, mean, crop, dtype, channels_last)
    if y.numel() == 0:
        return y
    _check_places(top, left, crop, mean.shape[0])
    if kernels == "triton":
        from .augmentation import augment as launch
        crops = _crops(top, left, flip, shift, scale).to(y.device, non_blocking=True)
        launch(pictures[0], crops, mean, mean_follows_crop, y)
    elif kernels == "cpu":
        compiled().augment(pictures, *(host.contiguous() for host in (top, left, flip)), mean, shift.contiguous(), scale,
                           mean_follows_crop, y)
    else:
        stacked = pictures[0] if pictures[0].dim() == 4 else torch.stack(pictures)
        y.copy_(reference.augment(stacked, top, left, flip, mean, shift, scale, crop=crop, mean_follows_crop=mean_follows_crop,
                                  dtype=dtype))
    return y


@_augment.register_fake
def _(pictures, top, left, flip, mean, shift, scale, crop, mean_follows_crop, dtype, channels_last, kernels):
    return _augmented(top, mean, crop, dtype, channels_last)


def _augmented(top, mean, crop, dtype, channels_last):
    """The output of augment, not yet written."""
    return torch.empty((top.shape[0], 3, crop, crop), dtype=dtype, device=mean.device,
                       memory_format=torch.channels_last if channels_last else torch.contiguous_format)
