"""metrics.jsonl and TensorBoard's events: cut at a line, no line lost or twice on a full disk, hostile files
refused."""

import errno
import json
import os
from types import SimpleNamespace

import pytest
from inner_cases import every
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter
from tiny_run import LAST, PER_EPOCH, add_to_step, assert_same_end, lines, newest, resume, run

from alexnet_mp.runs import metrics
from alexnet_mp.runs.metrics import Metrics, read_metrics, take_over
from alexnet_mp.system.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread", "quick")
LINES = [
    b'{"kind": "train", "step": 1, "loss": 2.5}\n',
    b'{"kind": "train", "step": 2, "loss": 2.25}\n',
    b'{"kind": "val", "step": 2, "loss": 3.0}\n',
]
WHOLE = b"".join(LINES)


@pytest.fixture
def disk(monkeypatch):
    """Stands under `os.pwrite` of metrics.py: `room` bytes can still be written, None = all; at most `piece` at a
    time."""
    state = SimpleNamespace(room=None, piece=None, calls=0)

    def pwrite(file, content, offset):
        state.calls += 1
        count = min(len(content), *(limit for limit in (state.room, state.piece) if limit is not None), len(content))
        if content and not count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if state.room is not None:
            state.room -= count
        return os.pwrite(file, content[:count], offset)

    monkeypatch.setattr(metrics, "os", SimpleNamespace(**vars(os) | {"pwrite": pwrite}))
    return state


def shown(directory, tag):
    accumulator = EventAccumulator(str(directory / "tensorboard"), {"scalars": 0})
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


# --- cut at a line


