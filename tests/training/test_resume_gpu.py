"""A run on GPUs that was stopped and goes on equals the one that never stopped, bit for bit; and goes on elsewhere,
said to differ."""

import pytest
import torch
from tiny_run import DATED, assert_same_end, lines, resume, run

pytestmark = pytest.mark.usefixtures("quick")
COUNT = torch.cuda.device_count()


def needs(gpus):
    """The devices as a parameter, skipped where they are not there."""
    most = max(int(name) for name in gpus.split(",") if name != "cpu")
    return pytest.param(gpus, marks=pytest.mark.gpu(most + 1, reason=f"--gpus {gpus}: {COUNT} CUDA devices here"))


@pytest.mark.parametrize("gpus", [needs("0"), needs("cpu,0"), needs("0,1")])
@pytest.mark.parametrize("cut", [1, 4, 6])
def test_it_equals_the_run_that_never_stopped(gpus, cut, data, tmp_path):
    whole = run(data, tmp_path / "whole", "--gpus", gpus, *DATED)
    run(data, tmp_path / "cut", "--gpus", gpus, *DATED, "--steps", cut)
    assert_same_end(resume(data, tmp_path / "cut", "--gpus", gpus, *DATED), whole)


@pytest.mark.parametrize("gpus", [needs("0"), needs("0,1")])
def test_it_goes_on_elsewhere_and_says_so(gpus, data, tmp_path, capsys):
    run(data, tmp_path / "run", "--gpus", gpus, "--steps", 4)
    capsys.readouterr()
    resume(data, tmp_path / "run", "--gpus", "cpu")
    assert "no longer bit for bit" in (output := capsys.readouterr().out) and "devices" in output
    assert [line["step"] for line in lines(tmp_path / "run") if line["kind"] == "train"] == list(range(1, 10))
