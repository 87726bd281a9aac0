"""What differs between runs: recipe, data, environment, errors over the same images; with --out curves and kernels.

examples
  python -m alexnet_mp.compare RUN0 RUN1              what differs, and who errs less, as text
  python -m alexnet_mp.compare runs/* --out DIR       and a page, DIR/comparison.html

Only what is not the same in all runs is listed. Errors are compared by McNemar's exact test if the runs were tested on
the same images, which validation_right.npz in each tells apart; p is corrected for the number of pairs. Nothing is
computed anew: no data set is opened, and no network runs. A directory that has a comparison already gets a new one."""

from collections.abc import Sequence
from pathlib import Path

from .reporting import page
from .reporting.comparison import read_compared, refuse_copies, text
from .reporting.comparison_page import MOST_RUNS, parts
from .reporting.pages_of_runs import named, page_directory
from .system.command_line import command_parser
from .system.durable_files import writing
from .system.errors import run_command
from .system.terminal import printable, say

NAME = "comparison.html"  # not a report's: neither takes the other's place


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("compare", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help=f"run directories, 2 to {MOST_RUNS}")
    parser.add_argument("--out", metavar="DIR", help="a new or empty directory for the page; default: text alone")
    options = parser.parse_args(arguments)
    if not 2 <= len(options.runs) <= MOST_RUNS:
        parser.error(f"{len(options.runs)} run{'s' * (len(options.runs) > 1)}: 2 to {MOST_RUNS} can be compared")
    runs = [read_compared(name, directory) for name, directory in named(options.runs).items()]
    refuse_copies(runs)
    for line in text(runs):
        say(printable(line))
    if options.out is not None:
        _write_page(Path(options.out), runs)
    return 0


def _write_page(out, runs):
    old_pictures = page_directory(out, NAME)
    with writing(out):
        page.begin(out / NAME)
        page.write(
            out / NAME,
            f"{len(runs)} runs compared",
            f"{runs[0].name} and {len(runs) - 1} more." if len(runs) > 3 else f"{', '.join(run.name for run in runs)}.",
            parts(out, runs),
        )
        for name in old_pictures - page.pictures_of(out / NAME):
            (out / name).unlink(missing_ok=True)
    say(f"\nwrote {printable(str(out / NAME))}")


if __name__ == "__main__":
    run_command(main)
