"""One run at a time writes into a run directory. The kernel lets go of the lock when its holder ends, however it ends.

It is not `system/file_lock.py`: a run's workers must not keep the lock after it, nobody waits for a run, its file stays
to tell who holds it, and it is held against a directory that is moved away.
"""

import datetime
import fcntl
import json
import os
import platform
import stat
import struct
from contextlib import suppress
from pathlib import Path

from ..system.errors import UserError
from ..system.terminal import say

LOCK = ".lock"
MOST_BYTES = 4096


class RunLock:
    """Holds the lock of a run directory until `release`. Raises UserError where another process holds it, or it can't
    be taken.

    It is a record lock of fcntl(2): worker processes don't inherit it, so that none of them can keep it after their
    parent died. The file says who holds it; a clean end empties it, and what is still in it when the lock can be had is
    of a run that was killed."""

    def __init__(self, directory: str | Path):
        self.directory, self.path = directory, Path(directory) / LOCK
        path = self.path
        try:
            # Neither a link nor a pipe that somebody put there may be written to, or waited for.
            self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise UserError(f"cannot lock {directory}: {path}: {error.strerror}") from None
        try:
            if not stat.S_ISREG(os.fstat(self.file).st_mode):
                raise UserError(f"cannot lock {directory}: {path} is not a regular file; remove it")
            self._take(directory, path)
        except BaseException:
            os.close(self.file)
            raise

    def _take(self, directory, path):
        try:
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{directory} is in use: {self._holder()} writes to it; choose another --out, or wait for its end"
            ) from None
        except OSError as error:  # a file system without locks
            raise UserError(f"cannot lock {directory}: {path}: {error.strerror}") from None
        if os.fstat(self.file).st_size:
            say(f"{directory}: the lock of {self._holder()} is stale, that run is no longer there; it is taken over")
        holder = {
            "pid": os.getpid(),
            "host": platform.node(),
            "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        try:
            os.ftruncate(self.file, 0)
            os.pwrite(self.file, json.dumps(holder).encode(), 0)
        except OSError:  # a full disk: the lock holds all the same
            pass

    def _holder(self):
        try:
            holder = json.loads(os.pread(self.file, MOST_BYTES, 0))
            since = datetime.datetime.fromisoformat(holder["since"]).isoformat(timespec="seconds")
            return f"process {int(holder['pid'])} on {str(holder['host'])[:100]!r}, since {since}"
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return "another process"

    def check(self) -> None:
        """Raise UserError where the directory is no longer the one that is locked: it was moved or removed, or its lock
        was."""
        try:
            path_status, file_status = os.stat(self.path, follow_symlinks=False), os.fstat(self.file)
        except OSError:
            path_status = file_status = None
        if path_status is None or (path_status.st_dev, path_status.st_ino) != (file_status.st_dev, file_status.st_ino):
            raise UserError(
                f"{self.directory} is no longer this run's: it or the {LOCK} in it was moved or removed; the run "
                "ends, so that "
                "it can't write into another's"
            )

    def release(self) -> None:
        """Let go, at a clean end; a second call does nothing."""
        if self.file is not None:
            try:
                os.ftruncate(self.file, 0)
            except OSError:
                pass
            os.close(self.file)
            self.file = None


def is_held(directory: str | Path) -> bool:
    """Whether another process writes to a run. Nothing is locked or written; False where nobody can tell.

    The kernel is asked (F_GETLK), so that a run that was killed, or one on another host of a shared disk, is told
    rightly. Not for the process that holds the lock: to close the file would let go of it."""
    with suppress(OSError):
        file = os.open(Path(directory) / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            request = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)  # struct flock of 64-bit Linux
            return struct.unpack_from("h", fcntl.fcntl(file, fcntl.F_GETLK, request))[0] != fcntl.F_UNLCK
        finally:
            os.close(file)
    return False
