"""What a run says before it begins: lines that fit what was typed, and no more of them than a person reads."""

from dataclasses import replace

import pytest
import torch
from inner_cases import every
from tiny_run import TINY

from alexnet_mp import train
from alexnet_mp.recipes.ablations import no_lrn
from alexnet_mp.recipes.architectures import mini
from alexnet_mp.recipes.named import PRESETS
from alexnet_mp.recipes.recipe import describe, summary
from alexnet_mp.training import plan, run
from alexnet_mp.training.plan import Options

OTHER, TWO = "--recipe chooses another", "on two GPUs, type: "


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@every(
    "options, fits, others",
    [
        (Options(), ["recipe: mini, the small network; --recipe chooses another"], [TWO]),
        (Options(data="my photos"), [OTHER], [TWO]),
        (Options(gpus="cpu"), [OTHER], [TWO]),
        (Options(recipe="mini"), ["recipe: mini, the small network\n"], [OTHER, TWO]),
        (Options(recipe="source2012"), ["recipe: source2012, the whole network\n"], [OTHER, TWO]),
        (Options(recipe=no_lrn(mini())), ["recipe: mini, the small network\n"], [OTHER, TWO]),  # an arm of a claim
        (
            Options(recipe="mini", settings=("fc6.maps=8",), seed=3),
            ["recipe: mini, the small network, with fc6.maps=8, seed=3\n"],
            [OTHER, TWO],
        ),
    ],
)
def test_hints_fit_what_was_typed(options, fits, others, capsys):
    plan._recipe_and_devices(options, None)
    output = capsys.readouterr().out
    assert all(words in output for words in fits) and not any(words in output for words in others), output


@every("data, typed", [(None, "train --gpus 0,1\n"), ("my photos", "train --gpus 0,1 --data 'my photos'\n")])
def test_one_gpu_is_told_of_two(data, typed, monkeypatch, capsys):
    """On a CPU it would be said of every run, and help nobody."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(plan, "here", lambda *_: [torch.device("cuda", 0)] * 2)
    monkeypatch.setattr(plan, "check_kernels", lambda *_: None)
    plan._recipe_and_devices(Options(data=data), None)
    output = capsys.readouterr().out
    assert "recipe: paper, the whole network; --recipe chooses another" in output and output.count(TWO) == 1
    assert typed in output


def test_a_run_begins_with_a_summary_of_its_recipe(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "make_trainer", lambda *_: pytest.fail("enough"))
    with pytest.raises(pytest.fail.Exception, match="enough"):
        train.main([*TINY, "--data", str(data), "--out", str(tmp_path / "run")])
    before = capsys.readouterr().out.partition("reading ")[0].splitlines()
    assert len(before) <= 8 and sum("run.json has every other number" in line for line in before) == 1


def test_a_summary_is_two_lines():
    for preset in PRESETS.values():
        recipe = preset()
        lines = summary(recipe).splitlines()
        assert len(lines) == 2 < len(describe(recipe).splitlines())
        assert all(layer.name in lines[0] for layer in recipe.layers) and f"of {recipe.batch_size}," in lines[1]
    assert summary(mini()).splitlines() == [
        "maps of each of the 2 towers: conv1 24, conv2 64, conv3 96, conv4 96, conv5 64, fc6 256, fc7 256, "
        "fc8 one a class; crops of 96 pixels from pictures of 112",
        "12 epochs at most in batches of 128, learning rate 0.01, dated changes at epoch 11; seed 0; "
        "run.json has every other number",
    ]
    assert "learning rate 0.01, which stays; seed 0;" in summary(replace(mini(), epochs=10))
