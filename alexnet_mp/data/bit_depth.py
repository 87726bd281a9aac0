"""Pictures of more than 8 bits a channel, brought to 8 bits by what their file says of its values.

Pillow's own conversions clip at 255 or keep a channel's high byte alone: a picture of small values becomes black, one
of large values white. What can't be told from the file is refused, or said in a line."""

from pathlib import Path

import numpy as np
from PIL import Image

from ..system.errors import UserError
from . import remarks

MOST = 65_535  # of integers
FLOATS = 255  # the most of floats
MOST_SIGNED = 32_767  # of 16 bits of which one is a sign: 15 are left
DARK = 64  # of 255: a picture below may be one of 14 bits or fewer, of which the file says nothing
SAID = "sBIT", "MaxSampleValue"
BITS_PER_SAMPLE, PHOTOMETRIC, MAX_SAMPLE_VALUE, PLANAR, SAMPLE_FORMAT = 258, 262, 281, 284, 339  # TIFF 6.0, section 8
LEAST_WHITE = 400  # above what becomes level 1 of a portable map's 255: 385 of 65,535


def eight_bits(image: Image.Image, name: str | Path | None = None) -> Image.Image:
    """A Pillow image, not yet decoded, with 8 bits a channel; the same object where its file has no more.

    Integers are 0 to 65,535, of 16 bits with a sign 0 to 32,767, or as many bits as the file says are significant;
    floats are 0 to 255. A picture that stays below a quarter of that is a line on standard error, which begins with
    `name`, unless the file says its bits.
    Raises UserError where values are out of range or no numbers, or where different values all become the same."""
    tiff = dict(getattr(image, "tag_v2", {}))
    raw = next((_raw_mode(tile) for tile in getattr(image, "tile", ())), "")
    if tiff.get(PLANAR) == 2 and max(tiff.get(BITS_PER_SAMPLE, (8,))) > 8 and ";16" not in raw:
        raise UserError("its 16-bit channels lie in planes, uncompressed, which can't be read; interleave them")
    deep = image.mode == "F" or image.mode.startswith("I")
    signed = 2 in np.atleast_1d(tiff.get(SAMPLE_FORMAT, 1))
    if not deep and ";16" not in raw:
        if image.format == "PPM":
            _refuse_black_map(image)
        return _without_sign(image) if signed else image
    # Pillow closes the file when its pixels are read.
    bits, most = _significant_bits(image, tiff), _largest(image, tiff, signed)
    values = np.asarray(image) if deep else _both_bytes(image, raw)
    if values is None:
        return image
    low, high = _range(values, most)
    levels = _levels(values, most, bits, image.format)
    if low != high:
        _refuse_one_level(levels, low, high, most)
    if bits is None and _is_dark(levels):
        _note_dark(name, low, high, most)
    if tiff.get(PHOTOMETRIC) == 0:  # 0 is white; Pillow turns 8 bits round, and no others
        levels = 255 - levels
    return Image.fromarray(levels, "CMYK") if image.mode == "CMYK" else Image.fromarray(levels)


def _largest(image, tiff, signed):
    """The most that its values may be."""
    if image.mode == "F":
        return FLOATS
    return MOST_SIGNED if signed and max(tiff.get(BITS_PER_SAMPLE, (32,))) == 16 else MOST


def _levels(values, most, bits, kind):
    """Values of 0 to `most`, of so many significant bits -> grey levels, uint8."""
    if most == FLOATS:
        return values.clip(0, FLOATS).astype(np.uint8)
    scale = bits or (15 if most == MOST_SIGNED else None)
    return (_scaled(values.astype(np.uint16), scale, kind) >> 8).astype(np.uint8)


def _refuse_one_level(levels, low, high, most):
    """Raise UserError where different values, low to high, all become the same."""
    darkest, brightest = levels.min().item(), levels.max().item()
    # A range of one level's width lands on one level or on two, as it lies; at the dark end both are black.
    if darkest == brightest or brightest == 1:
        raise UserError(
            f"its values, {low:,} to {high:,} of {most:,}, all become grey level {'0 or ' * (darkest < brightest)}"
            f"{brightest} of 255; store it with 8 bits"
            + ("" if most == FLOATS else f", or say its bits (PNG: {SAID[0]}, TIFF: {SAID[1]})")
        )


def _without_sign(image):
    """Of a TIFF of 8 bits with a sign, which Pillow reads as if there were none: the 7 bits that are left."""
    levels = np.asarray(image)
    if levels.max() > 127:
        raise UserError("its values have a sign, and some are below 0; only 0 to 127 is understood")
    return Image.fromarray(levels << 1)


def _refuse_black_map(image):
    """Of a portable map in colour, with more than 8 bits. Pillow has rounded its values to levels of 255."""
    source, args = image.filename or image.fp, next((tile.args for tile in image.tile), "")
    if isinstance(args, str) or args[-1] <= 255 or image.mode != "RGB" or np.asarray(image).max() > 1:
        return
    with Image.open(source, formats=[image.format]) as copy:  # with a white at which every value is a level of its own
        copy.tile = [tile._replace(args=(*args[:-1], LEAST_WHITE)) for tile in copy.tile]
        values = np.asarray(copy)
    if values.min() != values.max():
        raise UserError(
            f"its values, of {args[-1]:,}, all become grey level 0 or 1 of 255; store it with 8 bits, or say which "
            "value is white"
        )


def _is_dark(levels):
    """Whether grey levels of 255 are of a dark picture; a few bright pixels light none."""
    return np.count_nonzero(levels >= DARK) < 0.01 * levels.size


def _raw_mode(tile):
    """How the pixels lie in the file, as Pillow names it: "RGB;16B"."""
    first = tile.args if isinstance(tile.args, str) else (tile.args or ("",))[0]
    return first if isinstance(first, str) else ""


def _significant_bits(image, tiff):
    """Of a channel, where the file says it; None where it doesn't."""
    if image.format in ("PPM", "JPEG2000"):  # they say what is white, and Pillow scales by it
        return 16
    if image.format == "PNG":
        return _sbit(image.fp)
    if max(tiff.get(BITS_PER_SAMPLE, (16,))) < 16:
        return max(tiff[BITS_PER_SAMPLE])
    largest = tiff.get(MAX_SAMPLE_VALUE, 0)
    largest = int(max(largest)) if isinstance(largest, tuple) else int(largest)
    full = 8 <= largest.bit_length() <= 16 and largest + 1 == 1 << largest.bit_length()  # else it describes the picture
    return largest.bit_length() if full else None


def _sbit(file):
    """The largest number in a PNG's sBIT chunk, which stands before its pixels; None where there is none."""
    place = file.tell()
    try:
        file.seek(8)
        while len(header := file.read(8)) == 8 and header[4:] not in (b"IDAT", b"IEND"):
            length = int.from_bytes(header[:4])
            if header[4:] == b"sBIT" and 1 <= length <= 4:
                return max(file.read(length)) or None
            file.seek(length + 4, 1)
        return None
    finally:
        file.seek(place)


def _both_bytes(image, raw):
    """(height, width, channels) uint16, without transparency, of a file with 16 bits a channel; None where Pillow's
    high bytes will do.

    The low bytes are what Pillow takes for the high ones when it is told the other order of bytes."""
    source, grey = image.filename or image.fp, raw.startswith("LA")
    high = np.asarray(image)
    high = high[:, :, :1] if grey else high[:, :, :3] if image.mode == "RGBA" else high
    if high.max() >= 2 * DARK and not _is_dark(high):  # 16 bits are in use
        return None
    if raw.startswith("RGBa"):  # its bytes are divided by the transparency
        if not high.any():
            raise UserError("its 16-bit colours, multiplied by their transparency, all become black; store 8 bits")
        return None
    other_raw = "RGBA" if grey else raw[:-1] + ("B" if raw[-1] != "B" else "L")  # grey: its four bytes lie as those do
    with Image.open(source, formats=[image.format]) as copy:
        copy.tile = [
            tile._replace(args=other_raw if isinstance(tile.args, str) else (other_raw, *tile.args[1:]))
            for tile in copy.tile
        ]
        low = np.asarray(copy)
    low = low[:, :, 1:2] if grey else low[:, :, :3] if copy.mode == "RGBA" else low
    values = high.astype(np.uint16) << 8 | low
    return np.repeat(values, 3, axis=2) if grey else values


def _range(values, most):
    """(smallest, largest). Raises UserError where they are no numbers, or none of 0 to `most`."""
    count = values.size - np.isfinite(values).sum()
    if count:
        raise UserError(f"{count:,} of its pixels are not numbers (NaN or infinite); only 0 to 255 is understood")
    low, high = values.min().item(), values.max().item()
    if most == FLOATS and high <= 1:  # taken as 0..255 all of it would be black
        raise UserError("its pixels are floats of at most 1; only 0 to 255 is understood")
    if low < 0 or high > most:
        if most != FLOATS or low <= -1 or high >= 256:  # less than a level is rounding
            raise UserError(f"its values are {low:,} to {high:,}; only 0 to {most:,} is understood")
    return low, high


def _scaled(values, bits, kind):
    """uint16 values of `bits` significant bits -> 0 to 65,535."""
    if bits is None or bits >= 16 or values.max() >> bits:
        return values
    # PNG has values scaled up to all 16 bits; then those below the significant ones are 0 in a picture as dark as this.
    if kind == "PNG" and not (values & ((1 << 16 - bits) - 1)).any():
        return values
    return values << 16 - bits


def _note_dark(name, low, high, most):
    detail = ", 99 % of them in the lowest quarter" if high >= most * DARK / 255 else ""
    hint = "" if most == FLOATS else f"; a file that means fewer bits can say so (PNG: {SAID[0]}, TIFF: {SAID[1]})"
    remarks.DARK.say(name, f"its values are {low:,} to {high:,}{detail}, and taken as of {most:,}{hint}")
