"""A checkpoint comes back bit for bit, in the bytes that it had from the start; and what could not be loaded is never
written."""

import dataclasses
import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from inner_cases import every
from tiny_checkpoint import ALL, V3, V4, V5, V6, bits, refused, rewrite_manifest, rewrite_state, tiny_recipe

from alexnet_mp.data.pixel_statistics import STATISTICS, Statistics
from alexnet_mp.recipes import shapes
from alexnet_mp.recipes.architectures import paper, source2012
from alexnet_mp.recipes.recipe import Layer
from alexnet_mp.runs import checkpoint_format
from alexnet_mp.runs.checkpoint_format import (
    STATE,
    VELOCITY,
    WEIGHTS,
    Checkpoint,
    load,
    load_weights,
    read_state,
    verify,
    write,
)
from alexnet_mp.runs.checkpoint_state import Data, Environment, Scheduled, Validation
from alexnet_mp.system import durable_files
from alexnet_mp.system.errors import UserError

# What comes back


def test_round_trip(original, place):
    checkpoint = load(place)
    assert bits(checkpoint) == bits(original) and list(checkpoint.weights) == list(original.weights)
    assert read_state(place) == verify(place) == original.state
    assert {name: values.tobytes() for name, values in arrays(load_weights(place)).items()} == {
        name: values.tobytes() for name, values in arrays(original.weights).items()
    }


def arrays(tensors):
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def test_what_is_loaded_may_be_written_to(place):
    checkpoint = load(place)
    checkpoint.weights["conv1.bias"] += 1
    checkpoint.statistics.mean[0] = 0


def test_tensor_files_are_those_of_the_library(original, place):
    """As anybody reads them, and byte for byte as the library would write them."""
    for name, tensors in ((WEIGHTS, original.weights), (VELOCITY, original.velocity)):
        assert (place / name).read_bytes() == safetensors.torch.save(tensors)
        assert all(
            torch.equal(tensor, tensors[key]) for key, tensor in safetensors.torch.load_file(place / name).items()
        )
    (place.parent / "run").mkdir()
    original.statistics.save(place.parent / "run")
    assert (place.parent / "run" / STATISTICS).read_bytes() == (place / STATISTICS).read_bytes()
    assert Statistics.load(place).mean.tobytes() == original.statistics.mean.tobytes()


def test_tensors_that_are_not_contiguous(original, place, tmp_path):
    weights = {
        name: tensor.to(memory_format=torch.channels_last)
        if tensor.dim() == 4
        else torch.nn.Parameter(tensor.repeat_interleave(2, 0)[::2])
        for name, tensor in original.weights.items()
    }
    assert not any(
        tensor.is_contiguous() for name, tensor in weights.items() if tensor.shape[0] > 1 and name != "conv1.bias"
    )
    write(tmp_path / "other", dataclasses.replace(original, weights=weights))
    assert bits(load(tmp_path / "other")) == bits(original)


def with_state(original, **changes):
    return dataclasses.replace(original, state=dataclasses.replace(original.state, **changes))


@every(
    "changes",
    [
        {"validated": False, "validation": None},
        {"validation": None, "scheduled": None, "schedule": {}, "step": 0, "epoch": 0},
        {"schedule": {"drops": 3, "best": None, "since_best": 4}},
        {"step": 2**53 - 1, "metrics_bytes": 2**53 - 1},
        {"validation": Validation(0.0, 0.0, -2.2e-16, 50_000)},
        {"validation": Validation(100, 100, 7, 1)},
        {"saved": ""},
    ],
)
def test_every_state_that_a_run_can_have(changes, original, tmp_path):
    changed = with_state(original, **changes)
    write(tmp_path / "one", changed)
    assert read_state(tmp_path / "one") == changed.state == load(tmp_path / "one").state


def test_names_that_are_no_text(original, tmp_path):
    """A folder's name is any bytes; and a name may be any text."""
    classes = os.fsdecode(b"caf\xe9"), "?", "ünïcödé \U0001f41d"
    data = Data(os.fsdecode(b"/data/\xff\xfe"), '\U0001f41c \u2028 "quoted"\n', "f", classes)
    write(tmp_path / "one", with_state(original, data=data))
    assert load(tmp_path / "one").state.data == data
    (tmp_path / "one" / STATE).read_bytes().decode("ascii")


def test_22_000_classes(original, tmp_path):
    classes = tuple(f"n{number:08} and a name of quite some length, as WordNet has them" for number in range(22_000))
    layers = (Layer("fc8", "fc", None, "image", (), towers="first"),)
    recipe = dataclasses.replace(tiny_recipe(), layers=layers, crop_size=1, crop_positions=1)
    tensors = {name: torch.zeros(shape) for name, shape in shapes.merged_shapes(recipe, len(classes)).items()}
    state = dataclasses.replace(
        original.state, recipe=recipe, data=dataclasses.replace(original.state.data, classes=classes), scheduled=None
    )
    write(tmp_path / "one", Checkpoint(tensors, tensors, original.statistics, state))
    assert load(tmp_path / "one").state == state
    assert (tmp_path / "one" / STATE).stat().st_size < checkpoint_format.MOST_STATE / 2


