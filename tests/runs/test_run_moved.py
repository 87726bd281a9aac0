"""Run directories that are moved, emptied or branched while and after a run works in them: nothing is mixed, nothing
begun over."""

import errno
import os
import shutil
import time

import pytest
from disk import failing
from faulty_calls import Faulty
from inner_cases import every
from tiny_run import LAST, add_to_step, assert_same_end, lines, newest, resume, run

from alexnet_mp import checkpoint, train
from alexnet_mp.runs import checkpoint_format, checkpoints
from alexnet_mp.runs.checkpoints import REPLACED, best, listing
from alexnet_mp.system import durable_files
from alexnet_mp.system.errors import UserError
from alexnet_mp.training import checkpoint_policy, trainer
from alexnet_mp.training.checkpoint_policy import CheckpointPolicy

pytestmark = pytest.mark.usefixtures("one_thread", "quick")


def refused(data, out, *arguments):
    with pytest.raises(UserError) as error:
        run(data, out, *arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def move(out):
    out.rename(out.with_name("moved"))
    out.mkdir()


def take_lock(out):
    (out / ".lock").unlink()


@every(
    "happens",
    [move, take_lock, lambda out: shutil.copy(out / ".lock", out / "x") and (out / "x").rename(out / ".lock")],
    ids=["moved", "lock removed", "lock replaced"],
)
def test_a_run_whose_directory_is_no_longer_its_own_ends_and_writes_nothing_into_it(
    happens, data, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    add_to_step(monkeypatch, 5, lambda trainer: trainer.checkpoints.saver.wait() and happens(out))
    assert "no longer this run's" in refused(data, out, "--checkpoint-every", "1", "--keep", "99")
    if happens is move:
        assert os.listdir(out) == []
        out = tmp_path / "moved"
    assert max(listing(out)) <= 5 and max(line["step"] for line in lines(out)) <= 5


@pytest.mark.run
def test_a_branch_has_a_checkpoint_before_its_first_step(data, tmp_path, monkeypatch):
    """A kill in its first minutes must not send it back to the beginning."""
    whole = run(data, tmp_path / "whole")
    first = run(data, tmp_path / "first", "--steps", "4")
    add_to_step(
        monkeypatch, 5, lambda trainer: trainer.checkpoints.saver.wait() and (_ for _ in ()).throw(ZeroDivisionError)
    )
    with pytest.raises(ZeroDivisionError):
        run(data, tmp_path / "branch", "--resume", first)
    assert max(listing(tmp_path / "branch")) == 4
    monkeypatch.undo()
    monkeypatch.setattr(trainer, "draw_curves", lambda run, classes: None)
    assert_same_end(resume(data, tmp_path / "branch"), whole)


def test_a_branch_without_a_checkpoint_is_not_begun_over(data, tmp_path):
    first = run(data, tmp_path / "first", "--steps", "4")
    branch = run(data, tmp_path / "branch", "--resume", first, "--steps", "5")
    shutil.rmtree(branch / "checkpoints")
    before = (branch / "metrics.jsonl").read_bytes()
    assert f"went on from {newest(first)}" in refused(data, branch, "--resume", "auto")
    assert (branch / "metrics.jsonl").read_bytes() == before


@pytest.mark.run
def test_metrics_of_a_run_whose_checkpoints_were_taken_away_are_kept(data, tmp_path):
    out = run(data, tmp_path / "run")
    for number in (1, 2):
        shutil.rmtree(out / "checkpoints")
        before, events = (out / "metrics.jsonl").read_bytes(), sorted(os.listdir(out / "tensorboard"))
        resume(data, out)
        assert (out / f"metrics-{number}.jsonl").read_bytes() == before
        assert sorted(os.listdir(out / f"tensorboard-{number}")) == events
        assert lines(out)[0]["step"] == 0 and lines(out)[-1]["step"] == LAST


@pytest.mark.run
def test_what_is_being_replaced_is_listed(data, tmp_path):
    """A crash between the two renames leaves .replaced_N alone; also who may not rename it finds it."""
    out = run(data, tmp_path / "run", "--steps", "4")
    newest(out).rename(out / "checkpoints" / f"{REPLACED}00000004")
    assert newest(out).name == f"{REPLACED}00000004" and checkpoints.newest_weights(out)[0] == newest(out)
    whole = run(data, tmp_path / "whole")
    assert_same_end(run(data, tmp_path / "new", "--resume", out), whole)
    assert_same_end(resume(data, out), whole)


@pytest.mark.run
@every("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.EMFILE])
def test_what_the_machine_cannot_read_just_now_is_not_called_damaged(number, data, tmp_path, monkeypatch):
    out = run(data, tmp_path / "run", "--steps", "4", "--checkpoint-every", "1")
    before, os_open = list(listing(out)), os.open

    def fail(path, *arguments, **options):
        if str(path).endswith("step_00000004/velocity.safetensors"):
            raise OSError(number, os.strerror(number), str(path))
        return os_open(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(durable_files.os, "open", fail)
        assert os.strerror(number) in refused(data, out, "--resume", "auto")
    assert list(listing(out)) == before
    resume(data, out)


def test_a_failed_save_is_tried_again_soon(data, tmp_path, monkeypatch):
    """Long before the next one is due: RETRY after it, whatever failed."""
    monkeypatch.setattr(checkpoint_policy, "RETRY", 0.0)
    put, failures = checkpoints.put, []

    def put_later(path, content):
        if content.state.step == 3 and not failures:
            failures.append(True)
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return put(path, content)

    monkeypatch.setattr(checkpoints, "put", put_later)
    monkeypatch.setattr(CheckpointPolicy, "save_if_due", waiting(CheckpointPolicy.save_if_due))
    out = run(data, tmp_path / "run", "--checkpoint-every", "1000", "--keep", "99", "--steps", "5")
    assert failures and 4 in listing(out)


def waiting(function):
    def save_if_due(self):
        self.saver.wait()
        time.sleep(0.001)  # the clock goes on
        function(self)

    return save_if_due


def test_the_best_on_other_data_is_no_rival(data, tmp_path, monkeypatch):
    out = run(data, tmp_path / "run", "--keep", "99")
    step, state = best(out)
    resume(data, out, "--epochs", "4", "--set", "momentum=0.5", "--resume-anyway", "--keep", "99")
    later_step, later_state = best(out)
    assert later_state.recipe.momentum == 0.5 and later_step > LAST >= step and state.recipe.momentum == 0.9


def test_no_garbage_in_the_metrics_ends_a_run(data, tmp_path):
    out = run(data, tmp_path / "run", "--steps", "4")
    content = (out / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    content[2] = b"\0" * (len(content[2]) - 1) + b"\n"
    (out / "metrics.jsonl").write_bytes(b"".join(content))
    resume(data, out)
    assert lines(out)[-1]["kind"] == "test"


def test_an_export_may_not_lie_among_the_checkpoints(data, tmp_path):
    out = run(data, tmp_path / "run", "--steps", "1")
    for target in (newest(out) / "x.safetensors", out / "checkpoints" / "x.safetensors"):
        with pytest.raises(UserError, match="count as damaged"):
            checkpoint.main([str(out), "--weights", str(target)])
    assert (
        checkpoint_format.verify(newest(out))
        and checkpoint.main([str(out), "--weights", str(tmp_path / "x.safetensors")]) == 0
    )


@every("arguments", [["--out", ""], ["--out", "", "--resume", "auto"]])
def test_an_empty_out_is_refused(arguments, data, tmp_path, monkeypatch):
    """As a job's script gives it whose variable is not set."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--out"):
        train.main(["--data", str(data), *arguments])
    assert os.listdir(tmp_path) == []


def test_a_directory_whose_parents_cannot_be_synced_is_not_begun(data, tmp_path, monkeypatch):
    calls = Faulty()
    monkeypatch.setattr(durable_files, "os", calls)
    run(data, tmp_path / "a" / "b" / "run", "--steps", "1")
    at = next(number for number, call in enumerate(calls.calls) if "fsync" in str(call))
    monkeypatch.setattr(durable_files, "os", Faulty(at, failing))
    assert "Input/output error" in refused(data, tmp_path / "c" / "d" / "run", "--steps", "1")
    assert not (tmp_path / "c" / "d" / "run").exists()
