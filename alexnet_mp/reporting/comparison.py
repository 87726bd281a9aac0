"""What differs between runs: their recipes, data and environments, and their errors, paired over the same images."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from ..analysis.hypothesis_tests import Comparison, holm, mcnemar, told_p, wilson
from ..data.dataset import ELSEWHERE, SAME_FILES
from ..evaluation.accuracy import read_right, top5_tells
from ..recipes.recipe import Recipe, every_field
from ..runs.directory import RIGHT, read_run
from ..runs.metrics import sound_metrics
from ..system.errors import UserError
from ..training.resume import flat
from .provenance import devices_of

ENVIRONMENT = ("kernels", "precision", "pipeline", "overlap", "pairs", "microbatch", "python")
CENTRE = "centre view"
SHOWN = 3  # pairs that are named where many can't be compared for the same reason


@dataclass(frozen=True)
class ComparedRun:
    """What is read of a run."""

    name: str
    directory: str
    described: dict  # `read_run`
    lines: list[dict]  # `sound_metrics`; none of a network that was converted
    right: dict[str, np.ndarray]  # `read_right`: which images the final test got right; none where it was not tested

    @property
    def recipe(self) -> Recipe:
        return self.described["recipe"]

    @property
    def classes(self) -> int:
        return len(self.described["data"]["classes"])

    @property
    def step(self) -> int:
        """The last that is recorded; 0 where none is."""
        return next((line["step"] for line in reversed(self.lines) if line["kind"] == "train"), 0)

    def errors(self) -> list[dict]:
        """The lines of its final test, a protocol each; where it has none, of its last validation; nothing where it has
        no validation either."""
        lines = [line for line in self.lines if line["kind"] == "test" and line["step"] == self.step]
        if not lines:
            lines = [line | {"protocol": CENTRE} for line in self.lines if line["kind"] == "val"][-1:]
        return lines


@dataclass(frozen=True)
class PairedErrors:
    """Two runs' answers to the same images."""

    a: str
    b: str
    protocol: str
    change: Comparison  # of a and b, by their top-1 answers; `difference` is b's error less a's, in points
    holm_p: float  # corrected for the number of pairs


def read_compared(name: str, directory: str) -> ComparedRun:
    """Raises UserError where it is no run."""
    metadata = read_run(directory)
    right = read_right(Path(directory) / RIGHT) or {}
    return ComparedRun(name, directory, metadata, sound_metrics(directory), right)


def refuse_copies(runs: Sequence[ComparedRun]) -> None:
    """Raise UserError where one run is a copy of another, and would count twice: all that is read of the two is the
    same, their images a second among it."""
    for a, b in combinations(runs, 2):
        if a.lines and (a.described, a.lines) == (b.described, b.lines) and _same_answers(a, b):
            raise UserError(f"{b.name} is a copy of {a.name}; each run counts once")


def _same_answers(a, b):
    return a.right.keys() == b.right.keys() and all(np.array_equal(a.right[name], b.right[name]) for name in a.right)


def differences(runs: Sequence[ComparedRun]) -> dict[str, dict[str, list[str]]]:
    """{"recipe", "data", "environment": {name: [value of each run, in words]}}, of what is not the same in all runs.

    What a run has no word for, a layer that another has or a field that a former version didn't record, is "-". A layer
    that only some runs have has one word for all that is the same in them."""
    parts = {
        "recipe": _recipes(runs),
        "data": [_data(run) for run in runs],
        "environment": [_environment(run) for run in runs],
    }
    return {part: _differing_fields(fields) for part, fields in parts.items()}


def grouped(values: Sequence[str]) -> list[tuple[str, str]]:
    """The values of runs, which are numbered from 1, each once: [("48", "1, 2"), ("96", "3-6")]."""
    runs_of = {}
    for number, value in enumerate(values, 1):
        runs_of.setdefault(value, []).append(number)
    return [(value, _ranges(numbers)) for value, numbers in runs_of.items()]


def _ranges(numbers):
    """[1, 2, 4, 5, 6] is "1, 2, 4-6"."""
    spans = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    return ", ".join(f"{span[0]}-{span[-1]}" if len(span) > 2 else ", ".join(map(str, span)) for span in spans)