@every("preset", [paper, source2012])
def test_recipes_with_dates_and_whole_numbers(preset, original, tmp_path):
    """1 for 1.0 in a recipe made in Python is no reason to lose a checkpoint."""
    fields = {
        field: getattr(preset(), field)
        for field in ("schedule", "epochs", "reshuffle", "crop_share", "bias_weight_decay")
    }
    dates = tuple(dataclasses.replace(date, layers=("conv1",)) for date in preset().dates)
    recipe = dataclasses.replace(tiny_recipe(), **fields, dates=dates, lrn_k=2)
    write(tmp_path / "one", with_state(original, recipe=recipe))
    assert load(tmp_path / "one").state.recipe == recipe


# The fixtures


@every("place", [V3, V4, V5])
def test_a_checkpoint_of_an_older_format_as_it_was_written(place, original):
    """All but what it lacks."""
    expected = original
    if place != V5:
        expected = with_state(original, made_by=dataclasses.replace(original.state.made_by, overlap=None))
    assert bits(load(place)) == bits(expected) and verify(place) == read_state(place) == expected.state


@every(
    "change, problem",
    [
        (lambda fields: fields["recipe"].update(batch_file_size=None), "a field that format 3 had not is there"),
        (lambda fields: fields["recipe"].update(batch_file_size=4), "a field that format 3 had not is there"),
        (lambda fields: fields["recipe"].pop("test_views"), "a field is missing"),
        (lambda fields: fields["recipe"]["layers"][0].pop("rate"), "a field is missing"),
        (lambda fields: fields["made_by"].pop("precision"), "precision"),
        (lambda fields: fields["recipe"].pop("layers"), "layers"),
        (lambda fields: fields["recipe"].update(layers=[7]), "layers"),
    ],
)
def test_format_3_with_another_recipe_than_it_had_is_refused(change, problem, tmp_path):
    place = tmp_path / "step_00000003"
    shutil.copytree(V3, place)
    rewrite_state(place, change)
    rewrite_manifest(place, lambda fields: fields.update(format=3))
    assert problem in refused(load, place, STATE)


@every(
    "before, number, said",
    [
        (V3, 4, "a field is missing"),
        (V3, 5, "made_by.overlap"),
        (V4, 5, "made_by.overlap"),
        (V5, 6, "made_by.microbatch"),
    ],
)
def test_a_format_without_what_the_one_before_lacks_is_refused(before, number, said, tmp_path):
    place = tmp_path / "step_00000003"
    shutil.copytree(before, place)
    rewrite_manifest(place, lambda fields: fields.update(format=number))
    assert said in refused(load, place, STATE)


@every("before, number, more", [(V4, 4, {"overlap": None}), (V4, 4, {"pairs": 1}), (V5, 5, {"microbatch": None})])
def test_a_format_with_what_it_lacks_is_refused(before, number, more, tmp_path):
    place = tmp_path / "step_00000003"
    shutil.copytree(before, place)
    rewrite_state(place, lambda fields: fields["made_by"].update(more))
    rewrite_manifest(place, lambda fields: fields.update(format=number))
    assert f"a field that format {number} had not is there" in refused(load, place, STATE)


def test_what_is_written_now_is_format_6(place):
    """The same bytes as when format 6 came to be. Where they must change, VERSION has to, too."""
    assert {name: (place / name).read_bytes() for name in ALL} == {name: (V6 / name).read_bytes() for name in ALL}


# What must not come into being


def changed(tensors, name, value):
    return {**tensors, name: value}


def spoiled(tensors, name, value):
    tensor = tensors[name].clone()
    tensor.view(-1)[-1] = value
    return changed(tensors, name, tensor)


