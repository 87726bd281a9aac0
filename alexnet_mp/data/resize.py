"""From an image file to the stored picture, by one function for folders, archives and prepared sets."""

from math import ceil
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from ..system.errors import MachineError, UserError
from .bit_depth import eight_bits
from .file_ranges import because
from .image_formats import holds_several, opened
from .remarks import SEVERAL

SHARES = 64  # summed at once, so that a large photograph is copied by quarters


def decoded(file: str | Path | BinaryIO, size: int, name: str | Path, warp: bool = False) -> np.ndarray:
    """The stored picture, (size, size, 3) uint8, of an image file: a path, or a binary file object.

    Raises UserError with `name` where it is none, can't be decoded, or takes more memory than a picture may.
    """
    try:
        with opened(file) as image:
            if holds_several(image):
                SEVERAL.say(name, "the first is read")
            return stored_picture(image, size, name, warp)
    except (MemoryError, MachineError):  # not the image's fault
        raise
    except OSError as error:
        if error.strerror:  # of the system, not Pillow's
            raise because(error, f"cannot read image {name}") from None
        raise UserError(f"cannot read image {name}: {_reason(error)}") from None
    except Exception as error:  # Pillow raises a dozen types on damaged files
        raise UserError(f"cannot read image {name}: {_reason(error)}") from None


def _reason(error):
    reason = str(error)
    if "cannot identify image file <" in reason:  # goes on with the address of an object
        return "cannot identify image file: it is damaged, or of a kind that Pillow doesn't read"
    return reason.strip(" ':") or type(error).__name__


def stored_picture(image: Image.Image, size: int, name: str | Path | None = None, warp: bool = False) -> np.ndarray:
    """A Pillow image -> (size, size, 3) uint8: shorter side rescaled to `size`, central square kept (paper 2).

    warp: all of the image is squeezed into the square instead, as for Caffe's networks (`convert_imageset`, which
    interpolates between the four nearest pixels).

    Area averaging down, bicubic up (cuda-convnet2, `pyext.cpp:102-121`). Grey and CMYK become RGB, transparency is
    dropped, orientation tags are ignored. More than 8 bits a channel become 8 (`bit_depth.eight_bits`), or
    raise UserError; `name` is for the lines that say something of them."""
    image = eight_bits(image, name)
    if "transparency" in image.info:  # a palette with an alpha table; without this step Pillow warns
        image = image.convert("RGBA")
    if image.mode != "RGB":  # else it would be a copy, of 0.8 GB for a large photograph
        image = image.convert("RGB")
    if warp:
        return _squeezed(image, size)
    short_side = min(image.size)
    left, top = ((side - short_side) / 2 for side in image.size)
    # The central square is taken by the resampling itself; an odd margin then falls on half a source pixel.
    if short_side > size:
        return reduced(image, (top, left), (short_side, short_side), (size, size))
    if short_side < size:
        box = (left, top, left + short_side, top + short_side)
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))
    return np.asarray(image.crop((int(left), int(top), int(left) + size, int(top) + size)))


def _squeezed(image, size):
    """By areas along a side that is longer than `size`, bicubic along one that is shorter."""
    width, height = image.size
    if max(width, height) > size:
        image = Image.fromarray(reduced(image, (0, 0), (height, width), (min(height, size), min(width, size))))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC) if image.size != (size, size) else image)


def reduced(
    image: Image.Image, corner: tuple[float, float], sides: tuple[int, int], shape: tuple[int, int]
) -> np.ndarray:
    """The rectangle of an RGB image at corner (top, left), in whole or half pixels, of sides (high, wide) -> (*shape,
    3) uint8: each pixel the mean over its share of the rectangle, in which a pixel of two shares counts by its parts.
    Halves are rounded up.

    Pillow's BOX counts such a pixel wholly where its centre is: from 375 to 256 pixels, more than half of what it gives
    are copies of single pixels. The sums here are whole numbers: every machine has the same picture."""
    first_axis = int(sides[1] * shape[0] > sides[0] * shape[1])  # along which it shrinks most: less is held then
    other_axis = 1 - first_axis
    near, far = int(corner[other_axis]), ceil(corner[other_axis] + sides[other_axis])

    def band(start, end):
        pixels = image.crop((start, near, end, far) if first_axis else (near, start, far, end))
        return np.asarray(pixels).swapaxes(0, first_axis)

    largest_sum = 255 * 4 * sides[0] * sides[1]  # a sum that fits 32 bits takes half of the time
    dtype = np.int32 if largest_sum < 2**31 else np.int64
    axis_sums = _sums(band, corner[first_axis], sides[first_axis], shape[first_axis], dtype)
    rows = axis_sums.swapaxes(0, 1)
    sums = _sums(
        lambda start, end: rows[start:end], corner[other_axis] - near, sides[other_axis], shape[other_axis], dtype
    )
    return np.floor(sums.swapaxes(0, other_axis) / (4 * sides[0] * sides[1]) + 0.5).astype(np.uint8, "C")  # for DALI


def _sums(read, start, side, count, dtype):
    """Sums over `count` equal shares of `side` rows from `start`, of rows that weigh 2 * count: (count, W, 3) of this
    dtype.

    read(first, end): these rows, (end - first, W, 3)."""
    row, share, sums = 2 * count, 2 * side, []  # lengths in a unit that divides half a row and a share
    for number in range(0, count, SHARES):
        ends = int(2 * start) * count + share * np.arange(number, min(number + SHARES, count) + 1)
        starts, stops = ends[:-1], ends[1:]
        rows = read(ends[0] // row, -(-ends[-1] // row))
        band_sums = np.zeros((len(starts), *rows.shape[1:]), dtype)
        for row_number in range(share // row + 2):  # the most rows that a share lies in
            place = starts // row + row_number
            overlap = (np.minimum(stops, (place + 1) * row) - np.maximum(starts, place * row)).clip(0).astype(dtype)
            if overlap.any():
                band_sums += overlap[:, None, None] * rows[np.minimum(place - ends[0] // row, len(rows) - 1)]
        sums.append(band_sums)
    return np.concatenate(sums)
