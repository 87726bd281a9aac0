"""The report's part on how figure 3 grows: moments of a run as a strip and an animation, chroma against steps of each
run, when the division begins and whether it turns."""

from collections.abc import Mapping
from pathlib import Path

from ..analysis.figures import write_figure
from ..analysis.growth import MOST_MOMENTS, Growth
from ..analysis.growth_pictures import animation, draw_growth, strip
from ..analysis.specialisation import DIVISION_LEVEL
from ..retrieval.contact_sheet import png
from ..system import durable_files
from ..system.terminal import printable
from . import page

MOST_CHARTS = 8  # runs


def growing(out: Path, found: Mapping[str, Growth]) -> page.Part:
    """The `Part` of the runs {name: `Growth`}; the first is shown as pictures, too."""
    first = next(iter(found.values()))
    pieces = [page.text(_what_there_is(first))]
    if len(first.moments) > 1:
        pieces += _pictures(out, first)
    several = {name: one for name, one in found.items() if len(one.moments) > 1}
    charts = [
        (
            write_figure(draw_growth(one, printable(name)), out / f"growth_{number}.png"),
            f"Share of chroma of each tower against steps, {printable(name)}",
        )
        for number, (name, one) in enumerate(list(several.items())[:MOST_CHARTS], 1)
    ]
    if charts:
        pieces.append(page.panels(charts))
    if len(several) > MOST_CHARTS:
        pieces.append(page.why(f"Charts of the first {MOST_CHARTS} of {len(several)} such runs."))
    pieces += [
        page.table(
            ["run", "moments", "from step", "to step", "chroma a / b at the end", "divided at", "begins", "turns"],
            [_row(name, one) for name, one in found.items()],
        ),
        page.why(
            "Divided: random halves of the learned kernels are as far apart, in all that they are tuned to, with p at "
            f"most {DIVISION_LEVEL:g}; of the moments at which enough kernels have learned anything. The division "
            "begins at the first moment from which on all are divided, up to the last; what comes and goes before is "
            "no division, and so many looks make no false alarm likelier. It turns where the other tower becomes the "
            f"more colourful one, of the moments whose shares of chroma are apart at {DIVISION_LEVEL:g} after Holm's "
            "correction for all moments of the run."
        ),
    ]
    lines = [line for one in found.values() for line in one.unreadable]
    if lines:
        pieces.append(page.why(f"Left out, since they can't be used: {'; '.join(map(printable, lines))}."))
    return page.Part("growth", "How the kernels grow (figure 3 over training)", pieces)


def _what_there_is(found):
    moments, steps = len(found.moments), [moment.step for moment in found.moments]
    if found.kept:
        some = f"; {MOST_MOMENTS} of them are looked at" if found.kept > MOST_MOMENTS else ""
        words = f"The run kept its first layer at {found.kept} moments (--keep-every){some}."
    else:
        words = (
            "The run did not keep its first layer on the way, so its checkpoints are all there is; train with "
            "--keep-every STEPS keeps the first layer's weights alone, many times."
        )
    if moments == 1:
        return f"{words} There is one moment, step {steps[0]:,}: nothing can be seen to grow."
    words += f" There are {moments} moments from step {steps[0]:,} to {steps[-1]:,}."
    if len(found.moments[0].chroma) == 1:
        return f"{words} The network has one tower: it can't divide."
    if found.moments[-1].division_p is None:
        return f"{words} At the last of them too few kernels have learned anything to tell a division."
    if found.begins is None:
        return f"{words} At the last of them the towers are not divided."
    by = "at all of them" if found.begins == steps[0] else f"from step {found.begins:,} on"
    words += f" The towers are divided {by}"
    colourful = found.colourful
    if not colourful:
        return f"{words}; at no moment are their shares of chroma surely apart."
    if found.turns:
        return f"{words}; which one is the more colourful turns at step {', '.join(map(_number, found.turns))}."
    tower = "ab"[next(iter(colourful.values()))]
    return f"{words}, and never turn: tower {tower} is the more colourful at all {len(colourful)} where that is sure."


def _pictures(out, found):
    frames, still = out / "growth_animation.png", out / "growth_strip.png"
    durable_files.replace(frames, animation(found.moments))
    durable_files.replace(still, png(strip(found.moments)))
    towers = "tower a left, tower b right; " if len(found.moments[0].chroma) == 2 else ""
    what = (
        f"{towers}over each its share of chroma. Every moment has a scale of its own, from the smallest weight to the "
        "largest."
    )
    return [
        page.moving(frames, "The first layer's kernels, moment after moment", f"As an animation: {what}", least=0.5),
        page.image(still, "The first layer's kernels at some moments", f"Some moments: {what}", least=0.6, crisp=True),
    ]


def _row(name, found):
    moments = found.moments
    tested = [moment for moment in moments if moment.division_p is not None]
    return [
        printable(name),
        f"{len(moments)}",
        _number(moments[0].step),
        _number(moments[-1].step),
        " / ".join(f"{share:.2f}" for share in moments[-1].chroma),
        f"{sum(moment.divided for moment in tested)} of {len(tested)}" if tested else "-",
        _begins(found),
        ", ".join(map(_number, found.turns)) or ("never" if len(found.colourful) > 1 else "-"),
    ]


def _begins(found):
    """A division that is there at the first moment began at some time before."""
    if found.begins is None or len(found.moments) == 1:
        return "-"
    return f"{'by ' * (found.begins == found.moments[0].step)}{_number(found.begins)}"


def _number(step):
    return f"{step:,}"
