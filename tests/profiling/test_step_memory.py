"""Bytes of a training step, tower by tower: weights by the geometry, activations against a whole step, and by hand."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from inner_cases import every

from alexnet_mp import TwoTowerAlexNet, mini, paper
from alexnet_mp.profiling.step_memory import step_memory
from alexnet_mp.recipes.ablations import no_links, one_gpu
from alexnet_mp.recipes.recipe import Layer, Recipe
from alexnet_mp.recipes.shapes import parameter_counts


def small(recipe):
    layers = tuple(dataclasses.replace(layer, maps=layer.maps and 4) for layer in recipe.layers)
    return dataclasses.replace(recipe, layers=layers, crop_size=80, stored_size=84, crop_positions=4)


@every("change", [lambda recipe: recipe, no_links, one_gpu], ids=["links", "no links", "one tower"])
def test_activations_are_those_of_a_whole_step(change):
    """The line through two and four images meets what six keep, counted directly."""
    recipe = small(change(mini()))
    network = TwoTowerAlexNet(recipe, ("cpu",) * recipe.towers, 5)
    parameters, activations = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            activations[storage.data_ptr()] = tensor, storage.nbytes()
        return tensor

    images = torch.zeros(6, 3, 80, 80)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        F.cross_entropy(network(*[images] * recipe.towers), torch.zeros(6, dtype=torch.int64))
    towers = step_memory(network, 6)
    assert sum(each.activations for each in towers) == sum(count for _, count in activations.values())
    assert [each.weights for each in towers] == [4 * count for count in parameter_counts(recipe, 5)]
    assert all(each.total == 3 * each.weights + each.activations and each.activations > 0 for each in towers)


def test_by_hand():
    """A product of 12 inputs and a ReLU: kept are pictures, the ReLU's output, logarithms, labels and their weight."""
    layers = (Layer("fc6", "fc", 5, "image", ("relu",)), Layer("fc7", "fc", None, "own", ()))
    recipe = Recipe("tiny", layers, towers=1, stored_size=2, crop_size=2, crop_positions=1)
    (memory,) = step_memory(TwoTowerAlexNet(recipe, ("cpu",), 3), 100)
    picture_bytes = 4 * 12 + 4 * 5 + 4 * 3 + 8
    assert memory.weights == memory.gradients == memory.velocity == 4 * (5 * 13 + 3 * 6)
    assert 0 <= memory.activations - 100 * picture_bytes <= 16


@pytest.mark.run
def test_the_papers_network_fits_its_gpus():
    """32,531,112 and 28,434,112 weights, three times four bytes each, and the activations of 128 images."""
    towers = step_memory(TwoTowerAlexNet(paper(), ("cpu", "cpu")), 128)
    assert [each.weights for each in towers] == [4 * 32_531_112, 4 * 28_434_112]
    assert all(each.total < 3e9 for each in towers)


def test_the_network_is_left_as_it_was():
    network = TwoTowerAlexNet(small(mini()), ("cpu", "cpu"), 5).eval()
    network.step = 7
    network.towers[0].conv1.weight.requires_grad_(False)
    step_memory(network, 8)
    assert network.step == 7 and not network.training and not network.towers[0].conv1.weight.requires_grad
    assert network.towers[1].conv1.weight.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())
