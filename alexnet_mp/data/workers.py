"""Processes that read images beside the training: they end with it, and whatever ends one of them is one line.

Each has a pipe that says what to read, and a socket by which it hands over what it has read, in memory that both share.
The processes of a `DataLoader` are not enough: one that is killed may keep the lock of their queue or leave half a
message in it, one that hangs is waited for, and what they hand over needs room in /dev/shm, of which a container has
little.
"""

import ctypes
import io
import mmap
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import traceback
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import cycle
from typing import Protocol

import torch

from ..system.errors import UserError
from ..system.interrupts import SIGNALS
from .remarks import count_remarks

AHEAD = 2  # items that each process reads before they are asked for
ALIGNED = 64  # bytes, of every array in shared memory
MESSAGE = 2**16  # bytes; where the arrays of an item lie
WITHOUT = "--workers 0 reads without such processes"
_END = object()


class Source(Protocol):
    """What is read by key; where no keys are given it has a length too."""

    def __getitem__(self, key): ...


def load(source: Source, keys: Iterable | None, workers: int, pin: bool = False) -> Generator:
    """source[key] for every key (None: 0, 1, ...), in order, computed by `workers` forked processes, 0 = by this one.

    A UserError that the source returns is raised here; so is any exception in a process, with its traceback as a note.
    pin: tensors come in page-locked memory, if there is a GPU. Close it to end the processes. Raises UserError if they
    can't be started, can't hand over what they have read, or are killed.
    """
    keys = range(len(source)) if keys is None else keys
    try:
        # Their end ends the thread.
        with ThreadPoolExecutor(1, "pin") as thread, _worker_processes(source, workers) as processes:
            items = _answers(processes, keys) if workers else map(source.__getitem__, keys)
            if pin and torch.cuda.is_available():
                items = _prefetch(map(_pinned, items), thread) if workers else map(_pinned, items)
            for item in items:
                if isinstance(item, Exception):
                    raise item
                yield item
    finally:
        count_remarks()


@contextmanager
def _worker_processes(source, count):
    """`count` processes that compute source[key]. They are killed in the end: idle, or of no use any more."""
    processes = []
    try:
        with signals_held():  # from the fork on: a process has no moment in which a signal could end it
            for _ in range(count):
                processes.append(_Process(source))
        yield processes
    finally:
        with signals_held():  # a second Ctrl-C must not leave one of them
            for worker in processes:
                worker.process.kill()
        for worker in processes:
            worker.end()


def _answers(processes, keys):
    """What the processes make of the keys, which they get in turn."""
    queue = deque()
    for process, key in zip(cycle(processes), keys):
        process.give(key)
        queue.append(process)
        if len(queue) > AHEAD * len(processes):
            yield queue.popleft().answer()
    while queue:
        yield queue.popleft().answer()


def _prefetch(items, thread):
    """The items, each taken by the thread while the one before is used."""
    future = thread.submit(next, items, _END)
    while (item := future.result()) is not _END:
        future = thread.submit(next, items, _END)
        yield item


def _pinned(item):
    if isinstance(item, tuple):
        return tuple(map(_pinned, item))
    return item.pin_memory() if isinstance(item, torch.Tensor) else item


