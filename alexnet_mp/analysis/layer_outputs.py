"""Every layer's output: of the whole network, with a tower off, or with the links cut. What stands for
an output that is off is its mean over some pictures.

The mean is taken unit by unit, a unit of a convolution being one map at one place. A zero would do for no unit whose
mean is another: what reads it would get a signal that it never got in training, and the answer would tell of that."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from ..data.dataset import DataSet, evenly
from ..data.image_files import AT_ONCE
from ..data.pixel_statistics import Statistics
from ..evaluation.predict_images import centre_images
from ..network.network import TwoTowerAlexNet
from ..recipes.recipe import Recipe
from ..runs.unit_means import UnitMeans
from ..system.terminal import progress
from .silencing import arrived

MOST = 256  # pictures, of a mean

# {layer: [output of each tower that has it, (N, maps, height, width) or (N, units), on the tower's device]}
Outputs = Mapping[str, Sequence[torch.Tensor]]


@torch.inference_mode()
def layer_outputs(
    network: TwoTowerAlexNet,
    images: Sequence[torch.Tensor],
    means: Outputs | None = None,
    off: Collection[int] = (),
    cut: Collection[str] = (),
) -> Outputs:
    """Every layer's output, as `TwoTowerAlexNet.forward` computes it of a network in test mode.

    images: (N, 3, crop, crop), once on each tower's device. off: towers, 0 and 1, whose outputs are `means`, all but
    the answer's. cut: layers that read both towers, in which each tower reads the mean of the other's output. means: of
    `mean_outputs`; needed for either. Where normalisation crosses the towers' border (`lrn_crosses`), it goes on to see
    the other tower's maps.
    """
    outputs, before, by_layer, recipe = list(images), None, {}, network.recipe
    network.exchange.clear()
    for number, layer in enumerate(recipe.layers):
        parts = arrived(network, layer, outputs)
        if layer.name in cut:
            parts = [
                [
                    part if source == reader else means[before][source].to(part).expand_as(part)
                    for source, part in enumerate(inputs)
                ]
                for reader, inputs in enumerate(parts)
            ]
        outputs = network.compute(layer, parts)
        if number < len(recipe.layers) - 1:
            outputs = [
                means[layer.name][tower].expand_as(output) if tower in off else output
                for tower, output in enumerate(outputs)
            ]
        by_layer[layer.name], before = outputs, layer.name
    return by_layer


def mean_outputs(network: TwoTowerAlexNet, batches: Iterable[Sequence[torch.Tensor]]) -> Outputs:
    """The mean of every layer's output over pictures, unit by unit: N is 1. batches: `images` of `layer_outputs`."""
    sums, count = {}, 0
    for images in batches:
        count += len(images[0])
        for name, outputs in layer_outputs(network, images).items():
            terms = [output.double().sum(0, keepdim=True) for output in outputs]
            sums[name] = [total + term for total, term in zip(sums[name], terms)] if name in sums else terms
    if not count:
        raise ValueError("no pictures to take a mean over")
    return {name: [(total / count).to(network.dtype) for total in totals] for name, totals in sums.items()}


def unit_means_of(network: TwoTowerAlexNet, statistics: Statistics, dataset: DataSet) -> UnitMeans:
    """Over pictures of a data set's split val, spread evenly over it, under the centre view."""
    split = dataset.splits["val"]
    numbers = evenly(len(split), MOST)
    with progress("val images", len(numbers)) as advance:

        def batches():
            for batch in np.array_split(numbers, -(-len(numbers) // AT_ONCE)):
                yield centre_images(network, statistics, [split.read(int(number)) for number in batch])
                advance(len(batch))

        means = mean_outputs(network, batches())
    values = {name: [mean.float().cpu().numpy() for mean in of_towers] for name, of_towers in means.items()}
    return UnitMeans(values, f"{len(numbers):,} pictures of {Path(dataset.source).name}, split val")


def on_devices(means: UnitMeans, network: TwoTowerAlexNet) -> Outputs:
    """As `layer_outputs` takes them."""
    devices = network.exchange.devices
    return {
        name: [torch.from_numpy(value).to(device, network.dtype) for value, device in zip(of_towers, devices)]
        for name, of_towers in means.values.items()
    }


def links(recipe: Recipe) -> list[str]:
    """The names of the layers at which the towers meet before the answer's: cut there, they are two networks.

    The answer's reads both towers as well. Cut there too, nothing of tower b would reach it: that is tower b off."""
    return [layer.name for layer in recipe.layers[:-1] if layer.reads == "both" and recipe.towers == 2]
