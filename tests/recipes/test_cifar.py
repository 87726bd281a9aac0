"""The CIFAR-10 recipes say what the 2012 files say, differ from each other where they should, and train on every
pipeline."""

import dataclasses
import importlib.util

import pytest
import torch
import torch.nn.functional as F
from image_folders import make_folder
from inner_cases import every
from recipe_differences import differing

from alexnet_mp import TwoTowerAlexNet, prepare, train
from alexnet_mp.evaluation.protocol import both_protocols
from alexnet_mp.recipes import ablations
from alexnet_mp.recipes.cifar import (
    cifar11_local,
    cifar13_local,
    cifar18,
    cifar18_lrn,
    cifar18_no_norm,
    cifar_relu,
    cifar_sigmoid,
    cifar_tanh,
    cropped,
)
from alexnet_mp.recipes.shapes import crossings, parameter_counts, sizes
from alexnet_mp.runs import directory
from alexnet_mp.runs.metrics import read_metrics
from alexnet_mp.training import trainer
from alexnet_mp.training.schedule import make_schedule
from alexnet_mp.training.update_rule import PaperSGD

ALL = [cifar18, cifar18_lrn, cifar18_no_norm, cifar13_local, cifar11_local, cifar_relu, cifar_sigmoid, cifar_tanh]
TEN = [(top, left, flip) for flip in (False, True) for top, left in ((0, 0), (0, 8), (4, 4), (8, 0), (8, 8))]
NINE = [(top, left, False) for top in (0, 4, 8) for left in (0, 4, 8)]


def decays(recipe):
    """Of each layer's weights, as the optimiser has them."""
    groups = PaperSGD(TwoTowerAlexNet(recipe, ("cpu",), 10)).param_groups
    assert all(group["weight_decay"] == 0 for group in groups if group["name"].endswith("bias"))
    return [group["weight_decay"] for group in groups if group["name"].endswith("weight")]


def test_cifar18_is_the_file_of_the_source():
    recipe = cifar18()
    assert [size.output for size in sizes(recipe, 10)] == [(32, 16, 16), (32, 8, 8), (64, 4, 4), (10, 1, 1)]
    assert parameter_counts(recipe, 10) == (32 * 76 + 32 * 801 + 64 * 801 + 10 * 1025,)
    assert [layer.init_std for layer in recipe.layers] == [0.0001, 0.01, 0.01, 0.01]
    assert decays(recipe) == [0.004, 0.004, 0.004, 1.0]
    rates = {epoch: make_schedule(recipe).rates(epoch) for epoch in (1, 120, 121, 131, 140)}
    assert [rates[epoch]["conv1.weight"] for epoch in rates] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5, 1e-5])
    assert [rates[epoch]["fc10.bias"] for epoch in rates] == pytest.approx([2e-3, 2e-3, 2e-4, 2e-5, 2e-5])
    assert (recipe.crop_size, recipe.crop_positions, recipe.flip, recipe.epochs) == (32, 1, False, 140)
    assert both_protocols(recipe) == {"centre view": [(0, 0, False)]}  # the whole picture


@pytest.mark.parametrize("preset, local3, fc_decay", [(cifar13_local, 32, 0.004), (cifar11_local, 64, 0.01)])
def test_the_locally_connected_networks(preset, local3, fc_decay):
    recipe = preset()
    assert [size.output for size in sizes(recipe, 10)] == [
        (64, 12, 12),
        (64, 6, 6),
        (local3, 6, 6),
        (32, 6, 6),
        (10, 1, 1),
    ]
    assert parameter_counts(recipe, 10) == (
        64 * 76 + 64 * 1601 + 36 * local3 * 577 + 36 * 32 * (9 * local3 + 1) + 10 * 1153,
    )
    assert [layer.init_std for layer in recipe.layers] == [0.0001, 0.01, 0.04, 0.04, 0.01]
    assert decays(recipe) == [0, 0, 0.004, 0.004, fc_decay]
    assert both_protocols(recipe) == {"centre view": [(4, 4, False)], "ten views": TEN}
    assert recipe.epochs == 520  # about 350, then 150, 10 and 10
    rates = [make_schedule(recipe).rates(epoch) for epoch in (1, 500, 501, 510, 511, 520)]
    assert [of["conv1.weight"] for of in rates] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])
    assert {of["conv1.bias"] for of in rates} == {2e-3}
    assert (recipe.crop_positions, recipe.crop_share, recipe.flip, recipe.mean_follows_crop) == (9, 1, True, False)


