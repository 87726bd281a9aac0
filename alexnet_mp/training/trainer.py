"""One training run: steps, validations, checkpoints, and what is written of them."""

import math
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from typing import NoReturn

import numpy as np
import torch

from ..analysis.figure_3 import draw_kernels
from ..analysis.figures import draw_curves
from ..data.batches import Batch, EpochKeys, steps_of_recipe, steps_per_epoch
from ..data.pipeline import Pipeline
from ..evaluation.accuracy import FEW, Answers, percent, top5_tells, write_right
from ..evaluation.protocol import View, both_protocols, centre_view, evaluate, print_errors
from ..network.exchange import described
from ..network.network import TwoTowerAlexNet
from ..network.worker_network import WorkerAlexNet
from ..runs.checkpoint_format import Checkpoint
from ..runs.checkpoint_state import Scheduled, State, Validation
from ..runs.directory import RunDirectory
from ..runs.elsewhere import RunElsewhere
from ..system.command_line import typed
from ..system.errors import UserError
from ..system.interrupts import Agreed, Interrupts
from ..system.ranks import Ranks, SaidElsewhere
from ..system.terminal import progress, say
from .checkpoint_policy import CheckpointPolicy, line_of
from .divergence import end_diverged
from .make_step import make_step
from .pending_steps import PendingStep, PendingSteps
from .schedule import make_schedule
from .update_rule import PaperSGD


