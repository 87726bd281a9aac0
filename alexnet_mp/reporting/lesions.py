"""The report's part on lesions: the error with a tower silenced, with a link cut, with one kernel removed."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..analysis.figure_3 import pixels_of
from ..analysis.figures import TOWER_COLOURS, write_figure
from ..analysis.hypothesis_tests import shown_p, told_p
from ..analysis.lesions import ALL, KernelLesions, Lesion, Lesions
from . import page

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PART = "lesions", "Lesions"
MARKERS = "o^"  # of tower a and tower b, as in every figure
SHOWN = 12  # kernels
WIDTH, LEAST = 4.0, 0.7  # inches of a figure, and how much smaller it may be shown: all of it on a telephone
TITLES = (TOWER_COLOURS[0], "#1b7837")  # the green of the marks is too light for letters
CONTROL, INK = "#8a8a94", "#333333"


def lesions(
    out: Path, effects: Lesions | None, removals: KernelLesions | None, kernels: np.ndarray, pictures: str, subset: str
) -> page.Part:
    """The `Part`. effects, removals: None where the pictures have no labels; kernels: the first layer's, (maps of all
    towers, 3, k, k); pictures, subset: in words, on which the lesions were made, and on which kernels were removed."""
    if effects is None or removals is None:
        return page.Part(*PART, [page.text(f"Nobody knows the classes of the {pictures}: no errors.")])
    pieces = [
        page.text(
            "What is silenced gives its mean over the data, whatever the picture. A silenced tower does so to all that "
            "read it at a crossing, a cut link to the other tower alone, a removed kernel in its map. So what is lost "
            "is what it says of the picture."
        )
    ]
    if effects.towers:
        pieces += _towers_and_links(out, effects, pictures)
    else:
        pieces.append(page.text("No layer reads two towers: there is none to silence, and no link to cut."))
    return page.Part(*PART, pieces + _kernels(out, removals, kernels, subset))


def _towers_and_links(out, effects, pictures):
    path = write_figure(draw_lesions(effects), out / "lesions.png")
    several = {lesion.place for lesion in effects.towers} > {ALL}
    return [
        page.image(
            path,
            "Top-1 error with each tower silenced and each link cut, beside random halves of the same size",
            f"Top-1 error on {pictures}; the whole network errs on {effects.error:.1f} %. Bars: 95 % intervals of the "
            f"difference. Grey: {len(effects.towers[0].controls)} random halves of both towers' maps silenced at the "
            "same place, for the same readers.",
            least=LEAST,
        ),
        page.heading("Each lesion"),
        page.table(
            ["read by", "silenced", "error", "points more", "95 % interval", "p, Holm", "random halves", "as harmful"],
            [_row(lesion) for lesion in (*effects.towers, *effects.links)],
        ),
        page.why(
            "p: McNemar's exact test of the lesion against the whole network over the same pictures, corrected for the "
            f"{len(effects.towers) + len(effects.links)} lesions. As harmful: of the random halves."
            + (f" {_place(ALL).capitalize()}: the other tower is alone." if several else "")
        ),
        page.heading("Which tower is needed more"),
        page.table(
            ["read by", "a off less b off", "95 % interval", "p, Holm"],
            [
                [
                    _place(contrast.place),
                    f"{contrast.change.difference:+.1f} points",
                    _interval(contrast.change.interval),
                    shown_p(contrast.holm_p),
                ]
                for contrast in effects.contrasts
            ],
        ),
        page.why(
            "The error with tower a off less that with tower b off: above 0 tower a is needed more. p: McNemar's exact "
            f"test of one against the other over the same pictures, corrected for the {len(effects.contrasts)} rows."
        ),
    ]


def _kernels(out, removals, kernels, subset):
    path = write_figure(draw_kernels(removals, kernels), out / "kernels_removed.png")
    numbers = removals.most_harmful_first[:SHOWN]
    between_towers = (
        f" Between the towers: Cliff's delta {removals.delta:+.2f}, above 0 where tower a's are needed more "
        f"({told_p(removals.p)} among random deals of the kernels)."
        if removals.delta is not None
        else ""
    )
    worst = [removals.kernels[number] for number in numbers]
    return [
        page.heading("Single kernels of the first layer"),
        page.image(
            path,
            "How much the loss rises without each kernel of the first layer, and pictures of the kernels whose removal "
            "harms most: " + ", ".join(f"{kernel.what} {kernel.loss:+.3f} nats" for kernel in worst),
            f"Each kernel removed in turn; {subset}. The order is by the loss, which tells more of few pictures than "
            f"the error does. Below: the {len(numbers)} whose loss harms most.{between_towers}",
            least=LEAST,
        ),
        page.table(
            ["removed", "loss", "error", "points more", "95 % interval", "p, Holm"],
            [[kernel.what, f"{kernel.loss:+.3f} nats", *_error(kernel)] for kernel in worst],
        ),
        page.why(
            "p: McNemar's exact test against the whole network over the same pictures, corrected for the "
            f"{len(removals.kernels)} kernels."
        ),
    ]


def _row(lesion):
    return [
        _place(lesion.place),
        _arrow(lesion.what),
        *_error(lesion),
        f"{min(lesion.controls):.1f} to {max(lesion.controls):.1f} %",
        f"{lesion.as_harmful} of {len(lesion.controls)}",
    ]


def _error(lesion):
    return [
        f"{lesion.error:.1f} %",
        f"{lesion.change.difference:+.1f}",
        _interval(lesion.change.interval),
        shown_p(lesion.holm_p),
    ]


def _place(place):
    return "all that read both" if place == ALL else place


def _arrow(what):
    return what.replace("->", " \N{RIGHTWARDS ARROW} ")


def _interval(interval):
    return f"{interval[0]:+.1f} to {interval[1]:+.1f}"


def draw_lesions(effects: Lesions) -> "Figure":
    """Errors with each tower silenced, a row a place, and below with each link cut, beside their controls."""
    # Imported late: it takes a second. The object interface draws without a display and without global state.
    from matplotlib.figure import Figure

    places = list(dict.fromkeys(lesion.place for lesion in effects.towers))
    of_towers = [(_place(place), [lesion for lesion in effects.towers if lesion.place == place]) for place in places]
    of_links = [(f"{lesion.place}, {_arrow(lesion.what)}", [lesion]) for lesion in effects.links]
    panels = [("A tower silenced, where it is read by", of_towers)] + [("A link cut", of_links)] * bool(of_links)
    figure = Figure(
        figsize=(WIDTH, 1.7 + sum(0.5 + 0.42 * len(rows) for _, rows in panels)),
        layout="constrained",
        facecolor="white",
    )
    axes = figure.subplots(
        len(panels), 1, squeeze=False, sharex=True, height_ratios=[len(rows) + 0.6 for _, rows in panels]
    )[:, 0]
    for panel, (title, rows) in zip(axes, panels):
        for row, (_, group) in enumerate(rows):
            controls = group[0].controls
            panel.plot(controls, row + 0.24 + np.linspace(-0.08, 0.08, len(controls)), "|", color=CONTROL, markersize=6)
            for lesion in group:
                _mark(panel, lesion, row, effects.error)
        panel.axvline(effects.error, color=INK, linewidth=0.9, linestyle=":")
        panel.set_title(title, fontsize=9.5, loc="left")
        panel.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=9.5)
        panel.set_ylim(len(rows) - 0.4, -0.6)
        panel.grid(axis="x", alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("top-1 error (%); dotted: the whole network", loc="right")  # longer than the axis
    legend = [
        *(
            axes[0].plot([], [], marker, color=colour, label=f"tower {name} is not seen")[0]
            for name, marker, colour in zip("ab", MARKERS, TOWER_COLOURS)
        ),
        axes[0].plot([], [], "|", color=CONTROL, label="a random half is not seen")[0],
    ]
    figure.legend(handles=legend, loc="outside upper left", frameon=False, fontsize=9.5)
    return figure


def _mark(axes: "Axes", lesion: Lesion, row: int, intact: float) -> None:
    """An error with its interval; of a link in the colour of the tower that isn't seen."""
    tower = lesion.tower
    y = row - 0.12 * (1 - tower)
    ends = [min(100, max(0, intact + end)) for end in lesion.change.interval]
    axes.plot(ends, [y, y], color=TOWER_COLOURS[tower], linewidth=1.4)
    axes.plot(lesion.error, y, MARKERS[tower], color=TOWER_COLOURS[tower], markersize=6.5)