def test_recipes_differ_in_exactly_these_fields():
    norms = {"conv1.then", "conv2.then"}
    assert differing(cifar18(), cifar18_no_norm()) == {"name"} | norms
    assert differing(cifar18(), cifar18_lrn()) == {"name", "lrn_size", "lrn_alpha", "lrn_k"} | norms
    assert (
        differing(cifar13_local(), cifar11_local())
        == {"name", "lrn_size", "lrn_alpha", "lrn_k", "local3.maps", "fc10.weight_decay"} | norms
    )
    assert differing(cifar18_no_norm(), cifar_relu()) == {
        "name",
        "weight_decay",
        "fc10.weight_decay",
        "dates",
        "epochs",
    }
    assert differing(cifar_relu(), cifar_tanh()) == {"name", "conv3.then"} | norms
    assert ablations.tanh(cifar_relu()).layers == cifar_tanh().layers
    assert ablations.sigmoid(cifar_relu()) == dataclasses.replace(cifar_sigmoid(), name="cifar_relu")
    assert ablations.no_lrn(cifar18()).layers == ablations.no_lrn(cifar18_lrn()).layers == cifar18_no_norm().layers
    assert differing(cifar18(), cropped(cifar18())) == {"crop_size", "crop_positions", "flip", "test_views"}
    assert ablations.no_augmentation(cropped(cifar18())).crop_positions == 1
    assert decays(cifar_relu()) == [0] * 4


