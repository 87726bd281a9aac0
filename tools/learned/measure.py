"""What is measured of one run, as a record of plain values: what the report's parts on towers show."""

import argparse
import hashlib
import os
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from alexnet_mp.analysis.altered_pictures import ALTERATIONS
from alexnet_mp.analysis.growth import growth
from alexnet_mp.analysis.hypothesis_tests import Comparison
from alexnet_mp.analysis.layer_outputs import links
from alexnet_mp.analysis.lesions import Lesion, Lesions, lesions
from alexnet_mp.analysis.sight import ColourDivision, Leanings, Seen, class_leanings, colour_division, sight
from alexnet_mp.analysis.similarity import Representation, alike, changes_at_crossings, dealt, most_pictures, represent
from alexnet_mp.analysis.specialisation import chroma_shares, division, division_by_chance, first_layer, random_split_p
from alexnet_mp.data.dataset import DataSet, Split, evenly, open_dataset
from alexnet_mp.data.image_files import pipeline_of
from alexnet_mp.data.pixel_statistics import Statistics
from alexnet_mp.data.synsets import in_words
from alexnet_mp.evaluation.trained import Trained, load_run, trained
from alexnet_mp.experiments.records import machine
from alexnet_mp.network.network import TwoTowerAlexNet
from alexnet_mp.recipes.recipe import Recipe
from alexnet_mp.system.errors import UserError
from alexnet_mp.system.terminal import progress

from .records import FORMAT, ROOT

BATCH = 100  # pictures that are represented at once


