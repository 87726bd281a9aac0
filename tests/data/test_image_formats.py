"""What is read as a picture, by its content; what one may cost; and what in a file must not spoil it."""

import gzip
import io
import os
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from inner_cases import every
from PIL import Image, ImageFile, TiffImagePlugin
from small_set import encoded, noise

from alexnet_mp.data import image_formats, remarks
from alexnet_mp.data.image_formats import FORMATS, MEMORY, format_of, is_picture, opened
from alexnet_mp.data.resize import decoded
from alexnet_mp.system.errors import MachineError, UserError

SIZE = 24
PICTURE = noise(SIZE, SIZE)
LOSSLESS = {"PNG": {}, "BMP": {}, "TIFF": {}, "WEBP": {"lossless": True}, "JPEG2000": {}, "PPM": {}}


def stored(content, name="x"):
    return decoded(io.BytesIO(content), SIZE, name)


def recognised(content, name="x"):
    return is_picture(name, lambda start, count: content[start : start + count])


def refused(content):
    with pytest.raises(UserError, match="^cannot read image x: ") as refusal:
        stored(content)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@every("kind", FORMATS)
def test_every_format_of_the_list_is_read_by_its_content(tmp_path, kind):
    if kind == "AVIF":
        pytest.importorskip("PIL._avif")
    content = encoded(PICTURE, kind, **LOSSLESS.get(kind, {}))
    assert format_of(content) == kind
    for name in ("x", "x.jpg ", "x.txt", "x.JFIF"):
        assert recognised(content, name)
        (tmp_path / name).write_bytes(content)
        picture = decoded(tmp_path / name, SIZE, name)
        assert np.array_equal(picture, stored(content)) and picture.shape == (SIZE, SIZE, 3)
    if kind in LOSSLESS:
        assert np.array_equal(picture, PICTURE)


@every(
    "content",
    [b"", b"P1", b"Some notes.", b"BM is a word", b"P6: the sixth paragraph", b"RIFF1234WAVE", b"GIF", bytes(99)],
)
def test_other_files_are_no_pictures(content):
    assert not recognised(content) and not recognised(gzip.compress(content))
    assert "cannot identify" in refused(content) or not content


def test_a_file_is_opened_as_what_it_begins_as_and_never_by_a_program(tmp_path, monkeypatch):
    """A PostScript file makes Pillow start `gs`; here it makes nobody start anything, whatever its name is."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    content = encoded(PICTURE, "EPS")
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(UserError, match="cannot identify image file: it is none of JPEG, PNG"):
        decoded(tmp_path / "x.jpg", SIZE, "x.jpg")
    assert not recognised(content) and not (tmp_path / "started").exists()


def test_a_name_like_a_pictures_makes_a_damaged_file_one():
    """So that it is named, not passed over."""
    for suffix in ("jpg", "JPEG", "png", "webp", "tif", "jfif", "avif", "jp2", "bmp", "gif", "ppm"):
        assert recognised(b"", f"x.{suffix}")


def test_a_gzipped_picture_is_a_picture():
    content = gzip.compress(encoded(PICTURE))
    assert recognised(content) and np.array_equal(stored(content), PICTURE)
    assert "gzip" in refused(content[:-9])


def tiff(**tags):
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        directory[int(tag[1:])] = value
    return encoded(PICTURE, "TIFF", tiffinfo=directory)


@every("content", [tiff(t254=1), b"II*\0\x10\0\0\0CR\2\0" + bytes(50), tiff(t50706=b"\1\4\0\0")])
def test_a_cameras_raw_file_is_not_read_for_its_preview(content):
    assert not recognised(content)


def test_a_plain_tiff_is_no_raw_file():
    assert recognised(tiff(t254=0)) and recognised(tiff(t305="a program")) and recognised(encoded(PICTURE, "TIFF"))


# --- what a picture may cost


def claiming(width, height):
    """A BMP whose header claims so many pixels."""
    content = bytearray(encoded(PICTURE, "BMP"))
    content[18:26] = struct.pack("<ii", width, height)
    return bytes(content)


def test_two_hundred_megapixels_are_read(monkeypatch):
    """More than Pillow takes by itself, which is a number of the library's."""
    with opened(io.BytesIO(claiming(16384, 12288))) as image:
        assert image.size == (16384, 12288)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert np.array_equal(stored(encoded(PICTURE)), PICTURE)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_what_costs_too_much_is_refused_with_the_limit_and_what_raises_it(monkeypatch):
    message = refused(claiming(50_000, 40_000))
    assert (
        f"2,000,000,000 pixels, decoded 8.0 GB, more than the 2 GB a picture may take; {MEMORY}=8 raises it" in message
    )
    monkeypatch.setenv(MEMORY, "8")
    with opened(io.BytesIO(claiming(50_000, 40_000))) as image:
        assert image.size == (50_000, 40_000)
    monkeypatch.setenv(MEMORY, "0.000001")
    assert f"a file of 0.1 GB, more than the 1e-06 GB a picture may take; {MEMORY}=0.1 raises it" in refused(
        encoded(PICTURE)
    )


