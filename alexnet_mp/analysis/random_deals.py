"""What permutation tests compare: measures of how far some values are from the others, of all deals at once.

A deal is which of N values are chosen, as a row of their indices, (draws, n). Row 0 is the deal that was seen;
`as_far_p` is the share of deals that are as far apart. `pairings` has no chance in it: all ways to pair towers."""

from collections.abc import Iterator, Mapping

import numpy as np

MOST_NETWORKS = 7  # of which all ways to pair the towers are gone through: 135,135


def random_orders(count: int, draws: int, seed: int) -> np.ndarray:
    """(1 + draws, count): 0 to count - 1 as they are, then in `draws` random orders."""
    identity = np.arange(count)[None]
    return np.concatenate([identity, np.random.default_rng(seed).permuted(np.tile(identity, (draws, 1)), axis=1)])


def as_far_p(distances: np.ndarray) -> float:
    """The share of values at least as large as the first, which was seen and counts among them: (1 + hits) / (1 +
    draws)."""
    return float((distances >= distances[0] - 1e-12 * abs(distances[0])).mean())


def as_far_p_each(observations: np.ndarray, deals: np.ndarray) -> np.ndarray:
    """`as_far_p` of each of `observations`, (n,), among the values of the same deals, (draws,), without the other
    observations; all are 0 at least. Returns (n,) float64."""
    hits = len(deals) - np.searchsorted(np.sort(deals), observations * (1 - 1e-12))
    return (1 + hits) / (1 + len(deals))


def energy_distances(points: np.ndarray, deals: np.ndarray) -> np.ndarray:
    """Energy distances between the chosen points and the others: 2 E|X - Y| - E|X - X'| - E|Y - Y'|, 0 where they are
    spread alike.

    points: (N, features); deals: (draws, n) indices. Returns (draws,) float64.
    """
    distances = np.sqrt(((points[:, None] - points[None]) ** 2).sum(2))
    ours = np.zeros((len(deals), len(points)))
    np.put_along_axis(ours, deals, 1.0, axis=1)
    n, m = deals.shape[1], len(points) - deals.shape[1]
    to_ours, to_all = ours @ distances, distances.sum(1)
    within = (to_ours * ours).sum(1)
    between = (to_ours * (1 - ours)).sum(1)
    within_others = to_all.sum() - within - 2 * between
    return 2 * between / (n * m) - within / n**2 - within_others / m**2


def cliffs_delta(values: np.ndarray, deals: np.ndarray) -> np.ndarray:
    """P(x > y) - P(x < y) for x of the chosen values and y of the others: -1 to 1, 0 where neither tends to be larger.

    (Cliff 1993, Psychol. Bull. 114: 494; the rank-biserial correlation of the Mann-Whitney test.) values: (N,); deals:
    (draws, n) indices. Returns (draws,).
    """
    midranks = ranks(values)
    n, m = deals.shape[1], len(values) - deals.shape[1]
    wins = midranks[deals].sum(1) - n * (n + 1) / 2  # pairs in which the chosen one is larger, ties as halves
    return 2 * wins / (n * m) - 1


def kuipers_v(values: np.ndarray, deals: np.ndarray) -> np.ndarray:
    """The most that the chosen values' share on an arc of the circle exceeds the others' share on it: 0 to 1.

    (Kuiper 1960, Proc. K. Ned. Akad. Wet. A 63: 38.) values: (N,), 0 to a period; deals: (draws, n) indices. Returns
    (draws,)."""
    differences = _ecdf_differences(values, deals)
    return differences.max(1) - differences.min(1)


def watsons_u2(values: np.ndarray, deals: np.ndarray) -> np.ndarray:
    """Watson's two-sample U^2 of the chosen values and the others: 0 where they are spread alike (1962, Biometrika 49:
    57).

    Like V it doesn't depend on where the circle is cut, and it tells more differences apart. Arguments as there.
    """
    differences, n, count = _ecdf_differences(values, deals), deals.shape[1], len(values)
    return n * (count - n) / count * differences.var(1)


def _ecdf_differences(values, deals):
    """The share of the chosen values up to each value less that of the others: (draws, N), in the values' order."""
    order = np.argsort(values)
    places = np.searchsorted(values[order], values, side="right") - 1  # of each value, the last of its equals
    n, count = deals.shape[1], len(values)
    steps = np.zeros((len(deals), count))
    np.add.at(steps, (np.arange(len(deals))[:, None], places[deals]), 1 / n + 1 / (count - n))
    np.add.at(steps, (slice(None), places), -1 / (count - n))
    return steps.cumsum(1)[:, places[order]]


def ranks(values: np.ndarray) -> np.ndarray:
    """(N,): ranks of (N,) values from 1; ties share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def pairings(distances: Mapping[tuple[int, int], float], towers: tuple[int, ...]) -> Iterator[float]:
    """The sum over its pairs of each way to put the towers, an even number of them, into pairs. distances: {(tower,
    larger tower): value}."""
    if not towers:
        yield 0.0
        return
    first, *partners = towers
    for partner in partners:
        for total in pairings(distances, tuple(tower for tower in partners if tower != partner)):
            yield distances[first, partner] + total
