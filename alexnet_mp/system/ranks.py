"""The processes of one job, as torchrun starts them: who writes, what all agree on, and who says why they
end; `job.py` makes them one.

`Ranks` of one process ask nobody, so that who uses them need not know how many there are. What is agreed on travels
between the hosts by gloo; tensors of the towers are `network/exchange_processes.py`'s."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist

from . import launcher
from .errors import UserError

PATIENCE = timedelta(minutes=5)  # for what the others do in a step; a link that was cut is noticed after that
BEAT = 10  # seconds between two signs of life of a process
ANSWERED = 10  # seconds for the store to answer
ANNOUNCED = 300  # seconds that a process waits for the line of the one that speaks for all, which may save before
POLL = 0.05  # seconds between two looks at the store
ENDED, ALIVE, IN_VAIN, TOWERS = "ended", "alive", "in vain", "towers"  # keys in the store
_END = object()
Value = TypeVar("Value")


class Batches(Protocol):
    """What gives batches, one after another; a `data.pipeline.Pipeline` does."""

    def train(self, step: int, epochs: int, colour_noise: Callable[[int], float]) -> Iterator: ...

    def views(self, split: str, batch_size: int, which: Sequence[tuple[int, int, bool]]) -> Iterator: ...


class Lost(UserError):
    """Another process ended, or can't be reached."""


