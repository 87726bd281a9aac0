"""The questions of docs/what-each-gpu-learned.md about how alike towers see: those of a network, and of other seeds."""

import math
from collections.abc import Sequence

from alexnet_mp.analysis.random_deals import MOST_NETWORKS
from alexnet_mp.analysis.similarity import across_of

from .tables import ARMS, LEVEL, brightness_tower, by_arm, corrected, of_two_towers, over_seeds
from .words import Answer, by_name, listed, numbers, seeds, span, table, told_p


def alike(records: Sequence[dict]) -> Answer | None:
    """Do the towers see alike?"""
    two = of_two_towers(records)
    if not two:
        return None
    looks = {(one["run"], each["layer"]): each["p"] for one in two for each in one["similarity"]["dealt"]}
    p = corrected(looks)
    rows, answers = [], []
    for arm, some in by_arm(two).items():
        told = []
        for layer in (each["layer"] for each in some[0]["similarity"]["layers"]):
            own = over_seeds([by_name(one["similarity"]["layers"], "layer", layer)["cka"] for one in some])
            dealt = [(one, by_name(one["similarity"]["dealt"], "layer", layer)) for one in some]
            if dealt[0][1]:
                halves = over_seeds([each["halves"][1] for _, each in dealt])
                hits = sum(p[one["run"], layer] <= LEVEL for one, _ in dealt)
                told.append(f"{layer} in {hits}")
                rows.append([arm, layer, span(own, 2), span(halves, 2), f"{hits} of {len(some)}"])
            else:
                rows.append([arm, layer, span(own, 2), "-", "-"])
        answers.append(f"{arm}: less alike than random halves at {', '.join(told)} of {seeds(some)}")
    n = sorted({one["similarity"]["n"] for one in two})
    return (
        "Do the towers see alike?",
        answers,
        f"n: {numbers(n)} pictures a network. Linear CKA of the two towers, unbiased, mean and range over seeds; 1: "
        "one says what the other says. Halves: the maps of both towers dealt at random 1,000 times, medians; only at "
        f"layers whose towers read the same is that a test. Less alike: in how many seeds, Holm over {len(p)} looks.",
        table(["arm", "layer", "CKA of the towers", "random halves", "less alike"], rows),
    )


def of_other_seeds(records: Sequence[dict], across: Sequence[dict]) -> Answer | None:
    """Are the towers of a network more alike than towers of other seeds?"""
    if not across:
        return None
    values = {
        (record["arm"], each["layer"]): {(a, b): value for a, b, value in each["cka"]}
        for record in across
        for each in record["layers"]
    }
    looks = {look: across_of(of_pairs)[2] for look, of_pairs in values.items()}
    p = corrected(looks)
    brightness = {one["weights"]: brightness_tower(one) for one in of_two_towers(records)}
    rows, answers = [], []
    for record in sorted(across, key=lambda one: ARMS.index(one["arm"])):
        arm, count = record["arm"], len(record["runs"])
        # of every tower, whether it is the brightness tower of its network; None where that is not known
        sorts = [
            None if network is None else tower == network
            for one in record["runs"]
            for network in [brightness.get(one["weights"])]
            for tower in (0, 1)
        ]
        told = {"more": [], "less": []}
        for layer in (each["layer"] for each in record["layers"]):
            pairs = values[arm, layer]
            own = over_seeds([value for (a, b), value in pairs.items() if a // 2 == b // 2])
            others = {pair: value for pair, value in pairs.items() if pair[0] // 2 != pair[1] // 2}
            by_sort = [
                [value for (a, b), value in others.items() if None not in (sorts[a], sorts[b]) and alike(a, b)]
                for alike in (lambda a, b: sorts[a] == sorts[b], lambda a, b: sorts[a] != sorts[b])
            ]
            others = over_seeds(list(others.values()))
            if p[arm, layer] is not None and p[arm, layer] <= LEVEL:
                told["more" if own.mean > others.mean else "less"].append(layer)
            of_sorts = (span(over_seeds(some), 2) if some else "-" for some in by_sort)
            rows.append(
                [arm, layer, span(own, 2), span(others, 2), *of_sorts, *map(_p, (looks[arm, layer], p[arm, layer]))]
            )
        words = [f"{word} alike at {listed(layers)}" for word, layers in told.items() if layers]
        words = f"{arm}: {', '.join(words) or 'not told apart at any layer'}, of {count} networks"
        if count <= MOST_NETWORKS and len(p) / ways(count) > LEVEL:
            words += f"; so few can't tell, p is 1/{ways(count):,} at best, and corrected for {len(p)} looks"
        answers.append(words)
    n = sorted({record["n"] for record in across})
    return (
        "Are the towers of a network more alike than towers of other seeds?",
        answers,
        f"n: {numbers(n)} pictures, the same for all networks of an arm. Linear CKA, unbiased, mean and range: of the "
        "two towers of a network, and of each two towers of different networks; of these, where both are the "
        "brightness towers of their networks or neither is, and where one of them is, which is told without a test. p: "
        "the share of all ways to put the towers of all networks into pairs whose mean is as far from that of all ways "
        "as the networks' own is: if the network made no difference, any two of the towers could be those of a "
        f"network. It does where a link joins them, since they read the same there. Holm over {len(p)} looks.",
        table(["arm", "layer", "of a network", "of other seeds", "of one sort", "of both sorts", "p", "Holm"], rows),
    )


def ways(networks: int) -> int:
    """To put the towers of so many networks into pairs."""
    return math.prod(range(2 * networks - 1, 0, -2))


def _p(p):
    return "-" if p is None else told_p(p)
