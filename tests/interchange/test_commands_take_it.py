"""A converted network under every command, one tower seeing the other's maps: taken, or refused in clear words."""

import json

import pytest
import torch
from inner_cases import every
from safetensors.torch import save_file
from tiny_run import LAYERS, TINY

from alexnet_mp import checkpoint, compare, convert, evaluate, export, predict, report, retrieve, train
from alexnet_mp.network.network import TwoTowerAlexNet
from alexnet_mp.recipes.named import PRESETS
from alexnet_mp.recipes.recipe import override, to_dict
from alexnet_mp.runs.checkpoint_format import load_weights
from alexnet_mp.runs.checkpoints import newest
from alexnet_mp.runs.directory import read_run
from alexnet_mp.system.devices import resolve
from alexnet_mp.system.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread", "quick")
SETTINGS = ("stored_size=40", "crop_size=32", "crop_positions=8", f"layers={json.dumps(LAYERS)}", "lrn_crosses=true")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of tensors with Caffe's way to normalise, for the three classes of the tests' pictures."""
    place = tmp_path_factory.mktemp("converted")
    network = TwoTowerAlexNet(override(PRESETS["mini"](), SETTINGS), ("cpu", "cpu"), 3, "reference")
    save_file(network.merged_state(), place / "net.safetensors")
    (place / "classes.txt").write_text("apple\nleaf\nsky\n")
    options = [word for setting in SETTINGS for word in ("--set", setting)]
    options = ["--recipe", "mini", "--mean", "120,110,100", *options]
    convert.main([str(place / "net.safetensors"), str(place / "run"), *options])
    return str(place / "run")


@pytest.mark.run
def test_every_command_takes_a_converted_network(run, data, tmp_path, capsys):
    data = str(data)
    options = ["--gpus", "cpu", "--workers", "0", "--pipeline", "torch"]
    assert evaluate.main([run, "--data", data, *options]) == 0
    assert "val, ten views" in capsys.readouterr().out
    assert checkpoint.main([run]) == 0
    assert "whole, epoch 0" in capsys.readouterr().out
    picture = tmp_path / "picture.ppm"
    picture.write_bytes(b"P6 50 44 255\n" + bytes(range(220)) * 30)
    assert predict.main([run, str(picture), "--gpus", "cpu"]) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in ("apple", "leaf", "sky"))
    assert retrieve.main(["index", run, "--data", data, "--out", str(tmp_path / "index"), *options]) == 0
    arguments = [*TINY, "--data", data, "--out", str(tmp_path / "begun"), "--init", run, "--steps", "1"]
    assert train.main([*arguments, "--set", "learning_rate=0", "--set", "bias_learning_rate=0"]) == 0
    weights, before = load_weights(newest(tmp_path / "begun")), load_weights(newest(run))
    assert all(torch.equal(weights[name], before[name]) for name in before if not name.startswith("fc8"))


@every(
    "main, arguments, words",
    [
        (evaluate.main, ["RUN"], "was converted, its data were never here; say with --data DIR"),
        (train.main, ["--resume", "RUN"], "a network that was converted, without a training to go on with"),
        (train.main, ["--resume", "auto", "--out", "RUN"], "--init"),
        (train.main, [*TINY, "--set", "lrn_crosses=true"], "recipe field lrn_crosses is true"),
        (train.main, ["--recipe", "caffenet", "--gpus", "cpu"], "--set lrn_crosses=false trains them"),
        (convert.main, ["RUN", "RUN"], "OUT RUN: it is there already; choose another name"),
        (convert.main, ["RUN", "/dev/null/no/out"], "/dev/null is not a directory that can be written to"),
        (convert.main, ["RUN", "out", "--gpus", "cpu"], "--gpus is for --border RUN alone"),
        (convert.main, ["RUN", "out", "--data", "RUN"], "--data is for --border RUN alone"),
        (convert.main, ["--border", "RUN", "--set", "lrn_size=3"], "--set is for FILE and OUT, not for --border"),
        (convert.main, ["RUN", "out", "--mean", ""], "--mean '': name a file"),
        (convert.main, ["RUN", "out", "--classes", ""], "--classes '': name a file"),
        (convert.main, ["RUN"], "OUT is missing"),
        (convert.main, ["--border", "RUN", "x"], "takes no FILE and no OUT"),
    ],
)
def test_what_cannot_be_done_with_it_is_said(run, main, arguments, words):
    with pytest.raises(UserError) as refusal:
        main([run if argument == "RUN" else argument for argument in arguments])
    assert words.replace("RUN:", f"{run}:") in str(refusal.value) and "\n" not in str(refusal.value), refusal.value


def test_who_names_something_else_as_a_run_hears_what_to_type(run, tmp_path, capsys):
    """Of a folder for the hub, a file of tensors, a link to it, a checkpoint; nothing of what holds no weights."""
    export.main([run, "--to", "hub", str(tmp_path / "hub"), "--gpus", "cpu"])
    (tmp_path / "link").symlink_to(tmp_path / "hub" / "model.safetensors")
    (tmp_path / "caffe.caffemodel").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "statistics.safetensors").touch()
    of_weights = r": {} has weights from elsewhere, of which \S+ -m alexnet_mp.convert {} OUT makes a run$"
    patterns = {
        tmp_path / "hub": of_weights.format("model.safetensors", tmp_path / "hub"),
        tmp_path / "hub" / "model.safetensors": of_weights.format("model.safetensors", ".*/hub/model.safetensors"),
        tmp_path / "caffe.caffemodel": of_weights.format("caffe.caffemodel", ".*caffe.caffemodel"),
        newest(run): f": it is a checkpoint of {run}; name that$",
        tmp_path / "data": r": cannot read \S+data/run.json: No such file or directory$",
    }
    commands = {evaluate.main: (), predict.main: ("x.png",), report.main: (), export.main: ("--to", "hub", "out")}
    for place, words in patterns.items():
        for main, extras in (commands | {retrieve.main: (), compare.main: (run,)}).items():
            arguments = ["index", str(place)] if main is retrieve.main else [str(place), *extras]
            with pytest.raises(UserError, match=f"is not a run directory{words}"):
                main(arguments)


def test_both_towers_are_on_one_device(run, monkeypatch):
    """--gpus auto takes one GPU of two, and two are refused; what a recipe stores is what it stored before."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve("auto", 2) == [torch.device("cuda:0"), torch.device("cuda:1")]
    assert resolve("auto", 2, one=True) == [torch.device("cuda:0")] * 2
    assert resolve("1,1", 2, one=True) == resolve("1", 2, one=True) == [torch.device("cuda:1")] * 2
    for gpus in ("0,1", "cpu,0"):
        with pytest.raises(UserError, match="lrn_crosses is true.*--gpus 0 would work"):
            resolve(gpus, 2, one=True)
    assert read_run(run)["recipe"].lrn_crosses and "lrn_crosses" not in to_dict(PRESETS["paper"]())
