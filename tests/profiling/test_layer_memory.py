"""Bytes of a step by layer and tower: against the count of whole steps with real tensors, and by hand."""

import pytest
import torch
import torch.nn.functional as F

from alexnet_mp import TwoTowerAlexNet, mini, paper
from alexnet_mp.profiling.layer_memory import step_bytes
from alexnet_mp.recipes.ablations import no_links, one_gpu
from alexnet_mp.recipes.recipe import Layer, Recipe, change_layers, override
from alexnet_mp.recipes.shapes import crossings, parameter_counts


def small(recipe):
    for layer in recipe.layers:
        recipe = change_layers(recipe, layer.name, maps=layer.maps and 4)
    return override(recipe, ["crop_size=80", "stored_size=84", "crop_positions=4"])


def kept_bytes(recipe, classes, count):
    """Bytes that a forward pass of so many images keeps for backward, each storage once, without the weights."""
    network, kept_tensors = TwoTowerAlexNet(recipe, ("cpu",) * recipe.towers, classes), {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    images = torch.zeros(count, 3, recipe.crop_size, recipe.crop_size)

    def keep(tensor):
        kept_tensors[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = F.cross_entropy(network(*[images] * recipe.towers), torch.zeros(count, dtype=torch.int64))
    assert loss.requires_grad
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept_tensors.items() if place not in weights)


@pytest.mark.usefixtures("one_thread")
def test_bytes_by_layer_and_tower():
    for change in (lambda recipe: recipe, no_links, one_gpu):
        recipe = small(change(mini()))
        memory = step_bytes(recipe, 5, 6)
        assert memory.one_device.activations == kept_bytes(recipe, 5, 6)
        assert [each.weights for each in memory.towers] == [4 * count for count in parameter_counts(recipe, 5)]
        # On two devices the images, and what both read, are on both.
        images = 4 * 6 * 3 * 80 * 80
        exchange = sum(count for *_, pass_, count in crossings(recipe, 6, 5) if pass_ == "forward")
        overhead = sum(each.activations for each in memory.towers) - memory.one_device.activations
        assert overhead == 0 if recipe.towers == 1 else images <= overhead <= images + 2 * exchange + 100_000
        for tower, usage in enumerate(memory.towers):
            layers = [each for (owner, _), each in memory.layers.items() if owner == tower]
            assert usage.activations == sum(each.activations for each in layers)
            assert usage.workspace == max(each.workspace for each in layers) > 0
            assert usage.total == 3 * usage.weights + usage.activations + usage.workspace
        assert list(memory.layers)[:2] == [(0, "conv1"), (0, "conv2")] and all(
            each.activations for each in memory.layers.values()
        )

    # A product of 12 inputs, a ReLU and a product, by hand: kept are the pictures, the ReLU's output, and, for the
    # loss, logarithms, labels and their weight; at once there beside that are two gradients at least.
    layers = (Layer("fc6", "fc", 5, "image", ("relu",)), Layer("fc7", "fc", None, "own", ()))
    recipe = Recipe("tiny", layers, towers=1, stored_size=2, crop_size=2, crop_positions=1)
    memory = step_bytes(recipe, 3, 100)
    first, last = memory.layers[0, "fc6"], memory.layers[0, "fc7"]
    assert (first.weights, last.weights) == (4 * 5 * 13, 4 * 3 * 6) and first.gradients == first.velocity == 260
    assert first.activations == 100 * 4 * (12 + 5) or first.activations == 100 * 4 * 12
    assert 0 <= first.activations + last.activations - 100 * (4 * 12 + 4 * 5 + 4 * 3 + 8) <= 16
    assert 100 * 4 * 3 <= last.workspace <= 100 * 4 * 20 and 100 * 4 * 5 <= first.workspace <= 100 * 4 * 20


def test_the_papers_network_fits_its_gpus():
    """3.2: 32,531,112 and 28,434,112 weights, three times four bytes each, and what 128 images take."""
    towers = step_bytes(paper(), 1000, 128).towers
    assert [each.weights for each in towers] == [4 * 32_531_112, 4 * 28_434_112]
    assert all(each.total < 3e9 for each in towers)
