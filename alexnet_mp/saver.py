"""Checkpoints are written by a thread beside the training: the step waits only while the tensors are copied to host memory."""
import threading

from . import checkpoint

PATIENCE = 8  # seconds that an unfinished write gets when the run ends by an error


class Saver:
    """Writes the checkpoints of a run, one at a time, and removes those that are neither the newest `keep` nor the best.

    What went wrong is kept for the training, which asks `outcome` after every step.
    """

    def __init__(self, run, keep):
        self.run, self.keep, self.thread = run, keep, None
        # The directory of the newest checkpoint that is on the disk; a run that goes on in its own directory has one already.
        self.saved = next(reversed(checkpoint.listing(run.path).values()), None)
        found = checkpoint.best(run.path)
        self.best_error = found[1].validation.top1_error if found else float("inf")
        self._failure = self._prune_failure = None

    @property
    def busy(self):
        return self.thread is not None and self.thread.is_alive()

    def start(self, content):
        """Write a `Checkpoint` whose tensors nobody changes any more. Waits where one is still being written."""
        self.wait()
        thread = threading.Thread(target=self._write, args=(content,), name="save", daemon=True)
        thread.start()
        self.thread = thread

    def wait(self, timeout=None):
        """Until all is written. Returns whether it is."""
        if self.thread is not None:
            self.thread.join(timeout)
        return not self.busy

    def outcome(self):
        """(what kept a checkpoint from being written, what kept an old one from being removed), each None or an exception, once."""
        if self.busy:
            return None, None
        found = self._failure, self._prune_failure
        self._failure = self._prune_failure = None
        return found

    def _write(self, content):
        try:
            self.run.metrics.sync()  # a checkpoint must not know of lines that a crash of the machine can still take
            self.saved = checkpoint.put(self.run.path, content)
            if content.state.validation:
                self.best_error = min(self.best_error, content.state.validation.top1_error)
        except Exception as error:  # whatever it is: the training goes on in the other thread, and has to hear of it
            self._failure = error
            return
        try:
            checkpoint.prune(self.run.path, self.keep)
        except Exception as error:
            self._prune_failure = error
