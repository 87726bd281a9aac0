"""The lock between processes, held here twice by one: flock(2) tells open files apart, not processes."""

import errno
import fcntl
import os
import threading

import pytest

from alexnet_mp.system import file_lock
from alexnet_mp.system.errors import UserError
from alexnet_mp.system.file_lock import held


def test_after_its_seconds_a_busy_one_is_refused(tmp_path):
    with held(tmp_path / "new" / "lock", "it is busy"):
        with pytest.raises(UserError, match="^it is busy$"), held(tmp_path / "new" / "lock", "it is busy", 0.1):
            pass
    with held(tmp_path / "new" / "lock", "it is busy", 0.1):
        pass


def test_without_seconds_it_is_waited_for_and_said_once(tmp_path, monkeypatch):
    messages, waits = [], threading.Event()
    monkeypatch.setattr(file_lock, "say", lambda words: (messages.append(words), waits.set()))
    entries = []

    def second():
        with held(tmp_path / "lock", "it is busy"):
            entries.append("second")

    thread = threading.Thread(target=second)
    with held(tmp_path / "lock", "it is busy"):
        thread.start()
        assert waits.wait(60) and not entries
    thread.join(60)
    assert entries == ["second"] and messages == ["it is busy"]


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    """Else the next process would lock a new file of that name beside this one."""
    lock, flock, removals = tmp_path / "work" / "lock", fcntl.flock, []

    def remove_first(*arguments):
        if not removals:
            lock.unlink()
            removals.append(lock.parent.rmdir())
        return flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with held(lock, "it is busy"):
        with pytest.raises(UserError, match="busy"), held(lock, "it is busy", 0):
            pass
    assert removals and lock.exists()


def test_what_cannot_be_locked_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=f"^cannot write {tmp_path}/file"), held(tmp_path / "file" / "lock", "busy"):
        pass

    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match=f"^cannot lock {tmp_path}/lock: No locks"), held(tmp_path / "lock", "busy"):
        pass
