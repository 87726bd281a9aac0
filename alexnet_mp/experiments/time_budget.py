"""How long a claim will take, from how long runs took: `claims run all --budget 2h` starts nothing that it can't
finish."""

import math
import os
import shutil
import time
from argparse import Namespace
from collections.abc import Sequence, Set
from pathlib import Path

from ..runs.metrics import read_metrics
from ..system.devices import device_name, resolve
from ..system.errors import UserError
from ..system.terminal import say, silence
from .arm_runs import RESULT, first_gpu, reached, read_notes, status, train_run
from .claim import GRID, Claim
from .conduct import planned_turns, search
from .measure import entry_of, key_of_test
from .plan import (
    Run,
    last_step,
    make_run,
    more_tests,
    operations,
    search_run,
    work_of_measuring,
    work_of_steps,
    work_of_test,
    work_of_tests,
)

CALIBRATION_STEPS = 4
MARGIN = 1.15  # what a calibration does not see: reading the images, checkpoints, pictures
HELD = 2.0  # a run took so many times as long as its steps tell at most, or it was held meanwhile


class Forecast:
    """Seconds that runs take, by preset; and the time that is left, if there is a limit.

    pace: {preset: seconds for a multiplication and addition of the network}, of the run of the preset that was learnt
    last."""

    def __init__(self, options: Namespace, budget: float | None = None):
        self.options, self.pace = options, {}
        self.end = math.inf if budget is None else time.monotonic() + budget

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def learn(self, run: Run) -> None:
        """Take in how long a run took that ended, if it was on these devices."""
        notes, towers = read_notes(run), run.recipe.towers
        devices = [device_name(device) for device in resolve(first_gpu(self.options.gpus, towers), towers)]
        if notes["seconds"] > 0 and notes["work"] > 0 and notes["devices"] == devices and status(run) == "done":
            self.pace[run.preset] = min(notes["seconds"] / notes["work"], HELD * _pace_of_steps(run, run))

    def calibrate(self, run: Run) -> None:
        """Let a few steps tell the pace of a preset of which no run is known."""
        say(
            f"-- {CALIBRATION_STEPS} steps of {run.preset}, after a look at all pictures that are new, "
            "to see how fast this machine is"
        )
        name = f"calibration{os.getpid()}"  # another command may measure beside this one
        trial = make_run(run.kind, name, run.preset, run.recipe, run.data, self.options, steps=CALIBRATION_STEPS)
        _forget(trial)  # of a process that had this number and was killed
        try:
            with silence():  # its lines would say how to go on with it
                train_run(trial, self.options)
            if status(trial) == "diverged":
                raise UserError(
                    f"{run.directory.name} diverges within {CALIBRATION_STEPS} steps: nothing tells its pace"
                )
            self.pace[run.preset] = MARGIN * _pace_of_steps(trial, run)
        finally:
            _forget(trial)

    def seconds(self, run: Run) -> float:
        """What is still to be done of a run that isn't kept, or whose weights are asked for, in seconds, at most;
        `learn` or `calibrate` has to know its preset."""
        state = status(run)
        if state == "diverged" or (state == "done" and entry_of(run, self.options)):
            return 0.0
        if state == "done":  # but for tests that its claim asks for
            tests = [test for test in more_tests(run) if key_of_test(run, *test) not in read_notes(run)["tests"]]
            work = sum(work_of_test(run, *test) for test in tests) + work_of_measuring(run)
            return work * self.pace.get(run.preset, 0.0)
        return (work_of_steps(run, reached(run), last_step(run)) + work_of_tests(run)) * self.pace[run.preset]

    def total(self, runs: Sequence[Run], weight_paths: Set[Path]) -> float:
        """Seconds for all of these; a preset that is not known yet is learnt or calibrated first. weight_paths: the
        directories of runs whose weights are asked for: a run that is kept without them is trained again."""
        for run in runs:
            if run.preset not in self.pace:
                self.learn(run)
        pending_runs = [run for run in runs if run.directory in weight_paths or not entry_of(run, self.options)]
        for run in pending_runs:
            if run.preset not in self.pace and status(run) in ("new", "begun"):
                if self.left <= 0:
                    return math.inf
                self.calibrate(run)
        return sum(self.seconds(run) for run in pending_runs)


def _forget(trial):
    shutil.rmtree(trial.directory, ignore_errors=True)
    Path(f"{trial.directory}{RESULT}").unlink(missing_ok=True)


def _pace_of_steps(trial, run):
    """Seconds for a multiplication and addition in the steps of `trial`, a run of the same recipe, by their median."""
    rates = sorted(line["images_per_second"] for line in read_metrics(trial.directory) if line["kind"] == "train")
    return 1 / (3 * rates[len(rates) // 2] * operations(run)) if rates else math.inf


def needed(claim: Claim, options: Namespace, seeds: int) -> tuple[list[Run], set[Path]]:
    """(the runs of a claim, each once; the directories of those whose weights are asked for). As long as a search for
    learning rates goes on, it is told as if it changed nothing."""
    rates, runs, weight_paths = {}, [], set()
    for arm in claim.arms if claim.kind.searches_rates else ():
        next_factor, rate, _ = search(claim.kind, arm, options)
        searches = [search_run(claim.kind, arm, factor, options) for factor in GRID]
        if next_factor is None:  # what isn't there any more, records have
            searches = [run for run in searches if status(run) in ("done", "diverged")]
        runs += searches
        rates[arm.name] = rate or 1.0
    for turn in planned_turns(claim, options, seeds, rates):
        runs += turn.runs
        weight_paths |= turn.weight_paths
    return list({run.directory: run for run in runs}.values()), weight_paths
