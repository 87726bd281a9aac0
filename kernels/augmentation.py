"""uint8 pictures -> what the network sees, as a torch operator: arguments, who computes.

The kernels are in `augmentation_triton.py` and, for a CPU, in `csrc/cpu/augmentation.h`.
"""

from collections.abc import Iterable

import torch

from . import reference
from .checks import at_least, describe, one_of
from .dispatch import compiled, resolve


def augment(
    pictures: torch.Tensor | Iterable[torch.Tensor],
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
    kernels: str = "auto",
) -> torch.Tensor:
    """Crop, flip, minus the mean image, plus a colour shift, times a scale, in one pass: uint8 pictures -> (N, 3, crop,
    crop).

    y = ((pixel - mean) + shift) * scale in float32 and in this order, rounded once to `dtype`: every implementation
    gives the same bits. The mean is the one under the pixel, cropped and flipped with its picture
    (`mean_follows_crop`), or always its centre window, never flipped (2012 source). Not differentiable.

    pictures: (N, S, S, 3) uint8, contiguous; or, on a CPU, a list of N contiguous (S, S, 3), say views of a memory map.
    mean: (S, S, 3) float32 on the same device. On the host whatever the device, since they are small and checked: top,
    left: (N,) int64, pixels from the upper left corner; flip: (N,) bool; shift: (N, 3) float32, grey levels. scale: a
    float. dtype: float32, bfloat16 or float16. memory_format: of the output, channels_last or contiguous. kernels: see
    `resolve`; "cuda" is the Triton kernel here. Raises ValueError, with the value named, for a crop that leaves its
    picture and for arguments that don't fit."""
    name = resolve(kernels, mean.device, "augment")
    pictures = [pictures] if isinstance(pictures, torch.Tensor) else list(pictures)
    _check_augment(pictures, top, left, flip, mean, shift, crop, dtype, memory_format)
    return torch.ops.alexnet_mp.augment(
        pictures,
        top,
        left,
        flip,
        mean,
        shift,
        float(scale),
        crop,
        bool(mean_follows_crop),
        dtype,
        memory_format == torch.channels_last,
        name,
    )


def crops_of(
    top: torch.Tensor,
    left: torch.Tensor,
    flip: torch.Tensor,
    shift: torch.Tensor,
    scale: float,
    *,
    crop: int,
    side: int,
) -> torch.Tensor:
    """(N, 7) float32 on the host, what `augment_crops` needs of each crop: top, left, flip (0 or 1), shift of R, G, B,
    scale.

    The arguments are those of `augment`. Raises ValueError for a crop that leaves its picture of side x side: later
    nobody looks.
    """
    _check_draws(top, left, flip, shift)
    _check_places(top, left, crop, side)
    return _crops(top, left, flip, shift, scale)


