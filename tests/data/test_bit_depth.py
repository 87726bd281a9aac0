"""Pictures of more than 8 bits a channel: what becomes of their values, and which are refused or said."""

import io
import struct
import zlib

import numpy as np
import pytest
from inner_cases import every
from PIL import Image

from alexnet_mp.data import remarks
from alexnet_mp.data.resize import decoded
from alexnet_mp.data.workers import load
from alexnet_mp.system.errors import UserError

SIZE = 16


@pytest.fixture(autouse=True)
def nothing_noted():
    forget()


def forget():
    remarks.DARK.forget()


def values(bits, channels=1):
    """Whole numbers below 2**bits, among them the largest: (SIZE, SIZE) or (SIZE, SIZE, channels)."""
    shape = (SIZE, SIZE, channels) if channels > 1 else (SIZE, SIZE)
    levels = np.random.default_rng(bits).integers(0, 1 << bits, shape)
    levels[0, 0] = (1 << bits) - 1
    return levels


def png(pixels, sbit=None):
    """A PNG of 16 bits: grey, grey and alpha, RGB, or RGBA."""
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *pixels.shape[1::-1], 16, colour, 0, 0, 0))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = chunk(b"gAMA", struct.pack(">I", 45455)) + (chunk(b"sBIT", bytes([sbit] * channels)) if sbit else b"")
    return b"\x89PNG\r\n\x1a\n" + head + chunks + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(pixels, order="<", bits=None, **tags):
    """An uncompressed TIFF, in one strip. tags: numbers by "t" and the number of the tag."""
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    content = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    fields = {256: [width], 257: [height], 258: [bits or 8 * pixels.dtype.itemsize] * channels, 259: [1]}
    fields |= {262: [1 if channels == 1 else 2], 273: [0], 277: [channels], 278: [height], 279: [len(content)]}
    fields |= {339: [kind] * channels} | {int(name[1:]): value for name, value in tags.items()}
    place = 8 + 2 + 12 * len(fields) + 4
    lists = {tag: struct.pack(f"{order}{len(field)}I", *field) for tag, field in fields.items() if len(field) > 1}
    fields[273] = [place + sum(map(len, lists.values()))]
    entries, tail = b"", b""
    for tag, field in sorted(fields.items()):
        at = place + len(tail) if tag in lists else field[0]
        entries += struct.pack(f"{order}HHII", tag, 4, len(field), at)
        tail += lists.get(tag, b"")
    magic = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    return magic + struct.pack(f"{order}H", len(fields)) + entries + bytes(4) + tail + content


def stored(content, name="x.png"):
    return decoded(io.BytesIO(content), SIZE, name)


def as_rgb(levels):
    return np.repeat(levels[:, :, None], 3, axis=2) if levels.ndim == 2 else levels[:, :, :3]


DEEP = {
    "grey PNG": lambda bits, sbit: png(values(bits), sbit),
    "grey and alpha PNG": lambda bits, sbit: png(np.stack([values(bits), np.full((SIZE, SIZE), 65535)], 2), sbit),
    "RGB PNG": lambda bits, sbit: png(values(bits, 3), sbit),
    "RGBA PNG": lambda bits, sbit: png(np.concatenate([values(bits, 3), np.full((SIZE, SIZE, 1), 65535)], 2), sbit),
    "grey TIFF": lambda bits, sbit: tiff(values(bits).astype(np.uint16), **said_in_tiff(sbit, 1)),
    "grey TIFF, Motorola": lambda bits, sbit: tiff(values(bits).astype(np.uint16), ">", **said_in_tiff(sbit, 1)),
    "int32 TIFF": lambda bits, sbit: tiff(values(bits).astype(np.int32), **said_in_tiff(sbit, 1)),
    "RGB TIFF": lambda bits, sbit: tiff(values(bits, 3).astype(np.uint16), **said_in_tiff(sbit, 3)),
    "RGB TIFF, Motorola": lambda bits, sbit: tiff(values(bits, 3).astype(np.uint16), ">", **said_in_tiff(sbit, 3)),
    "RGBA TIFF": lambda bits, sbit: tiff(
        np.concatenate([values(bits, 3), np.full((SIZE, SIZE, 1), 65535)], 2).astype(np.uint16),
        t338=[2],
        **said_in_tiff(sbit, 4),
    ),
}


