"""Checkpoints written beside the training: what is saved is of one step, one at a time, and what goes wrong is heard
of."""

import copy
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from disk import add_gate, checkpoint_of, holds_what_it_should, names, put_all
from tiny_run import LAST, lines, run

from alexnet_mp.runs import checkpoint_format, checkpoints
from alexnet_mp.runs.checkpoint_writer import Saver
from alexnet_mp.runs.checkpoints import listing
from alexnet_mp.system import durable_files
from alexnet_mp.system.errors import UserError
from alexnet_mp.training import checkpoint_policy, divergence, trainer
from alexnet_mp.training import run as runs
from alexnet_mp.training.checkpoint_policy import CheckpointPolicy

pytestmark = pytest.mark.usefixtures("one_thread", "quick")
SOON = 60  # seconds that nothing here takes


@pytest.fixture
def place(tmp_path):
    """What a saver needs of a run: where it is, a lock that holds, and metrics that can be synced."""
    return SimpleNamespace(
        path=tmp_path, lock=SimpleNamespace(check=lambda: None), metrics=SimpleNamespace(sync=lambda: None)
    )


def fail(error):
    def failing(*_, **__):
        raise error

    return failing


def test_a_checkpoint_is_on_the_disk_after_the_wait(place):
    saver = Saver(place, 2)
    assert saver.saved is None and saver.best_error == float("inf") and not saver.busy and saver.wait()
    saver.start(checkpoint_of(3, 12.5))
    assert saver.wait(SOON) and saver.outcome() == (None, None)
    assert holds_what_it_should(saver.saved).step == 3 and saver.best_error == 12.5


def test_the_thread_that_writes_calls_nothing_of_torch(place, monkeypatch):
    """In a thread that the interpreter's end finds in torch, C++ ends the process by SIGABRT: status -6, not 130."""
    contents, put = [], checkpoints.put
    monkeypatch.setattr(checkpoints, "put", lambda path, content: contents.append(content) or put(path, content))
    saver, content = Saver(place, 2), checkpoint_of(3, 12.5)
    saver.start(content)
    assert saver.wait(SOON) and saver.outcome() == (None, None)
    for tensors, arrays in ((content.weights, contents[0].weights), (content.velocity, contents[0].velocity)):
        assert list(tensors) == list(arrays)
        for name, array in arrays.items():
            assert isinstance(array, np.ndarray) and array.ctypes.data == tensors[name].data_ptr()


def test_what_is_saved_is_of_one_step_while_the_next_ones_change_everything(data, tmp_path, monkeypatch):
    """Each write begins when another step was taken, or when the training waits for it: for the best validation, and at
    the end."""
    expected, busy, monitor, waiting = {}, [], threading.Condition(), []
    one_step, wait, write = trainer.Trainer.one_step, Saver.wait, checkpoint_format.write

    def step(self, batch):
        one_step(self, batch)
        tensors = {
            name: [part.detach().clone() for part in group] for name, group in self.network.layer_parameters().items()
        }
        velocity = {name: [part.clone() for part in group] for name, group in self.optimizer.velocities().items()}
        busy.append(self.checkpoints.saver.busy)
        with monitor:
            expected[self.step] = [
                {name: torch.cat(group) for name, group in groups.items()} for groups in (tensors, velocity)
            ]
            monitor.notify()

    def wait_and_say_so(self, timeout=None):
        with monitor:
            waiting.append(True)
            monitor.notify()
        try:
            return wait(self, timeout)
        finally:
            waiting.pop()

    def late(directory, content):
        with monitor:
            assert monitor.wait_for(lambda: waiting or len(expected) > content.state.step, SOON)
        write(directory, content)

    monkeypatch.setattr(trainer.Trainer, "one_step", step)
    monkeypatch.setattr(Saver, "wait", wait_and_say_so)
    monkeypatch.setattr(checkpoint_format, "write", late)
    out = run(data, tmp_path / "run", "--checkpoint-every", 1, "--keep", 99)
    contents = {step: checkpoint_format.load(directory) for step, directory in listing(out).items()}
    assert any(busy) and len(contents) >= 2 and LAST in contents
    for step, content in contents.items():
        for tensors, wanted in zip((content.weights, content.velocity), expected[step], strict=True):
            assert tensors.keys() == wanted.keys() and all(
                torch.equal(tensors[name], wanted[name]) for name in wanted
            ), step
        assert len((out / "metrics.jsonl").read_bytes()[: content.state.metrics_bytes].splitlines()) >= step


