"""What must end a run: numbers that are not finite, an exception in a tower, in the pipeline, in a process that
reads."""

import json
import math
import multiprocessing
import os
import signal
import time

import pytest
import torch
from fake_device import LateEvents
from inner_cases import every
from pipeline_sets import needs_dali
from tiny_run import (
    LAST,
    PER_EPOCH,
    add_to_step,
    assert_same_end,
    lines,
    make_quick,
    newest,
    resume,
    run,
    see_steps,
    signalled_after,
    signalled_in_test,
    state,
)

from alexnet_mp.data import batches
from alexnet_mp.data.dataset import open_dataset
from alexnet_mp.data.pipeline_torch import TorchPipeline
from alexnet_mp.runs.checkpoint_writer import Saver
from alexnet_mp.system.errors import UserError
from alexnet_mp.training import pending_steps
from alexnet_mp.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread", "quick")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        return run(data, tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """One step stays unread, as where the host runs ahead of the device."""
    behind_the_host(monkeypatch, 1)


def behind_the_host(monkeypatch, steps):
    original = Trainer.__init__

    def init(self, *arguments, **options):
        original(self, *arguments, **options)
        self.on_gpu = True

    monkeypatch.setattr(Trainer, "__init__", init)
    monkeypatch.setattr(pending_steps, "mark", LateEvents(steps))


def parameter(trainer, name, tower):
    return trainer.network.layer_parameters()[name][tower]


def spoil(name, tower, value, where=lambda trainer, part: part.data, place=0):
    """One number of a tensor becomes something else."""

    def action(trainer):
        tensor = where(trainer, parameter(trainer, name, tower))
        tensor.as_strided((tensor.numel(),), (1,))[place] = value  # whatever the order in memory

    return action


def velocity(trainer, part):
    return trainer.optimizer.state[part]["velocity"]


def spoil_gradient(name, tower, value):
    def action(trainer):
        def hook(gradient):
            gradient = gradient.clone()
            gradient.view(-1)[-1] = value
            return gradient

        parameter(trainer, name, tower).register_hook(hook)

    return action


def spoil_images(trainer):
    """A pixel that is infinite, as of a broken mean image."""
    function = trainer.network.forward
    trainer.network.forward = lambda *images: function(images[0] + math.inf, *images[1:])


# What happens just before a step, and what is said of that step. ReLU makes 0 of a bias of -inf, so that the loss
# doesn't show it.
CASES = {
    "loss": (spoil_images, "the loss is nan at step"),
    "weights of tower a": (spoil("conv2.weight", 0, math.nan), "the loss is nan at step"),
    "weights of the last layer": (spoil("fc8.weight", 0, math.inf), "the loss is nan at step"),
    "gradient on tower b": (
        spoil_gradient("fc6.weight", 1, math.nan),
        "gradient of fc6.weight on tower b: not finite at step",
    ),
    "gradient on tower a": (
        spoil_gradient("conv1.bias", 0, -math.inf),
        "gradient of conv1.bias on tower a: not finite at step",
    ),
    "velocity": (
        spoil("conv1.weight", 1, math.nan, velocity),
        "velocity of conv1.weight on tower b: not finite at step",
    ),
    "infinite velocity": (
        spoil("fc8.bias", 0, math.inf, velocity, 2),
        "velocity of fc8.bias on tower a: not finite at step",
    ),
    "bias that ReLU swallows": (spoil("fc6.bias", 1, -math.inf), "velocity of fc6.bias on tower b: not finite at step"),
}


def names_of_step(data, entries, step):
    """The images of a step, by name."""
    names = open_dataset(str(data), 40).splits["train"].names
    return [str(names[number]) for number in next(entry for entry in entries if entry[0] == step)[2]]


@pytest.fixture(scope="module")
def images_of(data, tmp_path_factory):
    """images_of(step): the names of a step's images."""
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        entries = see_steps(patch)
        run(data, tmp_path_factory.mktemp("read") / "run")
    return lambda step: names_of_step(data, entries, step)


def stopped(data, out, monkeypatch, step, action, *more):
    """(the line that ends the run, how many steps were begun): a run whose numbers are spoiled just before a step."""
    counts, function = [], Trainer.one_step
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "one_step", lambda self, batch: (counts.append(self.step + 1), function(self, batch)))
        add_to_step(patch, step, action)
        with pytest.raises(UserError) as error:
            resume(data, out, *more)
    assert "\n" not in str(error.value)
    return str(error.value), counts[-1]


