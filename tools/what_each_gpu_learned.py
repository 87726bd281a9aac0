"""What each GPU learned, of many runs: measures what the report's parts on towers show of one run, keeps a record a
run, and writes docs/what-each-gpu-learned.md and its figure from all records.

    python tools/what_each_gpu_learned.py RUN... --data DIR [--pictures 500] [--deals 39] [--synsets FILE]

A record that is there for the same checkpoint, pictures and deals is not made again; without any RUN the page alone is
written, from the records. Several runs of an arm also get a record of how alike the towers of all of them see, which
is not made again if it has these runs, and perhaps others, already. An arm is told by the recipe: towers with links,
towers without, one tower. --pictures are for lesions and altered pictures; ten times as many for the classes, half as
many for deals of kernels, as in the report. Runs are computed on CPUs.

`learned/measure.py` and `learned/across.py` make the records, `learned/tables.py` has what is said over seeds,
`learned/questions.py`, `learned/likeness.py` and `learned/page.py` make the page of it, `learned/figure.py` the
figure."""

import argparse
import json
import sys
from pathlib import Path

from learned import across
from learned.figure import draw
from learned.measure import digest, measure
from learned.page import page
from learned.records import FOLDER, FORMAT, ROOT, as_json, read_all

from alexnet_mp.command_options import compute_as_in_training
from alexnet_mp.system import durable_files
from alexnet_mp.system.errors import UserError, run_command
from alexnet_mp.system.terminal import say

PAGE, FIGURE = ROOT / "docs" / "what-each-gpu-learned.md", ROOT / "docs" / "what-each-gpu-learned.png"


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    paths = {Path(directory).resolve() for directory in options.runs}
    if len({path.name for path in paths}) < len(paths):
        raise UserError("two of these runs have one name, which is their record's; rename one")
    compute_as_in_training()
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    networks = []
    for directory in options.runs:
        path = folder / f"{Path(directory).resolve().name}.json"
        if _is_there(path, directory, options):
            say(f"{path} is there")
        else:
            _write(path, measure(directory, options))
        networks.append((directory, json.loads(path.read_text(encoding="utf-8"))))
    for group in across.arms(networks):
        path = across.path_of(folder, group)
        if across.has(path, group, options.pictures):
            say(f"{path} is there")
        else:
            durable_files.replace(path, as_json(across.measure_across(group, options)).encode())
            say(f"wrote {path}")
    records, comparisons = read_all(folder)
    if not records:
        raise UserError(f"{folder} has no records, and no run was named")
    if not options.records_only:
        own = folder.resolve() == FOLDER
        page_path, figure = (PAGE, FIGURE) if own else (folder / PAGE.name, folder / FIGURE.name)
        durable_files.replace(page_path, page(records, comparisons).encode())
        # light alone: a page of Markdown is shown on one background or the other
        draw(records).savefig(figure, dpi=100, facecolor="white", metadata={"Software": None})
        say(f"wrote {page_path} and {figure} from {len(records)} records")
    return 0


def _write(path, record):
    """Write a network's record, in the place of one of the same network alone."""
    old_record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else record
    if any(old_record.get(name) != record[name] for name in ("recipe", "arm", "seed", "data")):
        raise UserError(f"{path} is the record of another run of this name; rename one of them")
    durable_files.replace(path, as_json(record).encode())
    say(f"wrote {path}")


def _is_there(path, directory, options):
    if not path.exists():
        return False
    record = json.loads(path.read_text(encoding="utf-8"))
    fields = (record.get(name) for name in ("format", "pictures", "deals", "weights"))
    return tuple(fields) == (FORMAT, options.pictures, options.deals, digest(directory))


def _parser():
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="a run directory; its name is the record's")
    parser.add_argument("--data", metavar="DIR|builtin", help="default: what each run was trained on")
    parser.add_argument(
        "--out",
        metavar="DIR",
        default=str(FOLDER),
        help="of the records; page and figure go there, too, if it is not the default, %(default)s",
    )
    parser.add_argument("--pictures", type=int, default=500, metavar="N", help="of val; default: %(default)s")
    parser.add_argument(
        "--deals",
        type=int,
        default=39,
        metavar="N",
        help="of first-layer kernels to halves; with N of them no p of one network is below 1 / (N + 1), of k seeds "
        "together 1 / (N + 1)^k; default: %(default)s",
    )
    parser.add_argument(
        "--synsets", metavar="FILE|SET", help="names the classes; all records of a data set have to have the same names"
    )
    parser.add_argument("--records-only", action="store_true", help="write neither page nor figure")
    return parser


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
