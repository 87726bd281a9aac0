"""What must end a run with a process a tower: both end, with one line, and no checkpoint is lost."""

import errno
import json
import math
import os
import signal
import time
from datetime import timedelta

import apart
import pytest
from inner_cases import every
from tiny_run import LAST, assert_same_end, lines, make_quick, newest, run, signalled_after, signalled_in_test, state

from alexnet_mp.data import pipeline_torch
from alexnet_mp.runs import checkpoint_format, checkpoints
from alexnet_mp.runs.checkpoint_writer import Saver
from alexnet_mp.runs.directory import read_run
from alexnet_mp.system import ranks
from alexnet_mp.system.errors import UserError
from alexnet_mp.training.trainer import Trainer

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("one_thread", "quick")]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        return run(data, tmp_path_factory.mktemp("whole") / "run")


def spoil(name, value, of=lambda trainer, part: part.data):
    """The first number of a tensor of the tower here becomes something else."""

    def action(trainer):
        tensor = of(trainer, trainer.network.layer_parameters()[name][0])
        tensor.as_strided((tensor.numel(),), (1,))[0] = value

    return action


def spoil_gradient(trainer):
    weight = trainer.network.layer_parameters()["fc6.weight"][0]
    weight.register_hook(lambda gradient: gradient * math.nan)


def velocity(trainer, part):
    return trainer.optimizer.state[part]["velocity"]


SPOILT = {  # the rank, what happens there before step 5, what is said
    "loss": (0, spoil("conv2.weight", math.nan), "the loss is nan"),
    "gradient on tower b": (1, spoil_gradient, "gradient of fc6.weight on tower b: not finite"),
    "velocity on tower a": (0, spoil("fc8.bias", math.inf, velocity), "velocity of fc8.bias on tower a: not finite"),
    "bias that ReLU swallows": (1, spoil("fc6.bias", -math.inf), "velocity of fc6.bias on tower b: not finite"),
}


@every("case", SPOILT)
def test_what_is_not_finite_in_one_ends_all_within_the_step(case, data, tmp_path):
    rank, action, words = SPOILT[case]
    line = apart.ends(data, tmp_path / "run", before=apart.in_rank(rank, apart.at_step(5, action)))
    assert f"{words} at step 5" in line and "the last good checkpoint is" in line and line.startswith("error: ")
    assert json.loads((tmp_path / "run" / "non_finite.json").read_text())["step"] == 5
    assert [entry["step"] for entry in lines(tmp_path / "run") if entry["kind"] == "train"] == [1, 2, 3, 4]


def full(patch):
    def put(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "weights.safetensors")

    patch.setattr("alexnet_mp.runs.checkpoint_writer.checkpoints.put", put)


def test_a_full_disk_ends_all_or_none(data, tmp_path, without_bytes, whole):
    before = apart.in_rank(0, full)
    line = apart.ends(data, tmp_path / "run", "--checkpoint-every", 2, "--on-save-error", "stop", before=before)
    assert "cannot write a checkpoint: weights.safetensors: No space left on device" in line
    processes = apart.processes_of(data, tmp_path / "other", "--checkpoint-every", 2, before=before)
    assert apart.end(processes) == [2, 0]
    (line,) = apart.said(processes)
    assert f"done after step {LAST}, but not all of it could be written" in line


@pytest.mark.slow
def test_a_slow_disk_is_waited_for(data, tmp_path, without_bytes, whole):
    """Longer than a step is: the other process, which writes nothing, sees that this one lives."""

    def slow(patch=pytest.MonkeyPatch()):
        wait, patience = Saver.wait, 6  # seconds
        patch.setattr(ranks, "PATIENCE", timedelta(seconds=patience))

        def waits(saver, timeout=None):
            patch.setattr(Saver, "wait", wait)
            time.sleep(patience + 2)
            return wait(saver, timeout)

        patch.setattr(Saver, "wait", waits)

    out, _ = apart.run_apart(data, tmp_path / "run", "--overlap", "off", before=slow)
    assert_same_end(out, whole)


@pytest.mark.slow
@every("rank", [0, 1])
def test_an_image_that_one_cannot_read_ends_all_after_a_save(rank, data, tmp_path, without_bytes, whole):
    def fail(patch):
        original_draws = pipeline_torch.draws

        def draws(recipe, epoch, images, positions):
            if epoch == 2 and 9 in positions:
                raise UserError("this disk was pulled out")
            return original_draws(recipe, epoch, images, positions)

        patch.setattr(pipeline_torch, "draws", draws)

    line = apart.ends(data, tmp_path / "run", "--overlap", "off", before=apart.in_rank(rank, fail))
    assert line == "error: this disk was pulled out" and state(newest(tmp_path / "run"))["step"] == 4
    apart.run_apart(data, tmp_path / "run", "--overlap", "off", "--resume", "auto")
    assert_same_end(tmp_path / "run", whole)


@every("rank", [0, 1])
def test_out_of_memory_in_one_ends_all(rank, data, tmp_path):
    def fail(trainer):
        trainer.network.towers[0].fc6.register_forward_hook(no_memory)

    line = apart.ends(data, tmp_path / "run", before=apart.in_rank(rank, apart.at_step(5, fail)))
    assert line.startswith("error: out of memory")


def no_memory(*_):
    raise MemoryError


@pytest.mark.parametrize(
    "where, rank",
    [
        ("in a step", 1),
        pytest.param("in a save", 0, marks=pytest.mark.slow),
        pytest.param("in a validation", 1, marks=pytest.mark.slow),
        pytest.param("in a step", 0, marks=pytest.mark.slow),
        pytest.param("in a save", 1, marks=pytest.mark.slow),
        pytest.param("in a validation", 0, marks=pytest.mark.slow),
    ],
)
def test_a_killed_process_ends_the_other_and_costs_no_checkpoint(where, rank, data, tmp_path, without_bytes, whole):
    def kill(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    ways = {
        "in a step": apart.at_step(5, kill),
        "in a save": lambda patch: signalled_after(patch, Trainer, "snapshot", 2, then=kill),
        "in a validation": lambda patch: signalled_in_test(patch, 2, then=kill),
    }
    flags = ["--overlap", "off", "--checkpoint-every", 2]
    line = apart.ends(data, tmp_path / "run", *flags, before=apart.in_rank(rank, ways[where]), status=-signal.SIGKILL)
    assert line.startswith("error: another process of this job ended, or can't be reached (")
    assert line.endswith("--resume auto goes on from the newest checkpoint")
    assert checkpoints.listing(tmp_path / "run")
    for directory in checkpoints.listing(tmp_path / "run").values():
        checkpoint_format.verify(directory)
    apart.run_apart(data, tmp_path / "run", *flags, "--resume", "auto")
    assert read_run(tmp_path / "run")["resumed"]  # else it has begun anew, and ends with the same bits
    assert_same_end(tmp_path / "run", whole)
