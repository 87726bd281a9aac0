"""What is no longer as it was when a run goes on: refused by name and value unless told, or said."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from image_folders import make_folder
from inner_cases import every
from tiny_run import PLATEAU, assert_same_end, bits, lines, newest, resume, run, state, tensors

from alexnet_mp import prepare
from alexnet_mp.data.pixel_statistics import Statistics
from alexnet_mp.recipes import recipe
from alexnet_mp.recipes.architectures import mini
from alexnet_mp.recipes.recipe import Date, Layer, change_layers
from alexnet_mp.runs.checkpoint_format import Checkpoint
from alexnet_mp.runs.checkpoint_state import Data, Environment, State
from alexnet_mp.runs.checkpoints import ResumePoint
from alexnet_mp.system.errors import UserError
from alexnet_mp.training import resume as resuming

ENVIRONMENT = Environment(
    ("cpu: AVX2", "cpu: AVX2"), "cpu", "fp32", "torch", "off", 2, {"torch": "2.13.0", "triton": None}, None, 1
)
STATISTICS = Statistics(np.full((112, 112, 3), 100.0), np.array([0.1, 0.2, 0.3]), np.eye(3))
DATASET = SimpleNamespace(fingerprint="abc", classes=["ant", "bee", "cat"], splits={"train": range(24)})

# For each field of a recipe and of a layer: a value that differs from mini's, which no other field has to follow.
FIELDS = {
    "towers": 1,
    "lrn_size": 3,
    "lrn_alpha": 2e-4,
    "lrn_beta": 0.5,
    "lrn_k": 1.0,
    "lrn_crosses": True,
    "spatial_size": 3,
    "spatial_alpha": 5e-5,
    "spatial_beta": 0.5,
    "spatial_k": 2.0,
    "pool_size": 4,
    "pool_stride": 1,
    "pool_ties": "all",
    "dropout": 0.4,
    "stored_size": 113,
    "jpeg_quality": 90,
    "crop_size": 95,
    "crop_positions": 15,
    "crop_share": 2,
    "flip": False,
    "mean_follows_crop": False,
    "colour_noise": 0.2,
    "colour_scale": "root",
    "colour_shrink": True,
    "reshuffle": False,
    "batch_size": 127,
    "learning_rate": 0.02,
    "bias_learning_rate": 0.02,
    "momentum": 0.8,
    "weight_decay": 1e-3,
    "bias_weight_decay": 0.0,
    "schedule": "plateau",
    "plateau_patience": 4,
    "plateau_drops": 2,
    "plateau_factor": 0.5,
    "dates": (Date(11, weights=0.1),),
    "seed": 1,
    "test_views": "nine",
    "batch_file_size": 10,
    "fc_batch_size": 32,
}
LAYER_FIELDS = {
    "maps": 7,
    "then": ("tanh",),
    "kernel": 2,
    "stride": 2,
    "pad": 3,
    "init_std": 0.5,
    "init_bias": 0.7,
    "weight_decay": 0.5,
    "rate": 2.0,
}


def saved(before=None, step=3):
    """A checkpoint that was found, without tensors."""
    data = Data("builtin", "", DATASET.fingerprint, tuple(DATASET.classes))
    content = State(step, 1, before or mini(), data, {}, None, True, None, 0, ENVIRONMENT, "")
    return ResumePoint("run/checkpoints/step_00000003", Checkpoint({}, {}, STATISTICS, content))


def changes(now, dataset=DATASET, statistics=STATISTICS, before=None):
    return resuming.changes(saved(before).checkpoint, now, dataset, statistics)


def refusal(point, differences, now, dataset=DATASET, anyway=False):
    with pytest.raises(UserError) as error:
        resuming.refuse_changes(point, differences, now, dataset, anyway)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- every field, one at a time


def test_no_field_was_forgotten():
    assert set(FIELDS) == {field.name for field in dataclasses.fields(recipe.Recipe)} - {"name", "layers", "epochs"}
    assert set(LAYER_FIELDS) == {field.name for field in dataclasses.fields(Layer)} - {
        "name",
        "kind",
        "reads",
        "towers",
    }


def test_nothing_changed():
    assert changes(mini()) == {}
    resuming.refuse_changes(saved(), {}, mini(), DATASET, anyway=False)


@every("field", FIELDS)
def test_a_changed_field_is_refused_with_both_values(field):
    base = dataclasses.replace(mini(), towers=1) if field == "fc_batch_size" else mini()  # it is for one tower
    now = dataclasses.replace(base, **{field: FIELDS[field]})
    before, after = (recipe.every_field(version)[field] for version in (base, now))
    assert changes(now, before=base) == {field: [before, after]}
    text = refusal(saved(base), changes(now, before=base), now)
    assert f"{field} {str(before)[:57]}" in text and str(after)[:57] in text and "run/checkpoints/step_00000003" in text


@every(
    "layer, field",
    [
        *((layer, field) for layer in ("conv1", "conv4") for field in LAYER_FIELDS),
        *(("fc7", field) for field in ("maps", "then", "init_std", "init_bias")),
    ],
)
def test_a_changed_field_of_a_layer_is_refused_with_both_values(layer, field):
    now = change_layers(mini(), layer, **{field: LAYER_FIELDS[field]})
    before, after = (
        {entry["name"]: entry for entry in recipe.to_dict(version)["layers"]}[layer][field] for version in (mini(), now)
    )
    assert changes(now)[f"{layer}.{field}"] == [before, after] and len(changes(now)) == 1
    text = refusal(saved(), changes(now), now)
    assert f"{layer}.{field} {before} -> {after}" in text


@every(
    "change, field",
    [
        (lambda layers: layers[4:5] + layers[3:4], "layers"),
        (lambda layers: (layers[3], dataclasses.replace(layers[4], reads="both")), "conv5.reads"),
        (lambda layers: (dataclasses.replace(layers[3], name="conv9"), layers[4]), "conv9.kind"),
    ],
    ids=["order", "reads", "name"],
)
def test_changed_layers_are_named(change, field):
    before = change_layers(mini(), "conv4", "conv5", maps=96, then=("relu",), kernel=3, pad=1)
    now = dataclasses.replace(before, layers=(*before.layers[:3], *change(before.layers), *before.layers[5:]))
    assert field in changes(now, before=before)
    refusal(saved(before), changes(now, before=before), now)


def test_a_towers_field_and_a_kind_are_named():
    one = dataclasses.replace(mini(), towers=1)
    now = change_layers(one, "fc8", towers="each")
    assert changes(now, before=one) == {"fc8.towers": ["first", "each"]}
    now = change_layers(one, "conv5", kind="fc", then=("relu",), kernel=1, pad=0)
    assert changes(now, before=one)["conv5.kind"] == ["conv", "fc"]


def test_epochs_and_the_name_may_change():
    now = dataclasses.replace(mini(), epochs=1, name="another")
    assert changes(now) == {}


def test_more_changes_than_a_line_holds_are_counted():
    now = dataclasses.replace(mini(), **FIELDS | {"towers": 2, "fc_batch_size": None})
    text = refusal(saved(), changes(now), now)
    assert "and" in text and len(text) < 1500


# --- data


@every(
    "dataset, changed",
    [
        (SimpleNamespace(fingerprint="abd", classes=["ant", "bee", "cat"]), {"data.fingerprint": ["abc", "abd"]}),
        (SimpleNamespace(fingerprint="abc", classes=["ant", "bee", "cow"]), {"data.classes": ["cat", "cow"]}),
        (SimpleNamespace(fingerprint="abc", classes=["bee", "ant", "cat"]), {"data.classes": ["ant", "bee"]}),
        (SimpleNamespace(fingerprint="abc", classes=["ant", "bee"]), {"data.classes": [3, 2]}),
    ],
)
def test_other_data(dataset, changed):
    assert changes(mini(), dataset) == changed


@every("name", ["mean", "eigenvalues", "eigenvectors"])
def test_other_statistics(name):
    last_bits = dataclasses.replace(STATISTICS, **{name: getattr(STATISTICS, name) * (1 + 1e-12)})
    others = dataclasses.replace(STATISTICS, **{name: getattr(STATISTICS, name) * 1.001})
    assert changes(mini(), statistics=last_bits) == {} and list(changes(mini(), statistics=others)) == [
        "data.statistics"
    ]
    assert list(changes(mini(), statistics=dataclasses.replace(STATISTICS, mean=np.zeros((8, 8, 3))))) == [
        "data.statistics"
    ]


# --- what doesn't fit is refused even then


@every(
    "change, name",
    [
        (lambda r: change_layers(r, "conv2", maps=5), "conv2.bias (128,)"),
        (lambda r: change_layers(r, "conv1", kernel=7), "conv1.weight"),
        (lambda r: change_layers(r, "conv3", reads="own"), "conv3.weight"),
        (lambda r: dataclasses.replace(r, crop_size=64), "fc6.weight"),
        (lambda r: dataclasses.replace(r, towers=1), "bias"),
        (lambda r: dataclasses.replace(r, layers=r.layers[:6] + r.layers[7:]), "fc7.bias"),
    ],
    ids=["maps", "kernel", "reads", "crop", "towers", "a layer less"],
)
def test_sizes_that_do_not_fit_are_refused_whatever_is_told(change, name):
    now = change(mini())
    text = refusal(saved(), changes(now), now, anyway=True)
    assert name in text and "don't fit" in text


def test_another_number_of_classes_does_not_fit():
    dataset = SimpleNamespace(fingerprint="abc", classes=["ant", "bee"], splits=DATASET.splits)
    assert "fc8.bias (3,), but this network (2,)" in refusal(
        saved(), changes(mini(), dataset), mini(), dataset, anyway=True
    )


def test_a_run_that_is_past_the_end_is_refused():
    now = dataclasses.replace(mini(), epochs=2, batch_size=24)
    assert "batch_size 128 -> 24; --resume-anyway" in refusal(saved(), changes(now), now)
    text = refusal(saved(), changes(now), now, anyway=True)
    assert "has taken 3 steps already; 2 epochs are only 2: batch_size 128 -> 24" in text
    now = dataclasses.replace(now, batch_file_size=12)  # two steps an epoch
    resuming.refuse_changes(saved(), changes(now), now, DATASET, anyway=True)


# --- what is no longer bit-exact


@every(
    "change, said",
    [
        ({}, []),
        ({"threads": 4}, ["threads: 2 -> 4"]),
        ({"kernels": "reference"}, ["kernels: cpu -> reference"]),
        ({"overlap": "on"}, ["overlap: off -> on"]),
        ({"pipeline": "dali"}, []),
        (
            {"devices": ("cpu: AVX512", "cpu: AVX512")},
            ["devices: ('cpu: AVX2', 'cpu: AVX2') -> ('cpu: AVX512', 'cpu: AVX512')"],
        ),
        ({"packages": {"torch": "2.14.0", "triton": None}}, ["package torch: 2.13.0 -> 2.14.0"]),
        ({"packages": {"torch": "2.13.0", "triton": "3.6"}}, ["package triton: None -> 3.6"]),
        ({"packages": {"torch": "2.13.0"}}, []),
        ({"packages": {"torch": "2.13.0", "triton": None, "cuda": "13.0"}}, ["package cuda: None -> 13.0"]),
        (
            {"devices": ("cuda: H100", "cuda: H100"), "pipeline": "dali"},
            ["devices: ('cpu: AVX2', 'cpu: AVX2') -> ('cuda: H100', 'cuda: H100')", "pipeline: torch -> dali"],
        ),
    ],
)
def test_what_computes_otherwise_is_said(change, said):
    assert resuming.no_longer_exact(ENVIRONMENT, dataclasses.replace(ENVIRONMENT, **change)) == said


def test_what_was_not_recorded_is_not_said():
    for overlap in ("on", "off"):
        now = dataclasses.replace(ENVIRONMENT, overlap=overlap)
        assert resuming.no_longer_exact(dataclasses.replace(ENVIRONMENT, overlap=None), now) == []
    old, new = (
        dataclasses.replace(ENVIRONMENT, packages=ENVIRONMENT.packages | {"numpy": version})
        for version in ("2.3.0", "2.4.0")
    )
    assert resuming.no_longer_exact(ENVIRONMENT, new) == []
    assert resuming.no_longer_exact(old, new) == ["package numpy: 2.3.0 -> 2.4.0"]  # which shifts the colours


def test_on_a_gpu_another_pipeline_is_said():
    gpu_environment = dataclasses.replace(ENVIRONMENT, devices=("cuda: H100", "cuda: H100"))
    assert resuming.no_longer_exact(gpu_environment, dataclasses.replace(gpu_environment, pipeline="dali")) == [
        "pipeline: torch -> dali"
    ]


# --- whole runs

pytestmark = pytest.mark.usefixtures("one_thread", "quick")


@pytest.mark.run
def test_nothing_is_said_where_nothing_differs_and_threads_and_kernels_are(data, tmp_path, capsys):
    out = run(data, tmp_path / "run", "--steps", 1)
    resume(data, out, "--steps", 2)
    output = capsys.readouterr().out
    assert "resumed from" in output and "epochs" not in output.split("resumed")[1]
    assert "no longer bit for bit" not in output and "WARNING" not in output.split("resumed")[1]
    try:
        torch.set_num_threads(2)
        resume(data, out, "--steps", 3, "--kernels", "reference", "--epochs", 7)
    finally:
        torch.set_num_threads(1)
    output = capsys.readouterr().out
    assert "kernels: cpu -> reference, threads: 1 -> 2" in output and "epochs 3 -> 7" in output


def test_by_halves_is_another_rounding_that_is_kept_and_said(data, tmp_path, capsys):
    """On one device a layer that reads both towers makes one product, unless --overlap on."""
    outs = [
        run(data, tmp_path / name, "--steps", 2, *flags)
        for name, flags in (("off", []), ("said", ["--overlap", "off"]), ("on", ["--overlap", "on"]))
    ]
    assert_same_end(outs[0], outs[1])
    losses = [[line["loss"] for line in lines(out) if line["kind"] == "train"] for out in outs]
    assert losses[0] != losses[2] and losses[0] == pytest.approx(losses[2], rel=1e-5)
    assert [json.loads((out / "run.json").read_text())["overlap"] for out in outs] == ["off", "off", "on"]
    assert [state(newest(out))["made_by"]["overlap"] for out in outs] == ["off", "off", "on"]
    assert "overlap on;" in capsys.readouterr().out
    resume(data, outs[2], "--steps", 3)
    assert "overlap on;" in (output := capsys.readouterr().out) and "no longer bit for bit" not in output
    resume(data, outs[2], "--steps", 4, "--overlap", "off")
    assert "something else computes: overlap: on -> off" in capsys.readouterr().out


def test_another_seed_or_data_set_is_refused_before_images_are_read(data, tmp_path, monkeypatch):
    out = run(data, tmp_path / "run", "--steps", 1)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    other = make_folder(tmp_path / "other", train=3, val=1, size=(48, 44), classes=("ant", "bee", "cat"))
    monkeypatch.setattr("alexnet_mp.data.survey.read_through", None)
    monkeypatch.setattr("alexnet_mp.data.survey.survey", None)
    for arguments, words in (([data, out, "--seed", 1], "seed 0 -> 1"), ([other, out], "data.classes apple -> ant")):
        with pytest.raises(UserError, match=words):
            resume(*arguments)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_going_on_anyway_with_other_rates(data, tmp_path, capsys):
    """They hold from the next step on, in the middle of an epoch; and the next resume knows the new recipe."""
    flags = [*PLATEAU, "--set", "learning_rate=0.001"]
    out = run(data, tmp_path / "run", *flags, "--steps", 4)
    snapshot = tensors(newest(out))
    other = [*flags, "--set", "learning_rate=0.0005", "--set", "dropout=0.25"]
    with pytest.raises(UserError, match="dropout 0.5 -> 0.25, learning_rate 0.001 -> 0.0005; --resume-anyway"):
        resume(data, out, *other)
    resume(data, out, *other, "--resume-anyway", "--steps", 5)
    assert (
        "WARNING: another run from here on, as --resume-anyway allows: dropout 0.5 -> 0.25" in capsys.readouterr().out
    )
    rates = {line["step"]: line["learning_rate"] for line in lines(out) if line["kind"] == "train"}
    assert rates == {1: 0.001, 2: 0.001, 3: 0.001, 4: 0.001, 5: 0.0005}
    assert [
        (line["step"], line["learning_rates"]["fc6.weight"]) for line in lines(out) if line["kind"] == "schedule"
    ] == [(0, 0.001), (4, 0.0005)]
    changed = json.loads((out / "run.json").read_text())["resumed"][0]["changed"]
    assert changed == {"dropout": [0.5, 0.25], "learning_rate": [0.001, 0.0005]}
    assert bits(snapshot["weights"]["fc6.weight"]) != bits(tensors(newest(out))["weights"]["fc6.weight"])
    assert state(newest(out))["recipe"]["learning_rate"] == 0.0005
    with pytest.raises(UserError, match="dropout 0.25 -> 0.5"):
        resume(data, out, *flags)
    capsys.readouterr()
    resume(data, out, *other)  # as it is now
    assert "WARNING" not in capsys.readouterr().out


def test_going_on_anyway_on_other_pictures(tmp_path):
    """The new mean image is used and kept, and a resume after it finds nothing changed."""
    sets = []
    for name, count in (("one", 8), ("two", 7)):
        make_folder(tmp_path / name, train=count, val=2, size=(48, 44))
        sets.append(tmp_path / f"{name} set")
        assert prepare.main([str(tmp_path / name), str(sets[-1]), "--size", "40", "--workers", "0", "--raw"]) == 0
    out = run(sets[0], tmp_path / "run", "--steps", 2)
    before = tensors(newest(out))["statistics"]["mean"]
    with pytest.raises(UserError, match="data.fingerprint"):
        resume(sets[1], out)
    resume(sets[1], out, "--steps", 3, "--resume-anyway")
    changed = json.loads((out / "run.json").read_text())["resumed"][0]["changed"]
    assert set(changed) == {"data.fingerprint", "data.statistics"}
    assert not torch.equal(tensors(newest(out))["statistics"]["mean"], before)
    resume(sets[1], out, "--steps", 4)


def test_going_on_anyway_with_another_schedule(data, tmp_path):
    """From plateau to dated and back: what the other one knew is no hindrance."""
    out = run(data, tmp_path / "run", *PLATEAU, "--steps", 4)
    assert state(newest(out))["schedule"]["best"] is not None
    resume(data, out, *PLATEAU, "--set", "schedule=dated", "--resume-anyway", "--steps", 6)
    assert state(newest(out))["schedule"] == {}
    resume(data, out, *PLATEAU, "--resume-anyway", "--steps", 7)
    assert state(newest(out))["schedule"] == {"drops": 0, "best": None, "since_best": 0}


@pytest.mark.run
def test_going_on_anyway_where_nothing_changed_is_the_same_run(data, tmp_path):
    whole = run(data, tmp_path / "whole", *PLATEAU)
    run(data, tmp_path / "run", *PLATEAU, "--steps", 4)
    resume(data, tmp_path / "run", *PLATEAU, "--resume-anyway")
    assert_same_end(tmp_path / "run", whole)
