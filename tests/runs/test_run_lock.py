"""One run at a time in a directory: a lock that a process holds until its end, whatever its end is, and that no file
can spoil."""

import json
import os
import resource
import signal

import pytest
from disk import forked
from faulty_calls import odd_files
from inner_cases import every

from alexnet_mp.runs.lock import LOCK, RunLock
from alexnet_mp.system.errors import UserError


def holding(directory, then=lambda: None):
    """A process that holds the lock: (its id, a descriptor at whose closing it ends by itself, without a clean end)."""
    ready, go = os.pipe(), os.pipe()

    def hold():
        os.close(go[1])
        then()
        RunLock(directory)
        os.write(ready[1], b"x")
        os.read(go[0], 1)

    process = forked(hold)
    for descriptor in (ready[1], go[0]):
        os.close(descriptor)
    assert os.read(ready[0], 1) == b"x"
    os.close(ready[0])
    return process, go[1]


def kill(process, descriptor):
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    os.close(descriptor)


def refused(directory):
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UserError) as error:
        RunLock(directory)
    assert "\n" not in str(error.value) and len(os.listdir("/proc/self/fd")) == before
    return str(error.value)


def test_a_clean_end_leaves_nothing_to_say(tmp_path, capsys):
    for _ in range(2):
        lock = RunLock(tmp_path)
        assert json.loads((tmp_path / LOCK).read_bytes())["pid"] == os.getpid()
        lock.release()
        lock.release()
        assert (tmp_path / LOCK).read_bytes() == b""
    assert capsys.readouterr().out == ""


@pytest.mark.process
def test_the_second_is_refused_by_the_name_of_the_first_and_takes_over_when_that_is_killed(tmp_path, capsys):
    process, descriptor = holding(tmp_path)
    message = refused(tmp_path)
    assert f"{tmp_path} is in use: process {process} on '{os.uname().nodename}', since 20" in message
    assert "choose another --out" in message
    assert capsys.readouterr().out == ""
    kill(process, descriptor)
    RunLock(tmp_path).release()
    output = capsys.readouterr().out
    assert (
        output.count("\n") == 1
        and f"the lock of process {process} on" in output
        and "is stale" in output
        and "taken over" in output
    )
    RunLock(tmp_path).release()
    assert capsys.readouterr().out == ""


@pytest.mark.process
def test_a_child_that_outlives_its_parent_holds_nothing(tmp_path, capsys):
    """A worker process that hangs, after the run was killed."""
    ready, go = os.pipe(), os.pipe()

    def parent():
        RunLock(tmp_path)

        def child():
            os.close(go[1])
            os.write(ready[1], b"x")
            os.read(go[0], 1)

        forked(child)
        os.read(ready[0], 1)

    assert os.waitpid(forked(parent), 0)[1] == 0
    RunLock(tmp_path).release()
    assert "is stale" in capsys.readouterr().out
    for descriptor in ready + go:
        os.close(descriptor)


@pytest.mark.process
def test_a_full_disk_keeps_nobody_from_locking(tmp_path):
    process, descriptor = holding(tmp_path, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)))
    assert "is in use: another process writes to it" in refused(tmp_path)
    kill(process, descriptor)
    RunLock(tmp_path).release()


@every(
    "content",
    [
        b"garbage",
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 5000,
        b'{"pid": 1e400, "host": "a", "since": "2026-01-01"}',
        b'{"pid": ' + b"9" * 5000 + b', "host": "a", "since": "2026-01-01"}',
        b'{"pid": "x", "host": "a", "since": "2026-01-01"}',
        b'{"pid": 1, "host": "a", "since": "now\\n\\u001b[31m"}',
        b'{"pid": 1, "host": "a", "since": 5}',
        b"\0" * 10**6,
        b"x" * 10**6,
    ],
    ids=[
        "garbage",
        "empty",
        "list",
        "null",
        "no UTF-8",
        "deep",
        "infinite",
        "huge",
        "no number",
        "no time",
        "time of a number",
        "zeros",
        "long",
    ],
)
def test_garbage_in_the_lock(content, tmp_path, capsys):
    (tmp_path / LOCK).write_bytes(content)
    lock = RunLock(tmp_path)
    assert "the lock of another process is stale" in capsys.readouterr().out
    assert json.loads((tmp_path / LOCK).read_bytes())["pid"] == os.getpid()
    lock.release()


def test_a_name_that_would_write_on_the_terminal(tmp_path, capsys):
    (tmp_path / LOCK).write_text(
        json.dumps({"pid": 7, "host": "\x1b[31m\n\ud800" + "x" * 500, "since": "2026-01-01T00:00:00"})
    )
    RunLock(tmp_path).release()
    output = capsys.readouterr().out
    assert (
        output.count("\n") == 1
        and "process 7 on '\\x1b[31m\\n\\ud800xxx" in output
        and len(output) < 400 + len(str(tmp_path))
    )


def test_what_is_no_file_is_neither_written_to_nor_waited_for(tmp_path):
    for number, path in enumerate(odd_files(tmp_path)[:5]):
        directory = tmp_path / f"run{number}"
        directory.mkdir()
        path.rename(directory / LOCK)
        assert f"cannot lock {directory}: {directory}/{LOCK}" in refused(directory)
    assert (tmp_path / "file").read_bytes() == b"content" and not (tmp_path / "nowhere").exists()


def test_no_directory_to_lock(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for directory in (tmp_path / "nowhere", tmp_path / "file", "/proc"):
        assert f"cannot lock {directory}" in refused(directory)


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.lockf", lambda *_: (_ for _ in ()).throw(OSError(37, "No locks available")))
    assert "No locks available" in refused(tmp_path)
