"""Train, test and record what a claim needs: `python -m alexnet_mp.claims run ID`.

The arms take turns within a seed, so that whatever was cut off leaves pairs; the record is written anew after each
seed. What was trained is not trained again."""

import datetime
import math
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ..recipes.named import PRESETS
from ..system.errors import UserError
from ..system.terminal import say
from .arm_runs import command_of, status, train_run
from .claim import FACTORS, GRID, Arm, Claim
from .entries import repeated, seeds_of
from .kind import Kind
from .measure import average, entry_of, measure, measure_and_keep
from .plan import Run, arm_recipe, base_of, data_for, digest_of, has_labelled_test, opened, search_run, turns
from .records import FORMAT, differences, machine, read_records, write_record


def run_claim(
    claim: Claim, options: Namespace, seeds: int, allow: Callable[[Run], bool] = lambda run: True
) -> dict | None:
    """Train, test and record a claim. Returns the record, or None where no seed was completed.

    A run that is kept beside the records is not trained again, unless its weights are asked for: by an average of
    networks, or by another run that begins with them. Then this record has the new network, and what is kept stays.
    allow(run): False where there is no time for it; nobody asks it of a run that is kept and stays so. Raises
    `Stopped` after Ctrl-C; the record of what is there is written already."""
    record, path = new_record(claim, options), None
    if claim.kind.searches_rates and not search_rates(claim, options, record, allow):
        return None
    _say_overlap(claim, options, seeds, record)
    plan = planned_turns(claim, options, seeds, record["rates"])
    for number, (runs, members, old_average, weight_paths) in enumerate(plan, 1):
        what = f"{'ensemble' if members else 'seed'} {number} of {seeds}"
        entries = _entries_of_turn(claim, options, runs, weight_paths, what, allow)
        if entries is None:
            return record if path else None
        record["runs"] += entries.values()
        record["ensembles"] += _averages(claim, options, members, old_average, number)
        path, written = write_record(record, options.records)
    say(f"recorded in {path}" if written else f"{path} stays as it is: it has these runs and more")
    return record


class PlannedTurn(NamedTuple):
    """The runs of a seed, or of an ensemble."""

    runs: list[Run]  # in order
    members: list[Run]  # those of them that are averaged
    old_average: dict | None  # what an earlier record has of the same members
    weight_paths: set[Path]  # the directories of the runs whose weights are asked for


def planned_turns(
    claim: Claim, options: Namespace, seeds: int, rates: Mapping[str, float] | None = None
) -> Iterator[PlannedTurn]:
    """The turns of a claim, one after the other: whose weights are asked for depends on what is there by then."""
    averages = {
        _names(ensemble["members"]): ensemble
        for old_record in read_records(options.records).get(claim.id, [])
        for ensemble in old_record["ensembles"]
    }
    for runs, members in turns(claim, options, seeds, rates):
        members = members or []
        old_average = averages.get(_names(member.directory for member in members))
        weight_paths = _weights_wanted(runs, [] if old_average else members, options)
        yield PlannedTurn(runs, members, old_average, weight_paths)


def _weights_wanted(runs, members, options):
    """The directories of the runs of a turn whose weights are asked for: of `members`, which are to be averaged, and of
    those with which a run begins that isn't trained yet."""
    paths = {member.directory for member in members}
    pending_runs = [run for run in runs if run.directory in paths or not entry_of(run, options)]
    return paths | {run.init for run in pending_runs if run.init and status(run) not in ("done", "diverged")}


def _say_overlap(claim, options, seeds, record):
    """Say that a record with some of the seeds of those that it repeats is held against none."""
    seeds = {run.seed for runs, _ in turns(claim, options, seeds, record["rates"]) for run in runs}
    earlier_records = repeated(record, read_records(options.records).get(claim.id, []))
    shared_seeds = [sorted(seeds & seeds_of(earlier_record)) for earlier_record in earlier_records]
    if shared_seeds and all(shared_seeds):
        names = ", ".join(map(str, shared_seeds[0]))
        say(
            f"-- {claim.id}: the record that this one repeats foretells nothing of it, these seeds are in both: {names}"
        )


def _entries_of_turn(claim, options, runs, weight_paths, turn, allow):
    """{directory: entry} of a turn's runs, trained and measured unless they are kept and nobody wants their weights;
    None where there was no time for one. turn: which one it is, in words."""
    entries = {}
    for run in runs:
        entry = entry_of(run, options)
        if entry and run.directory not in weight_paths:
            entries[run.directory] = entry
            continue
        if "diverged" in entries.get(run.init, {}):
            say(f"-- {claim.id}: {run.arm}, seed {run.seed}: not trained, what it would begin with diverged")
            continue
        say(f"-- {claim.id}: {run.arm}, seed {run.seed} ({turn})")
        if not allow(run):
            return None
        # the weights of what is kept are gone: this is another network
        anew = entry is not None and status(run) != "done"
        train_run(run, options)
        entries[run.directory] = measure(run, options) if anew else entry or measure_and_keep(run, options)
    return entries