@every("value", ["many", "-1", "0", "nan", "inf"])
def test_a_limit_that_is_none_is_not_the_pictures_fault(monkeypatch, value):
    """Else --bad-images skip would leave out all of them."""
    monkeypatch.setenv(MEMORY, value)
    with pytest.raises(MachineError, match=f"{MEMORY}={value}: it must be a number of gigabytes"):
        stored(encoded(PICTURE))


def test_a_vast_tile_of_a_small_picture_is_refused():
    side = 60_000
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 8, 325: 8}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    content = b"II*\0\x10\0\0\0" + bytes(8) + struct.pack("<H", len(tags)) + entries + bytes(4)
    assert "3,600,000,000 pixels, decoded 14.4 GB" in refused(content)


def test_threads_may_open_pictures_at_once(monkeypatch):
    before, errors = Image.MAX_IMAGE_PIXELS, []

    def work():
        for _ in range(20):
            try:
                stored(encoded(PICTURE))
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and Image.MAX_IMAGE_PIXELS == before


# --- what must not spoil a picture


def chunk(kind, data, crc=None):
    crc = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def with_chunk(extra):
    content = encoded(PICTURE)
    return content[:33] + extra + content[33:]  # behind IHDR


VAST = zlib.compress(bytes(3 << 20))
HARMLESS = {
    "3 MB of text": chunk(b"zTXt", b"a\0\0" + VAST),
    "3 MB of international text": chunk(b"iTXt", b"a\0\1\0\0\0" + VAST),
    "80 MB of text": 40 * chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2 << 20))),
    "3 MB of profile": chunk(b"iCCP", b"a\0\0" + VAST),
    "damaged profile": chunk(b"iCCP", b"a\0\0garbage"),
    "wrong crc of a text": chunk(b"tEXt", b"a\0b", crc=1),
    "wrong crc of a time": chunk(b"tIME", bytes(7), crc=1),
    "wrong crc of a transparency": chunk(b"tRNS", bytes(6), crc=1),
    "wrong crc of significant bits": chunk(b"sBIT", b"\10\10\10", crc=1),
    "damaged EXIF": chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\xff"),
    "damaged animation": chunk(b"acTL", b"\0"),
    "short size": chunk(b"pHYs", b"\0"),
}


@every("added", HARMLESS)
def test_what_no_pixel_depends_on_does_not_spoil_a_png(added):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(stored(with_chunk(HARMLESS[added])), PICTURE)


def test_what_pixels_depend_on_does():
    content = encoded(PICTURE)
    data = content.index(b"IDAT") + 4
    assert refused(content[:data] + bytes([content[data] ^ 1]) + content[data + 1 :])
    assert refused(with_chunk(chunk(b"PLTE", b"\1\2\3", crc=1)))
    for end in (20, 33, 40, len(content) // 2):
        assert refused(content[:end])


def test_significant_bits_stay():
    with opened(io.BytesIO(with_chunk(chunk(b"sBIT", b"\5\5\5")))) as image:
        image.fp.seek(0)
        assert b"sBIT\5\5\5" in image.fp.read()


def segment(marker, data):
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


def jpeg_with(extra):
    content = encoded(PICTURE, "JPEG")
    return content[:2] + extra + content[2:]


DAMAGED = {
    "EXIF that ends early": segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff"),
    "EXIF of garbage": segment(0xE1, b"Exif\0\0" + bytes(range(200))),
    "EXIF that points outside": segment(
        0xE1, b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 0x11A, 5, 1, 1 << 31) + bytes(4)
    ),
    "several pictures, none there": segment(0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff"),
    "Photoshop's": segment(0xED, b"Photoshop 3.0\0" + b"8BIM\3\xed\0\0\0\0\0\x09abc"),
    "profile": segment(0xE2, b"ICC_PROFILE\0\5"),
}


@every("added", DAMAGED)
def test_damaged_metadata_warn_of_nothing_and_spoil_no_jpeg(capfd, added):
    """Also where Python is told to make warnings errors."""
    expected = stored(encoded(PICTURE, "JPEG"))
    for action in ("error", "always"):
        with warnings.catch_warnings(record=action == "always") as records:
            warnings.simplefilter(action)
            assert np.array_equal(stored(jpeg_with(DAMAGED[added])), expected)
        assert not records
    assert capfd.readouterr() == ("", "")


def test_damaged_exif_of_webp_warns_of_nothing(recwarn):
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff"
    assert np.array_equal(stored(encoded(PICTURE, "WEBP", **LOSSLESS["WEBP"], exif=exif)), PICTURE)
    assert not recwarn.list


def test_nothing_of_pillows_stays_changed():
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)
    for content in (encoded(PICTURE), b"garbage", claiming(50_000, 50_000), b"\xff\xd8\xff"):
        try:
            stored(content)
        except UserError:
            pass
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)) == before
    assert image_formats._opened == 0


