"""The curves of a run, and what its first-layer kernels are tuned to."""

import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..runs.metrics import read_metrics
from ..system import durable_files
from .first_layer import TUNED, KernelStatistics
from .learning_curves import drops
from .specialisation import MEASURES, Difference
from .themes import dark_of, in_the_dark

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_curves(run: str | Path, classes: int | None = None) -> Path:
    """Write `curves.png`, loss and errors against steps, into the run's directory and return its path.

    classes: how many, for the lines of a guess. Dotted lines stand where a learning rate falls.
    """
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
    *curve, width = _running_mean(steps, [line["loss"] for line in train])
    around = f"training, mean of {width} minibatch{'es' * (width > 1)} around"
    loss.plot(*curve, color="#08519c", label=around)
    val_steps = [line["step"] for line in val]
    if val:
        loss.plot(val_steps, [line["loss"] for line in val], "o-", color="#d95f02", label="validation, centre view")
    *curve, _ = _running_mean(steps, [line["top1_error"] for line in train])
    error.plot(*curve, color="#08519c", label=f"top-1, {around}")
    if val:
        for field, style, label in (
            ("top1_error", "o-", "top-1, validation"),
            ("top5_error", "s--", "top-5, validation"),
        ):
            if field == "top5_error" and not any(line[field] for line in val):
                continue  # as with five classes or fewer, where it can't be anything else
            error.plot(val_steps, [line[field] for line in val], style, color="#d95f02", label=label)
    if classes:
        guess = {"color": "#777777", "linestyle": "--", "linewidth": 0.8}
        loss.axhline(math.log(classes), label=f"ln({classes}), all classes alike", **guess)
        error.axhline(100 - 100 / classes, label=f"top-1 of a guess among {classes}", **guess)
    for axes in (loss, error):
        mark_drops(axes, [line["step"] - 0.5 for line in first_steps(train, drops(lines))])
    loss.set(xlabel="step", ylabel="cross-entropy loss (nats)", ylim=(0, None))
    error.set(xlabel="step", ylabel="error (%)", ylim=(0, 100))
    for axes in (loss, error):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)  # below: it hides no curve
    path = Path(run) / "curves.png"
    figure.savefig(path, dpi=110)
    return path


def first_steps(train: Sequence[dict], epochs: Sequence[int]) -> list[dict]:
    """Of a run's training lines, the first of each of these epochs that has one."""
    by_epoch = {line["epoch"]: line for line in reversed(train)}
    return [by_epoch[epoch] for epoch in epochs if epoch in by_epoch]


def mark_drops(axes: "Axes", places: Sequence[float]) -> None:
    """A dotted vertical line at each place where a learning rate falls, and its entry in the legend."""
    for number, place in enumerate(places):
        label = None if number else "a learning rate falls"
        axes.axvline(place, color="black", linestyle=":", linewidth=0.9, label=label)


