"""A few large pieces of work in forked processes, which end with this one: the shards of `prepare`."""

import gc
import multiprocessing
import signal
import traceback
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from multiprocessing import connection
from typing import TypeVar

from ..data.workers import die_with_parent, signals_held
from ..system.errors import UserError

Task = TypeVar("Task")
Answer = TypeVar("Answer")

SECONDS = 0.2  # between two looks at the progress


def in_processes(
    work: Callable[[Task, Callable[[], None]], Answer],
    tasks: Iterable[Task],
    workers: int,
    advance: Callable[[int], None],
) -> Generator[tuple[Task, Answer], None, None]:
    """Yields (task, work(task, tick)) for every task, as they are done, from `workers` forked processes, 0 = in this
    one.

    work calls tick() as it goes on; advance(n) is called here for every n ticks. Raises what work raised, and UserError
    where a process was killed. Closing the generator, like any end of it, ends the processes at once."""
    if not workers:
        for task in tasks:
            yield task, work(task, lambda: advance(1))
        return
    context = multiprocessing.get_context("fork")
    ticks = context.RawArray("q", workers)  # one writer each: no lock that a killed process could keep
    tasks, total, pool = iter(tasks), 0, []
    try:
        for place in range(workers):
            task = next(tasks, None)
            if task is None:
                break
            pool.append(_Worker(context, work, ticks, place))
            pool[-1].give(task)
        while pool:
            ready_pipes = connection.wait([worker.pipe for worker in pool], SECONDS)  # a dead worker's is ready too
            old_total, total = total, sum(ticks)  # read once: they go on
            advance(total - old_total)
            for worker in [worker for worker in pool if worker.pipe in ready_pipes]:
                yield worker.task, worker.answer()
                task = next(tasks, None)
                if task is None:
                    worker.end()
                    pool.remove(worker)
                else:
                    worker.give(task)
    finally:
        with signals_held():  # a second Ctrl-C must not leave one of them at work
            for worker in pool:
                worker.process.kill()
            for worker in pool:
                worker.end()


class _Worker:
    def __init__(self, context, work, ticks, place):
        self.task, (self.pipe, child_pipe) = None, context.Pipe()
        self.process = context.Process(target=_serve, args=(child_pipe, self.pipe, work, ticks, place), daemon=True)
        with signals_held():
            self.process.start()
        child_pipe.close()  # held by the worker alone, so that it ends with it

    def give(self, task):
        self.task = task
        try:
            self.pipe.send(task)
        except BrokenPipeError:
            self.killed()

    def answer(self):
        try:
            error, answer = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.killed()
        if error is not None:
            raise error
        return answer

    def killed(self):
        self.process.join()
        code = self.process.exitcode
        cause = signal.Signals(-code).name if code < 0 else f"status {code}"
        raise UserError(
            f"the process that worked on {self.task} was ended ({cause}); if memory is short, fewer --workers may help"
        ) from None

    def end(self):
        self.process.kill()  # it waits for a task, or is of no use any more; it doesn't hear other signals
        self.process.join()
        self.pipe.close()


def _serve(pipe, parent_pipe, work, ticks, place):
    die_with_parent()
    parent_pipe.close()
    gc.freeze()  # what was there before stays as it is, in memory shared with the parent

    def tick():
        ticks[place] += 1

    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        try:
            answer = None, work(task, tick)
        except MemoryError:
            answer = UserError(f"out of memory with {task}; fewer --workers may help"), None
        except UserError as error:
            answer = error, None
        except Exception as error:
            error.add_note(traceback.format_exc())
            answer = error, None
        with suppress(BrokenPipeError):  # the parent has given up
            pipe.send(answer)
