"""How long a run is: dates at their share of other epochs; its steps, and whether they are too few."""

import dataclasses
import json
import re
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
from inner_cases import every
from tiny_run import lines, resume, run

from alexnet_mp import claims, train
from alexnet_mp.experiments.claim import BASE
from alexnet_mp.experiments.plan import arm_recipe
from alexnet_mp.recipes import ablations
from alexnet_mp.recipes.named import PRESETS
from alexnet_mp.system.errors import UserError
from alexnet_mp.training import length
from alexnet_mp.training.plan import Options, resolve

pytestmark = pytest.mark.usefixtures("one_thread", "quick")


def resolved(**options):
    with ExitStack() as stack:
        return resolve(Options(gpus="cpu", **options), stack).recipe


def test_a_network_whose_first_layer_has_no_kernels_is_refused_before_it_is_trained():
    """Its pictures could not be drawn at the end."""
    layers = '[{"name": "fc8", "kind": "fc", "maps": null, "reads": "image", "then": [], "towers": "first"}]'
    with pytest.raises(UserError, match="recipe field fc8.kind is 'fc': a trained network's first kernels are drawn"):
        resolved(recipe="mini", settings=(f"layers={layers}",))


@every("flag", ["--epochs", "--set epochs="])
@every("name", ["mini", "desk", "source2012", "cifar18", "net146_2012"])
@every("epochs", [1, 5, 30, 200])
def test_dates_come_at_their_share_of_other_epochs(flag, name, epochs, capsys):
    options = {"epochs": epochs} if flag == "--epochs" else {"settings": (f"epochs={epochs}",)}
    recipe, preset = resolved(recipe=name, **options), PRESETS[name]()
    assert recipe == ablations.shortened(preset, epochs)
    output = capsys.readouterr().out
    assert f"share of {epochs} epochs as of {name}'s {preset.epochs}: epoch {preset.dates[0].epoch} -> " in output
    epoch = recipe.dates[0].epoch
    assert f"{preset.dates[0].epoch} -> {epoch if epoch <= epochs else 'never'}" in output
    assert output.count("never") == sum(date.epoch > epochs for date in recipe.dates)


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
    recipe = resolved(**asked)
    preset = PRESETS[asked["recipe"]]() if isinstance(asked["recipe"], str) else asked["recipe"]
    assert recipe.dates == preset.dates and "rates change" not in capsys.readouterr().out


def test_dates_that_were_typed_stay(capsys):
    setting = 'dates=[{"epoch": 11, "weights": 0.1}]'
    assert [date.epoch for date in resolved(recipe="mini", epochs=30, settings=(setting,)).dates] == [11]
    assert "rates change" not in capsys.readouterr().out


def rates(out):
    return [line["learning_rate"] for line in lines(out) if line["kind"] == "train"]


@pytest.mark.run
def test_a_run_has_its_drop_at_its_share_and_goes_on_with_its_dates(data, tmp_path, capsys):
    """12 epochs with a drop at the 11th are 6 with one at the 6th. A longer run keeps the dates that it began with."""
    out = run(data, tmp_path / "run", "--epochs", 6)
    assert rates(out) == [0.002] * 15 + [0.0002] * 3
    assert "epoch 11 -> 6" in capsys.readouterr().out
    for flags in (["--epochs", 6], ["--epochs", 7]):
        resume(data, out, *flags)  # --recipe mini is typed each time
        assert [date["epoch"] for date in json.loads((out / "run.json").read_text())["recipe"]["dates"]] == [6]
    output = capsys.readouterr().out
    assert "epochs 6 -> 7; the rates change when they did, at epoch 6" in output and "same share" not in output
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


# --- steps


def said_of(capsys, count, name="mini", from_random_weights=True, **changes):
    recipe = dataclasses.replace(PRESETS[name](), **changes)
    length.say_steps(recipe, SimpleNamespace(splits={"train": range(count)}), from_random_weights)
    return capsys.readouterr().out.splitlines()


@every(
    "count, changes, advice",
    [
        (162, {}, "24 steps are too few to learn anything; batches of 16 and --epochs 137 would take 1,507"),
        (162, {"batch_size": 16}, "132 steps are too few to learn anything; --epochs 137 would take 1,507"),
        (24, {"batch_size": 9}, "36 steps are too few to learn anything; --epochs 500 would take 1,500"),
        (700, {}, "72 steps are too few to learn anything; batches of 64 and --epochs 137 would take 1,507"),
        (2600, {}, "--epochs 72 would take 1,512"),
        (162, {"batch_size": 100, "batch_file_size": 90}, "batches of 25 and --epochs 215 would take 1,505"),
        (3, {"schedule": "plateau", "epochs": 90}, "batches of 16 and --epochs 1500 would take 1,500"),
    ],
)
def test_what_would_be_enough_is_said(count, changes, advice, capsys):
    first, *rest = said_of(capsys, count, **changes)
    assert first.startswith(f"{count:,} training pictures in batches of {changes.get('batch_size', 128)}: ")
    if count == 2600:  # 252 steps
        assert rest == [] and first.endswith("21 steps an epoch, 252 in 12 epochs")
        (_, *rest), changes = said_of(capsys, count, epochs=11), {"epochs": 11}
    (warning,) = rest
    assert warning.startswith("WARNING: ") and warning.endswith(advice)
    fields = {"batches of": "batch_size", "--epochs": "epochs"}
    values = {fields[name]: int(number) for name, number in re.findall(r"(batches of|--epochs) (\d+)", advice)}
    assert len(said_of(capsys, count, **changes | values)) == 1  # with what is advised, nothing more is


def test_one_step_and_one_epoch_are_counted(capsys):
    assert said_of(capsys, 128, epochs=1)[0].endswith("batches of 128: 1 step an epoch, 1 in 1 epoch")
    assert said_of(capsys, 1_281_167, "paper") == [
        "1,281,167 training pictures in batches of 128: 10,010 steps an epoch, 900,900 in 90 epochs"
    ]


def test_weights_that_have_learned_need_no_warning(data, tmp_path, capsys):
    line = "24 training pictures in batches of 9: 3 steps an epoch, 9 in 3 epochs\n"
    out = run(data, tmp_path / "run", "--steps", 1)
    assert f"{line}WARNING: 9 steps are too few" in capsys.readouterr().out
    resume(data, out, "--steps", 2)
    run(data, tmp_path / "tuned", "--init", out, "--steps", 1)
    output = capsys.readouterr().out
    assert output.count(line) == 2 and "too few" not in output
