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
    network, training, data = opened(directory, options)
    recipe, statistics = training.recipe, training.statistics
    split, words = (data.splits["val"], in_words(data.classes, data.class_names or data.classes, options.synsets))
    count = options.pictures
    sample, large_sample, small_sample = (
        evenly(len(split), number) for number in (count, 10 * count, max(1, count // 2))
    )
    context = network, statistics, split

    def analyse(what, function, numbers, times=1, **more):
        with progress(what, times * len(numbers)) as advance:
            return function(*context, numbers, advance=advance, **more)

    towers = recipe.towers == 2
    kernels, _ = first_layer(directory)
    return {
        **_of_run(directory, training, recipe, data, options),
        "lesions": of_lesions(analyse("lesions", lesions, sample)),
        "sight": [of_seen(view) for view in analyse("altered pictures", sight, sample, len(ALTERATIONS))],
        "colour": of_colour(analyse("colour", colour_division, small_sample, 3, draws=options.deals))
        if towers
        else None,
        "classes": of_leanings(analyse("classes", class_leanings, large_sample), words) if towers else None,
        "similarity": of_similarity(represented(*context, count, with_maps=True), recipe) if towers else None,
        "first_layer": of_first_layer(kernels, recipe.towers),
        "growth": of_growth(directory) if towers else None,
    }


def opened(directory: str, options: argparse.Namespace) -> tuple[TwoTowerAlexNet, Trained, DataSet]:
    """A run's network in test mode, what it was trained on, and the data set that is shown to it."""
    network, training = load_run(directory, "cpu", "auto")
    data = open_dataset(options.data or training.source, training.recipe.stored_size, ("val",))
    if list(data.classes) != training.classes:
        raise UserError(f"{directory} was trained on other classes than {options.data} has")
    return network, training, data


def represented(
    network: TwoTowerAlexNet, statistics: Statistics, split: Split, count: int, with_maps: bool = False
) -> Representation:
    """The `Representation` of `count` pictures of a split, of fewer where a network of such layers can't have them."""
    numbers = evenly(len(split), count)
    pictures = [split.read(int(numbers[place])) for place in evenly(len(numbers), most_pictures(network.recipe))]
    pipeline = pipeline_of(pictures, network.recipe, network.exchange.devices, statistics)
    return represent(network, pipeline, "given", BATCH, with_maps)


def _of_run(directory, training, recipe, data, options):
    data_name = options.data or training.source
    return {
        "format": FORMAT,
        "run": Path(directory).resolve().name,
        "arm": arm(recipe),
        "recipe": recipe.name,
        "seed": recipe.seed,
        "step": int(training.checkpoint.name.rpartition("_")[2]),
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
    training = trained(directory, with_weights=True)
    checksum = hashlib.sha256()
    for name in sorted(training.weights):
        checksum.update(name.encode() + training.weights[name].numpy().tobytes())
    return checksum.hexdigest()[:16]


# --- what was found, as plain values


def of_comparison(change: Comparison) -> dict:
    return {"n": change.n, "only_a": change.only_a, "only_b": change.only_b, "p": change.p}


def of_lesions(effects: Lesions) -> dict:
    return {
        "n": effects.n,
        "error": effects.error,
        "towers": [_of_lesion(lesion) for lesion in effects.towers],
        "links": [_of_lesion(lesion) for lesion in effects.links],
        "contrasts": [{"place": contrast.place, **of_comparison(contrast.change)} for contrast in effects.contrasts],
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


def of_seen(view: Seen) -> dict:
    comparison = of_comparison(view.change) if view.change else {"n": view.n}
    return {"pictures": view.pictures, "errors": view.errors, **comparison}


def of_colour(outcome: ColourDivision) -> dict:
    return {
        "n": outcome.n,
        "kept": {name: list(of_towers) for name, of_towers in outcome.kept.items()},
        "contrast": outcome.contrast,
        "p": outcome.p,
        "halves": sorted(round(half, 2) for half in outcome.halves),
        "p_halves": outcome.p_halves,
    }


def of_leanings(leanings: Leanings, words: list[str]) -> dict:
    """Each class as [its words, pictures, right by what tower a sees alone, by what tower b sees alone, p]."""
    return {
        "n": leanings.n,
        "spread": leanings.spread,
        "by_chance": leanings.by_chance,
        "p": leanings.p,
        "classes": [
            [words[leaning.label], leaning.change.n, leaning.change.only_a, leaning.change.only_b, leaning.change.p]
            for leaning in leanings.classes
        ],
    }


def of_similarity(representation: Representation, recipe: Recipe) -> dict:
    return {
        "n": representation.pictures,
        "layers": [
            {
                "layer": likeness.layer,
                "cka": likeness.cka.value,
                "interval": list(likeness.cka.interval),
                "p": likeness.p,
            }
            for likeness in alike(representation)
            if likeness.cka
        ],
        "dealt": [
            {"layer": deal.layer, "own": deal.own, "halves": list(deal.halves), "p": deal.p}
            for deal in dealt(representation)
        ],
        "crossings": [
            {"before": link.before, "after": link.after, "change": link.change.value, "p": link.change.p}
            for link in changes_at_crossings(representation, recipe)
        ],
    }


def of_first_layer(kernels: np.ndarray, towers: int) -> dict:
    if towers == 1:
        return {"chroma": chroma_shares(kernels, 1), "halves_divided": division_by_chance(kernels)}
    test = division(kernels, by_measure=False)
    return {
        "chroma": chroma_shares(kernels, 2),
        "chroma_p": random_split_p(kernels),
        "distance": test.distance,
        "division_p": test.p,
        "learned": list(test.learned),
    }


def of_growth(directory: str) -> dict | None:
    """None of a run without `--keep-every`."""
    history = growth(directory)
    if not history.kept:
        return None
    return {"moments": len(history.moments), "begins": history.begins, "turns": history.turns}
