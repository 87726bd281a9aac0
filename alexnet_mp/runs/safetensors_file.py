"""The bytes of a safetensors file: written from where the tensors are, and a header that lies found out before it is
believed.

A file is the length of its header (8 bytes, little-endian), the header (JSON: dtype, shape and place of each tensor),
and the tensors' bytes without gaps. What is wrong is a ValueError here; the caller knows the path."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from ..system import durable_files
from ..system.errors import need

MOST_HEADER, MOST_BYTES = 1 << 20, 4 << 30  # of a header and of a whole file
Layout = Mapping[str, tuple[str, tuple[int, ...]]]  # the dtype and shape of each tensor, as ("F32", (96, 3, 11, 11))
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # bytes a value, of what is read
WRITTEN = {**WIDTHS, "I64": 8}


def header(layout: Layout, about: Mapping[str, str] | None = None) -> bytes:
    """What a file begins with. The bytes that the safetensors library writes, tensors in their `order`. about: what the
    file says of itself."""
    entries, end = {"__metadata__": dict(about)} if about else {}, 0
    for name in order(layout):
        start, end = end, end + _bytes_of(layout[name])
        entries[name] = {"dtype": layout[name][0], "shape": layout[name][1], "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def order(layout: Layout) -> list[str]:
    """The names in the order in which the tensors lie: the widest values first, so that all are aligned, then by
    name."""
    return sorted(layout, key=lambda name: (-WRITTEN[layout[name][0]], name))


def parts(layout: Layout, arrays: Mapping[str, np.ndarray]) -> Iterator[bytes | memoryview]:
    """A whole file, piece by piece: the header, then the bytes of each contiguous array of one dtype, without a
    copy."""
    yield header(layout)
    for name in order(layout):
        yield memoryview(arrays[name]).cast("B")


def length(layout: Layout) -> int:
    """Bytes of the file that `parts` gives."""
    return len(header(layout)) + sum(map(_bytes_of, layout.values()))


def finite(array: np.ndarray) -> bool:
    """Whether all values are. A finite sum says so without a mask as long as the array; one that overflowed says
    nothing."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(array.sum()) or np.isfinite(array).all())


def read(path: str | Path) -> tuple[Layout, bytes]:
    """(layout, all of its bytes) of a file. Raises OSError, and what `read_layout` does."""
    content = durable_files.read(path, MOST_BYTES)
    return read_layout(len(content), content), content


def read_head(path: str | Path) -> Layout:
    """The layout of a file, whose tensors are not read. Raises OSError, and what `read_layout` does."""
    return read_layout(*durable_files.head(path, 8 + MOST_HEADER))


def read_layout(size: int, start: bytes) -> Layout:
    """{name: (dtype, shape)} from the beginning of a file of `size` bytes: all of it, or 8 + MOST_HEADER bytes.

    Raises ValueError where it doesn't fit the size, RecursionError where it is nested too deeply. The library, which
    reads the tensors, checks the same; this comes first, so that nothing is allocated for a header that lies."""
    refuse_pickle(start)
    need(size >= 8, f"{size} bytes are no safetensors file")
    need(size <= MOST_BYTES, f"it has {size:,} bytes, {MOST_BYTES:,} at most are read")
    count = int.from_bytes(start[:8], "little")
    need(count <= MOST_HEADER, f"its header would have {count:,} bytes, {MOST_HEADER:,} at most are read")
    need(8 + count <= size, f"its header would have {count:,} bytes, and the file has {size:,}")
    entries = parse(start[8 : 8 + count])
    need(isinstance(entries, dict), "its header is not one of tensors")
    entries.pop("__metadata__", None)
    need(entries, "it holds no tensors")
    layout, spans = {}, []
    for name, entry in entries.items():
        need(
            isinstance(entry, dict) and set(entry) == {"dtype", "shape", "data_offsets"},
            f"the header's entry for {name!r:.100}",
        )
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        need(isinstance(dtype, str) and dtype in WIDTHS, f"the dtype of {name!r:.100} is {dtype!r:.50}")
        need(_are_counts(shape) and len(shape) <= 8, f"the shape of {name!r:.100} is {shape!r:.100}")
        need(_are_counts(offsets) and len(offsets) == 2, f"the offsets of {name!r:.100} are {offsets!r:.100}")
        layout[name] = dtype, tuple(shape)
        need(offsets[1] - offsets[0] == _bytes_of(layout[name]), f"the offsets of {name!r:.100} don't fit its shape")
        spans.append(offsets)
    end = 0
    for span in sorted(spans):
        need(span[0] == end, "its tensors overlap, or leave gaps")
        end = span[1]
    need(8 + count + end == size, f"it has {size:,} bytes, its header says {8 + count + end:,}")
    return layout


def parse(content: bytes) -> object:
    """What JSON in UTF-8 says. Raises ValueError, also for a key given twice and a number that nobody means; or
    RecursionError."""
    refuse_pickle(content)

    def no_key_twice(pairs):
        fields = dict(pairs)
        need(len(fields) == len(pairs), "a key is given twice")
        return fields

    def number(text):
        need(math.isfinite(float(text)), f"a number is {text:.20}")
        return float(text)

    def integer(text):
        need(len(text) <= 19, f"a number has {len(text)} digits")
        return int(text)

    # parse_constant is asked for NaN and Infinity
    return json.loads(
        content.decode(), object_pairs_hook=no_key_twice, parse_int=integer, parse_float=number, parse_constant=number
    )


def refuse_pickle(start: bytes) -> None:
    """start: a file's first 8 bytes, or more. A header's length may begin as a pickle or a zip archive does, but it is
    small."""
    if start[:1] == b"\x80" or start[:2] == b"PK":
        need(
            len(start) >= 8 and int.from_bytes(start[:8], "little") <= MOST_HEADER,
            "it is a pickle, and a pickle is never loaded",
        )


def _bytes_of(tensor):
    dtype, shape = tensor
    return WRITTEN[dtype] * math.prod(shape)


def _are_counts(values):
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
