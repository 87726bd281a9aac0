"""Figure 3: kernels in their places under one scale, and what is written beside them."""

import numpy as np
from PIL import ImageDraw

from alexnet_mp.analysis.figure_3 import GAP, SCALE, TITLE, kernel_picture, kernel_tiles


def test_kernels_share_one_scale_and_keep_their_places():
    weights = np.zeros((48, 3, 11, 11), np.float32)
    # red: a's first; blue-ish: b's first
    weights[0, 0], weights[0, 1:], weights[24, 2], weights[47] = 0.5, -0.5, 0.5, 0.25
    picture = np.asarray(kernel_picture(weights, towers=2)).astype(int)
    cell, title = 11 * SCALE + GAP, 22

    def pixel(tower, index):
        top = tower * (title + 2 * cell + GAP) + title + (index // 12) * cell  # two full rows
        return picture[top + 5, GAP + (index % 12) * cell + 5].tolist()

    assert pixel(0, 0) == [255, 0, 0]
    # zero is grey in both towers: the scale is the layer's, not the kernel's
    assert pixel(0, 1) == pixel(1, 1) == [128, 128, 128]
    assert pixel(1, 0) == [128, 128, 255]
    assert pixel(1, 23) == [191, 191, 191]


def test_each_kernel_with_its_own_scale():
    """A faint kernel looks as a strong one of the same shape; then there is one scale for the layer; a constant one is
    grey."""
    random = np.random.default_rng(0)
    weights = random.normal(size=(4, 3, 5, 5)).astype(np.float32)
    weights[1], weights[2] = 1e-4 * weights[0] + 7e-4, 0.3
    (tiles,) = kernel_tiles(weights, towers=1, scale="kernel")
    picture = np.asarray(tiles.convert("RGB")).astype(int)
    size = 5 * SCALE
    first, faint, constant, other = (picture[:, index * (size + GAP) :][:, :size] for index in range(4))
    assert np.abs(first - faint).max() <= 1
    assert len(np.unique(constant.reshape(-1, 3), axis=0)) == 1
    zero = constant[0, 0, 0]
    standard = (weights[[0, 3]] - weights[[0, 3]].mean((1, 2, 3), keepdims=True)) / weights[[0, 3]].std(
        (1, 2, 3), keepdims=True
    )
    low, high = min(0, standard.min()), standard.max()
    assert zero == round(-low / (high - low) * 255)
    assert np.abs(other[::SCALE, ::SCALE] - ((standard[1] - low) / (high - low) * 255).transpose(1, 2, 0)).max() <= 1
    assert picture.min() == 0


def middles(weights, **options):
    """[[the colour of a kernel's middle] of each tower] of two towers' kernels of 5x5 in one row."""
    cell = 5 * SCALE + GAP
    return [
        [tiles.getpixel((start + cell // 2, cell // 2))[:3] for start in range(0, tiles.width, cell)]
        for tiles in kernel_tiles(weights, towers=2, **options)
    ]


def test_each_tower_with_its_own_scale():
    """As 2012 drew conv1a and conv1b, a call each: a faint tower is as bright as the other; in one scale it is not."""
    weights = np.ones((4, 3, 5, 5), np.float32) * np.array([1, -1, 0.1, -0.1], np.float32)[:, None, None, None]
    levels = {
        scale: [level for tower in middles(weights, scale=scale) for level, *_ in tower] for scale in ("tower", "layer")
    }
    assert levels == {"tower": [255, 0, 255, 0], "layer": [255, 0, 140, 115]}


def test_kernels_by_colourfulness_stay_in_their_tower():
    grey, mixture, colour = ([1, 1, 1], [1, 0.5, 0], [1, -1, 0])
    colours = np.array([colour, grey, mixture, mixture, colour, grey], np.float32)
    weights = np.ones((6, 3, 5, 5), np.float32) * colours[..., None, None]
    weights[3] *= 0.5  # to be told from tower a's
    of_grey, of_mixture, of_colour, of_half = (255,) * 3, (255, 191, 128), (255, 0, 128), (191, 159, 128)
    assert middles(weights) == [[of_colour, of_grey, of_mixture], [of_half, of_colour, of_grey]]
    assert middles(weights, by_colour=True) == [[of_grey, of_mixture, of_colour], [of_grey, of_half, of_colour]]


def test_the_words_over_few_kernels_are_whole():
    """One kernel a tower is narrower than its title, whose ink ends before the edge. Above them all is the network."""
    picture = np.asarray(kernel_picture(np.zeros((2, 3, 5, 5), np.float32), towers=2))
    assert (picture[:, -GAP:] == 255).all() and (picture[:22, -3 * GAP :] < 255).any()
    assert kernel_picture(np.zeros((5, 3, 11, 11), np.float32), towers=1).size[1] < 120
    grid = kernel_picture(np.zeros((96, 3, 11, 11), np.float32), towers=2)
    assert grid.size == (16 * (11 * SCALE + GAP) + GAP, 2 * (22 + 3 * (11 * SCALE + GAP) + GAP))
    sheet = kernel_picture(np.zeros((96, 3, 11, 11), np.float32), towers=2, name="run-1, step 391")
    assert sheet.size == (grid.width, grid.height + TITLE) and sheet.crop((0, TITLE, *sheet.size)) == grid


def test_what_is_written_beside_the_kernels(monkeypatch):
    """Grey kernels in tower a, coloured ones in tower b: their shares, and p of random halves."""
    texts = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, place, text, **_: texts.append(text))
    weights = np.ones((48, 3, 5, 5), np.float32)
    weights[24:, 1:] = -0.5
    kernel_picture(weights, towers=2, name="run-1, conv1 after step 391")
    assert texts[0].startswith("run-1, conv1 after step 391; ") and texts[0].endswith("with p = 0.0001")
    assert [line.rpartition(" ")[2] for line in texts[1:]] == ["0.00", "1.00"]
    weights[0] = np.nan
    texts.clear()
    kernel_picture(weights[:24], towers=1, name="one tower")
    with np.errstate(invalid="ignore"):
        kernel_picture(weights, towers=2, name="not finite")
    assert texts[0] == "one tower" and texts[2] == "not finite"
