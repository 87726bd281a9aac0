"""Arrays in text or in NumPy's format, in a folder or an archive (.npz), read without trusting them.

A header that lies is found out before anything is allocated for it. Python objects, which NumPy stores as a pickle, are
refused. The reader says what shape it expects; it is compared before the values are read. What is wrong is a
ValueError, without the file's name."""

import math
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..runs.safetensors_file import finite
from ..system import durable_files
from ..system.errors import need

KINDS = (".npy", ".txt")
MOST_NAMES = 4096  # in a folder or an archive
MOST_VALUES = 1 << 17  # of a vector whose length nobody knows yet
MOST_HEADER = 1 << 14  # bytes, of an array; NumPy writes some 120
MOST_DIGITS = 64  # of a number in a text, with the space before it
DAMAGE = (ValueError, EOFError, OSError, NotImplementedError, zipfile.BadZipFile, zlib.error)
# The header that NumPy writes; nothing of it is evaluated.
_HEADER = re.compile(
    rb"\{'descr': '([^']{1,8})', 'fortran_order': (True|False), 'shape': \(((?:\d{1,18}, ?)*\d{0,18},?)\), *\} *\n"
)
_DTYPES = {b"<f2": "<f2", b"<f4": "<f4", b"<f8": "<f8", b">f4": ">f4", b">f8": ">f8"}


class Arrays:
    """The arrays of a folder or of a .npz: {name without the file's ending}, read one by one.

    Raises OSError, and ValueError for two files of one name and for too many."""

    def __init__(self, path: str | Path):
        self.path, self.files, self.archive = Path(path), {}, None
        if not self.path.is_dir():
            durable_files.head(os.path.realpath(path), 0)  # a pipe would be waited for
            self.archive = zipfile.ZipFile(self.path)
        names = durable_files.names(path, MOST_NAMES + 1) if self.archive is None else self.archive.namelist()
        need(len(names) <= MOST_NAMES, f"it holds more than {MOST_NAMES:,} names")
        for file in names:
            stem, kind = file[:-4], file[-4:]
            if kind in KINDS:
                need(stem not in self.files, f"{stem} is there twice")
                self.files[stem] = file

    def close(self) -> None:
        if self.archive is not None:
            self.archive.close()

    @contextmanager
    def opened(self, name: str) -> Iterator[tuple[BinaryIO, int, str]]:
        """(binary file, its bytes, ".npy" or ".txt") of an array."""
        file = self.files[name]
        if self.archive is None:
            place = os.path.realpath(self.path / file)
            size, _ = durable_files.head(place, 0)  # refuses what is no file, a pipe among it
            with open(place, "rb") as stream:
                yield stream, size, file[-4:]
            return
        entry = self.archive.getinfo(file)
        need(entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED), "it is compressed in another way")
        need(not entry.flag_bits & 1, "it is encrypted")
        with self.archive.open(entry) as stream:  # never gives more than the archive says
            yield stream, entry.file_size, file[-4:]

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a text: (numbers in it,), of which `MOST_VALUES` are as many as may be."""
        with self.opened(name) as (stream, _, kind):
            return _header(stream)[2] if kind == ".npy" else (len(_vector_text(stream, MOST_VALUES).split()),)

    def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """An array, float32 and of this shape; of a vector, any that has as many values in one row or column."""
        with self.opened(name) as (stream, size, kind):
            array = _read_npy(stream, size, shape) if kind == ".npy" else _read_text(stream, shape)
            if self.archive is not None:
                need(not stream.read(1), "there is more in it")  # which also compares the checksum
        need(finite(array), "it has values that are not finite")
        return array


def read_array(path: str | Path, most: int) -> np.ndarray:
    """A .npy file of `most` bytes at most, of any shape: float64. Raises OSError or ValueError."""
    size, _ = durable_files.head(path, 0)
    need(size <= most, f"it has {size:,} bytes, {most:,} at most are read")
    with open(path, "rb") as stream:
        shape = _header(stream)[2]
        stream.seek(0)
        return _read_npy(stream, size, shape, np.float64)


def _header(stream):
    """(dtype, whether it is in Fortran's order, shape, bytes before the values)"""
    start = stream.read(10)
    need(start[:6] == b"\x93NUMPY" and len(start) == 10, "it is no array of NumPy's")
    need(start[6] in (1, 2, 3), f"its format is {start[6]}")
    length = start[8:10] if start[6] == 1 else start[8:10] + stream.read(2)
    count = int.from_bytes(length, "little")
    need(count <= MOST_HEADER, f"its header would have {count:,} bytes")
    text = stream.read(count)
    match = _HEADER.fullmatch(text)
    need(len(text) == count and match, f"its header is {text[:60]!r}")
    need(match[1] in _DTYPES, f"its values are {match[1].decode(errors='replace')}; floating-point numbers are read")
    shape = tuple(int(side) for side in match[3].replace(b",", b" ").split())
    need(len(shape) <= 8, f"it has {len(shape)} dimensions")
    return np.dtype(_DTYPES[match[1]]), match[2] == b"True", shape, 8 + len(length) + count


def _read_npy(stream, size, shape, dtype=np.float32):
    kind, fortran, file_shape, start = _header(stream)
    fits = _vector(file_shape) == shape if len(shape) == 1 else file_shape == shape
    need(fits, f"it is {file_shape}, and {shape} is needed")
    length = math.prod(file_shape) * kind.itemsize
    need(size == start + length, f"it has {size:,} bytes, its header says {start + length:,}")
    values = stream.read(length)
    need(len(values) == length, "it ends early")
    with np.errstate(over="ignore"):
        array = np.frombuffer(values, kind).reshape(file_shape, order="F" if fortran else "C").astype(dtype, order="C")
    return array.reshape(shape)


def _read_text(stream, shape):
    """A row a line; a vector in any lines."""
    if len(shape) == 1:
        vector = _numbers(_vector_text(stream, shape[0]), "it")
        need(vector.shape == shape, f"it has {len(vector):,} numbers, and {shape[0]:,} are needed")
        return vector
    array = np.empty(shape, np.float32)
    for number in range(shape[0]):
        row = _line(stream, MOST_DIGITS * shape[1] + 2)
        need(row, f"it has {number:,} lines, and {shape[0]:,} are needed")
        values = _numbers(row, f"line {number + 1:,}")
        need(len(values) == shape[1], f"line {number + 1:,} has {len(values):,} numbers, and {shape[1]:,} are needed")
        array[number] = values
    need(not _line(stream, MOST_DIGITS).strip(), f"it has more than {shape[0]:,} lines")
    return array


def _vector_text(stream, numbers):
    text = stream.read(MOST_DIGITS * numbers + 3)
    need(len(text) <= MOST_DIGITS * numbers + 2, f"it is longer than {numbers:,} numbers are")
    return text


def _line(stream, most):
    line = stream.readline(most + 1)
    need(len(line) <= most, f"a line has more than {most:,} bytes")
    return line


def _numbers(text, what):
    try:
        with np.errstate(over="ignore"):
            return np.array(text.split(), np.float64).astype(np.float32)
    except ValueError:
        raise ValueError(f"{what} holds something that is no number") from None


def _vector(shape):
    """(96,) of (1, 96) and (96, 1); anything else as it is."""
    sides = [side for side in shape if side != 1]
    return tuple(sides) if len(sides) == 1 else (1,) if not sides else shape
