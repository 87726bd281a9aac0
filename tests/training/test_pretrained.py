"""`train --init`: all layers but the last begin as another network ended, and what doesn't fit is refused by its
name."""

import json
import shutil

import pytest
import torch
from image_folders import make_folder
from inner_cases import every
from safetensors.torch import save_file
from tiny_run import LAYERS, TINY, make_quick, newest, run

from alexnet_mp import checkpoint, train
from alexnet_mp.runs import checkpoint_format
from alexnet_mp.system.errors import UserError
from alexnet_mp.training.pretrained import read_weights
from alexnet_mp.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread", "quick")
FROZEN = ["--set", "learning_rate=0", "--set", "bias_learning_rate=0"]  # what a run begins with is what it ends with


@pytest.fixture(scope="module")
def before(data, tmp_path_factory):
    """A run that ended."""
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        return run(data, tmp_path_factory.mktemp("before") / "run")


def weights_of(out):
    return checkpoint_format.load_weights(newest(out))


def assert_same(weights, expected):
    assert weights.keys() == expected.keys() and all(torch.equal(weights[name], expected[name]) for name in expected)


def layers(*changes, add=(), drop=()):
    """--set of the tiny layers with fields of some of them changed, after others were added."""
    changed = [dict(layer) for layer in LAYERS if layer["name"] not in drop]
    for position, layer in add:
        changed.insert(position, layer)
    for name, fields in changes:
        next(layer for layer in changed if layer["name"] == name).update(fields)
    return ["--set", f"layers={json.dumps(changed)}"]


@pytest.mark.run
def test_it_begins_with_the_weights_and_a_new_last_layer(data, before, tmp_path, capsys):
    new_weights = weights_of(run(data, tmp_path / "drawn", *FROZEN, "--steps", "1", "--seed", "3"))
    tuned_weights = weights_of(run(data, tmp_path / "tuned", *FROZEN, "--steps", "1", "--seed", "3", "--init", before))
    old_weights = weights_of(before)
    assert "begins with conv1, conv2, fc6 of " in capsys.readouterr().out
    assert all(
        torch.equal(tuned_weights[name], (new_weights if name.startswith("fc8") else old_weights)[name])
        for name in new_weights
    )
    assert not any(torch.equal(new_weights[name], old_weights[name]) for name in new_weights if name.endswith("weight"))


@pytest.mark.run
def test_a_checkpoint_a_run_and_an_exported_file_are_the_same(data, before, tmp_path):
    path = tmp_path / "weights.safetensors"
    assert checkpoint.main([str(before), "--weights", str(path)]) == 0
    for source in (newest(before), path):
        assert_same(read_weights(source), read_weights(before))
    first, second = (run(data, tmp_path / name, "--init", source) for name, source in (("a", before), ("b", path)))
    assert_same(weights_of(first), weights_of(second))


def test_weights_may_lie_behind_links(before, tmp_path):
    """A cache of models has its files under their digests, and links with their names."""
    path = tmp_path / "blobs" / "0f3a"
    path.parent.mkdir()
    assert checkpoint.main([str(before), "--weights", str(tmp_path / "weights.safetensors")]) == 0
    (tmp_path / "weights.safetensors").rename(path)
    links = {
        "model.safetensors": "blobs/0f3a",
        "twice.safetensors": "model.safetensors",
        "run": before,
        "latest": newest(before),
        "inside.safetensors": newest(before) / checkpoint_format.WEIGHTS,
    }
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
        assert_same(read_weights(tmp_path / name), read_weights(before))
    for name, target, words in (
        ("nowhere", "missing", "No such file or directory"),
        ("circle", "circle", "link"),
        ("other", newest(before) / checkpoint_format.VELOCITY, "no file of weights"),
        (checkpoint_format.VELOCITY, "blobs/0f3a", "no file of weights"),
        ("null", "/dev/null", "it is not a regular file"),
    ):
        (tmp_path / name).symlink_to(target)
        with pytest.raises(UserError, match=f"^--init {tmp_path / name}: .*{words}"):
            read_weights(tmp_path / name)


def test_a_checkpoints_own_files_may_not_be_links(before, tmp_path):
    place = shutil.copytree(newest(before), tmp_path / newest(before).name)
    (place / checkpoint_format.WEIGHTS).rename(tmp_path / "moved")
    (place / checkpoint_format.WEIGHTS).symlink_to(tmp_path / "moved")
    for source in (place, place / checkpoint_format.WEIGHTS):
        with pytest.raises(UserError, match="link"):
            read_weights(source)


