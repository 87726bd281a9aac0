"""How long a claim will take, from how long runs took: `claims run all --budget 2h` starts nothing that it can't finish."""
import math
import time

from . import geometry
from .checkpoint import listing
from .claim_list import RATES
from .claim_run import SEARCH_SEED, at, data_of, make_run, read_notes, runs_of_seed, status, train_run, turns, whole_steps
from .console import say
from .evaluate import both_protocols
from .metrics import read_metrics

CALIBRATION_STEPS = 4
MARGIN = 1.15  # what a calibration does not see: reading the images, checkpoints, pictures


class Forecast:
    """Seconds that runs take, by preset; and the time that is left, if there is a limit.

    pace: {preset: seconds for a multiplication and addition of the network}, of the newest run of the preset that ended.
    """

    def __init__(self, options, budget=None):
        self.options, self.pace = options, {}
        self.end = math.inf if budget is None else time.monotonic() + budget

    @property
    def left(self):
        return self.end - time.monotonic()

    def learn(self, run):
        """Take in how long a finished run took."""
        seconds = read_notes(run).get("seconds")
        if seconds and status(run) == "done":
            self.pace[run.preset] = seconds / work(run)

    def calibrate(self, run):
        """Let a few steps tell the pace of a preset of which no run is known."""
        say(f"-- {CALIBRATION_STEPS} steps of {run.preset}, to see how fast this machine is")
        trial = make_run("calibration", run.preset, run.recipe, run.data, self.options, steps=CALIBRATION_STEPS)
        train_run(trial, self.options)
        rates = sorted(line["images_per_second"] for line in read_metrics(trial.directory) if line["kind"] == "train")
        self.pace[run.preset] = MARGIN / (3 * rates[len(rates) // 2] * operations(run))

    def seconds(self, run):
        """What is still to be done of a run, in seconds; `learn` or `calibrate` has to know its preset."""
        match status(run):
            case "done" | "diverged":
                return 0.0
            case "begun":
                done = max(listing(run.directory), default=0)
            case "new":
                done = 0
        return work(run, done) * self.pace[run.preset]

    def total(self, runs):
        """Seconds for all of these; a preset that is not known yet is learnt or calibrated first."""
        for run in runs:
            if run.preset not in self.pace:
                self.learn(run)
        for run in runs:
            if run.preset not in self.pace and status(run) in ("new", "begun"):
                if self.left <= 0:
                    return math.inf
                self.calibrate(run)
        return sum(self.seconds(run) for run in runs)


def needed(claim, options, seeds):
    """The runs of a claim, each once; those that follow a search for learning rates are told as if it had changed nothing."""
    runs = [run for runs, _ in turns(claim, options, seeds) for run in runs]
    if claim.kind == "rates":
        runs += [runs_of_seed([at(arm, {arm.name: factor})], options, SEARCH_SEED)[0] for arm in claim.arms for factor in RATES]
    return list({run.directory: run for run in runs}.values())


def operations(run):
    """Multiplications and additions of one image's forward pass, all towers."""
    total = 0
    for size in geometry.sizes(run.recipe, len(data_of(run).classes)):
        _, height, width = size.computed
        towers = 1 if size.layer.towers == "first" else run.recipe.towers
        weights = size.parameters - size.computed[0]
        total += towers * (weights if size.layer.kind == "local" else weights * height * width)
    return total


def work(run, done=0):
    """Multiplications and additions of a run from step `done` on: a step is three forward passes, a view of a test is one."""
    last = whole_steps(run) if run.steps is None else min(run.steps, whole_steps(run))
    images = {name: len(split) for name, split in data_of(run).splits.items()}
    validations = (last - done) * run.recipe.batch_size / images["train"]
    views = len({view for protocol in both_protocols(run.recipe).values() for view in protocol})
    return operations(run) * (3 * (last - done) * run.recipe.batch_size + (validations + views) * images["val"])
