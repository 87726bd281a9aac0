"""Caffe's files: the logits of the network that comes of them, the recipes, and the towers' border."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from caffe_made import SMALL, binaryproto, caffe_logits, caffemodel, inner, made_blobs, new_blob, number, old_blob
from inner_cases import every

from alexnet_mp import convert
from alexnet_mp.evaluation.trained import class_words, load_run
from alexnet_mp.interchange import caffe_files
from alexnet_mp.interchange.lrn_border import border_difference
from alexnet_mp.network.network import MergedAlexNet, TwoTowerAlexNet
from alexnet_mp.recipes.named import PRESETS
from alexnet_mp.recipes.recipe import override
from alexnet_mp.runs.checkpoints import newest_weights
from alexnet_mp.system.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread", "quick")
SET = [word for setting in SMALL for word in ("--set", setting)]
SYNSETS = "".join(f"n{number:08} word {number}, other\n" for number in range(10))


def mean_image(side=104):
    return np.random.default_rng(5).uniform(90, 130, (side, side, 3)).astype(np.float32)


def images(count=5, crop=99):
    return torch.from_numpy(np.random.default_rng(6).uniform(-120, 120, (count, 3, crop, crop)))


def converted(folder, content, *options, mean=True, synsets=True):
    """The directory that `convert` makes of a .caffemodel's bytes."""
    (folder / "net.caffemodel").write_bytes(content)
    if mean:
        (folder / "mean.binaryproto").write_bytes(binaryproto(mean_image()))
    if synsets:
        (folder / "synset_words.txt").write_text(SYNSETS)
    convert.main([str(folder / "net.caffemodel"), str(folder / "out"), *SET, *options])
    return folder / "out"


@pytest.mark.run
@every("old", [False, True])
@every("pools_first", [False, True])
def test_a_network_gives_what_caffes_layers_give(old, pools_first, tmp_path):
    """Both formats, both networks, each of our two forms, float64 and float32; and float32 is as good as torch's."""
    blobs = made_blobs()
    network, training = load_run(converted(tmp_path, caffemodel(blobs, pools_first, old)), "cpu")
    assert network.recipe.name == ("caffenet" if pools_first else "caffe_alexnet") and network.recipe.lrn_crosses
    target = caffe_logits(blobs, images().flip(1), pools_first, torch.float64)
    caffes = caffe_logits(blobs, images().flip(1), pools_first, torch.float32)
    with torch.no_grad():
        logits = network(*[images().float()] * 2)
        assert (logits - target).abs().max() <= 2 * (caffes - target).abs().max() + 1e-6 * target.abs().max()
        network.double()
        for answer in (network(*[images()] * 2), network.merge()(images())):
            torch.testing.assert_close(answer, target, rtol=1e-10, atol=1e-9)
        assert (caffes.argmax(1) == logits.argmax(1)).all()
    assert np.array_equal(training.statistics.mean, mean_image().astype(np.float64))
    assert training.classes[3] == "n00000003" and class_words(tmp_path / "out", training.classes)[3] == "word 3, other"


def test_weights_are_caffes_bits(tmp_path):
    """Turned round in conv1, doubled where dropout is read, and else as they are."""
    blobs = made_blobs()
    _, weights = newest_weights(converted(tmp_path, caffemodel(blobs)))
    for name, (weight, bias) in blobs.items():
        expected = weight[:, ::-1] if name == "conv1" else 2 * weight if name in ("fc7", "fc8") else weight
        assert np.array_equal(weights[f"{name}.weight"].numpy(), expected), name
        assert np.array_equal(weights[f"{name}.bias"].numpy(), bias), name