@every(
    "change, problem",
    [
        (
            lambda c: {"weights": spoiled(c.weights, "fc2.weight", float("nan"))},
            "weights.*fc2.weight has values that are not finite",
        ),
        (
            lambda c: {"velocity": spoiled(c.velocity, "fc8.bias", float("-inf"))},
            "velocity.*fc8.bias has values that are not finite",
        ),
        (lambda c: {"weights": changed(c.weights, "fc8.bias", torch.zeros(4))}, r"fc8.bias is float32 \(4,\)"),
        (lambda c: {"weights": changed(c.weights, "fc8.bias", torch.zeros(3).double())}, "fc8.bias is float64"),
        (lambda c: {"weights": changed(c.weights, "fc8.bias", torch.zeros(3).bfloat16())}, "fc8.bias is bfloat16"),
        (lambda c: {"weights": changed(c.weights, "fc8.bias", torch.zeros(3, device="meta"))}, "on meta"),
        (lambda c: {"weights": changed(c.weights, "fc9.bias", torch.zeros(3))}, "fc9.bias.* missing or foreign"),
        (lambda c: {"velocity": {"fc8.bias": c.velocity["fc8.bias"]}}, "conv1.weight.* missing or foreign"),
        (
            lambda c: {"statistics": dataclasses.replace(c.statistics, mean=c.statistics.mean.astype(np.float32))},
            "mean is float32",
        ),
        (lambda c: {"statistics": dataclasses.replace(c.statistics, mean=np.zeros((6, 6, 3)))}, "mean is"),
        (
            lambda c: {"statistics": dataclasses.replace(c.statistics, eigenvectors=np.full((3, 3), np.nan))},
            "eigenvectors",
        ),
        (lambda c: {"statistics": dataclasses.replace(c.statistics, eigenvalues=np.array([-0.1, 0, 1]))}, "negative"),
    ],
)
def test_no_tensor_that_could_not_be_loaded_is_written(change, problem, original, tmp_path):
    with pytest.raises(ValueError, match=problem):
        write(tmp_path / "one", dataclasses.replace(original, **change(original)))
    assert not (tmp_path / "one").exists()


@every(
    "changes",
    [
        {"step": -1},
        {"step": 2**53},
        {"step": 1.0},
        {"epoch": None},
        {"metrics_bytes": -1},
        {"validated": 1},
        {"validated": False},
        {"saved": None},
        {"schedule": {"best": float("nan")}},
        {"schedule": {"best": float("inf")}},
        {"schedule": {"best": "12"}},
        {"schedule": {"drops": -1}},
        {"scheduled": Scheduled({}, 0.1)},
        {"scheduled": {}},
        {"validation": Validation(float("nan"), 0.0, 1.0, 8)},
        {"validation": Validation(101.0, 0.0, 1.0, 8)},
        {"validation": Validation(0.0, 0.0, float("inf"), 8)},
        {"validation": Validation(0.0, 0.0, -1.0, 8)},
        {"data": None},
        {"data": Data("a", "b", "c", ())},
        {"data": Data("a", "b", "c", "abc")},
        {"recipe": None},
        {"made_by": None},
        {"made_by": Environment(("cpu",), os.fsdecode(b"\xff"), "fp32", "torch", "on", 1, {}, None, 1)},
        {"made_by": Environment(("cpu",), "cpu", "fp32", "torch", "on", 1, {"torch": 2}, None, 1)},
        {"made_by": Environment(("cpu",), "cpu", "fp32", "torch", "perhaps", 1, {}, None, 1)},
        {"data": Data("a", "b", "c", ("x" * (5 << 20),))},
        {"step": np.float32(1)},
    ],
)
def test_no_state_that_could_not_be_loaded_is_written(changes, original, tmp_path):
    with pytest.raises(ValueError):
        write(tmp_path / "one", with_state(original, **changes))
    assert not (tmp_path / "one").exists()


def test_a_large_sum_is_no_infinity(original, tmp_path):
    weights = changed(original.weights, "fc2.weight", torch.full_like(original.weights["fc2.weight"], 3e38))
    write(tmp_path / "one", dataclasses.replace(original, weights=weights))
    assert torch.equal(load(tmp_path / "one").weights["fc2.weight"], weights["fc2.weight"])


def test_a_directory_is_written_once(original, place):
    before = {name: (place / name).stat().st_mtime_ns for name in ALL}
    with pytest.raises(FileExistsError):
        write(place, original)
    assert {name: (place / name).stat().st_mtime_ns for name in ALL} == before


def test_the_manifest_is_written_last_and_all_is_synced(original, tmp_path, monkeypatch):
    log = []
    for name in ("make_directory", "write", "sync"):
        monkeypatch.setattr(
            durable_files,
            name,
            lambda path, *rest, name=name, call=getattr(durable_files, name): (
                log.append((name, Path(path).name)),
                call(path, *rest),
            )[1],
        )
    write(tmp_path / "one", original)
    assert log == [("make_directory", "one"), *(("write", name) for name in ALL), ("sync", "one")]


def test_a_failing_disk_leaves_no_manifest(original, tmp_path, monkeypatch):
    class Failing:
        """The os module, whose call number `left` of those that change the disk fails."""

        def __init__(self, left):
            self.left = left

        def __getattr__(self, name):
            original = getattr(os, name)
            if name not in ("mkdir", "open", "write", "fsync"):
                return original

            def call(*arguments, **options):
                self.left -= 1
                if self.left < 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return original(*arguments, **options)

            return call

    for number in range(1000):
        place = tmp_path / str(number)
        with monkeypatch.context() as patch:
            patch.setattr(durable_files, "os", Failing(number))
            try:
                write(place, original)
                break
            except OSError as error:
                assert error.errno == errno.ENOSPC and error.filename.startswith(str(place))
        try:
            load(place)  # after the last write of the manifest alone: the sync is what failed
            assert number >= 30
        except UserError:
            pass
    assert bits(load(place)) == bits(original) and 30 < number < 60
