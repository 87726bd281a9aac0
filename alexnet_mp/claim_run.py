"""Train, test and record what a claim needs: `python -m alexnet_mp.claims run ID`.

Every run is one of `train.main`, in this process, in OUT/<arm>-<digest>-seed<N>, where the digest is of recipe, data and beginning:
two claims that need the same run share it, and a claim that is begun again goes on where it stopped. The arms take turns within a
seed, so that whatever was cut off leaves pairs; the record is written anew after each seed.
"""
import datetime
import hashlib
import json
import math
import shlex
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from . import averaging, checkpoint, claim_statistics, files, train, variants
from . import recipe as recipes
from .answers import answers
from .claim_list import LEVEL, RATES, at_rate
from .claim_pictures import averaged
from .claim_record import FORMAT, differences, machine, write_record
from .claim_subset import every_second_class
from .console import progress, say
from .dataset import open_dataset
from .errors import UserError
from .evaluate import both_protocols, evaluate, load_run, log_probabilities
from .loader import centre_view
from .metrics import read_metrics
from .pipelines import make_pipeline
from .presets import PRESETS

SEARCH_SEED = 1000  # of the search for a learning rate: none that the comparison uses
RESULT = ".result.json"  # beside a run's directory: seconds that it took, and tests that the run itself did not do


class Stopped(Exception):
    """Ctrl-C came: what is there stays, and the same command goes on."""


@dataclass(frozen=True)
class Run:
    """One training run of a claim, done or to be done."""

    arm: str
    seed: int
    preset: str
    recipe: recipes.Recipe  # with its seed
    data: str  # what --data says
    steps: int | None
    directory: Path
    init: Path | None = None  # the run whose weights it begins with


def base_of(options):
    """The preset that --base means: as `train` chooses, paper on CUDA and mini on a CPU."""
    on_cpu = set(options.gpus.replace(" ", "").split(",")) == {"cpu"} or (options.gpus == "auto" and torch.cuda.device_count() == 0)
    return options.base or ("mini" if on_cpu else "paper")


def arm_recipe(arm, options):
    """(preset's name, the arm's recipe): preset, --set, --epochs, then what the claim changes."""
    preset = arm.preset or base_of(options)
    recipe = recipes.override(PRESETS[preset](), options.set)
    if options.epochs is not None and recipe.schedule == "plateau":  # which would not come to an end in fewer
        recipe = variants.dated_schedule(recipe, options.epochs)
    elif options.epochs is not None:
        recipe = variants.shortened(recipe, options.epochs)
    for derive in arm.derive:
        recipe = derive(recipe)
    return preset, recipe


@lru_cache(maxsize=8)
def _opened(data, stored_size):
    return open_dataset(data, stored_size)


def data_of(run):
    """The run's data set, opened once."""
    return _opened(run.data, run.recipe.stored_size)


def runs_of_seed(arms, options, seed):
    """The runs of all arms with one seed, in the order in which they are trained."""
    made = {}
    for arm in arms:
        preset, recipe = arm_recipe(arm, options)
        made[arm.name] = make_run(arm.name, preset, replace(recipe, seed=seed), data_for(arm, arms, options, recipe), options,
                                  made[arm.init].directory if arm.init else None)
    return list(made.values())


def make_run(name, preset, recipe, data, options, init=None, steps=None):
    """A `Run` with its directory."""
    steps = steps or options.steps
    what = [recipes.to_dict(replace(recipe, seed=0, name="x")), _opened(data, recipe.stored_size).fingerprint, steps,
            init.name if init else None]
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]
    return Run(name, recipe.seed, preset, recipe, data, steps, Path(options.out) / f"{name}-{digest}-seed{recipe.seed}", init)


def data_for(arm, arms, options, recipe):
    """What an arm is trained on: --data. Pre-training: --larger; or, without it, --data, and the other arms half of its classes."""
    if not any(other.larger for other in arms) or (options.larger and not arm.larger):
        return options.data
    if arm.larger:
        return options.larger or options.data
    whole = _opened(options.data, recipe.stored_size)
    folder = Path(options.out) / f"half-{whole.fingerprint[:8]}-{recipe.stored_size}"
    return str(every_second_class(whole, recipe.stored_size, folder))


# --- one run

