"""Which cases run, and which are named instead: the long groups, and what this machine lacks the GPUs for.

A case is long by `@pytest.mark.long(name)`, a name of `LONG`, and asks for devices by `@pytest.mark.gpus(number)`.
A measurement is all cases that share their parameters but for the variant and the pass: they are built and timed
together.
"""

import json
from collections import Counter
from pathlib import Path

from record import RECORDS

LONG = {
    "lrn-pool-all": "the map operations in NCHW and other data types; on a GPU at other batches, and torch.compile",
    "step-all": "a step beside torch.compile, merged, reference, default-allocator, no-lrn; on a GPU 1,024 images",
    "fed-step": "a step with images that a pipeline makes meanwhile",
    "exchange": "the four layers that read both towers, with and without overlap",
    "two-gpus": "a step of the paper's network against its one-GPU network",
    "forked": "two experiments with CUDA graphs",
}


def measurement(item):
    """What the cases that are timed together have in common."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    setting = {name: value for name, value in parameters.items() if name not in ("variant", "step")}
    return item.path, item.originalname, tuple(setting.items())


def long_name(item):
    """The long group that a case belongs to, or None."""
    marker = item.get_closest_marker("long")
    return marker.args[0] if marker else None


def asked_by_name(config):
    """Whether someone chose: by --long, -k, -m, a file or a node id."""
    named = any("::" in argument or argument.endswith(".py") for argument in config.args)
    return bool(config.getoption("long") or config.option.keyword or config.option.markexpr or named)


def gpus_needed(item):
    return max((marker.args[0] for marker in item.iter_markers("gpus")), default=0)


def without_gpus(items, gpus):
    """(cases that can run, {GPUs needed: cases that need more than were found})."""
    cases, shortfalls = [], {}
    for item in items:
        need = gpus_needed(item)
        (cases if need <= gpus else shortfalls.setdefault(need, [])).append(item)
    return cases, shortfalls


def reason(need, gpus, items):
    """The line that says why these cases are skipped."""
    return f"needs {need} CUDA device{'s' * (need > 1)}, found {gpus} ({len(items)} cases in one line)"


def files(items):
    """How many cases of which file, as text."""
    counts = Counter(item.path.stem.removeprefix("test_speed_") for item in items)
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def names_of_measurements(items):
    """{measurement: the long group that its time is charged to}, the measurements with a long case."""
    return {measurement(item): long_name(item) for item in items if long_name(item)}


def whole(items, choice, gpus):
    """The long groups of which every case that can run here was chosen."""
    cases, _ = without_gpus(items, gpus)
    names = names_of_measurements(cases)
    gaps = {names[measurement(item)] for item in set(cases) - set(choice) if measurement(item) in names}
    return set(names.values()) - gaps


def recorded_times(device=None, folder=RECORDS):
    """{long group: (seconds, device, date)} of the newest record that says so, one of this device before all others."""
    candidates = {}
    for path in sorted(Path(folder).glob("*/*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        for name, seconds in (record.get("took") or {}).items() if isinstance(record, dict) else ():
            record_device, date = record["machine"]["device"], record["date"]
            candidates.setdefault(name, []).append(
                ((record_device == device, date), (seconds, record_device, date[:10]))
            )
    return {name: max(times)[1] for name, times in candidates.items()}


def help_text():
    """What --help says of --long."""
    times = recorded_times()
    groups = "; ".join(f"{name}: {what} ({how_long(name, times)})" for name, what in LONG.items())
    return f"run the long groups, too; -k NAME, a file or a node id runs what it names. {groups}"


def how_long(name, times):
    """What is known of a long group's time, as text."""
    if name not in times:
        return "no record says how long it takes"
    seconds, device, date = times[name]
    return f"{seconds:.0f} s on {device}, {date}"
