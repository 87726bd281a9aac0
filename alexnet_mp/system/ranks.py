"""The processes of one job, as torchrun starts them: who writes, what all agree on, and how they end together.

`Ranks` of one process ask nobody, so that who uses them need not know how many there are. What is agreed on travels
between the hosts by gloo; tensors of the towers are `network/exchange_processes.py`'s."""

import atexit
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from .errors import UserError
from .terminal import CONSOLE

PATIENCE = timedelta(minutes=5)  # for what the others do in a step; a link that was cut is noticed after that
ANSWERED = 10  # seconds for the store to answer
ANNOUNCED = 60  # seconds that a process waits for the line of the one that speaks for all
LAST_WORDS = 1  # second that this one has to print it: torchrun ends all processes at the first that is gone
POLL = 0.05  # seconds between two looks at the store
ENDED, MET = "ended", "met"  # keys in the store
_END = object()


class Lost(UserError):
    """Another process ended, or can't be reached."""


class SaidElsewhere(UserError):
    """All processes end here, and another says why."""


class Ranks:
    """This process, number `rank` of `count`, and what it asks the others. Every method has to be called by all of
    them, in the same order; each raises `Lost` where one can't be reached.

    local_rank, local_count: the same on this machine. store: of `torch.distributed`; None where there is one process.
    apart: whether each tower has a process of its own. Ranks 0 and 1 are then the first pair's towers, 2 and 3 the
    second's; else each process has a pair.
    """

    def __init__(
        self,
        rank: int = 0,
        count: int = 1,
        local_rank: int = 0,
        local_count: int = 1,
        store: dist.Store | None = None,
        apart: bool = False,
    ):
        self.rank, self.count, self.local_rank, self.local_count = rank, count, local_rank, local_count
        self.apart, self.towers = apart, 2 if apart else 1  # towers: processes that a pair has
        self.store, self.meetings = store, 0
        self.groups = []  # one a tower: the processes that have it, for what the pairs send each other
        self.begun = False  # whether the training has: until then a failure is one of what was asked for
        self.in_step = count == 1  # whether, where this process fails, all others do so at the same place

    @property
    def writes(self) -> bool:
        """Whether this is the process that keeps the run directory and talks to the user."""
        return self.rank == 0

    @property
    def pair(self) -> int:
        """The number of this process's pair of towers."""
        return self.rank // self.towers

    @property
    def pairs(self) -> int:
        return self.count // self.towers

    @property
    def tower(self) -> int:
        """Which tower this process has; 0 where it has both."""
        return self.rank % self.towers

    def any(self, flag: bool) -> bool:
        """Whether the flag is true in any process."""
        if self.count == 1:
            return flag
        found = torch.tensor(int(flag))
        with self.reached():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return bool(found)

    def least(self, number: int) -> int:
        """The smallest of all processes' numbers."""
        if self.count == 1:
            return number
        found = torch.tensor(number)
        with self.reached():
            dist.all_reduce(found, dist.ReduceOp.MIN)
        return int(found)

    def first(self, value: Any) -> Any:
        """Rank 0's value. It is pickled; between processes of one job, that is no risk."""
        if self.count == 1:
            return value
        values = [value]
        with self.reached():
            dist.broadcast_object_list(values)
        return values[0]

    def gather(self, value: Any) -> list:
        """Every process's value, in the order of the ranks."""
        values = [None] * self.count
        if self.count == 1:
            return [value]
        with self.reached():
            dist.all_gather_object(values, value)
        return values

    def refuse_difference(self, facts: Callable[[], dict[str, str]]) -> None:
        """Raise UserError where one of the facts is not the same in all processes."""
        if self.count == 1:
            return
        found = self.gather(facts())
        for name in found[0]:
            if differing := [rank for rank, other in enumerate(found) if other[name] != found[0][name]]:
                raise UserError(
                    f"the processes of this job differ in {name}: {found[0][name]:.80} in rank 0, "
                    f"{found[differing[0]][name]:.80} in rank {differing[0]}; all have to be started alike"
                )

    def meet(self) -> None:
        """Wait for the others, however long they take: to read all images, or for a disk. A signal is heard."""
        if self.count == 1:
            return
        self.meetings += 1
        names = [f"{MET}/{self.meetings}/{rank}" for rank in range(self.count)]
        with self.reached():
            self.store.set(names[self.rank], "")
            while not self._store_says(lambda: self.store.check(names)):
                if self._store_says(lambda: self.store.check([ENDED])):
                    raise SaidElsewhere
                time.sleep(POLL)

    def in_turn(self, pipeline: Any) -> Any:
        """A `Pipeline` that gives each batch when those of the other processes have theirs."""
        return pipeline if self.count == 1 else _InTurn(self, pipeline)

    def most(self, number: int) -> int:
        """The largest of all processes' numbers."""
        return -self.least(-number)

    def together(self, items: Iterator) -> Iterator:
        """The items of a generator, each when all processes have theirs; None once it has no more while others do.
        Where one fails, all end, in step."""
        with closing(items):
            while True:
                item = error = None
                try:
                    item = next(items, _END)
                except Exception as raised:
                    error = raised
                most = self.most(2 if error else 0 if item is _END else 1)
                self.in_step = most == 2
                if self.in_step:
                    raise error or SaidElsewhere("another process can't go on")
                if most == 0:
                    return
                yield None if item is _END else item

    @contextmanager
    def reached(self) -> Iterator[None]:
        """What torch.distributed raises within becomes `Lost`."""
        try:
            yield
        except RuntimeError as error:
            self.in_step = False
            line = (str(error).splitlines() or [type(error).__name__])[0].rpartition("] ")[2]
            raise Lost(
                f"another process of this job ended, or can't be reached ({line.partition('. This is')[0]}); "
                "--resume auto goes on from the newest checkpoint"
            ) from None

    def speaks(self) -> bool:
        """Whether this process is the first that ends before its time, and so the one that says why; also where nobody
        can be asked."""
        try:
            return self.store is None or self._store_says(lambda: self.store.add(ENDED, 1)) == 1
        except RuntimeError:  # the store went with its process, or a link to it was cut
            return True

    def wait_for_last_words(self) -> None:
        """Until another process has said why all of them end."""
        deadline = time.monotonic() + ANNOUNCED
        with suppress(RuntimeError):
            while not self._store_says(lambda: self.store.check([ENDED])) and time.monotonic() < deadline:
                time.sleep(POLL)
        time.sleep(LAST_WORDS)

    def _store_says(self, ask):
        """The store's answer. Raises RuntimeError where none comes: of itself a client waits for one without end."""
        answers = queue.SimpleQueue()

        def wait():
            try:
                answers.put((ask(), None))
            except Exception as error:
                answers.put((None, error))

        threading.Thread(target=wait, name="the store", daemon=True).start()
        try:
            answer, error = answers.get(timeout=ANSWERED)
        except queue.Empty:
            raise RuntimeError("the processes' store does not answer") from None
        if error is not None:
            raise error
        return answer


