"""The records of claims: what was run, on what, and what came out, as numbers; `findings.py` makes sentences of
them.

One JSON file a claim, data set and setting, claims/records/<claim>-<digest>.json; run again with more seeds, it is
written anew. A record holds no run's whole history: errors, the means of its last epoch, sixty points of its curve, and
what the claim measures."""

import hashlib
import json
import platform
import re
from pathlib import Path

from ..recipes.recipe import Recipe, every_field
from ..system import durable_files
from ..system.devices import device_name, resolve
from ..system.errors import UserError
from ..system.provenance import PACKAGES, package_version, source_commit
from . import kept_answers, kernel_sheet
from .entries import compact, first_seed
from .figures import draw_claim
from .paper_claims import KINDS

SOURCE = Path(__file__).resolve().parents[2]
# those of a checkout, where this is one
RECORDS = (SOURCE if (SOURCE / "pyproject.toml").exists() else Path()) / "claims" / "records"
FORMAT = 1
FIELDS = {
    "claim",
    "kind",
    "date",
    "command",
    "note",
    "reported_on",
    "data",
    "base",
    "set",
    "epochs",
    "steps",
    "search_epochs",
    "arms",
    "runs",
    "search",
    "rates",
    "ensembles",
}


def differences(before: Recipe, after: Recipe) -> dict[str, list]:
    """{field: [before, after]} of two recipes, layers as "conv1.then"; a layer that one of them lacks is None there."""
    a, b = every_field(before), every_field(after)
    layers_a, layers_b = ({layer["name"]: layer for layer in fields.pop("layers")} for fields in (a, b))
    changes = {field: [a[field], b[field]] for field in a if a[field] != b[field]}
    for name in list(layers_a) + [name for name in layers_b if name not in layers_a]:
        one, other = layers_a.get(name), layers_b.get(name)
        if one is None or other is None:
            changes[name] = [one, other]
        else:
            changes |= {f"{name}.{field}": [one[field], other[field]] for field in one if one[field] != other[field]}
    return changes


def machine(gpus: str) -> dict:
    """Where a record is made; its runs say themselves where they were trained."""
    names = dict.fromkeys(device_name(device) for device in resolve(gpus, 2))
    packages = {name: package_version(name) for name in PACKAGES}
    return {
        "devices": list(names),
        "python": platform.python_version(),
        "packages": packages,
        "commit": source_commit(),
    }


def devices_of(record: dict) -> list[str]:
    """The names of all devices that the record's runs were trained on, in order."""
    return list(
        dict.fromkeys(
            re.sub(r"\b1 threads$", "1 thread", device)  # the plural of older records
            for run in record["runs"]
            for device in run["devices"]
        )
    )


def path_of(record: dict, folder: str | Path) -> Path:
    """The file of a record: the same claim with the same recipes and the same first seed, on the same data and the same
    kind of device, has the same one.

    However it was asked for, and with however many threads.
    """
    devices = {re.sub(", [0-9]+ threads?$", "", name) for name in devices_of(record)}
    what = [record["epochs"], record["steps"], record["search_epochs"], sorted(devices)]
    what += [data["fingerprint"] for data in record["data"]] + [arm["digest"] for arm in record["arms"]]
    what += [seed] if (seed := first_seed(record)) else []
    return Path(folder) / f"{record['claim']}-{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:8]}.json"


def write_record(record: dict, folder: str | Path) -> tuple[Path, bool]:
    """Write a record and its picture, the same name with .png. Returns (its path, whether it was written). One line a
    run.

    A record that is there already and has all these runs, and more, stays.
    """
    path = path_of(record, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    old_record = _read(path)
    if old_record and _runs(old_record) > _runs(record):
        return path, False
    lines = []
    for name, value in record.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            entries = ",\n  ".join(compact(entry) for entry in value)
            lines.append(f" {json.dumps(name)}: [\n  {entries}]")
        else:
            lines.append(f" {json.dumps(name)}: {json.dumps(value, allow_nan=False)}")
    durable_files.replace(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())
    draw_claim(record, path.with_suffix(".png"))
    _draw_kernels(record, path)
    return path, True


def kernels_picture(path: Path) -> Path:
    """Where the first layers of a record's runs are drawn, for the kinds of claims that show them."""
    return path.with_name(f"{path.stem}-kernels.png")


def _draw_kernels(record, path):
    if KINDS[record["kind"]].shows_kernels:
        kernel_sheet.draw_kernels(record, path.parent, kernels_picture(path))


def take_records(source: str | Path, folder: str | Path) -> list[str]:
    """Copy what another folder of records has and this one has not: kept runs, and records with more runs. Returns the
    names.

    A record that is here too is replaced only by one that has all of its runs, and others; a kept run only where its
    file here is damaged. The pictures of what was taken are drawn here: older code may have written the record. Raises
    UserError if there is no such folder.
    """
    if not Path(source).is_dir():
        raise UserError(f"--take {source}: no such directory")
    paths = []
    for path in sorted(Path(source).glob("*.json")):
        record, own_record = _read(path), _read(Path(folder) / path.name)
        if record and (own_record is None or _runs(record) > _runs(own_record)):
            paths.append(path)
    paths += kept_answers.new_files(source, folder)
    for path in paths:
        target = Path(folder) / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.parent == Path(source) and path.suffix == ".json":  # a record never lies there without its picture
            draw_claim(_read(path), target.with_suffix(".png"))
        durable_files.replace(target, path.read_bytes())
    new_runs = {path.stem for path in paths if path.suffix == ".npz"}
    for path in sorted(Path(folder).glob("*.json")):  # new ones, and those that show kernels which are here by now
        record = _read(path)
        runs = {Path(run["directory"]).name for run in record["runs"]} if record else set()
        if Path(source) / path.name in paths or runs & new_runs:
            _draw_kernels(record, path)
    return [str(path.relative_to(source)) for path in paths]


def _runs(record):
    return {(run["arm"], run["seed"], Path(run["directory"]).name, *run["commits"]) for run in record["runs"]}


def read_records(folder: str | Path) -> dict[str, list[dict]]:
    """{claim's id: [its records, newest first]}; what is no record of a claim is left alone."""
    by_claim = {}
    for path in sorted(Path(folder).glob("*.json")):
        if record := _read(path):
            by_claim.setdefault(record["claim"], []).append(record)
    return {
        claim: sorted(records, key=lambda record: record["date"], reverse=True) for claim, records in by_claim.items()
    }


def _read(path):
    """The record in a file, None where there is none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    whole = isinstance(record, dict) and record.get("format") == FORMAT and FIELDS <= record.keys()
    known = whole and isinstance(record["kind"], str) and record["kind"] in KINDS
    return record if known and isinstance(record["runs"], list) and all(map(_is_run, record["runs"])) else None


def _is_run(entry):
    return isinstance(entry, dict) and {"arm", "seed", "directory", "commits"} <= entry.keys()
