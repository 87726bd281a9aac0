"""The pictures of a run: its curves, the first-layer kernels of each tower (figure 3), and what these are tuned to."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..runs.metrics import read_metrics
from ..system import durable_files
from .first_layer import TUNED, chroma_and_energy
from .specialisation import MEASURES

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
    error.plot(
        steps,
        _running_mean([line["top1_error"] for line in train]),
        color="#08519c",
        label="top-1, training, running mean",
    )
    if val:
        for field, style, label in (
            ("top1_error", "o-", "top-1, validation"),
            ("top5_error", "s--", "top-5, validation"),
        ):
            if field == "top5_error" and not any(line[field] for line in val):
                continue  # as with five classes or fewer, where it can't be anything else
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


# of tower a and tower b: one dark, one light, told apart by colour-blind eyes and in grey
COLOURS = ("#08519c", "#d95f02")
BINS = 12
PANELS = {  # measure: title, unit of the axis; None for the upper end: as far as the values go
    "colourfulness": ("Colourfulness", "share of chroma in a kernel's energy", 1),
    "selectivity": ("Orientation selectivity", "0: blob or plaid, 1: one grating", 1),
    "orientation": ("Preferred orientation, tuned kernels", "degrees from horizontal, anticlockwise", 180),
    "frequency": ("Spatial frequency", "cycles per pixel", None),
    "phase": ("Phase, tuned kernels", "degrees; 0 bright bar, 90 and 270 edges", 360),
}


def draw_specialisation(statistics, towers, differences=None):
    """The distributions of a network's first layer as a matplotlib Figure, on a white card so that it is read on any
    background.

    statistics: the `KernelStatistics` of all towers' kernels, tower a's first. differences: what `tower_differences`
    says of them, for two towers; its effect sizes and corrected p-values stand over the panels. Orientation and phase
    have the tuned kernels alone. The last panel has every kernel as a point, colour against selectivity: figure 3 of
    the paper in two numbers."""
    # Imported late: it takes a second. The object interface draws without a display and without global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.8, 8.6), layout="constrained", facecolor="white")
    panels = figure.subplots(3, 2).ravel()
    parts = np.split(np.arange(len(statistics)), towers)
    for axes, (measure, panel) in zip(panels, PANELS.items()):
        _distribution(axes, statistics, parts, measure, panel, differences and differences[measure])
    _scatter(panels[-1], statistics, parts)
    figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figure


def write_figure(figure, path, dpi=110):
    """Save a Figure as PNG, the same bytes each time: matplotlib would name its version in it. Returns the path."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi, metadata={"Software": None})
    durable_files.replace(path, drawn.getvalue())
    return path


def _distribution(axes, statistics, parts, measure, panel, difference):
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    title, unit, end = panel
    values, circular = getattr(statistics, measure), MEASURES[measure]
    end = end or max(0.5, values.max())
    bins = np.linspace(0, end, BINS + 1)
    for part, colour, side in zip(parts, COLOURS, (1, -1)):
        shown = part[statistics.tuned[part]] if circular else part
        counts = np.histogram(values[shown], bins)[0]
        axes.bar(bins[:-1], side * counts, np.diff(bins), align="edge", color=colour, edgecolor="white", linewidth=0.8)
    most = max(np.abs(axes.dataLim.intervaly).max(), 1)
    axes.set(xlim=(0, end), ylim=(-1.08 * most if len(parts) > 1 else 0, 1.08 * most), xlabel=unit, ylabel="kernels")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{abs(count):g}"))
    if circular:
        axes.set_xticks(np.linspace(0, circular, 5))
    axes.set_title(f"{title}\n{_in_words(difference)}" if difference else title, fontsize=9.5)
    _plain(axes)


def _in_words(difference):
    """Effect and p of a `Difference`, or why there is none."""
    if difference.p is None:
        return "no tuned kernels in a tower"
    p = "corrected p < 0.001" if difference.holm_p < 0.001 else f"corrected p = {difference.holm_p:.2g}"
    if difference.effect_size != "Cliff's delta":  # its p is of another statistic
        p += " of U\N{SUPERSCRIPT TWO}"
    name, sign = difference.effect_size.split()[-1], "+" * (difference.effect_size == "Cliff's delta")
    return f"{name} {difference.effect:{sign}.2f}, {p}".replace("-", "\N{MINUS SIGN}")


def _scatter(axes, statistics, parts):
    for part, name, colour, marker in zip(parts, "ab", COLOURS, "o^"):
        axes.plot(
            statistics.colourfulness[part],
            statistics.selectivity[part],
            marker,
            color=colour,
            markersize=5.5,
            alpha=0.8,
            markeredgecolor="white",
            markeredgewidth=0.5,
            label=f"tower {name}, {len(part)} kernel{'s' * (len(part) > 1)}",
        )
    axes.axhline(TUNED, color="#777777", linewidth=0.8, linestyle=":")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="colourfulness", ylabel="orientation selectivity")
    axes.set_title("Each kernel\n(tuned above the dotted line)", fontsize=9.5)
    _plain(axes)


def _plain(axes):
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