def augment_crops(
    pictures: torch.Tensor,
    crops: torch.Tensor,
    mean: torch.Tensor,
    *,
    crop: int,
    mean_follows_crop: bool,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> torch.Tensor:
    """`augment` with all that it needs on the device of the pictures, so that a CUDA graph can hold it; the same bits.

    pictures: (N, S, S, 3) uint8, contiguous. crops: (N, 7) float32, of `crops_of`. mean and the rest as in `augment`;
    who computes is "auto". Raises ValueError for shapes that don't fit.
    """
    count, side = len(pictures), mean.shape[0]
    if tuple(crops.shape) != (count, 7) or crops.dtype != torch.float32 or crops.device != pictures.device:
        raise ValueError(
            f"crops are {describe(crops)}; with pictures {describe(pictures)} they must be torch.float32 "
            f"{(count, 7)} there"
        )
    if (tuple(pictures.shape), pictures.dtype, pictures.is_contiguous()) != ((count, side, side, 3), torch.uint8, True):
        raise ValueError(
            f"pictures are {describe(pictures)}; with a mean of {describe(mean)} they must be "
            f"{(count, side, side, 3)} torch.uint8, contiguous"
        )
    if resolve("auto", pictures.device, "augment") == "triton":
        from . import augmentation_triton

        y = _empty_output(crops, mean, crop, dtype, memory_format == torch.channels_last)
        if y.numel():
            augmentation_triton.augment(pictures, crops, mean, mean_follows_crop, y)
        return y
    host = crops.cpu()
    top, left = host[:, 0].long(), host[:, 1].long()
    scale = host[0, 6].item() if count else 1.0
    return augment(
        pictures,
        top,
        left,
        host[:, 2] != 0,
        mean,
        host[:, 3:6].contiguous(),
        scale,
        crop=crop,
        dtype=dtype,
        mean_follows_crop=mean_follows_crop,
        memory_format=memory_format,
    )


def augments_in_graphs(device: torch.device | str) -> bool:
    """Whether a CUDA graph can hold `augment_crops` on a GPU: not where the host has to look at the crops."""
    return torch.device(device).type != "cuda" or resolve("auto", device, "augment") == "triton"


def _crops(top, left, flip, shift, scale):
    """Places are below 2^24, so nothing is rounded."""
    places = torch.stack([top, left, flip.long()], 1).float()
    return torch.cat([places, shift, torch.full((len(top), 1), scale, dtype=torch.float32)], 1)


def _check_places(top, left, crop, side):
    """Raise ValueError for a crop that leaves its picture."""
    limit = side - crop
    for what, places in (("top", top), ("left", left)):
        if places.numel() == 0:
            continue
        low, high = (int(place) for place in places.aminmax())
        if low < 0 or high > limit:
            raise ValueError(
                f"{what} is {low if low < 0 else high}; crops of {crop}x{crop} lie in pictures of "
                f"{side}x{side} from 0 to {limit}"
            )


def _check_draws(top, left, flip, shift):
    """Raise ValueError, naming the value, for what doesn't say of each crop where it lies."""
    count = len(top)
    for what, tensor, shape, kind in (
        ("top", top, (count,), torch.int64),
        ("left", left, (count,), torch.int64),
        ("flip", flip, (count,), torch.bool),
        ("shift", shift, (count, 3), torch.float32),
    ):
        if tuple(tensor.shape) != shape or tensor.dtype != kind or tensor.device.type != "cpu":
            raise ValueError(f"{what} is {describe(tensor)}; it must be {kind} {shape} on the host")


def _check_augment(pictures, top, left, flip, mean, shift, crop, dtype, memory_format):
    """Raise ValueError, naming the value, for what can't be augmented; whether the crops lie in their pictures is seen
    later."""
    side, count = mean.shape[0] if mean.dim() == 3 else 0, len(top)
    if tuple(mean.shape) != (side, side, 3) or mean.dtype != torch.float32 or not mean.is_contiguous():
        raise ValueError(f"mean is {describe(mean)}; it must be (S, S, 3) float32, contiguous")
    is_batch = len(pictures) == 1 and pictures[0].dim() == 4
    if not is_batch and (len(pictures) != count or mean.device.type == "cuda"):
        raise ValueError(
            f"there are {len(pictures)} pictures for {count} places in `top`; it must be one (N, S, S, 3) tensor, or "
            "on a CPU N of (S, S, 3)"
        )
    for picture in pictures:
        if (
            tuple(picture.shape) != (count, side, side, 3)[0 if is_batch else 1 :]
            or picture.dtype != torch.uint8
            or picture.device != mean.device
            or not picture.is_contiguous()
        ):
            raise ValueError(
                f"pictures are {describe(picture)}; with {count} places in `top` and a mean of {describe(mean)} "
                f"they must be {(count, side, side, 3)} torch.uint8 on {mean.device}, contiguous"
            )
    _check_draws(top, left, flip, shift)
    at_least("crop", crop, 1)
    if crop > side:
        raise ValueError(f"crop is {crop}, larger than the pictures of {side}x{side}")
    one_of("dtype", dtype, (torch.float32, torch.bfloat16, torch.float16))
    one_of("memory_format", memory_format, (torch.channels_last, torch.contiguous_format))


@torch.library.custom_op(
    "alexnet_mp::augment",
    mutates_args=(),
    schema="(Tensor[] pictures, Tensor top, Tensor left, Tensor flip, Tensor mean, Tensor shift, float scale, "
    "int crop, bool mean_follows_crop, ScalarType dtype, bool channels_last, str kernels) -> Tensor",
)
def _augment(pictures, top, left, flip, mean, shift, scale, crop, mean_follows_crop, dtype, channels_last, kernels):
    y = _empty_output(top, mean, crop, dtype, channels_last)
    if y.numel() == 0:
        return y
    _check_places(top, left, crop, mean.shape[0])
    if kernels == "triton":
        from . import augmentation_triton

        crops = _crops(top, left, flip, shift, scale).to(y.device, non_blocking=True)
        augmentation_triton.augment(pictures[0], crops, mean, mean_follows_crop, y)
    elif kernels == "cpu":
        compiled().augment(
            pictures,
            *(host.contiguous() for host in (top, left, flip)),
            mean,
            shift.contiguous(),
            scale,
            mean_follows_crop,
            y,
        )
    else:
        batch = pictures[0] if pictures[0].dim() == 4 else torch.stack(pictures)
        y.copy_(
            reference.augment(
                batch, top, left, flip, mean, shift, scale, crop=crop, mean_follows_crop=mean_follows_crop, dtype=dtype
            )
        )
    return y


@_augment.register_fake
def _(pictures, top, left, flip, mean, shift, scale, crop, mean_follows_crop, dtype, channels_last, kernels):
    return _empty_output(top, mean, crop, dtype, channels_last)


def _empty_output(top, mean, crop, dtype, channels_last):
    """The output of augment, not yet written."""
    return torch.empty(
        (top.shape[0], 3, crop, crop),
        dtype=dtype,
        device=mean.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )
