"""Which files are pictures, told by their content, and how one is opened: what it may cost, what can't spoil it."""

import io
import os
import re
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from ..system.errors import MachineError, UserError
from .tiff_pages import has_more, is_raw

# Pillow's name of each format that is read, and how its files begin. None of their readers starts another program.
# A file is opened as what it begins as, and as nothing else.
FORMATS = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "TIFF": rb"II\*\0(?!....CR)|MM\0\*|II\+\0|MM\0\+",  # CR: Canon's raw files
    "WEBP": rb"RIFF....WEBP",
    "AVIF": rb"....ftyp(avi[fs]|(mif1|msf1).*avi[fs])",
    "JPEG2000": rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n",
    "PPM": rb"P[1-6]\s+[#\d]|Pf\s+\d",
}
_BEGINNINGS = {name: re.compile(pattern, re.DOTALL) for name, pattern in FORMATS.items()}
READ = "JPEG, PNG, GIF, BMP, TIFF, WebP, AVIF, JPEG 2000, PNM"  # the same, in words
# A file of such a name is taken for a picture whatever is in it, so that a damaged one is named.
SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .gif .bmp .tif .tiff .webp .avif .jp2 .j2k .ppm .pgm .pbm .pnm".split()
)
GZIP = b"\x1f\x8b"
HEAD = 64  # bytes that tell a format

MEMORY = "ALEXNET_MP_PICTURE_GB"  # the variable that sets what one picture may take
DEFAULT_GB = 2
BYTES_PER_PIXEL = 4  # in Pillow's memory

_opening, _opened, _pillows_limit = threading.Lock(), 0, None


def most_bytes() -> int:
    """What one picture may take: bytes of its file, and of memory when it is decoded. Raises MachineError."""
    text = os.environ.get(MEMORY, "")
    try:
        gigabytes = float(text) if text else DEFAULT_GB
        if not 0 < gigabytes < 1e6:
            raise ValueError
    except ValueError:
        raise MachineError(f"{MEMORY}={text}: it must be a number of gigabytes, such as {DEFAULT_GB}") from None
    return int(gigabytes * 1e9)


def check_bytes(count: int) -> None:
    """Raises UserError for a file of `count` bytes where that is more than a picture may have."""
    if count > most_bytes():
        raise UserError(f"a file of {_too_much(count)}")


def format_of(head: bytes) -> str | None:
    """The format, a key of `FORMATS`, of a file that begins with `head`; None for all others."""
    return next((name for name, beginning in _BEGINNINGS.items() if beginning.match(head)), None)


def has_picture_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def is_picture(name: str, read: Callable[[int, int], bytes]) -> bool:
    """Whether a file is read as a picture: by the end of its name, or by its content, which read(start, count) gives.

    A gzipped picture is one. A camera's raw file is none: what could be read of it is its preview."""
    if has_picture_suffix(name):
        return True
    head = read(0, HEAD)
    if head.startswith(GZIP):
        try:
            head = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(read(0, 4096), HEAD)
        except zlib.error:
            return False
        return format_of(head) is not None
    kind = format_of(head)
    return kind is not None and not (kind == "TIFF" and is_raw(read))


def gunzipped(content: bytes, largest: int) -> bytes:
    """The bytes that a gzip file holds. Raises ValueError where it is damaged or holds more than `largest` bytes."""
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        output = unpacker.decompress(content, largest)
    except zlib.error as error:
        raise ValueError(f"damaged gzip data ({error})") from None
    if not unpacker.eof:
        raise ValueError(f"its gzip data is cut short or unpacks to more than {largest:,} bytes")
    return output


@contextmanager
def opened(file: str | Path | BinaryIO) -> Iterator[Image.Image]:
    """The Pillow image, not yet decoded, of a picture file: a path, or a binary file object.

    What Pillow warns of never matters to pixels, and is not said. Raises UserError for what is no picture or takes
    more than `most_bytes`, and whatever Pillow raises for a damaged one, here or when it is decoded."""
    with ExitStack() as stack:
        stream = stack.enter_context(open(file, "rb")) if isinstance(file, (str, os.PathLike)) else file
        check_bytes(stream.seek(0, io.SEEK_END))
        stream.seek(0)
        head = stream.read(HEAD)
        if head.startswith(GZIP):
            stream = io.BytesIO(gunzipped(head + stream.read(), most_bytes()))
            head = stream.read(HEAD)
        kind = format_of(head)
        if kind is None:
            raise UserError(f"cannot identify image file: it is none of {READ}" if head else "it is empty")
        if kind in _ESSENTIAL:
            stream = io.BytesIO(_ESSENTIAL[kind](head + stream.read()))
        if kind == "TIFF" and is_raw(_reader(stream)):
            raise UserError("its first picture is a preview of another (a camera's raw file?), and would be read")
        stream.seek(0)
        stack.enter_context(_our_limit())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        try:
            image = stack.enter_context(Image.open(stream, formats=[kind]))
            width, height = (getattr(image, "tag_v2", {}).get(tag, 0) for tag in (322, 323))  # TIFF: of a tile
            _check_pixels(width * height)
            yield image
        except Image.DecompressionBombError as error:
            _check_pixels(int(re.search(r"\d+", str(error))[0]))
            raise


