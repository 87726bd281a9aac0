"""How the processes of one job find each other, and how they end: together, with one line."""

import atexit
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist

from . import launcher, ranks
from .errors import UserError
from .terminal import CONSOLE

LEAVES = 20  # seconds that a process which has said why it ends takes for the rest
# NCCL's watchdog ends a process without a line: the hosts, which wait for each other in every step, are to notice
# first.
AFTER_HOSTS = timedelta(minutes=2)


@contextmanager
def joined(apart: bool) -> Iterator[ranks.Ranks]:
    """Yields the `Ranks` of this process: of those that torchrun started, or alone.

    apart: whether each tower has a process of its own; else each process has a pair of towers. However the processes
    end, one of them says why, with its status; the others end with 2, or 130 at a second Ctrl-C, without a word. Raises
    UserError."""
    if not apart and os.environ.get("WORLD_SIZE", "1") == "1":
        only_process = ranks.Ranks()
        try:
            yield only_process
        except UserError as error:
            if not only_process.begun or isinstance(error, ranks.InVain):
                launcher.not_again()
            raise
        return
    CONSOLE.quiet = not launcher.is_first()
    process = _ranks(apart)
    try:
        with process.reached():
            ranks.answer(process.refuse_other_towers, 2 * ranks.PATIENCE.total_seconds())
        if process.count % process.towers:
            raise UserError(
                f"--towers apart: a process a tower is an even number of them, not {process.count}; "
                f"torchrun --nproc-per-node {process.count + 1}"
            )
        with process.reached():
            ranks.answer(lambda: _make_groups(process), 2 * ranks.PATIENCE.total_seconds())  # which have their own
        with process.alive():
            process.meet()  # one that ended while others still connect to it would have them say so, in torch's words
            yield process
    except BaseException as error:
        speaks = not isinstance(error, ranks.SaidElsewhere) and process.speaks()
        atexit.register(_leave)  # the last thing of all: NCCL may wait there, and torchrun is told before
        if speaks:
            CONSOLE.quiet = False
            asked_in_vain = isinstance(error, UserError) and not isinstance(error, ranks.Lost) and not process.begun
            if asked_in_vain or isinstance(error, ranks.InVain):
                process.not_again()
        else:
            with suppress(KeyboardInterrupt):  # torchrun's, which ends all when the one that speaks has gone
                process.wait_for_last_words()
        if speaks:
            raise
        raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 2) from None
    else:
        dist.destroy_process_group()


def _make_groups(process):
    # Else NCCL's watchdog leaves word of a timeout in torchrun's store, where the processes that are started again
    # find it and end.
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "0")
    dist.init_process_group(
        # Tensors on GPUs travel by NCCL, those on the host by gloo.
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=dist.PrefixStore("group", process.store),
        rank=process.rank,
        world_size=process.count,
        timeout=ranks.PATIENCE,
    )
    process.meeting_place = dist.new_group(backend="gloo", timeout=timedelta(days=1000))
    timeout = ranks.PATIENCE + (AFTER_HOSTS if torch.cuda.is_available() else timedelta())
    if process.apart:  # all processes make all groups
        # NCCL wants all processes of a group at its first operation: those of another pair may have no images for it.
        pairs = [dist.new_group([first, first + 1], timeout=timeout) for first in range(0, process.count, 2)]
        process.pair_group = pairs[process.pair]
    if process.pairs > 1:
        # NCCL has one communicator for two processes, whatever their devices, so that each tower has a group of its
        # own, also where a process has both.
        step = process.towers
        process.groups = [
            dist.new_group(list(range(tower % step, process.count, step)), timeout=timeout) for tower in (0, 1)
        ]


def _leave():
    """Leave the groups when all is said: NCCL may wait there for what never comes. Then the kernel ends this process,
    also while the interpreter takes itself apart, when no thread and no handler runs any more."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(LEAVES)
    if dist.is_initialized():
        dist.destroy_process_group()


def _ranks(apart):
    """As the environment has it, with the store that the processes meet in. Where that isn't found, or a signal comes
    first, the first process of each machine, or of the job, says so, and the others end without a word."""
    command = "torchrun --nproc-per-node 2 -m alexnet_mp.train --towers apart ..."
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        raise UserError(
            f"--towers apart: a process a tower, and torchrun starts them: {command}"
            if apart
            else f"WORLD_SIZE is set without RANK: torchrun sets both: {command}"
        )
    local_rank = os.environ.get("LOCAL_RANK", os.environ["RANK"])
    try:
        store, rank, count = ranks.answer(
            lambda: next(iter(dist.rendezvous("env://", timeout=ranks.PATIENCE))), 2 * ranks.PATIENCE.total_seconds()
        )
        # torchrun's agent keeps its store when it starts the processes again.
        store = dist.PrefixStore(f"alexnet_mp/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        local_count = int(os.environ.get("LOCAL_WORLD_SIZE", count))
        return ranks.Ranks(rank, count, int(local_rank), local_count, store, apart)
    except KeyboardInterrupt:
        if launcher.is_first():
            raise
        raise SystemExit(130) from None
    except (ValueError, RuntimeError) as error:
        if local_rank == "0" or not local_rank.isdecimal():
            why = (str(error).splitlines() or [""])[0]
            raise UserError(f"the processes don't find each other: {why}; {command}") from None
        time.sleep(launcher.LAST_WORDS)
        raise SystemExit(2) from None
