"""Every claim of the paper, and the command that tests it.

examples
  python -m alexnet_mp.claims                                                    all: the paper's figures, 2012's, ours
  python -m alexnet_mp.claims run lrn --data imagenette --base mini --epochs 20  one of them, three seeds an arm
  python -m alexnet_mp.claims run cifar-relu --data cifar10 --seeds 5 --search-epochs 3
  python -m alexnet_mp.claims run all --data imagenette --epochs 20 --budget 2h  as many as two hours allow
  python -m alexnet_mp.claims table                                              README's table, the page of all claims
  python -m alexnet_mp.claims table --write                                      into README.md and docs/claims.md

All arms of a claim have the same seeds, 0 to K-1, the same data and the same schedule; with --epochs it is the base's
own. In place of a plateau schedule all rates fall to a tenth three times then, at the shares of the epochs that they
had in 2012. The runs lie in --out and are those of the training command; stopped by Ctrl-C or a power cut, the same
command goes on. Claims share the runs that they have in common. The record (JSON) and its picture lie in --records.
"""

import math
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from .command_options import add_machine_options, compute_as_in_training
from .experiments import findings, page
from .experiments.arm_runs import Stopped
from .experiments.claim import command
from .experiments.conduct import run_claim
from .experiments.elsewhere import ELSEWHERE
from .experiments.paper_claims import CLAIMS
from .experiments.plan import arm_recipe, has_labelled_test, opened
from .experiments.records import RECORDS, read_records, take_records
from .experiments.time_budget import Forecast, needed
from .recipes.named import PRESETS
from .system.command_line import command_parser
from .system.durable_files import refuse_unwritable
from .system.errors import UserError, run_command
from .system.terminal import duration, say

