"""One claim, or all of them within a budget of time: which are fit for the data, and what there is time for."""

import math
from argparse import Namespace
from contextlib import suppress

from ..system.errors import UserError
from ..system.terminal import duration, say
from . import findings
from .arm_runs import Stopped
from .claim import Claim
from .conduct import run_claim
from .paper_claims import CLAIMS
from .plan import arm_recipe, has_labelled_test, opened
from .time_budget import Forecast, needed

SMALLEST = 32  # pixels a side: at this size every data set can be looked at
CIFAR10 = {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"}
UNKNOWN = "no time to measure how long"


def run_one(claim: Claim, options: Namespace, forecast: Forecast) -> int:
    """Train, test and record what one claim needs. Returns the command's status. Raises UserError."""
    seeds = options.seeds or claim.seeds
    try:
        _announce(claim, options, seeds, forecast)
        record = run_claim(claim, options, seeds, _allow(forecast, options.budget is not None))
    except Stopped:
        say("stopped; the same command goes on")
        return 0
    if record:
        _tell(record)
    return 0 if record else 1


def run_all(options: Namespace, forecast: Forecast) -> int:
    """Claim after claim, in the order of the list, each with as many seeds as there is time for; with --seeds K, with K
    or not at all. Returns the command's status."""
    failed = []
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