@every("preset", ALL)
def test_one_tower_and_a_run_can_be_shortened(preset):
    recipe = preset()
    assert recipe.towers == 1 and crossings(recipe, 128, 10) == [] and recipe.name == preset.__name__
    variant = ablations.shortened(recipe, recipe.epochs // 10)  # its dates at the same shares of the epochs
    assert variant.epochs == recipe.epochs // 10 and len(variant.dates) == len(recipe.dates)
    for date, full_date in zip(variant.dates, recipe.dates, strict=True):
        assert (
            abs(date.epoch - full_date.epoch / 10) <= 2
            and dataclasses.replace(date, epoch=full_date.epoch) == full_date
        )
    assert [date.epoch for date in ablations.shortened(cifar18(), 14).dates] == [13, 14]


def response(x, operation, alpha, size):
    """x / (1 + alpha * sum of squares)^0.75 over the `size` maps around each ("lrn"), or the size x size positions
    ("spatial")."""
    lengths = (size, 1, 1) if operation == "lrn" else (1, size, size)
    kernel = torch.ones(1, 1, *lengths, dtype=x.dtype)
    sums = F.conv3d((x * x)[:, None], kernel, padding=tuple(length // 2 for length in lengths))[:, 0]
    return x / (1 + alpha * sums) ** 0.75


def average(x):
    """3x3 windows, two apart; one that hangs over the edge is divided by what of it lies inside."""
    area = F.avg_pool2d(F.pad(torch.ones_like(x), (0, 1, 0, 1)), 3, 2)
    return F.avg_pool2d(F.pad(x, (0, 1, 0, 1)), 3, 2) / area


@every(
    "preset, operation, alpha",
    [
        (cifar18, "spatial", 5e-5 / 9),
        (cifar18_lrn, "lrn", 5e-5 / 3),
        (cifar18_no_norm, None, 0),
        (cifar_tanh, None, 0),
        (cifar_sigmoid, None, 0),
    ],
)
@every("kernels", ["reference", "auto"])
def test_the_network_by_hand(preset, operation, alpha, kernels):
    """Orders like pool, ReLU, norm and average, norm; 32 -> 16 -> 8 -> 4 pixels, every last window over the edge."""
    network, generator = (
        TwoTowerAlexNet(preset(), ("cpu",), 10, kernels).double().eval(),
        torch.Generator().manual_seed(2),
    )
    with torch.no_grad():
        for name, (part,) in network.layer_parameters().items():
            part.copy_(
                torch.randn(part.shape, generator=generator, dtype=torch.float64)
                * (0.1 if name.endswith("weight") else 5)
            )
    w = network.merged_state()
    x = images = 50 * torch.randn(3, 3, 32, 32, generator=generator, dtype=torch.float64)
    nonlinearity = {cifar_tanh: torch.tanh, cifar_sigmoid: torch.sigmoid}.get(preset, torch.relu)

    def norm(x):
        return response(x, operation, alpha, 3) if operation else x

    x = F.pad(F.conv2d(x, w["conv1.weight"], w["conv1.bias"], padding=2), (0, 1, 0, 1), value=-1e9)
    x = norm(nonlinearity(F.max_pool2d(x, 3, 2)))
    x = norm(average(nonlinearity(F.conv2d(x, w["conv2.weight"], w["conv2.bias"], padding=2))))
    x = average(nonlinearity(F.conv2d(x, w["conv3.weight"], w["conv3.bias"], padding=2)))
    expected = x.flatten(1) @ w["fc10.weight"].T + w["fc10.bias"]
    torch.testing.assert_close(network(images), expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))


def tiny(recipe):
    """--set arguments that leave the recipe its structure and few maps."""
    return [f"--set={layer.name}.maps=3" for layer in recipe.layers if layer.maps]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    make_folder(root / "folder", train=6, val=3, size=(32, 32))
    assert (
        prepare.main([str(root / "folder"), str(root / "set"), "--recipe", "cifar18", "--workers", "0", "--raw"]) == 0
    )
    return root / "set"


def trained(data, out, recipe, *options):
    arguments = [
        "--gpus",
        "cpu",
        "--data",
        str(data),
        "--out",
        str(out),
        "--epochs",
        "2",
        "--workers",
        "0",
        "--batch-size",
        "7",
    ]
    assert train.main([*arguments, "--recipe", recipe, *options]) == 0
    return read_metrics(out)


PIPELINES = [
    "torch",
    "raw",
    pytest.param(
        "dali",
        marks=pytest.mark.skipif(importlib.util.find_spec("nvidia.dali") is None, reason="DALI is not installed"),
    ),
]


@pytest.mark.run
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_recipe_trains_from_its_name(pipeline, data, tmp_path, monkeypatch):
    """With colour noise of 0, and tested on the whole picture, or on the centre and on ten views."""
    monkeypatch.setattr(trainer, "draw_curves", lambda run, classes: None)
    monkeypatch.setattr(directory, "source_commit", lambda: None)
    for preset in ALL if pipeline == "torch" else [cifar11_local]:
        lines = trained(data, tmp_path / preset.__name__, preset.__name__, "--pipeline", pipeline, *tiny(preset()))
        tests = {line["protocol"]: line for line in lines if line["kind"] == "test"}
        assert list(tests) == ["centre view"] + ["ten views"] * (preset().crop_size == 24)
        assert directory.read_run(tmp_path / preset.__name__)["recipe"].colour_noise == 0


@pytest.mark.run
def test_no_colour_is_the_picture_itself(data, tmp_path, monkeypatch):
    """The same losses with the noise at 0 whatever the noise would have been scaled by."""
    monkeypatch.setattr(trainer, "draw_curves", lambda run, classes: None)
    monkeypatch.setattr(directory, "source_commit", lambda: None)
    losses = []
    for number, options in enumerate(
        ([], ["--set=colour_shrink=true"], ["--set=colour_scale=root"], ["--set=colour_noise=0.5"])
    ):
        lines = trained(data, tmp_path / str(number), "cifar18", *tiny(cifar18()), *options)
        losses.append([line["loss"] for line in lines if line["kind"] == "train"])
    assert losses[0] == losses[1] == losses[2] != losses[3]


def test_nine_views_are_the_recipes_choice():
    recipe = dataclasses.replace(cifar13_local(), test_views="nine")
    assert both_protocols(recipe) == {"centre view": [(4, 4, False)], "nine views": NINE}
