"""One function from any image file to the stored picture: formats, odd modes, the resampling, and files that are no
image."""

import errno
import io
import os
from fractions import Fraction
from itertools import pairwise
from math import floor

import numpy as np
import pytest
from inner_cases import every
from PIL import Image
from small_set import encoded, noise

from alexnet_mp.data import resize
from alexnet_mp.data.resize import decoded, stored_picture
from alexnet_mp.system.errors import MachineError, UserError

SIZE = 24


def stored(content, name="x.jpg", size=SIZE):
    return decoded(io.BytesIO(content), size, name)


@every("kind, name", [("PNG", "x.JPEG"), ("JPEG", "x.png")])
def test_the_content_decides_the_format(kind, name):
    """ILSVRC has a PNG named .JPEG."""
    content = encoded(noise(SIZE, SIZE), kind)
    assert np.array_equal(stored(content, name), np.asarray(Image.open(io.BytesIO(content))))


@every("grey", [noise(SIZE, SIZE, 1), noise(SIZE, SIZE, 1) > 127], ids=["8 bits", "1 bit"])
def test_grey_becomes_rgb(grey):
    expected = np.repeat((grey if grey.dtype == np.uint8 else grey * np.uint8(255))[:, :, None], 3, axis=2)
    assert np.array_equal(stored(encoded(grey)), expected)


def test_cmyk_becomes_rgb():
    """Cyan, magenta, yellow, black, no ink: JPEG at its best quality is within 4 of the colours."""
    inks = np.zeros((SIZE, 5 * SIZE, 4), np.uint8)
    for i in range(4):
        inks[:, i * SIZE : (i + 1) * SIZE, i] = 255
    content = encoded(Image.frombytes("CMYK", (5 * SIZE, SIZE), inks.tobytes()), "JPEG", quality=100, subsampling=0)
    assert Image.open(io.BytesIO(content)).mode == "CMYK"
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    colours = np.repeat([[0, 255, 255], [255, 0, 255], [255, 255, 0], [0, 0, 0], [255, 255, 255]], SIZE, axis=0)
    assert np.abs(pixels - colours).max() <= 4
    assert np.array_equal(stored(content), pixels[:, 2 * SIZE : 3 * SIZE])  # the central square: yellow


def test_transparency_is_dropped():
    """The colour under a transparent pixel stays; nothing is blended with a background."""
    rgba = noise(SIZE, SIZE, 4)
    assert np.array_equal(stored(encoded(rgba)), rgba[:, :, :3])
    grey = Image.merge("LA", [Image.fromarray(rgba[:, :, i]) for i in (0, 3)])
    assert np.array_equal(stored(encoded(grey)), rgba[:, :, [0, 0, 0]])


def palette_png(**transparency):
    """A PNG with 256 colours, and what its pixels should be."""
    indices, palette = noise(SIZE, SIZE, 1), noise(256, 3, 1, seed=2)
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    content = encoded(image, **transparency)
    assert Image.open(io.BytesIO(content)).mode == "P"
    return content, palette[indices]


ALPHA_TABLE = {"transparency": bytes(range(256))}


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@every("transparency", [{}, {"transparency": 7}, ALPHA_TABLE], ids=["none", "one colour", "table"])
def test_a_palette_becomes_rgb(transparency):
    content, expected = palette_png(**transparency)
    assert np.array_equal(stored(content), expected)


def test_a_palette_is_no_reason_to_warn(recwarn):
    stored(palette_png(**ALPHA_TABLE)[0])
    assert not recwarn.list


def test_sixteen_bits_keep_their_greys():
    """Pillow's own conversion clips at 255: mid-grey, 32768, would become white."""
    greys = np.tile(np.arange(SIZE, dtype=np.uint16) * 2800, (SIZE, 1))
    greys[0, :4] = 0, 255, 32768, 65535
    expected = greys >> 8
    assert expected[0, :4].tolist() == [0, 0, 128, 255]
    content = encoded(greys)
    assert Image.open(io.BytesIO(content)).mode.startswith("I")
    assert np.array_equal(stored(content, "x.png"), np.repeat(expected[:, :, None], 3, axis=2))


def test_floats_are_grey_levels_and_those_of_at_most_1_are_refused():
    grey = np.linspace(0, 255, 30 * 20, dtype=np.float32).reshape(30, 20)
    assert (
        stored_picture(Image.fromarray(grey), 20) == stored_picture(Image.fromarray(grey.astype(np.uint8)), 20)
    ).all()
    with pytest.raises(UserError, match="floats of at most 1"):
        stored_picture(Image.fromarray(grey / 255), 20)


