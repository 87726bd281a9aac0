"""The report's part on what a tower sees: errors on altered pictures, brightness and colour, the classes that lean on a
tower."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..analysis.altered_pictures import ALTERATIONS, CUTOFF
from ..analysis.figure_4 import short_name
from ..analysis.figures import TOWER_COLOURS, write_figure
from ..analysis.hypothesis_tests import shown_p, sure_of, told_p, wilson
from ..analysis.sight import LEVEL, ColourDivision, Leaning, Leanings, Seen
from ..data.dataset import Split, evenly
from . import page
from .lesions import LEAST, WIDTH

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 10  # classes
EACH = 2  # pictures of each
PART = "sight", "What a tower sees"
INK, FAINT = "#333333", "#8a8a94"
SIDES = {1: ("o", TOWER_COLOURS[0]), -1: ("^", TOWER_COLOURS[1]), 0: ("s", INK)}  # {sign: (marker, colour)} of a class
# {who of `Seen.errors`: (label, marker, colour, filled)}
WHO = {
    "whole": ("the whole network", "s", INK, True),
    "a sees": ("what tower a sees", "o", TOWER_COLOURS[0], True),
    "b sees": ("what tower b sees", "^", TOWER_COLOURS[1], True),
    "a alone": ("tower a alone", "o", TOWER_COLOURS[0], False),
    "b alone": ("tower b alone", "^", TOWER_COLOURS[1], False),
}


def sight(
    out: Path,
    sorts: Sequence[Seen],
    division: ColourDivision | None,
    leanings: Leanings | None,
    split: Split,
    numbers: np.ndarray,
    names: Sequence[str],
    pictures: str,
) -> page.Part:
    """The `Part`. sorts: () where the pictures have no labels; division, leanings: None where there is one tower, or no
    label; numbers: of the pictures in their split; names: of the classes; pictures: in words, which they were."""
    pieces = [
        page.text(
            "The same pictures, each time without something. What a tower sees: the other tower gives its mean where "
            "the towers first meet, and all later layers have to do with what this one made of the picture. A tower "
            "alone: the other is silenced wherever it is read."
        )
    ]
    pieces += (
        _errors(out, sorts, split, numbers, pictures)
        if sorts
        else [page.text(f"Nobody knows the classes of the {pictures}: no errors.")]
    )
    if division:
        pieces += [page.heading("Brightness and colour"), page.text(_division(division)), page.why(_how(division))]
    if leanings:
        pieces += _classes(out, leanings, split, names)
    return page.Part(*PART, pieces)


def _errors(out, sorts, split, numbers, pictures):
    example = _most_colourful(split, numbers)
    path = write_figure(draw_sight(sorts, example), out / "sight.png")
    who = [name for name in WHO if name in sorts[0].errors]
    two = sorts[0].change is not None
    return [
        page.image(
            path,
            "Top-1 error on pictures without colour, without brightness, of shuffled colour, of low and high spatial "
            "frequency and of single hues",
            f"Top-1 error on {pictures}, with 95 % intervals; at the left one of them.",
            least=LEAST,
        ),
        page.table(
            ["pictures", *who, *["right, a sees less b sees", "p, Holm"] * two],
            [
                [
                    sort.pictures,
                    *(f"{sort.errors[name]:.1f} %" for name in who),
                    *([_points(sort.change), shown_p(sort.holm_p)] if two else []),
                ]
                for sort in sorts
            ],
        ),
        page.why(
            "Luminance is the mean of the three colours, chroma the rest. Shuffled: the chromas of the pixels dealt to "
            f"other pixels. Frequencies: a Gaussian filter, half of an amplitude at {CUTOFF} cycles per picture; the "
            "high ones around the mean luminance. In one hue: every chroma turned to it, as large as before as far as "
            "that fits."
            + (
                " p: McNemar's exact test of what tower a sees against what tower b sees, corrected for the "
                f"{len(sorts)} sorts of pictures."
                if two
                else ""
            )
        ),
    ]


def _division(division):
    """What was found, in words."""
    shares = "; ".join(
        f"in {name}, {a:.0f} % of the answers by what tower a sees stay and {b:.0f} % of those by what tower b sees"
        for name, (a, b) in (("grey", division.kept["grey"]), ("colour alone", division.kept["colour alone"]))
    )
    light, colour = "ab" if division.contrast > 0 else "ba"
    verdict = (
        f"So tower {light} sees brightness more, and tower {colour} colour."
        if division.divided
        else "No division is told by that: other pictures, or another deal of the kernels, would do as much by chance."
    )
    return f"Of {division.n:,} pictures: {shares}. {verdict}"


def _how(division):
    far = sum(abs(half) >= abs(division.contrast) for half in division.halves)
    return (
        f"The contrast, grey less colour alone, a less b, is {division.contrast:+.0f} points: {told_p(division.p)} "
        f"over pictures (exact sign-flip test). Of {len(division.halves)} random deals of both first layers' kernels "
        f"to two halves, {far} are as far apart ({told_p(division.p_halves)}). A division is said where both are at "
        f"most {LEVEL:g}: over pictures alone, towers that differ by chance would count as divided. Right or wrong "
        "doesn't matter here. A tower's first layer is silenced, so that kernels can be dealt."
    )


def _classes(out, leanings, split, names):
    extremes = leanings.most_first[:MOST]
    path = write_figure(draw_classes(extremes, split, names), out / "classes.png")
    sure = sum(sure_of(leaning.change) > 0 for leaning in extremes)
    surely, remark = ("surely ", "") if sure == len(extremes) else ("", f" Intervals that leave out 0: {sure}.")
    return [
        page.heading("Classes that lean on a tower"),
        page.image(
            path,
            f"The {len(extremes)} classes that {surely}lean most on a tower, with pictures: "
            + ", ".join(f"{names[leaning.label]} {_points(leaning.change)}" for leaning in extremes),
            f"Right answers by what tower a sees less those by what tower b sees, {leanings.n:,} pictures intact, of "
            f"the {len(extremes)} of {len(leanings.classes):,} classes whose 95 % intervals are farthest from 0."
            f"{remark}",
            least=LEAST,
        ),
        page.table(
            ["class", "pictures", "a's right answers less b's", "95 % interval", "p, Holm"],
            [
                [
                    names[leaning.label],
                    f"{leaning.change.n}",
                    _points(leaning.change),
                    "{:+.0f} to {:+.0f}".format(*leaning.change.interval),
                    shown_p(leaning.holm_p),
                ]
                for leaning in extremes
            ],
        ),
        page.why(
            f"The differences of all {len(leanings.classes):,} classes have a deviation of "
            f"{leanings.spread:.1f} points about that of all pictures; {leanings.by_chance:.1f} where the pictures are "
            f"dealt to the classes at random ({told_p(leanings.p)}). p, Holm: McNemar's exact test, corrected for all "
            f"{len(leanings.classes):,} classes. In the order of the ends of their intervals that are nearer to 0: so "
            "a class of few pictures is not the first by chance. Chosen as the most extreme, these would lean a little "
            "less on other pictures."
        ),
    ]


def _points(change):
    return f"{change.difference:{'+' * (change.difference != 0)}.1f} points"


def _most_colourful(split, numbers):
    """Of some pictures the one that has the most chroma, so that its loss is seen: (size, size, 3) uint8."""
    sample = [split.read(int(number)) for number in numbers[:: max(1, len(numbers) // 50)]]
    return max(sample, key=lambda picture: float((picture.astype(np.float64).std(2)).mean()))


def draw_sight(sorts: Sequence[Seen], example: np.ndarray) -> "Figure":
    """The errors, a row a sort of pictures, beside an example of each. example: (size, size, 3) uint8."""
    # Imported late: it takes a second. The object interface draws without a display and without global state.
    from matplotlib.figure import Figure

    rows, row_inches, bottom = len(sorts), 0.62, 0.55
    top = 0.15 + 0.2 * len(sorts[0].errors)
    height = rows * row_inches + top + bottom
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    axes = figure.add_axes((1.85 / WIDTH, bottom / height, 1.95 / WIDTH, rows * row_inches / height))
    for row, sort in enumerate(sorts):
        picture = ALTERATIONS[sort.pictures](example[None])[0]
        size = 0.56
        place = bottom + (rows - 1 - row) * row_inches + (row_inches - size) / 2
        image = figure.add_axes((0.05 / WIDTH, place / height, size / WIDTH, size / height))
        image.imshow(picture)
        image.axis("off")
        for shift, (name, (_, marker, colour, filled)) in zip(np.linspace(-0.24, 0.24, len(WHO)), WHO.items()):
            if name in sort.errors:
                if filled:
                    ends = [100 * end for end in wilson(round(sort.n * sort.errors[name] / 100), sort.n)]
                    axes.plot(ends, [row + shift] * 2, color=colour, linewidth=1, alpha=0.6)
                axes.plot(
                    sort.errors[name],
                    row + shift,
                    marker,
                    color=colour,
                    markerfacecolor=colour if filled else "white",
                    markersize=6,
                    label=WHO[name][0] if row == 0 else None,
                )
    axes.set_yticks(range(rows), [sort.pictures for sort in sorts], fontsize=9.5)
    axes.set(ylim=(rows - 0.5, -0.5), xlabel="top-1 error (%)")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.25)
    for row in range(1, rows):
        axes.axhline(row - 0.5, color=FAINT, linewidth=0.4, alpha=0.5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="upper left", frameon=False, fontsize=9.5)
    return figure


def draw_classes(leanings: Sequence[Leaning], split: Split, names: Sequence[str]) -> "Figure":
    """How far each class leans, with its interval and some of its pictures."""
    # Imported late: it takes a second. The object interface draws without a display and without global state.
    from matplotlib.figure import Figure

    rows, row_inches, top, bottom, size = len(leanings), 0.66, 0.05, 0.6, 0.6
    height = rows * row_inches + top + bottom
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    axes = figure.add_axes((1.5 / WIDTH, bottom / height, 2.3 / WIDTH, rows * row_inches / height))
    labels = np.asarray(split.labels)
    for row, leaning in enumerate(leanings):
        place = bottom + (rows - 1 - row) * row_inches + (row_inches - size) / 2
        of_class = np.flatnonzero(labels == leaning.label)
        for column, number in enumerate(of_class[evenly(len(of_class), EACH)]):
            left = 0.05 + column * (size + 0.04)
            image = figure.add_axes((left / WIDTH, place / height, size / WIDTH, size / height))
            image.imshow(split.read(int(number)))
            image.axis("off")
        marker, colour = SIDES[np.sign(leaning.change.difference)]
        axes.plot(leaning.change.interval, [row + 0.2] * 2, color=colour, linewidth=1.6)
        axes.plot(leaning.change.difference, row + 0.2, marker, color=colour, markersize=7)
        name = short_name(names[leaning.label])
        axes.text(
            0.01, row - 0.2, name, transform=axes.get_yaxis_transform(), va="center", fontsize=9.5, parse_math=False
        )
    axes.set(ylim=(rows - 0.5, -0.5), yticks=[])
    axes.set_xlabel("points; left: tower b, right: tower a", loc="right")  # longer than the axis
    axes.axvline(0, color=INK, linewidth=0.9)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure
