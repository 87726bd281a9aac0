"""How good a ranking is: precision among the first k, and mean average precision, ties counted fairly.

Hamming distances of short codes tie all the time. Of pictures at one distance any order is as good as any other, so a measure is
its mean over all of them, in closed form (McSherry and Najork, "Computing information retrieval performance measures efficiently in
the presence of tied scores", ECIR 2008), and does not depend on the order in which the pictures lie on the disk.
"""
from dataclasses import dataclass

import numpy as np

AT = (1, 6, 10, 50)


@dataclass(frozen=True)
class Measures:
    """Means over the queries; a picture is relevant where its class is the query's."""

    precision: dict  # {k: share of relevant pictures among the k nearest}
    mean_average_precision: float
    queries: int


def measures(distances, relevant, at=AT):
    """Precision and average precision of each of Q queries: ({k: (Q,) float64}, (Q,) float64).

    distances: (Q, N); relevant: (Q, N) bool. Of fewer than k pictures all count as the k nearest. Without a relevant picture the
    average precision is 0.
    """
    precision, average = {k: [] for k in at}, []
    for of_query, wanted in zip(distances, relevant, strict=True):
        expected = _expected(of_query, wanted)
        found = np.cumsum(expected.chance)
        for k in at:
            least = min(k, len(found))
            precision[k].append(found[least - 1] / least)
        place = np.arange(1, len(found) + 1)
        average.append((expected.chance * expected.found / place).sum() / max(1, wanted.sum()))
    return {k: np.array(values) for k, values in precision.items()}, np.array(average)


@dataclass(frozen=True)
class _Expected:
    """Of each place of a ranking, over all orders of pictures that tie; (N,) float64 each."""

    chance: np.ndarray  # that the picture there is relevant
    found: np.ndarray  # relevant pictures up to and with this place, given that this one is


def _expected(distances, relevant):
    order = np.argsort(distances, kind="stable")
    ranked, wanted = distances[order], relevant[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    sizes = np.diff(np.r_[starts, len(ranked)])
    hits = np.add.reduceat(wanted.astype(np.float64), starts)
    before = np.cumsum(hits) - hits
    group = np.repeat(np.arange(len(starts)), sizes)
    within = np.arange(len(ranked)) - starts[group]  # pictures of its own distance that come before it
    others = within * (hits - 1)[group] / np.maximum(sizes - 1, 1)[group]
    return _Expected((hits / sizes)[group], before[group] + others + 1)


def gathered(parts, at=AT):
    """The `Measures` over all queries, from what `measures` gave for some of them at a time."""
    precision, average = zip(*parts)
    averages = np.concatenate(average)
    return Measures({k: float(np.concatenate([part[k] for part in precision]).mean()) for k in at}, float(averages.mean()),
                    len(averages))
