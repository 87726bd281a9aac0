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


def growing(out: Path, growths: Mapping[str, Growth]) -> page.Part:
    """The `Part` of the runs {name: `Growth`}; the first is shown as pictures, too."""
    first = next(iter(growths.values()))
    pieces = [page.text(_what_there_is(first))]
    if len(first.moments) > 1:
        pieces += _pictures(out, first)
    series = {name: growth for name, growth in growths.items() if len(growth.moments) > 1}
    charts = [
        (
            write_figure(draw_growth(growth, printable(name)), out / f"growth_{number}.png"),
            f"Share of chroma of each tower against steps, {printable(name)}",
        )
        for number, (name, growth) in enumerate(list(series.items())[:MOST_CHARTS], 1)
    ]
    if charts:
        pieces.append(page.panels(charts))
    if len(series) > MOST_CHARTS:
        pieces.append(page.why(f"Charts of the first {MOST_CHARTS} of {len(series)} such runs."))
    pieces += [
        page.table(
            ["run", "moments", "from step", "to step", "chroma a / b at the end", "divided at", "begins", "turns"],
            [_row(name, growth) for name, growth in growths.items()],
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
    lines = [line for growth in growths.values() for line in growth.unreadable]
    if lines:
        pieces.append(page.why(f"Left out, since they can't be used: {'; '.join(map(printable, lines))}."))
    return page.Part("growth", "How the kernels grow (figure 3 over training)", pieces)


def _what_there_is(growth):
    moments, steps = len(growth.moments), [moment.step for moment in growth.moments]
    if growth.kept:
        remark = f"; {MOST_MOMENTS} of them are looked at" if growth.kept > MOST_MOMENTS else ""
        words = f"The run kept its first layer at {growth.kept} moments (--keep-every){remark}."
    else:
        words = (
            "The run did not keep its first layer on the way, so its checkpoints are all there is; train with "
            "--keep-every STEPS keeps the first layer's weights alone, many times."
        )
    if moments == 1:
        return f"{words} There is one moment, step {steps[0]:,}: nothing can be seen to grow."
    words += f" There are {moments} moments from step {steps[0]:,} to {steps[-1]:,}."
    if len(growth.moments[0].chroma) == 1:
        return f"{words} The network has one tower: it can't divide."
    if growth.moments[-1].division_p is None:
        return f"{words} At the last of them too few kernels have learned anything to tell a division."
    if growth.begins is None:
        return f"{words} At the last of them the towers are not divided."
    by = "at all of them" if growth.begins == steps[0] else f"from step {growth.begins:,} on"
    words += f" The towers are divided {by}"
    leaders = growth.colourful
    if not leaders:
        return f"{words}; at no moment are their shares of chroma surely apart."
    if growth.turns:
        return f"{words}; which one is the more colourful turns at step {', '.join(map(_number, growth.turns))}."
    tower = "ab"[next(iter(leaders.values()))]
    return f"{words}, and never turn: tower {tower} is the more colourful at all {len(leaders)} where that is sure."


def _pictures(out, growth):
    frames, still = out / "growth_animation.png", out / "growth_strip.png"
    durable_files.replace(frames, animation(growth.moments))
    durable_files.replace(still, png(strip(growth.moments)))
    towers = "tower a left, tower b right; " if len(growth.moments[0].chroma) == 2 else ""
    what = (
        f"{towers}over each its share of chroma. Every moment has a scale of its own, from the smallest weight to the "
        "largest."
    )
    return [
        page.moving(frames, "The first layer's kernels, moment after moment", f"As an animation: {what}", least=0.5),
        page.image(still, "The first layer's kernels at some moments", f"Some moments: {what}", least=0.6, crisp=True),
    ]


def _row(name, growth):
    moments = growth.moments
    tested_moments = [moment for moment in moments if moment.division_p is not None]
    return [
        printable(name),
        f"{len(moments)}",
        _number(moments[0].step),
        _number(moments[-1].step),
        " / ".join(f"{share:.2f}" for share in moments[-1].chroma),
        f"{sum(moment.divided for moment in tested_moments)} of {len(tested_moments)}" if tested_moments else "-",
        _begins(growth),
        ", ".join(map(_number, growth.turns)) or ("never" if len(growth.colourful) > 1 else "-"),
    ]


def _begins(growth):
    """A division that is there at the first moment began at some time before."""
    if growth.begins is None or len(growth.moments) == 1:
        return "-"
    return f"{'by ' * (growth.begins == growth.moments[0].step)}{_number(growth.begins)}"


def _number(step):
    return f"{step:,}"