def test_a_snapshot_shares_no_memory_with_the_training(data, tmp_path, monkeypatch):
    """Not even a tensor that only one tower has, such as fc8's, and those of a network of one tower."""
    contents = []

    def compare(self):
        content = self.trainer.snapshot()
        before = copy.deepcopy(content)  # what shares memory with the training would change in two snapshots alike
        with torch.no_grad():
            for groups in (self.trainer.network.layer_parameters(), self.trainer.optimizer.velocities()):
                for parts in groups.values():
                    for part in parts:
                        part.add_(1)
        for part in ("weights", "velocity"):
            assert all(
                torch.equal(tensor, getattr(before, part)[name]) for name, tensor in getattr(content, part).items()
            )
        contents.append(content)

    monkeypatch.setattr(CheckpointPolicy, "save", compare)
    monkeypatch.setattr(trainer.Trainer, "finish", lambda *_: None)
    run(data, tmp_path / "two", "--steps", 1, "--checkpoint-every", 1)
    run(data, tmp_path / "one", "--steps", 1, "--checkpoint-every", 1, "--set", "towers=1")
    assert len(contents) == 2


def test_one_at_a_time(place, monkeypatch):
    gate, starts = add_gate(monkeypatch, checkpoints, "put")
    saver = Saver(place, 9)
    saver.start(checkpoint_of(1))
    assert starts.acquire(timeout=SOON) and saver.busy and not saver.wait(0.01)
    assert saver.outcome() == (None, None) and saver.saved is None
    thread = threading.Thread(target=saver.start, args=(checkpoint_of(2),))
    thread.start()
    assert not starts.acquire(timeout=0.2)  # the second one waits
    gate.release()
    assert starts.acquire(timeout=SOON) and list(listing(place.path)) == [1]
    gate.release()
    thread.join(SOON)
    assert saver.wait(SOON) and list(listing(place.path)) == [1, 2]


def test_the_newest_and_the_best_stay(place):
    saver, outcomes = Saver(place, 2), []
    for step, error in (
        (1, 50.0),
        (2, 20.0),
        (3, 30.0),
        (4, None),
        (5, None),
        (6, 10.0),
        (7, 10.0),
        (8, None),
        (9, None),
    ):
        saver.start(checkpoint_of(step, error))
        saver.wait()
        assert saver.outcome() == (None, None)
        outcomes.append((list(listing(place.path)), saver.best_error))
    assert outcomes == [
        ([1], 50.0),
        ([1, 2], 20.0),
        ([2, 3], 20.0),
        ([2, 3, 4], 20.0),
        ([2, 4, 5], 20.0),
        ([5, 6], 10.0),
        ([6, 7], 10.0),
        ([6, 7, 8], 10.0),
        ([6, 8, 9], 10.0),
    ]


def test_a_run_that_goes_on_knows_its_best_and_its_newest(place):
    put_all(place.path, 1, 2, 3, top1_errors=[30.0, 20.0])
    saver = Saver(place, 1)
    assert saver.best_error == 20.0 and saver.saved == listing(place.path)[3]
    saver.start(checkpoint_of(4, 25.0))
    assert saver.wait(SOON) and saver.best_error == 20.0 and list(listing(place.path)) == [2, 4]


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device", "file"), ValueError("not finite"), MemoryError(), RuntimeError("x")],
    ids=lambda error: type(error).__name__,
)
def test_the_best_counts_once_it_is_on_the_disk_and_any_error_is_heard_of_once(error, place, monkeypatch):
    put_all(place.path, 1, top1_errors=[30.0])
    saver = Saver(place, 1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_format, "write", fail(error))
        saver.start(checkpoint_of(2, 10.0))
        saver.wait()
    assert saver.best_error == 30.0 and saver.saved == listing(place.path)[1] and names(place.path) == ["step_00000001"]
    assert saver.outcome() == (error, None) and saver.outcome() == (None, None)
    saver.start(checkpoint_of(2, 10.0))
    saver.wait()
    assert saver.outcome() == (None, None) and saver.best_error == 10.0


def test_lines_that_cannot_be_synced_keep_a_checkpoint_from_being_written(place):
    error = OSError(5, "Input/output error")
    place.metrics.sync = fail(error)
    saver = Saver(place, 1)
    saver.start(checkpoint_of(1))
    saver.wait()
    assert saver.outcome() == (error, None) and not listing(place.path)