def draw_kernels(removals: KernelLesions, kernels: np.ndarray) -> "Figure":
    """The rises of the loss without each kernel, in order, over pictures of the kernels that are needed most."""
    # Imported late: it takes a second. The object interface draws without a display and without global state.
    from matplotlib.figure import Figure

    order, maps = removals.most_harmful_first, len(kernels)
    numbers, columns = order[:SHOWN], min(4, maps)
    rows = -(-len(numbers) // columns)
    figure = Figure(figsize=(WIDTH, 2.2 + 1.25 * rows), layout="constrained", facecolor="white")
    above, below = figure.subfigures(2, 1, height_ratios=[2.2, 1.25 * rows])
    axes = above.subplots()
    towers = [kernel.tower for kernel in removals.kernels]
    for tower in sorted(set(towers)):
        places = [place for place, number in enumerate(order, 1) if towers[number] == tower]
        losses = [removals.kernels[order[place - 1]].loss for place in places]
        axes.vlines(places, 0, losses, color=TOWER_COLOURS[tower], linewidth=1)
        axes.plot(
            places, losses, MARKERS[tower], color=TOWER_COLOURS[tower], markersize=4.5, label=f"tower {'ab'[tower]}"
        )
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set(xlabel="kernels, the most harmful to lose first", ylabel="rise of the loss (nats)")
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    pixels = pixels_of(kernels)
    for place, panel in enumerate(below.subplots(rows, columns, squeeze=False).ravel()):
        panel.axis("off")
        if place < len(numbers):
            number = numbers[place]
            panel.imshow(pixels[number], interpolation="nearest")
            name = f"{'ab'[towers[number]]} {removals.kernels[number].kernel + 1}"
            panel.set_title(f"{name}: {removals.kernels[number].loss:+.3f}", fontsize=9.5, color=TITLES[towers[number]])
    return figure
