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
    networks = of_two_towers(records)
    if not networks:
        return None
    looks = {(record["run"], look["layer"]): look["p"] for record in networks for look in record["similarity"]["dealt"]}
    p = corrected(looks)
    rows, answers = [], []
    for arm, sample in by_arm(networks).items():
        phrases = []
        # a layer of which a tower says the same of all pictures is not in its network's record
        for layer in dict.fromkeys(look["layer"] for record in sample for look in record["similarity"]["layers"]):
            towers, deals = (
                {
                    record["run"]: entry
                    for record in sample
                    if (entry := by_name(record["similarity"][part], "layer", layer))
                }
                for part in ("layers", "dealt")
            )
            cka = span(over_seeds([entry["cka"] for entry in towers.values()]), 2)
            if deals:
                halves = over_seeds([entry["halves"][1] for entry in deals.values()])
                hits = sum(p[run, layer] <= LEVEL for run in deals)
                remark = "" if len(deals) == len(sample) else f" (of {len(deals)} with a CKA)"
                phrases.append(f"{layer} in {hits}{remark}")
                rows.append([arm, layer, cka, span(halves, 2), f"{hits} of {len(deals)}"])
            else:
                rows.append([arm, layer, cka, "-", "-"])
        if phrases:
            answers.append(f"{arm}: less alike than random halves at {', '.join(phrases)} of {seeds(sample)}")
    n = sorted({record["similarity"]["n"] for record in networks})
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
    across = sorted(across, key=lambda record: ARMS.index(record["arm"]))
    one_recipe = len({record["recipe"] for record in across}) == 1
    values = {
        (number, entry["layer"]): {(a, b): value for a, b, value in entry["cka"]}
        for number, record in enumerate(across)
        for entry in record["layers"]
    }
    looks = {look: across_of(of_pairs)[2] for look, of_pairs in values.items()}
    p = corrected(looks)
    brightness = {record["weights"]: brightness_tower(record) for record in of_two_towers(records)}
    rows, answers = [], []
    for number, record in enumerate(across):
        arm = record["arm"] if one_recipe else f"{record['arm']}, {record['recipe']}"
        sorts, differences = _sorts(record, brightness), {"more": [], "less": []}
        for layer in (entry["layer"] for entry in record["layers"]):
            look = number, layer
            within, between, *of_sorts = (over_seeds(ckas) if ckas else None for ckas in _by_sort(values[look], sorts))
            if p[look] is not None and p[look] <= LEVEL:
                differences["more" if within.mean > between.mean else "less"].append(layer)
            spans = ["-" if summary is None else span(summary, 2) for summary in (within, between, *of_sorts)]
            rows.append([arm, layer, *spans, _p(looks[look]), _p(p[look])])
        answers.append(_answer(arm, len(record["runs"]), differences, len(p)))
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
    of_runs = [brightness.get(run["weights"]) for run in record["runs"]]
    return [None if index is None else tower == index for index in of_runs for tower in (0, 1)]


def _by_sort(values, sorts):
    """The CKA of the two towers of a network, and of two towers of different ones: of all, of two towers of one sort,
    and of both sorts. values: {(tower, larger tower): CKA}."""
    within, between, same_sort, mixed_sorts = [], [], [], []
    for (a, b), value in values.items():
        if a // 2 == b // 2:
            within.append(value)
            continue
        between.append(value)
        if None not in (sorts[a], sorts[b]):
            (same_sort if sorts[a] == sorts[b] else mixed_sorts).append(value)
    return within, between, same_sort, mixed_sorts


def _answer(arm, count, differences, looks):
    """Of an arm of `count` networks. differences: {"more" or "less": layers}; looks: how many p is corrected for."""
    phrases = [f"{word} alike at {listed(layers)}" for word, layers in differences.items() if layers]
    answer = f"{arm}: {', '.join(phrases) or 'not told apart at any layer'}, of {count} networks"
    if count <= MOST_NETWORKS and looks / ways(count) > LEVEL:
        answer += f"; so few can't tell, p is 1/{ways(count):,} at best, and corrected for {looks} looks"
    return answer


def ways(networks: int) -> int:
    """To put the towers of so many networks into pairs."""
    return math.prod(range(2 * networks - 1, 0, -2))


def _p(p):
    return "-" if p is None else shown_p(p)
