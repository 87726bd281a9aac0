"""tools/norm_factors.py: by how much response normalisation changes a network's outputs, against the formula."""

import subprocess
import sys

import forked_process
import norm_factors
import pytest
import torch
from tiny_run import run

from alexnet_mp.evaluation.trained import load_run

pytestmark = pytest.mark.usefixtures("one_thread", "quick")


def test_factors_are_those_of_the_formula(data, tmp_path, monkeypatch):
    """With an alpha that counts: of one map alone the factor is (1 + alpha a^2 / k)^-beta, where a is the normalised
    output's input."""
    out = run(data, tmp_path / "run", "--steps", "2", "--set", "lrn_size=1", "--set", "lrn_alpha=0.01")
    relu_outputs = []
    before = norm_factors._of_layer
    monkeypatch.setattr(
        norm_factors,
        "_of_layer",
        lambda name, module, x, most: (
            relu_outputs.append(torch.relu(module._convolve(x, module.weight, module.bias)))
            or before(name, module, x, most)
        ),
    )
    factors = norm_factors.norm_factors(str(out))
    assert list(factors) == ["conv1 lrn"]
    inputs = relu_outputs[0][relu_outputs[0] != 0]
    torch.testing.assert_close(
        factors["conv1 lrn"], (1 + 0.01 * inputs**2 / load_run(str(out), "cpu")[0].recipe.lrn_k) ** -0.75
    )
    assert factors["conv1 lrn"].max() <= 1 and factors["conv1 lrn"].min() < 0.9
    assert len(norm_factors.norm_factors(str(out), most=10)["conv1 lrn"]) <= 10


@pytest.mark.slow
@pytest.mark.process
def test_the_command(data, tmp_path):
    out = run(data, tmp_path / "run", "--steps", "1")
    command = [sys.executable, norm_factors.__file__, str(out)]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert outcome.returncode == 0 and "conv1 lrn: outputs are multiplied by" in outcome.stdout
    process = forked_process.command(norm_factors.main, tmp_path)
    assert process.wait() == 2 and process.err.startswith("error:") and process.err.count("\n") == 1
