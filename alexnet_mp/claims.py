"""Every claim of the paper, and the command that tests it.

examples
  python -m alexnet_mp.claims                                                    all: the paper's figures, 2012's, ours
  python -m alexnet_mp.claims run lrn --data imagenette --base mini --epochs 20  one of them, three seeds an arm
  python -m alexnet_mp.claims run cifar-relu --data cifar10 --seeds 5 --search-epochs 3
  python -m alexnet_mp.claims run all --data imagenette --epochs 20 --budget 2h  as many as two hours allow
  python -m alexnet_mp.claims run study --data tiny100 --base desk               claims/desk-study.md, six seeds
  python -m alexnet_mp.claims table                                              README's table, the page of all claims
  python -m alexnet_mp.claims table --write                                      into README.md and docs/claims.md

All arms of a claim have the same seeds, 0 to K-1, the same data and the same schedule; with --epochs it is the base's
own. In place of a plateau schedule all rates fall to a tenth three times then, at the shares of the epochs that they
had in 2012. With --first-seed other seeds repeat what is recorded; their record says how many of its differences lie
where the first ones foretold. The runs lie in --out and are those of the training command; stopped by Ctrl-C or a power
cut, the same command goes on. Claims share the runs that they have in common. The record (JSON) and its picture lie in
--records, with those of all other data; --records OWN, also of `table`, tells yours alone.
"""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from .command_options import add_machine_options, compute_as_in_training
from .data.dataset import reason_of
from .experiments import findings, page
from .experiments.claim import command
from .experiments.elsewhere import ELSEWHERE
from .experiments.paper_claims import CLAIMS
from .experiments.plan import opened
from .experiments.records import RECORDS, read_records, take_records
from .experiments.run_all import SMALLEST, chosen, run_all, run_one
from .experiments.time_budget import Forecast
from .recipes.named import PRESETS
from .system.command_line import command_parser
from .system.durable_files import refuse_unwritable
from .system.errors import UserError, run_command
from .system.terminal import printable, say

OUT = "runs/claims"


def main(arguments: Sequence[str | Path] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else [str(argument) for argument in arguments]
    options = _parser().parse_args(arguments)
    options.typed = arguments
    if options.action == "list" or options.action == "table" and not options.take:
        _say_if_absent(options.records)
    match options.action:
        case "run":
            return _run(options)
        case "table":
            if options.take:
                names = take_records(options.take, options.records)
                for name in names:
                    say(f"took {name}")
                if not names:
                    say(f"nothing in {options.take} is new here")
            return _table(options)
        case _:
            return _list(options)


def _say_if_absent(records):
    if records != RECORDS and not os.path.isdir(records):  # an installed package has none of its own
        print(f"--records {printable(str(records))}: no such directory, so no claim was run", file=sys.stderr)


def _table(options):
    if not (options.write or options.check):
        return page.show(options.records)
    readme, details = options.readme or page.README, options.details or page.DETAILS
    if options.write and not (options.readme and options.details) and not _same(options.records, RECORDS):
        raise UserError(
            f"--records {options.records}: {readme} and {details} are of the records in {RECORDS}; name others with "
            "--readme FILE and --details FILE, or leave out --write"
        )
    return (page.write if options.write else page.check)(readme, options.records, details)


def _same(path, other):
    return os.path.realpath(path) == os.path.realpath(other)


def _list(options):
    records = read_records(options.records)
    for claim in CLAIMS:
        say(f"{claim.id}: {claim.sentence} ({claim.section})")
        say(f"    paper  {claim.paper}")
        say(f"    2012   {claim.source}")
        local_records = [record for record in records.get(claim.id, []) if findings.findings(record)]
        for record in local_records:
            say(f"    here   {findings.setting(record)}:")
            for sentence in findings.findings(record):
                say(f"           {sentence}")
        if not local_records:
            say("    here   not run here")
        if claim.needs:
            say(f"    needs  {claim.needs}")
        say(f"    {command(claim)}")
    for entry in ELSEWHERE:
        say(f"{entry.id}: {entry.sentence} ({entry.section})")
        say(f"    paper  {entry.paper}")
        say(f"    2012   {entry.source}")
        for sentence in entry.sentences(options.records, records) or ["not run here"]:
            say(f"    here   {sentence}")
        say(f"    {entry.command}")
    return 0


def _run(options):
    _refuse(options)
    compute_as_in_training()
    forecast = Forecast(options, _seconds(options.budget))
    if options.claim in ("all", "study"):
        return run_all(options, forecast)
    (claim,) = chosen(options.claim)
    return run_one(claim, options, forecast)


def _seconds(budget):
    """What --budget means: "2h" -> 7200, "90m", "45s"; None where none is given. Raises UserError."""
    if budget is None:
        return None
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)([hms])", budget, re.ASCII)
    if not match or float(match[1]) <= 0:
        raise UserError(f"--budget {budget}: write hours, minutes or seconds, as in 2h, 90m, 45s")
    return float(match[1]) * {"h": 3600, "m": 60, "s": 1}[match[2]]