class InVain(UserError):
    """The run can't go on, and the same command would come to the same end: torchrun need not start it again."""


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
        self.store, self.meeting_place = store, None  # a group whose processes wait for each other without end
        self.groups = []  # one a tower: the processes that have it, for what the pairs send each other
        self.pair_group = None  # with a process a tower: the two of this pair, for what crosses between its towers
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
        maximum = torch.tensor(int(flag))
        with self.reached():
            dist.all_reduce(maximum, dist.ReduceOp.MAX)
        return bool(maximum)

    def least(self, number: int) -> int:
        """The smallest of all processes' numbers."""
        if self.count == 1:
            return number
        minimum = torch.tensor(number)
        with self.reached():
            dist.all_reduce(minimum, dist.ReduceOp.MIN)
        return int(minimum)

    def first(self, value: Value) -> Value:
        """Rank 0's value. It is pickled; between processes of one job, that is no risk."""
        if self.count == 1:
            return value
        values = [value]
        with self.reached():
            dist.broadcast_object_list(values)
        return values[0]

    def gather(self, value: Value) -> list[Value]:
        """Every process's value, in the order of the ranks."""
        values = [None] * self.count
        if self.count == 1:
            return [value]
        with self.reached():
            dist.all_gather_object(values, value)
        return values

    def refuse_difference(self, facts: Callable[[], dict[str, str]]) -> None:
        """Raise UserError where one of the facts is not the same in all processes."""
        if self.count > 1:
            _refuse_difference(self.gather(facts()))

    def refuse_other_towers(self) -> None:
        """Raise UserError where not all processes have `apart`: before there are groups, which all make alike."""
        self.store.set(f"{TOWERS}/{self.rank}", "apart" if self.apart else "together")
        answers = [self.store.get(f"{TOWERS}/{rank}").decode() for rank in range(self.count)]
        _refuse_difference([{"--towers": towers} for towers in answers])

    def meet(self) -> None:
        """Wait for the others, however long they take: to read all images, or for a disk. Meanwhile it is noticed that
        one ends, that a signal comes, and that one gives no sign of life (`alive`) for as long as a step waits."""
        if self.count == 1:
            return
        signs_of_life, next_look, pause = {}, time.monotonic() + BEAT, POLL / 64
        with self.reached():
            meeting = dist.barrier(self.meeting_place, async_op=True)
            while not meeting.is_completed():
                if answer(lambda: self.store.check([ENDED])):
                    raise SaidElsewhere
                if time.monotonic() >= next_look:
                    self._refuse_silence(signs_of_life)
                    next_look = time.monotonic() + BEAT
                time.sleep(pause)
                pause = min(2 * pause, POLL)
            meeting.wait()  # raises what went wrong

    def _refuse_silence(self, signs_of_life):
        """Raise RuntimeError where another process gave no sign for long.

        signs_of_life: {rank: (how many signs it had given, when that was found)}."""
        now = time.monotonic()
        for rank in (rank for rank in range(self.count) if rank != self.rank):
            signs = answer(lambda: self.store.add(f"{ALIVE}/{rank}", 0))
            if signs != signs_of_life.get(rank, (-1,))[0]:
                signs_of_life[rank] = signs, now
            elif now - signs_of_life[rank][1] > PATIENCE.total_seconds():
                raise RuntimeError(f"rank {rank} gave no sign of life for {now - signs_of_life[rank][1]:.0f} s")

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Meanwhile a thread gives a sign of life every few seconds, whatever this process waits for. The thread
        has its own connection to the store: on this process's it would wait behind what that one waits for."""
        end, store = threading.Event(), self.store.clone()

        def beat():
            with suppress(RuntimeError):  # who waits for this process says so
                while not end.wait(BEAT):
                    store.add(f"{ALIVE}/{self.rank}", 1)

        thread = threading.Thread(target=beat, name="alive", daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join(ANSWERED)  # the interpreter's end would find it in the library, and abort

    def in_turn(self, pipeline: Batches) -> Batches:
        """One that gives each batch when those of the other processes have theirs."""
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
                except Exception as exception:
                    error = exception
                state = self.most(2 if error else 0 if item is _END else 1)
                self.in_step = state == 2
                if self.in_step:
                    raise error or SaidElsewhere("another process can't go on")
                if state == 0:
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
            what = (
                "what goes between the GPUs of this job's processes failed"
                if any(name in str(error) for name in ("NCCL", "CUDA"))
                else "another process of this job ended, or can't be reached"
            )
            raise Lost(
                f"{what} ({line.partition('. This is')[0]}); --resume auto goes on from the newest checkpoint"
            ) from None

    @property
    def machine(self) -> int:
        """The number of this machine's first process."""
        return self.rank - self.local_rank

    def speaks(self) -> bool:
        """Whether this process is the first that ends before its time, and so the one that says why. Where nobody can
        be asked the first process of each machine does."""
        try:
            return self.store is None or answer(lambda: self.store.add(ENDED, 1)) == 1
        except RuntimeError:  # the store went with its process, or a link to it was cut
            if self.local_rank == 0:
                launcher.end_if_stuck()
            return self.local_rank == 0

    def not_again(self) -> None:
        """What was asked for can't be done, says this process: see `launcher.not_again`. It leaves word for the other
        machines."""
        launcher.not_again()
        with suppress(RuntimeError):
            answer(lambda: self.store.set(IN_VAIN, str(self.machine)))

    def wait_for_last_words(self) -> None:
        """Until another process has said why all of them end. The first process of a machine ends its torchrun, too, if
        that is of no use any more."""
        deadline = time.monotonic() + ANNOUNCED
        with suppress(RuntimeError):
            while not answer(lambda: self.store.check([ENDED])) and time.monotonic() < deadline:
                time.sleep(POLL)
        time.sleep(launcher.LAST_WORDS)
        with suppress(RuntimeError):
            if self.local_rank == 0 and answer(lambda: self.store.check([IN_VAIN])):
                if int(answer(lambda: self.store.get(IN_VAIN))) != self.machine:
                    launcher.not_again()


def _refuse_difference(all_facts):
    for name in dict.fromkeys(name for facts in all_facts for name in facts):
        first, *others = (facts.get(name, "nothing") for facts in all_facts)
        for rank, other in enumerate(others, 1):
            if other != first:
                raise UserError(
                    f"the processes of this job differ in {name}: {first:.80} in rank 0, {other:.80} in rank {rank}; "
                    "all have to be started alike"
                )


def answer(ask: Callable[[], Value], seconds: float | None = None) -> Value:
    """What ask() returns, or raises; while it waits a signal is heard. Raises RuntimeError where nothing comes within
    ANSWERED seconds, or so many: of itself a client of the store waits for it without end."""
    answers = queue.SimpleQueue()

    def wait():
        try:
            answers.put((ask(), None))
        except Exception as error:
            answers.put((None, error))

    threading.Thread(target=wait, name="the store", daemon=True).start()
    try:
        answer, error = answers.get(timeout=ANSWERED if seconds is None else seconds)
    except queue.Empty:
        raise RuntimeError("the processes' store does not answer") from None
    if error is not None:
        raise error
    return answer


ALONE = Ranks()


class _InTurn:
    def __init__(self, ranks, pipeline):
        self.ranks, self.pipeline = ranks, pipeline

    def train(self, *arguments):
        return self.ranks.together(self.pipeline.train(*arguments))

    def views(self, *arguments):
        return self.ranks.together(self.pipeline.views(*arguments))