def said_in_tiff(bits, channels):
    return {"t281": [(1 << bits) - 1] * channels} if bits else {}


def expected(kind, levels):
    return as_rgb(levels(3) if "RGB" in kind else levels(1))


@every("kind", DEEP)
def test_all_sixteen_bits_keep_their_greys(kind, capsys):
    assert (stored(DEEP[kind](16, None)) == expected(kind, lambda channels: values(16, channels) >> 8)).all()
    assert capsys.readouterr().err == ""


@every("bits", [9, 10, 12, 14])
@every("kind", DEEP)
def test_significant_bits_are_the_scale(kind, bits, capsys):
    levels = expected(kind, lambda channels: values(bits, channels) >> bits - 8)
    assert (stored(DEEP[kind](bits, bits)) == levels).all()
    assert capsys.readouterr().err == ""


@every("kind", DEEP)
def test_values_of_eight_bits_are_refused_where_all_would_be_black(kind):
    with pytest.raises(UserError, match=r"^cannot read image n1/x.png: its values, \d+ to 255 of 65,535, all become"):
        stored(DEEP[kind](8, None), "n1/x.png")
    assert (stored(DEEP[kind](8, 8)) == expected(kind, lambda channels: values(8, channels))).all()


@every("kind", DEEP)
def test_a_file_that_does_not_say_its_bits_is_a_line(kind, capsys):
    forget()
    picture = stored(DEEP[kind](12, None), "n1/x.png")
    assert (picture == expected(kind, lambda channels: values(12, channels) >> 8)).all()
    line = capsys.readouterr().err
    assert line.startswith("n1/x.png: dark: its values are ") and " 4,095" in line and "sBIT" in line
    assert line.count("\n") == 1
    stored(DEEP[kind](12, None), "n1/x.png")
    assert capsys.readouterr().err == ""  # not again in every epoch


def test_the_lines_come_to_an_end_and_the_others_are_counted(capfd):
    """By one process and by several, which read each picture once and once again."""
    for workers in (0, 3):
        forget()
        for _ in range(2):
            assert len(list(load(Dark(), None, workers))) == 20
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == remarks.MOST_NAMED + 1 and all(": dark: its values are " in line for line in lines[:-1])
        assert lines[-1] == "dark: 20 pictures in all, 15 of them not named", workers
        assert len(set(lines)) == len(lines)
    forget()
    list(load(Dark(remarks.MOST_NAMED), None, 0))
    assert len(capfd.readouterr().err.splitlines()) == remarks.MOST_NAMED


class Dark:
    """Pictures of 12 bits that don't say so."""

    def __init__(self, count=20):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        return stored(png(values(12)), f"{number}.png").shape


@every("kind", DEEP)
def test_a_range_that_becomes_black_is_refused_though_it_lies_on_two_levels(kind, monkeypatch):
    """256 of 65,535 is grey level 1: as black as level 0. From level 2 on there is a line."""
    for maximum, refused in ((256, True), (511, True), (512, False)):
        monkeypatch.setattr(f"{__name__}.values", lambda bits, channels=1: below(maximum, channels))
        if refused:
            with pytest.raises(
                UserError, match=rf"its values, \d+ to {maximum} of 65,535, all become grey level 0 or 1"
            ):
                stored(DEEP[kind](16, None))
        else:
            assert stored(DEEP[kind](16, None)).max() == 2


def below(maximum, channels):
    levels = np.random.default_rng(0).integers(0, maximum + 1, (SIZE, SIZE, channels))
    levels[0, 0] = maximum
    return levels if channels > 1 else levels[:, :, 0]


