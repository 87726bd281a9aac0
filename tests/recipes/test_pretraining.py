"""Net 146: rates and dates of its three recipes, and the commands of docs/pretraining.md, typed on small networks."""

import re
from pathlib import Path

import pytest
import torch
from image_folders import make_folder
from tiny_run import newest

from alexnet_mp import evaluate, prepare, train
from alexnet_mp.recipes.named import PRESETS
from alexnet_mp.recipes.pretraining import net146_2009, net146_2011, net146_2012
from alexnet_mp.recipes.shapes import parameter_counts
from alexnet_mp.runs import checkpoint_format
from alexnet_mp.training.schedule import make_schedule

PAGE = Path(__file__).parents[2] / "docs" / "pretraining.md"
COMMANDS = [line.split()[3:] for line in re.findall(r"^python -m alexnet_mp\.train .*$", PAGE.read_text(), re.M)]
WORDS = [
    word
    for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "conv6", "fc6", "fc7")
    for word in ("--set", f"{name}.maps=2")
]


def rates(recipe, epoch):
    table = make_schedule(recipe).rates(epoch)
    return {name: table[f"{name}.weight"] for name in (layer.name for layer in recipe.layers)}


def test_rates_of_pre_training():
    for recipe, copies, epochs in (
        (net146_2009(), 5, {1: 1e-2, 2: 1e-3, 6: 1e-3}),
        (net146_2011(), 6, {1: 1e-2, 6: 1e-2, 7: 1e-3, 8: 1e-3}),
    ):
        for epoch, rate in epochs.items():
            values = list(rates(recipe, epoch).values())
            assert values == pytest.approx(copies * [1e-3] + (len(values) - copies) * [rate]), (recipe.name, epoch)
        assert {make_schedule(recipe).colour_noise(epoch) for epoch in epochs} == {0.1} and recipe.epochs == max(epochs)
        assert {make_schedule(recipe).rates(epoch)["fc8.bias"] for epoch in epochs} == {0.02}


def test_networks_of_the_three_steps():
    assert sum(parameter_counts(net146_2012())) == 61_555_304 and net146_2012().epochs == 54
    names = [layer.name for layer in net146_2011().layers]
    assert names[-2:] == ["bottleneck1", "fc8"]
    assert names[:-2] + ["fc8"] == [layer.name for layer in net146_2009().layers]
    assert sum(parameter_counts(net146_2011(), 21_843)) == pytest.approx(110.6e6, rel=0.003)
    assert {recipe.layers[5].init_std for recipe in (net146_2009(), net146_2011(), net146_2012())} == {0.03}


def test_the_page_can_be_typed():
    options = [train._parser().parse_args(words) for words in COMMANDS]
    assert [command.recipe for command in options] == ["source2012", "net146_2009", "net146_2011", "net146_2012", None]
    assert [command.init for command in options] == [None, *(command.out for command in options[:3]), None]
    assert options[4].resume == options[3].out
    for command in options[1:3]:
        names = command.init_layers.split(",")
        assert [layer.rate for layer in PRESETS[command.recipe]().layers] == pytest.approx(
            [0.1 if layer.name in names else 1.0 for layer in PRESETS[command.recipe]().layers]
        )
    assert options[3].steps * 128 == 300 * 1024
    for line in re.findall(r"^python -m alexnet_mp\.(prepare|evaluate) (.*)$", PAGE.read_text(), re.M):
        {"prepare": prepare, "evaluate": evaluate}[line[0]]._parser().parse_args(line[1].split())


@pytest.mark.run
@pytest.mark.usefixtures("one_thread", "quick")
def test_the_chain_from_145_to_the_end(tmp_path, monkeypatch):
    """Small widths and pictures, one epoch a step: each begins with what the one before learned, the last in two."""
    monkeypatch.chdir(tmp_path)
    settings = [
        "--gpus",
        "cpu",
        "--pipeline",
        "torch",
        "--workers",
        "0",
        "--epochs",
        "1",
        "--batch-size",
        "9",
        "--set",
        "stored_size=84",
        "--set",
        "crop_size=80",
        "--set",
        "crop_positions=4",
    ]
    for name in ("ilsvrc2012", "fall2009", "fall2011"):
        make_folder(
            tmp_path / name,
            train=8,
            val=2,
            size=(90, 90),
            classes=("ant", "bee", "cat")[: 2 if name == "ilsvrc2012" else 3],
        )
    states = []
    for words in COMMANDS:
        options = train._parser().parse_args(words)
        has_conv6 = options.recipe != "source2012"
        maps = [word for word in zip(WORDS[::2], WORDS[1::2]) if has_conv6 or "conv6" not in word[1]]
        widths = sum(map(list, maps), []) + (["--set", "bottleneck1.maps=2"] if options.recipe == "net146_2011" else [])
        words = ["1" if word == "2400" else word for word in words]
        words[words.index("--gpus") : words.index("--gpus") + 2] = []
        train.main([*words, *settings, *(widths if options.recipe else [])])
        states.append(checkpoint_format.read_state(newest(options.out or options.resume)))
    assert [state.recipe.name for state in states] == [
        "source2012",
        "net146_2009",
        "net146_2011",
        "net146_2012",
        "net146_2012",
    ]
    assert [state.step for state in states] == [2, 3, 3, 1, 2]
    assert [state.recipe.layers[-1].rate for state in states[-2:]] == [0.1, 1.0]
    last_weights = checkpoint_format.load_weights(newest(tmp_path / "runs/146-2012"))
    before = checkpoint_format.load_weights(newest(tmp_path / "runs/146-2011"))
    assert all(
        torch.nn.functional.cosine_similarity(last_weights[name].flatten(), before[name].flatten(), 0) > 0.99
        for name in last_weights
        if name.endswith("weight") and not name.startswith("fc8")
    )