def assert_stopped(data, out, monkeypatch, images_of, step, case, *more, later=0):
    action, words = CASES[case]
    if later and "loss" not in words:  # gradient and velocity are those of the step after it
        words = f"weights of {words.partition(' of ')[2]}"
    run(data, out, "--steps", 2)
    before = {path: path.read_bytes() for path in newest(out).iterdir()}
    text, last = stopped(data, out, monkeypatch, step, action, *more)
    assert last == step + later and f"{words} {step}" in text
    assert f"images: {', '.join(images_of(step)[:2])} and {len(images_of(step)) - 2} more" in text
    content = json.loads((out / "non_finite.json").read_text())
    assert (content["step"], content["split"], content["images"]) == (step, "train", images_of(step))
    assert content["loss"] == "nan" if "loss" in words else content["tensors"][0] in words
    assert f"the last good checkpoint is {newest(out)}" in text and "the same command would come to it again" in text
    assert {path: path.read_bytes() for path in before} == before
    steps = [line["step"] for line in lines(out) if line["kind"] == "train"]
    assert steps == list(range(1, step))  # the lines of all good steps, and no other
    return before


@pytest.mark.run
@every("case", CASES)
def test_what_is_not_finite_ends_the_run_within_the_step(case, data, tmp_path, monkeypatch, images_of):
    out = tmp_path / "run"
    before = assert_stopped(data, out, monkeypatch, images_of, 5, case)
    assert newest(out).name == "step_00000003" and set(before) != set()  # the best so far; nothing of step 5
    assert state(newest(out))["step"] == 3


@pytest.mark.slow
@pytest.mark.run
@every("case", CASES)
def test_with_a_step_unread_the_run_ends_one_step_later(case, data, tmp_path, monkeypatch, images_of, as_on_a_gpu):
    assert_stopped(data, tmp_path / "run", monkeypatch, images_of, 4, case, later=1)


@pytest.mark.parametrize("step", [6, LAST])
@pytest.mark.parametrize("case", ["loss", "gradient on tower b"])
def test_with_a_step_unread_nothing_follows_a_bad_last_step(
    case, step, data, tmp_path, monkeypatch, images_of, as_on_a_gpu
):
    """Not the validation after it, not the checkpoint, not the end."""
    assert_stopped(data, tmp_path / "run", monkeypatch, images_of, step, case)
    assert state(newest(tmp_path / "run"))["step"] < step


@pytest.mark.parametrize("case", ["loss", "gradient on tower b"])
def test_with_a_step_unread_no_checkpoint_is_of_a_bad_step(case, data, tmp_path, monkeypatch, images_of, as_on_a_gpu):
    start = Saver.start
    # else a slow disk skips one
    monkeypatch.setattr(Saver, "start", lambda self, content: (start(self, content), self.wait()))
    assert_stopped(data, tmp_path / "run", monkeypatch, images_of, 5, case, "--checkpoint-every", 1)
    assert state(newest(tmp_path / "run"))["step"] == 4


def test_with_a_step_unread_an_interrupt_saves_no_bad_step(data, tmp_path, monkeypatch, as_on_a_gpu):
    out = run(data, tmp_path / "run", "--steps", 4)
    before = newest(out)

    def spoil_and_stop(trainer):
        CASES["velocity"][0](trainer)
        signal.raise_signal(signal.SIGTERM)

    text, _ = stopped(data, out, monkeypatch, 5, spoil_and_stop)
    assert "velocity of conv1.weight on tower b: not finite at step 5" in text and newest(out) == before


@pytest.mark.run
@pytest.mark.parametrize(
    "flags", [[], ["--set", 'dates=[{"epoch": 2, "weights": 0.1}]']], ids=["same rates", "other rates in epoch 2"]
)
def test_with_a_step_unread_the_lines_are_the_same(flags, data, tmp_path, monkeypatch, as_on_a_gpu):
    """Also cut in the middle, and with the rates of each line's own step."""
    out = run(data, tmp_path / "run", *flags, "--steps", 4)
    resume(data, out, *flags)
    monkeypatch.undo()
    make_quick(monkeypatch)
    assert_same_end(out, run(data, tmp_path / "plain", *flags))