def _averages(claim, options, members, old_average, number):
    """The average of a turn's networks, as a list of one; none where it has no members, or one of them diverged.
    old_average: what an earlier record has of the same members, or None."""
    if old_average:
        return [old_average | {"members": [str(member.directory) for member in members]}]
    if members and all(status(member) == "done" for member in members):
        return [average(members, options)]
    if members:
        say(f"-- {claim.id}: ensemble {number} has a network that diverged, so it is not averaged")
    return []


def _names(directories):
    """What tells the members of an ensemble, wherever they lay."""
    return tuple(Path(directory).name for directory in directories)


# --- the search for a learning rate


def search_rates(claim: Claim, options: Namespace, record: dict, allow: Callable[[Run], bool]) -> bool:
    """Find the best learning rate of each arm, and record it as a factor on the arm's own; False where there was no
    time for it."""
    for arm in claim.arms:
        while True:
            factor, best, entries = search(claim.kind, arm, options)
            if factor is None:
                break
            say(f"-- {claim.id}: {arm.name} at {factor:g} times its learning rate")
            run = search_run(claim.kind, arm, factor, options)
            if not allow(run):
                return False
            train_run(run, options)
        if best is None:
            raise UserError(
                f"{claim.id}: {arm.name} diverged at every learning rate from {FACTORS[0]:g} to {GRID[-1]:g} times "
                "its own"
            )
        record["rates"][arm.name], record["search"] = best, record["search"] + entries
    return True


def search(kind: Kind, arm: Arm, options: Namespace) -> tuple[float | None, float | None, list[dict] | None]:
    """(the factor to be tried next, None, None), or (None, the best factor, what was measured at each) once that is
    known.

    Best: the fewest epochs to the level, else the least training error; of equals the least loss, since all networks at
    chance err alike. The grid is widened until the best is inside it, or the end of `FACTORS` is reached. The runs have
    a seed of their own, and are those that records have or that are there: nothing is trained."""
    recorded_entries = {
        Path(entry["directory"]).name: entry
        for records in read_records(options.records).values()
        for record in records
        for entry in record["search"]
    }
    entries, grid = {}, list(GRID)
    while True:
        for factor in grid:
            if factor in entries:
                continue
            run = search_run(kind, arm, factor, options)
            entry = recorded_entries.get(run.directory.name)
            if entry is None and status(run) in ("new", "begun"):
                return factor, None, None
            entries[factor] = (entry or measure(run, options, tested=False)) | {
                "directory": str(run.directory),
                "factor": factor,
            }
        scores = [
            (entry["epochs_to_level"] or math.inf, entry["train"]["top1_error"], entry["train"]["loss"], factor)
            for factor, entry in entries.items()
            if "diverged" not in entry
        ]
        best = min(scores)[-1] if scores else None
        below, above = FACTORS[: FACTORS.index(grid[0])][-1:], FACTORS[FACTORS.index(grid[-1]) + 1 :][:1]
        if below and best in (None, grid[0]):
            grid = [*below, *grid]
        elif above and best == grid[-1]:
            grid = [*grid, *above]
        else:
            return None, best, [entries[factor] for factor in grid]


# --- its record


def _refuse_nothing(claim, arms):
    """Raise UserError where two arms are the same network."""
    names = {}
    for arm, _, recipe in arms:
        twin = names.setdefault((recipe, arm.init, arm.larger), arm.name)
        if twin != arm.name:
            raise UserError(
                f"{claim.id}: {arm.name} changes nothing of this network, it is the same as {twin}; "
                "there is nothing to compare"
            )


def new_record(claim: Claim, options: Namespace) -> dict:
    """A record without runs: what was asked for, with what, and how its arms differ."""
    arms = [(arm, *arm_recipe(arm, options)) for arm in claim.arms]
    _refuse_nothing(claim, arms)
    reference, sets = arms[0][2], {}
    for arm, _, recipe in arms:
        data = data_for(arm, claim.arms, options, recipe)
        dataset = opened(data, recipe.stored_size)
        sets[dataset.fingerprint] = {
            "description": dataset.description.replace(data, Path(data).name),
            "fingerprint": dataset.fingerprint,
            "classes": len(dataset.classes),
            "images": {name: len(split) for name, split in dataset.splits.items()},
        }
        if claim.kind.on_test_images and has_labelled_test(data, recipe.stored_size):
            test_set = opened(data, recipe.stored_size, "test")
            sets[dataset.fingerprint] |= {
                "test_images": len(test_set.splits["test"]),
                "test_fingerprint": test_set.fingerprint,
            }
    return {
        "format": FORMAT,
        "claim": claim.id,
        "kind": claim.kind.word,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command_of(options),
        "note": options.note,
        "reported_on": machine(options.gpus),
        "data": list(sets.values()),
        "base": base_of(options),
        "set": list(options.set),
        "first_seed": options.first_seed,
        "epochs": reference.epochs,
        "steps": options.steps,
        "search_epochs": options.search_epochs,
        "arms": [
            {
                "name": arm.name,
                "what": arm.what,
                "preset": preset,
                "init": arm.init,
                "larger": arm.larger,
                "digest": digest_of(recipe),
                "of_preset": differences(PRESETS[preset](), recipe),
                "differs": differences(reference, recipe),
            }
            for arm, preset, recipe in arms
        ],
        "runs": [],
        "search": [],
        "rates": {},
        "ensembles": [],
    }
