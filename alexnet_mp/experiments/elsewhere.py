"""Sentences of the paper that need no run of their own: what benchmarks' records and other claims' records say of them.

They stand behind the claims in `claims list` and in docs/claims.md.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from .entries import conditions, differences, error

BENCHMARKS = "benchmarks"  # the folder beside that of the claims
IN_ORDER = (
    ("saturating", "tanh", "3.1"),
    ("one-gpu", "one_gpu", "3.2"),
    ("lrn", "no_lrn", "3.3"),
    ("pooling", "non_overlapping", "3.4"),
)


@dataclass(frozen=True)
class Elsewhere:
    """A sentence of the paper, and where the answer is."""

    id: str
    section: str
    sentence: str
    paper: str
    source: str  # what the 2012 notes have
    command: str
    sentences: Callable  # (folder of the claims' records, {claim: its records}) -> sentences


def feeding(folder: str | Path, records: Mapping[str, list[dict]]) -> list[str]:
    """What a step takes longer for images that a pipeline makes meanwhile, of the newest benchmark on each device."""
    return [
        f"{where}: a step of {group['batch']} images takes "
        + ", ".join(
            f"{info['pct_feeding']:+.1f} % longer with `{name}`"
            for name, info in group["rivals"].items()
            if name != "fixed" and "pct_feeding" in info
        )
        + " than with images that are there already"
        for where, group in _newest_groups(folder, "fed-step-")
    ]


def two_gpus(folder: str | Path, records: Mapping[str, list[dict]]) -> list[str]:
    """A step of both towers against one of the one-GPU network, of the newest benchmark at each place."""
    lines = []
    for where, group in _newest_groups(folder, "two-gpus-"):
        two, one = (group["rivals"][name]["median_s"] for name in ("two-towers", "one-gpu"))
        lines.append(
            f"{where}, {PLACES.get(group['place'], group['place'])}: a step of {group['batch']} images takes "
            f"{1e3 * two:,.1f} ms with two towers and {1e3 * one:,.1f} ms with the one-GPU network, "
            f"{two / one:.2f} times as long"
        )
    return lines


PLACES = {
    "cpu": "both towers on one CPU",
    "one-gpu": "both towers on one GPU",
    "two-gpus": "a tower a GPU",
    "two-processes": "a process and a core a tower, against one core",
    "two-gpu-processes": "a process and a GPU a tower",
}


def importance(folder: str | Path, records: Mapping[str, list[dict]]) -> list[str]:
    """The cost of taking each thing away, largest first, where two records or more have the same data and setting."""
    settings, lines = {}, []
    for claim, arm, section in IN_ORDER:
        for record in records.get(claim, []):
            cost = _cost(record, arm)
            if cost is not None:
                of_setting = settings.setdefault(conditions(record), {})
                of_setting.setdefault(section, (cost, claim, record["data"][0]["description"]))  # the newest is first
    for costs in settings.values():
        if len(costs) > 1:
            ranking = sorted(costs.items(), key=lambda item: -item[1][0])
            costs_in_words = ", ".join(f"{claim} ({section}) {cost:+.2f}" for section, (cost, claim, _) in ranking)
            same_order = [section for section, _ in ranking] == sorted(costs)
            missing = [claim for claim, _, section in IN_ORDER if section not in costs]
            remark = f", without {', '.join(missing)}" if missing else ""
            lines.append(
                f"{ranking[0][1][2]}: points of top-1 error that each costs when it is taken away: {costs_in_words}; "
                f"{'the' if same_order else 'not the'} paper's order{remark}; estimates, no test"
            )
    return lines


def _cost(record, arm):
    """Mean difference of an arm's top-1 error to the first arm's, paired by seed; None without a pair."""
    points = differences(record, record["arms"][0]["name"], arm, error)
    return mean(points) if points else None


def _newest_groups(folder, prefix):
    """[(device and date, group)] of the newest record of every benchmark group with this prefix on every device."""
    newest = {}
    for path in sorted((Path(folder).absolute().parent.parent / BENCHMARKS / "records").glob("*/*.json")):
        try:
            record = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(record, dict) and {"machine", "groups", "date"} <= record.keys():
            for group in record["groups"]:
                if group["group"].startswith(prefix):
                    key = record["machine"]["device"], group["group"]
                    newest[key] = max(newest.get(key, ("", None)), (record["date"], group), key=lambda pair: pair[0])
    return [(f"{device}, {date[:10]}", group) for (device, _), (date, group) in sorted(newest.items())]


ELSEWHERE = (
    Elsewhere(
        "feeding",
        "4.1",
        "Augmentation is in effect free: images are made on the CPU while the GPU computes.",
        '"in effect, computationally free"; no figure',
        "images of the next minibatch are staged meanwhile; no figure",
        "python benchmarks/record.py --name pipeline -k test_step_that_is_fed",
        feeding,
    ),
    Elsewhere(
        "two-gpus",
        "3.2",
        "The network on two GPUs takes slightly less time to train than the one-GPU network.",
        '"slightly less time"; no figure',
        "not recorded",
        "python benchmarks/record.py --name two-gpus -k test_step_of_towers",
        two_gpus,
    ),
    Elsewhere(
        "importance",
        "3",
        "Sections 3.1 to 3.4 are in the order of their importance: ReLU, two GPUs, normalisation, overlapping pooling.",
        "an estimate; 3.2 to 3.4: 1.7, 1.4, 0.4 points top-1",
        "1.70, 1.37 and 0.39 points",
        "for id in saturating one-gpu lrn pooling; do python -m alexnet_mp.claims run $id --data DIR; done",
        importance,
    ),
)