def test_one_pixel_fills_the_picture():
    picture = stored(encoded(np.array([[[9, 90, 200]]], np.uint8)))
    assert picture.shape == (SIZE, SIZE, 3) and picture.dtype == np.uint8
    assert (picture == [9, 90, 200]).all()


@every("orientation", [3, 6, 8])
def test_orientation_tags_are_ignored(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain_content = encoded(noise(SIZE, SIZE), "JPEG")
    content = encoded(noise(SIZE, SIZE), "JPEG", exif=exif)
    assert Image.open(io.BytesIO(content)).getexif()[0x0112] == orientation
    assert np.array_equal(stored(content), stored(plain_content))


@every("factor", [2, 3])
def test_reduction_is_the_mean_of_each_block(factor):
    blocks = noise(SIZE, SIZE)
    picture = np.kron(blocks, np.ones((factor, factor, 1), np.uint8))
    assert np.array_equal(stored_picture(Image.fromarray(picture), SIZE), blocks)
    pixels = noise(SIZE * factor, SIZE * factor)  # halves are rounded up
    expected = np.floor(pixels.reshape(SIZE, factor, SIZE, factor, 3).mean((1, 3)) + 0.5)
    assert np.array_equal(stored_picture(Image.fromarray(pixels), SIZE), expected)


def shares(source, start, side, count):
    """(count, source): the part of each share of `side` pixels from `start` that lies in each pixel, as fractions."""
    ends = [Fraction(start) + Fraction(side * number, count) for number in range(count + 1)]
    return [
        [max(Fraction(0), min(end, pixel + 1) - max(first, pixel)) * Fraction(count, side) for pixel in range(source)]
        for first, end in pairwise(ends)
    ]


@every(
    "height, width, size",
    [(3, 3, 2), (3, 4, 2), (4, 3, 2), (9, 14, 5), (13, 8, 7), (20, 33, 18), (40, 23, 19), (375, 3, 2)],
)
def test_reduction_is_by_areas_also_by_fractions(height, width, size):
    """Pixels of two shares count by their parts, and those at the border of an odd margin half; no rounding between."""
    picture, side = noise(height, width), min(height, width)
    row_shares = np.array(shares(height, Fraction(height - side, 2), side, size))
    column_shares = np.array(shares(width, Fraction(width - side, 2), side, size))
    means = np.einsum("ih,hwc,jw->ijc", row_shares, picture.astype(int).astype(object), column_shares, optimize=True)
    expected = np.vectorize(lambda mean: floor(mean + Fraction(1, 2)))(means)
    assert np.array_equal(stored_picture(Image.fromarray(picture), size), expected)


def test_sums_of_large_pictures_do_not_overflow():
    """A side of 1,600 pixels: 255 * 4 * 1,600 * 1,600 is more than 32 bits hold."""
    white = Image.new("RGB", (1600, 1600), "white")
    assert (stored_picture(white, 24) == 255).all()
    assert (stored_picture(white.crop((0, 0, 1400, 1400)), 24) == 255).all()


@every("turned", [False, True])
@every("sides, shape", [((9, 31), (4, 4)), ((150, 3), (140, 2))])  # the second in several bands
def test_any_rectangle_is_reduced_by_areas(turned, sides, shape):
    picture = noise(*sides)
    parts = [np.array(shares(side, 0, side, count)) for side, count in zip(sides, shape)]
    means = np.einsum("ih,hwc,jw->ijc", parts[0], picture.astype(object), parts[1], optimize=True)
    expected = np.vectorize(lambda mean: floor(mean + Fraction(1, 2)))(means)
    if turned:
        picture, expected, sides, shape = picture.swapaxes(0, 1), expected.swapaxes(0, 1), sides[::-1], shape[::-1]
    image = Image.fromarray(np.ascontiguousarray(picture))
    assert np.array_equal(resize.reduced(image, (0, 0), sides, shape), expected)


def test_from_375_to_256_no_area_is_lost():
    """ILSVRC's commonest side: the mean of all is kept, and a thin line weighs the same wherever it is."""
    lines = np.zeros((375, 375, 3), np.uint8)
    for place in range(0, 375, 8):
        lines[:] = 0
        lines[place] = 240
        column = stored_picture(Image.fromarray(lines), 256)[:, 0, 0].astype(float)
        assert abs(column.sum() - 240 * 256 / 375) <= 1 and (column > 0).sum() <= 2


def test_enlargement_is_smooth():
    """Bicubic: a ramp stays a ramp, where the nearest pixel would make stairs."""
    ramp = np.tile((np.arange(12) * 20)[None, :, None], (12, 1, 3)).astype(np.uint8)
    row = stored_picture(Image.fromarray(ramp), 48)[24, 8:40, 0].astype(int)
    assert np.abs(np.diff(row) - 5).max() <= 1


@every(
    "height, width, top, left",
    [(SIZE, SIZE, 0, 0), (SIZE, SIZE + 20, 0, 10), (SIZE + 20, SIZE, 10, 0), (SIZE, SIZE + 7, 0, 3)],
)
def test_the_right_size_is_cropped_centrally_and_left_as_it_is(height, width, top, left):
    picture = noise(height, width)
    assert np.array_equal(stored_picture(Image.fromarray(picture), SIZE), picture[top : top + SIZE, left : left + SIZE])


@every("turn", [lambda a: a, lambda a: a.transpose(1, 0, 2)], ids=["landscape", "portrait"])
def test_the_central_square_of_a_larger_picture(turn):
    picture = np.kron(noise(SIZE, SIZE + 30), np.ones((2, 2, 1), np.uint8))
    expected = noise(SIZE, SIZE + 30)[:, 15 : 15 + SIZE]
    assert np.array_equal(stored_picture(Image.fromarray(turn(picture)), SIZE), turn(expected))


@every("side", [SIZE // 2, SIZE, SIZE + 7, 2 * SIZE])
@every("warp", [False, True])
def test_a_stored_picture_lies_in_memory_row_by_row(side, warp):
    """DALI takes nothing else."""
    assert stored_picture(Image.fromarray(noise(side, side + 5)), SIZE, warp=warp).flags.c_contiguous


def claiming(content, width, height):
    """A JPEG whose header claims another size."""
    frame = content.index(b"\xff\xc0") + 5  # after the marker, its length and the precision
    return content[:frame] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + content[frame + 4 :]


@every(
    "content",
    [
        encoded(noise(40, 40), "JPEG")[:700],
        encoded(noise(40, 40))[:2000],
        b"no image at all\n" * 9,
        b"",
        b"\xff\xd8\xff",
        claiming(encoded(noise(40, 40), "JPEG"), 50_000, 50_000),
    ],
    ids=["truncated JPEG", "truncated PNG", "garbage", "empty", "JPEG header alone", "2,500 million pixels"],
)
def test_what_is_no_image_is_named_in_one_line(content):
    with pytest.raises(UserError, match=r"^cannot read image n01/x.jpg: \w.*\w") as refusal:
        stored(content, "n01/x.jpg")
    message = str(refusal.value)
    assert "\n" not in message and message.count("x.jpg") == 1 and "BytesIO" not in message and len(message) < 160


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot read image .*gone.png: No such file or directory$") as refusal:
        decoded(tmp_path / "gone.png", SIZE, tmp_path / "gone.png")
    assert str(refusal.value).count("gone.png") == 1


@pytest.mark.run
def test_a_large_photograph_is_no_bomb(recwarn):
    """Between Pillow's two limits, 89 and 179 million pixels, it warns; one that is read is no reason to."""
    assert stored(encoded(Image.new("L", (9500, 9500)), "PNG")).shape == (SIZE, SIZE, 3) and not recwarn.list


@every("number, is_machines", [(errno.EMFILE, True), (errno.EIO, True), (errno.EACCES, False)])
def test_a_failure_of_the_machine_is_not_the_pictures(number, is_machines, tmp_path, monkeypatch):
    """Else `prepare --bad-images skip` would leave out sound pictures."""

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(resize, "opened", fail)
    with pytest.raises(UserError, match=f"cannot read image x.png: {os.strerror(number)}") as failure:
        decoded(tmp_path / "x.png", 8, "x.png")
    assert isinstance(failure.value, MachineError) is is_machines
    assert ("ulimit -n" in str(failure.value)) is (number == errno.EMFILE)


@every("high, wide", [(2, 3), (1, 4), (5, 1), (1, 1)])
def test_a_squeezed_picture_has_all_of_the_image(high, wide):
    """Each pixel is the mean of a block, which is no square; what is shorter than the square is stretched."""
    pixels = np.random.default_rng(3).integers(0, 256, (SIZE * high, SIZE * wide, 3)).astype(np.uint8)
    expected = pixels.reshape(SIZE, high, SIZE, wide, 3).mean((1, 3))
    picture = stored_picture(Image.fromarray(pixels), SIZE, warp=True)
    assert picture.shape == (SIZE, SIZE, 3) and picture.dtype == np.uint8
    assert np.array_equal(picture, np.floor(expected + 0.5))
    other = stored_picture(Image.fromarray(pixels[: SIZE // 2]), SIZE, warp=True)
    assert other.shape == (SIZE, SIZE, 3) and not np.array_equal(other, picture)