def _differing_fields(fields):
    names = dict.fromkeys(name for of_run in fields for name in of_run)
    texts = {name: [_words(of_run.get(name)) for of_run in fields] for name in names}
    return {name: values for name, values in texts.items() if len(set(values)) > 1}


def _words(value):
    if value is None or value == "":
        return "-"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_words, value)) or "none"
    if isinstance(value, Mapping):
        return " ".join(f"{name} {_words(inner)}" for name, inner in value.items() if inner not in (None, [], ()))
    return str(value)


def _recipes(runs):
    """The fields of each recipe, with those of its layers; see `differences` for layers that some lack."""
    recipes = [flat(every_field(run.recipe)) for run in runs]
    for layer in dict.fromkeys(name for recipe in recipes for name in recipe["layers"]):
        holders = [recipe for recipe in recipes if layer in recipe["layers"]]
        if len(holders) == len(recipes):
            continue
        names = [name for name in holders[0] if name.startswith(f"{layer}.")]
        shared_names = [name for name in names if len({_words(recipe.get(name)) for recipe in holders}) == 1]
        shared_values = {name.removeprefix(f"{layer}."): _words(holders[0][name]) for name in shared_names}
        words = ", ".join(f"{name} {value}" for name, value in shared_values.items() if value != "-")
        for recipe in holders:
            fields = {name: recipe.pop(name) for name in list(recipe) if name.startswith(f"{layer}.")}
            recipe[layer] = words
            recipe.update((name, value) for name, value in fields.items() if name not in shared_names)
    return recipes


def _data(run):
    data = run.described["data"]
    return {
        "source": data["source"],
        "description": data.get("description"),
        "fingerprint": str(data.get("fingerprint", ""))[:16],
        "classes": f"{run.classes:,}: {data['classes'][0]} to {data['classes'][-1]}",
        "sha256 of the classes": hashlib.sha256(repr(data["classes"]).encode()).hexdigest()[:16],
    }


def _environment(run):
    packages = run.described.get("packages") or {}
    return {
        "devices": devices_of(run.described),
        **{name: run.described.get(name) for name in ENVIRONMENT},
        "commit": str(run.described.get("commit") or "")[:12],
        **packages,
        "converted from": (run.described.get("converted") or {}).get("from"),
    }


def interval(error: float, images: int) -> tuple[float, float]:
    """The 95 % interval of an error in % of images, Wilson's."""
    low, high = wilson(round(error / 100 * images), images)
    return 100 * low, 100 * high


def paired_errors(runs: Sequence[ComparedRun]) -> tuple[list[PairedErrors], list[str]]:
    """(the `PairedErrors` of all pairs that answered the same images, why others are not compared, a line each).

    Top-1, over several views if both runs were tested so, else the centre view. p is McNemar's, corrected by Holm's
    rule over the pairs."""
    rows, reasons = [], {}
    untested_runs = {run.name: reason for run in runs if (reason := _not_tested(run))}
    for a, b in combinations([run for run in runs if run.name not in untested_runs], 2):
        if reason := _not_the_same_images(a, b):
            reasons.setdefault(reason, []).append(f"{a.name} and {b.name}")
            continue
        protocol = _protocol(a, b)
        rows.append((a.name, b.name, protocol, mcnemar(*(run.right[protocol][0] for run in (a, b)))))
    corrected_p = holm([change.p for *_, change in rows])
    return (
        [PairedErrors(*row, holm_p) for row, holm_p in zip(rows, corrected_p, strict=True)],
        [f"{name}: {reason}" for name, reason in untested_runs.items()]
        + [f"{', '.join(pairs[:SHOWN])}{_more(pairs)}: {reason}" for reason, pairs in reasons.items()],
    )


def _more(pairs):
    return f" and {len(pairs) - SHOWN} more pairs" if len(pairs) > SHOWN else ""


def _not_tested(run):
    """Why a run can be compared with none image by image; None where it can."""
    if "converted" in run.described or run.described["data"]["source"] == ELSEWHERE:
        return "it was converted, and nobody knows its data"
    if not run.right:
        return f"it has no final test, or was tested before {RIGHT} was kept"
    if not any(line["kind"] == "test" and line["step"] == run.step for line in run.lines):
        return "it was trained on after its final test"
    return None


