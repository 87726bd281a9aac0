"""What torchrun, which starts the processes of a job, is told and tells: its environment, and how it is ended. Of the
standard library alone: `doctor` needs it where all else is broken."""

import atexit
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress

STARTED_BY = os.getppid()  # torchrun, if any; another one once that is gone
LAST_WORDS = 1  # second that one process has to print a line for all: torchrun ends all at the first that is gone
STUCK = 30  # seconds in which torchrun, which looks ten times a second, has not noticed that one of its processes ended


def of_torchrun() -> int:
    """The number of processes that torchrun started as this job; 0 where it did not start this one."""
    count = os.environ.get("WORLD_SIZE", "1")
    return int(count) if "TORCHELASTIC_RUN_ID" in os.environ and count.isdecimal() else 0


def is_first() -> bool:
    """Whether this process speaks for all of a job where they need not be asked: rank 0, or the only one."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def spoken_by_the_first() -> Iterator[None]:
    """The first process of each machine prints what all processes of a job print alike, such as how a command is typed;
    the others are silent, and give it the time to. torchrun does not start again what was typed wrong."""
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        with ExitStack() as silence:
            if not first:
                devnull = silence.enter_context(open(os.devnull, "w", encoding="utf-8"))
                silence.enter_context(redirect_stdout(devnull))
                silence.enter_context(redirect_stderr(devnull))
            yield
    except SystemExit as system_exit:
        if system_exit.code:
            not_again()
        if not first:
            time.sleep(LAST_WORDS)
        raise


def not_again() -> None:
    """What was asked for can't be done: this process, when it has said so, ends torchrun, which would start all
    processes of this machine again. torchrun has no other way to hear of it."""
    retries = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) - int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    if retries > 0:
        atexit.register(_end_torchrun)


def _end_torchrun():
    sys.stderr.flush()
    if os.getppid() == STARTED_BY:
        os.kill(STARTED_BY, signal.SIGTERM)


def end_if_stuck() -> None:
    """To be called by a process that ends because a link to the store was cut. Where torchrun asks that store, it waits
    in the library for an answer (c10d::TCPStore::doWait), hears of nothing, no signal either, and would go on when the
    kernel gives the connection up, after a quarter of an hour. A process that stays behind ends it."""
    if not of_torchrun():
        return
    with suppress(OSError):  # a kernel before 5.3
        torchrun, pid = os.pidfd_open(STARTED_BY), os.getpid()
        if os.getppid() != STARTED_BY or os.fork():
            return
        try:
            os.setsid()
            os.closerange(0, torchrun)
            os.closerange(torchrun + 1, 1 << 20)
            looks = 0
            while looks < STUCK:
                time.sleep(1)
                with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:  # until torchrun has noticed its end
                    looks += stat.read().rpartition(")")[2].split()[0] == "Z"
            signal.pidfd_send_signal(torchrun, signal.SIGKILL)
        finally:
            os._exit(0)
