"""Two towers are one merged grouped network: logits, every gradient, and the variants that a recipe can describe."""

import copy
import dataclasses
import math
import re

import pytest
import torch
import torch.nn.functional as F
from inner_cases import every

from alexnet_mp import TwoTowerAlexNet, mini, paper, source2012
from alexnet_mp.network.layer import plan
from alexnet_mp.network.network import merge_tensors
from alexnet_mp.recipes.ablations import one_gpu
from alexnet_mp.recipes.recipe import change_layers

SHAPES = {  # of the merged network, 1,000 classes
    "conv1.weight": (96, 3, 11, 11),
    "conv1.bias": (96,),
    "conv2.weight": (256, 48, 5, 5),
    "conv2.bias": (256,),
    "conv3.weight": (384, 256, 3, 3),
    "conv3.bias": (384,),
    "conv4.weight": (384, 192, 3, 3),
    "conv4.bias": (384,),
    "conv5.weight": (256, 192, 3, 3),
    "conv5.bias": (256,),
    "fc6.weight": (4096, 9216),
    "fc6.bias": (4096,),
    "fc7.weight": (4096, 4096),
    "fc7.bias": (4096,),
    "fc8.weight": (1000, 4096),
    "fc8.bias": (1000,),
}


def narrow(recipe):
    """Convolutions as they are, fully connected layers narrowed: their width is 94 % of the parameters and none of the
    wiring."""
    return change_layers(recipe, "fc6", "fc7", maps=48)


def no_links(recipe):
    return change_layers(recipe, "conv3", "fc6", "fc7", reads="own")


def one_tower(recipe):
    return dataclasses.replace(recipe, towers=1)


def tanh(recipe):
    return change_layers(
        change_layers(recipe, "conv1", then=("tanh", "avg_pool")), "conv2", then=("tanh", "lrn", "max_pool")
    )


def images(recipe, count=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(5)
    return 60 * torch.randn(count, 3, recipe.crop_size, recipe.crop_size, generator=generator, dtype=dtype)


def randomise_biases(network):
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parts in network.layer_parameters().values():
            for part in parts:
                if part.dim() == 1:
                    part.add_(torch.randn(part.shape, generator=generator, dtype=part.dtype), alpha=0.3)


@pytest.mark.run
@every("training", [False, True], ids=["test", "training"])
@every(
    "recipe",
    [
        narrow(paper()),
        narrow(source2012()),
        mini(),
        no_links(mini()),
        one_tower(mini()),
        tanh(mini()),
        change_layers(
            dataclasses.replace(mini(), pool_ties="all", pool_size=2), "conv2", then=("spatial_norm", "relu")
        ),
    ],
    ids=["paper", "source2012", "mini", "no_links", "one_tower", "tanh", "spatial_norm"],
)
def test_two_towers_equal_the_merged_network(recipe, training):
    network = TwoTowerAlexNet(recipe, ("cpu",) * recipe.towers, classes=7).double().train(training)
    randomise_biases(network)
    merged = network.merge()
    assert merged.training == training
    x, labels = images(recipe), torch.tensor([1, 6, 0])
    logits, expected = network(x, x), merged(x)
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-14)
    F.cross_entropy(logits, labels).backward()
    F.cross_entropy(expected, labels).backward()
    gradients = merge_tensors(
        {name: [part.grad for part in parts] for name, parts in network.layer_parameters().items()}
    )
    assert gradients.keys() == dict(merged.named_parameters()).keys()
    for name, parameter in merged.named_parameters():
        largest = parameter.grad.abs().max()
        assert largest > 0, f"{name} gets no gradient: the comparison would be empty"
        assert (gradients[name] - parameter.grad).abs().max() <= 1e-12 * largest, name


