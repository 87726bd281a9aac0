"""What a run reports while it runs: `metrics.jsonl`, one JSON object a line, and the same numbers as TensorBoard
events.

A full disk loses no line: what can't be written waits in memory, and is tried again with every line and every
checkpoint."""

import json
import math
import os
import socket
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ..system import durable_files
from ..system.errors import UserError

METRICS, EVENTS = "metrics.jsonl", "tensorboard"
MOST_BYTES = 1 << 30  # of metrics.jsonl: four million steps
LAST_BYTES = 1 << 16  # of metrics.jsonl: the lines of one step are a few hundred
TRAIN = ("step", "epoch", "loss", "top1_error", "images_per_second", "bytes_exchanged")
TESTED = ("step", "epoch", "loss", "top1_error", "top5_error", "images")


class Metrics:
    """`metrics.jsonl` and `tensorboard/` of a run directory.

    keep: how many bytes stay of a file that is there already, those up to the checkpoint that a run goes on from; step:
    its step, None where a run begins. `failure` is the OSError of the last attempt to write a line, None if it was
    written. Raises UserError where the file can't be used."""

    def __init__(self, directory: str | Path, keep: int = 0, step: int | None = None):
        self.path, self.failure, self.waiting, self.events = Path(directory) / METRICS, None, b"", None
        with durable_files.writing(self.path):
            self.file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
            status = os.fstat(self.file)
            if not stat.S_ISREG(status.st_mode):
                os.close(self.file)
                raise UserError(f"{self.path} is not a regular file; move it away")
            self.written = _whole_lines(self.file, min(keep, status.st_size))
            os.ftruncate(self.file, self.written)
        self.missing = keep - self.written  # bytes of it that are not there: what a crash of the whole machine can cost
        self.events = Events(Path(directory) / EVENTS, step)
        if step is not None:
            for line in _last_lines(self.file, self.written):
                if line["step"] >= step:
                    with suppress(ValueError, OverflowError):  # no text, or no number, that TensorBoard could hold
                        self._add_events(line)

    def log(self, kind: str, **values: object) -> None:
        """One line, and its numbers as TensorBoard scalars `kind/name`. Numbers must be finite; values has "step"."""
        self.waiting += json.dumps({"kind": kind, **values}, allow_nan=False).encode() + b"\n"
        try:
            self._write()
            self.failure = None
        except OSError as error:
            self.failure = error
        self._add_events({"kind": kind, **values})

    def _add_events(self, line):
        kind = f"{line['kind']}/{line['protocol']}".replace(" ", "_") if "protocol" in line else line["kind"]
        self.events.add(
            line["step"],
            {
                f"{kind}/{name}": value
                for name, value in line.items()
                if isinstance(value, (int, float)) and name not in ("step", "epoch") and abs(value) < math.inf
            },
        )

    def length(self) -> int:
        """Bytes of the file, with all lines in it. Raises OSError where they can't be written."""
        self._write()
        self.failure = None
        return self.written

    def sync(self) -> None:
        """All that is written survives a crash of the machine. Any thread may call it."""
        os.fsync(self.file)

    def close(self) -> None:
        """Raises OSError where the last lines can't be written."""
        self.events.close()
        if self.file is not None:
            try:
                self._write()
            finally:
                os.close(self.file)
                self.file = None

    def _write(self):
        try:
            while self.waiting:
                count = os.pwrite(self.file, self.waiting, self.written)
                self.written, self.waiting = self.written + count, self.waiting[count:]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None


