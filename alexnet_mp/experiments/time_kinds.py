"""Kinds of claims that compare how long training takes to come to something."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING

from ..analysis.hypothesis_tests import paired
from ..analysis.learning_curves import step_of_loss
from . import drawing, sentences
from .entries import pairs, words
from .error_kinds import Overfitting
from .kind import Kind
from .outcome import Outcome, ratio_of_times
from .sentences import count, n_and_p, signed, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Dropout(Overfitting):
    """Overfitting, and the steps to equal training loss."""

    word = "dropout"

    def findings(self, record: dict, arms: Sequence[str]) -> list[str | None]:
        return [*super().findings(record, arms), *(_iterations(record, arms[0], arm) for arm in arms[1:])]


class Iterations(Kind):
    """Steps to equal training loss, beside a difference."""

    word = "iterations"

    def findings(self, record: dict, arms: Sequence[str]) -> list[str | None]:
        at = ", both at the rates of the base"
        iterations = [_iterations(record, arm, arms[0], at) for arm in arms[1:]]
        beside = [sentences.beside(record, arms[0], arm) for arm in arms[1:]]
        return [*iterations, *super().findings(record, arms), *beside]

    def outcomes(self, record: dict, arms: Sequence[str]) -> list[Outcome]:
        return [
            Outcome(
                f"steps to the same training loss, {words(arm)} over {words(arms[0])}",
                tuple(math.log(ratio) for ratio, _ in _ratios(record, arm, arms[0])),
                "times",
            )
            for arm in arms[1:]
        ]


class Moved(Kind):
    """Steps until the loss moves, beside a difference."""

    word = "moved"

    def findings(self, record: dict, arms: Sequence[str]) -> list[str | None]:
        return [
            *(_moves(record, arm) for arm in arms),
            *(_delay(record, arms[0], arm) for arm in arms[1:]),
            *super().findings(record, arms),
            *(sentences.on_training_images(record, arms[0], arm) for arm in arms[1:]),
        ]

    def mark_curves(self, axes: "Axes", record: dict) -> None:
        classes = record["data"][0]["classes"]
        axes.axhline(
            math.log(classes), color="black", linestyle="--", linewidth=0.8, label=f"ln({classes}), all classes alike"
        )

    def figure(self, axes: "Axes", record: dict, colours: Mapping[str, str]) -> None:
        axes.set_ylabel("steps until the loss moves")
        drawing.times(axes, record, colours, "moved", steps, 5)


class Rates(Kind):
    """Epochs to a training error, each arm with its own best learning rate, drawn as in figure 1."""

    word = "rates"
    level = 25.0
    searches_rates = True
    on_training_images = False
    asks_for = "epochs_to_level"
    curve_labels = ("epoch", "top-1 error in training (%)")
    dashed = True

    def findings(self, record: dict, arms: Sequence[str]) -> list[str | None]:
        runs = {arm: [run for run in record["runs"] if run["arm"] == arm] for arm in arms}
        if not all(runs.values()):
            return []
        fast, slow = arms
        lines = [self._of_arm(record, arm, runs[arm]) for arm in arms]
        before, after, bound, omission = _in_time(record, fast, slow, "epochs_to_level", epochs)
        if before:
            ratios = [b / a for a, b in zip(before, after)]
            test = paired(*([math.log(value) for value in of_arm] for of_arm in (before, after)))
            lines.append(f"ratio {bound}{spread(ratios)}, of the logarithms {n_and_p(test)}{omission}")
        return lines

    def _of_arm(self, record, arm, runs):
        """When an arm came to the level, and with which of the learning rates that were tried."""
        factor, factors = record["rates"][arm], [entry["factor"] for entry in record["search"] if entry["arm"] == arm]
        choice = f"the best of {', '.join(f'{candidate:g}' for candidate in factors)}"
        if record["search_epochs"] is not None:
            choice += f" after {count(record['search_epochs'], 'epoch')}"
        if factor in (factors[0], factors[-1]):
            choice += ", at the edge of what was tried"
        runs = [run for run in runs if "diverged" not in run]  # they have a sentence of their own
        times = [run["epochs_to_level"] for run in runs if run["epochs_to_level"] is not None]
        lengths = [epochs(run) for run in runs if run["epochs_to_level"] is None]
        parts = [f"after {spread(times)} epochs, n = {len(times)}"] if times else []
        if lengths:
            parts.append(f"not within {min(lengths):g} epochs with {len(lengths)} of {len(runs)} seeds")
        rate = f"at {factor:g} times its learning rate ({choice})"
        return f"{words(arm)} {rate}: {self.level:g} % training error {', '.join(parts)}"

    def outcomes(self, record: dict, arms: Sequence[str]) -> list[Outcome]:
        what = "epochs to the level, "
        return [ratio_of_times(record, arms[0], arm, "epochs_to_level", epochs, what) for arm in arms[1:]]

    def curve(self, run: dict) -> tuple[list[float], list[float]]:
        return [step / run["steps_per_epoch"] for step in run["curve"]["steps"]], run["curve"]["top1_error"]

    def mark_curves(self, axes: "Axes", record: dict) -> None:
        axes.axhline(self.level, color="black", linestyle="--", linewidth=0.8, label=f"{self.level:g} %")

    def figure(self, axes: "Axes", record: dict, colours: Mapping[str, str]) -> None:
        axes.set_ylabel(f"epochs to {self.level:g} % training error")
        drawing.times(axes, record, colours, "epochs_to_level", epochs, 1.5)


def epochs(run: dict) -> float:
    """The length of an entry's run."""
    return run["steps"] / run["steps_per_epoch"]


