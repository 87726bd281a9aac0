"""The comparisons of a claim that its verdict rests on: one number a seed, and the t-test of their mean."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .entries import differences, ended, error, words

ROUNDING = 1e-9  # differences of equal errors may differ by that much


@dataclass(frozen=True)
class Outcome:
    """One comparison of a claim, one number a seed; above 0 where the second is larger.

    unit: "points", or "times" of logarithms of ratios. Intervals and p are those of the t-test of the mean against 0,
    n - 1 degrees of freedom; None for n = 1, and if all values are equal.
    """

    what: str
    values: tuple[float, ...]
    unit: str = "points"
    bound: str = ""  # "at least " or "at most ": some run never came to what is timed, and counts with its length
    beside: bool = False  # told beside the one that a verdict rests on, and no part of it
    bounded: bool = False  # some run never came to what is timed, so that the size is not known
    arms: tuple[str, str] | None = None  # (reference, arm) of a difference of top-1 errors over all views
    one_average: bool = False  # of one average against its members, whose spread is not that of another average

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @cached_property
    def sd(self) -> float | None:
        """Of one value, None for n = 1 and where they are equal or not finite."""
        sd = float(np.std(self.values, ddof=1)) if self.n > 1 else 0.0
        return sd if ROUNDING < sd < math.inf else None

    @property
    def p(self) -> float | None:
        """Two-sided."""
        if self.sd is None:
            return None
        from scipy import stats  # imported late: it takes half a second

        return float(2 * stats.t.sf(abs(self.mean) / (self.sd / math.sqrt(self.n)), self.n - 1))

    @property
    def interval(self) -> tuple[float, float] | None:
        """Of the mean, 95 %."""
        return self._within(math.sqrt(1 / self.n))

    @property
    def prediction(self) -> tuple[float, float] | None:
        """Where the value of another seed should lie, 95 %; None of one average, and where the size is not known."""
        return self.prediction_elsewhere(0.0)

    def prediction_elsewhere(self, variance: float) -> tuple[float, float] | None:
        """The same of another seed on other pictures.

        variance: how much the difference between both means varies with the pictures, in squares of the values' unit.
        It adds to that of the seeds (claims/desk-study.md, 2026-12-01, 11:32).
        """
        return None if self.one_average or self.bounded else self._within(math.sqrt(1 + 1 / self.n), variance)

    def _within(self, factor, variance=0.0):
        if self.sd is None:
            return None
        from scipy import stats

        reach = float(stats.t.ppf(0.975, self.n - 1)) * math.hypot(self.sd * factor, math.sqrt(variance))
        return self.mean - reach, self.mean + reach


def difference(
    record: dict,
    reference: str,
    arm: str,
    value: Callable[[dict], float | None] = error,
    what: str = "",
    beside: bool = False,
) -> Outcome:
    """value(run of the arm) - value(run of the reference), paired by seed. what: the value's name. beside: see
    `Outcome`."""
    values, arms = tuple(differences(record, reference, arm, value)), (reference, arm) if value is error else None
    return Outcome(f"{what}{words(arm)} minus {words(reference)}", values, beside=beside, arms=arms)


def ratio_of_times(
    record: dict, reference: str, arm: str, time: str, length: Callable[[dict], float], what: str
) -> Outcome:
    """How many times as long an arm takes as its reference, as logarithms, paired by seed.

    time: the entry's field; a run that never came to it has None and counts with length(run). An entry without the
    field counts for nothing.
    """

    def log_time(run):
        return math.log(length(run) if run[time] is None else run[time]) if time in run else None

    values = tuple(differences(record, reference, arm, log_time))
    slow, fast = (any(run.get(time) is None for run in ended(record, name)) for name in (arm, reference))
    bound = "at least " if slow and not fast else "at most " if fast and not slow else ""
    both = ", never in some runs of both" if slow and fast else ""
    return Outcome(f"{what}{words(arm)} over {words(reference)}{both}", values, "times", bound, bounded=slow or fast)
