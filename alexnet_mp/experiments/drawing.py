"""What the pictures of claims are drawn of: columns with a point a seed, times on an axis, names and numbers."""

import io
from collections.abc import Callable, Mapping, Sequence
from statistics import mean, stdev
from typing import TYPE_CHECKING

from PIL import Image

from .entries import ended, error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#08519c", "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#a6761d", "#555555")
FAINT = "#aaaaaa"


def in_256_colours(figure: "Figure") -> Image.Image:
    """A figure as a picture with a palette, which takes a third of the room: records are committed."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=100)
    with Image.open(png) as picture:
        return picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)


def errors(
    axes: "Axes", record: dict, colours: Mapping[str, str], paired: bool = True, joined_means: bool = False
) -> None:
    """The top-1 error of each arm of `colours`, {arm: colour}."""
    tests = [run["errors"] for arm in colours for run in ended(record, arm)]
    single_view = bool(tests) and all(len(of_run) == 1 for of_run in tests)
    axes.set_ylabel(f"top-1 error, {'centre view' if single_view else 'average over views'} (%)")
    series = {arm: {run["seed"]: error(run) for run in ended(record, arm)} for arm in colours}
    columns(axes, record, colours, series, paired, joined_means)


def times(
    axes: "Axes", record: dict, colours: Mapping[str, str], time: str, length: Callable[[dict], float], ratio: float
) -> None:
    """Columns of an entry's field `time`; open points at length(run) of runs that did not come to it.

    A log axis for a ratio of `ratio`.
    """
    valid_runs = [run for run in record["runs"] if run["steps"] and "diverged" not in run]
    runs = {arm: [run for run in valid_runs if run["arm"] == arm] for arm in colours}
    series = {arm: {run["seed"]: run[time] for run in runs[arm] if run.get(time) is not None} for arm in colours}
    never = [
        (number, length(run), arm) for number, arm in enumerate(colours) for run in runs[arm] if run.get(time) is None
    ]
    columns(axes, record, colours, series, counts={arm: len(of_arm) for arm, of_arm in runs.items()})
    for number, value, arm in never:
        axes.plot([number], [value], "o", color=colours[arm], markerfacecolor="white")
    if never:
        axes.plot([], [], "ko", markerfacecolor="white", label="not within the run, no part of the mean")
    heights = [*(value for values in series.values() for value in values.values()), *(value for _, value, _ in never)]
    if heights and max(heights) >= ratio * min(heights):
        _logarithmic(axes, heights)


def _logarithmic(axes, values):
    """A log axis whose numbers are written out, with ends so far apart that there are some."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_yscale("log")
    axes.set_ylim(min(values) / 1.6, max(values) * 1.6)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def columns(
    axes: "Axes",
    record: dict,
    colours: Mapping[str, str],
    series: Mapping[str, Mapping[int, float]],
    paired: bool = True,
    joined_means: bool = False,
    counts: Mapping[str, int] | None = None,
) -> None:
    """A column a name of `series`, {name: {seed: value}}: a point a seed, and beside them mean ± sd of several.

    paired: the same seed is joined by a line. Under a column is how many values it has, or what counts says.
    """
    labels, means = [], []
    for number, (name, values) in enumerate(series.items()):
        for value in values.values():
            axes.plot([number], [value], "o", color=colours[name])
        if values:
            means.append((number + (0.15 if len(values) > 1 else 0), mean(values.values())))
        if len(values) > 1:
            axes.errorbar(
                *means[-1], yerr=stdev(values.values()), color=colours[name], fmt="_", markersize=12, capsize=4
            )
        n = counts[name] if counts else len(values)
        labels.append(f"{name.replace('_', ' ')}\nn = {n}{lost(record, name)}")
    for seed in sorted({seed for values in series.values() for seed in values}) if paired else ():
        line = [(number, values[seed]) for number, values in enumerate(series.values()) if seed in values]
        axes.plot(*zip(*line), color=FAINT, linewidth=0.7, zorder=0)
    if any(len(values) > 1 for values in series.values()):
        axes.plot([], [], "_", color="black", markersize=12, label="mean, bars: \N{PLUS-MINUS SIGN} standard deviation")
    if joined_means and means:
        axes.plot(*zip(*means), color="black", linewidth=1.2, zorder=0, label="means")
    name_columns(axes, labels)


def name_columns(axes: "Axes", labels: Sequence[str]) -> None:
    many = len(labels) > 3
    axes.set_xticks(
        range(len(labels)),
        labels,
        fontsize=8,
        rotation=30 if many else 0,
        ha="right" if many else "center",
        rotation_mode="anchor" if many else "default",
    )
    axes.set_xlim(-0.5, max(len(labels), 1) - 0.5)


def say_scale(axes: "Axes") -> None:
    """Say beside the axis that it is logarithmic, or where it begins if that isn't 0."""
    bottom = axes.get_ylim()[0]
    if axes.get_yscale() == "log":
        axes.set_ylabel(f"{axes.get_ylabel()}\nlogarithmic axis")
    elif bottom > 0:
        axes.set_ylabel(f"{axes.get_ylabel()}\nthe axis begins at {bottom:.3g}")


def beside(axes: "Axes", text: str, x: float, y: float, columns: int) -> None:
    """Text at the right of a vertical line, one of `columns`; upright or not at all where there is no room."""
    if columns <= 20:
        axes.annotate(
            text,
            (x, y),
            (3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8 if columns <= 6 else 6,
            rotation=0 if columns <= 6 else 90,
        )


def lost(record: dict, arm: str) -> str:
    """ ", 2 diverged", or nothing."""
    count = sum("diverged" in run for run in record["runs"] if run["arm"] == arm)
    return f", {count} diverged" if count else ""
