"""The questions of docs/what-each-gpu-learned.md about how alike towers see: those of a network, and of other seeds."""

import math
from collections.abc import Sequence

from alexnet_mp.analysis.hypothesis_tests import shown_p
from alexnet_mp.analysis.random_deals import MOST_NETWORKS
from alexnet_mp.analysis.similarity import across_of

from .tables import ARMS, LEVEL, brightness_tower, by_arm, corrected, of_two_towers, over_seeds
from .words import Answer, by_name, listed, numbers, seeds, span, table


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
        # a layer of which a tower says the same of all pictures is not in its network's record
        for layer in dict.fromkeys(each["layer"] for one in some for each in one["similarity"]["layers"]):
            own, dealt = (
                {one["run"]: found for one in some if (found := by_name(one["similarity"][part], "layer", layer))}
                for part in ("layers", "dealt")
            )
            cka = span(over_seeds([found["cka"] for found in own.values()]), 2)
            if dealt:
                halves = over_seeds([found["halves"][1] for found in dealt.values()])
                hits = sum(p[run, layer] <= LEVEL for run in dealt)
                without = "" if len(dealt) == len(some) else f" (of {len(dealt)} with a CKA)"
                told.append(f"{layer} in {hits}{without}")
                rows.append([arm, layer, cka, span(halves, 2), f"{hits} of {len(dealt)}"])
            else:
                rows.append([arm, layer, cka, "-", "-"])
        if told:
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
    across = sorted(across, key=lambda one: ARMS.index(one["arm"]))
    one_recipe = len({record["recipe"] for record in across}) == 1
    values = {
        (number, each["layer"]): {(a, b): value for a, b, value in each["cka"]}
        for number, record in enumerate(across)
        for each in record["layers"]
    }
    looks = {look: across_of(of_pairs)[2] for look, of_pairs in values.items()}
    p = corrected(looks)
    brightness = {one["weights"]: brightness_tower(one) for one in of_two_towers(records)}
    rows, answers = [], []
    for number, record in enumerate(across):
        arm = record["arm"] if one_recipe else f"{record['arm']}, {record['recipe']}"
        sorts, differing = _sorts(record, brightness), {"more": [], "less": []}
        for layer in (each["layer"] for each in record["layers"]):
            look = number, layer
            own, others, *of_sorts = (over_seeds(some) if some else None for some in _by_sort(values[look], sorts))
            if p[look] is not None and p[look] <= LEVEL:
                differing["more" if own.mean > others.mean else "less"].append(layer)
            spans = ["-" if found is None else span(found, 2) for found in (own, others, *of_sorts)]
            rows.append([arm, layer, *spans, _p(looks[look]), _p(p[look])])
        answers.append(_answer(arm, len(record["runs"]), differing, len(p)))
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


def _sorts(record, brightness):
    """Of every tower, whether it is the brightness tower of its network; None where that is not known. brightness:
    {weights: which tower it is}."""
    of_runs = [brightness.get(one["weights"]) for one in record["runs"]]
    return [None if found is None else tower == found for found in of_runs for tower in (0, 1)]


def _by_sort(values, sorts):
    """The CKA of the two towers of a network, and of two towers of different ones: of all, of two towers of one sort,
    and of both sorts. values: {(tower, larger tower): CKA}."""
    own, others, same, mixed = [], [], [], []
    for (a, b), value in values.items():
        if a // 2 == b // 2:
            own.append(value)
            continue
        others.append(value)
        if None not in (sorts[a], sorts[b]):
            (same if sorts[a] == sorts[b] else mixed).append(value)
    return own, others, same, mixed


def _answer(arm, count, differing, looks):
    """Of an arm of `count` networks. differing: {"more" or "less": layers}; looks: how many p is corrected for."""
    told = [f"{word} alike at {listed(layers)}" for word, layers in differing.items() if layers]
    answer = f"{arm}: {', '.join(told) or 'not told apart at any layer'}, of {count} networks"
    if count <= MOST_NETWORKS and looks / ways(count) > LEVEL:
        answer += f"; so few can't tell, p is 1/{ways(count):,} at best, and corrected for {looks} looks"
    return answer


def ways(networks: int) -> int:
    """To put the towers of so many networks into pairs."""
    return math.prod(range(2 * networks - 1, 0, -2))


def _p(p):
    return "-" if p is None else shown_p(p)