def _refuse(options):
    if entry := next((entry for entry in ELSEWHERE if entry.id == options.claim), None):
        raise UserError(f"{options.claim} has no run of its own; its figure comes from: {entry.command}")
    claims = chosen(options.claim)
    if not claims:
        raise UserError(
            f"no claim is called {options.claim}; they are {', '.join(claim.id for claim in CLAIMS)}; all; study"
        )
    if options.larger and not any(arm.larger for claim in claims for arm in claim.arms):
        raise UserError(f"--larger {options.larger}: {options.claim} trains nothing on another set")
    if options.search_epochs and not any(claim.kind.searches_rates for claim in claims):
        raise UserError(f"--search-epochs {options.search_epochs}: {options.claim} looks for no learning rate")
    for name in ("seeds", "epochs", "steps", "search_epochs"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: it must be at least 1")
    if options.first_seed < 0:
        raise UserError(f"--first-seed {options.first_seed}: it must be at least 0")
    for setting in options.set:
        field = setting.partition("=")[0]
        if field == "epochs":
            raise UserError(f"--set {setting}: --epochs N says it, and moves the epochs at which the rates fall")
        if field in ("seed", "name"):
            raise UserError(
                f"--set {setting}: the arms have names of their own, and their seeds by --seeds K and --first-seed S"
            )
    if options.larger:
        try:
            larger_classes = len(opened(options.larger, SMALLEST).classes)
        except UserError as error:
            raise UserError(f"--larger {options.larger}: {reason_of(error, options.larger)}") from None
        data_classes = len(opened(options.data, SMALLEST).classes)
        if larger_classes <= data_classes:
            raise UserError(
                f"--larger {options.larger}: it has {larger_classes:,} classes and --data {options.data} has "
                f"{data_classes:,}; pre-training is on a set of more"
            )
    if options.seeds is not None and options.seeds > 20:
        raise UserError(
            f"--seeds {options.seeds}: 20 at most, since the test goes through all 2^seeds patterns of signs"
        )
    _seconds(options.budget)
    refuse_unwritable("--out", options.out)
    refuse_unwritable("--records", options.records)


def _parser():
    parser = command_parser("claims", __doc__)
    parser.set_defaults(action="list", records=RECORDS)
    actions = parser.add_subparsers(dest="action", metavar="list|run|table")
    listing = actions.add_parser("list", help="all claims with their figures; what no word asks for")
    run = actions.add_parser("run", help="train what a claim needs, test it, record it")
    run.add_argument("claim", metavar="ID|all|study", help="study: the claims of claims/desk-study.md, in its order")
    run.add_argument("--data", required=True, metavar="DIR|builtin", help="a folder, a prepared set, or builtin")
    run.add_argument("--larger", metavar="DIR", help="of pretraining and ensemble7: the set with more classes")
    run.add_argument(
        "--seeds",
        type=int,
        metavar="K",
        help="seeds 0 to K-1 in every arm, or K ensembles; default: the claim's, 3 or 1; study: 6 and 1",
    )
    run.add_argument(
        "--first-seed", type=int, default=0, metavar="S", help="seeds S to S+K-1, or ensembles; default: %(default)s"
    )
    run.add_argument("--epochs", type=int, help="of every arm; default: the recipe's")
    run.add_argument("--steps", type=int, help="stop every run after this step")
    run.add_argument(
        "--search-epochs",
        type=int,
        metavar="N",
        help="of cifar-relu: epochs of each run that looks for a learning rate; default: until 25 %% training error",
    )
    run.add_argument(
        "--base", choices=tuple(PRESETS), help="the network that the arms change; default: paper on CUDA, mini on a CPU"
    )
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="changes every arm, before what the claim changes",
    )
    run.add_argument(
        "--note", default="", metavar="TEXT", help="about the data, told wherever the record's results are"
    )
    run.add_argument("--budget", metavar="2h|90m", help="start no claim, and no run, that would end later than this")
    run.add_argument("--out", default=OUT, metavar="DIR", help=f"where the runs are; default: {OUT}")
    add_machine_options(run)
    table = actions.add_parser("table", help="README's table and docs/claims.md, from the records: printed")
    mode = table.add_mutually_exclusive_group()
    mode.add_argument(
        "--write", action="store_true", help="write both, between their markers, instead of printing them"
    )
    mode.add_argument(
        "--check", action="store_true", help="write nothing, fail where one of them differs from the records"
    )
    table.add_argument(
        "--take", metavar="DIR", help="take runs and fuller records from another folder of records first"
    )
    table.add_argument("--readme", metavar="FILE", help="default: README.md of the checkout")
    table.add_argument("--details", metavar="FILE", help="the page of all that is known; default: its docs/claims.md")
    for action in (listing, run, table):
        action.add_argument(
            "--records", default=RECORDS, metavar="DIR", help="where the records are; default: claims/records"
        )
    return parser


if __name__ == "__main__":
    run_command(main)
