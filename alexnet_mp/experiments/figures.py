"""The picture of a claim: left its training curves, right what came out for each seed; `RIGHT` says how each kind is
drawn.

Curves: a thin line a seed, a thick one their mean. Kind "rates" has training error against epochs, solid and dashed as
in the paper's figure 1; all others have the training loss."""

import math
import textwrap
from statistics import mean, stdev

import numpy as np

from .catalogue import LEVEL

COLOURS = ("#08519c", "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#a6761d", "#555555")


def averaged(errors):
    """The protocol of all views, "ten views" or "nine views", of {protocol: errors}; else the centre view."""
    return next((name for name in errors if name != "centre view"), "centre view")


def draw_claim(record, path):
    """Write the picture of a record; returns the path."""
    figure_of(record).savefig(path, dpi=100)
    return path


def figure_of(record):
    """The picture of a record as a matplotlib Figure."""
    # Imported late: it takes a second. The object interface draws without a display and without global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = {arm["name"]: COLOURS[number % len(COLOURS)] for number, arm in enumerate(record["arms"])}
    draw_curves(left, record, colours)
    # errors on other classes compare with nothing
    compared = [arm["name"] for arm in record["arms"] if not arm["larger"]]
    RIGHT.get(record["kind"], _errors)(right, record, {arm: colours[arm] for arm in compared})
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if not axes.lines:
            axes.set(xticks=[], yticks=[])
            axes.text(0.5, 0.5, "no run came to a result", ha="center", transform=axes.transAxes)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    length = f"{record['steps']:,} steps" if record["steps"] is not None else f"{record['epochs']} epochs"
    title = f"{record['claim']}, {length}: {record['data'][0]['description']}"
    title = title.encode(errors="backslashreplace").decode()  # a folder's name may be no text
    figure.suptitle("\n".join(textwrap.wrap(title, 140, max_lines=2, placeholder=" ...")), fontsize=9, parse_math=False)
    return figure


def _errors(axes, record, colours, paired=True):
    tested = [run["errors"] for arm in colours for run in _ended(record, arm)]
    one = bool(tested) and all(len(errors) == 1 for errors in tested)
    axes.set_ylabel(f"top-1 error, {'centre view' if one else 'average over views'} (%)")
    measured = {
        arm: {run["seed"]: run["errors"][averaged(run["errors"])]["top1_error"] for run in _ended(record, arm)}
        for arm in colours
    }
    _columns(axes, record, colours, measured, paired, joined_means=record["kind"] == "cumulative")


def _training(axes, record, colours):
    axes.set_ylabel("top-1 error on the training images, centre view (%)")
    _columns(
        axes,
        record,
        colours,
        {
            arm: {
                run["seed"]: run["on_training_images"]["top1_error"]
                for run in _ended(record, arm)
                if "on_training_images" in run
            }
            for arm in colours
        },
    )


def _views(axes, record, colours):
    arm, colour = next(iter(colours.items()))
    runs = _ended(record, arm)
    name = averaged(runs[0]["errors"]) if runs else "average over views"
    measured = {
        view: {run["seed"]: run["errors"][view]["top1_error"] for run in runs} for view in ("centre view", name)
    }
    axes.set_ylabel("top-1 error (%)")
    _columns(axes, record, dict.fromkeys(measured, colour), measured)


def _rates(axes, record, colours):
    axes.set_ylabel(f"epochs to {LEVEL:g} % training error")
    _times(
        axes,
        record,
        colours,
        lambda run: run.get("epochs_to_level"),
        lambda run: run["steps"] / run["steps_per_epoch"],
        1.5,
    )


def _moved(axes, record, colours):
    axes.set_ylabel("steps until the loss moves")
    _times(axes, record, colours, lambda run: run.get("moved"), lambda run: run["steps"], 5)