OUT = "runs/claims"
SMALLEST = 32  # pixels a side: at this size every data set can be looked at
CIFAR10 = {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"}
UNKNOWN = "no time to measure how long"


def main(arguments: Sequence[str | Path] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else [str(argument) for argument in arguments]
    options = _parser().parse_args(arguments)
    options.typed = arguments
    match options.action:
        case "run":
            return _run(options)
        case "table":
            if options.take:
                for name in take_records(options.take, options.records):
                    say(f"took {name}")
            return _table(options)
        case _:
            return _list(options)


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
        here = [record for record in records.get(claim.id, []) if findings.findings(record)]
        for record in here:
            say(f"    here   {findings.setting(record)}:")
            for sentence in findings.findings(record):
                say(f"           {sentence}")
        if not here:
            say("    here   not run here")
        if claim.needs:
            say(f"    needs  {claim.needs}")
        say(f"    {command(claim)}")
    for other in ELSEWHERE:
        say(f"{other.id}: {other.sentence} ({other.section})")
        say(f"    paper  {other.paper}")
        say(f"    2012   {other.source}")
        for sentence in other.told(options.records, records) or ["not run here"]:
            say(f"    here   {sentence}")
        say(f"    {other.command}")
    return 0


def _run(options):
    _refuse(options)
    compute_as_in_training()
    if options.claim == "all":
        return _run_all(options)
    claim = next(claim for claim in CLAIMS if claim.id == options.claim)
    forecast = Forecast(options, _seconds(options.budget))
    try:
        _announce(claim, options, options.seeds or claim.seeds, forecast)
        record = run_claim(claim, options, options.seeds or claim.seeds, _allow(forecast, options.budget is not None))
    except Stopped:
        say("stopped; the same command goes on")
        return 0
    if record:
        _tell(record)
    return 0 if record else 1


def _run_all(options):
    """Claim after claim, in the order of the list, each with as many seeds as there is time for; with --seeds K, with K
    or not at all."""
    forecast, failed = Forecast(options, _seconds(options.budget)), []
    unfit = {claim.id: reason for claim in CLAIMS if (reason := _unfit(claim, options))}
    for reason in dict.fromkeys(unfit.values()):
        say(f"left out, {reason}: {', '.join(name for name, other in unfit.items() if other == reason)}")
    _tell_length([claim for claim in CLAIMS if claim.id not in unfit], options, forecast)
    for claim in CLAIMS:
        if claim.id in unfit:
            continue
        wanted = options.seeds or claim.seeds if claim.seeds > 1 else claim.seeds
        try:
            for seeds in range(wanted, wanted - 1 if options.seeds else 0, -1):
                seconds = forecast.total(needed(claim, options, seeds)) if options.budget else 0
                if seconds <= max(forecast.left, 0):
                    break
            else:
                what = "one seed" if seeds == 1 else f"{seeds} seeds"
                needs = "no time to measure how long" if seconds == math.inf else f"{duration(seconds)} for {what}"
                say(f"== {claim.id}: not started, {needs} and {_left(forecast)}")
                continue
            say(
                f"== {claim.id}: {seeds} of {wanted} seeds, "
                + (f"{duration(seconds)}, " if options.budget else "")
                + _left(forecast)
            )
            record = run_claim(claim, options, seeds, _allow(forecast, options.budget is not None))
            if record:
                _tell(record)
        except Stopped:
            say("stopped; the same command goes on")
            return 0
        except UserError as error:
            say(f"== {claim.id}: not run: {error}")
            failed.append(claim.id)
    say(f"all done that there was time for, {_left(forecast)}" + (f"; not run: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def _tell_length(claims, options, forecast):
    """Say how long all of these would take, before the first begins; claims share runs, and each is counted once."""
    runs = {}
    for claim in claims:
        with suppress(UserError):  # said where its turn comes
            wanted = options.seeds or claim.seeds if claim.seeds > 1 else claim.seeds
            runs |= {run.directory: run for run in needed(claim, options, wanted)}
    seconds = forecast.total(list(runs.values()))
    how_long = UNKNOWN if seconds == math.inf else f"{duration(seconds)} for what is left of them"
    say(f"{len(claims)} claims, {len(runs)} runs, {how_long}; {_left(forecast)}")


def _allow(forecast, limited):
    """allow(run) for `run_claim`: whether there is time for a run; says how long it will take where that is known, or
    has to be."""
    before = []

    def allow(run):
        for earlier in before:  # it has ended, or this would not be asked
            forecast.learn(earlier)
        before[:] = [run]
        seconds = forecast.total([run]) if limited or run.preset in forecast.pace else 0
        if seconds > forecast.left:
            how_long = UNKNOWN if seconds == math.inf else duration(seconds)
            say(f"no time for it: {how_long}, and {_left(forecast)}")
            return False
        if seconds:
            say(f"{duration(seconds)} for this run" + (f", {_left(forecast)}" if limited else ""))
        return True

    return allow


def _announce(claim, options, seeds, forecast):
    runs = needed(claim, options, seeds)
    for run in runs:
        forecast.learn(run)
    known = all(run.preset in forecast.pace for run in runs)
    say(f"{claim.id}: {claim.sentence}")
    say(f"{len(runs)} runs" + (f", {duration(forecast.total(runs))} for what is left of them" if known else ""))


def _left(forecast):
    return "no limit" if forecast.end == math.inf else f"{duration(max(forecast.left, 0))} left"


def _tell(record):
    say(findings.setting(record))
    for sentence in findings.findings(record):
        say(f"  {sentence}")


def _unfit(claim, options):
    """Why `run all` leaves a claim out on these data, None where it doesn't. Raises UserError for data that nothing
    could use."""
    dataset = opened(options.data, SMALLEST)
    many, labelled = len(dataset.classes), has_labelled_test(options.data, SMALLEST)
    fit = {
        "any": True,
        "labelled test": labelled,
        "cifar10": set(dataset.classes) == CIFAR10,
        "ilsvrc-2010": 1000 <= many < 5000 and labelled,
        "ilsvrc-2012": 1000 <= many < 5000 and not labelled,
        "fall-2009": many >= 5000,
    }
    if not fit[claim.data]:
        return "which are of other data"
    size = arm_recipe(claim.arms[0], options)[1].stored_size
    try:
        opened(options.data, size)
    except UserError:
        return f"which need pictures of {size}x{size}"
    return None


def _seconds(budget):
    """What --budget means: "2h" -> 7200, "90m", "45s"; None where none is given. Raises UserError."""
    if budget is None:
        return None
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)([hms])", budget, re.ASCII)
    if not match or float(match[1]) <= 0:
        raise UserError(f"--budget {budget}: write hours, minutes or seconds, as in 2h, 90m, 45s")
    return float(match[1]) * {"h": 3600, "m": 60, "s": 1}[match[2]]


def _refuse(options):
    if other := next((other for other in ELSEWHERE if other.id == options.claim), None):
        raise UserError(f"{options.claim} has no run of its own; its figure comes from: {other.command}")
    if options.claim not in ("all", *(claim.id for claim in CLAIMS)):
        raise UserError(
            f"no claim is called {options.claim}; they are {', '.join(claim.id for claim in CLAIMS)}, and all"
        )
    asked = [claim for claim in CLAIMS if options.claim in (claim.id, "all")]
    if options.larger and not any(arm.larger for claim in asked for arm in claim.arms):
        raise UserError(f"--larger {options.larger}: {options.claim} trains nothing on another set")
    if options.search_epochs and not any(claim.kind.searches_rates for claim in asked):
        raise UserError(f"--search-epochs {options.search_epochs}: {options.claim} looks for no learning rate")
    for name in ("seeds", "epochs", "steps", "search_epochs"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: it must be at least 1")
    for setting in options.set:
        if setting.partition("=")[0] in ("seed", "name"):
            raise UserError(f"--set {setting}: the arms have names of their own and the seeds 0 to K-1, with --seeds K")
    if options.larger:
        many, few = (len(opened(data, SMALLEST).classes) for data in (options.larger, options.data))
        if many <= few:
            raise UserError(
                f"--larger {options.larger}: it has {many:,} classes and --data {options.data} has {few:,}; "
                "pre-training is on a set of more"
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
    listed = actions.add_parser("list", help="all claims with their figures; what no word asks for")
    run = actions.add_parser("run", help="train what a claim needs, test it, record it")
    run.add_argument("claim", metavar="ID|all")
    run.add_argument("--data", required=True, metavar="DIR|builtin", help="a folder, a prepared set, or builtin")
    run.add_argument("--larger", metavar="DIR", help="of pretraining and ensemble7: the set with more classes")
    run.add_argument(
        "--seeds",
        type=int,
        metavar="K",
        help="seeds 0 to K-1 in every arm, or K ensembles; default: the claim's, 3 or 1",
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
    run.add_argument("--budget", metavar="2h|90m", help="start no run that would end later than this")
    run.add_argument("--out", default=OUT, metavar="DIR", help=f"where the runs are; default: {OUT}")
    add_machine_options(run)
    table = actions.add_parser("table", help="README's table and docs/claims.md, from the records: printed")
    how = table.add_mutually_exclusive_group()
    how.add_argument("--write", action="store_true", help="write both, between their markers, instead of printing them")
    how.add_argument(
        "--check", action="store_true", help="write nothing, fail where one of them differs from the records"
    )
    table.add_argument(
        "--take", metavar="DIR", help="take runs and fuller records from another folder of records first"
    )
    table.add_argument("--readme", metavar="FILE", help="default: README.md of the checkout")
    table.add_argument("--details", metavar="FILE", help="the page of all that is known; default: its docs/claims.md")
    for action in (listed, run, table):
        action.add_argument(
            "--records", default=RECORDS, metavar="DIR", help="where the records are; default: claims/records"
        )
    return parser


if __name__ == "__main__":
    run_command(main)
