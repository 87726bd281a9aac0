"""Errors that a user can cause, and how a command ends on one: a single line, exit code 2, no traceback."""

import errno
import io
import os
import re
import signal
import stat
import sys
from collections.abc import Callable
from typing import NoReturn

from . import launcher


class UserError(ValueError):
    """What is wrong, where, and what to do, in one line."""


class MachineError(UserError):
    """An image can't be read for a reason that lies in the machine: it must never count as a bad image."""


def need(condition: object, problem: str) -> None:
    """Raise ValueError with this text unless the condition is true: of content whose path the caller knows."""
    if not condition:
        raise ValueError(problem)


def run_command(main: Callable[[], int | None], several: bool = False) -> NoReturn:
    """Run a command's `main()` and exit with its status; a UserError is one line on stderr and status 2, Ctrl-C status
    130. An output that can't be written, or is closed, is status 2, too, unless its reader has left.

    several: whether torchrun may start several processes of it; else each would do all of the work, and write the same
    files."""
    outputs = []
    for name in ("stdin", "stdout", "stderr"):  # in the order of their numbers, which open() gives to the next files
        stream, original = getattr(sys, name), getattr(sys, f"__{name}__")
        if missing := stream is None:  # closed before this began
            stream = original = open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8")
            setattr(sys, name, stream)
        if name != "stdin" and stream is original:  # not what a test listens with
            outputs.append(_Output(stream.fileno(), "w", closefd=False))
            outputs[-1].under, outputs[-1].missing = stream, missing  # which is closed when nobody has it
            outputs[-1].of_answers = name == "stdout"
            setattr(sys, name, _text(outputs[-1], stream))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a file's name may hold what the terminal can't show
    try:
        status = _status(main, several)
    except KeyboardInterrupt:  # a second one, while the first was told
        status = 130
    while status == 130:  # another one would only break off the clean end
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # which raises one that is waiting
            break
        except KeyboardInterrupt:
            pass
    # Ctrl-C within a text that is executed, as dataclasses and named tuples are made of, leaves a mark for which
    # `python -m` ends by the signal, whoever caught it; the next text takes it away.
    exec("")
    sys.stdout.flush()
    sys.exit(status or (2 if any(output.lost for output in outputs) else status))


def _status(main, several):
    """What the command ends with, if no second Ctrl-C comes."""
    try:
        if not several:
            with launcher.spoken_by_the_first():
                _refuse_several()
        return main()
    except SystemExit as system_exit:  # --help, or options that nobody knows
        return system_exit.code
    except UserError as error:
        complain(" ".join(str(error).splitlines()))
        return 2
    except (MemoryError, RuntimeError, OSError) as error:
        line = _known(error)
        if line is None:
            raise
        complain(line)
        return 2
    except KeyboardInterrupt:
        # first of all: a second one would end this by the signal, not by its status
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("stopped", file=sys.stderr)
        return 130


def _refuse_several():
    if (count := launcher.of_torchrun()) > 1:
        launcher.not_again()
        complain(f"torchrun started {count} processes, and this command runs in one; train and evaluate run in several")
        sys.exit(2)


def nobody_reads() -> bool:
    """Whether the reader of standard output has left: a command that only prints may end then."""
    return getattr(getattr(getattr(sys.stdout, "buffer", None), "raw", None), "left", False)


def complain(line: str) -> None:
    """An error is a line on standard error."""
    print(f"error: {line}", file=sys.stderr)


class _Output(io.FileIO):
    """Standard output or standard error without errors: a run keeps its results whether somebody reads or not, and the
    disk of its log may be full."""

    missing = False  # whether it was closed before the command began: what is written is lost as on a full disk
    of_answers = False  # whether it is standard output
    left = False  # whether the reader has left, as after `| head`
    lost = False  # whether something could not be written although somebody reads

    def write(self, data):
        try:
            if self.missing:
                raise OSError(errno.EBADF, "it is closed")
            return super().write(data)
        except OSError as error:
            closed_terminal = error.errno == errno.EIO and stat.S_ISCHR(os.fstat(self.fileno()).st_mode)
            if isinstance(error, ConnectionError) or closed_terminal:
                self.left = True
            elif not self.lost:
                self.lost = True
                if self.of_answers:
                    complain(f"can't write all of standard output: {error.strerror}")
            return len(data)


def _text(raw, like):
    """A text stream on `raw`, with the encoding of `like`. It writes every whole line at once where `like` did so, or
    wrote every letter at once (PYTHONUNBUFFERED)."""
    lines = like.line_buffering or like.write_through
    return io.TextIOWrapper(io.BufferedWriter(raw), like.encoding, line_buffering=lines)


def _known(error):
    """One line for a failure of the machine rather than of the program; None for everything else."""
    # imported before it could raise anything
    text, torch = (str(error).splitlines() or [""])[0], sys.modules.get("torch")
    if (
        isinstance(error, (MemoryError, getattr(torch, "OutOfMemoryError", MemoryError)))
        or "DefaultCPUAllocator" in text
    ):
        sentence = re.split(r"(?<!\d)\. ", text)[0]  # NumPy writes "224. GiB"
        return f"out of memory; a smaller batch, or fewer --workers, may fit ({sentence})"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return None
