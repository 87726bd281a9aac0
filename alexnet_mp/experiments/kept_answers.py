"""What stays of a finished run when its directory is gone: some 80 kB, so that it can be committed and no run is ever
made twice.

RECORDS/runs/<directory's name>.json is what records say of the run (`measure.measure`). Beside it, <name>.npz has
its first layer, for figure 3, and which validation pictures it got right under both protocols, for tests of pairs of
pictures. The name holds the digest of recipe, data, steps and beginning, so a run that is kept is the run that is
wanted. Only what needs all weights, an average of networks or a network to begin with, needs the directory. Where
room is scarce an archive may have the answers alone. The entry then still says whether the run's own towers differ;
figure 3 and the comparison with towers of other runs need the first layer."""

import io
import json
from pathlib import Path

import numpy as np

from ..evaluation.accuracy import read_right
from ..runs.directory import RIGHT
from ..system import durable_files
from .entries import averaged, compact, pairs
from .plan import Run

FOLDER = "runs"  # of the records' folder


def keep(run: Run, entry: dict, kernels: np.ndarray | None, records: str | Path) -> None:
    """Write what stays of a run: its entry, the first layer's weights (maps of all towers, 3, k, k), and what it got
    right."""
    place = _place(run, records)
    place.parent.mkdir(parents=True, exist_ok=True)
    if kernels is not None:
        right = read_right(run.directory / RIGHT) or {}
        images = {"images": next(iter(right.values())).shape[1]} if right else {}
        content = _npz(
            conv1=np.asarray(kernels, np.float16),
            **images,
            **{name: np.packbits(mask, axis=1) for name, mask in right.items()},
        )
        durable_files.replace(place.with_suffix(".npz"), content)
    durable_files.replace(place.with_suffix(".json"), (compact(entry) + "\n").encode())


def kept(run: Run, records: str | Path) -> dict | None:
    """The entry of a run that is kept, None where there is none."""
    return _entry(_place(run, records).with_suffix(".json"))


def first_layer(entry: dict, records: str | Path) -> np.ndarray | None:
    """(maps of all towers, 3, k, k) float32 of a run that is kept, None where its kernels are not."""
    arrays = _arrays(_path_of(entry["directory"], records).with_suffix(".npz")) or {}
    return arrays["conv1"].astype(np.float32) if "conv1" in arrays else None


def of_pictures(record: dict, reference: str, arm: str, records: str | Path) -> float | None:
    """The standard error, over the pictures, of an arm's mean top-1 error minus its reference's, in points: paired by
    picture and seed, on all views. None where the answers of a run are not kept."""
    differences = []
    for before, after in zip(*pairs(record, reference, arm)):
        right = [_right_mask(entry, records) for entry in (before, after)]
        if any(answers is None for answers in right) or right[0].shape != right[1].shape:
            return None
        differences.append(right[0].astype(np.float64) - right[1])
    if not differences:
        return None
    of_each = np.mean(differences, axis=0)
    return float(100 * of_each.std(ddof=1) / np.sqrt(len(of_each)))


def _right_mask(entry, records):
    """(N,) bool: which pictures a run's first answer is right of; None where that is not kept."""
    answers = read_right(_path_of(entry["directory"], records).with_suffix(".npz")) or {}
    return answers[name][0] if (name := averaged(entry["errors"])) in answers else None


def new_files(source: str | Path, records: str | Path) -> list[Path]:
    """The files of the runs that another folder of records keeps and this one has not, or only damaged; none of a run
    that is damaged there, too. Both files of a run come from the same place: another machine's are of another network.
    An archive here that has the answers alone is whole: its first layer was left out for room."""
    runs = {}
    for path in sorted((Path(source) / FOLDER).glob("*")):
        if path.suffix in (".json", ".npz"):
            runs.setdefault(path.stem, []).append(path)
    return [
        path
        for files in runs.values()
        if all(map(_is_whole, files)) and not all(_is_whole(Path(records) / FOLDER / path.name) for path in files)
        for path in files
    ]


def _is_whole(path):
    return (_entry(path) if path.suffix == ".json" else _arrays(path)) is not None


def _entry(path):
    try:
        entry = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) and {"arm", "seed", "steps", "commits"} <= entry.keys() else None


def _arrays(path):
    """{name: array}, None where any is damaged: numpy and zlib fail on such a file in every way."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception:
        return None
    return arrays if arrays.keys() & {"conv1", "images"} else None


def _npz(**arrays):
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def _place(run, records):
    return _path_of(run.directory, records)


def _path_of(directory, records):
    return Path(records) / FOLDER / Path(directory).name