def _not_the_same_images(a, b):
    """Why two runs can't be compared image by image; None where they can."""
    data_a, data_b = (run.described["data"] for run in (a, b))
    if str(data_a.get("fingerprint"))[:SAME_FILES] != str(data_b.get("fingerprint"))[:SAME_FILES]:
        return "their data are not the same"
    if data_a["classes"] != data_b["classes"]:
        return "their classes are not the same"
    splits = [{line.get("split") for line in run.lines if line["kind"] == "test"} for run in (a, b)]
    if splits[0] != splits[1]:
        return "they were tested on different splits"
    if (protocol := _protocol(a, b)) is None:
        return "they were tested by different protocols"
    if a.right[protocol].shape != b.right[protocol].shape:
        return "they were tested on different numbers of images"
    return None


def _protocol(a, b):
    """That of both, the one with most views first; None where they share none."""
    protocols = [protocol for protocol in a.right if protocol in b.right]
    return next((protocol for protocol in protocols if protocol != CENTRE), protocols[0] if protocols else None)


def text(runs: Sequence[ComparedRun]) -> list[str]:
    """The comparison as lines for a terminal. Names of runs stand once, then their numbers."""
    numbers = {run.name: str(number) for number, run in enumerate(runs, 1)}
    rows = [[run.name, run.recipe.name, f"seed {run.recipe.seed}", f"step {run.step:,}"] for run in runs]
    lines = ["runs", *_columns([[number, *row] for number, row in zip(numbers.values(), rows)])]
    for part, fields in differences(runs).items():
        lines += ["", f"{part}: {'what differs' if fields else 'the same in all'}"]
        lines += _columns(
            [
                [name, " | ".join(f"{value} ({numbers})" for value, numbers in grouped(values))]
                for name, values in fields.items()
            ]
        )
    lines += ["", "errors, with 95 % intervals"]
    rows = [
        [numbers[run.name], line["protocol"], *error_cells(line, run.classes), f"{line['images']:,} images"]
        for run in runs
        for line in run.errors()
    ]
    lines += _columns(rows)
    lines += [f"  {numbers[run.name]}  not tested" for run in runs if not run.errors()]
    pairs, reasons = paired_errors(runs)
    if pairs:
        lines += ["", "top-1 errors over the same images: McNemar's exact test, p corrected for the number of pairs"]
        lines += _columns(
            [
                [
                    f"{numbers[pair.b]} minus {numbers[pair.a]}",
                    f"{pair.change.difference:+.2f} points",
                    f"({pair.change.interval[0]:+.2f} to {pair.change.interval[1]:+.2f})",
                    told_p(pair.holm_p),
                    f"{numbers[pair.b]} alone right {pair.change.only_b:,}, {numbers[pair.a]} alone "
                    f"{pair.change.only_a:,} of {pair.change.n:,}, {pair.protocol}",
                ]
                for pair in pairs
            ]
        )
        lines += ["  of these networks: other seeds make other networks"]
    if reasons:
        lines += ["", "not compared image by image", *(f"  {reason}" for reason in reasons)]
    return lines


def error_cells(line: dict, classes: int) -> list[str]:
    """["top-1 73.04 % (71.79 to 74.25)", "top-5 ..."]; of five classes or fewer without the second."""
    cells = []
    for k in (1, 5) if top5_tells(classes) else (1,):
        error = line[f"top{k}_error"]
        low, high = interval(error, line["images"])
        cells.append(f"top-{k} {error:.2f} % ({low:.2f} to {high:.2f})")
    return cells


def _columns(rows):
    """Rows of cells, each column as wide as its widest cell; all but the last."""
    widths = {}
    for row in rows:
        for number, cell in enumerate(row[:-1]):
            widths[number] = max(widths.get(number, 0), len(cell))
    return ["  " + "  ".join([*(cell.ljust(widths[n]) for n, cell in enumerate(row[:-1])), row[-1]]) for row in rows]
