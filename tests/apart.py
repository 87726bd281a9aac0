"""Processes with a tower, or a pair of them, each, on gloo: what they return, say, and end with.

They are forks of the test's own process; torchrun starts them as a user's in `tests/training/test_torchrun.py`."""

import os
import pickle
import signal
import tempfile
import time
from functools import partial
from pathlib import Path

import pytest
import torch.distributed as dist
from forked_process import Process
from tiny_run import TINY, add_to_step, lines

from alexnet_mp import train
from alexnet_mp.system import launcher
from alexnet_mp.system.errors import run_command
from alexnet_mp.system.job import joined

TIMEOUT = 100  # seconds; none of them takes ten where a processor is free


class Agent:
    """As torchrun's, has the store of which the processes of a job are clients: in a process of its own, since a fork
    of one that has threads may hang."""

    def __init__(self):
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
                os.write(writer, str(store.port).encode())
                signal.pause()
            finally:
                os._exit(1)
        os.close(writer)
        self.port = os.read(reader, 100).decode()
        os.close(reader)

    def end(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def environments(count, port):
    """What torchrun sets for each process."""
    return [
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
        for rank in range(count)
    ]


def begin(*functions):
    """Start a process for each function, as the ranks of a job."""
    agent = Agent()
    places = environments(len(functions), agent.port)
    processes = [
        Process(partial(_ranks_own, function), place) for function, place in zip(functions, places, strict=True)
    ]
    for process in processes:
        process.agent = agent
    return processes


def _ranks_own(function):
    """No torchrun ends the others here when the first has gone: it needs no second for what it has to say."""
    launcher.LAST_WORDS = 0.05
    return function()


def end(processes, timeout=TIMEOUT):
    """Wait until all have ended, which none outlives: [their statuses]."""
    deadline = time.monotonic() + timeout
    try:
        while not all([process.has_ended() for process in processes]):
            output = "".join(process.out + process.err for process in processes)
            assert time.monotonic() < deadline, f"{[process.status for process in processes]}\n{output}"
            time.sleep(0.02)
    finally:
        for process in processes:
            if not process.has_ended():
                os.killpg(process.pid, signal.SIGKILL)
                os.waitpid(process.pid, 0)
        processes[0].agent.end()
    return [process.status for process in processes]


def in_all(count, function, *arguments, apart=True):
    """[what function(ranks, *arguments) returns in each process] of a job of so many."""
    place = Path(tempfile.mkdtemp())

    def call():
        with joined(apart) as ranks:
            result = function(ranks, *arguments)
        (place / str(ranks.rank)).write_bytes(pickle.dumps(result))

    processes = begin(*[call] * count)
    assert end(processes) == [0] * count, [process.err for process in processes]
    return [pickle.loads((place / str(rank)).read_bytes()) for rank in range(count)]


def training(*arguments, before=lambda: None):
    """A function that trains as the command does. before: is called first, to patch something."""

    def command():
        before()
        run_command(lambda: train.main([*map(str, arguments)]), several=True)

    return command


def said(processes):
    """The lines on standard error of all processes."""
    return [line for process in processes for line in process.err.splitlines() if line.strip()]


def processes_of(data, out, *more, before=lambda: None, count=2, towers="apart"):
    """A run of so many processes, begun."""
    command = training(*TINY, "--towers", towers, "--data", data, "--out", out, *more, before=before)
    return begin(*[command] * count)


def run_apart(data, out, *more, before=lambda: None, **job):
    processes = processes_of(data, out, *more, before=before, **job)
    assert end(processes) == [0] * len(processes), [process.err for process in processes]
    assert said(processes) == [] and not any(process.out for process in processes[1:])
    return out, processes[0].out


def in_rank(rank, action):
    """In one of the processes alone."""

    def before():
        if os.environ["RANK"] == str(rank):
            action(pytest.MonkeyPatch())

    return before


def at_step(step, action):
    return lambda patch: add_to_step(patch, step, action)


def ends(data, out, *more, before, status=2, **job):
    """The one line that the processes say when they end; those that say nothing end with 2."""
    processes = processes_of(data, out, *more, before=before, **job)
    statuses = end(processes)
    assert len(said(processes)) == 1, said(processes)
    assert set(statuses) <= {status, 2}, statuses
    return said(processes)[0]


@pytest.fixture
def without_bytes(monkeypatch):
    """Metrics are compared without what crossed: within one device that is nothing."""

    def without(out):
        return [{name: value for name, value in line.items() if name != "bytes_exchanged"} for line in lines(out)]

    monkeypatch.setattr("tiny_run.lines", without)
