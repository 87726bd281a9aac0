"""When a run is saved, and what follows if that fails: it is said, tried again, or ends the run.

The writing is `checkpoint_writer.py`'s, beside the training; what a checkpoint holds is the trainer's `snapshot`.
"""

import math
import time
from contextlib import contextmanager
from typing import Protocol

import torch

from ..runs.checkpoint_format import Checkpoint, NotFinite
from ..runs.checkpoint_state import Validation
from ..runs.checkpoint_writer import PATIENCE, Saver
from ..runs.directory import RunDirectory
from ..runs.elsewhere import NoSaver, RunElsewhere
from ..system.errors import UserError
from ..system.ranks import Ranks
from ..system.terminal import say

RETRY = 60  # seconds after a checkpoint that could not be written
CLOCK_JUMP = 60  # seconds of the wall clock against the steady one, between two checkpoints, that are worth a line


class SavedTrainer(Protocol):
    """What a policy asks of the `Trainer`, which has one."""

    run: RunDirectory | RunElsewhere
    ranks: Ranks
    step: int
    validated: bool
    validation: Validation | None
    recording: bool
    holds_a_part: bool

    def read_steps(self) -> None: ...

    def snapshot(self) -> Checkpoint: ...

    def first_layer(self) -> dict[str, torch.Tensor]: ...