def holds_several(image: Image.Image) -> bool:
    """Whether the file of an `opened` image, not yet decoded, has more pictures than the first, which is read.

    Smaller versions and masks in a TIFF don't count, nor what follows the first picture of a JPEG."""
    if image.format == "PPM":
        return _follows_a_map(image)
    if image.format != "TIFF":
        with suppress(Exception):  # a GIF is looked at behind its first picture, where it may be damaged
            return getattr(image, "is_animated", False)
        return False
    place = image.fp.tell()
    try:
        return has_more(_reader(image.fp))
    finally:
        image.fp.seek(place)


def _follows_a_map(image):
    """Whether another portable map begins where the binary pixels of the first end."""
    (tile,) = image.tile
    rawmode, *maxvals = (tile.args,) if isinstance(tile.args, str) else tile.args
    if tile.codec_name == "ppm_plain":
        return False
    width, height = image.size
    wide = ";16" in rawmode or max(maxvals, default=0) > 255
    row = -(-width // 8) if image.mode == "1" else width * len(image.getbands()) * (2 if wide else 1)
    place = image.fp.tell()
    image.fp.seek(tile.offset + row * height)
    head = image.fp.read(HEAD)
    image.fp.seek(place)
    return format_of(head) == "PPM"


def _reader(stream):
    def read(start, count):
        stream.seek(start)
        return stream.read(count)

    return read


def _check_pixels(pixels):
    if pixels * BYTES_PER_PIXEL > most_bytes():
        raise UserError(f"{pixels:,} pixels, decoded {_too_much(pixels * BYTES_PER_PIXEL)}")


def _too_much(count):
    """'10.0 GB, more than the 2 GB that ...'."""
    size = -(-count // 10**8) / 10
    return f"{size:,.1f} GB, more than the {most_bytes() / 1e9:,g} GB a picture may take; {MEMORY}={size:g} raises it"


@contextmanager
def _our_limit():
    """Pillow refuses by our limit meanwhile: what a picture declares, and a tile of it. Threads may be in here at once.

    Pillow warns above its MAX_IMAGE_PIXELS, and raises above twice that."""
    global _opened, _pillows_limit
    with _opening:
        if _opened == 0:
            _pillows_limit = Image.MAX_IMAGE_PIXELS
            Image.MAX_IMAGE_PIXELS = most_bytes() // BYTES_PER_PIXEL / 2
        _opened += 1
    try:
        yield
    finally:
        with _opening:
            _opened -= 1
            if _opened == 0:
                Image.MAX_IMAGE_PIXELS = _pillows_limit


def _essential_png(content):
    """A PNG without the chunks that no pixel depends on: a damaged or vast text, profile or EXIF must not spoil it.

    Kept are the critical chunks, and, where they are whole, sBIT and what says how many pictures there are; behind a
    cut, everything, for Pillow to judge."""
    chunks, start, view = [content[:8]], 8, memoryview(content)
    while start + 12 <= len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4])
        kind = content[start + 4 : start + 8]
        if end > len(content) or not kind.isalpha():
            break
        # acTL: 8 bytes, of which the first four are the number of pictures
        several = kind == b"acTL" and end - start == 20 and int.from_bytes(content[start + 8 : start + 12]) > 1
        whole = zlib.crc32(view[start + 4 : end - 4]) == int.from_bytes(view[end - 4 : end])
        if kind[:1].isupper() or whole and (kind == b"sBIT" or several):  # upper case: critical (PNG 3, 5.4)
            chunks.append(view[start:end])
        start = end
    return b"".join([*chunks, view[start:]])


def _essential_jpeg(content):
    """A JPEG without its EXIF, profiles, comments and further pictures, which no pixel of the first depends on.

    Kept are APP0 and APP14, which tell how colours are coded; behind what is no segment, everything."""
    segments, start, view = [content[:2]], 2, memoryview(content)
    while start + 4 <= len(content) and content[start] == 0xFF:
        marker, end = content[start + 1], start + 2 + int.from_bytes(content[start + 2 : start + 4])
        if not 0xC0 <= marker <= 0xFE or marker in (0xD9, 0xDA) or end > len(content):
            break
        if not (0xE1 <= marker <= 0xEF and marker != 0xEE or marker == 0xFE):
            segments.append(view[start:end])
        start = end
    return b"".join([*segments, view[start:]])


_ESSENTIAL = {"PNG": _essential_png, "JPEG": _essential_jpeg}
