"""When a checkpoint is due, and what a failure leads to, without a network: the trainer is a stand-in."""

import errno
import os
from types import SimpleNamespace

import pytest
from disk import add_gate, checkpoint_of

from alexnet_mp.runs import checkpoints
from alexnet_mp.runs.checkpoints import listing
from alexnet_mp.system.errors import UserError
from alexnet_mp.system.ranks import ALONE
from alexnet_mp.training import checkpoint_policy
from alexnet_mp.training.checkpoint_policy import CheckpointPolicy

SOON = 60  # seconds that nothing here takes


@pytest.fixture
def clock(monkeypatch):
    """A steady clock and a wall clock that go on when they are told to."""
    now = SimpleNamespace(steady=0.0, wall=1e9)
    monkeypatch.setattr(
        checkpoint_policy, "time", SimpleNamespace(monotonic=lambda: now.steady, time=lambda: now.wall + now.steady)
    )
    return now


class Standing:
    """What a policy needs of a trainer: a step, its validation or None, and a snapshot of both."""

    def __init__(self, path, **policy):
        metrics = SimpleNamespace(failure=None, events=SimpleNamespace(failure=None), sync=lambda: None)
        self.run = SimpleNamespace(path=path, lock=SimpleNamespace(check=lambda: None), metrics=metrics)
        self.step, self.validated, self.validation, self.recording = 0, True, None, False
        self.holds_a_part = True
        self.ranks = ALONE
        self.checkpoints = CheckpointPolicy(self, **policy)

    def read_steps(self):
        pass

    def snapshot(self):
        return checkpoint_of(self.step, self.validation and self.validation.top1_error)

    def take(self, top1_error=None):
        """One step more, and then what the policy makes of it, to the end; returns the steps that are saved by now."""
        self.step, self.validation = self.step + 1, None
        if top1_error is not None:
            self.validation = SimpleNamespace(top1_error=top1_error)
        self.checkpoints.save_if_due()
        self.checkpoints.saver.wait(SOON)
        return list(listing(self.run.path))


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "step_00000002")


def test_every_so_many_steps(tmp_path, clock):
    trainer = Standing(tmp_path, every=(3, "steps"), keep=99)
    clock.steady = 1e6
    assert [trainer.take() for _ in range(7)][-1] == [3, 6]


def test_every_so_many_seconds_from_one_save_to_the_next(tmp_path, clock):
    trainer, listings = Standing(tmp_path, every=(10.0, "seconds"), keep=99), []
    for _ in range(9):
        clock.steady += 4
        listings.append(trainer.take())
    assert listings[-1] == [3, 6, 9]  # at 12, 24 and 36 s: ten seconds after each are at 16, 28, ... not at a step
    assert listings[1] == [] and listings[4] == [3]


def test_the_best_validation_is_saved_at_once_and_no_other(tmp_path, clock):
    trainer = Standing(tmp_path, keep=99)
    listings = [trainer.take(error) for error in (50.0, None, 60.0, 50.0, 40.0)]
    assert listings == [[1], [1], [1], [1], [1, 5]]


def test_nothing_but_the_best_is_saved_while_steps_are_recorded_and_what_was_due_comes_after(tmp_path, clock):
    trainer = Standing(tmp_path, every=(2, "steps"), keep=99)
    trainer.recording = True
    assert [trainer.take(error) for error in (None, None, 50.0)] == [[], [], [3]]
    trainer.take()
    trainer.recording = False
    assert trainer.take() == [3, 5]  # 4 was due


def test_what_is_saved_is_not_saved_again(tmp_path, clock, monkeypatch):
    trainer = Standing(tmp_path, every=(1, "steps"), keep=99)
    trainer.take()
    monkeypatch.setattr(trainer, "snapshot", lambda: pytest.fail("copied again"))
    assert trainer.checkpoints.up_to_date and trainer.checkpoints.save_now() is None
    monkeypatch.undo()
    trainer.validated = False  # the same step, in the middle of its validation
    assert not trainer.checkpoints.up_to_date


def test_a_failure_is_said_once_and_the_next_one_is_saved(tmp_path, clock, monkeypatch, capsys):
    trainer = Standing(tmp_path, every=(2, "steps"), keep=99)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "put", no_space)
        assert [trainer.take() for _ in range(2)] == [[], []]
    assert [trainer.take() for _ in range(2)] == [[], [4]]
    assert capsys.readouterr().out == (
        "WARNING: cannot write a checkpoint: step_00000002: No space left on device; the training goes on, "
        "the older checkpoints are untouched\n"
    )