def test_an_old_one_that_cannot_be_removed_is_another_matter(place, monkeypatch):
    put_all(place.path, 1, 2)
    saver, error = Saver(place, 1), OSError(5, "Input/output error")
    with monkeypatch.context() as patch:
        patch.setattr(durable_files.os, "rmdir", fail(error))
        saver.start(checkpoint_of(3))
        saver.wait()
        assert saver.outcome() == (None, error) and saver.saved == listing(place.path)[3]
    saver.start(checkpoint_of(4))  # what was left of it is removed with the next
    saver.wait()
    assert saver.outcome() == (None, None) and names(place.path) == ["step_00000004"]


def test_a_thread_that_cannot_be_started_leaves_a_saver_that_can_be_waited_for(place, monkeypatch):
    saver = Saver(place, 1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail(RuntimeError("can't start new thread")))
        with pytest.raises(RuntimeError):
            saver.start(checkpoint_of(1))
    assert saver.wait() and not saver.busy
    saver.start(checkpoint_of(1))
    assert saver.wait(SOON) and list(listing(place.path)) == [1]


# --- in a run


def test_an_error_ends_a_run_although_a_write_hangs(data, tmp_path, monkeypatch):
    """A disk that answers no more: the run waits a while for it, and ends with the error that it has."""
    gate, starts = add_gate(monkeypatch, checkpoints, "put")
    for module in (runs, divergence, checkpoint_policy):
        monkeypatch.setattr(module, "PATIENCE", 0.1)

    def refuse(self):
        if self.trainer.step == 2:
            assert starts.acquire(timeout=SOON)
            self.trainer.refuse_loss(float("nan"), 2, [])

    monkeypatch.setattr(CheckpointPolicy, "report_save_results", refuse)
    with pytest.raises(UserError, match="the loss is nan at step 2.*no checkpoint was written yet"):
        run(data, tmp_path / "run", "--checkpoint-every", 1)
    (writer,) = [thread for thread in threading.enumerate() if thread.name == "save"]
    assert writer.daemon  # the process ends all the same
    gate.release()
    writer.join(SOON)


def test_a_second_interrupt_waits_for_no_write(data, tmp_path, monkeypatch):
    gate, starts = add_gate(monkeypatch, checkpoints, "put")

    def interrupt(self):
        if self.trainer.step == 2:
            assert starts.acquire(timeout=SOON)
            raise KeyboardInterrupt

    monkeypatch.setattr(runs, "PATIENCE", 10**6)
    monkeypatch.setattr(CheckpointPolicy, "report_save_results", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "run", "--checkpoint-every", 1)
    gate.release()
    [thread.join(SOON) for thread in threading.enumerate() if thread.name == "save"]


@pytest.mark.run
def test_the_end_waits_for_the_last_write(data, tmp_path, monkeypatch):
    put = checkpoints.put

    def slow(*arguments):
        threading.Event().wait(0.3)
        return put(*arguments)

    monkeypatch.setattr(checkpoints, "put", slow)
    out = run(data, tmp_path / "run", "--steps", 2)
    assert list(listing(out)) == [2] and not [thread for thread in threading.enumerate() if thread.name == "save"]


def test_a_disk_slower_than_the_interval_makes_checkpoints_late_and_no_step(data, tmp_path, monkeypatch):
    """While one is written the next, due at every step, isn't begun; of the best validations a copy waits for its
    turn."""
    gate, starts = add_gate(monkeypatch, checkpoints, "put")
    checkpoint_steps, save_if_due = [], CheckpointPolicy.save_if_due

    def count(self):
        step = self.trainer.step
        if step == 2:
            assert self.saver.busy and not self.trainer.validation
        before = self.saved_as
        save_if_due(self)
        if self.saved_as != before:
            checkpoint_steps.append(step)
            assert self.saver.busy or step == 4  # by then the gate is open
        if self.trainer.validation:
            assert step == 3 and self.saver.next.state.step == 3 and not listing(self.run.path)
            [gate.release() for _ in range(10)]

    monkeypatch.setattr(CheckpointPolicy, "save_if_due", count)
    out = run(data, tmp_path / "run", "--steps", 4, "--checkpoint-every", 1)
    assert checkpoint_steps[:2] == [1, 3] and 2 not in checkpoint_steps
    assert {1, 3, 4} <= set(listing(out)) and [line["step"] for line in lines(out) if line["kind"] == "train"] == [
        1,
        2,
        3,
        4,
    ]
