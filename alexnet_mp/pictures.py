"""The two pictures that every run leaves: its curves, and the first-layer kernels of each tower (paper, figure 3)."""
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from .kernel_statistics import chroma_and_energy
from .metrics import read_metrics

COLUMNS = 16  # kernels a row, as in 2012 (`shownet.py`): 48 a tower are 3 rows
SCALE = 5  # screen pixels a kernel pixel
GAP = 6  # screen pixels between kernels


def kernel_picture(weights, towers, scale="layer", by_colour=False):
    """First-layer kernels, tower a's above tower b's, as a Pillow image.

    weights: (maps of all towers, 3, k, k), merged. scale: brightness goes from the smallest weight to the largest

    "layer"   of both towers, so that all kernels can be compared; zero weight is a grey
    "tower"   of the tower, as in 2012: the source draws one layer a call, conv1a or conv1b (`shownet.py:110-197`)
    "kernel"  of both towers after every kernel was given mean 0 and variance 1, so that faint ones can be seen; the
              source's `--norm-filters` does that, tower by tower again

    by_colour: inside a tower the kernels come in the order of their share of chroma, the greyest first, instead of the
    network's.
    """
    maps, _, k, _ = weights.shape
    scaled = _standardised(weights) if scale == "kernel" else weights
    parts = np.split(scaled, towers) if scale == "tower" else [scaled]
    pixels = np.concatenate([_pixels(part) for part in parts])
    a_tower, cell = maps // towers, k * SCALE + GAP
    rows, columns, title = -(-a_tower // COLUMNS), min(COLUMNS, a_tower), 22
    what = f"{a_tower} first-layer kernel{'s' * (a_tower > 1)}, {k}x{k}x3{', by colourfulness' * by_colour}"
    names = [f"tower {'ab'[tower]}: {what}" for tower in range(towers)]
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    width = max(columns * cell, *(int(pen.textlength(name, font_size=13)) + 1 + GAP for name in names))
    panel = rows * cell + GAP
    image = Image.new("RGB", (width + GAP, towers * (title + panel)), "white")
    pen = ImageDraw.Draw(image)
    for tower, name in enumerate(names):
        top, chosen = tower * (title + panel), np.arange(tower * a_tower, (tower + 1) * a_tower)
        pen.text((GAP, top + 5), name, fill="black", font_size=13)
        for place, index in enumerate(_greyest_first(weights, chosen) if by_colour else chosen):
            row, column = divmod(place, COLUMNS)
            kernel = Image.fromarray(pixels[index]).resize((k * SCALE, k * SCALE), Image.Resampling.NEAREST)
            image.paste(kernel, (GAP + column * cell, top + title + row * cell))
    return image


def _pixels(weights):
    """(maps, 3, k, k) -> (maps, k, k, 3) uint8, from the smallest of these weights to the largest."""
    low, high = weights.min(), weights.max()
    return np.rint((weights - low) / max(high - low, 1e-30) * 255).astype(np.uint8).transpose(0, 2, 3, 1)


def _standardised(weights):
    """Each kernel with mean 0 and variance 1, float64; a constant one is 0."""
    centred = weights.astype(np.float64)
    centred -= centred.mean((1, 2, 3), keepdims=True)
    deviation = centred.std((1, 2, 3), keepdims=True)
    largest = np.abs(weights).max((1, 2, 3), keepdims=True)
    varies = deviation > 1e-12 * largest  # less is rounding
    return np.where(varies, centred / np.where(varies, deviation, 1), 0)


def _greyest_first(weights, chosen):
    chroma, energy = chroma_and_energy(weights[chosen])
    return chosen[np.argsort(chroma / np.maximum(energy, 1e-300), kind="stable")]


def draw_kernels(network, run):
    """Write `conv1_kernels.png` into the run's directory and return its path."""
    first = network.recipe.layers[0]
    weights = network.merged_state()[f"{first.name}.weight"].float().numpy()
    path = Path(run) / "conv1_kernels.png"
    kernel_picture(weights, network.recipe.towers).save(path)
    return path


def draw_curves(run):
    """Write `curves.png`, loss and errors against steps, into the run's directory and return its path."""
    # Imported late: it takes a second. The object interface draws without a display and without global state.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    lines = read_metrics(run)
    train = [line for line in lines if line["kind"] == "train"]
    val = [line for line in lines if line["kind"] == "val"]
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    loss, error = figure.subplots(1, 2)
    steps = [line["step"] for line in train]
    loss.plot(steps, [line["loss"] for line in train], color="#9ecae1", linewidth=0.8, label="training, each minibatch")
    smooth = _running_mean([line["loss"] for line in train])
    loss.plot(steps, smooth, color="#08519c", label="training, running mean")
    val_steps = [line["step"] for line in val]
    if val:
        loss.plot(val_steps, [line["loss"] for line in val], "o-", color="#d95f02", label="validation, centre view")
    error.plot(steps, _running_mean([line["top1_error"] for line in train]), color="#08519c", label="top-1, training, running mean")
    if val:
        for field, style, label in (("top1_error", "o-", "top-1, validation"), ("top5_error", "s--", "top-5, validation")):
            error.plot(val_steps, [line[field] for line in val], style, color="#d95f02", label=label)
    loss.set(xlabel="step", ylabel="cross-entropy loss (nats)", ylim=(0, None))
    error.set(xlabel="step", ylabel="error (%)", ylim=(0, 100))
    for axes in (loss, error):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)  # below: it hides no curve
    path = Path(run) / "curves.png"
    figure.savefig(path, dpi=110)
    return path


def _running_mean(values, window=20):
    """Mean over the last `window` values, fewer at the start."""
    sums = np.cumsum([0.0, *values])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)
