"""One training run: steps, validations, checkpoints, and what is written of them."""
import json
import math
import shlex
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict

import torch

from ..analysis.figures import draw_curves, draw_kernels
from ..data.batches import steps_per_epoch
from ..data.pipeline_raw import RawPipeline
from ..evaluation.accuracy import write_right
from ..evaluation.protocol import both_protocols, centre_view, evaluate, print_errors
from ..kernels import augmentation
from ..network.network import merge_tensors, split_tensors
from ..runs.checkpoint_format import Checkpoint, Scheduled, State, Validation
from ..runs.checkpoint_writer import PATIENCE, Saver
from ..system import durable_files
from ..system.errors import UserError
from ..system.terminal import progress, python_command, say
from . import graphed_step
from .optimizer import PaperSGD
from .pending_steps import PendingSteps
from .schedule import make_schedule
from .step import TrainingStep

RETRY = 60  # seconds after a checkpoint that could not be written
CLOCK_JUMP = 60  # seconds of the wall clock against the steady one, between two checkpoints, that are worth a line


class Trainer:
    """Trains a network and keeps its run directory.

    run: the `RunDirectory`. constants: the fields of a checkpoint's `State` that don't change: recipe, data, made_by. steps: stop
    after this step, None = the recipe's end. every: (number, "steps" | "seconds") between checkpoints. keep: how many of them.
    on_save_error: "continue" | "stop". graphs: "auto" | "on" | "off", see `graphed_step.py`.
    """

    def __init__(self, network, pipeline, run, constants, steps=None, every=(600, "seconds"), keep=3, on_save_error="continue",
                 graphs="auto"):
        self.network, self.pipeline, self.run, self.recipe, self.constants = network, pipeline, run, network.recipe, constants
        self.optimizer, self.schedule = PaperSGD(network), make_schedule(network.recipe)
        self.training_step = graphed_step.make_step(TrainingStep(network, self.optimizer), graphs)
        if isinstance(pipeline, RawPipeline):
            pipeline.left_to_step = (isinstance(self.training_step, graphed_step.GraphedStep)
                                     and all(map(augmentation.augments_in_graphs, network.exchange.devices)))
        self.steps_per_epoch = steps_per_epoch(self.recipe, pipeline.dataset)
        self.whole = self.recipe.epochs * self.steps_per_epoch
        self.last_step = self.whole if steps is None else min(steps, self.whole)
        self.on_gpu = any(device.type == "cuda" for device in network.exchange.devices)
        self.step = self.epoch = 0
        self.scheduled = None  # what the last line of kind "schedule" said
        self.rates_set, self.exchange_said, self.loss, self.rate = False, False, math.nan, 0.0
        self.validated, self.validation = True, None  # False while the validation that is due after this step is still to come
        self.pending = PendingSteps(network.exchange.devices)
        self.saver, self.every, self.stop_on_error = Saver(run, keep), every, on_save_error == "stop"
        self.saved_as, self.save_due, self.saved_at, self.retry_at, self.patience = None, False, time.monotonic(), math.inf, None
        self.clock = time.time() - time.monotonic()
        self.metrics_failing = self.events_failed = False
        self.profiler = None  # a `step_profile.Profiler` where steps are to be recorded

    # --- a run goes on

    def restore(self, checkpoint, same_run):
        """Be where a checkpoint was. same_run: it is one of this run directory's. Raises ValueError where it doesn't fit the network."""
        state = checkpoint.state
        self.network.load_merged(checkpoint.weights)
        split_tensors(checkpoint.velocity, self.optimizer.velocities())
        self.step = self.network.step = state.step
        self.epoch, self.scheduled = state.epoch, asdict(state.scheduled) if state.scheduled else None
        if state.recipe.schedule == self.recipe.schedule:
            self.schedule.restore(state.schedule)
        self.validated, self.validation = state.validated, state.validation
        self.saved_as = (state.step, state.validated) if same_run else None

    def snapshot(self):
        """All that the run needs to go on bit for bit, copied to host memory. Raises OSError where the metrics can't be written."""
        metrics_bytes = self.run.metrics.length()
        self.run.metrics.events.flush()
        scheduled = Scheduled(**self.scheduled) if self.scheduled else None
        state = State(step=self.step, epoch=self.epoch, schedule=self.schedule.state(), scheduled=scheduled, validated=self.validated,
                      validation=self.validation, metrics_bytes=metrics_bytes, saved=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                      **self.constants)
        return Checkpoint(self.network.merged_state(), merge_tensors(self.optimizer.velocities()), self.pipeline.statistics, state)

    # --- the loop

    def train(self, interrupted):
        """Train to the end, to `--steps`, or until `interrupted`; leave a checkpoint and pictures; test where the end was reached."""
        self.network.train()
        if self.step and self.saved_as is None:  # a branch: from now on it can go on from its own directory
            self.save()
        if not self.validated and not interrupted:
            self.validate(interrupted)
            self.save_if_due()
        if self.step < self.last_step and not self.schedule.finished and not interrupted:
            batches = self.profiler.batches(self._batches()) if self.profiler else self._batches()
            with progress("training", self.last_step, "steps", self.step) as advance, closing(batches):
                for batch in batches:
                    if batch.epoch != self.epoch or not self.rates_set:
                        self.start_epoch(batch.epoch)
                    (self.profiler.step if self.profiler and self.profiler.recording else self.one_step)(batch)
                    advance(1, f"epoch {self.epoch} of {self.recipe.epochs}, loss {self.loss:.3f}, {self.rate:,.0f} images/s")
                    if not self.exchange_said:
                        say(self.describe_exchange())
                        self.exchange_said = True
                    if not self.validated and not interrupted:
                        self.validate(interrupted)
                    self.save_if_due()
                    if interrupted or self.step == self.last_step or self.schedule.finished:
                        break
        self.finish(interrupted)
        if self.profiler:
            self.profiler.finish()

    def _batches(self):
        """The pipeline's. Where it fails, all steps so far are whole: they are saved before the error goes on."""
        try:
            yield from self.pipeline.train(self.step, self.recipe.epochs, self.schedule.colour_noise)
        except Exception:
            self.save_what_is_there()
            raise

    def start_epoch(self, epoch):
        self.read_steps()
        self.epoch = epoch
        now = {"learning_rates": self.schedule.rates(epoch), "colour_noise": self.schedule.colour_noise(epoch)}
        self.optimizer.set_rates(now["learning_rates"])
        self.rates_set = True
        if now != self.scheduled:
            self.run.log("schedule", step=self.step, epoch=epoch, **now)
            self.scheduled = now

    def one_step(self, batch):
        """Take one step; its line is written when its numbers have come from the devices."""
        def check_loss(loss):
            if not self.on_gpu and not math.isfinite(loss.item()):  # here it costs nothing to look before the weights are changed
                self.refuse_loss(loss.item(), self.step + 1, batch.numbers)

        numbers = self.training_step(batch.images, batch.labels, check_loss)
        self.step += 1
        self.validated, self.validation = self.step % self.steps_per_epoch != 0, None
        exchanged = sum(entry.bytes for entry in self.network.ledger())
        self.pending.add(self.step, batch.numbers, exchanged, numbers)
        self.read_steps(wait=self.step == 1)  # of a run that can't begin it is said at once

    def read_steps(self, wait=True):
        """Write the lines of the steps taken, all or (wait=False) those whose numbers are there (`pending_steps.py`).

        On a GPU what is wrong is found up to READ_EVERY steps later; but before a validation or a checkpoint all is read. Raises
        UserError at a loss or a weight that isn't finite.
        """
        for step, seconds in self.pending.read(wait):
            loss, right, *sums = step.numbers
            loss, count = loss.item(), len(step.images)
            if not math.isfinite(loss):
                self.refuse_loss(loss, step.step, step.images)
            if not all(torch.isfinite(values).all() for values in sums):
                self.refuse_tensors(step, sums)
            lr = {what: max(group["lr"] for group in self.optimizer.param_groups if group["name"].endswith(what))
                  for what in ("weight", "bias")}
            self.loss, self.rate = loss, count / seconds
            self.run.log("train", step=step.step, epoch=-(-step.step // self.steps_per_epoch), loss=loss,
                         top1_error=100 - 100 * right.item() / count, learning_rate=lr["weight"], bias_learning_rate=lr["bias"],
                         images_per_second=self.rate, bytes_exchanged=step.exchanged)

    # --- what must not go on

    def refuse_loss(self, loss, step, images, split="train"):
        """End the run where a loss is NaN or infinite."""
        self._refuse(f"the loss is {loss} at step {step}", {"loss": str(loss)}, step, images, split)

    def refuse_tensors(self, step, sums):
        """End the run where a weight is NaN or infinite; the gradient or velocity that made it so is named if no step followed."""
        found = self.optimizer.non_finite() if step.step == self.step else self.optimizer.non_finite_in(sums)
        if found:  # not where finite weights only have a sum that overflows
            more = f" and {len(found) - 1} more tensors" if len(found) > 1 else ""
            self._refuse(f"{found[0]}{more}: not finite at step {step.step}", {"tensors": found}, step.step, step.images, "train")

    def _refuse(self, what, details, step, images, split):
        names = self.pipeline.dataset.splits[split].names
        images = [str(names[image]) for image in images]
        with suppress(OSError, ValueError):  # a full disk must not hide what happened
            content = {"step": step, **details, "split": split, "images": images}
            durable_files.replace(self.run.path / "non_finite.json", (json.dumps(content, indent=1) + "\n").encode())
            draw_curves(self.run.path)
        self.saver.wait(PATIENCE)
        some = ", ".join(images[:2]) + (f" and {len(images) - 2} more" if len(images) > 2 else "") or f"those of {split}"
        kept = f"the last good checkpoint is {self.saver.saved}" if self.saver.saved else "no checkpoint was written yet"
        raise UserError(f"{what}; images: {some} ({self.run.path}/non_finite.json); {kept}; the same command would come to it again; "
                        "from an earlier checkpoint, --resume PATH --out NEW --resume-anyway --set learning_rate=..., may help")

    # --- validation and test

    def validate(self, interrupted):
        """The centre view of every validation image; dropped without a trace if Ctrl-C comes in between."""
        self.read_steps()
        tested = self.test({"centre view": centre_view(self.recipe)}, interrupted)
        if tested:
            error = tested["centre view"].errors()
            self.run.log("val", step=self.step, epoch=self.epoch, **asdict(error))
            # Not where a resumed run begins with this.
            training = f"training loss {self.loss:.3f}, " if math.isfinite(self.loss) else ""
            say(f"epoch {self.epoch}, step {self.step}: {training}validation loss {error.loss:.3f}, "
                f"top-1 error {error.top1_error:.2f} %, top-5 error {error.top5_error:.2f} %")
            self.schedule.observe(error.top1_error)
            self.validated, self.validation = True, Validation(**asdict(error))
        self.run.metrics.events.flush()
        self.pending.start_clock()

    def test(self, protocols, interrupted):
        """`evaluate` on the validation images, or None if Ctrl-C came."""
        images = len(self.pipeline.dataset.splits["val"])
        with progress("testing " + ", ".join(protocols), images) as advance:
            def watch(count):
                if interrupted:
                    raise _Interrupted
                advance(count)

            try:
                tested = evaluate(self.network, self.pipeline, "val", protocols, self.recipe.batch_size, watch)
            except _Interrupted:
                return None
            except Exception:  # the step before is whole
                self.save_what_is_there()
                raise
        for answers in tested.values():
            if not math.isfinite(loss := answers.errors().loss):
                self.refuse_loss(loss, self.step, [], "val")
        return tested

    # --- checkpoints

    def save_if_due(self):
        """Begin a checkpoint if the time has come, or if this is the best validation so far; hear of how the last one went."""
        self.hear_of_saves()
        number, unit = self.every
        self.save_due |= self.step % number == 0 if unit == "steps" else time.monotonic() - self.saved_at >= number
        self.save_due |= time.monotonic() >= self.retry_at
        is_best = self.validation is not None and self.validation.top1_error < self.saver.best_error
        # Where the disk is slower than the interval, the next one comes late rather than the training waits. The best can't come late:
        # its copy waits in memory.
        recording = self.profiler is not None and self.profiler.recording  # to save is to wait for the device, within what is measured
        if is_best or self.save_due and not self.saver.busy and not recording:
            self.save()

    def save(self):
        """Copy what a checkpoint needs, and let it be written."""
        self.read_steps()
        if self.saved_as == (self.step, self.validated):
            return
        self.notice_clock()
        self.save_due, self.saved_at, self.retry_at = False, time.monotonic(), math.inf
        with self._disk(f"the checkpoint of step {self.step}"):
            self.saver.start(self.snapshot())
            self.saved_as = (self.step, self.validated)

    def save_now(self):
        """A checkpoint of this step, on the disk or not: returns what kept it from being written, None if nothing did."""
        self.saver.wait()
        self.hear_of_saves()  # of the one before; what is heard of from here on is this one's
        self.save()
        self.saver.wait(self.patience)
        failure, prune_failure = self.saver.outcome()
        self._say_not_removed(prune_failure)
        return failure

    def save_what_is_there(self):
        """A last checkpoint before an error ends the run; what goes wrong now must not hide that error."""
        self.patience = PATIENCE
        try:
            failure = self.save_now()
            if self.saver.busy:
                failure = UserError(f"the disk took longer than {PATIENCE} s")
        except (OSError, UserError) as error:
            failure = error
        if failure is None and self.saved_as == (self.step, self.validated):
            say(f"saved after step {self.step}: {self.saver.saved}")
        else:
            say(f"WARNING: not saved after step {self.step}: {_words(failure) if failure else 'see above'}; "
                f"the newest checkpoint is {self.saver.saved or '(none)'}")

    def hear_of_saves(self):
        """Say what went wrong in the background. Raises UserError with `--on-save-error stop`."""
        self.run.lock.check()
        failure, prune_failure = self.saver.outcome()
        if failure:
            self.saved_as = None
            self._failed("a checkpoint", failure)
        self._say_not_removed(prune_failure)
        if self.run.metrics.failure and not self.metrics_failing:
            self.metrics_failing = True  # said once; the lines wait in memory
            self._failed("metrics.jsonl", self.run.metrics.failure)
        self.metrics_failing &= self.run.metrics.failure is not None
        if self.run.metrics.events.failure and not self.events_failed:
            self.events_failed = True
            say(f"WARNING: no TensorBoard events any more: {_words(self.run.metrics.events.failure)}; metrics.jsonl has the same numbers")

    def _say_not_removed(self, failure):
        if failure:
            say(f"WARNING: an old checkpoint can't be removed: {_words(failure)}")

    @contextmanager
    def _disk(self, what):
        """A failure to write ends the run, or is said loudly, as `--on-save-error` wants it."""
        try:
            yield
        except OSError as error:
            self._failed(what, error)

    def _failed(self, what, error):
        if not isinstance(error, OSError):  # also a directory that is no longer this run's
            raise error
        if self.stop_on_error:
            raise UserError(f"cannot write {what}: {_words(error)}; --on-save-error continue would go on without; "
                            f"the newest checkpoint is {self.saver.saved or '(none)'}")
        say(f"WARNING: cannot write {what}: {_words(error)}; the training goes on, the older checkpoints are untouched")
        self.retry_at = time.monotonic() + RETRY  # a full disk may be mended long before the next checkpoint is due

    def notice_clock(self):
        clock = time.time() - time.monotonic()
        if abs(clock - self.clock) > CLOCK_JUMP:
            say(f"the clock of this machine jumped by {clock - self.clock:+,.0f} s; nothing but the times in the records depends on it")
        self.clock = clock

    # --- the end

    def finish(self, interrupted):
        failure = self.save_now()
        if failure and not isinstance(failure, OSError):
            raise failure
        try:
            self.run.metrics.length()
            draw_curves(self.run.path)
            draw_kernels(self.network, self.run.path)
        except OSError as error:
            failure = failure or error
        self.run.metrics.events.flush()
        reached_end = not interrupted and (self.step == self.whole or self.schedule.finished)
        tested = self.test(both_protocols(self.recipe), interrupted) if reached_end else None
        if tested:
            try:
                write_right(self.run.path, tested)
            except OSError as error:
                failure = failure or error
            errors = {name: answers.errors() for name, answers in tested.items()}
            for name, error in errors.items():
                self.run.log("test", step=self.step, epoch=self.epoch, split="val", protocol=name, **asdict(error))
            print_errors(errors, "val")
        failure = failure or self.run.metrics.failure
        if failure or self.saved_as != (self.step, self.validated):
            raise UserError(f"{'stopped as asked' if interrupted else 'done'} after step {self.step}, but not all of it could be written: "
                            f"{_words(failure) if failure else 'no checkpoint'}; the newest checkpoint is {self.saver.saved or '(none)'}")
        say(f"{'stopped as asked' if interrupted else 'done'} after step {self.step}: checkpoint in {self.saver.saved or self.run.path}, "
            f"pictures curves.png and conv1_kernels.png in {self.run.path}")
        if not tested:
            path, whole = shlex.quote(str(self.run.path)), self.step == self.whole
            more = "" if whole or interrupted else " and a larger --steps, or without it"
            say(f"of {self.whole} steps at most; {'test it then' if whole else 'go on'}: the same command with --out {path} --resume auto"
                f"{more}; test it: {python_command()} -m alexnet_mp.evaluate {path}")

    def describe_exchange(self):
        ledger = self.network.ledger()
        if not ledger:
            return "exchange: the towers have no layer that reads both"
        edges = ", ".join(dict.fromkeys(entry.edge for entry in ledger))
        total = sum(entry.bytes for entry in ledger)
        if not total:
            return f"exchange: both towers are on one device; at {edges} nothing has to be copied"
        return f"exchange: {total / 1e6:,.2f} MB a step cross between the devices, at {edges}"


class _Interrupted(Exception):
    pass


def _words(error):
    """An error in one line, with its file's name."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).splitlines()) or type(error).__name__
