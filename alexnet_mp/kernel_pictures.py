"""The picture of what each tower's first layer is tuned to: five measures, tower a's kernels above the line, tower b's below."""
import io

import numpy as np

from . import files
from .kernel_statistics import TUNED
from .specialisation import MEASURES

COLOURS = ("#08519c", "#d95f02")  # of tower a and tower b: one dark, one light, told apart by colour-blind eyes and in grey
BINS = 12
PANELS = {  # measure: title, unit of the axis; None for the upper end: as far as the values go
    "colourfulness": ("Colourfulness", "share of chroma in a kernel's energy", 1),
    "selectivity": ("Orientation selectivity", "0: blob or plaid, 1: one grating", 1),
    "orientation": ("Preferred orientation, tuned kernels", "degrees from horizontal, anticlockwise", 180),
    "frequency": ("Spatial frequency", "cycles per pixel", None),
    "phase": ("Phase, tuned kernels", "degrees; 0 bright bar, 90 and 270 edges", 360),
}


def draw_specialisation(statistics, towers, differences=None):
    """The distributions of a network's first layer as a matplotlib Figure, on a white card so that it is read on any background.

    statistics: the `KernelStatistics` of all towers' kernels, tower a's first. differences: what `tower_differences` says of
    them, for two towers; its effect sizes and corrected p-values stand over the panels. Orientation and phase have the tuned
    kernels alone. The last panel has every kernel as a point, colour against selectivity: figure 3 of the paper in two numbers.
    """
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
    files.replace(path, drawn.getvalue())
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
        axes.plot(statistics.colourfulness[part], statistics.selectivity[part], marker, color=colour, markersize=5.5, alpha=0.8,
                  markeredgecolor="white", markeredgewidth=0.5, label=f"tower {name}, {len(part)} kernel{'s' * (len(part) > 1)}")
    axes.axhline(TUNED, color="#777777", linewidth=0.8, linestyle=":")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="colourfulness", ylabel="orientation selectivity")
    axes.set_title("Each kernel\n(tuned above the dotted line)", fontsize=9.5)
    _plain(axes)


def _plain(axes):
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
