"""A prepared set as training reads it.

A set is not trusted. What the index says is checked when the set is opened (`prepared_format.py`); an image's crc32 and
header when it is read for the first time."""

import ctypes
import io
import mmap
import os
import weakref
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from ..system.command_line import typed
from ..system.errors import UserError
from . import file_ranges
from .prepared_format import Columns, Index, check_shard, ppm_header, read_columns, read_index, read_statistics
from .resize import decoded, stored_picture


class Prepared:
    """A finished prepared set as training reads it; it looks like the data sets of `dataset.py`.

    Pictures larger than `stored_size` are reduced when they are read; smaller ones are refused. `statistics` are the
    set's own where the size is equal, else None. Raises UserError for a missing split and for whatever is damaged."""

    passed_over = ()

    def __init__(self, directory: str | Path, stored_size: int, splits: Sequence[str] = ("train", "val")):
        self.source, index = str(Path(directory).absolute()), read_index(directory)
        for split in splits:
            if split not in index.splits:
                raise UserError(
                    f"--data {directory}: the prepared set has no {split} split; it has {', '.join(index.splits)}"
                )
        if index.stored_size < stored_size:
            raise UserError(
                f"--data {directory}: its pictures of {index.stored_size}x{index.stored_size} are smaller than the "
                f"recipe's stored_size {stored_size}; prepare it anew with --size {stored_size}, or use another recipe"
            )
        self.classes, self.class_names = list(index.classes), list(index.class_names)
        self.ids = None if index.ids is None else list(index.ids)
        self.splits = {split: PreparedSplit(directory, index, split, stored_size) for split in splits}
        self.statistics = read_statistics(directory, index) if index.stored_size == stored_size else None
        self.fingerprint, self.description = index.fingerprint(), index.describe(directory, splits)
        if index.stored_size > stored_size:
            self.description += f", reduced to {stored_size}x{stored_size}"


class PreparedSplit:
    """storage: "jpeg", "pixels", or "files" where the pictures have to be reduced to the stored size."""

    def __init__(self, directory: str | Path, index: Index, split: str, stored_size: int):
        self.directory, self.size, self.file_size, self.encoding = (
            directory,
            stored_size,
            index.stored_size,
            index.encoding,
        )
        self.storage = "files" if index.stored_size > stored_size else "jpeg" if index.encoding == "jpeg" else "pixels"
        self.columns, self.shards = read_columns(directory, index, split), index.splits[split].shards
        self.labels, self.names = self.columns.label, Names(self.columns)
        for shard in self.shards:
            check_shard(directory, shard)
        self.maps = [None] * len(self.shards)
        # Anonymous shared memory: an image that one worker process has checked is checked for all.
        self.checked = np.frombuffer(mmap.mmap(-1, len(self)), np.uint8)

    def __len__(self):
        return len(self.labels)

    def read(self, index: int | np.integer) -> np.ndarray:
        """The stored picture of image `index`: (size, size, 3) uint8. Raises UserError that names the image where it is
        damaged."""
        content = self._content(index)
        if self.encoding == "jpeg":
            return decoded(io.BytesIO(content), self.size, self.names[index])
        picture = content[-3 * self.file_size**2 :].reshape(self.file_size, self.file_size, 3)
        return picture if self.size == self.file_size else stored_picture(Image.fromarray(picture), self.size)

    def jpeg(self, index: int | np.integer) -> np.ndarray:
        """The JPEG file of image `index`, of size x size pixels: (bytes,) uint8, in memory of its own. Raises as `read`
        does."""
        return self._content(index)

    def _content(self, index):
        """The file of an image: (bytes,) uint8, of raw pixels a view of the shard's map; checked when it is first
        read."""
        shard, offset, length = (
            int(column[index]) for column in (self.columns.shard, self.columns.offset, self.columns.length)
        )
        if self.encoding == "jpeg":  # read, since they are small: a disk that fails is an error then, and no signal
            content = self._read(index, str(Path(self.directory) / self.shards[shard].file), offset, length)
        else:
            if self.maps[shard] is None:
                self.maps[shard] = mapped(check_shard(self.directory, self.shards[shard]), self.shards[shard].bytes)
            content = self.maps[shard][offset : offset + length]
        if not self.checked[index]:
            problem = content_problem(content, int(self.columns.crc32[index]), self.encoding, self.file_size)
            if problem:
                path = Path(self.directory) / self.shards[shard].file
                raise UserError(
                    f"cannot read image {self.names[index]} in {path}: {problem}; "
                    f"{typed('prepare', '--check', self.directory)} finds all damage"
                )
            self.checked[index] = 1
        return content

    def _read(self, index, path, offset, length):
        try:
            return np.frombuffer(file_ranges.read(path, offset, length), np.uint8)
        except UserError as error:
            raise UserError(f"cannot read image {self.names[index]} in {error}") from None

    def check(self, index: int | np.integer) -> None:
        """Raise UserError where the bytes of an image have changed since the set was made."""
        self._content(index)

    @property
    def bytes(self) -> int:
        """Of all images."""
        return int(self.columns.length.sum())