@every("kind", DEEP)
def test_a_few_bright_pixels_light_no_picture(kind, capsys, monkeypatch):
    """A dead pixel of a camera: the others are nearly black all the same."""
    levels = {channels: values(11, channels) for channels in (1, 3)}
    for of_kind in levels.values():
        of_kind[0, 0] = 65_535
    monkeypatch.setattr(f"{__name__}.values", lambda bits, channels=1: levels[channels])
    forget()
    assert (stored(DEEP[kind](16, None), "n1/x") == expected(kind, lambda channels: levels[channels] >> 8)).all()
    line = capsys.readouterr().err
    assert line.startswith("n1/x: dark: its values are ") and "65,535, 99 % of them in the lowest quarter" in line


def test_a_png_whose_values_are_scaled_up_as_its_specification_wants_is_left_so(capsys):
    """12 significant bits in the upper part of 16: the picture is as bright, or as dark, as it says."""
    for peak in (4095, 200):
        levels = values(12) * peak // 4095
        assert (stored(png(levels << 4, 12)) == as_rgb(levels >> 4)).all()
    assert capsys.readouterr().err == ""


def test_one_value_is_no_range():
    for value in (0, 200, 40_000):
        levels = np.full((SIZE, SIZE), value)
        assert (stored(png(levels)) == value >> 8).all() and (stored(tiff(levels.astype(np.int32))) == value >> 8).all()


