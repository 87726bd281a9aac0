"""From an image file to the stored picture, by one function for folders, archives and prepared sets."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from ..system.errors import MachineError, UserError
from .bit_depth import eight_bits
from .file_ranges import because
from .image_formats import holds_several, opened
from .remarks import SEVERAL


def decoded(file: str | Path | BinaryIO, size: int, name: str | Path) -> np.ndarray:
    """The stored picture, (size, size, 3) uint8, of an image file: a path, or a binary file object.

    Raises UserError with `name` where it is none, can't be decoded, or takes more memory than a picture may.
    """
    try:
        with opened(file) as image:
            if holds_several(image):
                SEVERAL.say(name, "the first is read")
            return stored_picture(image, size, name)
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


def stored_picture(image: Image.Image, size: int, name: str | Path | None = None) -> np.ndarray:
    """A Pillow image -> (size, size, 3) uint8: shorter side rescaled to `size`, central square kept (paper 2).

    Area averaging down, bicubic up (cuda-convnet2, `pyext.cpp:102-121`). Grey and CMYK become RGB, transparency is
    dropped, orientation tags are ignored, as in 2012. More than 8 bits a channel become 8 (`bit_depth.eight_bits`), or
    raise UserError; `name` is for the lines that say something of them."""
    image = eight_bits(image, name)
    if "transparency" in image.info:  # a palette with an alpha table; without this step Pillow warns
        image = image.convert("RGBA")
    if image.mode != "RGB":  # else it would be a copy, of 0.8 GB for a large photograph
        image = image.convert("RGB")
    shorter = min(image.size)
    left, top = ((side - shorter) / 2 for side in image.size)
    if shorter != size:
        # The central square is taken by the same resampling; an odd margin then falls on half a source pixel.
        kind = Image.Resampling.BOX if shorter > size else Image.Resampling.BICUBIC
        image = image.resize((size, size), kind, box=(left, top, left + shorter, top + shorter))
    else:
        left, top = int(left), int(top)
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image)
