"""Whether the two towers' first layers learned different things (paper, section 6.1), in one network and over several
runs.

One network: each measure of `kernel_statistics` is compared between the towers, by a permutation test and an effect
size. Several: how many runs meet the criterion below, with a confidence interval; against networks without links, and
against halves of one tower drawn at random, of which as many meet it as its level says.

The criterion, stated before any run was counted: the towers' shares of chroma are as far apart as those of at most 1 %
of random halves of the same kernels (p <= `DIVISION_LEVEL`). Which tower has the colours doesn't matter: the towers
have no order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..runs import checkpoints
from ..runs.first_layers import of_checkpoint
from ..system.errors import UserError
from .first_layer import KernelStatistics, chroma_and_energy, hue_axes, kernel_statistics, learned
from .hypothesis_tests import holm, wilson
from .random_deals import (
    MOST_NETWORKS,
    as_far_p,
    as_far_p_each,
    cliffs_delta,
    energy_distances,
    kuipers_v,
    pairings,
    random_orders,
    ranks,
    watsons_u2,
)

DIVISION_LEVEL = 0.01
# of the measures that `division` compares; beside them orientation and hue
RANKED = ("colourfulness", "selectivity", "frequency")
FEWEST = 5  # kernels of a tower that are no longer noise; with fewer nothing is said
# circular: period
MEASURES = {"colourfulness": None, "selectivity": None, "frequency": None, "orientation": 180, "phase": 360}


@dataclass(frozen=True)
class Difference:
    """One measure compared between the towers. None for what can't be said: a tower has no kernel with that measure."""

    measure: str
    n: tuple[int, int]  # kernels of tower a and of tower b that have it
    # "Cliff's delta", above 0 where tower a has the larger values, or "Kuiper's V" of the circular measures
    effect_size: str
    effect: float | None
    by_chance: float | None  # the median of its size over random deals; V is well above 0 in small samples
    p: float | None  # of "the kernels were dealt to the towers at random"
    holm_p: float | None  # corrected for the number of measures


@dataclass(frozen=True)
class Halves:
    """The first-layer kernels of a network in two halves, its towers or random ones."""

    run: str
    chroma: tuple[float, float]  # share of chroma in the energy of each half
    p: float  # the share of random halves that are at least as far apart

    @property
    def specialised(self) -> bool:
        """Whether they meet the criterion at the head of this file."""
        return self.p <= DIVISION_LEVEL


@dataclass(frozen=True)
class Appearance:
    """How often the criterion is met."""

    n: int
    count: int
    interval: tuple[float, float]  # of the share count / n, 95 %, Wilson's
    colour_in_b: int  # of `count`: how often the second half is the more colourful one
    halves: tuple[Halves, ...]  # n of them


def first_layer(run: str | Path) -> tuple[np.ndarray, int]:
    """(kernels (maps of all towers, 3, k, k) float32, towers) of a run's newest checkpoint. Raises UserError without
    one."""
    _, (state, kernels) = checkpoints.from_newest(run, of_checkpoint)
    if kernels.ndim != 4 or kernels.shape[1] != 3:
        raise UserError(f"{run}: the first layer's weights, {tuple(kernels.shape)}, are no kernels of colour images")
    return kernels, state.recipe.towers


def tower_differences(
    statistics: KernelStatistics, draws: int = 10_000, seed: int = 0, in_a: np.ndarray | None = None
) -> dict[str, Difference]:
    """{measure: `Difference`} of the `KernelStatistics` of two towers, tower a's first half. Raises ValueError for an
    odd number.

    Orientation and phase are compared among the kernels that are `tuned`. p: the share of `draws` random deals with as
    large a delta, of circular measures as large a U^2; then Holm's for the five measures together (1979, Scand. J.
    Statist. 6: 65). in_a: (kernels,) bool, which of them are tower a's, where they are not two equal halves."""
    if in_a is None:
        if not len(statistics) or len(statistics) % 2:
            raise ValueError(f"{len(statistics)} kernels are not those of two towers")
        in_a = np.arange(len(statistics)) < len(statistics) // 2
    rows = []
    for measure, period in MEASURES.items():
        values = getattr(statistics, measure)
        has = statistics.tuned if period else np.full(len(values), True)
        a, b = values[has & in_a], values[has & ~in_a]
        name = "Kuiper's V" if period else "Cliff's delta"
        rows.append((measure, (len(a), len(b)), name, *_difference(a, b, period, draws, seed)))
    corrected_p = holm([p for *_, p in rows])
    return {row[0]: Difference(*row, holm_p) for row, holm_p in zip(rows, corrected_p, strict=True)}