class Names(Sequence):
    """The names of a split's images, as a list; 1.3 million of them stay bytes until they are asked for."""

    def __init__(self, columns: Columns):
        self.names, self.ends = columns.names, columns.name_ends

    def __len__(self):
        return len(self.ends)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        index = range(len(self))[index]  # IndexError past the end, which ends an iteration
        start = self.ends[index - 1] if index else 0
        return self.names[start : self.ends[index]].tobytes().decode(errors="surrogateescape")


def content_problem(content: np.ndarray, crc32: int, encoding: Literal["jpeg", "raw"], size: int) -> str | None:
    """What is wrong with an image's file, (bytes,) uint8, short of decoding it; None where nothing is."""
    if zlib.crc32(content) != crc32:
        return "its bytes have changed (crc32)"
    if encoding == "jpeg":
        frame = jpeg_frame(content.tobytes())
        if frame != (size, size, 3):  # before any decoder sees it: a header can claim gigabytes
            return f"it is not a JPEG of {size}x{size} pixels, RGB"
    elif content[: len(ppm_header(size))].tobytes() != ppm_header(size):
        return f"it is not a PPM of {size}x{size} pixels"
    return None


def jpeg_frame(content: bytes) -> tuple[int, int, int] | None:
    """(height, width, components) of a baseline or progressive JPEG of 8 bits with one frame; None for anything
    else."""
    frame, place = None, 2
    if content[:2] != b"\xff\xd8":
        return None
    while place + 9 < len(content) and content[place] == 0xFF:
        marker, length = content[place + 1], int.from_bytes(content[place + 2 : place + 4])
        if marker == 0xDA:  # the scan: pixels follow
            return frame
        if marker == 0xFF:  # fill
            place += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame header (ITU-T T.81, table B.1)
            if frame or marker > 0xC2 or content[place + 4] != 8:
                return None
            frame = (
                int.from_bytes(content[place + 5 : place + 7]),
                int.from_bytes(content[place + 7 : place + 9]),
                content[place + 9],
            )
        place += 2 + length
    return None


def mapped(path: Path, size: int) -> np.ndarray:
    """A file's first `size` bytes in memory, read-only: (size,) uint8, for as long as a view of it lives.

    Should the file become shorter, or the disk fail to read it, the system ends the process at the next look (SIGBUS).
    Python's `mmap` keeps a file descriptor for every mapping, and ImageNet's 1,300 shards are more than the usual limit
    of 1,024."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype, libc.munmap.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_size_t)
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        finally:
            os.close(descriptor)
        if address == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    memory = (ctypes.c_uint8 * size).from_address(address)
    weakref.finalize(memory, libc.munmap, address, size).atexit = False
    content = np.frombuffer(memory, np.uint8)
    content.flags.writeable = False
    return content
