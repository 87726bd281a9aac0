"""`metrics.jsonl` while a run writes it: read on from where the last look ended, and held as columns of numbers.

A run of ninety epochs has a million lines; none is read twice, and a step is 48 bytes here."""

import json
from array import array
from contextlib import suppress
from pathlib import Path

from ..system import durable_files
from .metrics import METRICS

MOST_BYTES = 4 << 20  # read at once; a longer line is none of a run's
MARK = 256  # last bytes that were read, which have to be there still
TRAIN = ("step", "epoch", "loss", "top1_error", "images_per_second", "bytes_exchanged")
TESTED = ("step", "epoch", "loss", "top1_error", "top5_error", "images")


class FollowedMetrics:
    """The lines of a run so far.

    steps: {name: array of float64} of TRAIN, a value a step. tested, scheduled: the lines of kinds "val" and "test",
    and "schedule", as dicts, in order. A line that is no JSON, lacks a number or has one that is not finite is left
    out, a last one without its end is waited for."""

    def __init__(self, run: str | Path):
        self.path = Path(run) / METRICS
        self._begin()

    def _begin(self):
        self.offset, self.mark = 0, b""
        self.steps = {name: array("d") for name in TRAIN}
        self.tested, self.scheduled = [], []

    def read(self) -> None:
        """Read what was written since; all of it, where a run that goes on took lines back. Raises OSError, but not of
        a file that is missing: there are no lines yet."""
        while self._read_some():
            pass

    def _read_some(self):
        """Whether there may be more."""
        try:
            content = durable_files.part(self.path, self.offset - len(self.mark), len(self.mark) + MOST_BYTES)
        except FileNotFoundError:
            self._begin()
            return False
        if not content.startswith(self.mark):  # cut, and perhaps written on
            self._begin()
            return True
        new = content[len(self.mark) :]
        whole = new[: new.rfind(b"\n") + 1]
        for text in whole.split(b"\n"):
            with suppress(ValueError, RecursionError):
                self._take(json.loads(text))
        self.offset += len(whole)
        self.mark = (self.mark + whole)[-MARK:]
        return len(new) == MOST_BYTES and bool(whole)

    def _take(self, line):
        kind = line.get("kind") if isinstance(line, dict) else None
        if kind == "train" and _numbers(line, TRAIN):
            for name, values in self.steps.items():
                values.append(line[name])
        elif kind in ("val", "test") and _numbers(line, TESTED) and isinstance(line.get("protocol", ""), str):
            self.tested.append(line)
        elif kind == "schedule" and _numbers(line, ("step", "epoch")) and _rates(line.get("learning_rates")):
            self.scheduled.append(line)


def _numbers(line, names):
    """Whether the line has these, all finite and of a size that a float64 has."""
    return all(_number(line.get(name)) for name in names)


def _rates(rates):
    return isinstance(rates, dict) and all(map(_number, rates.values()))


def _number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
