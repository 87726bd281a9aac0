"""What the last hidden layer says of pictures: figure 4's 4096 numbers (paper, 6.1), and the pixels they are compared
with.

In 2012 the values written were those after the ReLU and before dropout, one file a tower (`tm.sh`: fc2048ba_neuron,
fc2048bb_neuron), and a vector was both of them. Here they are what the network computes in test mode, so already
multiplied by 1 - dropout (4.2): one factor for every unit and picture, which changes no order of distances."""

from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..data.pipeline import Pipeline
from ..evaluation.layer_features import outputs_of
from ..evaluation.protocol import centre_view
from ..network.network import TwoTowerAlexNet
from ..recipes.recipe import Layer, Recipe
from ..system.errors import UserError

PIXELS = 32  # a side: what "pixels" means in comparisons, the size that Krizhevsky and Hinton searched in 2011


@dataclass(frozen=True)
class Features:
    """Of the N pictures of a split, in its order."""

    hidden: np.ndarray  # (N, units of all towers) float32, those of tower a first: 4096 in the paper
    pixels: np.ndarray  # (N, 3 * side * side) float32, grey levels minus the mean image's
    labels: np.ndarray  # (N,) int64


def last_hidden(recipe: Recipe) -> Layer:
    """The layer before the last: fc7 of the paper. Raises UserError where a recipe has no hidden layer."""
    if len(recipe.layers) < 2:
        raise UserError(f"recipe {recipe.name} has a single layer, and so no hidden one that describes a picture")
    return recipe.layers[-2]


@torch.inference_mode()
def features(
    network: TwoTowerAlexNet,
    pipeline: Pipeline,
    split: str,
    batch_size: int,
    advance: Callable[[int], None] = lambda count: None,
) -> Features:
    """The `Features` of every picture of a split under the centre view, in order; the network computes in test mode.

    network: on any devices, of one tower or two. A last hidden layer that is a convolution is
    flattened, tower by tower in NCHW order. Pixels are those of the same view, reduced to 32x32 (or left, where the
    crop is smaller) by area: that the mean image is missing from all of them changes no distance. advance(n) is called
    for every n pictures."""
    hidden, pixels, labels, was_training = [], [], [], network.training
    network.eval()
    try:
        with (
            closing(pipeline.views(split, batch_size, centre_view(network.recipe))) as batches,
            outputs_of(network, last_hidden(network.recipe).name) as outputs,
        ):
            for views, of_batch in batches:
                for images in views:
                    network(*images)
                    hidden.append(joined(outputs).numpy())
                    pixels.append(reduced(images[0]).numpy())
                labels.append(of_batch.cpu().numpy())
                advance(len(of_batch))
    finally:
        network.train(was_training)
    return Features(np.concatenate(hidden), np.concatenate(pixels), np.concatenate(labels))


def joined(outputs: Iterable[torch.Tensor]) -> torch.Tensor:
    """What each tower's layer gave, (N, units) or (N, C, H, W) -> (N, all units) float32 on the CPU, in the order a,
    b."""
    return torch.cat([output.flatten(1).float().cpu() for output in outputs], 1)


def reduced(images: torch.Tensor) -> torch.Tensor:
    """(N, 3, crop, crop) -> (N, 3 * side * side) float32 on the CPU: means over areas; side: 32, or a smaller
    crop's."""
    side = min(PIXELS, images.shape[-1])
    return F.adaptive_avg_pool2d(images.float(), side).flatten(1).cpu()