@dataclass(frozen=True)
class Division:
    """Whether the kernels of two towers differ at all: `division`."""

    learned: tuple[int, int]  # kernels of tower a and of tower b that are no longer noise
    distance: float | None  # energy distance of their kernels; None where a tower has fewer than `FEWEST` kernels
    p: float | None  # of "the kernels were dealt to the towers at random"
    differences: dict  # {measure: `Difference`}, each measure by itself

    @property
    def divided(self) -> bool:
        """Whether p meets the level of the criterion at the head of this file."""
        return self.p is not None and self.p <= DIVISION_LEVEL


def division(kernels: np.ndarray, draws: int = 10_000, seed: int = 0, by_measure: bool = True) -> Division:
    """The `Division` of two towers' first-layer kernels (maps of both, 3, k, k), tower a's first half.

    One test over all kernels that are `learned`: the energy distance (Szekely & Rizzo 2013, J. Stat. Plan. Inference
    143: 1249) of the towers' kernels, each a point of `_points`; p is the share of `draws` random deals with as large a
    distance. by_measure: whether each measure is compared by itself, too, which takes most of the time. Raises
    ValueError where the kernels are not two equal halves, or not finite."""
    if not len(kernels) or len(kernels) % 2:
        raise ValueError(f"{len(kernels)} kernels are not those of two towers")
    statistics, kept = kernel_statistics(kernels), learned(kernels)
    in_a = (np.arange(len(kernels)) < len(kernels) // 2)[kept]
    sizes, statistics, kernels = (int(in_a.sum()), int((~in_a).sum())), statistics[kept], np.asarray(kernels)[kept]
    if min(sizes) < FEWEST:
        return Division(sizes, None, None, {})
    orders = random_orders(len(in_a), draws, seed)[:, : sizes[0]]  # tower a's come first
    distances = energy_distances(_points(kernels, statistics), orders)
    differences = tower_differences(statistics, draws, seed, in_a) if by_measure else {}
    return Division(sizes, float(distances[0]), as_far_p(distances), differences)


def division_by_chance(
    kernels: np.ndarray, splits: int = 100, draws: int = 10_000, seed: int = 0
) -> tuple[int, int] | None:
    """(how many of `splits` random halves meet the criterion of `division`, splits): kernels of one tower, (maps, 3, k,
    k).

    None where too few kernels are `learned`. About as many do as the level says: there is nothing to divide them.
    """
    kept = learned(kernels)
    half = int(kept.sum()) // 2
    if half < FEWEST:
        return None
    orders = random_orders(int(kept.sum()), splits + draws, seed)[1:, :half]
    kernels = np.asarray(kernels)[kept]
    distances = energy_distances(_points(kernels, kernel_statistics(kernels)), orders)
    return int((as_far_p_each(distances[:splits], distances[splits:]) <= DIVISION_LEVEL).sum()), splits


def matching(runs: Sequence[np.ndarray]) -> tuple[float, float] | tuple[None, None]:
    """Whether the two towers of a network differ more than towers of different networks: (mean distance, p), exact.

    runs: first-layer kernels (maps of both towers, 3, k, k) of n networks. The mean energy distance between the towers
    of a network is compared with that of every way to put all 2n towers into pairs; p is the share of those with as
    large a mean. Kernels are points as in `division`, ranked over all towers. (None, None) for fewer than two networks,
    for more than `MOST_NETWORKS`, and where a tower has fewer than `FEWEST` kernels that are `learned`."""
    towers = [half[learned(half)] for kernels in runs for half in np.split(np.asarray(kernels, np.float64), 2)]
    if not 2 <= len(runs) <= MOST_NETWORKS or min(map(len, towers)) < FEWEST:
        return None, None
    kernels = np.concatenate(towers)
    points = np.split(_points(kernels, kernel_statistics(kernels)), np.cumsum([len(tower) for tower in towers])[:-1])
    distances = {
        (a, b): float(energy_distances(np.concatenate([points[a], points[b]]), np.arange(len(points[a]))[None])[0])
        for a in range(len(points))
        for b in range(a + 1, len(points))
    }
    sums = np.array(list(pairings(distances, tuple(range(len(points))))))
    own = sum(distances[2 * run, 2 * run + 1] for run in range(len(runs)))
    return own / len(runs), float((sums >= own * (1 - 1e-12)).mean())


def _points(kernels, statistics):
    """(kernels, 7): ranks of three measures over their number, so that no unit or outlier counts more; orientation;
    hue.

    Orientation is a vector at twice its angle, as long as the kernel is selective, hue the one of `hue_axes`: so both
    are at most 1 long, and what has no orientation or no colour lies at 0."""
    quantiles = [ranks(getattr(statistics, measure)) / len(statistics) for measure in RANKED]
    double_angle = 2 * np.deg2rad(statistics.orientation)
    orientation = [statistics.selectivity * np.cos(double_angle), statistics.selectivity * np.sin(double_angle)]
    return np.stack([*quantiles, *orientation, *hue_axes(np.asarray(kernels, np.float64)).T], 1)


def _difference(a, b, period, draws, seed):
    """(effect, its median size by chance, p) of two samples; period: None where they lie on a line."""
    if not len(a) or not len(b):
        return None, None, None
    values, orders = np.concatenate([a, b]), random_orders(len(a) + len(b), draws, seed)[:, : len(a)]
    if period is None:
        effects = cliffs_delta(values, orders)
        test_statistics = np.abs(effects)
    else:
        effects, test_statistics = kuipers_v(values % period, orders), watsons_u2(values % period, orders)
    return float(effects[0]), float(np.median(np.abs(effects[1:]))), as_far_p(test_statistics)


def appearance(runs: Mapping[str, np.ndarray], draws: int = 10_000, seed: int = 0) -> Appearance:
    """The `Appearance` in networks of two towers, with links or without. runs: {name: kernels (maps of both towers, 3,
    k, k)}."""
    return _count(
        Halves(name, tuple(chroma_shares(kernels, 2)), random_split_p(kernels, draws, seed))
        for name, kernels in runs.items()
    )


def appearance_by_chance(
    runs: Mapping[str, np.ndarray], splits: int = 100, draws: int = 10_000, seed: int = 0
) -> Appearance:
    """The `Appearance` where there is nothing to appear: networks of one tower, each split at random `splits` times.

    runs: {name: kernels (maps, 3, k, k)}, two maps at least. Each split is judged by the same criterion as towers are.
    The interval is about splits of these networks, not about other networks."""
    halves = []
    for name, kernels in runs.items():
        if len(kernels) < 2:
            raise ValueError(f"{name}: {len(kernels)} kernels can't be split in two")
        shares = chroma_of_halves(kernels, random_orders(len(kernels), splits + draws, seed)[1:])
        differences = np.abs(shares[0] - shares[1])
        rows = zip(*shares, as_far_p_each(differences[:splits], differences[splits:]))
        halves += [Halves(name, (float(a), float(b)), float(p)) for a, b, p in rows]
    return _count(halves)


def _count(halves):
    halves = tuple(halves)
    hits = [pair for pair in halves if pair.specialised]
    colour_in_b = sum(pair.chroma[1] > pair.chroma[0] for pair in hits)
    return Appearance(len(halves), len(hits), wilson(len(hits), len(halves)), colour_in_b, halves)


def chroma_shares(kernels: np.ndarray, towers: int) -> list[float]:
    """The share of chroma in the energy of each tower's first-layer kernels: a list of `towers` numbers, 0 (grey) to 1.

    kernels: (maps of all towers, 3, k, k), tower a's first. Chroma: what is left of a kernel without the mean of its
    three colours."""
    chroma, energy = chroma_and_energy(kernels)
    return [float(c.sum() / max(e.sum(), 1e-300)) for c, e in zip(np.split(chroma, towers), np.split(energy, towers))]


def random_split_p(kernels: np.ndarray, draws: int = 10_000, seed: int = 0) -> float:
    """How many of `draws` random halves of all kernels have shares of chroma as far apart as the two towers', or
    farther.

    The share of draws, the towers' own split counted among them: a p-value of "the kernels were dealt to the towers at
    random". Raises ValueError where the kernels are not two equal halves, or not finite: no share is "as far apart" as
    NaN."""
    if not len(kernels) or len(kernels) % 2 or not np.isfinite(kernels).all():
        raise ValueError(
            f"{len(kernels)} kernels are not those of two towers, or not all of their weights are finite numbers"
        )
    shares = chroma_of_halves(kernels, random_orders(len(kernels), draws, seed))
    return as_far_p(np.abs(shares[0] - shares[1]))


def chroma_of_halves(kernels: np.ndarray, orders: np.ndarray) -> list[np.ndarray]:
    """The shares of chroma of the two halves of each order of the kernels: two arrays (orders,)."""
    chroma, energy = chroma_and_energy(kernels)
    half = len(chroma) // 2
    return [
        chroma[part].sum(1) / np.maximum(energy[part].sum(1), 1e-300) for part in (orders[:, :half], orders[:, half:])
    ]
