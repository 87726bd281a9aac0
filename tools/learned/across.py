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
        sorted(some.values(), key=lambda one: (one[1]["seed"], one[1]["run"]))
        for some in groups.values()
        if len(some) > 1
    ]


def path_of(folder: Path, some: Sequence[tuple[str, dict]]) -> Path:
    """Where the record of a group of `arms` is: the name has the recipe, the arm, and which data set it is."""
    record = some[0][1]
    data = hashlib.sha256(json.dumps(record["data"], sort_keys=True).encode()).hexdigest()[:8]
    return folder / f"across-{'-'.join((record['recipe'] + ' ' + record['arm']).split())}-{data}.json"


def has(path: Path, some: Sequence[tuple[str, dict]], pictures: int) -> bool:
    """Whether a record has these networks, perhaps with others, on so many pictures."""
    if not path.exists():
        return False
    record = json.loads(path.read_text(encoding="utf-8"))
    weights = {one["weights"] for one in record["runs"]}
    same = record["format"] == FORMAT and record["pictures"] == pictures
    return same and record["data"] == some[0][1]["data"] and {one["weights"] for _, one in some} <= weights


def measure_across(some: Sequence[tuple[str, dict]], options: argparse.Namespace) -> dict:
    """The record of a group of `arms`: CKA of each two of all towers at each layer, as [tower, tower, CKA]. Towers are
    numbered in the order of the runs, a before b: 2i and 2i + 1 are those of run i."""
    seen, first = [], some[0][1]
    with progress("towers of several seeds", len(some)) as advance:
        for directory, _ in some:
            network, found, data = opened(directory, options)
            seen.append(represented(network, found.statistics, data.splits["val"], options.pictures))
            advance(1)
    if len({one.pictures for one in seen}) > 1:
        raise UserError(f"{some[0][0]} and the others of its arm can't be shown the same number of pictures")
    return {
        "format": FORMAT,
        "arm": first["arm"],
        "recipe": first["recipe"],
        "runs": [{name: one[name] for name in ("run", "seed", "step", "weights")} for _, one in some],
        "data": first["data"],
        "pictures": options.pictures,
        **made([directory for directory, _ in some], options),
        "n": seen[0].pictures,
        "layers": [
            {"layer": layer, "cka": [[a, b, value] for (a, b), value in values.items()]}
            for layer, values in between_towers(seen).items()
        ],
    }
