"""Bytes of a step by layer and tower: against the count of whole steps with real tensors, and by hand."""

import pytest

from alexnet_mp import TwoTowerAlexNet, mini
from alexnet_mp.profiling.layer_memory import step_bytes
from alexnet_mp.profiling.step_memory import step_memory
from alexnet_mp.recipes.ablations import no_links, one_gpu
from alexnet_mp.recipes.recipe import Layer, Recipe, change_layers, override
from alexnet_mp.recipes.shapes import crossings, parameter_counts


def small(recipe):
    for layer in recipe.layers:
        recipe = change_layers(recipe, layer.name, maps=layer.maps and 4)
    return override(recipe, ["crop_size=80", "stored_size=84", "crop_positions=4"])


@pytest.mark.usefixtures("one_thread")
def test_bytes_by_layer_and_tower():
    for change in (lambda recipe: recipe, no_links, one_gpu):
        recipe = small(change(mini()))
        memory = step_bytes(recipe, 5, 6)
        measurements = step_memory(TwoTowerAlexNet(recipe, ("cpu",) * recipe.towers, 5), 6)
        assert memory.one_device.activations == sum(each.activations for each in measurements)
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
