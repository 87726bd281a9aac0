"""What `page.py` says of the records of several networks, as numbers: over seeds, corrected for the number of
looks, towers named by what they see."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from alexnet_mp.analysis.hypothesis_tests import Comparison, holm
from alexnet_mp.analysis.random_deals import as_far_p

LEVEL = 0.05
DRAWS = 100_000  # of one deal a network
ARMS = ("towers with links", "towers without links", "one tower")


@dataclass(frozen=True)
class OverSeeds:
    """One number of each of n networks."""

    n: int
    mean: float
    low: float
    high: float


def over_seeds(values: Sequence[float]) -> OverSeeds:
    """Of one value at least."""
    return OverSeeds(len(values), float(np.mean(values)), float(min(values)), float(max(values)))


def by_arm(records: Sequence[dict]) -> dict[str, list[dict]]:
    """{arm: its records by seed}, of the arms that have one."""
    samples = {
        arm: sorted((record for record in records if record["arm"] == arm), key=lambda record: record["seed"])
        for arm in ARMS
    }
    return {arm: sample for arm, sample in samples.items() if sample}


def of_two_towers(records: Sequence[dict]) -> list[dict]:
    return [record for sample in by_arm(records).values() for record in sample if record["colour"]]


def corrected(looks: Mapping[Hashable, float]) -> dict[Hashable, float]:
    """The p-values of all looks of a question, by Holm's rule together."""
    return dict(zip(looks, holm(list(looks.values()))))


def points(change: Mapping) -> float:
    """Right answers of a less those of b, in points; of a lesion, by how much the error rises."""
    return 100 * (change["only_a"] - change["only_b"]) / change["n"]


def brightness_tower(record: Mapping) -> int:
    """Which tower's answers stand the loss of colours better, and the loss of brightness worse: 0 for a, 1 for b.

    Towers have no order, so over seeds they are named by what they see. Of any two towers one is called so."""
    return int(record["colour"]["contrast"] < 0)


def joint_p(networks: Sequence[tuple[float, Sequence[float]]], seed: int = 0) -> float:
    """p of "in every network the towers are one of its deals": networks' (own value, those of random deals).

    The mean distance from 0 of the networks' own values is compared with that of one deal of each network, drawn
    `DRAWS` times; its own is among the deals of a network. So a few networks of few deals tell more together than each
    can. It can be no smaller than the product of 1 / (1 + deals)."""
    random, total = np.random.default_rng(seed), np.zeros(1 + DRAWS)
    for observation, deals in networks:
        values = np.abs(np.array([observation, *deals]))
        total[0] += values[0]
        total[1:] += values[random.integers(len(values), size=DRAWS)]
    return as_far_p(total)


def division_p(records: Sequence[dict]) -> float:
    """The `joint_p` of an arm's contrasts of brightness and colour."""
    return joint_p([(record["colour"]["contrast"], record["colour"]["halves"]) for record in records])


def leanings(records: Sequence[dict]) -> dict[str, list[float]]:
    """{class: of each record, how far it leans on the brightness tower, in points; below 0: on the other}."""
    by_class = {}
    for record in records:
        sign = 1 - 2 * brightness_tower(record)
        for name, n, only_a, only_b, _ in record["classes"]["classes"]:
            by_class.setdefault(name, []).append(sign * 100 * (only_a - only_b) / n)
    return by_class


def most_leaning(records: Sequence[dict], count: int) -> tuple[list[str], list[str]]:
    """The classes that surely lean most on the brightness tower, and on the other: those whose intervals' ends nearer
    to 0 (`sure_of`) are farthest from it, in the mean over the records; of them those that do lean there in the
    mean."""
    spans = {}
    for record in records:
        for name, n, only_a, only_b, p in record["classes"]["classes"]:
            low, high = Comparison(n, only_a, only_b, p).interval
            spans.setdefault(name, []).append((-high, low) if brightness_tower(record) else (low, -high))
    means = {name: float(np.mean(values)) for name, values in leanings(records).items()}
    return tuple(
        sorted(
            (name for name, mean in means.items() if sign * mean > 0),
            key=lambda name: (-np.mean([ends[side] for ends in spans[name]]), name),
        )[:count]
        for side, sign in enumerate((1, -1))
    )


def consistency(records: Sequence[dict], draws: int = 10_000, seed: int = 0) -> tuple[float, float, tuple[int, int]]:
    """Whether networks of other seeds lean on the same sort of tower for the same classes: (mean correlation of their
    `leanings` over pairs of networks, p of "the classes were dealt at random in each", (how many ways to name the
    towers correlate as much, of how many)). A class counts by its pictures: by what is left of its leaning without the
    network's, times the root of their number, which is as uncertain in all classes.

    p is small also where classes lean alike but for which tower is which: of two networks, to 1 or to -1. Of k networks
    the towers can be named in 2^(k-1) ways that differ, and the actual one is one of these."""
    pictures = np.array([[n for _, n, *_ in record["classes"]["classes"]] for record in records])
    values = np.array(list(leanings(records).values())).T  # (networks, classes)
    values = values - np.average(values, 1, pictures)[:, None]
    values = values * np.sqrt(pictures / pictures.mean())
    values = values / np.sqrt((values**2).sum(1, keepdims=True))
    random, pairs = np.random.default_rng(seed), list(combinations(range(len(values)), 2))
    deals = [random.permuted(np.tile(row, (draws, 1)), axis=1) for row in values]
    means = [float(np.mean([values[a] @ values[b] for a, b in pairs]))]
    means += list(np.mean([(deals[a] * deals[b]).sum(1) for a, b in pairs], 0))
    ways = [(1, *signs) for signs in product((1, -1), repeat=len(values) - 1)]  # the actual one is first
    namings = np.array([np.mean([signs[a] * signs[b] * (values[a] @ values[b]) for a, b in pairs]) for signs in ways])
    return means[0], as_far_p(np.array(means)), (round(as_far_p(namings) * len(ways)), len(ways))
