"""CKA of two towers: the published formula, planted truths, and false alarms at their level."""

import dataclasses

import numpy as np
import pytest
import torch

from alexnet_mp.analysis import similarity
from alexnet_mp.analysis.similarity import (
    Representation,
    across,
    alike,
    between_maps,
    changes_at_crossings,
    cka,
    dealt,
    most_pictures,
    represent,
    u_centred,
)
from alexnet_mp.data.image_files import pipeline_of
from alexnet_mp.data.pixel_statistics import Statistics
from alexnet_mp.network.network import TwoTowerAlexNet
from alexnet_mp.recipes.architectures import mini, paper
from alexnet_mp.recipes.named import PRESETS
from alexnet_mp.recipes.recipe import Layer, Recipe

pytestmark = pytest.mark.usefixtures("one_thread")
LAYERS = (
    Layer("conv1", "conv", 8, "image", ("relu", "max_pool"), kernel=5, stride=2, init_std=0.05),
    Layer("conv2", "conv", 6, "own", ("relu", "max_pool"), kernel=3, init_std=0.1),
    Layer("fc3", "fc", 12, "both", ("relu",), init_std=0.1),
    Layer("fc4", "fc", None, "both", (), init_std=0.1, towers="first"),
)
STATISTICS = Statistics(np.full((24, 24, 3), 127.5), np.zeros(3), np.eye(3))


def recipe(seed=0, **changes):
    return Recipe("small", LAYERS, stored_size=24, crop_size=24, crop_positions=1, seed=seed, **changes)


def pictures(count=60):
    """Squares of random colours, and noise."""
    random = np.random.default_rng(0)
    squares = random.uniform(0, 255, (count, 4, 4, 3)).repeat(6, 1).repeat(6, 2)
    return list((0.8 * squares + random.uniform(0, 50, squares.shape)).astype(np.uint8))


def seen(network, images, with_maps=True):
    network = network.eval()
    pipeline = pipeline_of(images, network.recipe, network.exchange.devices, STATISTICS)
    return represent(network, pipeline, "given", 25, with_maps)


def divided(network):
    """Tower a reads luminance alone, tower b colour alone."""
    with torch.no_grad():
        a, b = (tower.conv1.weight for tower in network.towers)
        a.copy_(a.mean(1, keepdim=True).expand_as(a))
        b.sub_(b.mean(1, keepdim=True))
    return network


def hsic_1(k, l):  # noqa: E741
    """Song et al. 2012, equation 5, as it is printed."""
    n, one = len(k), np.ones(len(k))
    k, l = (each - np.diag(np.diag(each)) for each in (k, l))  # noqa: E741
    total = (
        np.trace(k @ l) + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ l @ one)
    )
    return total / (n * (n - 3))


def test_the_estimate_its_intervals_and_p_values():
    draws = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 30, generator=draws) + 3, torch.randn(40, 20, generator=draws).abs()
    y += x[:, :20]
    a, b = u_centred(x), u_centred(y)
    of_x, of_y = (each.double().numpy() @ each.double().numpy().T for each in (x, y))
    assert np.isclose((a * b).sum() / (40 * 37), hsic_1(of_x, of_y), rtol=1e-5)
    expected = hsic_1(of_x, of_y) / np.sqrt(hsic_1(of_x, of_x) * hsic_1(of_y, of_y))
    assert np.isclose(cka(a, b), expected, rtol=1e-5)

    rotation = torch.linalg.qr(torch.randn(30, 30, generator=draws))[0]
    for copy in (x, 5 * x @ rotation + 7, torch.cat([x, x], 1)):
        assert np.isclose(cka(a, u_centred(copy)), 1, atol=1e-5)
    assert cka(a, u_centred(torch.ones(40, 3))) is None
    assert abs(cka(*(u_centred(torch.eye(40)[:, part]) for part in (slice(0, 20), slice(20, 40))))) < 0.1

    # Unrelated, with more features than pictures: the usual estimate would say 0.8, this one is 0 in the mean.
    evidence = [cka(*(u_centred(torch.randn(30, 120, generator=draws)) for _ in "ab")) for _ in range(300)]
    assert abs(np.mean(evidence)) < 4 * np.std(evidence) / np.sqrt(300) < 0.02

    # HSIC_1 of the whole is the sum over maps, whether a map is one number or several.
    values = torch.randn(30, 6, 1, generator=draws).abs()
    by_one, by_two = (between_maps(torch.cat([values] + [0 * values] * padding, 2)) for padding in (0, 1))
    assert np.allclose(by_one, by_two, atol=1e-5)
    whole = cka(u_centred(values[:, :3, 0]), u_centred(values[:, 3:, 0]))
    h = by_one.astype(np.float64)
    assert np.isclose(h[:3, 3:].sum() / np.sqrt(h[:3, :3].sum() * h[3:, 3:].sum()), whole, atol=1e-5)

    # 95 % of the intervals hold what very many pictures say; p of unrelated towers is as often small as it says.
    def towers(count, weight):
        z = torch.randn(count, 5, generator=draws)
        return tuple(u_centred(weight * z + torch.randn(count, 5, generator=draws)) for _ in "ab")

    truth = cka(*towers(1500, 1.0))
    networks = [Representation(("x",), 60, {"x": towers(60, 1.0)}, {}) for _ in range(60)]
    intervals = [alike(network, draws=1)[0].cka.interval for network in networks]
    assert 52 <= sum(low <= truth <= high for low, high in intervals) < 60
    null_ps = [alike(Representation(("x",), 40, {"x": towers(40, 0.0)}, {}), draws=19)[0].p for _ in range(60)]
    assert sum(p <= 0.1 for p in null_ps) <= 14 and 18 <= sum(p <= 0.5 for p in null_ps) <= 42
    assert alike(networks[0], draws=199)[0].p == 1 / 200

    # Towers of one network that are alike and unlike all others; and towers that are all unrelated.
    pairs = [towers(60, 2.0) for _ in range(4)]
    (evidence,) = across([Representation(("x",), 60, {"x": pair}, {}) for pair in pairs])
    assert evidence.p == pytest.approx(1 / 105) and evidence.own > 0.4 > 0.1 > abs(evidence.others)
    dead_tower = Representation(("x",), 60, {"x": (pairs[0][0], 0 * pairs[0][0])}, {})
    assert across([dead_tower, dead_tower]) == [] and alike(dead_tower)[0].cka is None