def status(run):
    """"new", "begun", "done" or "diverged"."""
    if (run.directory / "non_finite.json").exists():
        return "diverged"
    if not (run.directory / "run.json").exists():
        return "new"
    if tested_by_run(run):
        return "done"
    reached = max(checkpoint.listing(run.directory), default=0)
    return "done" if run.steps is not None and reached >= min(run.steps, whole_steps(run)) else "begun"


def steps_per_epoch(run):
    return -(-len(data_of(run).splits["train"]) // run.recipe.batch_size)


def whole_steps(run):
    return run.recipe.epochs * steps_per_epoch(run)


def tested_by_run(run):
    """{protocol: errors} of the test at the run's own end, {} where it has not come to it."""
    tests = [line for line in read_metrics(run.directory) if line["kind"] == "test"]
    tests = {line["protocol"]: {name: line[name] for name in ("top1_error", "top5_error", "loss", "images")} for line in tests}
    return tests if set(tests) == set(both_protocols(run.recipe)) else {}


def train_run(run, options):
    """Train a run to its end, or go on with it. Raises `Stopped` where Ctrl-C came, UserError where it can't be trained."""
    if status(run) in ("done", "diverged"):
        return
    towers = run.recipe.towers
    arguments = ["--recipe", run.preset, *settings(run), "--data", run.data, "--out", str(run.directory), "--resume", "auto",
                 "--seed", str(run.seed), "--gpus", first_gpu(options.gpus, towers), "--pipeline", options.pipeline,
                 "--kernels", options.kernels, "--keep", "1",
                 *(["--workers", str(options.workers)] if options.workers is not None else []),
                 *(["--steps", str(run.steps)] if run.steps is not None else []),
                 *(["--init", str(run.init)] if run.init else [])]
    start = time.monotonic()
    try:
        with _typed("train", arguments):
            train.main(arguments)
    except UserError as error:
        if status(run) != "diverged":
            raise
        say(f"{run.directory.name} diverged, which is a result: {error}")
    finally:
        if run.directory.is_dir():
            _note(run, seconds=read_notes(run).get("seconds", 0) + time.monotonic() - start)
    if status(run) not in ("done", "diverged"):
        raise Stopped


def settings(run):
    """The --set options that make the run's recipe of its preset; layers last, since they are checked at once."""
    preset, wanted = PRESETS[run.preset](), recipes.to_dict(run.recipe)
    changed = {field: after for field, (_, after) in differences(preset, run.recipe).items()}
    given = {field: after for field, after in changed.items() if field in wanted and field != "seed"}
    if [layer.name for layer in preset.layers] == [layer.name for layer in run.recipe.layers]:
        given |= {field: after for field, after in changed.items() if "." in field}
    else:
        given["layers"] = wanted["layers"]
    return [word for field, value in given.items() for word in ("--set", f"{field}={json.dumps(value)}")]


def first_gpu(gpus, towers):
    """--gpus for a network of one tower: the first device."""
    return gpus if towers == 2 else gpus.split(",")[0]


@contextmanager
def _typed(command, arguments):
    """run.json says with which command a run can be made again: this one, not `claims`."""
    before, sys.argv = sys.argv, [command, *arguments]
    try:
        yield
    finally:
        sys.argv = before


def read_notes(run):
    """What lies beside a run's directory: {"seconds": ..., "tests": ...}."""
    try:
        return json.loads(Path(f"{run.directory}{RESULT}").read_text())
    except (FileNotFoundError, ValueError):
        return {}


def _note(run, **values):
    files.replace(Path(f"{run.directory}{RESULT}"), (json.dumps(read_notes(run) | values) + "\n").encode())


def test_run(run, options, split, protocols):
    """{protocol: errors} of a finished run on one of its splits; kept beside the run."""
    step, noted = max(checkpoint.listing(run.directory)), read_notes(run).get("tests", {})
    key = f"{split}, {', '.join(protocols)}, step {step}"
    if key not in noted:
        network, pipeline = _network_of(run, options, split)
        with progress(f"testing {run.directory.name} on {split}", len(pipeline.dataset.splits[split])) as advance:
            errors = evaluate(network, pipeline, split, protocols, run.recipe.batch_size, advance)
        noted[key] = {name: asdict(error) for name, error in errors.items()}
        _note(run, tests=noted)
    return noted[key]


def _has_labelled_test(run):
    """Whether the run's data have test images whose classes are known: headline figures are of those."""
    try:
        test = open_dataset(run.data, run.recipe.stored_size, ("test",)).splits["test"]
    except UserError:
        return False
    return bool((np.asarray(test.labels) >= 0).all())


def _network_of(run, options, split):
    """(network, pipeline) of a finished run, to be tested on a split of its data."""
    network, found = load_run(str(run.directory), first_gpu(options.gpus, run.recipe.towers), options.kernels)
    dataset = open_dataset(run.data, run.recipe.stored_size, (split,))
    pipeline = make_pipeline(options.pipeline, dataset, run.recipe, network.exchange.devices, options.workers)
    pipeline.use(found.statistics)
    return network, pipeline


def measure(run, kind, options):
    """What the record says of a run that is done or diverged."""
    lines = [line for line in read_metrics(run.directory) if line["kind"] == "train"]
    losses, errors = [line["loss"] for line in lines], [line["top1_error"] for line in lines]
    per_epoch = steps_per_epoch(run)
    entry = {"arm": run.arm, "seed": run.seed, "directory": str(run.directory), "steps": len(lines), "steps_per_epoch": per_epoch,
             "seconds": round(read_notes(run).get("seconds", 0), 1), "images_per_second": _rate(lines)}
    if lines:
        last = slice(-min(per_epoch, len(lines)), None)
        entry["train"] = {"loss": _mean(losses[last]), "top1_error": _mean(errors[last])}  # with dropout and augmentation
        points = claim_statistics.thinned(losses)
        entry["curve"] = {"steps": [step for step, _ in points], "loss": [round(loss, 4) for _, loss in points],
                          "top1_error": [round(error, 3) for _, error in claim_statistics.thinned(errors)]}
    if kind == "rates":
        entry["epochs_to_level"] = claim_statistics.epochs_to(errors, per_epoch, LEVEL)
    if kind == "moved":
        entry["moved"] = claim_statistics.moved_at(losses, len(data_of(run).classes))
    if status(run) == "diverged":
        return entry | {"diverged": json.loads((run.directory / "non_finite.json").read_text())["step"]}
    entry["errors"] = tested_by_run(run) or test_run(run, options, "val", both_protocols(run.recipe))
    if kind in ("dropout", "training"):
        entry["on_training_images"] = test_run(run, options, "train", {"centre view": centre_view(run.recipe)})["centre view"]
    if kind == "errors" and _has_labelled_test(run):
        entry["on_test_images"] = test_run(run, options, "test", both_protocols(run.recipe))
    if kind == "towers" and run.recipe.towers == 2:
        kernels = checkpoint.newest_weights(run.directory)[1][f"{run.recipe.layers[0].name}.weight"].numpy()
        entry["chroma"] = claim_statistics.chroma_shares(kernels, 2)
        entry["random_split_p"] = claim_statistics.random_split_p(kernels)
    return entry


def _rate(lines):
    """The median of images a second; the first step warms up."""
    rates = sorted(line["images_per_second"] for line in lines[1:] or lines)
    return round(rates[len(rates) // 2], 1) if rates else None


def _mean(values):
    return sum(values) / len(values)


# --- a whole claim

def run_claim(claim, options, seeds, allow=lambda run: True):
    """Train, test and record a claim. Returns the record, or None where no seed was completed.

    allow(run): False where there is no time for it. Raises `Stopped` after Ctrl-C; the record of what is there is written already.
    """
    record, path = new_record(claim, options), None
    rates = search_rates(claim, options, record, allow) if claim.kind == "rates" else {}
    if rates is None:
        return None
    total = turns(claim, options, seeds, rates)
    for number, (runs, members) in enumerate(total, 1):
        made = []
        for run in runs:
            if any(run.init == other.directory and status(other) == "diverged" for other in made):
                say(f"-- {claim.id}: {run.arm}, seed {run.seed}: not trained, what it would begin with diverged")
                continue
            say(f"-- {claim.id}: {run.arm}, seed {run.seed} ({'ensemble' if members else 'seed'} {number} of {len(total)})")
            if not allow(run):
                return record if path else None
            train_run(run, options)
            made.append(run)
        record["runs"] += [measure(run, claim.kind, options) for run in made]
        if members and all(status(member) == "done" for member in members):
            record["ensembles"].append(average(members, options))
        elif members:
            say(f"-- {claim.id}: ensemble {number} has a network that diverged, so it is not averaged")
        path = write_record(record, options.records)
    say(f"recorded in {path}")
    return record


def at(arm, rates):
    """The arm at the learning rate that was found for it, if one was looked for."""
    return replace(arm, derive=(*arm.derive, lambda recipe: at_rate(rates[arm.name], recipe))) if rates else arm


def search_rates(claim, options, record, allow):
    """{arm: factor} of each arm's best learning rate: the fewest epochs to 25 % training error, else the least training error.

    The runs of the search have a seed of their own and are in the record. None where there is no time for them.
    """
    best = {}
    for arm in claim.arms:
        found = []
        for factor in RATES:
            run, = runs_of_seed([replace(at(arm, {arm.name: factor}), init=None)], options, SEARCH_SEED)
            say(f"-- {claim.id}: {arm.name} at {factor:g} times its learning rate")
            if not allow(run):
                return None
            train_run(run, options)
            entry = measure(run, claim.kind, options) | {"factor": factor}
            record["search"].append(entry)
            if "diverged" not in entry:
                found.append((entry["epochs_to_level"] or math.inf, entry["train"]["top1_error"], factor))
        if not found:
            raise UserError(f"{claim.id}: {arm.name} diverged at every learning rate of the grid")
        best[arm.name] = min(found)[2]
    record["rates"] = best
    return best


def turns(claim, options, seeds, rates=None):
    """[(runs to train, in order; those of them that are averaged, or None)]: a turn a seed, or an ensemble."""
    arms = [at(arm, rates) for arm in claim.arms]
    if claim.kind != "ensemble":
        return [(runs_of_seed(arms, options, seed), None) for seed in range(seeds)]
    result = []
    for number in range(seeds):  # no two ensembles share a network
        fives = [runs_of_seed(arms, options, seed)[0] for seed in range(5 * number, 5 * number + 5)]
        twos = [runs_of_seed(arms, options, seed)[1:] for seed in range(2 * number, 2 * number + 2)] if arms[1:] else []
        result.append(([*fives, *(run for runs in twos for run in runs)], [*fives, *(runs[-1] for runs in twos)]))
    return result


def average(members, options):
    """Errors of several networks averaged plainly, and with the weights that are best on the validation images, as 2012 chose them.

    Both are errors on the validation images, so the second are those of a choice on the very images it is tested on.
    """
    logs, sums = [], {}
    for member in members:
        network, pipeline = _network_of(member, options, "val")
        parts, labels = {}, []
        for batch, of_batch in log_probabilities(network, pipeline, "val", both_protocols(member.recipe), member.recipe.batch_size):
            for name, values in batch.items():
                parts.setdefault(name, []).append(values.float().cpu())
            labels.append(of_batch.cpu())
        del network, pipeline
        parts, labels = {name: torch.cat(values) for name, values in parts.items()}, torch.cat(labels)
        for name, values in parts.items():
            averaging.fold(sums.setdefault(name, averaging.nothing(*values.shape)), values, 1 / len(members))
        logs.append(parts[averaged(parts)])
    weights = averaging.choose_weights(logs, labels)
    weighted = averaging.nothing(*logs[0].shape)
    for values, weight in zip(logs, averaging.normalised(weights), strict=True):
        averaging.fold(weighted, values, weight)
    return {"members": [str(member.directory) for member in members], "weights": list(weights),
            "errors": {name: asdict(answers(values, labels).errors()) for name, values in sums.items()},
            "weighted": {averaged(sums): asdict(answers(weighted, labels).errors())}}


def new_record(claim, options):
    """A record without runs: what was asked for, with what, and how its arms differ."""
    first, *others = [(arm, arm_recipe(arm, options)[1]) for arm in claim.arms]
    sets = {}
    for arm, recipe in (first, *others):
        dataset = _opened(data_for(arm, claim.arms, options, recipe), recipe.stored_size)
        sets[dataset.fingerprint] = {"description": dataset.description, "fingerprint": dataset.fingerprint,
                                     "classes": len(dataset.classes), "images": {name: len(split) for name, split in
                                                                                 dataset.splits.items()}}
    return {
        "format": FORMAT, "claim": claim.id, "kind": claim.kind,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "alexnet_mp.claims", *options.typed]),
        **machine(options.gpus),
        "data": list(sets.values()), "base": base_of(options), "set": list(options.set), "epochs": first[1].epochs,
        "steps": options.steps,
        "arms": [{"name": arm.name, "what": arm.what, "preset": arm.preset or base_of(options), "init": arm.init,
                  "larger": arm.larger, "differs": differences(first[1], recipe)} for arm, recipe in (first, *others)],
        "runs": [], "search": [], "rates": {}, "ensembles": []}
