"""What the towers' border changes in a network whose normalisation sees across it (Caffe's), measured.

A map's window of 5 reaches two maps to both sides: of 96 maps those of numbers 46 to 49 see another sum beside the
border, of 256 those of 126 to 129. All later layers see what comes of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..network.network import TwoTowerAlexNet
from ..system.errors import UserError


@dataclass(frozen=True)
class LayerDifference:
    """Of one layer with normalisation, over all pictures and positions; its input is the same in both."""

    layer: str
    maps: tuple[int, ...]  # whose values change, numbered from 0 over both towers
    of: int  # maps
    largest: float  # |without the border - with it|, as a share of the largest value of these maps without it
    mean: float  # of the differences of these maps, as a share of their mean absolute value


@dataclass(frozen=True)
class BorderDifference:
    layers: tuple[LayerDifference, ...]
    logits: float  # largest |difference|
    probability: float  # largest |difference|
    other_answers: int  # pictures whose most probable class is another one
    pictures: int


@torch.inference_mode()
def border_difference(network: TwoTowerAlexNet, images: Sequence[torch.Tensor]) -> BorderDifference:
    """Compare a network with itself with the border put in. images: (N, 3, crop, crop) on each tower's device.

    Raises UserError for a network whose normalisation doesn't cross the border of two towers."""
    recipe = network.recipe
    if not recipe.lrn_crosses or recipe.towers == 1:
        raise UserError(f"recipe {recipe.name} has no normalisation that sees across a border of towers (lrn_crosses)")
    was_training = network.training
    merged_network = network.eval().merge()
    network.train(was_training)
    border_recipe = replace(recipe, lrn_crosses=False)
    layers, x = [], images[0]
    for module in merged_network.children():
        output = module(x)
        if "lrn" in module.layer.then:
            module.recipe = border_recipe
            layers.append(_of_layer(module.layer.name, output, module(x)))
            module.recipe = recipe
        x = output
    for module in merged_network.children():
        module.recipe = border_recipe
    logits, border_logits = x.double(), merged_network(images[0]).double()
    return BorderDifference(
        tuple(layers),
        (logits - border_logits).abs().max().item(),
        (logits.softmax(1) - border_logits.softmax(1)).abs().max().item(),
        int((logits.argmax(1) != border_logits.argmax(1)).sum()),
        len(logits),
    )


def _of_layer(name, output, border_output):
    difference = (output - border_output).double().abs().transpose(0, 1).flatten(1)  # (maps, the rest)
    maps = difference.amax(1).nonzero().flatten().tolist()
    if not maps:
        return LayerDifference(name, (), len(difference), 0.0, 0.0)
    values = output.double().abs().transpose(0, 1).flatten(1)[maps]
    change = difference[maps]
    return LayerDifference(
        name, tuple(maps), len(difference), (change.max() / values.max()).item(), (change.mean() / values.mean()).item()
    )
