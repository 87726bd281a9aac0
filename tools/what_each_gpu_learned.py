"""What each GPU learned, of many runs: measures what the report's parts on towers show of one run, keeps a record a
run, and writes docs/what-each-gpu-learned.md and its figure from all records.

    python tools/what_each_gpu_learned.py RUN... --data DIR [--pictures 500] [--deals 39] [--synsets FILE]

A record that is there for the same checkpoint, pictures and deals is not made again; without any RUN the page alone is
written, from the records. An arm is told by the recipe: towers with links, towers without, one tower. --pictures are
for lesions and altered pictures; ten times as many for the classes, half as many for deals of kernels, as in the
report. Runs are computed on CPUs.

`learned_tables.py` has what is said over seeds, `learned_questions.py` and `learned_page.py` make the page of it,
`learned_figure.py` the figure."""

import argparse
import hashlib
import json
import os
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from learned_figure import draw
from learned_page import page
from learned_record import FOLDER, FORMAT, read_all

from alexnet_mp.analysis.altered_pictures import ALTERATIONS
from alexnet_mp.analysis.figure_4 import evenly
from alexnet_mp.analysis.growth import growth, spread
from alexnet_mp.analysis.hypothesis_tests import Comparison
from alexnet_mp.analysis.lesions import Lesion, Lesions, lesions
from alexnet_mp.analysis.sight import ColourDivision, Leanings, Seen, class_leanings, colour_division, sight
from alexnet_mp.analysis.similarity import Representation, alike, crossings, dealt, most_pictures, represent
from alexnet_mp.analysis.specialisation import chroma_shares, division, division_by_chance, first_layer, random_split_p
from alexnet_mp.command_options import compute_as_in_training
from alexnet_mp.data.dataset import open_dataset
from alexnet_mp.data.image_files import pipeline_of
from alexnet_mp.data.synsets import in_words
from alexnet_mp.evaluation.trained import load_run, trained
from alexnet_mp.experiments.records import machine
from alexnet_mp.recipes.recipe import Recipe
from alexnet_mp.system import durable_files
from alexnet_mp.system.errors import UserError, run_command
from alexnet_mp.system.terminal import progress, say

ROOT = Path(__file__).resolve().parents[1]
PAGE, FIGURE = ROOT / "docs" / "what-each-gpu-learned.md", ROOT / "docs" / "what-each-gpu-learned.png"
BATCH = 100  # pictures that are represented at once


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    compute_as_in_training()
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    for directory in options.runs:
        path = folder / f"{Path(directory).resolve().name}.json"
        if _is_there(path, directory, options):
            say(f"{path} is there")
            continue
        record = measure(directory, options)
        durable_files.replace(path, told(record).encode())
        say(f"wrote {path}")
    records = read_all(folder)
    if not records:
        raise UserError(f"{folder} has no records, and no run was named")
    if not options.records_only:
        durable_files.replace(PAGE, page(records).encode())
        # light alone: a page of Markdown is shown on one background or the other
        draw(records).savefig(FIGURE, dpi=100, facecolor="white", metadata={"Software": None})
        say(f"wrote {PAGE} and {FIGURE} from {len(records)} records")
    return 0