class Trainer:
    """Trains a network and keeps its run directory.

    constants: the fields of a checkpoint's `State` that don't change: recipe, data, made_by. steps: stop after this
    step, None = the recipe's end. every, keep, on_save_error, keep_every: see `CheckpointPolicy`. graphs: "auto" |
    "on" | "off", see `graphed_step.py`. ranks: the processes of the job; of those that don't write, `run` is a
    `RunElsewhere`.
    """

    def __init__(
        self,
        network: TwoTowerAlexNet,
        pipeline: Pipeline,
        run: RunDirectory | RunElsewhere,
        constants: dict,
        *,
        steps: int | None,
        every: tuple[float, str],
        keep: int,
        on_save_error: str,
        keep_every: int | None,
        graphs: str,
        ranks: Ranks,
    ):
        self.ranks = ranks
        self.network, self.pipeline, self.run = network, pipeline, run
        self.recipe, self.constants = network.recipe, constants
        self.optimizer, self.schedule = PaperSGD(network), make_schedule(network.recipe)
        self.divided = isinstance(network, WorkerAlexNet)
        self.training_step = make_step(network, self.optimizer, pipeline, graphs, ranks)
        self.steps_per_epoch = steps_per_epoch(self.recipe, pipeline.dataset)
        self.recipe_steps = steps_of_recipe(self.recipe, pipeline.dataset)
        self.last_step = self.recipe_steps if steps is None else min(steps, self.recipe_steps)
        self.on_gpu = any(device.type == "cuda" for device in network.exchange.devices)
        self.step = self.epoch = 0
        self.scheduled = None  # what the last line of kind "schedule" said
        self.loss, self.images_per_second = math.nan, 0.0
        self.crossed = []  # the last step's ledger
        # False while the validation that is due after this step is still to come
        self.validated, self.validation = True, None
        self.pending = PendingSteps(network.exchange.devices, ranks.least if self.on_gpu else int)
        self.checkpoints = CheckpointPolicy(self, every, keep, on_save_error, keep_every)
        self.profiler = None  # a `profiler.Profiler` if steps are to be recorded

    @property
    def recording(self) -> bool:
        """Whether the steps taken now are recorded by the profiler."""
        return self.profiler is not None and self.profiler.recording

    @property
    def holds_a_part(self) -> bool:
        """Whether this process holds a part of what a checkpoint needs, and takes part in its `snapshot`."""
        return self.divided or self.ranks.pair == 0  # all pairs have the same

    @property
    def ended(self) -> bool:
        """Whether there is no step to take: the recipe's all are taken, those that were asked for, or the schedule
        wants no more."""
        return self.step >= self.last_step or self.schedule.finished

    @property
    def whole(self) -> bool:
        """Whether the recipe's training is over, whatever was asked for."""
        return self.step == self.recipe_steps or self.schedule.finished

    # --- a run goes on

    def restore(self, checkpoint: Checkpoint, same_run: bool) -> None:
        """Be where a checkpoint was. same_run: it is one of this run directory's. Raises ValueError where it doesn't
        fit the network."""
        state = checkpoint.state
        self.network.load_merged(checkpoint.weights)
        self.network.take(checkpoint.velocity, self.optimizer.velocities())
        self.step = self.network.step = state.step
        self.epoch, self.scheduled = state.epoch, asdict(state.scheduled) if state.scheduled else None
        if state.recipe.schedule == self.recipe.schedule:
            self.schedule.restore(state.schedule)
        self.validated, self.validation = state.validated, state.validation
        self.checkpoints.saved_as = (state.step, state.validated) if same_run else None

    def snapshot(self) -> Checkpoint:
        """All that the run needs to go on bit for bit, copied to host memory. Raises OSError where the metrics can't be
        written."""
        # First of all what other processes take part in.
        weights, velocity = self.network.merged_state(), self.network.merged(self.optimizer.velocities())
        metrics_bytes = self.run.metrics.length()
        self.run.metrics.events.flush()
        scheduled = Scheduled(**self.scheduled) if self.scheduled else None
        state = State(
            step=self.step,
            epoch=self.epoch,
            schedule=self.schedule.state(),
            scheduled=scheduled,
            validated=self.validated,
            validation=self.validation,
            metrics_bytes=metrics_bytes,
            saved=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **self.constants,
        )
        return Checkpoint(weights, velocity, self.pipeline.statistics, state)

    def first_layer(self) -> dict[str, torch.Tensor]:
        """{"conv1.weight": the merged network's, on the CPU}, which every process that `holds_a_part` has to ask for;
        see `TwoTowerAlexNet.merged`."""
        return self.network.merged_state(f"{self.recipe.layers[0].name}.weight")

    # --- the loop

    def train(self, interrupted: Interrupts | Agreed) -> None:
        """Train to the end, to `--steps`, or until `interrupted`; leave a checkpoint and pictures; at the end, test."""
        self.network.train()
        if self.step and self.checkpoints.saved_as is None:  # a branch: now it can go on from its own directory
            self.checkpoints.save()
        if not self.validated and not interrupted:
            self.validate(interrupted)
            self.checkpoints.save_if_due()
        if not self.ended and not interrupted:
            self._take_steps(interrupted)
        self.finish(interrupted)
        if self.profiler:
            self.profiler.finish()

    def _take_steps(self, interrupted):
        start, batches = self.step, self._batches()
        if self.profiler:
            batches = self.profiler.batches(batches)
        if start == 0:
            self.checkpoints.keep_first_layer()
        with progress("training", self.last_step, "steps", start) as advance, closing(batches):
            for batch in batches:
                if self.step == start or batch.epoch != self.epoch:
                    self.start_epoch(batch.epoch)
                (self.profiler.step if self.recording else self.one_step)(batch)
                self.checkpoints.keep_first_layer()
                advance(1, self._how_far())
                if self.step == start + 1:
                    say(self.describe_exchange())
                if not self.validated and not interrupted:
                    self.validate(interrupted)
                self.checkpoints.save_if_due()
                if interrupted or self.ended:
                    break

    def _how_far(self):
        return (
            f"epoch {self.epoch} of {self.recipe.epochs}, loss {self.loss:.3f}, {self.images_per_second:,.0f} images/s"
        )

    def _batches(self):
        """The pipeline's. Where it fails, all steps so far are whole: they are saved before the error goes on."""
        try:
            batches = self.ranks.in_turn(self.pipeline).train(self.step, self.recipe.epochs, self.schedule.colour_noise)
            with closing(batches):
                if self.ranks.pairs == 1:
                    yield from batches
                else:
                    images = len(self.pipeline.dataset.splits["train"])
                    keys = EpochKeys(self.recipe, images, self.step, self.recipe.epochs)
                    for batch, (_, _, numbers) in zip(batches, keys):
                        yield replace(batch, numbers=numbers)
        except Exception:
            self.checkpoints.save_what_is_there()
            raise

    def start_epoch(self, epoch: int) -> None:
        self.read_steps()
        self.epoch = epoch
        settings = {"learning_rates": self.schedule.rates(epoch), "colour_noise": self.schedule.colour_noise(epoch)}
        self.optimizer.set_rates(settings["learning_rates"])
        if settings != self.scheduled:
            self.run.log("schedule", step=self.step, epoch=epoch, **settings)
            self.scheduled = settings

    def one_step(self, batch: Batch) -> None:
        """Take one step; its line is written when its numbers have come from the devices."""

        def check_loss(loss):
            # On a CPU it costs nothing to read it before the weights are changed.
            if not self.on_gpu and not math.isfinite(loss.item()):
                self.refuse_loss(loss.item(), self.step + 1, batch.numbers)

        count = len(batch.numbers)
        results = self.training_step(batch.images, batch.labels, check_loss, count)
        self.crossed = self.training_step.ledger(count)
        self.step += 1
        self.validated, self.validation = self.step % self.steps_per_epoch != 0, None
        self.pending.add(self.step, batch.numbers, sum(entry.bytes for entry in self.crossed), results)
        self.read_steps(wait=self.step == 1)  # so that a run that can't begin says so at once

    def read_steps(self, wait: bool = True) -> None:
        """Write the lines of the steps taken, all or (wait=False) those whose numbers are there (`pending_steps.py`).

        On a GPU what is wrong is found up to READ_EVERY steps later; but before a validation or a checkpoint all is
        read. Raises UserError at a loss or a weight that isn't finite."""
        for step, seconds in self.pending.read(wait):
            loss, right, *sums = step.numbers
            loss, count = loss.item(), len(step.images)
            if not math.isfinite(loss):
                self.refuse_loss(loss, step.step, step.images)
            if self.ranks.any(not all(torch.isfinite(values).all() for values in sums)):
                self.refuse_tensors(step, sums)
            groups = self.optimizer.param_groups
            lr = {kind: max(g["lr"] for g in groups if g["name"].endswith(kind)) for kind in ("weight", "bias")}
            self.loss, self.images_per_second = loss, count / seconds
            self.run.log(
                "train",
                step=step.step,
                epoch=-(-step.step // self.steps_per_epoch),
                loss=loss,
                top1_error=100 - 100 * right.item() / count,
                learning_rate=lr["weight"],
                bias_learning_rate=lr["bias"],
                images_per_second=self.images_per_second,
                bytes_exchanged=step.exchanged,
            )

    # --- what must not go on

    def refuse_loss(self, loss: float, step: int, images: np.ndarray | Sequence[int], split: str = "train") -> NoReturn:
        """End the run where a loss is NaN or infinite."""
        self._refuse(f"the loss is {loss} at step {step}", {"loss": str(loss)}, step, images, split)

    def refuse_tensors(self, step: PendingStep, sums: Sequence[torch.Tensor]) -> None:
        """End the run where a weight is NaN or infinite; the gradient or velocity that made it so is named if no step
        followed."""
        names = self.optimizer.non_finite() if step.step == self.step else self.optimizer.non_finite_in(sums)
        names = sum(self.ranks.gather(names), [])
        if names:  # not where finite weights only have a sum that overflows
            rest = f" and {len(names) - 1} more tensors" if len(names) > 1 else ""
            what = f"{names[0]}{rest}: not finite at step {step.step}"
            self._refuse(what, {"tensors": names}, step.step, step.images, "train")

    def _refuse(self, what, details, step, images, split):
        if not self.ranks.writes:
            raise SaidElsewhere(what)
        names = self.pipeline.dataset.splits[split].names
        images = [str(names[image]) for image in images]
        end_diverged(self.run, self.checkpoints.saver, self.network.classes, what, step, split, images, details)

    # --- validation and test

    def validate(self, interrupted: Interrupts | Agreed) -> None:
        """The centre view of every validation image; dropped without a trace if Ctrl-C comes in between."""
        self.read_steps()
        results = self.test({"centre view": centre_view(self.recipe)}, interrupted)
        if results:
            error = results["centre view"].errors()
            self.run.log("val", step=self.step, epoch=self.epoch, **asdict(error))
            # Not where a resumed run begins with this.
            training = f"training loss {self.loss:.3f}, " if math.isfinite(self.loss) else ""
            tells, few = top5_tells(len(self.pipeline.dataset.classes)), error.images < FEW
            top5 = f", top-5 error {percent(error.top5_error, error.images)}" if tells else ""
            say(
                f"epoch {self.epoch}, step {self.step}: {training}validation loss {error.loss:.3f}, "
                f"top-1 error {percent(error.top1_error, error.images)}{top5}{'; 95 % intervals' if few else ''}"
            )
            self.schedule.observe(error.top1_error)
            self.validated, self.validation = True, Validation(**asdict(error))
        self.run.metrics.events.flush()
        self.pending.start_clock()

    def test(
        self, protocols: Mapping[str, Sequence[View]], interrupted: Interrupts | Agreed
    ) -> dict[str, Answers] | None:
        """`evaluate` on the validation images, or None if Ctrl-C came."""
        images = -(-len(self.pipeline.dataset.splits["val"]) // self.ranks.pairs)  # about, of this pair
        with progress("testing " + ", ".join(protocols), images) as advance:

            def watch(count):
                if interrupted:
                    raise _Interrupted
                advance(count)

            try:
                results = evaluate(
                    self.network, self.pipeline, "val", protocols, self.recipe.batch_size, watch, ranks=self.ranks
                )
            except _Interrupted:
                return None
            except Exception:  # the step before is whole
                self.checkpoints.save_what_is_there()
                raise
        for answers in results.values():
            if not math.isfinite(loss := answers.errors().loss):
                self.refuse_loss(loss, self.step, [], "val")
        return results

    # --- the end

    def finish(self, interrupted: Interrupts | Agreed) -> None:
        """Leave a checkpoint and pictures; of a whole training, test. Raises UserError where that can't be written."""
        failure = self.checkpoints.save_now()
        if failure:
            self.checkpoints.refuse_lasting(failure)
        failures = [failure, self._draw()]
        results = self.test(both_protocols(self.recipe), interrupted) if not interrupted and self.whole else None
        if results:
            failures.append(self._record(results))
        failures.append(self.run.metrics.failure)
        self._say_end(interrupted, next(filter(None, failures), None))
        if not results:
            self._say_how_to_go_on(interrupted)

    def _draw(self):
        """Returns what kept the pictures from being written, or None."""
        self.ranks.meet()  # a disk may be slow
        weights, failure = self.first_layer() if self.holds_a_part else {}, None
        try:
            self.run.metrics.length()
            if self.ranks.writes:
                draw_curves(self.run.path, self.network.classes)
                (kernels,) = weights.values()
                draw_kernels(kernels, self.network, self.run.path)
        except OSError as error:
            failure = error
        self.ranks.meet()
        self.run.metrics.events.flush()
        return failure

    def _record(self, results):
        """Returns what kept the answers from being written, or None."""
        failure = None
        try:
            if self.ranks.writes:
                write_right(self.run.path, results)
        except OSError as error:
            failure = error
        errors = {name: answers.errors() for name, answers in results.items()}
        for name, error in errors.items():
            self.run.log("test", step=self.step, epoch=self.epoch, split="val", protocol=name, **asdict(error))
        print_errors(errors, "val", len(self.pipeline.dataset.classes))
        return failure

    def _say_end(self, interrupted, failure):
        ending = f"{'stopped as asked' if interrupted else 'done'} after step {self.step}"
        if failure or not self.checkpoints.up_to_date:
            raise UserError(
                f"{ending}, but not all of it could be written: "
                f"{line_of(failure) if failure else 'no checkpoint'}; {self.checkpoints.newest}"
            )
        say(
            f"{ending}: checkpoint in {self.checkpoints.saver.saved or self.run.path}, "
            f"pictures curves.png and conv1_kernels.png in {self.run.path}"
        )

    def _say_how_to_go_on(self, interrupted):
        path = shlex.quote(str(self.run.path))
        command, test = f"the same command with --out {path} --resume auto", typed("evaluate", self.run.path)
        if self.whole:
            say(f"all its steps are taken, but it is not tested; {command} tests it, or {test}")
            return
        addition = "" if interrupted and self.step < self.last_step else " and a larger --steps, or without it"
        say(f"of {self.recipe_steps} steps at most; to go on, {command}{addition}; to test it as it is, {test}")

    def describe_exchange(self) -> str:
        sum_of_pairs = self.training_step.describe_sum() if self.ranks.pairs > 1 else ""
        return f"exchange: {described(self.crossed, self.network.exchange.between)}{sum_of_pairs}"


class _Interrupted(Exception):
    pass
