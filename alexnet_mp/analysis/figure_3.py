"""Figure 3 of the paper: the first-layer kernels of each tower, as a picture."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..network.network import TwoTowerAlexNet
from .first_layer import chroma_and_energy
from .specialisation import chroma_shares, random_split_p

MOST_COLUMNS = 16  # kernels a row, as in 2012 (`shownet.py`): 48 a tower are 3 rows
SCALE = 5  # screen pixels a kernel pixel
GAP = 6  # screen pixels between kernels
TITLE = 22  # screen pixels of a line of words


def kernel_picture(weights: np.ndarray, towers: int, name: str | None = None) -> Image.Image:
    """First-layer kernels, tower a's above tower b's, as a Pillow image; beside each tower stands its share of chroma.

    weights: (maps of all towers, 3, k, k), merged; brightness goes from their smallest to their largest. name: of the
    network, for a line above; there p is `random_split_p`.
    """
    maps, _, k, _ = weights.shape
    a_tower, cell = maps // towers, k * SCALE + GAP
    rows = -(-a_tower // MOST_COLUMNS)
    columns = -(-a_tower // rows)
    what = f"{a_tower} first-layer kernel{'s' * (a_tower > 1)}, {k}x{k}x3"
    names = [
        f"tower {'ab'[tower]}: {what}, share of chroma {share:.2f}"
        for tower, share in enumerate(chroma_shares(weights, towers))
    ]
    header = [] if name is None else [name + _split_p_in_words(weights, towers)]
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    width = max(columns * cell, *(int(pen.textlength(line, font_size=13)) + 1 + GAP for line in header + names))
    panel, header_height = rows * cell + GAP, TITLE * len(header)
    image = Image.new("RGB", (width + GAP, header_height + towers * (TITLE + panel)), "white")
    pen = ImageDraw.Draw(image)
    for line in header:
        pen.text((GAP, 5), line, fill="black", font_size=13)
    panels = kernel_tiles(weights, towers, columns=columns)
    for tower, (line, tiles) in enumerate(zip(names, panels)):
        top = header_height + tower * (TITLE + panel)
        pen.text((GAP, top + 5), line, fill="black", font_size=13)
        image.paste(tiles, (GAP, top + TITLE), tiles)
    return image


def kernel_tiles(
    weights: np.ndarray,
    towers: int,
    scale: Literal["layer", "tower", "kernel"] = "layer",
    by_colour: bool = False,
    columns: int = MOST_COLUMNS,
) -> list[Image.Image]:
    """The kernels of each tower as a Pillow image without words, so many a row, transparent between them: for a page
    whose colours are not known.

    weights: (maps of all towers, 3, k, k), merged. scale: brightness goes from the smallest weight to the largest

    "layer"   of both towers, so that all kernels can be compared; zero weight is a grey
    "tower"   of the tower, as in 2012: the source draws one layer a call, conv1a or conv1b (`shownet.py:110-197`)
    "kernel"  of both towers after every kernel was given mean 0 and variance 1, so that faint ones can be seen; the
              source's `--norm-filters` does that, tower by tower again

    by_colour: inside a tower the kernels come in the order of their share of chroma, the greyest first, instead of the
    network's."""
    kernels = _z_scores(weights) if scale == "kernel" else weights
    parts = np.split(kernels, towers) if scale == "tower" else [kernels]
    pixels = np.concatenate([pixels_of(part) for part in parts])
    towers_maps = np.split(np.arange(len(weights)), towers)
    orders = [greyest_first(weights, numbers) if by_colour else numbers for numbers in towers_maps]
    return [grid(pixels[order], min(columns, len(order)), SCALE, GAP) for order in orders]


def grid(pixels: np.ndarray, columns: int, scale: int, gap: int) -> Image.Image:
    """Kernels (n, k, k, 3) uint8 in rows of so many, `scale` screen pixels a pixel, as a Pillow image in RGBA; the
    `gap` screen pixels between them are transparent."""
    count, side, _, _ = pixels.shape
    cell = side * scale + gap
    image = Image.new("RGBA", (columns * cell - gap, -(-count // columns) * cell - gap))
    for place, kernel in enumerate(pixels):
        row, column = divmod(place, columns)
        tile = Image.fromarray(kernel).resize((side * scale, side * scale), Image.Resampling.NEAREST)
        image.paste(tile, (column * cell, row * cell))
    return image


def _split_p_in_words(weights, towers):
    """How often random halves have shares of chroma as far apart as the two towers'; nothing of one tower."""
    if towers != 2 or not np.isfinite(weights).all():
        return ""
    return f"; random halves' shares of chroma are as far apart with p = {random_split_p(weights):.2g}"


def pixels_of(weights: np.ndarray) -> np.ndarray:
    """(maps, 3, k, k) -> (maps, k, k, 3) uint8, from the smallest of these weights to the largest."""
    low, high = weights.min(), weights.max()
    return np.rint((weights - low) / max(high - low, 1e-30) * 255).astype(np.uint8).transpose(0, 2, 3, 1)


def _z_scores(weights):
    """Each kernel with mean 0 and variance 1, float64; a constant one is 0."""
    kernels = weights.astype(np.float64)
    kernels -= kernels.mean((1, 2, 3), keepdims=True)
    deviation = kernels.std((1, 2, 3), keepdims=True)
    maxima = np.abs(weights).max((1, 2, 3), keepdims=True)
    varies = deviation > 1e-12 * maxima  # less is rounding
    return np.where(varies, kernels / np.where(varies, deviation, 1), 0)


def greyest_first(weights: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The numbers of kernels, (m,), by their share of chroma. weights: (maps, 3, k, k)."""
    chroma, energy = chroma_and_energy(weights[numbers])
    return numbers[np.argsort(chroma / np.maximum(energy, 1e-300), kind="stable")]


def draw_kernels(kernels: torch.Tensor, network: TwoTowerAlexNet, run: str | Path) -> Path:
    """Write `conv1_kernels.png` into the run's directory and return its path. kernels: all towers', (maps, 3, K, K)."""
    layer = network.recipe.layers[0]
    path = Path(run) / "conv1_kernels.png"
    name = f"{path.resolve().parent.name}, {layer.name} after step {network.step:,}"
    kernel_picture(kernels.float().numpy(), network.recipe.towers, name=name).save(path)
    return path
