"""Small networks whose towers see what their kernels say, and pictures of which some classes differ in brightness
alone, the others in colour alone."""

import numpy as np
import torch

from alexnet_mp.data.pixel_statistics import Statistics
from alexnet_mp.network.network import TwoTowerAlexNet
from alexnet_mp.recipes.recipe import Layer, Recipe

SIDE, CLASSES = 6, 6  # the first three classes differ in brightness, the last three in colour
STATISTICS = Statistics(np.full((SIDE, SIDE, 3), 128.0), np.zeros(3), np.eye(3))
BRIGHTNESS = np.array([[1, 1, 1], [-1, -1, -1]]) / 3
COLOUR = np.array([[1, -1, 0], [-1, 1, 0], [1, 1, -2], [-1, -1, 2]]) / 3


class Pictures:
    """A split in memory."""

    storage = "pixels"

    def __init__(self, pictures, labels):
        self.pictures, self.labels = pictures, labels
        self.names = [f"{number}" for number in range(len(labels))]

    def __len__(self):
        return len(self.labels)

    def read(self, index):
        return self.pictures[index]


def pictures(count, seed, noise=10):
    """A class's pattern of brightness with random colours, or its pattern of colours with random brightness."""
    random = np.random.default_rng(seed)
    pattern_random = np.random.default_rng(0)
    brightness_patterns, colour_patterns = (
        pattern_random.choice([-25, 25], (3, SIDE, SIDE)),
        pattern_random.choice([-25, 25], (3, SIDE, SIDE, 2)),
    )
    labels = np.arange(count) % CLASSES
    shades, tints = random.choice([-25, 25], (count, SIDE, SIDE)), random.choice([-25, 25], (count, SIDE, SIDE, 2))
    shades[labels < 3], tints[labels >= 3] = (
        brightness_patterns[labels[labels < 3]],
        colour_patterns[labels[labels >= 3] - 3],
    )
    chroma = tints @ np.array([[1, -1, 0], [0.5, 0.5, -1]])
    values = 128 + shades[..., None] + chroma + random.normal(0, noise, (count, SIDE, SIDE, 3))
    return Pictures(np.rint(values).clip(0, 255).astype(np.uint8), labels)


def recipe(maps, own_layer=False, towers=2):
    """conv1 of `maps` kernels of one pixel a tower, then the answers; between them conv2, if wanted."""
    layers = [Layer("conv1", "conv", maps, "image", ("relu",))]
    layers += [Layer("conv2", "conv", maps, "own", ("relu",))] if own_layer else []
    answer = Layer("fc3", "fc", None, "both", (), towers="first")
    return Recipe("toy", (*layers, answer), towers, stored_size=SIDE, crop_size=SIDE, crop_positions=1)


def network(kernels, split, own_layer=False, seed=0):
    """The network with these kernels (maps of both towers, 3), and answers fitted to a split by ridge regression."""
    net = TwoTowerAlexNet(recipe(len(kernels) // 2, own_layer), ("cpu", "cpu"), CLASSES, "reference").eval()
    state = net.merged_state()
    state["conv1.weight"] = torch.tensor(kernels, dtype=torch.float32)[:, :, None, None]
    if own_layer:
        random = np.random.default_rng(seed)
        state["conv2.weight"] = torch.tensor(random.normal(0, 1, state["conv2.weight"].shape), dtype=torch.float32)
    net.load_merged(state)
    images = torch.from_numpy((split.pictures.astype(np.float32) - 128).transpose(0, 3, 1, 2).copy())
    with torch.inference_mode():
        outputs = [images, images]
        for layer in net.recipe.layers[:-1]:
            outputs = net.compute(layer, net.read(layer, outputs))
    x = torch.cat(outputs, 1).flatten(1).double().numpy()
    mean, targets = x.mean(0), np.eye(CLASSES)[split.labels]
    centred = x - mean
    # in its dual form: there are fewer pictures than features
    weights = centred.T @ np.linalg.solve(
        centred @ centred.T + 1e-2 * np.square(centred).sum() / len(x) * np.eye(len(x)), targets
    )
    state["fc3.weight"] = torch.tensor(weights.T, dtype=torch.float32)
    state["fc3.bias"] = torch.tensor(targets.mean(0) - mean @ weights, dtype=torch.float32)
    net.load_merged(state)
    return net


def divided():
    """Kernels of two towers: tower a sees brightness, tower b colour."""
    return np.concatenate([np.tile(BRIGHTNESS, (2, 1)), COLOUR])


def mixed(maps, seed):
    """Kernels (2 maps, 3) of any colour, dealt to the towers at random."""
    return np.random.default_rng(seed).normal(0, 1, (2 * maps, 3)) / np.sqrt(3)