def test_networks_with_and_without_a_division():
    """A planted division is told at the layer that has it; of 100 networks of random weights about one is by chance.
    The layer that reads both mixes what was apart."""
    images = pictures()
    network = seen(divided(TwoTowerAlexNet(recipe(), ("cpu", "cpu"), 3)), images)
    assert network.layers == ("conv1", "conv2", "fc3") and list(network.maps) == ["conv1", "fc3"]
    conv1, fc3 = dealt(network)
    assert conv1.p < 0.002 and conv1.own < conv1.halves[0] and fc3.p > 0.01
    assert conv1.own == pytest.approx(cka(*network.products["conv1"]), abs=1e-4)
    (change,) = changes_at_crossings(network, recipe())
    assert (change.before, change.after) == ("conv2", "fc3") and change.change.interval[0] > 0.1 > change.holm_p
    assert change.change.value == pytest.approx(
        cka(*network.products["fc3"]) - cka(*network.products["conv2"]), abs=1e-9
    )
    p = []
    for seed in range(100):
        random = seen(TwoTowerAlexNet(recipe(seed), ("cpu", "cpu"), 3), images[:40])
        p.append([each.p for each in dealt(random, draws=199, seed=seed)])
    low, middle = ((np.array(p) <= level).sum(0) for level in (0.01, 0.5))
    assert (low <= 5).all() and (30 <= middle).all() and (middle <= 70).all()

    # The same with normalisation across the border, where layers of both towers are computed at once; one tower; and
    # what has no place in memory.
    variant_recipe = recipe(lrn_crosses=True)
    variant = seen(TwoTowerAlexNet(variant_recipe, ("cpu", "cpu"), 3), images[:40])
    reference = seen(TwoTowerAlexNet(recipe(), ("cpu", "cpu"), 3), images[:40])
    assert all(
        np.allclose(a, b, rtol=1e-3)
        for n in reference.layers
        for a, b in zip(reference.products[n], variant.products[n])
    )
    one_tower = dataclasses.replace(recipe(), towers=1)
    assert [len(each) for each in seen(TwoTowerAlexNet(one_tower, ("cpu",), 3), images).products.values()] == [1, 1, 1]
    assert most_pictures(mini()) == most_pictures(PRESETS["caffenet"]()) == similarity.MOST_PICTURES
    assert similarity.FEWEST <= most_pictures(dataclasses.replace(paper(), crop_size=1120, stored_size=1151)) < 100
    with torch.no_grad(), pytest.raises(ValueError, match="conv1 gives NaN or infinity"):
        nan_network = TwoTowerAlexNet(recipe(), ("cpu", "cpu"), 3)
        nan_network.towers[1].conv1.weight.fill_(np.nan)
        seen(nan_network, images)
