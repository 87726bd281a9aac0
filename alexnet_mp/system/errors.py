"""Errors that a user can cause, and how a command ends on one: a single line, exit code 2, no traceback."""

import os
import select
import signal
import sys


class UserError(ValueError):
    """What is wrong, where, and what to do, in one line."""


class MachineError(UserError):
    """An image can't be read for a reason that lies in the machine: it must never count as a bad image."""


def run_command(main):
    """Run a command's `main()` and exit with its status; a UserError is one line on stderr and status 2, Ctrl-C status
    130."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed before this began
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        getattr(sys, name).reconfigure(errors="backslashreplace")  # a file's name may hold what the terminal can't show
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError as error:
        status = 0 if _nobody_reads(sys.stdout) else 2
        if status:  # a pipe between this command's own processes
            print(f"error: {_known(error)}", file=sys.stderr)
        else:  # as after `| head`: no failure, and the flush at exit must not complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except UserError as error:
        print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
        status = 2
    except (MemoryError, RuntimeError, OSError) as error:
        line = _known(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        # first of all: a second one would end this by the signal, not by its status
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("stopped", file=sys.stderr)
        status = 130
    if status == 130:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # another one would only break off the clean end
    sys.exit(status)


def _nobody_reads(stream):
    """Whether a stream is a pipe whose reader has left."""
    poll = select.poll()
    poll.register(stream, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _known(error):
    """One line for a failure of the machine rather than of the program; None for everything else."""
    # imported before it could raise anything
    text, torch = (str(error).splitlines() or [""])[0], sys.modules.get("torch")
    if (
        isinstance(error, (MemoryError, getattr(torch, "OutOfMemoryError", MemoryError)))
        or "DefaultCPUAllocator" in text
    ):
        return f"out of memory; a smaller --batch-size, or fewer --workers, may fit ({text.split('. ')[0]})"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return None
