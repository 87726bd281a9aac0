"""All commands under one name: `alexnet-mp train ...` is `python -m alexnet_mp.train ...`."""

import argparse
import ast
import difflib
import pkgutil
import runpy
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from .system import machine
from .system.command_line import CommandParser
from .system.errors import run_command

FOLDER = Path(__file__).parent
NO_COMMANDS = ("__main__", "command_options")
WIDTH = 100  # of a line of --help


def commands() -> dict[str, str]:
    """{command: what it does, as its own --help begins}: the modules beside this one, none of which is imported."""
    names = [module.name for module in pkgutil.iter_modules([str(FOLDER)]) if not module.ispkg]
    return {name: _summary(FOLDER / f"{name}.py") for name in names if name not in NO_COMMANDS}


def _summary(path):
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return " ".join(text.partition("\n\n")[0].split())


def main(arguments: Sequence[str] | None = None) -> int:
    """What is typed before, or in place of, the name of a command."""
    summaries = commands()
    lines = [
        "\n".join(textwrap.wrap(f"  {name:<12}{summary}", WIDTH, subsequent_indent=" " * 14, drop_whitespace=True))
        for name, summary in summaries.items()
    ]
    text = "\n".join([__doc__, "", "commands", *lines, "", "alexnet-mp COMMAND --help tells more."])
    parser = CommandParser(prog="alexnet-mp", description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"alexnet_mp {machine.version('alexnet_mp')}")
    parser.add_argument("command", metavar="COMMAND", help="and what it takes")
    name = parser.parse_args(arguments).command
    matches = difflib.get_close_matches(name, summaries, 1)
    parser.error(f"there is no command {name!r}" + (f"; did you mean {matches[0]}?" if matches else ""))


def script() -> None:
    """The console command `alexnet-mp`: the module of a command runs as `python -m` runs it."""
    if len(sys.argv) > 1 and sys.argv[1] in commands():
        name = sys.argv.pop(1)
        runpy.run_module(f"{__package__}.{name}", run_name="__main__", alter_sys=True)
    else:
        run_command(main, several=True)


if __name__ == "__main__":
    script()
