"""Errors that a user can cause, and how a command ends on one: a single line, exit code 2, no traceback."""
import sys


class UserError(ValueError):
    """What is wrong, where, and what to do, in one line."""


def run_command(main):
    """Run a command's `main()` and exit with its status; a UserError is one line on stderr and status 2, Ctrl-C status 130."""
    try:
        status = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        status = 130
    sys.exit(status)
