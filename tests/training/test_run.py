"""What a run is told to be: dates at their share of other epochs."""

import json
from contextlib import ExitStack

import pytest
from inner_cases import every
from tiny_run import lines, resume, run

from alexnet_mp import claims, train
from alexnet_mp.experiments.catalogue import BASE
from alexnet_mp.experiments.plan import arm_recipe
from alexnet_mp.recipes import ablations
from alexnet_mp.recipes.named import PRESETS
from alexnet_mp.training.run import Options, resolve

pytestmark = pytest.mark.usefixtures("one_thread", "quick")


def resolved(**asked):
    with ExitStack() as held:
        return resolve(Options(gpus="cpu", **asked), held).recipe


@every("flag", ["--epochs", "--set epochs="])
@every("name", ["mini", "desk", "source2012", "cifar18", "net146_2012"])
@every("epochs", [1, 5, 30, 200])
def test_dates_come_at_their_share_of_other_epochs(flag, name, epochs, capsys):
    asked = {"epochs": epochs} if flag == "--epochs" else {"settings": (f"epochs={epochs}",)}
    found, preset = resolved(recipe=name, **asked), PRESETS[name]()
    assert found == ablations.shortened(preset, epochs)
    said = capsys.readouterr().out
    assert f"share of {epochs} epochs as of {name}'s {preset.epochs}: epoch {preset.dates[0].epoch} -> " in said
    first = found.dates[0].epoch
    assert f"{preset.dates[0].epoch} -> {first if first <= epochs else 'never'}" in said
    assert said.count("never") == sum(date.epoch > epochs for date in found.dates)


def test_the_dates_are_those_of_the_claims():
    options = claims._parser().parse_args(["run", "lrn", "--data", "builtin", "--gpus", "cpu", "--epochs", "30"])
    assert resolved(epochs=30) == arm_recipe(BASE, options)[1]
    assert [date.epoch for date in resolved(epochs=30).dates] == [26]


@every(
    "asked",
    [
        {"recipe": "mini"},
        {"recipe": "mini", "epochs": 12},
        {"recipe": "paper", "epochs": 30},
        {"recipe": "mini", "epochs": 30, "settings": ("schedule=plateau",)},
        {"recipe": PRESETS["mini"]()},
    ],
)
def test_nothing_is_said_where_no_date_moves(asked, capsys):
    found = resolved(**asked)
    chosen = PRESETS[asked["recipe"]]() if isinstance(asked["recipe"], str) else asked["recipe"]
    assert found.dates == chosen.dates and "rates change" not in capsys.readouterr().out


def test_dates_that_were_typed_stay(capsys):
    typed = 'dates=[{"epoch": 11, "weights": 0.1}]'
    assert [date.epoch for date in resolved(recipe="mini", epochs=30, settings=(typed,)).dates] == [11]
    assert "rates change" not in capsys.readouterr().out


def rates(out):
    return [line["learning_rate"] for line in lines(out) if line["kind"] == "train"]


def test_a_run_has_its_drop_at_its_share_and_goes_on_with_its_dates(data, tmp_path, capsys):
    """12 epochs with a drop at the 11th are 6 with one at the 6th. A longer run keeps the dates that it began with."""
    out = run(data, tmp_path / "run", "--epochs", 6)
    assert rates(out) == [0.002] * 15 + [0.0002] * 3
    assert "epoch 11 -> 6" in capsys.readouterr().out
    for flags in (["--epochs", 6], ["--epochs", 7]):
        resume(data, out, *flags)  # --recipe mini is typed each time
        assert [date["epoch"] for date in json.loads((out / "run.json").read_text())["recipe"]["dates"]] == [6]
    said = capsys.readouterr().out
    assert "epochs 6 -> 7; the rates change when they did, at epoch 6" in said and "same share" not in said
    assert rates(out) == pytest.approx([0.002] * 15 + [0.0002] * 6)


def test_a_run_whose_dates_were_never_moved_goes_on_with_them(data, tmp_path, capsys):
    """As every run of other epochs was begun before dates moved."""
    out = run(
        data,
        tmp_path / "run",
        "--epochs",
        13,
        "--set",
        'dates=[{"epoch": 11, "weights": 0.1, "biases": 0.1}]',
        "--steps",
        2,
    )
    resume(data, out, "--epochs", 13, "--steps", 3)
    assert [date["epoch"] for date in json.loads((out / "run.json").read_text())["recipe"]["dates"]] == [11]
    words = ["--gpus", "cpu", "--pipeline", "torch", "--workers", "0", "--resume", str(out), "--steps", "4"]
    assert train.main(words) == 0
    assert "same share" not in capsys.readouterr().out