ALONE = Ranks()


class _InTurn:
    def __init__(self, ranks, pipeline):
        self.ranks, self.pipeline = ranks, pipeline

    def train(self, *how):
        return self.ranks.together(self.pipeline.train(*how))

    def views(self, *how):
        return self.ranks.together(self.pipeline.views(*how))


@contextmanager
def joined(apart: bool) -> Iterator[Ranks]:
    """Yields the `Ranks` of this process: of those that torchrun started, or alone.

    apart: whether each tower has a process of its own; else each process has a pair of towers. However the processes
    end, one of them says why, with its status; the others end with 2, or 130 at a second Ctrl-C, without a word. Raises
    UserError."""
    if not apart and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    ranks = _ranks(apart)
    CONSOLE.quiet = not ranks.writes
    try:
        if ranks.count % ranks.towers:
            raise UserError(
                f"--towers apart: a process a tower is an even number of them, not {ranks.count}; "
                f"torchrun --nproc-per-node {ranks.count + 1}"
            )
        with ranks.reached():
            dist.init_process_group(
                # Tensors on GPUs travel by NCCL, those on the host by gloo.
                "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                store=dist.PrefixStore("group", ranks.store),
                rank=ranks.rank,
                world_size=ranks.count,
                timeout=PATIENCE,
            )
            if ranks.pairs > 1:
                # All processes make all groups. NCCL has one communicator for two processes, whatever their devices,
                # so that each tower has a group of its own, also where a process has both.
                step = ranks.towers
                ranks.groups = [
                    dist.new_group(list(range(tower % step, ranks.count, step)), timeout=PATIENCE) for tower in (0, 1)
                ]
        ranks.meet()  # one that ended while others still connect to it would have them say so, in torch's words
        yield ranks
    except BaseException as error:
        if not isinstance(error, SaidElsewhere) and ranks.speaks():
            CONSOLE.quiet = False
            if isinstance(error, UserError) and not isinstance(error, Lost) and not ranks.begun:
                _not_again()
            raise
        ranks.wait_for_last_words()
        raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 2) from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def spoken_by_the_first() -> Iterator[None]:
    """What all processes of a job print alike, as how a command is typed, is printed by rank 0, which the others give
    the time for."""
    if os.environ.get("RANK", "0") == "0":
        yield
        return
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield
    except SystemExit:
        time.sleep(LAST_WORDS)
        raise


def _not_again():
    """What was asked for can't be done: torchrun, which would start all processes again, is ended when this one has
    said so. It has no other way to hear of it."""
    left = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) - int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    if left > 0:
        atexit.register(_end_torchrun)


def _end_torchrun():
    sys.stderr.flush()
    os.kill(os.getppid(), signal.SIGTERM)


def _ranks(apart):
    """As the environment has it, with the store that the processes meet in."""
    how = "torchrun --nproc-per-node 2 -m alexnet_mp.train --towers apart ..."
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        raise UserError(
            f"--towers apart: a process a tower, and torchrun starts them: {how}"
            if apart
            else f"WORLD_SIZE is set without RANK: torchrun sets both: {how}"
        )
    try:
        store, rank, count = next(iter(dist.rendezvous("env://", timeout=PATIENCE)))
        # torchrun's agent keeps its store when it starts the processes again.
        store = dist.PrefixStore(f"alexnet_mp/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        local = (int(os.environ.get(name, here)) for name, here in (("LOCAL_RANK", rank), ("LOCAL_WORLD_SIZE", count)))
        return Ranks(rank, count, *local, store, apart)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the processes don't find each other: {(str(error).splitlines() or [''])[0]}; {how}") from None
