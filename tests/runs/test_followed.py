"""Metrics that are read while they are written, and whether anybody writes."""

import json
import os

from told_runs import judged, step

from alexnet_mp.runs import followed
from alexnet_mp.runs.followed import FollowedMetrics
from alexnet_mp.runs.lock import LOCK, RunLock, is_held


def lines(*entries):
    return "".join(json.dumps(line) + "\n" for line in entries).encode()


def steps(metrics):
    metrics.read()
    return [int(number) for number in metrics.steps["step"]]


def test_metrics_are_read_as_they_grow(tmp_path, monkeypatch):
    """A torn line, what is no line of a run, a file that is cut, written on, or not there; a few bytes at once."""
    monkeypatch.setattr(followed, "MOST_BYTES", 700)
    path, metrics = tmp_path / "metrics.jsonl", FollowedMetrics(tmp_path)
    assert steps(metrics) == []
    first = lines(*(step(number) for number in (1, 2, 3)))
    path.write_bytes(first[:-30])
    assert steps(metrics) == [1, 2]
    path.write_bytes(first)
    assert steps(metrics) == [1, 2, 3] == steps(metrics)
    contents = [
        b"\xff\xfe\n",
        b"null\n[]\n{}\n",
        b"[" * 99_000 + b"\n",
        lines(
            step(4, loss=None), step(4, loss=float("nan")), step(4, loss=10**400), step(4, step="4"), step(4, step=True)
        ),
        lines({"kind": "train"}, {"kind": ["train"]}, judged(2, images="20"), judged(2, protocol=3)),
        lines(judged(2, images=0), judged(2, images=2.5), judged(2, top1_error=1e300), judged(2, "test"), step(4.5)),
        lines({"kind": "schedule", "step": 0, "epoch": 1, "learning_rates": {"conv1.weight": "0.1"}}),
    ]
    monkeypatch.setattr(followed, "MOST_BYTES", 1 << 17)
    for content in contents:
        with open(path, "ab") as file:
            file.write(content)
        assert steps(metrics) == [1, 2, 3] and metrics.tested == metrics.scheduled == []
    # a run that goes on takes lines back and writes others, also more of them than there were
    path.write_bytes(lines(step(1), judged(1), *(step(number, loss=2.0) for number in range(2, 9)), step(9)))
    assert steps(metrics) == list(range(1, 10)) and metrics.steps["loss"][1] == 2.0 and len(metrics.tested) == 1
    path.write_bytes(lines(step(1)))
    assert steps(metrics) == [1] and metrics.tested == []
    path.unlink()
    assert steps(metrics) == []
    who_writes(tmp_path)


def who_writes(tmp_path):
    """It is asked without a lock."""
    assert not is_held(tmp_path) and not is_held(tmp_path / "none")
    there, here = os.pipe()
    ready, go = os.pipe()
    if (child := os.fork()) == 0:
        lock = RunLock(tmp_path)
        os.write(here, b"h")
        os.read(ready, 1)
        lock.release()
        os._exit(0)
    os.read(there, 1)
    assert is_held(tmp_path) and is_held(tmp_path)
    os.write(go, b"g")
    os.waitpid(child, 0)
    assert not is_held(tmp_path)
    (tmp_path / LOCK).write_text("of a run that was killed")
    assert not is_held(tmp_path)
    RunLock(tmp_path).release()  # asking left nothing behind
