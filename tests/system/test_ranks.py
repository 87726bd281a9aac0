"""Who speaks for a job that ends, where the store that all meet in answers, fails, or says nothing; how all end."""

import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from types import SimpleNamespace

import apart
import pytest
import torch.distributed as dist
from inner_cases import every

from alexnet_mp.system import launcher, ranks
from alexnet_mp.system.errors import UserError, run_command
from alexnet_mp.system.job import joined
from alexnet_mp.system.ranks import InVain, Lost, Ranks
from alexnet_mp.system.terminal import CONSOLE


class Store:
    """What `torch.distributed`'s is asked. answer: called for every question."""

    def __init__(self, answer):
        self.add = self.check = lambda *_: answer()
        self.set = lambda *_: None


def fails():
    raise RuntimeError("Connection reset by peer")


def test_the_first_to_end_speaks():
    assert Ranks(1, 2, store=Store(lambda: 1)).speaks()
    assert not Ranks(1, 2, store=Store(lambda: 2)).speaks()
    assert Ranks().speaks()


def test_who_can_ask_nobody_speaks(monkeypatch):
    """A link was cut: of itself a client of the store waits for its answer without end."""
    monkeypatch.setattr(ranks, "ANSWERED", 0.05)
    silent = threading.Event()
    assert Ranks(1, 2, store=Store(fails)).speaks()
    assert Ranks(1, 2, store=Store(silent.wait)).speaks()
    # Of each machine one does.
    assert [Ranks(rank, 4, rank % 2, 2, Store(fails)).speaks() for rank in range(4)] == [True, False, True, False]
    monkeypatch.setattr(dist, "barrier", lambda *_, **__: SimpleNamespace(is_completed=lambda: False))
    with pytest.raises(Lost, match="the processes' store does not answer"):
        Ranks(1, 2, store=Store(silent.wait)).meet()
    silent.set()


def meetings():
    """Of two processes: one is late, then gives no sign of life. The other has no time for either in a step."""
    ranks.BEAT = 0.02
    with joined(apart=False) as each:
        ranks.PATIENCE = timedelta(seconds=0.3)
        if each.rank == 1:
            time.sleep(1)
        each.meet()
        if each.rank == 1:
            ranks.BEAT = 1000
            time.sleep(10)
            os._exit(0)
        each.meet()


@pytest.mark.slow
@pytest.mark.process
def test_a_meeting_lasts_as_long_as_all_give_signs_of_life():
    """However long they take; one that hangs is said after what a step waits for."""
    processes = apart.begin(*[lambda: run_command(meetings, several=True)] * 2)
    assert apart.end(processes) == [2, 0]
    (line,) = apart.said(processes)
    assert "ended, or can't be reached (rank 1 gave no sign of life for 0 s); --resume auto" in line


def test_the_torchruns_of_all_machines_are_ended_once(monkeypatch):
    """By the process that says what is wrong, and by the first of each other machine."""
    ends = []
    monkeypatch.setattr(launcher, "LAST_WORDS", 0)
    for fault in (True, False):
        store = dist.HashStore()
        for rank in (3, 0, 1, 2, 4, 5):
            monkeypatch.setattr(launcher, "not_again", lambda: ends.append((fault, rank)))
            each = Ranks(rank, 6, rank % 2, 2, store)
            if each.speaks():
                if fault:
                    each.not_again()
            else:
                each.wait_for_last_words()
    assert ends == [(True, 3), (True, 0), (True, 4)]


LEAVES = """
import sys, time
import torch.distributed as dist
from alexnet_mp.system import job
from alexnet_mp.system.errors import run_command
job.LEAVES = 1
dist.destroy_process_group = lambda: time.sleep(1000)
dist.is_initialized = lambda: True
def main():
    with job.joined(apart=True):
        pass
run_command(main, several=True)
"""


@pytest.mark.process
def test_a_line_is_said_before_what_may_hang_and_that_is_bounded():
    environment = apart.environments(1, "0")[0] | {"TORCHELASTIC_USE_AGENT_STORE": "False"}
    process = subprocess.run(
        [sys.executable, "-c", LEAVES], env=os.environ | environment, capture_output=True, text=True, timeout=100
    )
    assert process.returncode == -signal.SIGALRM
    assert process.stderr == (
        "error: --towers apart: a process a tower is an even number of them, not 1; torchrun --nproc-per-node 2\n"
    )


STUCK = """
import os, sys, time
worker = os.fork()
if worker == 0:
    from alexnet_mp.system import launcher
    launcher.STUCK = 1
    launcher.end_if_stuck()
    os._exit(2)
if sys.argv[1] == "reaps":
    os.waitpid(worker, 0)
    time.sleep(4)
else:
    time.sleep(1000)
"""


@pytest.mark.slow
@pytest.mark.process
def test_a_torchrun_that_notices_no_end_is_ended():
    """One that does is left alone: it may start all again."""
    environment = os.environ | {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2"}
    for way, status in (("hangs", -signal.SIGKILL), ("reaps", 0)):
        process = subprocess.run([sys.executable, "-c", STUCK, way], env=environment, timeout=100)
        assert process.returncode == status


def test_no_thread_is_left_in_the_store(monkeypatch):
    """The interpreter's end would find it there, and abort."""
    monkeypatch.setattr(ranks, "BEAT", 0.01)
    inside = threading.Event()
    store = SimpleNamespace(add=lambda *_: inside.set() or time.sleep(0.3))
    with Ranks(0, 2, store=SimpleNamespace(clone=lambda: store)).alive():
        assert inside.wait(10)
    assert "alive" not in {thread.name for thread in threading.enumerate()}


def test_what_was_asked_in_vain_is_not_started_again(monkeypatch):
    """Where there are restarts left; by one process as by several."""
    ends = []
    monkeypatch.setattr(launcher.atexit, "register", ends.append)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    monkeypatch.setattr(launcher, "LAST_WORDS", 0)

    def ended(within, error):
        del ends[:]
        with pytest.raises(type(error)):
            with within as alone:
                if isinstance(error, InVain | OSError):
                    alone.begun = True
                raise error
        return bool(ends)

    for local_rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        assert ended(launcher.spoken_by_the_first(), SystemExit(2))  # options that nobody knows
        assert not ended(launcher.spoken_by_the_first(), SystemExit(0))  # --help
    assert ended(joined(apart=False), UserError("no such directory"))
    assert ended(joined(apart=False), InVain("the loss is nan"))
    assert not ended(joined(apart=False), OSError("a full disk"))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert not ended(joined(apart=False), UserError("no such directory"))


@every("place", [{"WORLD_SIZE": "abc"}, {"WORLD_SIZE": "2", "RANK": "foo", "MASTER_ADDR": "localhost"}])
def test_an_environment_that_is_none_is_one_line(place, monkeypatch):
    monkeypatch.setattr(CONSOLE, "quiet", False)  # and put it back
    for name, value in {"RANK": "0", "MASTER_PORT": "29999", **place}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="the processes don't find each other: "):
        with joined(apart=False):
            pass
