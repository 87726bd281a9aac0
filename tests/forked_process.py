"""A process that is a fork of the tests' own, which has imported everything: two seconds of processor time less than a
command of its own.

Signals, sessions, locks, exit codes and what is written are those of any process. How the interpreter starts and ends
is not tried: tests of that start a command as a user does."""

import faulthandler
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

from alexnet_mp.system.errors import run_command


class Process:
    """Calls a function, in an environment and a session of its own, and ends with the status that it returns.

    environment: what is added to this one's. out, err: descriptors to write to instead of files."""

    def __init__(self, function, environment=None, out=None, err=None):
        self.place = Path(tempfile.mkdtemp())
        self.pid, self.status = os.fork(), None
        if self.pid == 0:
            status = 1
            try:
                faulthandler.disable()
                os.setsid()
                for number, name, descriptor in ((1, "out", out), (2, "err", err)):
                    target = os.open(self.place / name, os.O_WRONLY | os.O_CREAT) if descriptor is None else descriptor
                    os.dup2(target, number)
                sys.stdout, sys.stderr = (open(number, "w", closefd=False, buffering=1) for number in (1, 2))
                sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
                os.environ.update(environment or {})
                tempfile.tempdir = None
                torch.set_num_threads(1)
                status = function()
            except SystemExit as system_exit:
                status = system_exit.code
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(status or 0)

    @property
    def out(self):
        return (self.place / "out").read_text() if (self.place / "out").exists() else ""

    @property
    def err(self):
        return (self.place / "err").read_text() if (self.place / "err").exists() else ""

    def has_ended(self):
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is not None

    def until(self, condition, seconds=120):
        """Wait until something is true, which has to be while the process runs."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert not self.has_ended() and time.monotonic() < deadline, f"{self.status}\n{self.out}\n{self.err}"
            time.sleep(0.02)

    def wait(self, seconds=60):
        """The status that it ends with; the negative number of a signal."""
        deadline = time.monotonic() + seconds
        while not self.has_ended():
            if time.monotonic() > deadline:
                os.killpg(self.pid, signal.SIGKILL)
                raise AssertionError(f"it has not ended within {seconds} s\n{self.out}\n{self.err}")
            time.sleep(0.02)
        return self.status

    def leaves_none(self, seconds=10):
        """Whether, soon after its end, no process of its session is left: one whose parent was killed has to notice."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                return True
            time.sleep(0.02)
        return False

    def signal(self, number):
        os.kill(self.pid, number)


def command(main, *words, before=lambda: None, **more):
    """The process of a command: its `main`, and the words that a user types behind it. before: is called first."""

    def function():
        before()
        run_command(lambda: main([*map(str, words)]))

    return Process(function, **more)
