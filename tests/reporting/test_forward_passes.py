"""The forward passes that a report announces are those that its measures take, and those of docs/report.md."""

from pathlib import Path

import numpy as np
import pytest
import torch
from inner_cases import every
from planted_towers import Pictures

from alexnet_mp.analysis.lesions import kernel_lesions, lesions
from alexnet_mp.analysis.sight import class_leanings, colour_division, sight
from alexnet_mp.data.pixel_statistics import Statistics
from alexnet_mp.network.network import TwoTowerAlexNet
from alexnet_mp.recipes import shapes
from alexnet_mp.recipes.ablations import no_links, one_gpu
from alexnet_mp.recipes.architectures import mini, paper
from alexnet_mp.recipes.desk_study import desk
from alexnet_mp.recipes.recipe import override
from alexnet_mp.reporting.forward_passes import forward_passes

pytestmark = pytest.mark.usefixtures("one_thread")
PAGE = Path(__file__).parents[2] / "docs" / "report.md"
SMALL = ["stored_size=32", "crop_size=32", "crop_positions=1", "conv1.kernel=5", "conv1.stride=2"]
SMALL += [f"conv{number}.maps=4" for number in range(1, 6)] + ["fc6.maps=6", "fc7.maps=6"]
MEASURES = {
    "lesions": lesions,
    "single kernels": kernel_lesions,
    "altered pictures": sight,
    "brightness and colour": colour_division,
    "classes": class_leanings,
}


@every("change", [lambda recipe: recipe, no_links, one_gpu])
def test_forward_passes_are_those_of_the_measures(change, monkeypatch):
    recipe = override(change(mini()), SMALL)
    network = TwoTowerAlexNet(recipe, ("cpu",) * recipe.towers, 5, "reference").eval()
    products = {size.layer.name: size.products for size in shapes.sizes(recipe, 5)}
    computed, compute = [], network.compute

    def counted(layer, parts):
        outputs = compute(layer, parts)
        computed.append(products[layer.name] * sum(map(len, outputs)))
        return outputs

    monkeypatch.setattr(network, "compute", counted)
    pictures = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    split, statistics = Pictures(pictures, np.arange(3)), Statistics(np.zeros((32, 32, 3)), np.zeros(3), np.eye(3))
    network(*[torch.zeros(1, 3, 32, 32)] * recipe.towers)
    whole, passes = sum(computed), {}
    for what, measure in MEASURES.items():
        computed.clear()
        measure(network, statistics, split, np.arange(3))
        passes[what] = sum(computed) / 3 / whole
    assert forward_passes(recipe, 5) == pytest.approx(passes)
    colour = "brightness and colour"
    assert forward_passes(recipe, 5, labelled=False) == pytest.approx({colour: passes[colour]})


def test_the_page_has_the_forward_passes_of_a_report():
    sizes, page = (500, 250, 500, 250, 5000), PAGE.read_text()
    works = [forward_passes(paper(), 1000), forward_passes(desk(), 100)]
    rows = [
        (what, f"{size:,}", *(f"{size * work[what]:,.0f}" for work in works)) for what, size in zip(works[0], sizes)
    ]
    totals = (f"{sum(size * times for size, times in zip(sizes, work.values())):,.0f}" for work in works)
    for row in (*rows, ("in all", "", *totals)):
        assert f"| {' | '.join(row)} |".replace("|  |", "| |") in page, row
