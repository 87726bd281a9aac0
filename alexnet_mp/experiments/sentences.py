"""Numbers in a sentence of the findings, and the sentence that most of them begin with: a difference of two arms."""

from collections.abc import Sequence
from statistics import mean, stdev

from ..analysis.hypothesis_tests import Paired, paired
from .entries import fields, pairs, training_error, words


def count(number: int, noun: str) -> str:
    """ "1 epoch", "1,200 steps"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation."""
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def spread_signed(values: Sequence[float], digits: int = 2) -> str:
    return f"{mean(values):+.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def signed(test: Paired, digits: int = 2) -> str:
    """Mean ± standard deviation of the differences."""
    return f"{test.mean:+.{digits}f}" + (f" ± {test.sd:.{digits}f}" if test.sd is not None else "")


def n_and_p(test: Paired) -> str:
    """How many pairs, and p of the exact test; a verdict rests on another, the paired t-test (`Outcome.p`)."""
    if test.p is None:
        return "n = 1, no p"
    remark = ", the least there can be" if test.p == test.least_p else ""
    return f"n = {test.n}, p = {test.p:.2g} by sign flips{remark}"


def difference(record: dict, reference: str, arm: str) -> str | None:
    """Errors of an arm minus those of its reference, under every protocol; None without a pair."""
    a, b = pairs(record, reference, arm)
    if not a:
        return None
    parts = []
    for protocol in reversed(a[0]["errors"]):
        errors = [[[run["errors"][protocol][field] for run in runs] for runs in (a, b)] for field in fields(record)]
        points = " / ".join(signed(paired(*pair)) for pair in errors)
        parts.append((f"{points} points", protocol, paired(*errors[0]), errors))
    (first_points, protocol, test, errors), *other_parts = parts
    level = " / ".join(f"{mean(pair[0]):.2f}" for pair in errors)
    centre = "".join(f"; {other} {points}" for points, other, *_ in other_parts)
    return f"{words(arm)} {first_points} against {words(reference)}'s {level} % ({protocol}), {n_and_p(test)}{centre}"


def beside(record: dict, reference: str, arm: str) -> str | None:
    """What tells learning from generalising: an arm's error on the training images minus its reference's, and when the
    loss of each moved; None if they weren't tested on training images."""
    return "; ".join(filter(None, (on_training_images(record, reference, arm), moved(record, reference, arm)))) or None


def on_training_images(record: dict, reference: str, arm: str) -> str | None:
    """An arm's error on the training images minus its reference's; None if they weren't tested on them."""
    errors = [[training_error(run) for run in of_arm] for of_arm in pairs(record, reference, arm)]
    if not errors[0] or None in errors[0] + errors[1]:
        return None
    return (
        f"on the training images, centre view, network in test mode: {words(arm)} {signed(paired(*errors))} "
        f"points against {words(reference)}'s {mean(errors[0]):.2f} %"
    )


def moved(record: dict, reference: str, arm: str) -> str | None:
    """When the loss of each arm moved; None if that wasn't looked at."""
    runs = pairs(record, reference, arm)
    if not runs[0] or not all("moved" in run for of_arm in runs for run in of_arm):
        return None
    of_reference, of_arm = map(_steps, runs)
    return f"the loss of {words(arm)} moves {of_arm}, {words(reference)}'s {of_reference}"


def _steps(runs):
    """At which steps their loss moved, and with how many seeds it didn't."""
    steps = [run["moved"] for run in runs if run["moved"] is not None]
    if not steps:
        return "in no run"
    never = len(runs) - len(steps)
    return f"at step {spread(steps, 0)}" + (f" and never with {count(never, 'seed')}" if never else "")
