"""What Ctrl-C, a scheduler's SIGTERM and a closed terminal do: the step is finished and saved; a second one stops at
once."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from .ranks import Ranks

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """True once a signal came. Before `wait_for_step` is set there is nothing to save, and the first one raises
    KeyboardInterrupt. A second one raises it at once, and again when it is asked for: a callback of the interpreter, as
    those of a fork are, swallows what is raised in it."""

    def __init__(self):
        self.count, self.wait_for_step, self.silent = 0, False, False

    def __bool__(self):
        if self.count > 1:
            raise KeyboardInterrupt
        return self.count > 0

    def note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1 or not self.wait_for_step:
            raise KeyboardInterrupt
        if not self.silent:
            tell()


class Agreed:
    """The `Interrupts` of all processes of a job: true in each once a signal came to any. To ask is to ask the others,
    so that all have to, at the same places; `ranks.writes` says who tells the user."""

    def __init__(self, interrupts: Interrupts, ranks: Ranks):
        self.interrupts, self.ranks, self.told = interrupts, ranks, False
        interrupts.silent = True

    def __bool__(self):
        stop = self.ranks.any(bool(self.interrupts))
        if stop and not self.told and self.ranks.writes:
            tell()
        self.told |= stop
        return stop


def tell() -> None:
    """Say what the first signal does. No print, which may be in the middle of another."""
    with suppress(OSError):  # the terminal may be gone
        os.write(2, b"\nstopping after this step; once more to stop without saving\n")


@contextmanager
def interruptible() -> Iterator[Interrupts]:
    """Yields the `Interrupts` that the signals fill meanwhile. Those that this process was told to ignore (nohup) stay
    ignored."""
    interrupts = Interrupts()
    numbers = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    handlers = {number: signal.signal(number, interrupts.note) for number in numbers}
    try:
        yield interrupts
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
