"""One claim, all of them or those of the study, within a budget of time: which are fit for the data, and what there is
time for."""

import math
from argparse import Namespace
from contextlib import suppress

from ..system.errors import UserError
from ..system.terminal import duration, say
from . import findings, page, sentences
from .arm_runs import Stopped
from .claim import Claim
from .conduct import run_claim
from .paper_claims import CLAIMS, STUDY
from .plan import arm_recipe, has_labelled_test, opened
from .records import read_records
from .time_budget import Forecast, needed
from .verdict import SEEDS, fewest_seeds, verdict_of

SMALLEST = 32  # pixels a side: at this size every data set can be looked at
CIFAR10 = {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"}
UNKNOWN, LEFT = "no time to measure how long", " for what is left of them"


def chosen(word: str) -> list[Claim]:
    """The claims that a word means: one by its name, "all", or those of the "study" in the order of its plan; [] of any
    other word."""
    claims = {claim.id: claim for claim in CLAIMS}
    names = {"all": claims, "study": STUDY}.get(word, [word])
    return [claims[name] for name in names if name in claims]


def run_one(claim: Claim, options: Namespace, forecast: Forecast) -> int:
    """Train, test and record what one claim needs, with a budget as many seeds as there is time for. Returns the
    command's status. Raises UserError."""
    try:
        _announce(claim, options, forecast)
        _warn_of_few([claim], options)
        seeds, seconds = _seeds_in_time(claim, options, forecast)
        if not seeds:
            say(f"not started: {_too_long(claim, options, seconds)} and {_time_left(forecast)}")
            return 1
        if seeds < (wanted_seeds := _wanted_seeds(claim, options)):
            say(f"{seeds} of {wanted_seeds} seeds, {duration(seconds)}, {_time_left(forecast)}")
        claim_options = _as_one(claim, options, seeds) if options.budget else options
        return 0 if _run(claim, claim_options, seeds, forecast) else 1
    except Stopped:
        say("stopped; the same command goes on")
        return 130


def run_all(options: Namespace, forecast: Forecast) -> int:
    """Claim after claim, all or the study's, each with as many seeds as there is time for; with --seeds K, and of the
    study, with K or not at all. Returns the command's status: 1 where nothing came to a record, or a claim failed."""
    if options.claim == "study":
        options = Namespace(**vars(options) | {"seeds": options.seeds or SEEDS})
    failures, records = [], 0
    reasons = {claim.id: reason for claim in chosen(options.claim) if (reason := _unfit(claim, options))}
    for reason in dict.fromkeys(reasons.values()):
        say(f"left out, {reason}: {', '.join(name for name, other in reasons.items() if other == reason)}")
    claims = [claim for claim in chosen(options.claim) if claim.id not in reasons]
    if not claims:
        raise UserError(f"--data {options.data}: no claim can be run on it, which the lines above say why")
    try:
        _tell_length(claims, options, forecast)
        _warn_of_few(claims, options)
        for claim in claims:
            try:
                records += _run_in_time(claim, _of_claim(claim, options), forecast)
            except UserError as error:
                say(f"== {claim.id}: not run: {error}")
                failures.append(claim.id)
    except Stopped:
        say("stopped; the same command goes on")
        return 130
    say(
        f"{'all done that there was time for' if records else 'no claim came to a record'}, {_time_left(forecast)}"
        + (f"; not run: {', '.join(failures)}" if failures else "")
    )
    return 0 if records and not failures else 1


def _run_in_time(claim, options, forecast):
    """Run one of several claims, if there is time; whether it came to a record. Raises UserError if it can't be run."""
    seeds, seconds = _seeds_in_time(claim, options, forecast)
    if not seeds:
        say(f"== {claim.id}: not started, {_too_long(claim, options, seconds)} and {_time_left(forecast)}")
        return False
    say(
        f"== {claim.id}: {seeds} of {_wanted_seeds(claim, options)} seeds, "
        + (f"{duration(seconds)}, " if options.budget else "")
        + _time_left(forecast)
    )
    return _run(claim, _as_one(claim, options, seeds), seeds, forecast) is not None


def _run(claim, options, seeds, forecast):
    """The record of a claim that was run and told, None where no seed was completed."""
    record = run_claim(claim, options, seeds, _allow(forecast, options.budget is not None))
    if record:
        _tell(claim, record, options)
    return record


def _wanted_seeds(claim, options):
    """How many seeds: what --seeds says, but of an ensemble among several claims."""
    return options.seeds or claim.seeds if claim.seeds > 1 or options.claim == claim.id else claim.seeds


def _warn_of_few(claims, options):
    """Say which claims so few seeds give no verdict on."""
    as_planned = options.base == "desk" and not (options.set or options.epochs or options.steps or options.first_seed)
    fewest = {claim: fewest_seeds(claim) and (SEEDS if as_planned else fewest_seeds(claim)) for claim in claims}
    few = [claim for claim in claims if _wanted_seeds(claim, options) < fewest[claim]]
    if few:
        names, most = ", ".join(claim.id for claim in few), max(fewest[claim] for claim in few)
        say(f"too few seeds for a verdict, which takes --seeds {most}: {names}")


def _seeds_in_time(claim, options, forecast):
    """(how many seeds there is time for, the seconds that they take): those that are wanted, or if nobody said how many
    fewer; 0 if there isn't time for one."""
    wanted_seeds = _wanted_seeds(claim, options)
    if not options.budget:
        return wanted_seeds, 0
    for seeds in range(wanted_seeds, wanted_seeds - 1 if options.seeds else 0, -1):
        seconds = forecast.total(*needed(claim, options, seeds))
        if seconds <= max(forecast.left, 0):
            return seeds, seconds
    return 0, seconds


def _too_long(claim, options, seconds):
    """Of the least number of seeds that would do."""
    seeds = _wanted_seeds(claim, options) if options.seeds else 1
    return _how_long(seconds, f" for {sentences.count(seeds, 'seed')}")


def _how_long(seconds, more=""):
    return UNKNOWN if seconds == math.inf else duration(seconds) + more


def _of_claim(claim, options):
    """The options of several claims for one of them: an ensemble's --first-seed counts ensembles."""
    return Namespace(**vars(options) | {"first_seed": claim.kind.turn_of(options.first_seed)})


def _as_one(claim, options, seeds):
    """The options of the command that does this claim alone, with these seeds and no limit: its record names that."""
    words = [
        # every option takes a value
        claim.id if word == options.claim and (not before.startswith("--") or "=" in before) else word
        for before, word in zip(["", *options.typed], options.typed)
    ]
    for name in ("--budget", "--seeds", "--first-seed"):
        for place in [place for place, word in enumerate(words) if word.partition("=")[0] == name][::-1]:
            del words[place : place + (1 if "=" in words[place] else 2)]
    words += ["--seeds", str(seeds), *(["--first-seed", str(options.first_seed)] if options.first_seed else [])]
    return Namespace(**vars(options) | {"typed": words})


def _tell_length(claims, options, forecast):
    """Say how long all of these would take, before the first begins; claims share runs, and each is counted once."""
    runs, weight_paths = {}, set()
    for claim in claims:
        with suppress(UserError):  # said where its turn comes
            of_claim, asked_for = needed(claim, _of_claim(claim, options), _wanted_seeds(claim, options))
            runs |= {run.directory: run for run in of_claim}
            weight_paths |= asked_for
    try:
        how_long = _how_long(forecast.total(list(runs.values()), weight_paths), LEFT)
    except UserError as error:  # of one of them; the others may run
        how_long = f"how long is not known: {error}"
    say(f"{len(claims)} claims, {len(runs)} runs, {how_long}; {_time_left(forecast)}")


def _allow(forecast, limited):
    """allow(run) for `run_claim`: whether there is time for a run; says how long it will take where that is known, or
    has to be."""
    earlier_runs = []

    def allow(run):
        for earlier_run in earlier_runs:  # it has ended, or this would not be asked
            forecast.learn(earlier_run)
        earlier_runs[:] = [run]
        seconds = forecast.total([run], {run.directory}) if limited or run.preset in forecast.pace else 0
        if seconds > forecast.left:
            say(f"no time for it: {_how_long(seconds)}, and {_time_left(forecast)}")
            return False
        if seconds:
            say(f"{duration(seconds)} for this run" + (f", {_time_left(forecast)}" if limited else ""))
        return True

    return allow


def _announce(claim, options, forecast):
    """Say what a claim takes; how long, if a run has told it or a budget asks for it."""
    runs, weight_paths = needed(claim, options, _wanted_seeds(claim, options))
    for run in runs:
        forecast.learn(run)
    say(f"{claim.id}: {claim.sentence}")
    length = ""
    if options.budget or all(run.preset in forecast.pace for run in runs):
        length = f", {_how_long(forecast.total(runs, weight_paths), LEFT)}"
    say(f"{len(runs)} runs{length}")


def _time_left(forecast):
    return "no limit" if forecast.end == math.inf else f"{duration(max(forecast.left, 0))} left"


def _tell(claim, record, options):
    """What came of a claim here, and the verdict on it, among all records of these conditions."""
    records = read_records(options.records)
    say(findings.setting(record))
    repetition = page.repetition(claim, record, records.get(claim.id, []), options.records)
    for sentence in (*findings.findings(record), *repetition):
        say(f"  {sentence}")
    say(f"  verdict: {page.in_words(verdict_of(record, records, options.records))}")


def _unfit(claim, options):
    """Why `run all` leaves a claim out on these data, None where it doesn't. Raises UserError for data that nothing
    could use."""
    dataset = opened(options.data, SMALLEST)
    class_count, labelled = len(dataset.classes), has_labelled_test(options.data, SMALLEST)
    fits = {
        "any": True,
        "labelled test": labelled,
        "cifar10": set(dataset.classes) == CIFAR10,
        "ilsvrc-2010": 1000 <= class_count < 5000 and labelled,
        "ilsvrc-2012": 1000 <= class_count < 5000 and not labelled,
        "fall-2009": class_count >= 5000,
    }
    if not fits[claim.data]:
        return "which are of other data"
    size = arm_recipe(claim.arms[0], options)[1].stored_size
    try:
        opened(options.data, size)
    except UserError:
        return f"which need pictures of {size}x{size}"
    return None
