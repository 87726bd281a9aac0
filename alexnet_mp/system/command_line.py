"""Commands as they are typed: the parser of each, and the lines that say what to type next. Of the standard library
alone: `doctor` needs it where all else is broken."""

import argparse
import os
import shlex
import shutil
import sys
from typing import NoReturn

from .errors import complain


class CommandParser(argparse.ArgumentParser):
    """Options are typed in full: an abbreviation may be taken for another one than was meant. What is wrong is one
    line. The parsers of sub-commands are of this class, too."""

    def __init__(self, **settings: object):
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        complain(f"{' '.join(message.splitlines())}; {self.prog} --help tells what can be typed")
        sys.exit(2)


def command_parser(name: str, text: str) -> CommandParser:
    """The parser of `python -m alexnet_mp.<name>`. text: what --help says first, the command's docstring."""
    return CommandParser(
        prog=f"python -m alexnet_mp.{name}", description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def typed(name: str, *arguments: object) -> str:
    """The line that runs `python -m alexnet_mp.<name>` with these arguments, ready to be copied into a shell."""
    return " ".join([python_command(), "-m", f"alexnet_mp.{name}", *(shlex.quote(str(word)) for word in arguments)])


def python_command() -> str:
    """How this interpreter is typed here: by its name if that is found on PATH, else by its path, from the working
    directory if it lies in there.

    Of a virtual environment the name has to lead to its own link: what that points to has other packages.
    """
    interpreter = sys.executable
    if not interpreter:
        return "python"
    for name in ("python", "python3", os.path.basename(interpreter)):
        program = shutil.which(name)
        if program and _folder(program) == _folder(interpreter) and os.path.samefile(program, interpreter):
            return name
    path = os.path.relpath(interpreter)
    return shlex.quote(interpreter if path.startswith("..") else path)


def _folder(path):
    return os.path.realpath(os.path.dirname(os.path.abspath(path)))