# --- several pictures in one file


def with_more(kind, others=1, **options):
    """PICTURE, and other pictures behind it."""
    pictures = [Image.fromarray(noise(SIZE, SIZE, seed=seed)) for seed in range(2, 2 + others)]
    return encoded(PICTURE, kind, save_all=True, append_images=pictures, **options)


def pages(*kinds, big=False):
    """A TIFF of PICTURE, and of a page more for each number: its NewSubfileType."""
    buffer = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(buffer, new=True) if not big else buffer as writer:
        for number, kind in enumerate((0, *kinds)):
            tags = TiffImagePlugin.ImageFileDirectory_v2()
            tags[254] = kind
            picture = PICTURE if number == 0 else noise(SIZE, SIZE, seed=number)
            Image.fromarray(picture).save(writer, "TIFF", tiffinfo=tags)
            writer.newFrame()
        return buffer.getvalue()


def maps():
    """Portable maps in each binary form: of bits, of 8 and of 16 bits, in colour and grey."""
    size = f"{SIZE - 1} {SIZE}"
    grey = noise(SIZE, SIZE - 1, 1)
    yield f"P4 {size}\n".encode() + np.packbits(grey > 99, axis=1).tobytes()
    for white in (200, 255, 4000, 65535):
        values = grey.astype(np.uint8 if white < 256 else ">u2") % white
        yield f"P5 {size} {white}\n".encode() + values.tobytes()
        yield f"P6 {size} {white}\n".encode() + np.repeat(values, 3).tobytes()


SEVERAL = {
    "APNG": lambda: with_more("PNG"),
    "APNG with a picture of its own": lambda: with_more("PNG", 2, default_image=True),
    "GIF": lambda: with_more("GIF"),
    "WebP": lambda: with_more("WEBP", lossless=True),
    "TIFF": lambda: with_more("TIFF", 3),
    "BigTIFF": lambda: with_more("TIFF", big_tiff=True),
    "a page behind a thumbnail": lambda: pages(1, 0),
    **{f"portable map {number}": lambda content=content: content * 2 for number, content in enumerate(maps())},
}
SINGLE = {
    "PNG": lambda: encoded(PICTURE),
    "APNG of one": lambda: encoded(PICTURE)[:33] + chunk(b"acTL", struct.pack(">II", 1, 0)) + encoded(PICTURE)[33:],
    "GIF": lambda: encoded(PICTURE, "GIF"),
    "WebP": lambda: encoded(PICTURE, "WEBP", lossless=True),
    "thumbnails and a mask": lambda: pages(1, 4, 5),
    "stereo JPEG": lambda: with_more("MPO"),
    "pages that lead round": lambda: round_and_round(),
    **{f"portable map {number}": lambda content=content: content for number, content in enumerate(maps())},
}


def round_and_round():
    """The directory of a TIFF names itself as the next."""
    content = bytearray(encoded(PICTURE, "TIFF"))
    place = int.from_bytes(content[4:8], "little")
    pointer = place + 2 + 12 * int.from_bytes(content[place : place + 2], "little")
    content[pointer : pointer + 4] = content[4:8]
    return bytes(content)


def test_of_several_pictures_in_a_file_the_first_is_read_and_that_is_said(capsys):
    for name, make in (SEVERAL | {f"one: {name}": make for name, make in SINGLE.items()}).items():
        remarks.SEVERAL.forget()
        picture = stored(make(), name)
        if not any(word in name for word in ("GIF", "JPEG", "portable")):
            assert np.array_equal(picture, PICTURE), name
        expected = "" if name.startswith("one: ") else f"{name}: several pictures in one file: the first is read\n"
        assert capsys.readouterr().err == expected, name
    remarks.SEVERAL.forget()
    for number in range(8):
        stored(SEVERAL["TIFF"](), number)
    remarks.count_remarks()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6 and lines[-1] == "several pictures in one file: 8 pictures in all, 3 of them not named"
    remarks.SEVERAL.forget()


def test_what_follows_the_first_picture_spoils_it_nowhere():
    """However the file is cut behind it."""
    for make, frame in ((SEVERAL["GIF"], encoded(PICTURE, "GIF")), (SEVERAL["TIFF"], encoded(PICTURE, "TIFF"))):
        content = make()
        for end in range(len(frame) + 10, len(content), 37):
            assert np.array_equal(stored(content[:end]), stored(content)), end
