"""uint8 pictures -> what the network sees in Triton: crop, flip, minus mean, colour shift and scale in one pass.

A program makes BLOCK consecutive values of one image as they lie in the output, so it writes 16 bytes at a time; what
it reads are bytes and mean values that lie beside each other too, backwards where the picture is flipped."""

import torch
import triton
import triton.language as tl

from .dispatch import triton_on

BLOCK = 1024  # values a program


@triton.jit
def _augment_kernel(
    pictures_ptr,  # (N, SIDE, SIDE, 3) uint8
    mean_ptr,  # (SIDE, SIDE, 3) float32
    crops_ptr,  # (N, 7) float32: top, left, flip (0 or 1), shift of R, G, B, scale
    y_ptr,  # (N, 3, CROP, CROP), dense in channels_last or NCHW
    SIDE: tl.constexpr,
    CROP: tl.constexpr,
    MEAN_FOLLOWS_CROP: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    VALUES: tl.constexpr = 3 * CROP * CROP
    BLOCKS: tl.constexpr = (VALUES + BLOCK - 1) // BLOCK
    n = (tl.program_id(0) // BLOCKS).to(tl.int64)
    value = tl.program_id(0) % BLOCKS * BLOCK + tl.arange(0, BLOCK)  # (BLOCK,) of the image's VALUES
    inside = value < VALUES
    if CHANNELS_LAST:
        channel, pixel = value % 3, value // 3
    else:
        channel, pixel = value // (CROP * CROP), value % (CROP * CROP)
    row, column = pixel // CROP, pixel % CROP
    crop_ptr = crops_ptr + 7 * n
    top, left, flip = tl.load(crop_ptr).to(tl.int32), tl.load(crop_ptr + 1).to(tl.int32), tl.load(crop_ptr + 2) != 0
    place = ((top + row) * SIDE + left + tl.where(flip, CROP - 1 - column, column)) * 3 + channel
    if MEAN_FOLLOWS_CROP:
        under = place
    else:
        OFFSET: tl.constexpr = (SIDE - CROP) // 2
        under = ((OFFSET + row) * SIDE + OFFSET + column) * 3 + channel
    picture = tl.load(pictures_ptr + n * (SIDE * SIDE * 3) + place, mask=inside, other=0)
    mean = tl.load(mean_ptr + under, mask=inside, other=0)
    red, green, blue = tl.load(crop_ptr + 3), tl.load(crop_ptr + 4), tl.load(crop_ptr + 5)
    shift = tl.where(channel == 0, red, tl.where(channel == 1, green, blue))
    y = ((picture.to(tl.float32) - mean) + shift) * tl.load(crop_ptr + 6)
    tl.store(y_ptr + n * VALUES + value, y.to(y_ptr.dtype.element_ty), mask=inside)


def augment(
    pictures: torch.Tensor, crops: torch.Tensor, mean: torch.Tensor, mean_follows_crop: bool, y: torch.Tensor
) -> None:
    """Write y, (N, 3, crop, crop) dense in channels_last or NCHW. crops: of `augmentation.crops_of`; all on the device
    of y, and already checked.
    """
    count, side, crop = len(pictures), pictures.shape[1], y.shape[2]
    blocks = triton.cdiv(3 * crop * crop, BLOCK)
    with triton_on(y):
        _augment_kernel[count * blocks,](
            pictures, mean, crops, y, side, crop, mean_follows_crop, y.stride(1) == 1, BLOCK
        )
