"""One picture through both towers: the maps of the strongest kernels, what crosses, and the answer; whole, with either
tower off, and with the links cut."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..network.network import TwoTowerAlexNet
from ..recipes.shapes import BYTES_FP32
from .layer_outputs import Outputs, layer_outputs, links

KERNELS = 8  # shown of a layer and tower


@dataclass(frozen=True)
class Side:
    """What one tower makes of the picture in one layer."""

    kernels: np.ndarray  # (K,) int64, the strongest of the whole network, strongest first; (0,) of units without maps
    maps: np.ndarray  # (K, height, width) float32 of these; (1, height, width) of units without maps, in their order
    units: int  # of the tower
    off: bool  # what is shown is the mean over the data
    change: float | None  # see `relative_change`; None where nothing was silenced


@dataclass(frozen=True)
class LayerView:
    """One layer in one state. Brightness goes from low to high in all states."""

    name: str
    sides: tuple[Side, ...]
    low: float
    high: float


@dataclass(frozen=True)
class Link:
    """A tensor that one tower reads of the other, of this picture."""

    layer: str  # that reads it
    direction: str  # "a->b"
    shape: tuple[int, ...]
    bytes: int  # in float32
    zeros: float  # share of its values
    own: float  # root mean square, over the reader's units, of what the reader's own half adds to their sums
    other: float  # and the other's half


@dataclass(frozen=True)
class State:
    """The network as a whole, or with something of it silenced."""

    name: str
    off: tuple[int, ...]
    cut: tuple[str, ...]
    probabilities: np.ndarray  # (classes,) float64
    layers: tuple[LayerView, ...]


@dataclass(frozen=True)
class OnePicture:
    states: tuple[State, ...]  # the whole network first
    links: tuple[Link, ...]


def through(network: TwoTowerAlexNet, images: Sequence[torch.Tensor], means: Outputs | None) -> OnePicture:
    """One picture through a network in test mode. images: (1, 3, crop, crop), once on each tower's device. means: of
    `layer_outputs.mean_outputs`; None: the whole network is shown alone, as it is of one tower."""
    ways = [("the whole network", (), ())]
    if network.recipe.towers == 2 and means is not None:
        ways += [("tower a off", (0,), ()), ("tower b off", (1,), ())]
        ways += [("links cut", (), tuple(links(network.recipe)))] if links(network.recipe) else []
    outputs = [layer_outputs(network, images, means, off, cut) for _, off, cut in ways]
    whole, views = outputs[0], {}
    for layer in network.recipe.layers[:-1]:
        choices = [strongest(output[0]) for output in whole[layer.name]]
        state_maps = [
            [shown_maps(output[0], kernels) for output, kernels in zip(features[layer.name], choices)]
            for features in outputs
        ]
        low = min(0.0, *(float(maps.min()) for sides in state_maps for maps in sides))
        high = max(float(maps.max()) for sides in state_maps for maps in sides)
        views[layer.name] = [
            LayerView(
                layer.name,
                tuple(
                    Side(
                        kernels,
                        maps,
                        whole[layer.name][tower].shape[1],
                        tower in off,
                        relative_change(features[layer.name][tower], whole[layer.name][tower]) if off or cut else None,
                    )
                    for tower, (kernels, maps) in enumerate(zip(choices, sides))
                ),
                low,
                high,
            )
            for (_, off, cut), features, sides in zip(ways, outputs, state_maps)
        ]
    states = [
        State(name, off, cut, _probabilities(network, features), tuple(of_layer[number] for of_layer in views.values()))
        for number, ((name, off, cut), features) in enumerate(zip(ways, outputs))
    ]
    return OnePicture(tuple(states), tuple(crossing(network, whole)))


def strongest(output: torch.Tensor, count: int = KERNELS) -> np.ndarray:
    """The numbers of the kernels with the largest mean absolute output, strongest first, of equals the first; none of
    units without maps. output: (maps, height, width) or (units,)."""
    if output.dim() == 1:
        return np.empty(0, np.int64)
    strength = output.double().abs().mean((1, 2))
    return strength.sort(descending=True, stable=True).indices[:count].cpu().numpy()


def shown_maps(output: torch.Tensor, kernels: np.ndarray) -> np.ndarray:
    """(K, height, width) float32 of an output's kernels; units without maps as one, row by row, padded with zeros."""
    values = output.float().cpu().numpy()
    if values.ndim == 3:
        return values[kernels]
    width = math.ceil(math.sqrt(2 * len(values)))
    return np.pad(values, (0, -len(values) % width)).reshape(1, -1, width)


def relative_change(output: torch.Tensor, before: torch.Tensor) -> float:
    """The length of what changed over that of what was there before; infinite where nothing was."""
    change, length = (output.double() - before.double()).norm().item(), before.double().norm().item()
    return change / length if length else (math.inf if change else 0.0)


@torch.inference_mode()
def crossing(network: TwoTowerAlexNet, outputs: Outputs) -> list[Link]:
    """What crosses for one picture, layer by layer. outputs: of `layer_outputs`, N = 1.

    A unit of a layer that reads both towers is a sum over its own tower's half of what it reads, and over the other's;
    the two root mean squares over all units of the reader, before bias and everything else, say which half counts."""
    crossings, before = [], None
    for layer in network.recipe.layers:
        if layer.reads == "both" and network.recipe.towers == 2:
            for reader, tower in enumerate(network.towers):
                if layer.towers == "first" and reader:
                    continue
                module = getattr(tower, layer.name)
                own, other = module.halves(reader == 0)(module.weight)
                inputs = [half.to(module.weight) for half in outputs[before]]
                sums = [
                    module.product(half, weight, None).double().square().mean().sqrt().item()
                    for half, weight in ((inputs[reader], own), (inputs[1 - reader], other))
                ]
                tensor = outputs[before][1 - reader]
                crossings.append(
                    Link(
                        layer.name,
                        "a->b" if reader else "b->a",
                        tuple(tensor.shape[1:]),
                        tensor.numel() * BYTES_FP32,
                        (tensor == 0).double().mean().item(),
                        *sums,
                    )
                )
        before = layer.name
    return crossings


def _probabilities(network, outputs):
    return outputs[network.recipe.layers[-1].name][0][0].double().softmax(0).cpu().numpy()