@pytest.mark.run
@every("preset", [paper, source2012])
def test_shapes_of_every_layer(preset):
    """What each layer of each tower reads and returns in a forward pass: the table of the paper, section 3."""
    network, shapes = TwoTowerAlexNet(preset(), ("meta", "meta")), {}
    for index, tower in enumerate(network.towers):
        for name, layer in tower.named_children():
            layer.register_forward_hook(
                lambda module, inputs, output, key=(name, index): shapes.update(
                    {key: (tuple(inputs[0].shape), tuple(output.shape))}
                )
            )
    x = torch.zeros(2, 3, 224, 224, device="meta")
    assert network(x, x.clone()).shape == (2, 1000)  # two tensors, as on two devices
    table = {
        "conv1": ((3, 224, 224), (48, 27, 27)),
        "conv2": ((48, 27, 27), (128, 13, 13)),
        "conv3": ((256, 13, 13), (192, 13, 13)),
        "conv4": ((192, 13, 13), (192, 13, 13)),
        "conv5": ((192, 13, 13), (128, 6, 6)),
        "fc6": ((256, 6, 6), (2048,)),
        "fc7": ((4096,), (2048,)),
        "fc8": ((4096,), (1000,)),
    }
    expected = {
        (name, index): ((2, *inputs), (2, *output)) for name, (inputs, output) in table.items() for index in (0, 1)
    }
    del expected["fc8", 1]
    assert shapes == expected


def test_a_tower_is_not_the_other():
    """Exchanging the towers' weights changes the logits: the test above would see a crossing in the wrong order."""
    network = TwoTowerAlexNet(mini(), ("cpu", "cpu"), classes=7).double().eval()
    x = images(mini())
    before = network(x, x)
    state = network.merged_state()
    swapped_state = {
        name: torch.cat(tensor.chunk(2)[::-1]) if not name.startswith("fc8") else tensor
        for name, tensor in state.items()
    }
    network.load_merged(swapped_state)
    assert (network(x, x) - before).abs().max() > 1e-3 * before.abs().max()


@pytest.mark.run
def test_merged_names_and_shapes():
    network = TwoTowerAlexNet(paper(), ("meta", "meta"))
    assert {
        name: (sum(len(part) for part in parts), *parts[0].shape[1:])
        for name, parts in network.layer_parameters().items()
    } == SHAPES
    small_network = TwoTowerAlexNet(change_layers(paper(), "fc6", "fc7", maps=4), ("cpu", "cpu"))
    assert list(small_network.merge().state_dict()) == list(SHAPES)
    assert sum(p.numel() for p in network.towers[0].parameters()) == 32_531_112
    assert sum(p.numel() for p in network.towers[1].parameters()) == 28_434_112
    assert not hasattr(network.towers[1], "fc8")


def test_split_undoes_merge():
    network = TwoTowerAlexNet(mini(), ("cpu", "cpu"), classes=5)
    network.step = 12
    again = network.merge().split(("cpu", "cpu"))
    assert again.step == 12
    for name, parts in network.layer_parameters().items():
        for part, other in zip(parts, again.layer_parameters()[name], strict=True):
            assert torch.equal(part, other) and part.data_ptr() != other.data_ptr(), name


@every(
    "spoil, named",
    [
        (lambda state: state.pop("fc8.bias"), "fc8.bias"),
        (lambda state: state.update(foreign=torch.zeros(1)), "foreign"),
        (lambda state: state.update({"conv2.weight": torch.zeros(3, 3)}), "conv2.weight"),
    ],
)
def test_foreign_weights_are_refused(spoil, named):
    network = TwoTowerAlexNet(mini(), ("cpu", "cpu"), classes=5)
    state = network.merged_state()
    spoil(state)
    with pytest.raises(ValueError, match=named):
        network.load_merged(state)


