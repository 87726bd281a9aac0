"""Sampled dropout masks against the halved outputs: exact before one linear layer, and by hand on a small network."""

import dataclasses

import pytest
import torch

from alexnet_mp import TwoTowerAlexNet, mini
from alexnet_mp.evaluation.dropout_masks import compare
from alexnet_mp.recipes.recipe import change_layers


def network(**changes):
    recipe = dataclasses.replace(mini(), crop_size=80, stored_size=84, crop_positions=4, **changes)
    for layer in recipe.layers[:-1]:
        recipe = change_layers(recipe, layer.name, maps=4, init_std=0.1)
    return TwoTowerAlexNet(change_layers(recipe, "fc8", init_std=0.5), ("cpu", "cpu"), 5).eval()


def pictures(count=6):
    images = 60 * torch.randn(count, 3, 80, 80, generator=torch.Generator().manual_seed(1))
    return [images, images], torch.arange(count) % 5


def test_by_hand():
    model, (images, labels) = network(), pictures()
    model.step = 7
    comparison = compare(model, images, labels, masks=6)
    model.train()
    logits = torch.stack([model(*images).double() for _ in range(6)]).detach()  # steps 8 to 13, as above
    model.eval()
    halved, geometric = model(*images).double().softmax(1).detach(), logits.softmax(2).log().mean(0).exp()
    geometric /= geometric.sum(1, keepdim=True)

    def error(answers):
        return 100 * (answers.argmax(1) != labels).double().mean().item()

    def divergence(p, q):
        return (p * (p / q).log()).sum(1).mean().item()

    even, odd = (logits[start::2].mean(0).softmax(1) for start in (0, 1))
    assert comparison == pytest.approx(
        {
            "masks": 6,
            "images": 6,
            "halved": error(halved),
            "geometric": error(geometric),
            "arithmetic": error(logits.softmax(2).mean(0)),
            "one_mask": sum(map(error, logits)) / 6,
            "agree": 100 * (halved.argmax(1) == geometric.argmax(1)).double().mean().item(),
            "divergence": divergence(geometric, halved),
            "noise": divergence(even, odd),
            "one_mask_divergence": sum(divergence(geometric, of_mask.softmax(1)) for of_mask in logits) / 6,
        },
        rel=1e-9,
    )
    assert comparison["divergence"] < comparison["one_mask_divergence"] and comparison["noise"] > 0


def test_the_network_is_left_as_it_was():
    model, (images, labels) = network(), pictures()
    model.step = 7
    before = model.merged_state()
    compare(model, images, labels, masks=2)
    assert model.step == 7 and not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.merged_state().items())


@pytest.mark.slow
@pytest.mark.run
def test_with_one_layer_of_dropout_before_the_last_halving_is_exact():
    """Of a softmax of a linear layer the geometric mean over all masks is the halved network's: more masks, nearer."""
    recipe = change_layers(network().recipe, "fc6", then=("relu",))
    model, (images, labels) = TwoTowerAlexNet(recipe, ("cpu", "cpu"), 5), pictures()
    few, many = (compare(model, images, labels, masks=masks)["divergence"] for masks in (4, 400))
    assert many < few / 10 and many < 0.02 * compare(model, images, labels, masks=4)["one_mask_divergence"]


def test_without_dropout_all_networks_are_one():
    model, (images, labels) = network(dropout=0.0), pictures()
    comparison = compare(model, images, labels, masks=3)
    assert comparison["agree"] == 100 and comparison["one_mask_divergence"] == pytest.approx(0, abs=1e-9)
    assert comparison["halved"] == comparison["geometric"] == comparison["one_mask"]
