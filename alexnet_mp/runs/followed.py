"""`metrics.jsonl` while a run writes it: read on from where the last look ended, and held as columns of numbers.

A run of ninety epochs has a million lines; none is read twice, and a step is 48 bytes here."""

import json
from array import array
from contextlib import suppress
from pathlib import Path

from ..system import durable_files
from .metrics import METRICS, TRAIN, is_sound

MOST_BYTES = 4 << 20  # read at once; a longer line is none of a run's
MARK = 256  # last bytes that were read, which have to be there still


class FollowedMetrics:
    """The lines of a run so far.

    steps: {name: array of float64} of TRAIN, a value a step. tested, scheduled: the lines of kinds "val" and "test",
    and "schedule", as dicts, in order. A line that is no JSON, or not `is_sound`, is left out, a last one without its
    end is waited for."""

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
        tail = content[len(self.mark) :]
        lines = tail[: tail.rfind(b"\n") + 1]
        for text in lines.split(b"\n"):
            with suppress(ValueError, RecursionError):
                self._take(json.loads(text))
        self.offset += len(lines)
        self.mark = (self.mark + lines)[-MARK:]
        return len(tail) == MOST_BYTES and bool(lines)

    def _take(self, line):
        if not is_sound(line):
            return
        if line["kind"] == "train":
            for name, values in self.steps.items():
                values.append(line[name])
        else:
            (self.scheduled if line["kind"] == "schedule" else self.tested).append(line)
