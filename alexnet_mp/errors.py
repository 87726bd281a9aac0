"""Errors that a user can cause, and how a command ends on one: a single line, exit code 2, no traceback."""
import sys

import torch


class UserError(ValueError):
    """What is wrong, where, and what to do, in one line."""


def run_command(main):
    """Run a command's `main()` and exit with its status; a UserError is one line on stderr and status 2, Ctrl-C status 130."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a file's name may hold what the terminal can't show
    try:
        status = main()
    except UserError as error:
        print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
        status = 2
    except (MemoryError, torch.OutOfMemoryError) as error:
        print(f"error: out of memory; a smaller --batch-size may fit ({str(error).split('. ')[0]})", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        status = 130
    sys.exit(status)
