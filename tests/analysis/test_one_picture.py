"""One picture through both towers: what off and cut mean, and what crosses."""

import json

import numpy as np
import pytest
import torch
from inner_cases import every
from made_runs import random_weights
from tiny_run import LAYERS

from alexnet_mp import TwoTowerAlexNet, mini
from alexnet_mp.analysis.layer_outputs import layer_outputs, links, mean_outputs
from alexnet_mp.analysis.one_picture import crossing, relative_change, shown_maps, strongest, through
from alexnet_mp.recipes.recipe import override

TINY = ["stored_size=41", "crop_size=32", "crop_positions=8", "lrn_alpha=0.01", f"layers={json.dumps(LAYERS)}"]


def made(*settings, overlap=None):
    """(network in float64 and test mode, a function that gives so many images)."""
    recipe, draws = override(mini(), [*TINY, *settings]), torch.Generator().manual_seed(0)
    network = TwoTowerAlexNet(recipe, ("cpu",) * recipe.towers, 3, "reference", overlap).double()
    network.load_merged({name: torch.from_numpy(t).double() for name, t in random_weights(recipe, 3).items()})
    return network.eval(), lambda count: 60 * torch.randn(count, 3, 32, 32, generator=draws, dtype=torch.float64)


@every("settings", [(), ("lrn_crosses=true",), ("towers=1",)], ids=["two towers", "across the border", "one tower"])
def test_nothing_silenced_is_the_network_and_a_mean_of_one_picture_is_that_picture(settings):
    network, images = made(*settings)
    towers, pictures = network.recipe.towers, images(5)
    activations = layer_outputs(network, [pictures] * towers)
    with torch.inference_mode():
        logits = network(*[pictures] * towers)
        output, by_hand = pictures, {}
        for name, module in network.merge().named_children():
            by_hand[name] = output = module(output)
    assert torch.equal(activations["fc8"][0], logits)
    for name, outputs in activations.items():
        torch.testing.assert_close(torch.cat(list(outputs), 1), by_hand[name])
    means = mean_outputs(network, [[pictures[:2]] * towers, [pictures[2:]] * towers])
    for name, outputs in means.items():
        torch.testing.assert_close(torch.cat(list(outputs), 1), by_hand[name].mean(0, keepdim=True))
    with pytest.raises(ValueError, match="no pictures"):
        mean_outputs(network, [])
    one = [pictures[:1]] * towers
    passage = through(network, one, mean_outputs(network, [one]))
    assert [state.name for state in passage.states] == [
        "the whole network",
        *(["tower a off", "tower b off", "links cut"] if towers == 2 else []),
    ]
    for state in passage.states:
        np.testing.assert_allclose(state.probabilities, logits[0].softmax(0).numpy(), rtol=1e-9)
        assert all(not side.change or side.change < 1e-12 for layer in state.layers for side in layer.sides)
    assert len(through(network, one, None).states) == 1


@every("overlap", [False, True])
def test_what_is_off_or_cut_says_nothing(overlap):
    """Of a silenced tower's picture nothing reaches the answer; with the links cut both reach it, and add up."""
    network, images = made(overlap=overlap)
    means = mean_outputs(network, [[images(7)] * 2])
    (a, other_a), (b, other_b) = images(2).split(1), images(2).split(1)

    def answer(one, other, **options):
        return layer_outputs(network, [one, other], means, **options)["fc8"][0]

    assert links(network.recipe) == ["conv2", "fc6"]
    for off, pictures in ((1, (a, other_b)), (0, (other_a, b))):
        assert torch.equal(answer(a, b, off=(off,)), answer(*pictures, off=(off,)))
        others = (other_a, b) if off else (a, other_b)
        assert not torch.allclose(answer(a, b, off=(off,)), answer(*others, off=(off,)))
    torch.testing.assert_close(answer(a, b, off=(1,)), answer(a, b, cut=("conv2", "fc6", "fc8")))
    cut = {"cut": links(network.recipe)}
    cut_sum = answer(a, b, **cut) + answer(other_a, other_b, **cut)
    torch.testing.assert_close(cut_sum, answer(a, other_b, **cut) + answer(other_a, b, **cut))
    assert not torch.allclose(answer(a, b, **cut), answer(a, other_b, **cut))
    whole_sum = answer(a, b) + answer(other_a, other_b)
    assert not torch.allclose(whole_sum, answer(a, other_b) + answer(other_a, b))
    outputs = layer_outputs(network, [a, b], means, off=(1,))
    assert torch.equal(outputs["conv1"][1], means["conv1"][1]) and torch.equal(outputs["fc6"][1], means["fc6"][1])


def test_what_is_shown_and_what_crosses():
    maps = torch.zeros(4, 2, 2)
    maps[1], maps[2], maps[3, 0, 0] = -3.0, 1.0, 8.0  # means of absolute values: 0, 3, 1, 2
    assert strongest(maps, 3).tolist() == [1, 3, 2] and strongest(torch.zeros(4, 2, 2)).tolist() == [0, 1, 2, 3]
    assert shown_maps(maps, np.array([3, 1])).tolist() == [[[8, 0], [0, 0]], [[-3, -3], [-3, -3]]]
    assert strongest(torch.arange(5.0)).tolist() == []
    assert shown_maps(torch.arange(5.0), np.array([])).tolist() == [[[0, 1, 2, 3], [4, 0, 0, 0]]]
    assert relative_change(torch.tensor([3.0, 0.0]), torch.tensor([3.0, 4.0])) == 0.8
    assert relative_change(torch.ones(2), torch.zeros(2)) == np.inf and relative_change(*[torch.zeros(2)] * 2) == 0
    network, images = made()
    outputs = layer_outputs(network, [images(1)] * 2)
    exchanges = {(link.layer, link.direction): link for link in crossing(network, outputs)}
    assert list(exchanges) == [("conv2", "b->a"), ("conv2", "a->b"), ("fc6", "b->a"), ("fc6", "a->b"), ("fc8", "b->a")]
    a, b = (each.flatten(1) for each in outputs["conv2"])
    assert (
        exchanges["fc6", "a->b"].bytes == 4 * a.numel()
        and exchanges["fc6", "a->b"].shape == outputs["conv2"][0].shape[1:]
    )
    assert exchanges["fc6", "a->b"].zeros == (a == 0).double().mean()
    for (layer, direction), own, other in (
        (
            ("fc6", "a->b"),
            b @ network.towers[1].fc6.weight[:, a.shape[1] :].T,
            a @ network.towers[1].fc6.weight[:, : a.shape[1]].T,
        ),
        (
            ("fc6", "b->a"),
            a @ network.towers[0].fc6.weight[:, : a.shape[1]].T,
            b @ network.towers[0].fc6.weight[:, a.shape[1] :].T,
        ),
    ):
        link = exchanges[layer, direction]
        assert link.own == pytest.approx(own.square().mean().sqrt().item())
        assert link.other == pytest.approx(other.square().mean().sqrt().item())