class Events:
    """TensorBoard's event files. They repeat what `metrics.jsonl` says, so that a failure to write them ends nothing
    but them."""

    def __init__(self, directory: Path, step: int | None):
        # Imported late: only training needs it.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.event, self.summary, self.failure, self.file = Event, Summary, None, None
        try:
            directory.mkdir(exist_ok=True)
            place = f"{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"
            name = f"events.out.tfevents.{time.time_ns() // 10**9:010}.{place}"
            self.file = open(directory / name, "xb")
            self.records = RecordWriter(self.file)
            self._put(Event(wall_time=time.time(), file_version="brain.Event:2"))
            # TensorBoard then forgets what earlier files say of this step and later ones. Of this step too: a
            # validation, a test or new rates after it may not be in the checkpoint. What is, `Metrics` adds again.
            if step is not None:
                self._put(Event(wall_time=time.time(), step=step, session_log=SessionLog(status=SessionLog.START)))
            self.file.flush()
        except OSError as error:
            self._give_up(error)

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """{tag: number} of one step."""
        if self.file is not None:
            values = [self.summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
            try:
                self._put(self.event(wall_time=time.time(), step=step, summary=self.summary(value=values)))
            except OSError as error:
                self._give_up(error)

    def flush(self) -> None:
        try:
            if self.file is not None:
                self.file.flush()
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        self.flush()
        if self.file is not None:
            self.file.close()
            self.file = None

    def _put(self, event):
        self.records.write(event.SerializeToString())

    def _give_up(self, error):
        self.failure = error
        if self.file is not None:
            try:
                self.file.close()
            except OSError:  # what it still held can't be written either
                pass
            self.file = None


def read_metrics(path: str | Path) -> list[dict]:
    """The lines of a run's `metrics.jsonl` as dicts, in order; a last line that was cut off, and what is no JSON, is
    left out."""
    lines = []
    for text in (Path(path) / METRICS).read_text(errors="replace", encoding="utf-8").splitlines(keepends=True):
        try:
            line = json.loads(text) if text.endswith("\n") else None
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and "kind" in line:
            lines.append(line)
    return lines


def sound_metrics(path: str | Path) -> list[dict]:
    """The lines of `read_metrics` that `is_sound`; none where there is no file. Raises UserError where it can't be
    read."""
    try:
        return list(filter(is_sound, read_metrics(path)))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{Path(path) / METRICS}: {error.strerror}") from None


def is_sound(line: object) -> bool:
    """Whether a line, as JSON gives it, is one that a run writes: it has what a line of its kind is read for, and
    numbers that are finite and can be."""
    kind = line.get("kind") if isinstance(line, dict) else None
    if kind == "train":
        return _numbers(line, TRAIN)
    if kind in ("val", "test"):
        return (
            _numbers(line, TESTED)
            and all(isinstance(line.get(name, ""), str) for name in ("protocol", "split"))
            and ("protocol" in line or kind == "val")
            and isinstance(line["images"], int)
            and line["images"] > 0
            and all(0 <= line[name] <= 100 for name in ("top1_error", "top5_error"))
        )
    rates = line.get("learning_rates") if kind == "schedule" else None
    return isinstance(rates, dict) and all(map(_number, rates.values())) and _numbers(line, ("step", "epoch"))


def _numbers(line, names):
    """Whether the line has these, all finite and of a size that a float64 has; steps and epochs are counted."""
    return all(_number(line.get(name)) for name in names) and all(
        isinstance(line[name], int) and 0 <= line[name] < 1 << 53 for name in ("step", "epoch")
    )


def _number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def take_over(run: str | Path, directory: str | Path, length: int) -> None:
    """Begin a run's metrics with the first `length` bytes of another's, where they can be read."""
    try:
        content = durable_files.read(Path(run) / METRICS, MOST_BYTES)[:length]
    except OSError:  # a checkpoint that was copied without its run
        return
    durable_files.replace(Path(directory) / METRICS, content)


def _last_lines(file, length):
    """The last lines of the file's first `length` bytes as dicts, those that are some."""
    start = max(0, length - LAST_BYTES)
    lines = os.pread(file, length - start, start).split(b"\n")[start > 0 :]
    entries = []
    for line in lines:
        with suppress(ValueError, RecursionError):
            content = json.loads(line)
            if (
                isinstance(content, dict)
                and isinstance(content.get("kind"), str)
                and isinstance(content.get("step"), int)
            ):
                entries.append(content)
    return entries


def _whole_lines(file, length):
    """The largest number of bytes up to `length` that ends with a line."""
    step = 1 << 16
    while length:
        start = max(0, length - step)
        end = os.pread(file, length - start, start).rfind(b"\n")
        if end >= 0:
            return start + end + 1
        length = start
    return 0
