"""The table in a MATLAB file (version 5 to 7, "MAT-File Format", MathWorks), such as a devkit's `meta.mat`.

`scipy.io.loadmat` reads these too, but one wrong byte in such a file can end the process with a segmentation fault.
Here nothing is taken for granted: every part must lie within the part around it, so time and memory are bounded by the
file's own length."""

import struct
import zlib
from collections.abc import Sequence

import numpy as np

LARGEST = 64 << 20  # bytes, unpacked
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}  # types of data
LETTERS = {1: "latin-1", 2: "latin-1", 3: "utf-16", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
MATRIX, COMPRESSED = 14, 15
STRUCT, TEXT, FIRST_NUMERIC, LAST_NUMERIC = 2, 4, 6, 15  # classes of a matrix


def struct_array(content: bytes, variable: str, fields: Sequence[str]) -> list[tuple[str | int, ...]]:
    """[(value, ...)]: the values of `fields` in each element of the struct array `variable`; texts as str, single
    numbers as int.

    Raises ValueError for a file that is damaged or has no such variable or fields, or whose values are of another kind.
    """
    endings = {b"IM": "<", b"MI": ">"}
    if content[126:128] not in endings:
        raise ValueError("it is no MATLAB file of version 5 to 7")
    order, room = endings[content[126:128]], LARGEST
    for kind, data in _elements(memoryview(content)[128:], order):
        if kind == COMPRESSED:
            unpacker = zlib.decompressobj()
            try:
                output = unpacker.decompress(data, room)
            except zlib.error as error:
                raise ValueError(f"damaged data ({error})") from None
            room -= len(output)
            if not unpacker.eof or room <= 0:
                raise ValueError(f"data that is cut short, or unpacks to more than {LARGEST:,} bytes")
            kind, data = next(_elements(memoryview(output), order), (0, b""))
        if kind == MATRIX:
            category, shape, name, parts = _matrix(data, order)
            if name == variable:
                if category != STRUCT:
                    raise ValueError(f"{variable} is no struct array")
                return _rows(shape, parts, order, fields)
    raise ValueError(f"no variable {variable} in it")


def _elements(data, order):
    """(type, bytes) of each element; a short one has its length in the upper half of the type, and 4 bytes of data at
    most."""
    start = 0
    while start < len(data):
        if start + 8 > len(data):
            raise ValueError("it is cut short")
        kind, size = struct.unpack_from(f"{order}II", data, start)
        if kind >> 16:
            kind, size, begin, end = kind & 0xFFFF, kind >> 16, start + 4, start + 8
            if size > 4:
                raise ValueError("a short element of more than 4 bytes")
        else:
            begin = start + 8
            end = begin + (size if kind == COMPRESSED else -(-size // 8) * 8)
        if begin + size > len(data):
            raise ValueError("it is cut short")
        yield kind, data[begin : begin + size]
        start = end


def _matrix(data, order):
    """(class, shape, name, its other elements) of a matrix."""
    parts = _elements(data, order)
    flags, shape, name = _next(parts)[1], _next(parts), _next(parts)[1]
    if len(flags) != 8 or shape[0] != 5 or len(shape[1]) < 8 or len(shape[1]) % 4:
        raise ValueError("a damaged matrix")
    return (
        struct.unpack(f"{order}II", flags)[0] & 0xFF,
        struct.unpack(f"{order}{len(shape[1]) // 4}i", shape[1]),
        bytes(name).decode("latin-1"),
        parts,
    )


def _rows(shape, parts, order, fields):
    if sorted(shape)[:-1] != [1] * (len(shape) - 1):
        raise ValueError("its struct array has no single row")
    length = _next(parts)[1]
    length = struct.unpack(f"{order}i", length)[0] if len(length) == 4 else 0
    names = bytes(_next(parts)[1])
    if length < 1 or len(names) % length:
        raise ValueError("damaged names of fields")
    names = [names[start : start + length].split(b"\0")[0].decode("latin-1") for start in range(0, len(names), length)]
    missing_fields = [field for field in fields if field not in names]
    if missing_fields:
        raise ValueError(f"no field {missing_fields[0]} in it")
    rows = []
    for _ in range(max(shape)):
        row = {}
        for name in names:
            kind, data = _next(parts)
            if kind != MATRIX:
                raise ValueError("a field that is no matrix")
            if name in fields:
                row[name] = _value(data, order, name)
        rows.append(tuple(row[name] for name in fields))
    return rows


def _value(data, order, field):
    """The text or the whole number in a matrix."""
    category, shape, _, parts = _matrix(data, order)
    kind, values = next(parts, (0, b""))
    if category == TEXT and (not len(values) or kind in LETTERS):
        if shape[0] > 1:
            raise ValueError(f"{field} has text of several lines")
        encoding = LETTERS.get(kind, "latin-1")
        return bytes(values).decode(encoding + {"<": "-le", ">": "-be"}[order] * (encoding in ("utf-16", "utf-32")))
    if FIRST_NUMERIC <= category <= LAST_NUMERIC and kind in NUMBERS:
        numbers = np.frombuffer(values, np.dtype(NUMBERS[kind]).newbyteorder(order))
        if len(numbers) == 1 and float(numbers[0]).is_integer():
            return int(numbers[0])
    raise ValueError(f"{field} is neither text nor one whole number")


def _next(elements):
    element = next(elements, None)
    if element is None:
        raise ValueError("it is cut short")
    return element