@every(
    "pixels, message",
    [
        (values(16).astype(np.int32) * 4, r"its values are [\d,]+ to 262,140; only 0 to 65,535"),
        (values(8).astype(np.int32) - 9, r"its values are -\d to 246; only 0 to 65,535"),
        (values(8).astype(np.int16) - 9, r"its values are -\d to 246; only 0 to 32,767"),
        (values(12).astype(np.float32), r"its values are [\d.]+ to 4,095.0; only 0 to 255"),
        (values(8).astype(np.float32) - 20, r"its values are -[\d.]+ to 235.0; only 0 to 255"),
        (values(8).astype(np.float32) / 255, "floats of at most 1"),
        (100 + values(8).astype(np.float32) / 300, "all become grey level 100 of 255"),
        (np.where(values(8) == 255, np.nan, values(8)).astype(np.float32), "of its pixels are not numbers"),
        (np.where(values(8) == 255, np.inf, values(8)).astype(np.float32), "of its pixels are not numbers"),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(pixels, message):
    with pytest.raises(UserError, match="^cannot read image n1/x.tif: .*" + message) as refusal:
        stored(tiff(pixels), "n1/x.tif")
    assert "\n" not in str(refusal.value)


def test_floats_within_a_level_of_the_range_are_rounding():
    pixels = values(8).astype(np.float32)
    pixels[0, :2] = -0.4, 255.4
    expected = values(8)
    expected[0, :2] = 0, 255
    assert (stored(tiff(pixels)) == as_rgb(expected)).all()


def test_twelve_bits_that_are_packed():
    """BitsPerSample 12: three bytes hold two values."""
    levels = values(12)
    first, second = levels[:, ::2], levels[:, 1::2]
    octets = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 2).reshape(SIZE, -1)
    content = tiff(octets.astype(np.uint8), bits=12, t256=[SIZE])
    assert Image.open(io.BytesIO(content)).mode == "I;16"
    assert (stored(content) == as_rgb(levels >> 4)).all()


def test_a_tiff_in_which_0_is_white():
    """Pillow turns 8 bits round and leaves 16 as they are."""
    assert (stored(tiff(values(16).astype(np.uint16), t262=[0])) == 255 - as_rgb(values(16) >> 8)).all()
    assert (stored(tiff(values(8).astype(np.uint8), t262=[0])) == 255 - as_rgb(values(8))).all()


def test_compressed_tiffs_and_portable_maps():
    """libtiff hands over the machine's order of bytes; a portable map says what is white."""
    buffer = io.BytesIO()
    Image.fromarray(values(16).astype(np.uint16)).save(buffer, "TIFF", compression="tiff_lzw")
    assert (stored(buffer.getvalue()) == as_rgb(values(16) >> 8)).all()
    # A strip packed by zlib, as libtiff's "Adobe deflate".
    plain_tiff, pixels = tiff(values(12, 3).astype(np.uint16), t281=[4095] * 3), values(12, 3).astype("<u2").tobytes()
    strip = zlib.compress(pixels)
    deflate_tiff = tiff(values(12, 3).astype(np.uint16), t281=[4095] * 3, t259=[8], t279=[len(strip)])
    assert plain_tiff.endswith(pixels) and (stored(plain_tiff) == values(12, 3) >> 4).all()
    assert (stored(deflate_tiff.removesuffix(pixels) + strip) == values(12, 3) >> 4).all()
    portable_map = b"P5 %d %d 4095\n" % (SIZE, SIZE) + values(12).astype(">u2").tobytes()
    assert np.abs(stored(portable_map).astype(int) - as_rgb(values(12) >> 4)).max() <= 1


def test_portable_maps_in_colour_are_refused_where_all_becomes_black():
    """Pillow reads them as 8 bits, rounded."""

    def maps(pixels, white):
        size = f"{SIZE} {SIZE} {white}\n"
        yield f"P6 {size}".encode() + pixels.astype(">u2").tobytes()
        yield f"P3 {size}{' '.join(map(str, pixels.ravel()))}".encode()

    for bits in (7, 8):
        for content in maps(values(bits, 3), 65_535):
            with pytest.raises(UserError, match="its values, of 65,535, all become grey level 0 or 1 of 255"):
                stored(content)
    for pixels, white in ((values(12, 3), 4095), (values(12, 3), 65_535), (np.full((SIZE, SIZE, 3), 9), 65_535)):
        for content in maps(pixels, white):
            assert np.abs(stored(content) - pixels / white * 255).max() <= 0.5


def test_a_sign_is_no_significant_bit(capsys):
    """The brightest value of 16 bits with a sign, 32,767, is white; of 8 bits, 127, level 254. Pillow reads -1 of 8
    bits as 255, which is refused."""
    for order in "<>":
        assert (stored(tiff(values(15).astype(np.int16), order)) == as_rgb(values(15) >> 7)).all()
        assert stored(tiff(values(15).astype(np.int16), order)).max() == 255
        assert (stored(tiff(values(12).astype(np.int16), order, t281=[4095])) == as_rgb(values(12) >> 4)).all()
    assert (stored(tiff(values(7).astype(np.int8))) == as_rgb(values(7) << 1)).all()
    with pytest.raises(UserError, match="its values have a sign, and some are below 0"):
        stored(tiff((values(8) - 128).astype(np.int8)))
    assert capsys.readouterr().err == ""
    assert (stored(tiff(values(12).astype(np.int16)), "n1/x.tif") == as_rgb(values(12) >> 7)).all()
    line = capsys.readouterr().err
    assert line.startswith("n1/x.tif: dark: its values are ") and "taken as of 32,767; a file that means fewer" in line
    with pytest.raises(UserError, match="to 255 of 32,767, all become grey level 0 or 1 of 255; store it with 8 bits"):
        stored(tiff(values(8).astype(np.int16)))


def test_planes_of_sixteen_bits_are_refused():
    """Pillow reads every second byte of such a file as a pixel."""
    planes = tiff(values(16, 3).astype(np.uint16), t284=[2], t273=[0, 0, 0], t279=[2 * SIZE * SIZE] * 3)
    with pytest.raises(UserError, match="its 16-bit channels lie in planes"):
        stored(planes)


def test_a_file_on_disk_is_read_as_in_memory(tmp_path):
    (tmp_path / "x.png").write_bytes(png(values(12, 3), 12))
    assert (decoded(tmp_path / "x.png", SIZE, "x.png") == values(12, 3) >> 4).all()