@pytest.mark.run
@every("preset", [paper, source2012])
def test_initial_weights(preset):
    """Mean 0 and the recipe's deviation in every layer of each tower, biases constant, towers different."""
    recipe = preset()
    network = TwoTowerAlexNet(recipe, ("cpu", "cpu"))
    for layer in recipe.layers:
        weights = network.layer_parameters()[f"{layer.name}.weight"]
        for part in weights:
            count = part.numel()
            assert abs(part.double().mean()) < 5 * layer.init_std / math.sqrt(count)
            assert abs(part.double().std() / layer.init_std - 1) < 5 / math.sqrt(2 * count)
        if len(weights) == 2:
            correlation = torch.corrcoef(torch.stack([part.flatten()[:10_000] for part in weights]))[0, 1]
            assert abs(correlation) < 0.06
        for part in network.layer_parameters()[f"{layer.name}.bias"]:
            assert (part == layer.init_bias).all()


def test_the_seed_decides_the_weights():
    def weights(seed):
        return TwoTowerAlexNet(dataclasses.replace(mini(), seed=seed), ("cpu", "cpu"), 5).merged_state()["fc7.weight"]

    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


def test_dropout_only_in_training_and_new_every_step():
    network = TwoTowerAlexNet(mini(), ("cpu", "cpu"), classes=5).eval()
    x = images(mini(), dtype=torch.float32)
    assert torch.equal(network(x, x), network(x, x)) and network.step == 0
    network.train()
    first, second = network(x, x), network(x, x)
    assert network.step == 2 and not torch.equal(first, second)
    network.step = 0
    assert torch.equal(network(x, x), first)  # the same step, the same masks


def test_test_time_halves_the_hidden_outputs():
    """Section 4.2: all units are used and their outputs multiplied by 0.5."""
    network = TwoTowerAlexNet(mini(), ("cpu", "cpu"), classes=5).double().eval()
    x, calls = images(mini()), {}
    for index, tower in enumerate(network.towers):
        tower.fc6.register_forward_hook(lambda module, _, output, index=index: calls.update({index: (module, output)}))
        tower.fc6.register_forward_pre_hook(lambda module, inputs, index=index: calls.update({f"in{index}": inputs[0]}))
    network(x, x)
    for index in (0, 1):
        module, output = calls[index]
        expected = 0.5 * torch.relu(calls[f"in{index}"].flatten(1) @ module.weight.T + module.bias)
        torch.testing.assert_close(output, expected, rtol=1e-12, atol=0)


def test_wrong_numbers_of_devices_and_kernels_of_another_device_are_refused():
    with pytest.raises(ValueError, match="2 tower"):
        TwoTowerAlexNet(mini(), ("cpu",))
    with pytest.raises(ValueError, match="'triton' can't compute on cpu"):
        TwoTowerAlexNet(mini(), ("cpu", "cpu"), kernels="triton")
    with pytest.raises(ValueError, match="do not exist"):
        TwoTowerAlexNet(mini(), ("cpu", "cpu"), kernels="fortran")


def test_a_network_can_be_copied():
    network = TwoTowerAlexNet(mini(), ("cpu", "cpu"), classes=5).eval()
    x = images(mini(), dtype=torch.float32)
    assert torch.equal(copy.deepcopy(network)(x, x), network(x, x))


@every(
    "epilogue, fused",
    [
        (("relu", "lrn", "max_pool"), [("relu", "lrn", "max_pool")]),
        (("lrn", "max_pool", "relu"), [("lrn", "max_pool", "relu")]),
        (("relu", "lrn", "spatial_norm", "max_pool"), [("relu", "lrn"), ("spatial_norm", "max_pool")]),
        (("max_pool", "relu"), [("max_pool", "relu")]),
        (("tanh", "lrn", "max_pool"), [("tanh",), ("lrn", "max_pool")]),
        (("relu", "dropout"), [("relu", "dropout")]),
        (("tanh", "dropout"), [("tanh",), ("dropout",)]),
        ((), []),
    ],
)
def test_operations_are_grouped_for_the_kernels(epilogue, fused):
    assert plan(epilogue) == fused


