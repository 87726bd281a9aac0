"""Parts of open files, read at any place by many threads and processes."""

import errno
import functools
import os
import resource
import stat
from pathlib import Path

from ..system.errors import MachineError, UserError


def because(error: OSError, where: str | Path) -> UserError:
    """The UserError for an OSError; a `MachineError` where another file, or another moment, would have failed as
    well."""
    of_machine = error.errno in (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE)
    help_ = "; `ulimit -n` sets how many a process may have" if error.errno == errno.EMFILE else ""
    return (MachineError if of_machine else UserError)(f"{where}: {error.strerror}{help_}")


class Descriptor:
    """A regular file, open for reading anywhere in it. Forked processes may share it: no position is kept."""

    def __init__(self, path: str | Path, where: str | Path):
        self.where, self.number = where, -1
        try:
            self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would keep us waiting
        except OSError as error:
            raise because(error, where) from None
        status = os.fstat(self.number)
        self.size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise UserError(f"{where}: it is not a file")

    def read(self, position: int, count: int) -> bytes:
        """`count` bytes from `position`, fewer at the end of the file."""
        parts = []
        try:
            while count > 0 and (part := os.pread(self.number, min(count, 1 << 30), position)):
                parts.append(part)
                position, count = position + len(part), count - len(part)
        except OSError as error:
            raise because(error, self.where) from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        if self.number >= 0:
            os.close(self.number)
        self.number = -1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    __del__ = close


def most_open(limit: int) -> int:
    """How many files a process that may have `limit` open keeps open: half of them, and at most 2,048, of which
    ImageNet's 1,300 shards in random order need most; a source may have 20,000 archives."""
    return 2048 if limit == resource.RLIM_INFINITY else min(2048, limit // 2)


@functools.lru_cache(most_open(resource.getrlimit(resource.RLIMIT_NOFILE)[0]))
def _opened(path):
    return Descriptor(path, path)


def read(path: str, offset: int, length: int) -> bytes:
    """`length` bytes at `offset` of a file, by a descriptor that the process keeps. Raises UserError where it has
    fewer."""
    content = _opened(path).read(offset, length)
    if len(content) < length:
        raise UserError(f"{path}: it ends at byte {offset + len(content):,}, {length - len(content):,} bytes too early")
    return content
