"""Checkpoints are written by a thread beside the training: the step waits only while the tensors are copied to host
memory."""

import threading
from dataclasses import replace

from . import checkpoints
from .checkpoint_format import Checkpoint
from .directory import RunDirectory

PATIENCE = 8  # seconds that an unfinished write gets when the run ends by an error


class Saver:
    """Writes the checkpoints of a run, one at a time, and removes those that are neither the newest `keep` nor the
    best.

    What went wrong is kept for the training, which asks `outcome` after every step.
    """

    def __init__(self, run: RunDirectory, keep: int):
        self.run, self.keep, self.thread, self.next, self.handing = run, keep, None, None, threading.Lock()
        # The directory of the newest checkpoint that is on the disk; a run that goes on in its own directory has one
        # already.
        self.saved = next(reversed(checkpoints.listing(run.path).values()), None)
        best = checkpoints.best(run.path)
        self.best_error = best[1].validation.top1_error if best else float("inf")
        self._failure = self._prune_failure = None

    @property
    def busy(self) -> bool:
        with self.handing:
            return self.thread is not None and self.thread.is_alive()

    def start(self, content: Checkpoint) -> None:
        """Write a `Checkpoint` whose tensors nobody changes any more; after the one that is being written, if there is
        one.

        Waits only where another is waiting already.
        """
        # The thread calls nothing of torch: when the process ends meanwhile, that would abort it.
        content = replace(content, weights=_arrays(content.weights), velocity=_arrays(content.velocity))
        while not self._hand_over(content):
            self.wait()

    def _hand_over(self, content):
        with self.handing:
            if self.thread is None or not self.thread.is_alive():
                thread = threading.Thread(target=self._write_all, args=(content,), name="save", daemon=True)
                thread.start()
                self.thread = thread
                return True
            if self.next is None:
                self.next = content
                return True
            return False

    def wait(self, timeout: float | None = None) -> bool:
        """Until all is written. Returns whether it is."""
        thread = self.thread  # which it lets go of itself
        if thread is not None:
            thread.join(timeout)
        return not self.busy

    def outcome(self) -> tuple[Exception | None, Exception | None]:
        """(what kept a checkpoint from being written, what kept an old one from being removed), each None or an
        exception, once."""
        if self.busy:
            return None, None
        failures = self._failure, self._prune_failure
        self._failure = self._prune_failure = None
        return failures

    def _write_all(self, content):
        while content is not None:
            self._write(content)
            with self.handing:
                content, self.next = self.next, None
                if content is None:
                    self.thread = None  # what comes from now on needs a thread of its own

    def _write(self, content):
        try:
            self.run.lock.check()
            self.run.metrics.sync()  # a checkpoint must not know of lines that a crash of the machine can still take
            self.saved = checkpoints.put(self.run.path, content)
            if content.state.validation:
                self.best_error = min(self.best_error, content.state.validation.top1_error)
        except Exception as error:  # whatever it is: the training goes on in the other thread, and has to hear of it
            self._failure = error
            return
        try:
            self.run.lock.check()
            checkpoints.prune(self.run.path, self.keep)
        except Exception as error:
            self._prune_failure = error


def _arrays(tensors):
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}
