"""Layers of kind "local", kernels and biases of their own at every position: against loops, split and merged, in every
count."""

import dataclasses

import pytest
import roofline
import torch
import torch.nn.functional as F
from inner_cases import every

from alexnet_mp import TwoTowerAlexNet
from alexnet_mp.network.network import merge_tensors
from alexnet_mp.recipes import shapes
from alexnet_mp.recipes.architectures import mini
from alexnet_mp.recipes.recipe import Layer, describe, from_dict, to_dict
from alexnet_mp.system.errors import UserError
from alexnet_mp.training.schedule import make_schedule
from alexnet_mp.training.update_rule import PaperSGD


def recipe_with(towers=1, reads="own", then=("relu",), **local):
    """conv1 (8 -> 6 pixels), a local layer, fc8, on 8x8 images."""
    last = {"towers": "first"} if towers == 2 else {}
    layers = (
        Layer("conv1", "conv", 2, "image", ("tanh",), kernel=3, init_std=0.2),
        Layer("local2", "local", 3, reads, then, init_std=0.3, **local),
        Layer("fc8", "fc", None, "both" if towers == 2 else "own", (), init_std=0.5, **last),
    )
    return dataclasses.replace(
        mini(), layers=layers, towers=towers, stored_size=8, crop_size=8, crop_positions=1, pool_size=2
    )


def network_of(recipe, classes=3):
    network, generator = (
        TwoTowerAlexNet(recipe, ("cpu",) * recipe.towers, classes).double(),
        torch.Generator().manual_seed(3),
    )
    with torch.no_grad():
        for parts in network.layer_parameters().values():
            for part in parts:
                part.copy_(0.5 * torch.randn(part.shape, generator=generator, dtype=torch.float64))
    return network


def images(count=2):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def by_loops(x, weight, bias, stride, pad):
    """y[n, m, i, j] = b[m, i, j] + sum over c, u, v of w[m, i, j, c, u, v] x[n, c, s i + u - p, s j + v - p], zeros
    outside."""
    maps, height, width, channels, kernel, _ = weight.shape
    rows = []
    for image in x:
        for m in range(maps):
            for i in range(height):
                for j in range(width):
                    total = bias[m, i, j]
                    for c in range(channels):
                        for u in range(kernel):
                            for v in range(kernel):
                                row, column = stride * i + u - pad, stride * j + v - pad
                                if 0 <= row < x.shape[2] and 0 <= column < x.shape[3]:
                                    total = total + weight[m, i, j, c, u, v] * image[c, row, column]
                    rows.append(total)
    return torch.stack(rows).view(len(x), maps, height, width)


@pytest.mark.run
@every(
    "stride, pad, kernel, side",
    [(1, 1, 3, 6), (1, 0, 2, 5), (2, 0, 3, 3), (2, 1, 2, 4)],
    ids=["padded", "even kernel", "overhanging", "strided"],
)
def test_forward_and_gradients_against_loops(stride, pad, kernel, side):
    """The third case has a window that hangs over the right and bottom edge: 6 pixels, 3 windows of 3, two apart."""
    layer = network_of(recipe_with(kernel=kernel, stride=stride, pad=pad)).towers[0].local2
    assert layer.size.computed == (3, side, side)
    x = torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    y, expected = (
        layer._convolve_locally(x, layer.weight, layer.bias),
        by_loops(x, layer.weight, layer.bias, stride, pad),
    )
    torch.testing.assert_close(y, expected, rtol=1e-13, atol=1e-14)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for gradient, expected_gradient in zip(
        torch.autograd.grad(y, (x, layer.weight, layer.bias), dy),
        torch.autograd.grad(expected, (x, layer.weight, layer.bias), dy),
        strict=True,
    ):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-13)


def test_equal_kernels_everywhere_are_a_convolution():
    layer = network_of(recipe_with(kernel=3, pad=1)).towers[0].local2
    kernel, bias = layer.weight[:, :1, :1], layer.bias[:, :1, :1]
    with torch.no_grad():
        layer.weight.copy_(kernel.expand_as(layer.weight).clone())
        layer.bias.copy_(bias.expand_as(layer.bias).clone())
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), torch.relu(F.conv2d(x, layer.weight[:, 0, 0], layer.bias[:, 0, 0], padding=1)))