def test_no_padding_at_the_top_and_left():
    """224 -> 55: the three zero rows and columns lie at the bottom and right, so output (0, 0) reads pixels 0..10 as
    they are."""
    network = TwoTowerAlexNet(change_layers(paper(), "fc6", "fc7", maps=2), ("cpu", "cpu"), classes=2).double()
    layer = network.towers[0].conv1
    x = images(paper(), 1)
    y = layer._convolve(x, layer.weight, None)
    assert y.shape == (1, 48, 55, 55)
    torch.testing.assert_close(y[0, :, 0, 0], torch.einsum("mchw,chw->m", layer.weight, x[0, :, :11, :11]))
    torch.testing.assert_close(
        y[0, :, 54, 54], torch.einsum("mchw,chw->m", layer.weight[:, :, :8, :8], x[0, :, 216:, 216:])
    )


@every(
    "towers, images, words",
    [
        (2, lambda x: (x,), "images_b is missing; 2 tower(s) take as many tensors, one each"),
        (2, lambda x: (x[0], x[0]), "images_a is (3, 96, 96); recipe mini takes (N, 3, 96, 96)"),
        (2, lambda x: (x, x[:, :1]), "images_b is (2, 1, 96, 96); recipe mini takes (N, 3, 96, 96)"),
        (2, lambda x: (x[..., :90], x[..., :90]), "images_a is (2, 3, 96, 90); recipe mini takes (N, 3, 96, 96)"),
        (2, lambda x: (x, x[:1]), "images_a are 2 of torch.float32, images_b 1 of torch.float32; they must be"),
        (2, lambda x: (x, x.double()), "images_b 2 of torch.float64; they must be the same images"),
        (2, lambda x: (x, [x]), "images_b is a list; 2 tower(s) take as many tensors"),
        (1, lambda x: (x.permute(0, 2, 3, 1),), "images_a is (2, 96, 96, 3); recipe mini takes (N, 3, 96, 96)"),
    ],
)
def test_images_that_no_tower_takes_are_named(towers, images, words):
    recipe = narrow(mini()) if towers == 2 else one_gpu(narrow(mini()))
    network = TwoTowerAlexNet(recipe, ("cpu",) * towers, 3, "reference")
    with pytest.raises(ValueError, match=re.escape(words)):
        network(*images(torch.zeros(2, 3, 96, 96)))
    assert network.step == 0  # not counted


def test_images_that_the_merged_network_does_not_take_are_named():
    network = TwoTowerAlexNet(narrow(mini()), ("cpu", "cpu"), 3, "reference").merge()
    for images in (torch.zeros(3, 96, 96), torch.zeros(2, 1, 96, 96), torch.zeros(2, 3, 95, 96)):
        with pytest.raises(ValueError, match=re.escape(f"images_a is {tuple(images.shape)}; recipe mini takes")):
            network(images)
    assert network.step == 0


def test_transforms_and_higher_derivatives_go_through_the_crossings_on_one_device():
    """As through the operations: a gradient, a Jacobian, forward mode and a Hessian's product, against the merged
    network, which has no crossings."""
    recipe = change_layers(mini(), "conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", maps=2)
    network = TwoTowerAlexNet(recipe, ("cpu", "cpu"), classes=3, kernels="reference").double().eval()
    merged, x = network.merge().double().eval(), images(recipe, 1)
    actual, expected = [], []
    for answers, function in ((actual, lambda x: network(x, x)), (expected, merged)):

        def scalar(x, function=function):
            return function(x).square().sum()

        answers.append(torch.func.jacrev(function)(x))
        answers.append(torch.func.jvp(function, (x,), (torch.ones_like(x),))[1])
        answers.append(torch.func.jvp(torch.func.grad(scalar), (x,), (torch.ones_like(x),))[1])
        leaf = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(scalar(leaf), leaf, create_graph=True)
        answers.append(torch.autograd.grad(first.sum(), leaf)[0])
    for one, other in zip(actual, expected, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12 * other.abs().max().item())
    torch.testing.assert_close(actual[2], actual[3], rtol=1e-9, atol=1e-12 * actual[3].abs().max().item())