class CheckpointPolicy:
    """Decides when a trainer's run is saved, and what becomes of failures. Of several processes, rank 0 decides.

    trainer: the `Trainer`; `SavedTrainer` has what is asked of it. every: (number, "steps" | "seconds") between
    checkpoints. keep: how many of them stay, with the best. on_save_error: "continue" | "stop". keep_every: steps
    between the first layers that stay (`first_layers.py`), None: none do.
    """

    def __init__(
        self,
        trainer: SavedTrainer,
        every: tuple[float, str] = (600, "seconds"),
        keep: int = 3,
        on_save_error: str = "continue",
        keep_every: int | None = None,
    ):
        self.trainer, self.run, self.ranks = trainer, trainer.run, trainer.ranks
        self.saver = Saver(trainer.run, keep) if self.ranks.writes else NoSaver()
        self.every, self.stop_on_error, self.keep_every = every, on_save_error == "stop", keep_every
        self.saved_as = None  # (step, validated) of the newest that was begun; None: there is none in this directory
        self.due, self.saved_at, self.retry_at, self.patience = False, time.monotonic(), math.inf, None
        self.clock = time.time() - time.monotonic()
        self.metrics_failing = self.events_failed = self.first_layer_failing = False

    @property
    def up_to_date(self) -> bool:
        """Whether the newest checkpoint that was begun is of exactly now."""
        return self.saved_as == (self.trainer.step, self.trainer.validated)

    @property
    def newest(self) -> str:
        """The newest checkpoint on the disk, in words."""
        return f"the newest checkpoint is {self.saver.saved or '(none)'}"

    # --- when

    def save_if_due(self) -> None:
        """Begin a checkpoint if the time has come, or if this is the best validation so far.

        Before that it is reported how the last one went.
        """
        self.report_save_results()
        number, unit = self.every
        self.due |= self.trainer.step % number == 0 if unit == "steps" else time.monotonic() - self.saved_at >= number
        self.due |= time.monotonic() >= self.retry_at
        validation = self.trainer.validation
        is_best = validation is not None and validation.top1_error < self.saver.best_error
        # If the disk is slower than the interval, the next one comes late rather than the training waits. The best
        # can't come late: its copy waits in memory. To save is to wait for the device, which the profiler would record:
        # what is merely due waits until it has its steps.
        if self.ranks.first(is_best or self.due and not self.saver.busy and not self.trainer.recording):
            self.save()

    def save(self) -> None:
        """Copy what a checkpoint needs, and let it be written."""
        self.trainer.read_steps()
        if self.ranks.first(self.up_to_date):
            return
        self._notice_clock()
        self.due, self.saved_at, self.retry_at = False, time.monotonic(), math.inf
        with self._disk(f"the checkpoint of step {self.trainer.step}"):
            if self.trainer.holds_a_part:
                self.saver.start(self.trainer.snapshot())
            self.saved_as = (self.trainer.step, self.trainer.validated)
        self.ranks.meet()  # where the disk is slower than the checkpoints come, it was waited for

    def keep_first_layer(self) -> None:
        """Keep the first layer's weights as they are now, if they are to be kept after this step."""
        if not self.keep_every or self.trainer.step % self.keep_every:
            return
        self.trainer.read_steps()  # what isn't finite is no moment to keep
        weights = self.trainer.first_layer() if self.trainer.holds_a_part else {}
        try:
            self.run.keep_first_layer(self.trainer.step, weights)
            self.first_layer_failing = False
        except OSError as error:
            if not self.first_layer_failing:  # said once
                self._raise_or_warn(f"the first layer of step {self.trainer.step}", error)
            self.first_layer_failing = True
        self.ranks.meet()  # a disk may be slow

    def save_now(self) -> Exception | None:
        """A checkpoint of this step, on the disk or not: returns what kept it from being written, or None."""
        too_slow = UserError(f"the disk took longer than {self.patience} s")
        idle = self.saver.wait(self.patience)
        self.report_save_results()  # of the one before; what is reported from here on is this one's
        self.ranks.meet()  # the others, who write nothing, wait for a disk that is slow
        if not self.ranks.first(idle):  # a copy more would wait for what may never end
            return too_slow
        self.save()
        if not self.saver.wait(self.patience):
            return too_slow
        failure, prune_failure = self.saver.outcome()
        self._say_not_removed(prune_failure)
        return failure

    def save_what_is_there(self) -> None:
        """A last checkpoint before an error ends the run; what goes wrong now must not hide that error.

        Not where it ends this process alone: what another has of the weights can't be had any more."""
        if not self.ranks.in_step:
            return
        self.patience = PATIENCE
        try:
            failure = self.save_now()
        except (OSError, UserError) as error:
            failure = error
        step = self.trainer.step
        if failure is None and self.up_to_date:
            say(f"saved after step {step}: {self.saver.saved}")
        else:
            say(f"WARNING: not saved after step {step}: {line_of(failure) if failure else 'see above'}; {self.newest}")

    # --- how it went

    def report_save_results(self) -> None:
        """Say what went wrong in the background. Raises UserError with `--on-save-error stop`."""
        self.run.lock.check()
        failure, prune_failure = self.saver.outcome()
        if failure:
            self.saved_as = None
            self._raise_or_warn("a checkpoint", failure)
        self._say_not_removed(prune_failure)
        if self.run.metrics.failure and not self.metrics_failing:
            self.metrics_failing = True  # said once; the lines wait in memory
            self._raise_or_warn("metrics.jsonl", self.run.metrics.failure)
        self.metrics_failing &= self.run.metrics.failure is not None
        if self.run.metrics.events.failure and not self.events_failed:
            self.events_failed = True
            say(
                f"WARNING: no TensorBoard events any more: {line_of(self.run.metrics.events.failure)}; "
                "metrics.jsonl has the same numbers"
            )

    def _say_not_removed(self, failure):
        if failure:
            say(f"WARNING: an old checkpoint can't be removed: {line_of(failure)}")

    @contextmanager
    def _disk(self, what):
        """A failure to write ends the run, or is said loudly, as `--on-save-error` wants it."""
        try:
            yield
        except OSError as error:
            self._raise_or_warn(what, error)

    def _raise_or_warn(self, what, error):
        self.refuse_lasting(error)
        if self.stop_on_error:
            raise UserError(
                f"cannot write {what}: {line_of(error)}; --on-save-error continue would go on without; {self.newest}"
            )
        say(
            f"WARNING: cannot write {what}: {line_of(error)}; the training goes on, the older checkpoints are untouched"
        )
        self.retry_at = time.monotonic() + RETRY  # a full disk may be mended long before the next checkpoint is due

    def refuse_lasting(self, failure: Exception) -> None:
        """Raise what kept a checkpoint from being written, unless it is the disk, which may be mended."""
        if isinstance(failure, NotFinite):
            raise UserError(f"{failure}; nothing of that is saved; {self.newest}")
        if not isinstance(failure, OSError):  # also a directory that is no longer this run's
            raise failure

    def _notice_clock(self):
        clock = time.time() - time.monotonic()
        if abs(clock - self.clock) > CLOCK_JUMP:
            say(
                f"the clock of this machine jumped by {clock - self.clock:+,.0f} s; "
                "nothing but the times in the records depends on it"
            )
        self.clock = clock


def line_of(error: Exception) -> str:
    """An error in one line, with its file's name."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).splitlines()) or type(error).__name__
