"""The left half of a claim's picture: the training curves of its arms, a thin line a seed, a thick one their mean.

Kind "rates" has training error against epochs, solid and dashed as in the paper's figure 1; all others have the training loss.
"""
import math

import numpy as np

from .claim_list import LEVEL

FAINT = "#aaaaaa"
FEW = 3  # a curve of so few points is drawn with markers: one point has no line


def draw_curves(axes, record, colours):
    """colours: {arm: colour}."""
    from matplotlib.ticker import MaxNLocator

    rates = record["kind"] == "rates"
    for run in record["search"]:
        if "curve" in run:
            _line(axes, *_curve(run, rates), color=FAINT, linewidth=0.6, zorder=1)
    for number, arm in enumerate(record["arms"]):
        dashed = arm["larger"] or rates and number > 0
        _draw_arm(axes, arm, record, {"color": colours[arm["name"]], "linestyle": "--" if dashed else "-"})
    if any("diverged" in run and "curve" in run for run in record["runs"]):
        axes.plot([], [], "kx", label="diverged")
    if any(run.get("drops") for run in record["runs"]):
        axes.plot([], [], "k:", linewidth=0.8, label="the rate falls")
    if rates:
        axes.axhline(LEVEL, color="black", linestyle="--", linewidth=0.8, label=f"{LEVEL:g} %")
    if record["kind"] == "moved":
        classes = record["data"][0]["classes"]
        axes.axhline(math.log(classes), color="black", linestyle="--", linewidth=0.8, label=f"ln({classes}), all classes alike")
    axes.set(xlabel="epoch" if rates else "step", ylabel="top-1 error in training (%)" if rates else "training loss (nats)",
             xlim=(0, 1.03 * axes.get_xlim()[1]), ylim=(0, 1.05 * axes.get_ylim()[1]))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def _draw_arm(axes, arm, record, style):
    rates = record["kind"] == "rates"
    runs = [run for run in record["runs"] if run["arm"] == arm["name"] and "curve" in run]
    for run in runs:
        x, y = _curve(run, rates)
        _line(axes, x, y, **style, linewidth=0.6, alpha=0.6)
        if "diverged" in run:
            axes.plot(x[-1:], y[-1:], "x", color=style["color"], markersize=9, markeredgewidth=2, zorder=5)
        for epoch in run.get("drops", ()):  # the first epoch with the new rate; epoch 1 begins at step 0
            axes.axvline((epoch - 1) * run["steps_per_epoch"], color=style["color"], linewidth=0.8, linestyle=":")
    whole = [_curve(run, rates) for run in runs if "diverged" not in run]
    if whole:
        x = min((x for x, _ in whole), key=lambda x: x[-1])  # runs may end at different steps, so their points lie apart
        means = np.mean([np.interp(x, *curve) for curve in whole], axis=0)
        label = arm["name"].replace("_", " ") + (", on more classes" if arm["larger"] else "")
        _line(axes, x, means, **style, linewidth=2, label=label)


def _curve(run, rates):
    """(x, y) of a run: steps and loss, or epochs and error."""
    steps, curve = run["curve"]["steps"], run["curve"]
    return ([step / run["steps_per_epoch"] for step in steps], curve["top1_error"]) if rates else (steps, curve["loss"])


def _line(axes, x, y, **style):
    axes.plot(x, y, marker="o" if len(x) <= FEW else None, markersize=4, **style)