def test_the_step_whose_checkpoint_failed_is_saved_at_the_end(tmp_path, clock, monkeypatch):
    trainer = Standing(tmp_path, every=(1, "steps"))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "put", no_space)
        trainer.take()
    assert trainer.checkpoints.save_now() is None and list(listing(tmp_path)) == [1]


def test_how_soon_it_is_tried_again(tmp_path, clock, monkeypatch, capsys):
    trainer = Standing(tmp_path, every=(100, "steps"), keep=99)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "put", no_space)
        trainer.take(50.0)  # the best
    assert not trainer.take() and "cannot write a checkpoint" in capsys.readouterr().out
    clock.steady += checkpoint_policy.RETRY - 1
    assert trainer.take() == []
    clock.steady += 1
    assert trainer.take() == [4] and trainer.take() == [4]


@pytest.mark.parametrize(
    "what, message",
    [
        (
            "save",
            "cannot write a checkpoint: step_00000002: No space left on device; --on-save-error continue would go on",
        ),
        ("metrics", "cannot write metrics.jsonl: step_00000002: No space left on device; --on-save-error continue"),
    ],
)
def test_a_failure_ends_the_run_if_that_is_asked_for(what, message, tmp_path, clock, monkeypatch):
    trainer = Standing(tmp_path, every=(1, "steps"), on_save_error="stop")
    trainer.take()
    if what == "metrics":
        trainer.run.metrics.failure = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "step_00000002")
    else:
        monkeypatch.setattr(checkpoints, "put", no_space)
        trainer.take()
    with pytest.raises(UserError) as error:
        trainer.take()
    assert str(error.value).startswith(message)
    assert str(error.value).endswith(f"the newest checkpoint is {tmp_path}/checkpoints/step_00000001")


def test_failures_of_metrics_are_said_once_until_they_are_mended(tmp_path, clock, capsys):
    trainer, counts = Standing(tmp_path, every=(100, "steps")), []
    failure = OSError(errno.EIO, os.strerror(errno.EIO), "metrics.jsonl")
    for now in (failure, failure, None, failure):
        trainer.run.metrics.failure = now
        trainer.take()
        counts.append(capsys.readouterr().out.count("cannot write metrics.jsonl: metrics.jsonl: Input/output error"))
    assert counts == [1, 0, 0, 1]


def test_a_last_save_says_which_step_is_there(tmp_path, clock, monkeypatch, capsys):
    trainer = Standing(tmp_path)
    trainer.step = 3
    trainer.checkpoints.save_what_is_there()
    assert capsys.readouterr().out == f"saved after step 3: {tmp_path}/checkpoints/step_00000003\n"
    trainer.step = 4
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "put", no_space)
        trainer.checkpoints.save_what_is_there()
    assert capsys.readouterr().out == (
        "WARNING: not saved after step 4: step_00000002: No space left on device; "
        f"the newest checkpoint is {tmp_path}/checkpoints/step_00000003\n"
    )


def test_a_last_save_does_not_wait_for_ever(tmp_path, clock, monkeypatch, capsys):
    """Neither for its own write nor for one before, behind which it begins none."""
    gate, _ = add_gate(monkeypatch, checkpoints, "put")
    monkeypatch.setattr(checkpoint_policy, "PATIENCE", 0.05)
    trainer = Standing(tmp_path)
    for trainer.step in (3, 4):
        trainer.checkpoints.save_what_is_there()
        assert capsys.readouterr().out == (
            f"WARNING: not saved after step {trainer.step}: the disk took longer than 0.05 s; "
            "the newest checkpoint is (none)\n"
        )
    gate.release(2)
    assert trainer.checkpoints.saver.wait(SOON) and list(listing(tmp_path)) == [3]


@pytest.mark.parametrize(
    "jump, said", [(checkpoint_policy.CLOCK_JUMP + 1, 1), (-3600, 1), (checkpoint_policy.CLOCK_JUMP - 1, 0)]
)
def test_a_clock_that_jumps(jump, said, tmp_path, clock, capsys):
    trainer = Standing(tmp_path, every=(1, "steps"))
    trainer.take()
    clock.wall += jump
    for _ in range(2):
        trainer.take()
    assert capsys.readouterr().out.count(f"the clock of this machine jumped by {jump:+,} s") == said