def test_other_classes(before, tmp_path):
    other = make_folder(tmp_path / "other", train=4, val=2, size=(48, 44), classes=("ant", "bee"))
    out = run(other, tmp_path / "run", *FROZEN, "--steps", "1", "--init", before)
    weights, old_weights = weights_of(out), weights_of(before)
    assert weights["fc8.weight"].shape == (2, 16) and old_weights["fc8.weight"].shape == (3, 16)
    assert torch.equal(weights["fc6.weight"], old_weights["fc6.weight"])


def test_layers_that_only_one_of_them_has(data, before, tmp_path, capsys):
    layer = {"name": "fc7", "kind": "fc", "maps": 5, "reads": "own", "then": ["relu"], "init_std": 0.1}
    source = run(data, tmp_path / "more", *FROZEN, "--steps", "1", *layers(add=[(3, layer)]), "--init", before)
    assert "begins with conv1, conv2, fc6 of " in (output := capsys.readouterr().out) and "; new: fc7, fc8\n" in output
    run(data, tmp_path / "fewer", *FROZEN, "--steps", "1", "--init", source)  # fc8 read fc7 there
    assert "; new: fc8; left out: fc7\n" in capsys.readouterr().out


def test_only_the_layers_that_are_named(data, before, tmp_path, capsys):
    new_weights = weights_of(run(data, tmp_path / "drawn", *FROZEN, "--steps", "1", "--seed", "3"))
    tuned_weights = weights_of(
        run(
            data,
            tmp_path / "tuned",
            *FROZEN,
            "--steps",
            "1",
            "--seed",
            "3",
            "--init",
            before,
            "--init-layers",
            "conv1,fc6",
        )
    )
    old_weights = weights_of(before)
    assert "begins with conv1, fc6 of " in (output := capsys.readouterr().out) and "; new: conv2, fc8\n" in output
    assert all(
        torch.equal(tuned_weights[name], (old_weights if name.startswith(("conv1.", "fc6.")) else new_weights)[name])
        for name in new_weights
    )


@every(
    "more, message",
    [
        (["conv1,fc8"], "--init-layers fc8: it names some of the layers before the last, conv1, conv2, fc6"),
        (["conv7"], "--init-layers conv7: it names some of"),
        ([""], "--init-layers : it names some of"),
    ],
)
def test_layers_that_can_not_be_taken(more, message, data, before, tmp_path):
    with pytest.raises(UserError, match=message):
        run(data, tmp_path / "run", "--init", before, "--init-layers", *more)
    with pytest.raises(UserError, match="and there is no --init"):
        run(data, tmp_path / "run", "--init-layers", *more)
    assert not (tmp_path / "run").exists()


def test_a_layer_that_is_named_and_not_there(data, before, tmp_path):
    layer = {"name": "fc7", "kind": "fc", "maps": 5, "reads": "own", "then": ["relu"], "init_std": 0.1}
    with pytest.raises(UserError, match="it has no fc7, which --init-layers names"):
        run(data, tmp_path / "run", *layers(add=[(3, layer)]), "--init", before, "--init-layers", "conv1,fc7")


@every(
    "change, message",
    [
        (
            ("conv2", {"kernel": 5, "pad": 2}),
            r"conv2.weight is \(8, 6, 3, 3\) there, but \(8, 6, 5, 5\) in this network",
        ),
        (("conv1", {"maps": 4}), r"conv1.weight is \(6, 3, 5, 5\) there, but \(8, 3, 5, 5\)"),
    ],
)
def test_another_shape_is_refused(change, message, data, before, tmp_path):
    with pytest.raises(UserError, match=message):
        run(data, tmp_path / "run", *layers(change), "--init", before)
    assert not (tmp_path / "run").exists()


@every(
    "damage, message",
    [
        (lambda tensors: tensors["conv2.bias"].fill_(float("nan")), "conv2.bias has values that are not finite"),
        (lambda tensors: tensors.pop("conv1.bias"), "it has conv1, but no conv1.bias"),
        (
            lambda tensors: [tensors.pop(name) for name in list(tensors) if not name.startswith("fc8")],
            "none of its tensors",
        ),
        (
            lambda tensors: tensors.update({"conv1.weight": tensors["conv1.weight"].int()}),
            "dtype of 'conv1.weight' is 'I32'",
        ),
    ],
)
def test_damaged_files_are_refused(damage, message, data, before, tmp_path):
    tensors = {name: tensor.clone() for name, tensor in read_weights(before).items()}
    damage(tensors)
    save_file(tensors, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=message):
        run(data, tmp_path / "run", "--init", tmp_path / "weights.safetensors")
    assert not (tmp_path / "run").exists()


