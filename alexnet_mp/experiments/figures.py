"""The picture of a claim: left its training curves, right what came out for each seed, as its kind draws it.

Curves: a thin line a seed, a thick one their mean.
"""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import drawing
from .drawing import COLOURS, FAINT
from .paper_claims import KINDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW = 3  # a curve of so few points is drawn with markers: one point has no line


def draw_claim(record: dict, path: Path) -> Path:
    """Write the picture of a record; returns the path."""
    drawing.in_256_colours(figure_of(record)).save(path, optimize=True)
    return path


def figure_of(record: dict) -> "Figure":
    """The picture of a record."""
    # Imported late: it takes a second. The object interface draws without a display and without global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = {arm["name"]: COLOURS[number % len(COLOURS)] for number, arm in enumerate(record["arms"])}
    draw_curves(left, record, colours)
    arms = [arm["name"] for arm in record["arms"] if not arm["larger"]]  # errors on other classes compare with nothing
    KINDS[record["kind"]].figure(right, record, {arm: colours[arm] for arm in arms})
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.lines:
            drawing.say_scale(axes)
        else:
            axes.set(xticks=[], yticks=[])
            axes.text(0.5, 0.5, "no run came to a result", ha="center", transform=axes.transAxes)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    length = f"{record['steps']:,} steps" if record["steps"] is not None else f"{record['epochs']} epochs"
    title = f"{record['claim']}, {length}: {record['data'][0]['description']}"
    title = title.encode(errors="backslashreplace").decode()  # a folder's name may be no text
    figure.suptitle("\n".join(textwrap.wrap(title, 140, max_lines=2, placeholder=" ...")), fontsize=9, parse_math=False)
    return figure


def draw_curves(axes: "Axes", record: dict, colours: Mapping[str, str]) -> None:
    """colours: {arm: colour}."""
    from matplotlib.ticker import MaxNLocator

    kind = KINDS[record["kind"]]
    for run in record["search"]:
        if "curve" in run:
            _line(axes, *kind.curve(run), color=FAINT, linewidth=0.6, zorder=1)
    for number, arm in enumerate(record["arms"]):
        dashed = arm["larger"] or kind.dashed and number > 0
        _draw_arm(axes, arm, record, {"color": colours[arm["name"]], "linestyle": "--" if dashed else "-"})
    if any("diverged" in run and "curve" in run for run in record["runs"]):
        axes.plot([], [], "kx", label="diverged")
    if any(run.get("drops") for run in record["runs"]):
        axes.plot([], [], "k:", linewidth=0.8, label="the rate falls")
    kind.mark_curves(axes, record)
    x, y = kind.curve_labels
    axes.set(xlabel=x, ylabel=y, xlim=(0, 1.03 * axes.get_xlim()[1]), ylim=(0, 1.05 * axes.get_ylim()[1]))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def _draw_arm(axes, arm, record, style):
    kind = KINDS[record["kind"]]
    runs = [run for run in record["runs"] if run["arm"] == arm["name"] and "curve" in run]
    for run in runs:
        x, y = kind.curve(run)
        _line(axes, x, y, **style, linewidth=0.6, alpha=0.6)
        if "diverged" in run:
            axes.plot(x[-1:], y[-1:], "x", color=style["color"], markersize=9, markeredgewidth=2, zorder=5)
        for epoch in run.get("drops", ()):  # the first epoch with the new rate; epoch 1 begins at step 0
            axes.axvline((epoch - 1) * run["steps_per_epoch"], color=style["color"], linewidth=0.8, linestyle=":")
    curves = [kind.curve(run) for run in runs if "diverged" not in run]
    if curves:
        # runs may end at different steps, so their points lie apart
        x = min((x for x, _ in curves), key=lambda x: x[-1])
        means = np.mean([np.interp(x, *curve) for curve in curves], axis=0)
        label = arm["name"].replace("_", " ") + (", on more classes" if arm["larger"] else "")
        _line(axes, x, means, **style, linewidth=2, label=label)


def _line(axes, x, y, **style):
    axes.plot(x, y, marker="o" if len(x) <= FEW else None, markersize=4, **style)