def _running_mean(steps, values):
    """(steps, means, width): means of width values around each step that has as many on either side. width: WINDOW; of
    a short run, fewer."""
    reach = min(WINDOW // 2, max(len(values) - 1, 0) // 4)
    width, sums = 2 * reach + 1, np.cumsum([0.0, *values])
    return steps[reach : len(steps) - reach], (sums[width:] - sums[:-width]) / width, width


# Of tower a and tower b, and of nothing else: a dark purple and a light green, told apart by colour-blind eyes and in
# grey.
TOWER_COLOURS = ("#762a83", "#5aae61")
NARROW = 3.8  # inches: as wide as a chart may be that a telephone shows without scrolling
WINDOW = 21  # minibatches
BINS = 12
FEWEST = 5  # kernels in a panel
PANEL = 4.0, 3.1  # inches: of a chart that is read on a telephone as well
DENSITY = 2  # pixels of a chart a screen pixel: sharp where a screen has more than it says
DENSITY_KEY = "Density"  # of the PNG's text, for who shows it
PANELS = {  # measure: title, unit of the axis; None for the upper end: as far as the values go
    "colourfulness": ("Colourfulness", "share of chroma in a kernel's energy", 1),
    "selectivity": ("Orientation selectivity", "0: blob or plaid, 1: one grating", 1),
    "orientation": ("Preferred orientation, tuned kernels", "degrees from horizontal, anticlockwise", 180),
    "frequency": ("Spatial frequency", "cycles per pixel", None),
    "phase": ("Phase, tuned kernels", "degrees; 0 bright bar, 90 and 270 edges", 360),
}


def draw_specialisation(
    statistics: KernelStatistics, towers: int, differences: Mapping[str, Difference] | None = None
) -> "dict[str, Figure]":
    """The distributions of a network's first layer, a matplotlib Figure each by the name of its measure; the last,
    "each", has every kernel as a point, colour against selectivity: figure 3 of the paper in two numbers.

    statistics: of all towers' kernels, tower a's first. differences: what `tower_differences` says of them, for two
    towers; its effect sizes and corrected p-values stand over the panels. Orientation and phase have the tuned kernels
    alone. A measure of fewer than five kernels is left out (`left_out`)."""
    from matplotlib.figure import Figure

    parts, figures = np.split(np.arange(len(statistics)), towers), {}
    for measure in [*(name for name in PANELS if name not in left_out(statistics)), "each"]:
        figures[measure] = figure = Figure(figsize=PANEL, layout="constrained", facecolor="white")
        axes = figure.subplots()
        if measure == "each":
            _scatter(axes, statistics, parts)
        else:
            _distribution(axes, statistics, parts, measure, PANELS[measure], differences and differences[measure])
    return figures


def left_out(statistics: KernelStatistics) -> list[str]:
    """The measures that fewer than five kernels have."""
    kernels = {True: int(statistics.tuned.sum()), False: len(statistics)}
    return [measure for measure in PANELS if kernels[MEASURES[measure] is not None] < FEWEST]


def write_figure(figure: "Figure", path: Path, dpi: int = 110, density: int = DENSITY) -> Path:
    """Save a Figure as PNG for a light page, and beside it for a dark one (`themes.dark_of`), the same bytes each time:
    matplotlib would name its version in them. Returns the path of the first. dpi: screen pixels an inch; density: of
    the file's pixels, how many a screen pixel has in either direction."""
    _save(figure, path, dpi, density)
    figure.set_layout_engine("none")  # nothing moves between the two
    with in_the_dark(figure):
        _save(figure, dark_of(path), dpi, density)
    return path


def _save(figure, path, dpi, density):
    content = io.BytesIO()
    with boxes_for_letters():
        figure.savefig(content, format="png", dpi=dpi * density, metadata={"Software": None, DENSITY_KEY: str(density)})
    durable_files.replace(path, content.getvalue())


@contextmanager
def boxes_for_letters() -> Iterator[None]:
    """Without matplotlib's warning of a letter that its font lacks, as in the name of a run or class: a box stands for
    it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def _distribution(axes, statistics, parts, measure, panel, difference):
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    title, unit, end = panel
    values, period = getattr(statistics, measure), MEASURES[measure]
    end = end or max(0.5, values.max())
    bins = np.linspace(0, end, BINS + 1)
    for part, colour, side in zip(parts, TOWER_COLOURS, (1, -1)):
        numbers = part[statistics.tuned[part]] if period else part
        counts = np.histogram(values[numbers], bins)[0]
        axes.bar(bins[:-1], side * counts, np.diff(bins), align="edge", color=colour, edgecolor="white", linewidth=0.8)
    peak = max(np.abs(axes.dataLim.intervaly).max(), 1)
    axes.set(xlim=(0, end), ylim=(-1.08 * peak if len(parts) > 1 else 0, 1.08 * peak), xlabel=unit)
    axes.set_ylabel("kernels: b below, a above" if len(parts) > 1 else "kernels")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{abs(count):g}"))
    if period:
        axes.set_xticks(np.linspace(0, period, 5))
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
    for part, name, colour, marker in zip(parts, "ab", TOWER_COLOURS, "o^"):
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
    axes.figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9
    )
    _plain(axes)


def _plain(axes):
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