@pytest.mark.slow
def test_the_full_network_gives_what_caffes_layers_give(tmp_path):
    """61 million weights, on two pictures of 227x227."""
    shapes = {
        "conv1": (96, 3, 11, 11),
        "conv2": (256, 48, 5, 5),
        "conv3": (384, 256, 3, 3),
        "conv4": (384, 192, 3, 3),
        "conv5": (256, 192, 3, 3),
        "fc6": (4096, 9216),
        "fc7": (4096, 4096),
    }
    blobs = made_blobs(1000, shapes)
    (tmp_path / "net.caffemodel").write_bytes(caffemodel(blobs, old=True))
    convert.main([str(tmp_path / "net.caffemodel"), str(tmp_path / "out"), "--mean", "123,117,104"])
    network, training = load_run(tmp_path / "out", "cpu")
    batch = images(2, 227)
    expected = caffe_logits(blobs, batch.flip(1), False, torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(network.double()(batch, batch), expected, rtol=1e-10, atol=1e-9)
    assert training.statistics.mean.shape == (256, 256, 3) and training.statistics.mean[0, 0].tolist() == [
        123,
        117,
        104,
    ]
    difference = border_difference(network.float(), [batch.float()] * 2)
    assert [layer.maps for layer in difference.layers] == [(46, 47, 48, 49), (126, 127, 128, 129)]


@every(
    "content, words",
    [
        (caffemodel({**made_blobs(), "fc8_flickr": made_blobs()["fc8"]}), "no weights"),  # no layer of that name
        (caffemodel({k: v for k, v in made_blobs().items() if k != "conv3"}), "it has no weights of conv3, which"),
        (caffemodel({**made_blobs(), "relu4": made_blobs()["fc7"]}), "it has weights of relu4, which"),
        (caffemodel({**made_blobs(), "fc7": made_blobs()["fc6"]}), "fc7.weight is (32, 48), but recipe caffe_alexnet"),
        (caffemodel({**made_blobs(), "conv2": made_blobs()["conv2"][:1]}), "conv2 has 1 blobs; weights and biases"),
        (caffemodel({**made_blobs(), "fc8": made_blobs(11)["fc8"]}), "it has 10 classes, and the network 11"),
        (caffemodel({**made_blobs(), "conv4": [np.full((16, 8, 3, 3), np.inf), np.zeros(16)]}), "conv4.weight has val"),
        (caffemodel({**made_blobs(), "fc7": [np.full((32, 32), 3e38), np.zeros(32)]}), "model: fc7.weight has values"),
        (caffemodel(made_blobs()) + caffemodel(made_blobs(), old=True), "layers in two formats"),
        (caffemodel(made_blobs()) * 2, "two layers with weights are named conv1"),
        (caffemodel(made_blobs())[:-40], "net.caffemodel: "),
        (inner(100, inner(1, b"fc8") + inner(7, new_blob(np.ones(2)))), "no layers norm1 and pool1 to tell by"),
        (
            inner(100, inner(1, b"norm1")) + inner(100, inner(1, b"pool1")),
            "no weights of fc8; those that it has are of",
        ),
        (b"", "it has no layers"),
        (b"\x80\x04\x95", "net.caffemodel: "),
    ],
)
def test_what_is_no_such_network_is_refused_by_name(content, words, tmp_path):
    if words == "no weights":
        content = content.replace(b"\x03fc8", b"\x03fc9")
    with pytest.raises(UserError) as refusal:
        converted(tmp_path, content)
    assert words in str(refusal.value) and "\n" not in str(refusal.value) and not (tmp_path / "out").exists()


def test_the_blobs_that_caffe_may_write():
    """Numbers in several pieces, in double, an old shape; and those that no reader can mean."""
    values = np.arange(6, dtype=np.float32)
    sides = b"".join(number(field, side) for field, side in ((1, 1), (2, 1), (3, 2), (4, 3)))
    pieces = inner(5, values[:2].tobytes()) + inner(5, values[2:].tobytes())
    for content in (sides + pieces, sides + inner(8, values.astype("<f8").tobytes()), old_blob(values.reshape(2, 3))):
        assert np.array_equal(caffe_files._blob(content, "x"), values.reshape(1, 1, 2, 3))
    for content, words in (
        (sides, "without data"),
        (sides + inner(5, values[:5].tobytes()), "20 bytes of data"),
        (number(1, -1) + pieces, "shape of x is"),
        (inner(7, inner(1, b"\x01" * 99)) + pieces, "shape of x is"),
        (inner(7, bytes(300)) + pieces, "takes 300 bytes"),
        (inner(7, inner(1, (b"\xff" * 8 + b"\x7f") * 8)) + pieces, "doesn't fit"),
        (sides + inner(5, b"") * 99, "in 99 pieces"),
    ):
        with pytest.raises(ValueError, match=words):
            caffe_files._blob(content, "x")


# --- the recipes, and the border


def test_a_step_of_the_recipes_is_caffes():
    """Caffe multiplies by 2 what dropout leaves, here the weights behind it are twice Caffe's: they stay so."""
    recipe = PRESETS["caffenet"]()
    fc7 = next(layer for layer in recipe.layers if layer.name == "fc7")
    ours = torch.tensor([[0.6, -0.2]], dtype=torch.float64, requires_grad=True)
    caffes = torch.tensor([[0.3, -0.1]], dtype=torch.float64, requires_grad=True)
    inputs, mask = torch.tensor([[1.5, 2.5]], dtype=torch.float64), torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    (F.linear(inputs * mask, ours) ** 2).sum().backward()
    (F.linear(inputs * mask * 2, caffes) ** 2).sum().backward()
    rate = fc7.rate * recipe.learning_rate
    step = -fc7.weight_decay * rate * ours - rate * ours.grad
    theirs = -recipe.weight_decay * recipe.learning_rate * caffes - recipe.learning_rate * caffes.grad
    torch.testing.assert_close(step, 2 * theirs, rtol=1e-12, atol=0)


@every("name", ["caffe_alexnet", "caffenet"])
def test_normalisation_crosses_the_border_only_where_the_recipe_says_so(name):
    """Two towers on one device are the merged network, with gradients; the border changes two maps to each side."""
    recipe = override(PRESETS[name](), [*SMALL, "fc6.init_std=0.1", "fc7.init_std=0.1", "conv2.init_bias=20.0"])
    network = TwoTowerAlexNet(recipe, ("cpu", "cpu"), 10, "reference").double().eval()
    model, batch = network.merge(), images(2)
    network(batch, batch).sum().backward()
    model(batch).sum().backward()
    torch.testing.assert_close(network(batch, batch), model(batch), rtol=1e-12, atol=1e-12)
    gradients = network.merged(
        {name: [part.grad for part in parts] for name, parts in network.layer_parameters().items()}
    )
    for part, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[part], parameter.grad, rtol=1e-9, atol=1e-12)
    difference = border_difference(network, [batch, batch])
    assert [(layer.layer, layer.maps, layer.of) for layer in difference.layers] == [
        ("conv1", (2, 3, 4, 5), 8),
        ("conv2", (4, 5, 6, 7), 12),
    ]
    other = MergedAlexNet(dataclasses.replace(recipe, lrn_crosses=False), "cpu", 10, "reference").double().eval()
    other.load_state_dict(model.state_dict())
    assert difference.logits == (other(batch) - model(batch)).abs().max().item() > 0
    assert all(0 < layer.mean and 0 < layer.largest <= 1 for layer in difference.layers) and difference.pictures == 2
    torch.testing.assert_close(network(batch, batch), model(batch), rtol=1e-12, atol=1e-12)  # it has changed nothing
    with pytest.raises(ValueError, match="lrn_crosses"):
        TwoTowerAlexNet(recipe, ("cpu", "meta"), 10, "reference")
    with pytest.raises(UserError, match="lrn_crosses"):
        border_difference(TwoTowerAlexNet(dataclasses.replace(recipe, lrn_crosses=False), ("cpu", "cpu"), 10), [])


def test_what_a_run_says_of_it(tmp_path, capsys):
    """run.json has the field only where it is true: what was stored before there was one is read as it is."""
    out = converted(tmp_path, caffemodel(made_blobs()), synsets=False)
    output = capsys.readouterr().out
    assert "they are numbered" in output and "fc7, fc8 times 2" in output and "recipe caffe_alexnet" in output
    run = json.loads((out / "run.json").read_text())
    assert run["recipe"]["lrn_crosses"] is True and run["converted"]["from"].startswith("net.caffemodel")
    assert (run["overlap"], run["pairs"], run["microbatch"], run["self_check"]) == (None, 1, None, None)
    convert.main(["--border", str(out), "--gpus", "cpu", "--kernels", "reference"])
    assert "conv1: the border changes maps 2, 3, 4, 5 of 8, by" in capsys.readouterr().out
