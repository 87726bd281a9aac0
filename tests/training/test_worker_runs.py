"""Whole runs of a recipe with `fc_batch_size`: by however many processes, and how they go on, and what is refused."""

import json
import os
import signal

import apart
import pytest
from tiny_run import LAST, LAYERS, lines, newest, run, state

from alexnet_mp.runs.checkpoint_format import load
from alexnet_mp.runs.directory import read_run
from alexnet_mp.system.errors import UserError

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("one_thread", "quick")]
# Minibatches of 9, 9 and 6 images: 4 + 4 + 1 and 4 + 2 for the fully connected layers. Three classes.
OWT = ["--set", "towers=1", "--set", "fc_batch_size=4", "--set", "fc6.rate=0.25"]


def assert_near(out, expected):
    """Within what float32 rounds."""
    for mine, other in zip(lines(out), lines(expected), strict=True):
        assert mine.keys() == other.keys()
        assert (mine["kind"], mine["step"]) == (other["kind"], other["step"])
        for name in ("loss", "top1_error", "learning_rate"):
            if name in other:
                assert mine[name] == pytest.approx(other[name], rel=1e-4, abs=1e-4), (mine, other)
    mine, other = load(newest(out)), load(newest(expected))
    for own, tensors in ((mine.weights, other.weights), (mine.velocity, other.velocity)):
        assert own.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert own[name].sub(tensor).abs().max() <= 1e-4 * tensor.abs().max(), name


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Of one process."""
    return run(data, tmp_path_factory.mktemp("whole") / "run", *OWT)


def test_two_processes_make_the_run_of_one_and_either_goes_on(data, tmp_path, whole):
    """With tests that are dealt, of which one process has no image."""
    out, output = apart.run_apart(data, tmp_path / "two", *OWT, count=2, towers="together")
    assert_near(out, whole)
    assert "devices: 2 workers on cpu, each with every convolution and a slice of the units" in output
    assert "graphs: off (fully connected layers that are updated within the step)" in output
    assert "MB a step cross between the workers, at labels, fc6, fc8, loss, convolutions; the last bits" in output
    sizes = [line["bytes_exchanged"] for line in lines(out) if line["kind"] == "train"]
    assert all(line["bytes_exchanged"] == 0 for line in lines(whole) if line["kind"] == "train")
    # An image: a label; 4 maps of 1x1 or 8 units, there and back; 3 sums. Once: the convolutions' gradients.
    convolutions = sum(tensor.numel() for name, tensor in load(newest(out)).weights.items() if name.startswith("conv"))
    border = load(newest(out)).weights["fc6.weight"].shape[1]
    of_image = 8 + 4 * (2 * border + 2 * 8 + len(state(newest(out))["data"]["classes"]))
    assert sizes == [images * of_image + 2 * 4 * convolutions for images in (9, 9, 6) * (LAST // 3)]

    out = tmp_path / "on"
    run(data, out, *OWT, "--steps", 4)
    _, output = apart.run_apart(data, out, *OWT, "--resume", "auto", "--steps", 5, count=3, towers="together")
    assert "no longer bit for bit as without the stop, since something else computes: pairs: 1 -> 3" in output
    run(data, out, *OWT, "--resume", "auto")
    assert_near(out, whole)


def test_a_killed_process_ends_the_others_and_costs_no_checkpoint(data, tmp_path, whole):
    die = apart.in_rank(1, apart.at_step(5, lambda trainer: os.kill(os.getpid(), signal.SIGKILL)))
    flags = [*OWT, "--checkpoint-every", 1]
    processes = apart.processes_of(data, tmp_path / "run", *flags, before=die, count=2, towers="together")
    assert apart.end(processes) == [2, -signal.SIGKILL]
    (line,) = apart.said(processes)
    assert "another process of this job ended" in line and "--resume auto" in line
    run(data, tmp_path / "run", *flags, "--resume", "auto")
    assert read_run(tmp_path / "run")["resumed"]  # else it has begun anew, and ends in the same place
    assert_near(tmp_path / "run", whole)


def test_wrong_use_is_one_line(data, tmp_path):
    layers = json.dumps([*LAYERS[:2], {**LAYERS[2], "maps": 1}, LAYERS[3]])
    for flags, count, words in (
        ([*OWT, "--microbatch", 3], 1, "--microbatch 3: the recipe mini has fc_batch_size, whose steps have no other"),
        ([*OWT, "--graphs", "on"], 1, "not yet with fully connected layers that are updated within the step"),
        ([*OWT, "--profile"], 1, "--profile: not yet of a minibatch in pieces"),
        (["--set", "fc_batch_size=4"], 1, "recipe field fc_batch_size is 4: the layers of two towers are updated"),
        ([*OWT, "--set", f"layers={layers}"], 2, "2 processes: a fully connected layer of mini has 1 units, of which"),
    ):
        if count > 1:
            line = apart.ends(data, tmp_path / "run", *flags, before=lambda: None, count=count, towers="together")
        else:
            with pytest.raises(UserError) as error:
                run(data, tmp_path / "run", *flags)
            line = str(error.value)
        assert words in line, line
        assert not (tmp_path / "run").exists()