def measure(directory: str, options: argparse.Namespace) -> dict:
    """The record of a run's newest checkpoint: plain values."""
    network, found, data = opened(directory, options)
    recipe, statistics = found.recipe, found.statistics
    split, words = (data.splits["val"], in_words(data.classes, data.class_names or data.classes, options.synsets))
    count = options.pictures
    some, many, few = (evenly(len(split), number) for number in (count, 10 * count, max(1, count // 2)))
    of = network, statistics, split

    def measured(what, function, numbers, times=1, **more):
        with progress(what, times * len(numbers)) as advance:
            return function(*of, numbers, advance=advance, **more)

    towers = recipe.towers == 2
    kernels, _ = first_layer(directory)
    return {
        **_of_run(directory, found, recipe, data, options),
        "lesions": of_lesions(measured("lesions", lesions, some)),
        "sight": [of_seen(one) for one in measured("altered pictures", sight, some, len(ALTERATIONS))],
        "colour": of_colour(measured("colour", colour_division, few, 3, draws=options.deals)) if towers else None,
        "classes": of_leanings(measured("classes", class_leanings, many), words) if towers else None,
        "similarity": of_similarity(represented(*of, count, with_maps=True), recipe) if towers else None,
        "first_layer": of_first_layer(kernels, recipe.towers),
        "growth": of_growth(directory) if towers else None,
    }


def opened(directory: str, options: argparse.Namespace) -> tuple[TwoTowerAlexNet, Trained, DataSet]:
    """A run's network in test mode, what it was trained on, and the data set that is shown to it."""
    network, found = load_run(directory, "cpu", "auto")
    data = open_dataset(options.data or found.source, found.recipe.stored_size, ("val",))
    if list(data.classes) != found.classes:
        raise UserError(f"{directory} was trained on other classes than {options.data} has")
    return network, found, data


def represented(
    network: TwoTowerAlexNet, statistics: Statistics, split: Split, count: int, with_maps: bool = False
) -> Representation:
    """The `Representation` of `count` pictures of a split, of fewer where a network of such layers can't have them."""
    numbers = evenly(len(split), count)
    pictures = [split.read(int(numbers[place])) for place in evenly(len(numbers), most_pictures(network.recipe))]
    pipeline = pipeline_of(pictures, network.recipe, network.exchange.devices, statistics)
    return represent(network, pipeline, "given", BATCH, with_maps)


def _of_run(directory, found, recipe, data, options):
    data_name = options.data or found.source
    return {
        "format": FORMAT,
        "run": Path(directory).resolve().name,
        "arm": arm(recipe),
        "recipe": recipe.name,
        "seed": recipe.seed,
        "step": int(found.checkpoint.name.rpartition("_")[2]),
        "weights": digest(directory),
        "data": {
            "description": data.description.replace(data_name, Path(data_name).name),
            "classes": len(data.classes),
        },
        "pictures": options.pictures,
        "deals": options.deals,
        **made([directory], options),
    }


def made(directories: Sequence[str], options: argparse.Namespace) -> dict:
    """When, by which command and on what machine a record is made."""
    words = [
        *["python", "tools/what_each_gpu_learned.py"],
        *(Path(directory).resolve().name for directory in directories),
        *(["--data", Path(options.data).name] if options.data else []),
        *["--pictures", str(options.pictures), "--deals", str(options.deals)],
        *(["--synsets", os.path.relpath(options.synsets, ROOT)] if options.synsets else []),
    ]
    return {"date": datetime.now(UTC).date().isoformat(), "command": shlex.join(words), "machine": machine("cpu")}


def arm(recipe: Recipe) -> str:
    """ "towers with links", "towers without links" or "one tower"."""
    if recipe.towers == 1:
        return "one tower"
    return f"towers {'with' if links(recipe) else 'without'} links"


def digest(directory: str) -> str:
    """Which weights the newest checkpoint of a run has: the first 16 digits of a SHA-256."""
    found = trained(directory, with_weights=True)
    together = hashlib.sha256()
    for name in sorted(found.weights):
        together.update(name.encode() + found.weights[name].numpy().tobytes())
    return together.hexdigest()[:16]


# --- what was found, as plain values


def of_comparison(change: Comparison) -> dict:
    return {"n": change.n, "only_a": change.only_a, "only_b": change.only_b, "p": change.p}


def of_lesions(found: Lesions) -> dict:
    return {
        "n": found.n,
        "error": found.error,
        "towers": [_of_lesion(lesion) for lesion in found.towers],
        "links": [_of_lesion(lesion) for lesion in found.links],
        "contrasts": [{"place": each.place, **of_comparison(each.change)} for each in found.contrasts],
    }


def _of_lesion(lesion: Lesion):
    return {
        "place": lesion.place,
        "silenced": lesion.what,
        "error": lesion.error,
        **of_comparison(lesion.change),
        "halves": len(lesion.controls),
        "halves_error": [min(lesion.controls), float(np.median(lesion.controls)), max(lesion.controls)],
        "as_harmful": lesion.as_harmful,
    }


def of_seen(seen: Seen) -> dict:
    compared = of_comparison(seen.change) if seen.change else {"n": seen.n}
    return {"pictures": seen.pictures, "errors": seen.errors, **compared}


def of_colour(found: ColourDivision) -> dict:
    return {
        "n": found.n,
        "kept": {name: list(of_towers) for name, of_towers in found.kept.items()},
        "contrast": found.contrast,
        "p": found.p,
        "halves": sorted(round(half, 2) for half in found.halves),
        "p_halves": found.p_halves,
    }


def of_leanings(found: Leanings, words: list[str]) -> dict:
    """Each class as [its words, pictures, right by what tower a sees alone, by what tower b sees alone, p]."""
    return {
        "n": found.n,
        "spread": found.spread,
        "by_chance": found.by_chance,
        "p": found.p,
        "classes": [
            [words[one.label], one.change.n, one.change.only_a, one.change.only_b, one.change.p]
            for one in found.classes
        ],
    }


def of_similarity(seen: Representation, recipe: Recipe) -> dict:
    return {
        "n": seen.pictures,
        "layers": [
            {"layer": each.layer, "cka": each.cka.value, "interval": list(each.cka.interval), "p": each.p}
            for each in alike(seen)
            if each.cka
        ],
        "dealt": [
            {"layer": each.layer, "own": each.own, "halves": list(each.halves), "p": each.p} for each in dealt(seen)
        ],
        "crossings": [
            {"before": each.before, "after": each.after, "change": each.change.value, "p": each.change.p}
            for each in changes_at_crossings(seen, recipe)
        ],
    }


def of_first_layer(kernels: np.ndarray, towers: int) -> dict:
    if towers == 1:
        return {"chroma": chroma_shares(kernels, 1), "halves_divided": division_by_chance(kernels)}
    found = division(kernels, by_measure=False)
    return {
        "chroma": chroma_shares(kernels, 2),
        "chroma_p": random_split_p(kernels),
        "distance": found.distance,
        "division_p": found.p,
        "learned": list(found.learned),
    }


def of_growth(directory: str) -> dict | None:
    """None of a run without `--keep-every`."""
    found = growth(directory)
    if not found.kept:
        return None
    return {"moments": len(found.moments), "begins": found.begins, "turns": found.turns}
