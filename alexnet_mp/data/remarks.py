"""Lines about odd pictures that are read all the same: the first few by name, all of them by number, each once.

Several processes read the pictures, and each picture is read many times. They share what has been said."""

import fcntl
import os
import sys
import zlib
from pathlib import Path

import numpy as np

from ..system.terminal import printable

MOST_NAMED = 5  # of a kind, by all processes that read images
LOOKED_AT = 1 << 16  # bytes of what has been noted that are read to find out which those are


class Remarks:
    """The remarks of a kind, `what` in a word or two.

    The file in memory, which forked processes share, is open for appending, which no two can do at once: (crc32 of its
    name, process) of each picture. What one has named, no other names again."""

    def __init__(self, what: str):
        self.what = what
        descriptor = os.memfd_create("remarks")
        # none of the three streams' numbers: they may be closed
        self.file = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
        os.close(descriptor)
        fcntl.fcntl(self.file, fcntl.F_SETFL, os.O_APPEND)
        self.noted, self.counted = set(), 0  # crc32s that this process has appended; pictures that `count` has told of

    def say(self, name: str | Path | None, line: str) -> None:
        """A line on standard error, if it is one of the first `MOST_NAMED` and new."""
        key, process = zlib.crc32(str(name).encode(errors="surrogateescape")), os.getpid()
        if key in self.noted:
            return
        self.noted.add(key)
        os.write(self.file, np.array([key, process], np.uint32).tobytes())
        if (key, process) in self._first_noted(LOOKED_AT)[:MOST_NAMED]:
            print(f"{printable(str(name or 'a picture'))}: {self.what}: {line}", file=sys.stderr)

    def count(self) -> None:
        """A line with the number of pictures, where not all are named and some are new."""
        count = len(self._first_noted(os.fstat(self.file).st_size))
        if count > max(self.counted, MOST_NAMED):
            rest = count - MOST_NAMED
            print(f"{self.what}: {count:,} pictures in all, {rest:,} of them not named", file=sys.stderr)
        self.counted = count

    def forget(self) -> None:
        """As if nothing had been said."""
        os.ftruncate(self.file, 0)
        self.noted.clear()
        self.counted = 0

    def _first_noted(self, size):
        """[(crc32, the process that appended it first)] in the first `size` bytes of the file, by their order."""
        pairs = np.frombuffer(os.pread(self.file, size, 0), np.uint32).reshape(-1, 2).tolist()
        return list({key: (key, process) for key, process in reversed(pairs)}.values())[::-1]


DARK = Remarks("dark")
SEVERAL = Remarks("several pictures in one file")


def count_remarks() -> None:
    """Behind a pass through pictures: how many remarks of each kind there were in all."""
    DARK.count()
    SEVERAL.count()
