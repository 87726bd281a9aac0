"""Kinds of claims that compare errors: of arms, of views, of training and validation images."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING

from ..analysis.hypothesis_tests import paired
from ..recipes.recipe import Recipe
from ..system.errors import UserError
from . import drawing, outcome, sentences
from .entries import averaged, ended, error, fields, gap, pairs, training_error, words
from .kind import Kind
from .outcome import Outcome
from .sentences import count, n_and_p, signed, spread, spread_signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Errors(Kind):
    """The errors of each arm, on test images too if their labels are known."""

    word = "errors"
    on_training_images = False
    on_test_images = True
    judged = False

    def findings(self, record: dict, arms: Sequence[str]) -> list[str | None]:
        return [errors_of(record, arm) for arm in arms]


class Difference(Kind):
    """Each arm against the first."""

    word = "difference"

    def findings(self, record: dict, arms: Sequence[str]) -> list[str | None]:
        beside = [sentences.beside(record, arms[0], arm) for arm in arms[1:]]
        return [*super().findings(record, arms), *beside]


class Cumulative(Kind):
    """Each arm against the one before it."""

    word = "cumulative"

    def findings(self, record: dict, arms: Sequence[str]) -> list[str | None]:
        steps = list(zip(arms, arms[1:]))
        beside = [sentences.beside(record, *pair) for pair in steps]
        return [errors_of(record, arms[0]), *(sentences.difference(record, *pair) for pair in steps), *beside]

    def outcomes(self, record: dict, arms: Sequence[str]) -> list[Outcome]:
        return [outcome.difference(record, *pair) for pair in zip(arms, arms[1:])]

    def figure(self, axes: "Axes", record: dict, colours: Mapping[str, str]) -> None:
        drawing.errors(axes, record, colours, joined_means=True)


class Views(Kind):
    """The centre view against the average over views, of the same networks."""

    word = "views"

    def refuse(self, claim_id: str, recipe: Recipe) -> None:
        if recipe.test_views == "one":
            raise UserError(f"{claim_id}: this network is tested on one view, so there is nothing to compare")

    def findings(self, record: dict, arms: Sequence[str]) -> list[str | None]:
        runs = ended(record, arms[0])
        if not runs:
            return []
        name = averaged(runs[0]["errors"])
        errors = [
            [[run["errors"][protocol][field] for run in runs] for protocol in (name, "centre view")]
            for field in fields(record)
        ]
        tests = [paired(*pair) for pair in errors]
        level = " / ".join(f"{mean(pair[0]):.2f}" for pair in errors)
        points = " / ".join(signed(test) for test in tests)
        return [f"centre view {points} points against {level} % of {name}, {n_and_p(tests[0])}"]

    def outcomes(self, record: dict, arms: Sequence[str]) -> list[Outcome]:
        values = [run["errors"]["centre view"]["top1_error"] - error(run) for run in ended(record, arms[0])]
        return [Outcome("centre view minus the average over views", tuple(values))]

    def figure(self, axes: "Axes", record: dict, colours: Mapping[str, str]) -> None:
        arm, colour = next(iter(colours.items()))
        runs = ended(record, arm)
        name = averaged(runs[0]["errors"]) if runs else "average over views"
        series = {
            view: {run["seed"]: run["errors"][view]["top1_error"] for run in runs} for view in ("centre view", name)
        }
        axes.set_ylabel("top-1 error (%)")
        drawing.columns(axes, record, dict.fromkeys(series, colour), series)


class Overfitting(Kind):
    """The gap between training and validation error, and the error beside it: a gap grows, too, where an arm only
    learns its training images faster."""

    word = "overfitting"

    def findings(self, record: dict, arms: Sequence[str]) -> list[str | None]:
        moves = [sentences.moved(record, arms[0], arm) for arm in arms[1:]]
        return [*super().findings(record, arms), gaps_of(record, arms), *moves]

    def outcomes(self, record: dict, arms: Sequence[str]) -> list[Outcome]:
        gaps = [outcome.difference(record, arms[0], arm, gap, "validation minus training error, ") for arm in arms[1:]]
        return [*gaps, *(outcome.difference(record, arms[0], arm, what="error, ", beside=True) for arm in arms[1:])]

    def figure(self, axes: "Axes", record: dict, colours: Mapping[str, str]) -> None:
        """Each seed's errors on training and validation images, joined by the gap."""
        labels = []
        for number, (arm, colour) in enumerate(colours.items()):
            runs = [run for run in ended(record, arm) if gap(run) is not None]
            for index, run in enumerate(runs):
                training, validation = training_error(run), run["errors"]["centre view"]["top1_error"]
                x = number + 0.6 * ((index + 0.5) / len(runs) - 0.5)  # side by side
                axes.plot([x, x], [training, validation], color=colour, linewidth=2)
                axes.plot([x], [training], "o", color=colour, markerfacecolor="white")
                axes.plot([x], [validation], "o", color=colour)
                drawing.beside(axes, f"{gap(run):.1f}", x, (training + validation) / 2, len(runs) * len(colours))
            mean_gap = f"gap {spread([gap(run) for run in runs], 1)}\n" if runs else ""
            labels.append(f"{words(arm)}\n{mean_gap}n = {len(runs)}{drawing.lost(record, arm)}")
        if axes.lines:
            axes.plot([], [], "ko", label="validation images")
            axes.plot([], [], "ko", markerfacecolor="white", label="training images, network in test mode")
        drawing.name_columns(axes, labels)
        axes.set_ylabel("top-1 error, centre view (%)")