def steps(run: dict) -> int:
    """The length of an entry's run."""
    return run["steps"]


def _iterations(record, slow, fast, at=""):
    """How many times as many steps the first arm takes to the same training loss."""
    comparisons = _ratios(record, slow, fast)
    if not comparisons:
        return None
    ratios, levels = zip(*comparisons)
    return (
        f"{words(slow)} takes {spread(ratios)} times the steps of {words(fast)} to the same training loss (as it is in "
        f"training, with dropout where there is any), {spread(levels)}, the lowest that both curves come to before the "
        f"rates fall{at}, n = {len(ratios)}"
    )


def _ratios(record, slow, fast):
    """[(times as many steps the first arm takes to a loss, the loss: the lowest that both curves come to at the first
    rates)], by seed.

    Where the rates fall every loss drops within some steps, so that one below it would date the fall alone."""
    comparisons = []
    for a, b in zip(*pairs(record, slow, fast)):
        curves = [_at_first_rates(run) for run in (a, b)]
        if all(curve["loss"] for curve in curves):
            level = max(min(curve["loss"]) for curve in curves)
            slow_steps, fast_steps = (step_of_loss(curve, level) for curve in curves)
            comparisons.append((slow_steps / fast_steps, level))
    return comparisons


def _at_first_rates(run):
    """The points of an entry's curve before its rates fall; none if it has no curve, or doesn't say when they fall."""
    if "curve" not in run or "drops" not in run:
        return {"steps": [], "loss": []}
    steps, losses = run["curve"]["steps"], run["curve"]["loss"]
    end = (run["drops"][0] - 1) * run["steps_per_epoch"] if run["drops"] else math.inf
    count = sum(step <= end for step in steps)
    return {"steps": steps[:count], "loss": losses[:count]}


def _moves(record, arm):
    runs = [run for run in record["runs"] if run["arm"] == arm and "moved" in run and "diverged" not in run]
    if not runs:
        return None
    moves = [
        f"at step {run['moved']:,}" if run["moved"] is not None else f"not within {count(run['steps'], 'step')}"
        for run in runs
    ]
    signals = [run["signal"] for run in runs if "signal" in run]
    reason = ""
    if signals:  # why: the last layer's gradient has no more of the picture in it than its outputs
        first, last = (mean(list(signal.values())[place] for signal in signals) for place in (0, -1))
        reason = (
            f"; before training the logits differ from picture to picture by {last:.2g} "
            f"(conv1's outputs by {first:.2g})"
        )
    return f"{words(arm)}: the loss moves {', '.join(moves)}, n = {len(runs)}{reason}"


def _delay(record, reference, arm):
    before, after, bound, omission = _in_time(record, reference, arm, "moved", steps)
    if not before:
        return None
    delay = signed(paired(before, after), 0)
    plural = "" if delay in ("+1", "-1") else "s"
    logarithms = ratio_of_times(record, reference, arm, "moved", steps, "").values  # what a verdict rests on
    remark = f"; of the logarithms {n_and_p(paired([0.0] * len(logarithms), logarithms))}" if logarithms else ""
    return f"{words(arm)} {bound}{delay} step{plural} against {words(reference)}, n = {len(before)}{omission}{remark}"


def _in_time(record, reference, arm, time, length):
    """When two arms came to it, by seed: (values of the reference, of the arm, "at least " or "", what is left out).

    time: the entry's field. An arm that never came to it counts with its run's length, so that a difference is a lower
    bound; leaving it out would hide the strongest evidence. A seed whose reference never came to it says nothing of
    that kind, and is left out.
    """
    a, b = (
        {run["seed"]: run for run in record["runs"] if run["arm"] == name and "diverged" not in run}
        for name in (reference, arm)
    )
    common_seeds = sorted(a.keys() & b.keys())
    seeds = [seed for seed in common_seeds if a[seed][time] is not None]
    after = [length(b[seed]) if b[seed][time] is None else b[seed][time] for seed in seeds]
    bound = "at least " if any(b[seed][time] is None for seed in seeds) else ""
    omissions = len(common_seeds) - len(seeds)
    return (
        [a[seed][time] for seed in seeds],
        after,
        bound,
        f" (without {count(omissions, 'seed')} of which {words(reference)} did not come to it)" if omissions else "",
    )
