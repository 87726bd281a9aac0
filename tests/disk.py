"""What the tests of checkpoints stand on: tiny checkpoints, system calls that fail or kill, small disks that really are
full."""

import errno
import importlib.util
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from faulty_calls import Faulty

from alexnet_mp.runs import checkpoints
from alexnet_mp.system import durable_files
from alexnet_mp.training import trainer

specification = importlib.util.spec_from_file_location(
    "kill_saves", Path(__file__).parent.parent / "tools" / "kill_saves.py"
)
kill_saves = importlib.util.module_from_spec(specification)
specification.loader.exec_module(kill_saves)
checkpoint_of, holds_what_it_should, forked = (
    kill_saves.checkpoint_of,
    kill_saves.holds_what_it_should,
    kill_saves.forked,
)


def put_all(run, *steps, top1_errors=()):
    """Checkpoints of these steps, validated where an error is given."""
    run.mkdir(exist_ok=True)
    for number, step in enumerate(steps):
        checkpoints.put(run, checkpoint_of(step, dict(enumerate(top1_errors)).get(number)))
    return run


def names(run):
    """What lies in a run's `checkpoints`, whatever it is."""
    return sorted(os.listdir(run / checkpoints.CHECKPOINTS))


def failing(original, *arguments, **options):
    """A fault of `Faulty`: an I/O error without a file's name. What was to be closed is closed, as by Linux."""
    if original is os.close:
        original(*arguments)
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def killed(original, *arguments, **_):
    """A fault of `Faulty`: SIGKILL; a write is half done then."""
    if original is os.write:
        original(arguments[0], arguments[1][: len(arguments[1]) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


class Dying(Faulty):
    """As `Faulty`, where all calls after number `at` fail too: a disk that doesn't come back."""

    def __getattr__(self, name):
        if self.at is not None and len(self.calls) > self.at:
            self.at = len(self.calls)
        return super().__getattr__(name)


@contextmanager
def below_files(fake):
    """Put a stand-in for `os` under `files`, without monkeypatch, which a forked child has no part in."""
    durable_files.os = fake
    try:
        yield
    finally:
        durable_files.os = os


def at_steps(monkeypatch, actions):
    """Let a run in this process do {step: action(trainer)} right after a step was taken, when all saves before it have
    ended."""
    one_step = trainer.Trainer.one_step

    def step_and_act(self, batch):
        one_step(self, batch)
        if self.step in actions:
            self.checkpoints.saver.wait()
            actions[self.step](self)

    monkeypatch.setattr(trainer.Trainer, "one_step", step_and_act)
    return actions


def add_gate(monkeypatch, owner, name):
    """(gate, starts): each call of `owner.name` releases `starts` once, and waits until `gate` is released once."""
    function, gate, starts = getattr(owner, name), threading.Semaphore(0), threading.Semaphore(0)

    def gated(*arguments):
        starts.release()
        assert gate.acquire(timeout=60)
        return function(*arguments)

    monkeypatch.setattr(owner, name, gated)
    return gate, starts


class SmallDisk:
    """A tmpfs of some megabytes, in the namespace of a shell that mounted it; from here it is reached through /proc."""

    def __init__(self, place, megabytes):
        self.place = place
        self.shell = subprocess.Popen(
            ["unshare", "-m", "sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if (problem := self.tell(f"mount -t tmpfs -o size={megabytes}m none '{place}'")) != "0":
            self.end()
            pytest.skip(f"no disk can be mounted here: {problem}")
        self.path = Path(f"/proc/{self.shell.pid}/root{place}")

    def tell(self, command):
        """The exit status of a shell command in the namespace, as text, or the last thing it said."""
        try:
            self.shell.stdin.write(f"{command} 2>&1; echo $?\n")
            self.shell.stdin.flush()
        except BrokenPipeError:
            pass
        return self.shell.stdout.readline().strip()

    def fill(self):
        """Not a byte more goes on it until `free`."""
        with open(self.path / "filler", "ab", buffering=0) as file:
            for size in (1 << 20, 4096, 1):
                try:
                    while file.write(bytes(size)) == size:
                        pass
                except OSError:
                    continue

    def free(self):
        (self.path / "filler").unlink()

    def end(self):
        self.shell.stdin.close()
        self.shell.wait(10)
        self.shell.stdout.close()


@pytest.fixture
def small_disk(tmp_path):
    if not sys.platform.startswith("linux"):
        pytest.skip("namespaces are Linux's")
    (tmp_path / "disk").mkdir()
    disks = []

    def make(megabytes):
        disks.append(SmallDisk(tmp_path / "disk", megabytes))
        return disks[-1]

    yield make
    for disk in disks:
        disk.end()
