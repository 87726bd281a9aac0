"""One training run of a claim: it is one as the command `train` makes them, and goes on where it stopped."""

import json
import shlex
import time
from argparse import Namespace
from dataclasses import fields
from pathlib import Path
from typing import Literal

from ..analysis import learning_curves
from ..evaluation.accuracy import Errors
from ..evaluation.protocol import both_protocols
from ..runs import checkpoints
from ..runs.directory import NON_FINITE, Taken, read_run
from ..runs.lock import is_held
from ..runs.metrics import read_metrics
from ..system import durable_files
from ..system.errors import UserError
from ..system.terminal import say
from ..training.plan import Options
from ..training.run import train
from .plan import Run, data_of, last_step, number_of_views, operations, steps_per_epoch, work_of_steps

RESULT = ".result.json"  # beside a run's directory: how long it took, and tests that the run itself did not do
POLL = 2.0  # seconds between looks at a run that another command trains
ERRORS = {field.name: None for field in fields(Errors)}.keys()  # of a test, in their order


class Stopped(Exception):
    """Ctrl-C came: what is there stays, and the same command goes on."""


def status(run: Run) -> Literal["new", "begun", "done", "diverged"]:
    """ "new", "begun", "done" or "diverged"."""
    if (run.directory / NON_FINITE).exists():
        return "diverged"
    if not (run.directory / "run.json").exists():
        return "new"
    if tested_by_run(run) or (run.level is not None and epochs_to_level(run) is not None):
        return "done"
    return "done" if (run.steps, run.level) != (None, None) and reached(run) >= last_step(run) else "begun"


def reached(run: Run) -> int:
    """The step of the run's newest checkpoint, 0 where there is none."""
    return max(checkpoints.listing(run.directory), default=0)


def epochs_to_level(run: Run) -> float | None:
    """Epochs until the training error was at the run's level, None where it isn't yet."""
    errors = [
        line["top1_error"]
        for line in read_metrics(run.directory)
        if line["kind"] == "train" and line["step"] <= reached(run)
    ]
    return learning_curves.epochs_to(errors, steps_per_epoch(run), run.level)


def tested_by_run(run: Run) -> dict[str, dict[str, float]]:
    """{protocol: errors} of the test at the run's own end, {} where it has not come to it."""
    tests = [line for line in read_metrics(run.directory) if line["kind"] == "test"]
    tests = {line["protocol"]: {name: line[name] for name in ERRORS} for line in tests}
    return tests if set(tests) == set(both_protocols(run.recipe)) else {}


def train_run(run: Run, options: Namespace) -> None:
    """Train a run to its end, or go on with it. Raises `Stopped` if Ctrl-C ended the training, UserError if it can't
    be trained.

    A run with a level is looked at after every epoch, and ends when its training error has come to the level. A run
    that another command trains is waited for.
    """
    while status(run) in ("new", "begun"):
        if is_held(run.directory):
            say(f"{run.directory.name}: another command trains it; this one waits")
            while is_held(run.directory):
                time.sleep(POLL)
            continue  # it has ended, or was stopped and goes on here
        before, epoch = reached(run), steps_per_epoch(run)
        last = last_step(run) if run.level is None else min(last_step(run), (before // epoch + 1) * epoch)
        try:
            stopped = _train(run, options, before, last)
        except UserError:
            if is_held(run.directory) or status(run) == "done":  # who was quicker trains it, or has
                continue
            raise
        if stopped:
            raise Stopped


def _train(run, options, before, last):
    """Train a run from step `before` to step `last`, unless it diverges; note what it took. Returns whether a signal
    stopped it."""
    start = time.monotonic()
    try:
        return train(training_options(run, options, last))
    except UserError as error:
        if status(run) == "diverged":
            say(f"{run.directory.name} diverged, which is a result: {error}")
            return False
        if isinstance(error, Taken):  # it was not there when this began
            raise UserError(
                f"{run.directory}: another command began this run; the same command goes on when it has ended"
            ) from None
        raise
    finally:
        # After a kill there is neither the time nor the work of what was killed: what goes on begins at its checkpoint.
        if reached(run) > before:
            notes, views = read_notes(run), number_of_views(run) if tested_by_run(run) else 0
            work = work_of_steps(run, before, reached(run)) + operations(run) * views * len(data_of(run).splits["val"])
            note(
                run,
                seconds=notes["seconds"] + time.monotonic() - start,
                work=notes["work"] + work,
                devices=[device["name"] for device in read_run(run.directory)["devices"]],
            )


def training_options(run: Run, options: Namespace, last: int) -> Options:
    """What the training is asked for: the run's recipe in its directory, up to step `last` if it may end early."""
    early = (run.steps, run.level) != (None, None)
    return Options(
        recipe=run.recipe,
        data=run.data,
        out=str(run.directory),
        resume="auto",
        keep=1,
        gpus=first_gpu(options.gpus, run.recipe.towers),
        kernels=options.kernels,
        pipeline=options.pipeline,
        workers=options.workers,
        steps=last if early else None,
        init=str(run.init) if run.init else None,
        command=command_of(options),
    )


def command_of(options: Namespace) -> str:
    """The command as it was typed."""
    return shlex.join(["python", "-m", "alexnet_mp.claims", *options.typed])


def first_gpu(gpus: str, towers: int) -> str:
    """--gpus for a network of one tower: the first device."""
    return gpus if towers == 2 else gpus.split(",")[0]


def read_notes(run: Run) -> dict:
    """What lies beside a run's directory: {"seconds", "work", "devices", "tests"}; what is damaged counts as
    nothing."""
    try:
        entry = json.loads(Path(f"{run.directory}{RESULT}").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        entry = None
    entry = entry if isinstance(entry, dict) else {}
    kinds = {"seconds": (int, float), "work": (int, float), "devices": list, "tests": dict}
    fallbacks = {"seconds": 0, "work": 0, "devices": [], "tests": {}}
    notes = {
        name: entry[name] if isinstance(entry.get(name), kind) else fallbacks[name] for name, kind in kinds.items()
    }
    notes["tests"] = {key: errors for key, errors in notes["tests"].items() if _is_whole(errors)}
    return notes


def _is_whole(errors):
    """Whether these are the errors of a test, by protocol."""
    return isinstance(errors, dict) and all(
        isinstance(of_one, dict)
        and of_one.keys() == ERRORS
        and all(isinstance(value, (int, float)) for value in of_one.values())
        for of_one in errors.values()
    )


def note(run: Run, **values: object) -> None:
    durable_files.replace(Path(f"{run.directory}{RESULT}"), (json.dumps(read_notes(run) | values) + "\n").encode())
