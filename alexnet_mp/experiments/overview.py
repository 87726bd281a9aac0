"""One picture of what came of the claims: each comparison that a verdict rests on, or would with more seeds, beside the
paper's own figure; and what stands beside a gap.

Of the desk study, where a claim compares in points and the plan has a direction. What is drawn is stamped into the
file, so that a picture can be held against the records without its pixels, which depend on matplotlib's version."""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .drawing import COLOURS, FAINT, in_256_colours
from .outcome import Outcome
from .paper_claims import CLAIMS
from .verdict import COMES_OUT, OPPOSITE, UNDECIDED, Verdict, primary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "overview.png"  # beside the records
STAMP = "Records"  # the text chunk that has `stamp`
OF_VERDICT = {COMES_OUT: COLOURS[0], OPPOSITE: COLOURS[1], UNDECIDED: COLOURS[-1]}  # else FAINT


@dataclass(frozen=True)
class Row:
    """One comparison; its numbers in points, above 0 in the direction that the plan wrote down."""

    claim: str
    what: str
    values: tuple[float, ...]  # one a seed
    interval: tuple[float, float] | None
    word: str  # the claim's verdict; "" of a comparison that has no part in it
    paper: float | None  # the paper's figure, where it has one
    remark: str = ""  # of the verdict
    of_average: bool = False  # values are of the members of one average, no seeds

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)


def rows(judgements: Mapping[str, Verdict]) -> list[Row]:
    """The comparisons of {claim's id: its verdict}, in the study's order."""
    comparisons = []
    for claim in CLAIMS:
        verdict = judgements[claim.id]
        if claim.direction == 0 or not verdict.of_study or verdict.counted:
            continue
        primary_outcomes = primary(claim, verdict.outcomes)
        for outcome in verdict.outcomes:
            if outcome.unit == "points" and (outcome in primary_outcomes or outcome.beside):
                comparisons.append(_row(claim, outcome, verdict if outcome in primary_outcomes else None))
    return comparisons


def _row(claim, outcome: Outcome, verdict):
    """verdict: None of a comparison that has no part in it."""
    what, interval = outcome.what, outcome.interval
    if claim.direction < 0:  # the paper's larger error first
        second, _, first = what.partition(" minus ")
        what = f"{first} minus {second}"
        interval = interval and (-interval[1], -interval[0])
    values = tuple(claim.direction * value for value in outcome.values)
    if verdict is None:
        return Row(claim.id, what, values, interval, "", None)
    return Row(claim.id, what, values, interval, verdict.word, claim.points, verdict.remark, outcome.one_average)


def stamp(comparisons: list[Row]) -> str:
    """A digest of what is drawn, to a hundredth of a point."""
    cells = []
    for row in comparisons:
        numbers = (*row.values, *(row.interval or ()))
        text = row.claim, row.what, row.word, row.paper, row.remark, row.of_average
        cells.append((*text, *(f"{number:.2f}" for number in numbers)))
    return hashlib.sha256(repr(cells).encode()).hexdigest()


def stamped(path: Path) -> str | None:
    """The stamp of a picture; None where no picture can be read."""
    try:
        with Image.open(path) as picture:
            return picture.info.get(STAMP)
    except OSError:  # no file, no picture, a folder
        return None


def as_png(comparisons: list[Row]) -> bytes:
    """The picture as PNG."""
    content, text = io.BytesIO(), PngInfo()
    text.add_text(STAMP, stamp(comparisons))
    in_256_colours(figure_of(comparisons)).save(content, "PNG", optimize=True, pnginfo=text)
    return content.getvalue()


def figure_of(comparisons: list[Row]) -> "Figure":
    """The comparisons from top to bottom: a point a seed, their mean with its 95 % interval, the paper's figure."""
    from matplotlib.figure import Figure  # imported late: it takes a second

    figure = Figure(figsize=(10, 1.5 + 0.27 * len(comparisons)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="black", linewidth=0.8)
    for y, row in enumerate(comparisons):
        colour = OF_VERDICT.get(row.word, FAINT)
        axes.plot(row.values, [y] * len(row.values), "|", color=colour, markersize=9, alpha=0.5)
        if row.interval:
            axes.plot(row.interval, [y, y], color=colour, linewidth=2.5, solid_capstyle="butt")
        axes.plot([row.mean], [y], "o", color=colour, markersize=6)
        if row.paper is not None:
            axes.plot([row.paper], [y], "D", color="black", markerfacecolor="white", markersize=6)
        first = y == 0 or comparisons[y - 1].claim != row.claim
        if first:
            axes.axhline(y - 0.5, color=FAINT, linewidth=0.5)
        place = (1, y), (6, 0), ("axes fraction", "data"), "offset points"
        text = _verdict(row, first)
        axes.annotate(text, *place, va="center", fontsize=6.5 if "\n" in text else 8, linespacing=1)
    axes.set_yticks(range(len(comparisons)), [f"{row.claim}: {row.what}" for row in comparisons], fontsize=8)
    direction = "points of error; to the right the direction that the plan wrote down"
    axes.set(ylim=(len(comparisons) - 0.5, -0.5), xlabel=direction)
    axes.grid(axis="x", alpha=0.3)
    axes.plot([], [], "|", color=COLOURS[0], markersize=9, alpha=0.5, label="one seed")
    axes.plot([], [], "o-", color=COLOURS[0], linewidth=2.5, label="mean, 95 % interval over seeds")
    paper = "the paper's figure, on ILSVRC (colour: over 1; pretraining: with conv6)"
    axes.plot([], [], "D", color="black", markerfacecolor="white", label=paper)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return figure


def _verdict(row, first):
    """What stands at the right of a row; first: of its claim."""
    if not row.word:
        return "no part of the verdict"
    n = f"{len(row.values)} members of one average" if row.of_average else f"n = {len(row.values)}"
    if not first:
        return f"part of the same verdict, {n}"
    return f"{row.word}, {n}" + (f"\n{row.remark}" if row.remark else "")
