"""Calls in a process of their own: one that raises, kills its process or never ends harms nobody but that process.

An illegal address on a GPU makes every later call of its process fail, so a call that failed is the last there.
"""

import json
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

LIMIT = 60  # seconds that a call has
STARTING = 300  # seconds until the first call: imports, from a cold or far disk
ENDING = 10  # seconds that a killed process has: one within a driver may never go
POLL = 0.1  # seconds between two looks whether the process is still there
PASSED, FAILED, UNCHECKED = "passed", "failed", "unchecked"

# -P: nothing is imported from the current directory.
COMMAND = (
    "-P",
    "-c",
    """import sys
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
sys.path[:] = connection.recv()
from alexnet_mp.system.isolated import serve
serve(connection)""",
)


class Wrong(Exception):
    """What a call raises where it has found something wrong: in words that go on after the name of what is wrong."""


class Unfit(Exception):
    """What a call raises where it can't find out, for a reason that lies elsewhere."""


@dataclass(frozen=True)
class Outcome:
    state: str  # PASSED, FAILED, or UNCHECKED: it could not be called, or `Unfit`
    why: str = ""  # in words


def outcomes(
    calls: Sequence[tuple[Callable[..., object], tuple]], prepare: tuple[Callable[..., object], tuple] = (print, ())
) -> Generator[Outcome, None, None]:
    """The `Outcome`s of calls, (function, arguments) each, in order, until one has not passed: that is the last.

    They are made in one new process, with what is imported there; functions and arguments are pickled. A call that
    takes longer than LIMIT has failed. prepare: a call before them that has STARTING; where it fails, or the process
    can't be had, the outcome of the first call is UNCHECKED. To be closed, or read to its end.
    """
    parent_end, child_end = multiprocessing.Pipe()
    process = None
    try:
        try:
            process = _start(child_end)
        except OSError as error:
            yield Outcome(UNCHECKED, f"no process can be started for it: {error.strerror or error}")
            return
        child_end.close()
        with suppress(OSError):  # it has ended already, which is found out at once
            parent_end.send(sys.path)
            parent_end.send_bytes(pickle.dumps((prepare, calls)))
        start = _answer(parent_end, process, STARTING)
        if start.state != PASSED:
            yield Outcome(UNCHECKED, start.why if start.state == UNCHECKED else f"the process for it {start.why}")
            return
        for _ in calls:
            outcome = _answer(parent_end, process, LIMIT)
            yield outcome
            if outcome.state != PASSED:
                return
    finally:
        parent_end.close()
        child_end.close()
        if process is not None:
            _end(process)


def _start(connection):
    """A process that serves a connection."""
    devnull = subprocess.DEVNULL
    # In a session of its own: a terminal's Ctrl-C is for this process, which ends that one.
    return subprocess.Popen(
        [sys.executable, *COMMAND, str(connection.fileno())],
        pass_fds=[connection.fileno()],
        stdin=devnull,
        stdout=devnull,
        stderr=devnull,
        start_new_session=True,
    )


def _answer(connection, process, limit):
    """The next `Outcome` that the process sends."""
    end = time.monotonic() + limit
    try:
        while not connection.poll(min(POLL, max(0, end - time.monotonic()))):
            if process.poll() is not None and not connection.poll():
                return Outcome(FAILED, _exit_words(process.returncode))
            if time.monotonic() >= end:
                return Outcome(FAILED, f"gives no answer within {limit:g} s")
        return Outcome(**json.loads(connection.recv_bytes()))
    except (EOFError, OSError):
        with suppress(subprocess.TimeoutExpired):
            process.wait(ENDING)
        return Outcome(FAILED, _exit_words(process.returncode))


def _exit_words(status):
    if status is not None and status < 0:
        with suppress(ValueError):
            return f"ends its process by {signal.Signals(-status).name}"
    return f"ends its process with status {status}"


def _end(process):
    """Kill a process and those that it started, unless it has ended and none are left."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(ENDING)


def serve(connection: Connection) -> None:
    """What the new process does: see `outcomes`."""
    # A crash here is an answer, and needs no core file.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    try:
        prepare, calls = pickle.loads(connection.recv_bytes())
    except BaseException as error:
        _send(connection, Outcome(FAILED, _words(error)))
        return
    threading.Thread(target=_end_with_parent, args=(connection,), daemon=True).start()
    for function, arguments in (prepare, *calls):
        outcome = _call(function, arguments)
        _send(connection, outcome)
        if outcome.state != PASSED:
            break
    while True:  # until the parent ends this process: its own end might fail, or hang
        time.sleep(1)


def _call(function, arguments):
    try:
        function(*arguments)
        return Outcome(PASSED)
    except (Unfit, MemoryError) as error:
        return Outcome(UNCHECKED, str(error) or "out of memory")
    except BaseException as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
            return Outcome(UNCHECKED, "out of memory")
        return Outcome(FAILED, str(error) if isinstance(error, Wrong) else _words(error))


def _send(connection, outcome):
    connection.send_bytes(json.dumps(vars(outcome)).encode())


def _words(error):
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"raises {type(error).__name__}" + (f": {lines[0][:300]}" if lines else "")


def _end_with_parent(connection):
    """Wait for the parent's end, and end this process with its group: the parent sends nothing more."""
    with suppress(EOFError, OSError):
        connection.recv_bytes()
    if os.getpgrp() == os.getpid():  # nobody's group but this process's own
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)