@every("then", [("relu",), ("max_pool", "relu"), ("relu", "lrn", "max_pool"), ("tanh", "avg_pool", "lrn"), ()])
@every("reads", ["own", "both"])
def test_two_towers_equal_the_merged_network(reads, then):
    network = network_of(recipe_with(2, reads, then, kernel=3, pad=1))
    merged, x, labels = network.merge(), images(), torch.tensor([2, 0])
    logits, expected = network(x, x), merged(x)
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-14)
    F.cross_entropy(logits, labels).backward()
    F.cross_entropy(expected, labels).backward()
    gradients = merge_tensors(
        {name: [part.grad for part in parts] for name, parts in network.layer_parameters().items()}
    )
    for name, parameter in merged.named_parameters():
        assert parameter.grad.any(), name
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-11, atol=1e-13)


def test_split_undoes_merge():
    network = network_of(recipe_with(2, kernel=3))
    again = network.merge().split(("cpu", "cpu"))
    for name, parts in network.layer_parameters().items():
        assert all(
            torch.equal(part, other) for part, other in zip(parts, again.layer_parameters()[name], strict=True)
        ), name


@every("towers", [1, 2])
def test_counts(towers):
    """conv1 8 -> 6 pixels; local 3x3 without pad 6 -> 4: 16 positions x 3 maps x (2 channels x 9 + 1 bias)."""
    recipe = recipe_with(towers, kernel=3)
    size = shapes.sizes(recipe, 5)[1]
    assert size.weight_shape == (3, 4, 4, 2, 3, 3) and size.bias_shape == (3, 4, 4) and size.parameters == 16 * 3 * 19
    assert size.products == 16 * 3 * 18  # each weight once an image
    network = TwoTowerAlexNet(recipe, ("cpu",) * towers, 5)
    assert shapes.parameter_counts(recipe, 5) == tuple(
        sum(p.numel() for p in tower.parameters()) for tower in network.towers
    )
    assert {name: tuple(tensor.shape) for name, tensor in network.merged_state().items()} == shapes.merged_shapes(
        recipe, 5
    )
    assert shapes.merged_shapes(recipe, 5)["local2.weight"] == (3 * towers, 4, 4, 2, 3, 3)


def test_roofline_counts_a_local_layers_weights_once():
    figures = roofline.report(recipe_with(kernel=3), [16])
    row = {row["layer"]: row for row in figures["layers"]}["local2"]
    assert row["parameters"] == 912 and row["forward_mflop"] == pytest.approx(2e-6 * 864)


def test_initial_weights_are_drawn_alike_and_updated():
    recipe = recipe_with(2, kernel=3, init_bias=0.25)
    network = TwoTowerAlexNet(recipe, ("cpu", "cpu"), 3)
    for tower in network.towers:
        weights = tower.local2.weight
        assert (tower.local2.bias == 0.25).all() and abs(weights.std() / 0.3 - 1) < 0.15
        assert not torch.equal(weights[:, 0, 0], weights[:, 0, 1])
    optimizer, before = PaperSGD(network), network.merged_state()
    optimizer.set_rates(make_schedule(recipe).rates(1))
    F.cross_entropy(network(*[images().float()] * 2), torch.tensor([0, 1])).backward()
    optimizer.step()
    after = network.merged_state()
    assert all(not torch.equal(before[name], after[name]) for name in ("local2.weight", "local2.bias"))


def test_what_a_local_layer_may_not_be():
    with pytest.raises(UserError, match="conv1.kind"):
        dataclasses.replace(mini(), layers=(dataclasses.replace(mini().layers[0], kind="local"), *mini().layers[1:]))
    with pytest.raises(UserError, match="local2.kernel is 9"):
        recipe_with(kernel=9)


def test_a_recipe_with_one_can_be_stored_and_described():
    recipe = recipe_with(kernel=3, weight_decay=0.5, rate=0.1)
    assert from_dict(to_dict(recipe)) == recipe
    assert "3x3 stride 1 pad 0, std 0.3, bias 0, weight decay 0.5, weight rate times 0.1" in describe(recipe)