def test_what_is_no_file_of_weights(data, tmp_path):
    (tmp_path / "file").write_bytes(b"\x80\x04pickle" + bytes(100))
    for source, message in (
        ("nothing", "it takes a run, a checkpoint, or a"),
        ("file", "never loaded; it takes a run"),
        (".", "it takes a run, a checkpoint, or a .safetensors file; convert makes a run of"),
    ):
        with pytest.raises(UserError, match=message):
            run(data, tmp_path / "run", "--init", tmp_path / source)


def refused(data, tmp_path, source):
    """What `train --init` says, one line; nothing is made."""
    with pytest.raises(UserError) as refusal:
        run(data, tmp_path / "run", "--init", source)
    assert not (tmp_path / "run").exists() and "\n" not in str(refusal.value)
    return str(refusal.value)


def test_velocities_are_not_taken_for_weights(data, before, tmp_path):
    copy = tmp_path / "velocity.safetensors"
    shutil.copy(newest(before) / "velocity.safetensors", copy)
    for source in (newest(before) / "velocity.safetensors", copy, newest(before) / "state.json"):
        assert refused(data, tmp_path, source).startswith(f"--init {source}: no file of weights; ")
    other = shutil.copytree(before, tmp_path / "other")
    shutil.copy(newest(other) / "velocity.safetensors", newest(other) / "weights.safetensors")
    for source in (other, newest(other), newest(other) / "weights.safetensors"):
        assert "weights.safetensors is damaged: its sha256 is not the one in manifest.json" in refused(
            data, tmp_path, source
        )


def test_the_weights_in_a_checkpoint_are_those_of_its_run(before, monkeypatch):
    assert_same(read_weights(newest(before) / "weights.safetensors"), read_weights(before))
    monkeypatch.chdir(newest(before))
    assert_same(read_weights("weights.safetensors"), read_weights(before))
    with pytest.raises(UserError, match="--init velocity.safetensors: no file of weights"):
        read_weights("velocity.safetensors")


def test_a_run_that_diverged_is_not_taken(data, before, tmp_path):
    with pytest.raises(UserError, match="not finite|the loss is"):
        run(data, tmp_path / "diverged", "--set", "learning_rate=1e30")
    assert f"--init {tmp_path / 'diverged'}: this run diverged at step " in refused(
        data, tmp_path, tmp_path / "diverged"
    )
    late_run = shutil.copytree(before, tmp_path / "late")
    (late_run / "non_finite.json").write_text(json.dumps({"step": 10**6}))
    message = refused(data, tmp_path, late_run)
    assert (
        "diverged at step 1000000 (non_finite.json)" in message
        and f"it has a checkpoint of before, {newest(late_run)};" in message
    )
    assert_same(read_weights(newest(late_run)), read_weights(before))
    for content in ('{"step": 1}', "{}", "[", "null"):  # it went past that step; or the note says nothing
        (late_run / "non_finite.json").write_text(content)
        assert_same(read_weights(late_run), read_weights(before))


def test_a_directory_without_a_checkpoint(data, before, tmp_path):
    directory = shutil.copytree(before, tmp_path / "begun")
    shutil.rmtree(directory / "checkpoints")
    assert refused(data, tmp_path, directory).startswith(f"--init {directory}: no checkpoint in it (expected ")
    place = tmp_path / "step_00000003"
    place.mkdir()
    assert refused(data, tmp_path, place) == f"{place / 'manifest.json'}: it is missing"
    assert "No such file" in refused(data, tmp_path, place / "weights.safetensors")


@pytest.mark.run
def test_a_run_that_goes_on_does_not_begin_again(data, before, tmp_path):
    whole = run(data, tmp_path / "whole", "--init", before)
    cut = run(data, tmp_path / "cut", "--init", before, "--steps", "4", "--resume", "auto")
    assert train.main([*TINY, "--data", str(data), "--out", str(cut), "--init", str(before), "--resume", "auto"]) == 0
    assert_same(weights_of(cut), weights_of(whole))


def test_the_velocities_begin_at_zero(data, before, tmp_path, monkeypatch):
    velocities = []
    function = Trainer.one_step

    def one_step(self, batch):
        if not velocities:
            velocities.extend(
                tensor.abs().max().item() for parts in self.optimizer.velocities().values() for tensor in parts
            )
        function(self, batch)

    monkeypatch.setattr(Trainer, "one_step", one_step)
    run(data, tmp_path / "run", "--init", before, "--steps", "1")
    assert velocities and set(velocities) == {0.0}
