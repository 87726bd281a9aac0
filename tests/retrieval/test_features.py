"""The last hidden layer of both towers, joined: against the merged network, of every shape of network."""

import dataclasses

import numpy as np
import pytest
import torch
from inner_cases import every

from alexnet_mp import TwoTowerAlexNet
from alexnet_mp.recipes.ablations import one_gpu
from alexnet_mp.recipes.architectures import paper
from alexnet_mp.recipes.recipe import Layer
from alexnet_mp.retrieval.features import features, last_hidden, reduced
from alexnet_mp.system.errors import UserError

CONV = Layer("conv1", "conv", 3, "image", ("relu", "lrn", "max_pool"), kernel=5, stride=2, init_std=0.1)
FC = Layer("fc6", "fc", 6, "both", ("relu", "dropout"), init_std=0.1, init_bias=0.5)
LAST = Layer("fc8", "fc", None, "both", (), init_std=0.1, towers="first")


def network_of(*layers, towers=2):
    recipe = dataclasses.replace(paper(), layers=layers, towers=towers, stored_size=40, crop_size=36, crop_positions=2)
    return TwoTowerAlexNet(recipe, ["cpu"] * towers, classes=4)


class InBatches:
    """A pipeline of random images, that checks what it is asked for."""

    def __init__(self, images, towers=2):
        self.images, self.towers = images, towers

    def views(self, split, batch_size, which):
        assert split == "val" and which == [(2, 2, False)]  # the centre of 36 in 40
        for start in range(0, len(self.images), batch_size):
            part = self.images[start : start + batch_size]
            yield iter([[part] * self.towers]), torch.arange(start, start + len(part))


@pytest.fixture
def images():
    return 60 * torch.randn(7, 3, 36, 36, generator=torch.Generator().manual_seed(1))


def merged_outputs(network, images):
    """The same layer, computed by the merged network's modules one after the other."""
    model = network.merge().eval()
    with torch.inference_mode():
        x = images
        for name, module in model.named_children():
            x = module(x)
            if name == network.recipe.layers[-2].name:
                return x.flatten(1).numpy()


@every("layers", [(CONV, FC, LAST), (CONV, LAST), (CONV, FC, dataclasses.replace(FC, name="fc7", reads="own"), LAST)])
def test_both_halves_are_joined_in_the_order_a_b(layers, images):
    network = network_of(*layers)
    counts = []
    vectors = features(network, InBatches(images), "val", 3, counts.append)
    assert vectors.hidden.dtype == np.float32 and counts == [3, 3, 1] and vectors.labels.tolist() == list(range(7))
    np.testing.assert_allclose(vectors.hidden, merged_outputs(network, images), rtol=1e-4, atol=1e-5)
    a, b = np.split(vectors.hidden, 2, axis=1)
    assert not np.allclose(a, b)


def test_a_single_tower(images):
    network = network_of(CONV, FC, LAST, towers=1)
    vectors = features(network, InBatches(images, 1), "val", 4)
    assert vectors.hidden.shape == (7, 6)
    np.testing.assert_allclose(vectors.hidden, merged_outputs(network, images), rtol=1e-4, atol=1e-5)


def test_it_is_the_networks_test_mode_and_the_network_is_left_as_it_was(images):
    """No unit is dropped; outputs are scaled by 1 - dropout; step, mode and hooks are what they were."""
    network = network_of(CONV, FC, LAST).train()
    network.step = 5
    vectors, repeat = (features(network, InBatches(images), "val", 7) for _ in range(2))
    assert network.training and network.step == 5 and np.array_equal(vectors.hidden, repeat.hidden)
    assert not any(module._forward_hooks for module in network.modules())
    for tower in network.towers:
        tower.fc6.recipe = dataclasses.replace(network.recipe, dropout=0.0)
    np.testing.assert_allclose(features(network, InBatches(images), "val", 7).hidden, 2 * vectors.hidden, rtol=1e-6)


def test_a_pass_that_fails_leaves_no_hooks(images):
    network = network_of(CONV, FC, LAST).train()
    with pytest.raises(ValueError, match="images_a is"):
        features(network, InBatches(images[:, :2]), "val", 7)
    assert network.training and not any(module._forward_hooks for module in network.modules())


def test_pixels_are_means_over_areas(images):
    vectors = features(network_of(CONV, FC, LAST), InBatches(images), "val", 3)
    assert vectors.pixels.shape == (7, 3 * 32 * 32)
    pictures = torch.arange(2 * 3 * 64 * 64).float().reshape(2, 3, 64, 64)
    assert torch.equal(reduced(pictures).reshape(2, 3, 32, 32), pictures.reshape(2, 3, 32, 2, 32, 2).mean((3, 5)))
    assert torch.equal(
        reduced(pictures[..., :24, :24]), pictures[..., :24, :24].flatten(1)
    )  # CIFAR's crops stay as they are


def test_the_papers_layer():
    assert last_hidden(paper()).name == last_hidden(one_gpu(paper())).name == "fc7"
    with pytest.raises(UserError, match="no hidden"):
        last_hidden(dataclasses.replace(paper(), layers=(dataclasses.replace(LAST, reads="image"),)))