def _times(axes, record, colours, reached, length, ratio):
    """Columns of times; open points at the end of runs that did not come to it. A log axis for a ratio of `ratio`."""
    ended = [run for run in record["runs"] if run["steps"] and "diverged" not in run]
    runs = {arm: [run for run in ended if run["arm"] == arm] for arm in colours}
    found = {arm: {run["seed"]: reached(run) for run in runs[arm] if reached(run) is not None} for arm in colours}
    never = [
        (number, length(run), arm) for number, arm in enumerate(colours) for run in runs[arm] if reached(run) is None
    ]
    _columns(axes, record, colours, found, counts={arm: len(of_arm) for arm, of_arm in runs.items()})
    for number, value, arm in never:
        axes.plot([number], [value], "o", color=colours[arm], markerfacecolor="white")
    if never:
        axes.plot([], [], "ko", markerfacecolor="white", label="not within the run")
    times = [*(value for values in found.values() for value in values.values()), *(value for _, value, _ in never)]
    if times and max(times) >= ratio * min(times):
        _logarithmic(axes, times)


def _logarithmic(axes, values):
    """A log axis whose numbers are written out, with ends so far apart that there are some."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_yscale("log")
    axes.set_ylim(min(values) / 1.6, max(values) * 1.6)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _columns(axes, record, colours, measured, paired=True, joined_means=False, counts=None):
    """A column a name of `measured`, {name: {seed: value}}: a point a seed, and beside them mean ± sd where they are
    several.

    paired: the same seed is joined by a line. Under a column is how many values it has, or what counts says.
    """
    labels, middle = [], []
    for number, (name, values) in enumerate(measured.items()):
        for value in values.values():
            axes.plot([number], [value], "o", color=colours[name])
        if values:
            middle.append((number + (0.15 if len(values) > 1 else 0), mean(values.values())))
        if len(values) > 1:
            axes.errorbar(
                *middle[-1], yerr=stdev(values.values()), color=colours[name], fmt="_", markersize=12, capsize=4
            )
        labels.append(f"{name.replace('_', ' ')}\nn = {counts[name] if counts else len(values)}{_lost(record, name)}")
    for seed in sorted({seed for values in measured.values() for seed in values}) if paired else ():
        line = [(number, values[seed]) for number, values in enumerate(measured.values()) if seed in values]
        axes.plot(*zip(*line), color=FAINT, linewidth=0.7, zorder=0)
    if joined_means and middle:
        axes.plot(*zip(*middle), color="black", linewidth=1.2, zorder=0, label="means")
    _name_columns(axes, labels)


def _gaps(axes, record, colours):
    """Each seed's errors on training and validation images, joined by the gap."""
    labels = []
    for number, (arm, colour) in enumerate(colours.items()):
        runs = [run for run in _ended(record, arm) if "on_training_images" in run]
        pairs = [(run["on_training_images"]["top1_error"], run["errors"]["centre view"]["top1_error"]) for run in runs]
        gaps = [validation - training for training, validation in pairs]
        for index, (training, validation) in enumerate(pairs):
            x = number + 0.6 * ((index + 0.5) / len(pairs) - 0.5)  # side by side
            axes.plot([x, x], [training, validation], color=colour, linewidth=2)
            axes.plot([x], [training], "o", color=colour, markerfacecolor="white")
            axes.plot([x], [validation], "o", color=colour)
            _beside(axes, f"{validation - training:.1f}", x, (training + validation) / 2, len(pairs) * len(colours))
        told = f"gap {mean(gaps):.1f}{f' ± {stdev(gaps):.1f}' if len(gaps) > 1 else ''}\n" if gaps else ""
        labels.append(f"{arm.replace('_', ' ')}\n{told}n = {len(gaps)}{_lost(record, arm)}")
    if axes.lines:
        axes.plot([], [], "ko", label="validation images")
        axes.plot([], [], "ko", markerfacecolor="white", label="training images, network in test mode")
    _name_columns(axes, labels)
    axes.set_ylabel("top-1 error, centre view (%)")


