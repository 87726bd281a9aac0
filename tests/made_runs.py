"""Runs of random weights that nobody trained, of any recipe, and what they answer, in float64 and without exports."""

import numpy as np
import torch

from alexnet_mp.data.pixel_statistics import Statistics
from alexnet_mp.interchange.converted_run import Converted, write_run
from alexnet_mp.network.network import TwoTowerAlexNet
from alexnet_mp.recipes.named import PRESETS
from alexnet_mp.recipes.recipe import Recipe, override
from alexnet_mp.runs import directory


def random_weights(recipe, classes, seed=1):
    """{name: float32} that keep sums alike from layer to layer; conv1's sums of some hundred, so that norms bite."""
    shapes = TwoTowerAlexNet(recipe, ("cpu",) * recipe.towers, classes, "reference").merged_state()
    random = np.random.default_rng(seed)
    scales = {
        name: 0.1 if name.startswith("conv1.") else np.sqrt(2 / max(1, t[0].numel())) for name, t in shapes.items()
    }
    return {name: np.float32(scales[name]) * random.standard_normal(t.shape, np.float32) for name, t in shapes.items()}


def made_run(place, recipe, classes=3, words=None):
    """(directory of a run, its network in float64 and test mode, its mean image). recipe: a `Recipe`, or the name of a
    preset and settings."""
    if not isinstance(recipe, Recipe):
        recipe = override(PRESETS[recipe[0]](), recipe[1])
    side, weights = recipe.stored_size, random_weights(recipe, classes)
    mean = np.random.default_rng(0).uniform(60, 180, (side, side, 3))
    names = words or [f"class {number}" for number in range(classes)]
    write_run(
        place, Converted(recipe, weights, Statistics(mean, np.zeros(3), np.eye(3)), names, names, "made", ""), "made"
    )
    network = TwoTowerAlexNet(recipe, ("cpu",) * recipe.towers, classes, "reference").double()
    network.load_merged({name: torch.from_numpy(tensor).double() for name, tensor in weights.items()})
    return place, network.eval(), mean


def logits_of(network, mean, pictures):
    """Logits (N, classes) float64 of pictures (N, S, S, 3) uint8: crop, mean and channels by hand."""
    crop, top = network.recipe.crop_size, (network.recipe.stored_size - network.recipe.crop_size) // 2
    window = slice(top, top + crop)
    images = torch.from_numpy((pictures.astype(np.float64) - mean)[:, window, window].transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        return network(*[images] * network.recipe.towers)


def without_git(monkeypatch):
    monkeypatch.setattr(directory, "source_commit", lambda: "0123abc")
