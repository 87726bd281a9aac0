"""How alike the towers of several seeds see: a record an arm, beside those of the networks."""

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from alexnet_mp.analysis.similarity import between_towers
from alexnet_mp.system.errors import UserError
from alexnet_mp.system.terminal import progress

from .measure import made, opened, represented
from .records import FORMAT


def arms(networks: Sequence[tuple[str, dict]]) -> list[list[tuple[str, dict]]]:
    """The (run directory, its record) of two towers, by recipe, arm and data set: groups of two networks at least, each
    network once, by seed."""
    groups = {}
    for directory, record in networks:
        if record["colour"]:
            key = record["recipe"], record["arm"], record["data"]["description"]
            groups.setdefault(key, {})[record["weights"]] = directory, record
    return [
        sorted(group.values(), key=lambda network: (network[1]["seed"], network[1]["run"]))
        for group in groups.values()
        if len(group) > 1
    ]


def path_of(folder: Path, group: Sequence[tuple[str, dict]]) -> Path:
    """Where the record of a group of `arms` is: the name has the recipe, the arm, and which data set it is."""
    record = group[0][1]
    data = hashlib.sha256(json.dumps(record["data"], sort_keys=True).encode()).hexdigest()[:8]
    return folder / f"across-{'-'.join((record['recipe'] + ' ' + record['arm']).split())}-{data}.json"


def has(path: Path, group: Sequence[tuple[str, dict]], pictures: int) -> bool:
    """Whether a record has these networks, perhaps with others, on so many pictures."""
    if not path.exists():
        return False
    record = json.loads(path.read_text(encoding="utf-8"))
    weights = {run["weights"] for run in record["runs"]}
    same = record["format"] == FORMAT and record["pictures"] == pictures
    return same and record["data"] == group[0][1]["data"] and {entry["weights"] for _, entry in group} <= weights


def measure_across(group: Sequence[tuple[str, dict]], options: argparse.Namespace) -> dict:
    """The record of a group of `arms`: CKA of each two of all towers at each layer, as [tower, tower, CKA]. Towers are
    numbered in the order of the runs, a before b: 2i and 2i + 1 are those of run i."""
    representations, first = [], group[0][1]
    with progress("towers of several seeds", len(group)) as advance:
        for directory, _ in group:
            network, training, data = opened(directory, options)
            representations.append(represented(network, training.statistics, data.splits["val"], options.pictures))
            advance(1)
    if len({representation.pictures for representation in representations}) > 1:
        raise UserError(f"{group[0][0]} and the others of its arm can't be shown the same number of pictures")
    return {
        "format": FORMAT,
        "arm": first["arm"],
        "recipe": first["recipe"],
        "runs": [{name: record[name] for name in ("run", "seed", "step", "weights")} for _, record in group],
        "data": first["data"],
        "pictures": options.pictures,
        **made([directory for directory, _ in group], options),
        "n": representations[0].pictures,
        "layers": [
            {"layer": layer, "cka": [[a, b, value] for (a, b), value in values.items()]}
            for layer, values in between_towers(representations).items()
        ],
    }
