"""Tables of MATLAB files: read as SciPy reads them; whatever is damaged is a ValueError, where SciPy may crash."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from inner_cases import every
from make_archives import IDS, WNIDS, WORDS, meta
from scipy.io import loadmat, savemat

from alexnet_mp.preparation.devkit import struct_array

FIELDS = ("ILSVRC2012_ID", "WNID", "words", "num_children")


def saved(rows, compressed=False, **variables):
    """A file with the struct array `t` of one field `f` of these values, after the other variables."""
    table = np.empty((1, len(rows)), [("f", "O"), ("other", "O")])
    for place, value in enumerate(rows):
        table[0, place] = (value, [1.5, 2.5])
    buffer = io.BytesIO()
    savemat(buffer, variables | {"t": table}, do_compression=compressed)
    return buffer.getvalue()


@every("compressed", [False, True])
def test_texts_and_numbers_of_every_kind(compressed):
    kinds = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64, np.float32, np.float64]
    rows = ["n01440764", "", "crêpe, 日本 🐟", *(kind(77) for kind in kinds), np.float64(1e6), np.int32(-5)]
    content = saved(rows, compressed, before=np.eye(5), name="text")
    assert struct_array(content, "t", ("f",)) == [(value if isinstance(value, str) else int(value),) for value in rows]


def test_the_table_of_a_devkit():
    rows = struct_array(meta("ILSVRC2012"), "synsets", FIELDS)
    assert rows == [
        *sorted((number, wnid, words, 0) for number, wnid, words in zip(IDS, WNIDS, WORDS)),
        (5, "n00001740", "entity", 4),
    ]
    table = loadmat(io.BytesIO(meta("ILSVRC2012")), squeeze_me=True)["synsets"]
    assert rows == [tuple(row[field] for field in FIELDS) for row in table]


def element(kind, data):
    return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)


def matrix(category, shape, name, *parts):
    header = (
        element(6, struct.pack(">II", category, 0))
        + element(5, struct.pack(f">{len(shape)}i", *shape))
        + element(1, name)
    )
    return element(14, header + b"".join(parts))


def test_big_endian_files_and_sixteen_bit_text():
    """What MATLAB itself writes: text as 16-bit units, short names within their own tag."""
    fields = struct.pack(">HHi", 4, 5, 8) + element(1, b"f".ljust(8, b"\0"))
    text = matrix(4, (1, 3), b"", element(4, "né1".encode("utf-16-be")))
    number = matrix(6, (1, 1), b"", struct.pack(">HHBBBB", 1, 2, 200, 0, 0, 0))  # a double, packed into one byte
    content = bytes(124) + b"\1\0MI" + matrix(2, (2, 1), b"t", fields, text, number)
    assert struct_array(content, "t", ("f",)) == [("né1",), (200,)]


@every(
    "part, message",
    [
        (matrix(4, (), b"", element(16, b"x")), "a damaged matrix"),
        (matrix(4, (1, 5), b"", struct.pack(">HH", 5, 16) + b"12345678"), "short element"),
        (element(5, matrix(4, (1, 1), b"", element(16, b"x"))[8:]), "a field that is no matrix"),
    ],
    ids=["no sides", "short element too long", "another type"],
)
def test_values_that_are_refused(part, message):
    fields = struct.pack(">HHi", 4, 5, 8) + element(1, b"f".ljust(8, b"\0"))
    with pytest.raises(ValueError, match=message):
        struct_array(bytes(124) + b"\1\0MI" + matrix(2, (1, 1), b"t", fields, part), "t", ("f",))


@every(
    "content, message",
    [
        (b"", "no MATLAB file"),
        (bytes(500), "no MATLAB file"),
        (saved(["a"])[:128], "no variable t"),
        (saved(["a"])[:-20], "cut short"),
        (saved(["a"], True)[:-3], "cut short"),
        (saved(["a"]).replace(b"other", b"f2345"), None),
        (saved([1.5]), "neither text nor"),
        (saved([np.array([1, 2])]), "neither text nor"),
        (saved([float("inf")]), "neither text nor"),
        (saved([np.eye(3)]), "neither text nor"),
        (saved([np.array(["ab", "cd"])]), "text of several lines"),
        (saved(["a"]).replace(b"f\0\0\0", b"g\0\0\0"), "no field f"),
    ],
)  # not the files' text, which has the time of day
def test_files_that_are_refused(content, message):
    if message is None:
        assert struct_array(content, "t", ("f",)) == [("a",)]
        return
    with pytest.raises(ValueError, match=message):
        struct_array(content, "t", ("f",))


def test_a_variable_that_is_no_table():
    buffer = io.BytesIO()
    savemat(buffer, {"t": np.eye(3)})
    with pytest.raises(ValueError, match="no struct array"):
        struct_array(buffer.getvalue(), "t", ("f",))


def test_a_compressed_bomb(monkeypatch):
    monkeypatch.setattr("alexnet_mp.preparation.devkit.LARGEST", 1 << 16)
    stream = zlib.compress(bytes(32 << 20))
    tracemalloc.start()
    with pytest.raises(ValueError, match="more than 65,536 bytes"):
        struct_array(saved(["a"])[:128] + struct.pack("<II", 15, len(stream)) + stream, "t", ("f",))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_sizes_that_the_file_does_not_have():
    """Counts of 2 billion are counted by what is there, not believed."""
    content = saved(["a", "b"])
    shape = content.index(struct.pack("<ii", 1, 2))
    for rows, columns in ((1, 2**31 - 1), (2**31 - 1, 1), (1, 3)):
        with pytest.raises(ValueError, match="cut short"):
            struct_array(content[:shape] + struct.pack("<ii", rows, columns) + content[shape + 8 :], "t", ("f",))


def test_no_byte_can_do_harm():
    """Every byte of the plain file set to five other values: a table or a ValueError, nothing else."""
    content = bytearray(saved(["n01440764", 3.0]))
    for place in range(124, len(content)):
        before = content[place]
        for value in (0, 1, 15, 127, 255):
            content[place] = value
            try:
                struct_array(bytes(content), "t", ("f",))
            except ValueError as error:
                assert str(error)
        content[place] = before
