"""The statistics behind `python -m alexnet_mp.claims` and `compare`: paired differences, over seeds and over images,
their p-values, corrections for several, and intervals of shares.

All in float64 and exact where it can be.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST_PAIRS = 20  # 2^20 sign patterns are added up at once


@dataclass(frozen=True)
class Paired:
    """Differences between two arms that were trained with the same seeds, b - a."""

    n: int
    mean: float
    sd: float | None  # of one difference, None for n = 1
    p: float | None  # exact sign-flip test, two-sided; None for n = 1

    @property
    def least_p(self) -> float:
        """What the sign-flip test can say at best: 0.25 for n = 3."""
        return 2 / 2**self.n


def paired(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> Paired | None:
    """The `Paired` of two equally long sequences, one value a seed; None where they are empty."""
    a, b = (np.asarray(values, np.float64) for values in (a, b))
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"{a.shape} and {b.shape} are no pairs")
    if not len(a):
        return None
    differences = b - a
    with np.errstate(invalid="ignore"):  # an infinite difference has a NaN for its spread
        sd = float(differences.std(ddof=1)) if len(a) > 1 else None
    return Paired(len(a), float(differences.mean()), sd, sign_flip(differences))


def sign_flip(differences: Sequence[float] | np.ndarray) -> float | None:
    """p of the exact sign-flip permutation test: the share of all 2^n patterns of signs whose sum is at least as far
    from 0.

    Under "the arms don't differ" each paired difference is as likely to have the other sign. Two-sided; n = 1 says
    nothing: None, as does a difference that is no finite number, since no sum is "as far" as NaN."""
    differences = np.asarray(differences, np.float64)
    if len(differences) > MOST_PAIRS:
        raise ValueError(f"{len(differences)} pairs; all sign patterns of {MOST_PAIRS} at most are added up")
    if len(differences) < 2 or not np.isfinite(differences).all():
        return None
    sums = np.zeros(1)
    for difference in differences:
        sums = np.concatenate([sums + difference, sums - difference])
    # The same set of values, added in another order, may differ in the last bits and is a tie all the same. That is why
    # this is not scipy's permutation_test: its ties are relative to the sum that was seen, and so none where that is
    # all but 0.
    slack = 1e-12 * np.abs(differences).sum()
    return float((np.abs(sums) >= abs(differences.sum()) - slack).mean())


@dataclass(frozen=True)
class Comparison:
    """Two classifiers, a and b, on the same images."""

    n: int  # images
    only_a: int  # that a alone gets right
    only_b: int
    p: float  # of "neither is right more often": McNemar's test, exact and two-sided

    @property
    def difference(self) -> float:
        """Right answers of a minus those of b, in points (per cent of the images)."""
        return 100 * (self.only_a - self.only_b) / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of `difference`, in points: Wald's, with half an image added to each of the four
        counts (Agresti & Min 2005, Stat. Med. 24: 729), which is of use also for few images and for no difference."""
        n, a, b = self.n + 2, self.only_a + 0.5, self.only_b + 0.5
        middle, reach = (a - b) / n, 1.959964 * math.sqrt(a + b - (a - b) ** 2 / n) / n
        return 100 * max(-1.0, middle - reach), 100 * min(1.0, middle + reach)


def sure_of(change: Comparison) -> float:
    """By how many points the two differ at least, whichever of them is ahead: the end of the interval that is nearer to
    0; below 0 where the interval has 0 in it.

    By this, and not by the difference itself, what was seen of few images does not come first: one image that a alone
    has right is a difference of 100 points, and at least -51."""
    low, high = change.interval
    return max(low, -high)


def mcnemar(right_a: Sequence[bool] | np.ndarray, right_b: Sequence[bool] | np.ndarray) -> Comparison:
    """The `Comparison` of two classifiers by which images they get right: (N,) bool each, in the same order.

    Of the images that exactly one gets right, each is as likely a's as b's under "neither is right more often" (McNemar
    1947, Psychometrika 12: 153); p is the binomial distribution's, without approximation. Raises ValueError for arrays
    that are no pairs."""
    right_a, right_b = (np.asarray(right, bool) for right in (right_a, right_b))
    if right_a.shape != right_b.shape or right_a.ndim != 1:
        raise ValueError(f"{right_a.shape} and {right_b.shape} are no pairs")
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    from scipy import stats  # imported late: it takes half a second

    p = min(1.0, 2 * float(stats.binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)))
    return Comparison(len(right_a), only_a, only_b, p)


def sign_flip_of_counts(differences: Sequence[int] | np.ndarray) -> float:
    """p of the exact sign-flip test, as `sign_flip`, of any number of small whole numbers, such as differences of right
    answers; 1.0 where all are 0.

    Of m numbers of size s, k have a plus sign with binomial probability; the sums of all sizes are convolved. Of -1, 0
    and 1 it is McNemar's test."""
    differences = np.asarray(differences, np.int64)
    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    from scipy import stats  # imported late: it takes half a second

    chances = np.ones(1)  # of the sums -reach, ..., reach
    for size, count in zip(sizes, counts):
        of_size = np.zeros(2 * size * count + 1)
        of_size[:: 2 * size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.convolve(chances, of_size)
    reach = len(chances) // 2
    far = np.abs(np.arange(-reach, reach + 1)) >= abs(differences.sum())
    return min(1.0, float(chances[far].sum()))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values corrected by Holm's step-down rule, in their order; a None stays one and counts for nothing."""
    ranking = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected_p, floor = [None] * len(p_values), 0.0
    for rank, (p, index) in enumerate(ranking):
        floor = corrected_p[index] = max(floor, min(1.0, p * (len(ranking) - rank)))
    return corrected_p


def wilson(count: int, n: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share `count` of `n` (Wilson 1927, JASA 22: 209), which is of use at 0 and at
    n, too.

    Without any n nothing is known: (0, 1).
    """
    if n == 0:
        return 0.0, 1.0
    from scipy import stats  # imported late: it takes half a second

    interval = stats.binomtest(count, n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def shown_p(p: float) -> str:
    """A p-value in a table."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def told_p(p: float) -> str:
    """A p-value in a sentence: "p = 0.02"."""
    return f"p {'' if p < 1e-4 else '= '}{shown_p(p)}"