class _Process:
    def __init__(self, source):
        try:
            keys, self.keys = multiprocessing.Pipe(duplex=False)
            # A message comes whole or not at all. The process alone has the other end, which is closed when it ends.
            self.answers, answers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            # Forked, not started anew: no data set is copied, and a user's script needs no guard around its main part.
            # CUDA, NCCL and gloo may have begun. A fork is safe since this one reads, crops with numpy and writes, and
            # leaves by _exit: it touches no device (torch raises in a fork that would), no process group, no store, and
            # runs none of their destructors. Pinning is the parent's. Memory that InfiniBand has registered stays the
            # parent's, too: NCCL calls ibv_fork_init before it opens a card.
            fork = multiprocessing.get_context("fork")
            self.process = fork.Process(target=_serve, args=(source, keys, answers), daemon=True)
            with keys, answers:
                self.process.start()
        except OSError as error:
            raise UserError(f"can't start processes that read images: {error.strerror or error}; {WITHOUT}") from None

    def give(self, key):
        with suppress(BrokenPipeError):  # it was killed, which is said when its answer is due
            self.keys.send(key)

    def answer(self):
        """What it made of the first key whose answer is due; an exception where it failed."""
        message, files, *_ = socket.recv_fds(self.answers, MESSAGE, 1)
        if not message:
            self.process.join()
            code = self.process.exitcode
            cause = signal.Signals(-code).name if code < 0 else f"status {code}"
            return UserError(
                f"a process that reads images was killed ({cause}: out of memory?); "
                "fewer --workers, or --workers 0, may help"
            )
        places = pickle.loads(message)
        if not files:
            if isinstance(places, UserError):
                return places
            return UserError(f"too many open files to read images; {WITHOUT}")
        try:
            memory = memoryview(mmap.mmap(files[0], 0))
        finally:
            os.close(files[0])
        content, *arrays = (memory[place] for place in places)
        return pickle.loads(content, buffers=arrays)

    def end(self):
        self.process.join()
        self.keys.close()
        self.answers.close()


def _serve(source, keys, answers):
    try:
        die_with_parent()
        torch.set_num_threads(1)  # a fork doesn't have the parent's threads
        while True:
            key = keys.recv()
            try:
                answer = source[key]
            except Exception as error:
                answer = _portable(error)
            try:
                _send(answers, answer)
            except OSError as error:
                reason = f"a process that reads images can't hand them over ({error.strerror or error}); {WITHOUT}"
                answers.send(pickle.dumps(UserError(reason)))
            except Exception as error:
                _send(answers, _portable(error))
    finally:
        os._exit(1)  # without a word: the parent says it


def _send(pipe, answer):
    """Pickled into a file in memory, which the parent maps by its descriptor: arrays are copied once, here."""
    content, buffers, places = io.BytesIO(), [], []
    _Pickler(content, 5, buffer_callback=buffers.append).dump(answer)
    with open(os.memfd_create("images"), "wb") as file:
        for part in (content.getbuffer(), *(buffer.raw() for buffer in buffers)):
            start = file.seek(-file.tell() % ALIGNED, os.SEEK_CUR)
            file.write(part)
            places.append(slice(start, start + len(part)))
        file.flush()
        socket.send_fds(pipe, [pickle.dumps(places)], [file.fileno()])


class _Pickler(pickle.Pickler):
    def reducer_override(self, value):
        return (torch.from_numpy, (value.numpy(),)) if isinstance(value, torch.Tensor) else NotImplemented


def _portable(error):
    """The exception with its traceback as a note; a RuntimeError that says the same where it can't be pickled."""
    text = traceback.format_exc()
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"in a process that reads images:\n{text}")
    return error


@contextmanager
def signals_held() -> Iterator[None]:
    """Ctrl-C, a closing terminal and a scheduler's SIGTERM reach every process of a run; the parent decides and ends
    the workers.

    Workers that are forked in this context inherit the blocked signals for good; the parent hears what came as soon as
    it is over. Other threads may receive one for it: it is noted until then, since a fork's callbacks swallow what a
    handler raises.
    """
    arrivals, handlers = [], {}
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        if threading.current_thread() is threading.main_thread():  # which runs all handlers
            for number in filter(lambda number: callable(signal.getsignal(number)), SIGNALS):
                handlers[number] = signal.signal(number, lambda number, frame: arrivals.append(number))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
        for number in arrivals:
            signal.raise_signal(number)


def die_with_parent() -> None:
    """In a worker: should the parent die without a word, the kernel ends it too (PR_SET_PDEATHSIG, prctl(2))."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:  # it died before that
        os._exit(1)
