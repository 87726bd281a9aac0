"""The statistics behind `python -m alexnet_mp.claims`: paired differences, their p-values, and what a training curve says.

All in float64 and exact where it can be; nothing here needs scipy, against which the tests compare it.
"""
import math
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
    welch_p: float | None  # the unpaired t-test beside it

    @property
    def least_p(self):
        """What the sign-flip test can say at best: 0.25 for n = 3."""
        return 2 / 2**self.n


def paired(a, b):
    """The `Paired` of two equally long sequences, one value a seed; None where they are empty."""
    a, b = (np.asarray(values, np.float64) for values in (a, b))
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"{a.shape} and {b.shape} are no pairs")
    if not len(a):
        return None
    differences = b - a
    with np.errstate(invalid="ignore"):  # an infinite difference has a NaN for its spread
        sd = float(differences.std(ddof=1)) if len(a) > 1 else None
    return Paired(len(a), float(differences.mean()), sd, sign_flip(differences), welch(a, b))


def sign_flip(differences):
    """p of the exact sign-flip permutation test: the share of all 2^n patterns of signs whose sum is at least as far from 0.

    Under "the arms don't differ" each paired difference is as likely to have the other sign. Two-sided; n = 1 says nothing: None, as
    does a difference that is no finite number, since no sum is "as far" as NaN.
    """
    differences = np.asarray(differences, np.float64)
    if len(differences) > MOST_PAIRS:
        raise ValueError(f"{len(differences)} pairs; all sign patterns of {MOST_PAIRS} at most are added up")
    if len(differences) < 2 or not np.isfinite(differences).all():
        return None
    sums = np.zeros(1)
    for difference in differences:
        sums = np.concatenate([sums + difference, sums - difference])
    # The same set of values, added in another order, may differ in the last bits and is a tie all the same.
    slack = 1e-12 * np.abs(differences).sum()
    return float((np.abs(sums) >= abs(differences.sum()) - slack).mean())


def welch(a, b):
    """p of Welch's two-sided t-test for two samples of unequal variance.

    None where it says nothing: a sample has one value, neither varies, the variance is too small or too large for a float64 (the
    values' spread is about 1e-154 or 1e154), or a value is no finite number.
    """
    a, b = (np.asarray(values, np.float64) for values in (a, b))
    if min(len(a), len(b)) < 2:
        return None
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        of_a, of_b = _variance_of_mean(a), _variance_of_mean(b)
        if not np.finfo(np.float64).tiny <= of_a + of_b < math.inf:
            return None
        t = (a.mean() - b.mean()) / math.sqrt(of_a + of_b)
    share = of_a / (of_a + of_b)  # instead of the variances' squares, which leave the range of a float64 sooner
    freedom = 1 / (share**2 / (len(a) - 1) + (1 - share) ** 2 / (len(b) - 1))
    return student_p(float(t), float(freedom))


def _variance_of_mean(values):
    """The variance of a sample's mean; 0 for equal values, whose own mean may differ from them in the last bit."""
    return 0.0 if (values == values[0]).all() else values.var(ddof=1) / len(values)


def student_p(t, freedom):
    """P(|T| >= |t|) of Student's distribution: the regularised incomplete beta function at freedom / (freedom + t^2)."""
    return incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5, t * t / (freedom + t * t))


def incomplete_beta(x, a, b, rest=None):
    """Regularised incomplete beta function I_x(a, b), by its continued fraction (modified Lentz).

    rest: 1 - x, where it is known better than the subtraction gives it.
    """
    rest = 1 - x if rest is None else rest
    if x <= 0 or rest <= 0:
        return float(rest <= 0)
    if x > (a + 1) / (a + b + 2):  # there the fraction converges slowly
        return 1 - incomplete_beta(rest, b, a, x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest)) / a
    tiny = 1e-300
    value, c, d = 1.0, 1.0, 0.0
    for step in range(1000):
        m = step // 2
        if step == 0:
            numerator = 1.0
        elif step % 2 == 0:
            numerator = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            numerator = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1 / ((1 + numerator * d) or tiny)
        c = (1 + numerator / c) or tiny
        value *= c * d
        if step and abs(c * d - 1) < 1e-15:
            return front * (value - 1)
    raise ArithmeticError(f"the incomplete beta function at {x}, {a}, {b} did not converge")