def measure(directory: str, options: argparse.Namespace) -> dict:
    """The record of a run's newest checkpoint: plain values."""
    network, found = load_run(directory, "cpu", "auto")
    recipe, statistics = found.recipe, found.statistics
    data = open_dataset(options.data or found.source, recipe.stored_size, ("val",))
    if list(data.classes) != found.classes:
        raise UserError(f"{directory} was trained on other classes than {options.data} has")
    split, words = (
        data.splits["val"],
        in_words(data.classes, getattr(data, "class_names", None) or data.classes, options.synsets),
    )
    count = options.pictures
    some, many, few = (evenly(len(split), number) for number in (count, 10 * count, max(1, count // 2)))
    of = network, statistics, split

    def measured(what, function, numbers, times=1, **more):
        with progress(what, times * len(numbers)) as advance:
            return function(*of, numbers, advance=advance, **more)

    compared = evenly(len(split), count)
    compared = [split.read(int(compared[place])) for place in spread(len(compared), most_pictures(recipe))]
    towers = recipe.towers == 2
    kernels, _ = first_layer(directory)
    return {
        **_of_run(directory, found, recipe, data, options),
        "lesions": of_lesions(measured("lesions", lesions, some)),
        "sight": [of_seen(one) for one in measured("altered pictures", sight, some, len(ALTERATIONS))],
        "colour": of_colour(measured("colour", colour_division, few, 3, draws=options.deals)) if towers else None,
        "classes": of_leanings(measured("classes", class_leanings, many), words) if towers else None,
        "similarity": of_similarity(
            represent(
                network,
                pipeline_of(compared, recipe, network.exchange.devices, statistics),
                "given",
                BATCH,
                with_maps=True,
            ),
            recipe,
        )
        if towers
        else None,
        "first_layer": of_first_layer(kernels, recipe.towers),
        "growth": of_growth(directory) if towers else None,
    }


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
        "date": datetime.now(UTC).date().isoformat(),
        "command": shlex.join(
            [
                "python",
                "tools/what_each_gpu_learned.py",
                Path(directory).resolve().name,
                *(["--data", Path(options.data).name] if options.data else []),
                *["--pictures", str(options.pictures), "--deals", str(options.deals)],
                *(["--synsets", os.path.relpath(options.synsets, ROOT)] if options.synsets else []),
            ]
        ),
        "machine": machine("cpu"),
    }


def arm(recipe: Recipe) -> str:
    """ "towers with links", "towers without links" or "one tower"."""
    if recipe.towers == 1:
        return "one tower"
    linked = any(layer.reads == "both" for layer in recipe.layers[:-1])
    return f"towers {'with' if linked else 'without'} links"


def digest(directory: str) -> str:
    """Which weights the newest checkpoint of a run has: the first 16 digits of a SHA-256."""
    _, found = trained(directory, with_weights=True)
    together = hashlib.sha256()
    for name in sorted(found.weights):
        together.update(name.encode() + found.weights[name].numpy().tobytes())
    return together.hexdigest()[:16]


def _is_there(path, directory, options):
    if not path.exists():
        return False
    record = json.loads(path.read_text(encoding="utf-8"))
    same = (record.get(name) for name in ("format", "pictures", "deals", "weights"))
    return tuple(same) == (FORMAT, options.pictures, options.deals, digest(directory))


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
            for each in crossings(seen, recipe)
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


def told(record: dict) -> str:
    """JSON with a line for every field, and for every entry of one that has many; six digits of every number."""

    def short(value):
        if isinstance(value, float):
            return float(f"{value:.6g}")
        if isinstance(value, dict):
            return {name: short(each) for name, each in value.items()}
        return [short(each) for each in value] if isinstance(value, (list, tuple)) else value

    def lines(value):
        inner = short(value)
        if isinstance(inner, list) and inner and isinstance(inner[0], (dict, list)):
            return "[\n  " + ",\n  ".join(json.dumps(each, ensure_ascii=False) for each in inner) + "]"
        if isinstance(inner, dict) and any(isinstance(each, list) and len(each) > 3 for each in inner.values()):
            return "{\n  " + ",\n  ".join(f"{json.dumps(name)}: {lines(each)}" for name, each in inner.items()) + "}"
        return json.dumps(inner, ensure_ascii=False)

    return "{\n" + ",\n".join(f" {json.dumps(name)}: {lines(value)}" for name, value in record.items()) + "\n}\n"


def _parser():
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="a run directory; its name is the record's")
    parser.add_argument("--data", metavar="DIR|builtin", help="default: what each run was trained on")
    parser.add_argument("--out", metavar="DIR", default=str(FOLDER), help="of the records; default: %(default)s")
    parser.add_argument("--pictures", type=int, default=500, metavar="N", help="of val; default: %(default)s")
    parser.add_argument(
        "--deals",
        type=int,
        default=39,
        metavar="N",
        help="of first-layer kernels to halves; with N of them no p of one network is below 1 / (N + 1), of k seeds "
        "together 1 / (N + 1)^k; default: %(default)s",
    )
    parser.add_argument(
        "--synsets", metavar="FILE|SET", help="names the classes; all records of a data set have to have the same names"
    )
    parser.add_argument("--records-only", action="store_true", help="write neither page nor figure")
    return parser


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