@pytest.mark.run
@pytest.mark.parametrize("steps, read_every", [(5, 16), (100, 4)])
def test_a_device_many_steps_behind_changes_no_line_and_hides_no_bad_step(
    steps, read_every, data, tmp_path, monkeypatch, images_of, whole
):
    behind_the_host(monkeypatch, steps)
    monkeypatch.setattr(pending_steps, "READ_EVERY", read_every)
    assert_same_end(run(data, tmp_path / "good"), whole)
    text, last = stopped(data, tmp_path / "good", monkeypatch, 10, CASES["velocity"][0], "--epochs", 6)
    # all is read before the validation
    assert "weights of conv1.weight on tower b: not finite at step 10" in text and last == 12
    assert json.loads((tmp_path / "good" / "non_finite.json").read_text())["step"] == 10
    assert state(newest(tmp_path / "good"))["step"] == 9


def test_the_first_step_of_all(data, tmp_path, monkeypatch):
    action, words = CASES["gradient on tower b"]
    text, _ = stopped(data, tmp_path / "run", monkeypatch, 1, action)
    assert f"{words} 1" in text and "no checkpoint was written yet" in text
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert [line["kind"] for line in lines(tmp_path / "run")] == ["schedule"]


@pytest.mark.run
def test_a_run_goes_on_from_the_last_good_checkpoint(data, tmp_path, monkeypatch, whole):
    for step, case in ((5, "loss"), (8, "velocity"), (8, "bias that ReLU swallows")):
        stopped(data, tmp_path / "run", monkeypatch, step, CASES[case][0])
    resume(data, tmp_path / "run")
    assert_same_end(tmp_path / "run", whole)


def test_a_frozen_layer_that_is_not_finite_is_never_saved(data, tmp_path, monkeypatch):
    """Nothing trains it, so nothing watches it; but the checkpoint looks: while the run goes on, and at its end."""
    flags = ["--set", 'dates=[{"epoch": 1, "layers": ["fc6"], "weights": 0, "biases": 0}]']
    out = run(data, tmp_path / "run", *flags, "--steps", 4)
    before = newest(out)
    add_to_step(monkeypatch, 5, spoil("fc6.bias", 1, -math.inf))
    for more in (["--checkpoint-every", 1], ["--steps", 5]):
        words = "fc6.bias has values that are not finite after step [56]; nothing of that is saved; the newest "
        with pytest.raises(UserError, match=f"^weights.safetensors: {words}checkpoint is {before}$"):
            resume(data, out, *flags, *more)
        assert newest(out) == before
        assert [path.name for path in (out / "checkpoints").iterdir() if path.name.startswith(".")] == []


def test_large_but_finite_weights_are_no_error(data, tmp_path, monkeypatch):
    """Two of them whose sum is more than float32 holds."""

    def action(trainer):
        bias = parameter(trainer, "fc6.bias", 1)
        bias.data[:2] = -3e38

    add_to_step(monkeypatch, 5, action)
    out = run(data, tmp_path / "run", "--set", "bias_learning_rate=0.0001")
    assert newest(out).name == f"step_{LAST:08d}"


def test_a_loss_that_is_not_finite_in_a_validation(data, tmp_path, monkeypatch):
    """Weights that are finite, but too large for an image."""
    out = run(data, tmp_path / "run", "--steps", 2)
    before = newest(out)

    def spoil_after(trainer):
        trainer.network.towers[0].fc8.weight.data.fill_(3e38)

    function = Trainer.one_step
    with monkeypatch.context() as patch:
        patch.setattr(
            Trainer, "one_step", lambda self, batch: (function(self, batch), self.step == 3 and spoil_after(self))
        )
        with pytest.raises(UserError, match="the loss is (nan|inf) at step 3; images: those of val"):
            resume(data, out)
    assert json.loads((out / "non_finite.json").read_text())["split"] == "val"
    assert newest(out) == before


# --- exceptions


@pytest.mark.process
@pytest.mark.parametrize("tower, layer", [(0, "conv1"), pytest.param(1, "conv2", marks=pytest.mark.slow), (1, "fc6")])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_an_exception_in_a_tower_ends_the_run_with_it(
    direction, tower, layer, data, tmp_path, monkeypatch, whole, nothing_stays
):
    def fail(*_):
        raise RuntimeError(f"{layer} of tower {tower} has burnt")

    def action(trainer):
        module = getattr(trainer.network.towers[tower], layer)
        module.register_forward_hook(fail) if direction == "forward" else module.weight.register_hook(fail)

    out = run(data, tmp_path / "run", "--steps", 4)
    before = {path: path.read_bytes() for path in newest(out).iterdir()}
    with monkeypatch.context() as patch:
        add_to_step(patch, 5, action)
        with pytest.raises(RuntimeError, match=f"{layer} of tower {tower} has burnt"):
            resume(data, out, "--workers", 2)
    nothing_stays()
    assert {path: path.read_bytes() for path in newest(out).iterdir()} == before
    resume(data, out)
    assert_same_end(out, whole)