@every(
    "keep, left",
    [
        (0, 0),
        (1, 0),
        (len(LINES[0]) - 1, 0),
        (len(LINES[0]), 1),
        (len(LINES[0]) + 1, 1),
        (len(WHOLE) - 1, 2),
        (len(WHOLE), 3),
    ],
)
def test_what_is_kept_ends_with_a_line(keep, left, tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(WHOLE)
    prefix = b"".join(LINES[:left])
    run = Metrics(tmp_path, keep, 1)
    assert (tmp_path / "metrics.jsonl").read_bytes() == prefix and run.missing == keep - len(prefix)
    run.log("train", step=3, loss=1.0)
    assert run.length() == len(prefix) + 42
    run.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == prefix + b'{"kind": "train", "step": 3, "loss": 1.0}\n'


def test_a_file_that_is_too_short_is_said_by_how_much(tmp_path):
    for content, left in ((b"", 0), (WHOLE[:-5], 2), (WHOLE, 3)):
        (tmp_path / "metrics.jsonl").write_bytes(content)
        run = Metrics(tmp_path, len(WHOLE) + 100, 2)
        run.close()
        prefix = b"".join(LINES[:left])
        assert (tmp_path / "metrics.jsonl").read_bytes() == prefix and run.missing == len(WHOLE) + 100 - len(prefix)


@every("garbage", [1, 65535, 65536, 65537, 200_000])
def test_a_long_cut_off_line_goes_whole(garbage, tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(WHOLE + b"x" * garbage)
    Metrics(tmp_path, len(WHOLE) + garbage, 1).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == WHOLE


def test_without_any_line_end_nothing_is_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b"x" * 150_000)
    Metrics(tmp_path, 150_000, 1).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_lines_that_nobody_would_write_do_no_harm(tmp_path):
    """Of a file that was edited, or belongs to something else: they stay in the file, and make no events."""
    odd_lines = [
        b"\n",
        b"[]\n",
        b"\xff\xfe\n",
        b'{"kind": 5, "step": 9}\n',
        b'{"kind": "a", "step": 1e3}\n',
        b'{"kind": "a", "step": 1%s}\n' % (b"0" * 400),
        b'{"kind": "a", "step": 9, "self": 1, "x": 1%s}\n' % (b"0" * 400),
        b"[" * 5000 + b"\n",
        b'{"kind": "a", "step": 9, "x": NaN}\n',
        b'{"kind": "a", "step": 9, "protocol": 7, "y": 1.5}\n',
        b'{"kind": "\\ud800", "step": 9, "y": 1.5}\n',
        b'{"step": 1%s}\n' % (b"0" * 5000),
    ]
    content = b"".join(odd_lines) + WHOLE
    (tmp_path / "metrics.jsonl").write_bytes(content)
    run = Metrics(tmp_path, len(content), 2)
    run.close()
    assert run.missing == 0 and (tmp_path / "metrics.jsonl").read_bytes() == content
    assert shown(tmp_path, "train/loss") == [(2, 2.25)] and shown(tmp_path, "val/loss") == [(2, 3.0)]


def test_reading_leaves_a_cut_off_line_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(WHOLE[:-1])
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


# --- files that somebody put there


def put_link(path):
    (path.parent / "target").write_bytes(WHOLE)
    path.symlink_to("target")


@every(
    "put",
    [put_link, os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/full")],
    ids=["link", "fifo", "directory", "link to a device"],
)
def test_what_is_no_regular_file_is_refused(put, tmp_path):
    put(tmp_path / "metrics.jsonl")
    files = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UserError, match="metrics.jsonl"):
        Metrics(tmp_path, 10, 1)
    assert len(os.listdir("/proc/self/fd")) == files
    if (tmp_path / "target").exists():
        assert (tmp_path / "target").read_bytes() == WHOLE


@every(
    "put",
    [put_link, os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero"), lambda path: None],
    ids=["link", "fifo", "directory", "link to a device", "nothing"],
)
def test_metrics_of_another_run_that_cannot_be_read_are_left_out(put, tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    put(tmp_path / "old" / "metrics.jsonl")
    take_over(tmp_path / "old", tmp_path / "new", 10)
    assert not list((tmp_path / "new").iterdir())


def test_metrics_of_another_run_are_taken_over_up_to_the_checkpoint(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    (tmp_path / "old" / "metrics.jsonl").write_bytes(WHOLE)
    take_over(tmp_path / "old", tmp_path / "new", len(LINES[0]))
    assert (tmp_path / "new" / "metrics.jsonl").read_bytes() == LINES[0]


# --- a full disk


@every("piece", [None, 1, 7])
@every("room", [0, 1, 41, 42, 50, 100])
def test_no_line_is_lost_and_none_is_twice(room, piece, tmp_path, disk):
    run = Metrics(tmp_path)
    run.log("train", step=1)
    disk.room, disk.piece = room, piece
    for step in range(2, 6):
        run.log("train", step=step)
    assert run.failure.errno == errno.ENOSPC and run.failure.filename == str(tmp_path / "metrics.jsonl")
    with pytest.raises(OSError):
        run.length()
    disk.room = None
    run.log("train", step=6)
    assert run.failure is None
    assert run.length() == (tmp_path / "metrics.jsonl").stat().st_size
    run.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_disk_that_fails_again_and_again(tmp_path, disk):
    run = Metrics(tmp_path)
    for step in range(300):
        disk.room = step * 37 % 90
        run.log("train", step=step, loss=step / 7)
    disk.room = None
    run.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(300))


def test_lines_that_can_not_be_written_at_the_end_are_an_error(tmp_path, disk):
    run = Metrics(tmp_path)
    disk.room = 0
    run.log("train", step=1)
    with pytest.raises(OSError):
        run.close()
    run.close()  # a second time there is nothing to do


def test_a_number_that_is_not_finite_is_no_json(tmp_path):
    run = Metrics(tmp_path)
    with pytest.raises(ValueError):
        run.log("train", step=1, loss=float("nan"))
    run.log("train", step=1, loss=1.0)
    run.close()
    assert [line["loss"] for line in read_metrics(tmp_path)] == [1.0]


@pytest.mark.run
def test_a_run_on_a_disk_that_is_full_for_a_while(data, tmp_path, disk, capsys, monkeypatch):
    """It is said once; nothing of it is missing in the end."""
    whole = run(data, tmp_path / "whole")

    def fill(trainer):
        disk.room = 30

    def clear(trainer):
        disk.room = None

    with monkeypatch.context() as patch:
        add_to_step(patch, 2, fill)
        add_to_step(patch, 6, clear)
        out = run(data, tmp_path / "run")
    output = capsys.readouterr().out
    assert output.count("WARNING: cannot write metrics.jsonl") == 1 and "No space left" in output
    assert "WARNING: cannot write the checkpoint of step 3" in output  # the first best one
    assert_same_end(out, whole)


def test_a_run_on_a_full_disk_can_be_stopped_by_policy(data, tmp_path, disk, monkeypatch):
    run(data, tmp_path / "run", "--steps", 2)
    before = newest(tmp_path / "run")
    add_to_step(monkeypatch, 3, lambda trainer: setattr(disk, "room", 0))
    with pytest.raises(
        UserError, match=f"No space left on device; --on-save-error continue would go on.*{before.name}"
    ):
        resume(data, tmp_path / "run", "--on-save-error", "stop")
    assert newest(tmp_path / "run") == before


@pytest.mark.run
def test_a_run_that_ends_on_a_full_disk_says_so(data, tmp_path, disk, monkeypatch):
    run(data, tmp_path / "run", "--steps", 2)
    before = newest(tmp_path / "run")
    with monkeypatch.context() as patch:
        add_to_step(patch, 4, lambda trainer: setattr(disk, "room", 0))
        with pytest.raises(UserError, match="after step 9, but not all of it could be written: .*No space left.*"):
            resume(data, tmp_path / "run")
    assert before.is_dir()
    disk.room = None
    whole = run(data, tmp_path / "whole")
    resume(data, tmp_path / "run")
    assert_same_end(tmp_path / "run", whole)


# --- TensorBoard alone


def test_events_repeat_the_lines(tmp_path):
    run = Metrics(tmp_path)
    run.log("train", step=1, epoch=1, loss=2.5)
    run.log("schedule", step=1, epoch=1, learning_rates={"a": 1.0}, colour_noise=0.25)
    run.log("test", step=1, epoch=1, split="val", protocol="centre view", loss=3.5)
    run.log("test", step=1, epoch=1, split="val", protocol="ten views", loss=4.5)
    run.close()
    assert shown(tmp_path, "train/loss") == [(1, 2.5)] and shown(tmp_path, "schedule/colour_noise") == [(1, 0.25)]
    assert shown(tmp_path, "test/centre_view/loss") == [(1, 3.5)] and shown(tmp_path, "test/ten_views/loss") == [
        (1, 4.5)
    ]


@every(
    "put",
    [lambda path: path.write_bytes(b""), lambda path: path.symlink_to("nowhere"), os.mkfifo],
    ids=["file", "dangling link", "fifo"],
)
def test_no_directory_for_events_ends_nothing_but_them(put, tmp_path):
    put(tmp_path / "tensorboard")
    run = Metrics(tmp_path)
    assert isinstance(run.events.failure, OSError)
    run.log("train", step=1)
    run.events.flush()
    run.close()
    assert len(read_metrics(tmp_path)) == 1


@pytest.mark.run
def test_events_that_can_not_be_written_end_nothing_but_them(data, tmp_path, monkeypatch, capsys):
    whole, count, write = run(data, tmp_path / "whole"), 0, RecordWriter.write

    def failing(self, content):
        nonlocal count
        count += 1
        if count > 2 + PER_EPOCH:
            raise OSError(errno.EIO, "Input/output error")
        write(self, content)

    monkeypatch.setattr(RecordWriter, "write", failing)
    out = run(data, tmp_path / "run")
    assert capsys.readouterr().out.count("WARNING: no TensorBoard events any more: Input/output error") == 1
    assert_same_end(out, whole)
    assert [line["step"] for line in lines(out) if line["kind"] == "train"] == list(range(1, LAST + 1))


def test_events_on_a_full_disk_lose_no_error(tmp_path):
    """A flush that fails, and the close after it, which would write the same again."""
    run = Metrics(tmp_path)
    run.events.file.close()
    run.events.file = open("/dev/full", "wb")
    run.events.records = RecordWriter(run.events.file)
    run.log("train", step=1, loss=1.0)
    run.events.flush()
    assert run.events.failure.errno == errno.ENOSPC and run.failure is None
    run.log("train", step=2, loss=1.0)
    run.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_bytes().splitlines()[1])["step"] == 2