class Training(Kind):
    """A difference in training error."""

    word = "training"

    def findings(self, record: dict, arms: Sequence[str]) -> list[str | None]:
        moves = [sentences.moved(record, arms[0], arm) for arm in arms[1:]]
        return [*(_training(record, arms[0], arm) for arm in arms[1:]), *super().findings(record, arms), *moves]

    def outcomes(self, record: dict, arms: Sequence[str]) -> list[Outcome]:
        return [outcome.difference(record, arms[0], arm, training_error, "training error, ") for arm in arms[1:]]

    def figure(self, axes: "Axes", record: dict, colours: Mapping[str, str]) -> None:
        axes.set_ylabel("top-1 error on the training images, centre view (%)")
        series = {
            arm: {run["seed"]: training_error(run) for run in ended(record, arm) if training_error(run) is not None}
            for arm in colours
        }
        drawing.columns(axes, record, colours, series)


class Schedule(Kind):
    """A difference, and the epochs at which the rates fell."""

    word = "schedule"
    tells_schedule = True

    def findings(self, record: dict, arms: Sequence[str]) -> list[str | None]:
        beside = [sentences.beside(record, arms[0], arm) for arm in arms[1:]]
        return [*(_drops(record, arm) for arm in arms), *super().findings(record, arms), *beside]


def errors_of(record: dict, arm: str, before: str = "") -> str | None:
    """The errors of an arm by themselves, None if no run of it was tested. before: what the sentence begins with."""
    runs = ended(record, arm)
    if not runs:
        return None
    sets = [
        (what, [run[key] for run in runs])
        for what, key in (("", "errors"), ("test images: ", "on_test_images"))
        if all(key in run for run in runs)
    ]
    shown_fields = fields(record)
    test_gap = _test_gap(*(errors for _, errors in sets), shown_fields) if len(sets) > 1 else ""
    levels = "; ".join(what + _levels(errors, shown_fields) for what, errors in sets)
    return f"{before}{words(arm)}: {levels}{test_gap}, n = {len(runs)}"


def _test_gap(validation, test, shown_fields):
    """Test minus validation errors under the protocol that averages views, of the same runs."""
    name = averaged(validation[0])
    points = " / ".join(
        spread_signed([b[name][field] - a[name][field] for a, b in zip(validation, test)]) for field in shown_fields
    )
    return f"; test minus validation {points} points ({name})"


def _levels(errors, shown_fields):
    """The mean errors of several runs under their protocols."""
    return ", ".join(
        f"{' / '.join(spread([of_run[protocol][field] for of_run in errors]) for field in shown_fields)} % {protocol}"
        for protocol in reversed(errors[0])
    )


def gaps_of(record: dict, arms: Sequence[str]) -> str | None:
    """Validation minus training error of every arm, and how much more that is than the first arm's, paired by seed;
    None if no run was tested on training images."""
    parts, gaps = [], {}
    for arm in arms:
        runs = [run for run in ended(record, arm) if gap(run) is not None]
        gaps[arm] = {run["seed"]: gap(run) for run in runs}
        if runs:
            level = mean(training_error(run) for run in runs)
            parts.append(f"{words(arm)} {spread(list(gaps[arm].values()))} points (training images {level:.2f} %)")
    for arm in arms[1:]:
        seeds = sorted(gaps[arms[0]].keys() & gaps[arm].keys())
        if seeds:
            test = paired(*([gaps[name][seed] for seed in seeds] for name in (arms[0], arm)))
            parts.append(f"{words(arm)} {signed(test)} points against {words(arms[0])}, {n_and_p(test)}")
    if not parts:
        return None
    return f"validation minus training error, centre view, network in test mode: {', '.join(parts)}"


def _training(record, reference, arm):
    a, b = pairs(record, reference, arm)
    if not a:
        return None
    errors, losses = (
        [[run["on_training_images"][field] for run in runs] for runs in (a, b)] for field in ("top1_error", "loss")
    )
    test, loss = paired(*errors), paired(*losses)
    return (
        f"on the training images (centre view, network in test mode) {words(arm)} {signed(test)} points top-1 "
        f"against {words(reference)}'s {mean(errors[0]):.2f} %, {n_and_p(test)}; loss {signed(loss, 3)}"
    )


def _drops(record, arm):
    """At which epochs the rates fell, seed by seed."""
    runs = [run for run in record["runs"] if run["arm"] == arm and "drops" in run]
    if not runs:
        return None
    of_seeds = []
    for run in runs:
        epochs = math.ceil(run["steps"] / run["steps_per_epoch"])
        when = f"at epoch{'s' if len(run['drops']) > 1 else ''} {', '.join(map(str, run['drops']))} of {epochs}"
        never = f"not within {count(epochs, 'epoch')}"
        of_seeds.append(f"{when if run['drops'] else never} (seed {run['seed']})")
    return f"{words(arm)}: the rates fall {', '.join(of_seeds)}"