def _towers(axes, record, colours):
    """Each run's two shares of chroma, and p of "the towers' kernels are alike"; runs of the arms one after the
    other."""
    runs = [run for arm in colours for run in record["runs"] if run["arm"] == arm and "chroma" in run]
    for number, run in enumerate(runs):
        axes.plot([number] * 2, run["chroma"], color=FAINT, zorder=0)
        p = run["division"]["p"] if "division" in run else run["random_split_p"]
        _beside(axes, "noise" if p is None else f"p = {p:.2g}", number, mean(run["chroma"]), len(runs))
    for tower, colour in zip((0, 1), COLOURS) if runs else ():
        axes.plot(
            range(len(runs)), [run["chroma"][tower] for run in runs], "o", color=colour, label=f"tower {'ab'[tower]}"
        )
    several = len({run["arm"] for run in runs}) > 1
    _name_columns(
        axes,
        [f"{run['arm'].replace('_', ' ')}, seed {run['seed']}" if several else f"seed {run['seed']}" for run in runs],
    )
    axes.set(ylabel="share of chroma in the first layer's energy", ylim=(0, 1))


def _ensembles(axes, record, colours):
    """The networks that are averaged as points, their averages as lines; all networks where none were averaged."""
    members = {member for ensemble in record["ensembles"] for member in ensemble["members"]}
    shown = [run for run in record["runs"] if run["directory"] in members or not members]
    _errors(axes, record | {"runs": shown}, colours, paired=False)
    for part in (part for ensemble in record["ensembles"] for part in (ensemble.get("five"), ensemble) if part):
        size = len(part["members"])
        for key, colour, what in (("errors", "black", ""), ("weighted", COLOURS[4], ", weighted")):
            label = f"average of {size}{what}"
            axes.axhline(
                part[key][averaged(part[key])]["top1_error"],
                color=colour,
                linestyle="--" if size <= 5 else "-",
                label=None if label in axes.get_legend_handles_labels()[1] else label,
            )


RIGHT = {
    "views": _views,
    "overfitting": _gaps,
    "dropout": _gaps,
    "training": _training,
    "rates": _rates,
    "moved": _moved,
    "towers": _towers,
    "ensemble": _ensembles,
}  # all others: the errors of each arm


def _ended(record, arm):
    return [run for run in record["runs"] if run["arm"] == arm and "errors" in run]


def _beside(axes, text, x, y, columns):
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


def _lost(record, arm):
    count = sum("diverged" in run for run in record["runs"] if run["arm"] == arm)
    return f", {count} diverged" if count else ""


def _name_columns(axes, labels):
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
        axes.axhline(
            math.log(classes), color="black", linestyle="--", linewidth=0.8, label=f"ln({classes}), all classes alike"
        )
    axes.set(
        xlabel="epoch" if rates else "step",
        ylabel="top-1 error in training (%)" if rates else "training loss (nats)",
        xlim=(0, 1.03 * axes.get_xlim()[1]),
        ylim=(0, 1.05 * axes.get_ylim()[1]),
    )
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
        # runs may end at different steps, so their points lie apart
        x = min((x for x, _ in whole), key=lambda x: x[-1])
        means = np.mean([np.interp(x, *curve) for curve in whole], axis=0)
        label = arm["name"].replace("_", " ") + (", on more classes" if arm["larger"] else "")
        _line(axes, x, means, **style, linewidth=2, label=label)


def _curve(run, rates):
    """(x, y) of a run: steps and loss, or epochs and error."""
    steps, curve = run["curve"]["steps"], run["curve"]
    return ([step / run["steps_per_epoch"] for step in steps], curve["top1_error"]) if rates else (steps, curve["loss"])


def _line(axes, x, y, **style):
    axes.plot(x, y, marker="o" if len(x) <= FEW else None, markersize=4, **style)
