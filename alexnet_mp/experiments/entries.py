"""The entries of a record, one a run: those of an arm that ended, pairs of a seed, the numbers that are compared."""

import json
from collections.abc import Callable, Mapping, Sequence

from ..analysis.specialisation import DIVISION_LEVEL
from ..evaluation.accuracy import top5_tells

# The desk study's pictures, by the fingerprints that they have had: those of sets whose components of colour LAPACK
# found, with a processor's AVX-512 instructions and without (the last bits differ), and as they are found now.
STUDY_PICTURES = (
    "51c7f6329f93cc00b0cc6b6a0a61f35bd361c2a0f69167c13cbc3d01d0bcc336",
    "d002ea1ee3e4da86acd9691d7ab7f84d30d8af2dba1af778ac29c97a365b6253",
    "b1ee1e4ff5b92ada49449bf8a044d3b641dc3f2b6f796b5bd3ffe5ebd9e6b244",
)


def fields(record: dict) -> tuple[str, ...]:
    """Which errors a record's sentences tell."""
    return ("top1_error", "top5_error") if top5_tells(record["data"][0]["classes"]) else ("top1_error",)


def pictures(record: dict) -> set[str]:
    """The fingerprints of a record's data sets; the study's pictures have one, whichever of theirs it holds."""
    fingerprints = {data["fingerprint"] for data in record["data"]}
    return {STUDY_PICTURES[0] if fingerprint in STUDY_PICTURES else fingerprint for fingerprint in fingerprints}


def first_seed(record: dict) -> int:
    """The seed, or the ensemble's number, that a record begins with: above 0 it repeats another one."""
    return record.get("first_seed", 0)  # older records have none


def conditions(record: dict, repeats: bool = True) -> str:
    """What records of different claims that can be judged together have in common: data, base, setting, length, and
    (repeats) the first seed."""
    parts = [sorted(pictures(record)), record["base"], record["set"], record["epochs"], record["steps"]]
    return json.dumps([*parts, first_seed(record)] if repeats else parts)


def compact(entry: dict) -> str:
    """An entry as JSON without spaces, a tenth shorter: records are committed."""
    return json.dumps(entry, allow_nan=False, separators=(",", ":"))


def seeds_of(record: dict) -> set[int]:
    """The seeds of a record's runs."""
    return {run["seed"] for run in record["runs"]}


def repeated(record: dict, records: Sequence[dict]) -> list[dict]:
    """The claim's records that a record repeats with later seeds, and in nothing else."""
    return [
        other
        for other in records
        if conditions(other, False) == conditions(record, False) and first_seed(other) < first_seed(record)
    ]


def of_other_pictures(record: dict, records: Sequence[dict]) -> list[dict]:
    """The claim's older records that differ in their pictures alone, of which they have as many in as many classes."""

    def extent(one):
        sizes = [(data["classes"], data["images"]) for data in one["data"]]
        return [sizes, *(one[name] for name in ("base", "set", "epochs", "steps")), first_seed(one)]

    return [
        other
        for other in records
        if extent(other) == extent(record) and other["date"] < record["date"] and not pictures(other) & pictures(record)
    ]


def words(arm: str) -> str:
    """An arm's name in a sentence."""
    return arm.replace("_", " ")


def ended(record: dict, arm: str) -> list[dict]:
    """The entries of an arm's runs that were tested."""
    return [run for run in record["runs"] if run["arm"] == arm and "errors" in run]


def pairs(record: dict, reference: str, arm: str) -> tuple[list[dict], list[dict]]:
    """The runs of two arms that ended, those of the same seed in the same place."""
    a, b = ({run["seed"]: run for run in ended(record, name)} for name in (reference, arm))
    seeds = sorted(a.keys() & b.keys())
    return [a[seed] for seed in seeds], [b[seed] for seed in seeds]


def differences(record: dict, reference: str, arm: str, value: Callable[[dict], float | None]) -> list[float]:
    """value(run of the arm) - value(run of the reference) of every seed that both have; None is no value."""
    values = [(value(a), value(b)) for a, b in zip(*pairs(record, reference, arm))]
    return [b - a for a, b in values if None not in (a, b)]


def is_divided(division: dict) -> bool:
    """Whether the towers' kernels of a run differ, by the test of `analysis.specialisation.division`."""
    return division["p"] is not None and division["p"] <= DIVISION_LEVEL


def averaged(errors: Mapping[str, object]) -> str:
    """The protocol of all views, "ten views" or "nine views", of {protocol: errors}; else the centre view."""
    return next((name for name in errors if name != "centre view"), "centre view")


def error(run: dict) -> float:
    """Top-1 error in %, averaged over views; of a network that is tested on one view, on that."""
    return run["errors"][averaged(run["errors"])]["top1_error"]


def training_error(run: dict) -> float | None:
    """Top-1 error in % on the training images, None if it wasn't tested on them."""
    return run["on_training_images"]["top1_error"] if "on_training_images" in run else None


def gap(run: dict) -> float | None:
    """Validation minus training error, centre view, in points; None if it wasn't tested on training images."""
    return run["errors"]["centre view"]["top1_error"] - training_error(run) if "on_training_images" in run else None