@pytest.mark.process
@pytest.mark.parametrize(
    "pipeline, workers", [("torch", 0), ("torch", 2), ("raw", 1), pytest.param("dali", 1, marks=needs_dali)]
)
def test_an_exception_in_the_pipeline_comes_after_a_save(
    pipeline, workers, data, tmp_path, monkeypatch, whole, nothing_stays
):
    """Which is of the last whole step, though the interval isn't over."""
    from alexnet_mp.data import pipeline_torch

    original_draws = pipeline_torch.draws

    def failing(recipe, epoch, images, positions):
        if epoch == 2 and 9 in positions:  # in its second batch; two pipelines draw for several
            raise RuntimeError("the disk was pulled out")
        return original_draws(recipe, epoch, images, positions)

    with monkeypatch.context() as patch:
        for module in (batches, pipeline_torch):
            patch.setattr(module, "draws", failing)
        with pytest.raises(RuntimeError, match="the disk was pulled out"):
            run(data, tmp_path / "run", "--pipeline", pipeline, "--workers", workers)
    nothing_stays()
    assert state(newest(tmp_path / "run"))["step"] <= 4 and state(newest(tmp_path / "run"))["step"] == len(
        [line for line in lines(tmp_path / "run") if line["kind"] == "train"]
    )
    resume(data, tmp_path / "run")
    assert_same_end(tmp_path / "run", whole)


@pytest.mark.process
@pytest.mark.parametrize("moment", ["before a step", "after the update", "in a validation"])
def test_a_killed_process_that_reads_costs_no_step(moment, data, tmp_path, monkeypatch, whole, nothing_stays, capsys):
    """Whenever it dies, even in the middle of an update, it is heard of when its next batch is due."""

    def kill(*_):
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while any(process.is_alive() for process in multiprocessing.active_children()) and time.monotonic() < deadline:
            time.sleep(0.01)

    with monkeypatch.context() as patch:
        if moment == "before a step":
            add_to_step(patch, 5, kill)
        elif moment == "after the update":
            add_to_step(patch, 5, lambda trainer: signalled_after(patch, trainer.optimizer, "step", 1, then=kill))
        else:
            signalled_in_test(patch, 2, then=kill)
        with pytest.raises(UserError, match="was killed .SIGKILL"):
            run(data, tmp_path / "run", "--workers", 1, "--epochs", 20)
    nothing_stays()
    out = tmp_path / "run"
    assert f"saved after step {state(newest(out))['step']}: {newest(out)}" in capsys.readouterr().out
    assert state(newest(out))["step"] >= 5
    steps = [line["step"] for line in lines(out) if line["kind"] == "train"]
    assert steps == list(range(1, state(newest(out))["step"] + 1))
    reference = run(data, tmp_path / "longer", "--epochs", 20, "--steps", steps[-1] + 2)
    resume(data, out, "--epochs", 20, "--steps", steps[-1] + 2)
    assert_same_end(out, reference)


def test_an_error_while_the_last_checkpoint_is_saved_does_not_hide_the_first(data, tmp_path, monkeypatch, capsys):
    def fail(self, *_):
        raise RuntimeError("the disk was pulled out")
        yield

    def no_space(*_):
        raise OSError(28, "No space left on device", "weights.safetensors")

    monkeypatch.setattr(TorchPipeline, "train", fail)
    monkeypatch.setattr("alexnet_mp.runs.checkpoint_writer.checkpoints.put", no_space)
    with pytest.raises(RuntimeError, match="the disk was pulled out"):
        run(data, tmp_path / "run")
    assert "No space left on device" in capsys.readouterr().out


def test_a_run_that_took_no_step_has_no_loss_to_say(data, tmp_path, monkeypatch, capsys):
    """A resumed validation, before any step."""
    with monkeypatch.context() as patch:
        signalled_after(patch, Trainer, "one_step", PER_EPOCH)
        run(data, tmp_path / "run")
    capsys.readouterr()
    resume(data, tmp_path / "run")
    output = capsys.readouterr().out
    assert f"step {PER_EPOCH}: validation loss" in output and "nan" not in output
    assert torch.get_num_threads() == 1
