"""A lock between processes: the kernel lets go of it when all that hold it have ended, however they ended."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from .errors import UserError
from .terminal import say


@contextmanager
def held(path: str | Path, busy: str, seconds: float | None = None) -> Iterator[None]:
    """Hold the lock of a file, which is made with its directory. A holder may remove it.

    Worker processes inherit the lock (flock(2)), so that none of an earlier run, killed a moment ago, still writes. If
    another process holds it, `busy` is said, and it is waited for; with `seconds`, `busy` is the UserError after these.
    Raises UserError if the file can't be written or locked.
    """
    path, end, announced = Path(path), time.monotonic() + (seconds or 0), False
    while (lock := _take(path)) is None:
        if seconds is not None and time.monotonic() > end:
            raise UserError(busy)
        if seconds is None and not announced:
            say(busy)
            announced = True
        time.sleep(0.05)
    with lock:
        yield


@contextmanager
def alone(path: str | Path) -> Iterator[None]:
    """Hold a lock beside a file or directory that is being made, and remove it afterwards. Raises UserError where
    another process makes the same, or the lock can't be written."""
    lock = Path(f"{Path(path)}.lock")
    with ExitStack() as stack:
        try:
            stack.enter_context(held(lock, f"OUT {path}: another process is writing it", 0))
        except UserError as error:
            raise UserError(str(error).replace(str(lock), str(path))) from None  # people know it by its own name
        stack.callback(_remove, lock)
        yield


def _remove(path):
    with suppress(OSError):
        os.unlink(path)


def _take(path):
    """The open file with its lock; None if another process has the lock, or has removed the file meanwhile."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            lock = stack.enter_context(open(path, "ab"))
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                    stack.pop_all()
                    return lock
    except OSError as error:
        what = f"cannot write {error.filename}" if error.filename else f"cannot lock {path}"
        raise UserError(f"{what}: {error.strerror}") from None
