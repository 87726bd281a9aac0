"""The parser of every command, of the standard library alone: `doctor` needs it where all else is broken."""

import argparse
import sys

from .errors import complain


class CommandParser(argparse.ArgumentParser):
    """Options are typed in full: an abbreviation may be taken for another one than was meant. What is wrong is one
    line. The parsers of sub-commands are of this class, too."""

    def __init__(self, **settings):
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message):
        complain(f"{' '.join(message.splitlines())}; {self.prog} --help tells what can be typed")
        sys.exit(2)


def command_parser(name, text):
    """The parser of `python -m alexnet_mp.<name>`. text: what --help says first, the command's docstring."""
    return CommandParser(
        prog=f"python -m alexnet_mp.{name}", description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
