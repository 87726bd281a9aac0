"""A network with some of its maps silenced: what reads them sees their mean over the data instead, which says nothing
of the picture and is what the reader is used to.

Layers are functions of the outputs of the layer before. So each batch goes through the whole network once, and each
lesion begins with what was before the first layer that it touches."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields

import numpy as np
import torch

from ..data.dataset import Split
from ..data.image_files import pipeline_of
from ..data.pixel_statistics import Statistics
from ..evaluation.accuracy import topk_credit_each
from ..evaluation.protocol import centre_view
from ..network.network import TwoTowerAlexNet
from ..recipes import shapes
from ..recipes.recipe import Layer, Recipe

# {layer that reads: (readers, towers, maps) bool, which maps of which tower the reader sees at their mean}
Off = Mapping[str, np.ndarray]
# {layer that reads: what the layer before gives on the average, of each tower: (maps, height, width) or (units,)}
Means = Mapping[str, Sequence[torch.Tensor]]
AT_ONCE = 256  # pictures


@dataclass(frozen=True)
class Judged:
    """What a network says of N pictures, once for each of several lesions."""

    right: np.ndarray  # (lesions, N) bool; a label that ties with another class is not right, NaN never is
    loss: np.ndarray  # (lesions, N) float64, nats
    answers: np.ndarray  # (lesions, N) int64, the most probable class


def meeting_layers(recipe: Recipe) -> list[str]:
    """The names of the layers at which two towers meet, first to last; none of one tower."""
    return [layer.name for layer in recipe.layers if layer.reads == "both" and recipe.towers == 2]


def maps_read(recipe: Recipe, name: str) -> int:
    """How many maps, or units, of each tower a layer that is not the first reads."""
    names = [layer.name for layer in recipe.layers]
    return shapes.sizes(recipe)[names.index(name) - 1].output[0]


def nothing_off(recipe: Recipe, name: str) -> np.ndarray:
    """(readers, towers, maps) of False, for a layer."""
    return np.zeros((recipe.towers, recipe.towers, maps_read(recipe, name)), bool)


def tower_off(recipe: Recipe, tower: int, names: Sequence[str]) -> Off:
    """A tower silenced at some layers: whoever reads it there."""
    off = {name: nothing_off(recipe, name) for name in names}
    for mask in off.values():
        mask[:, tower] = True
    return off


def link_off(recipe: Recipe, source: int, reader: int, names: Sequence[str]) -> Off:
    """A link cut at some layers: one tower alone doesn't see the other."""
    off = {name: nothing_off(recipe, name) for name in names}
    for mask in off.values():
        mask[reader, source] = True
    return off


def random_halves(towers: int, maps: int, draws: int, seed: int) -> np.ndarray:
    """As many maps as a tower has, drawn from those of all towers: (draws, towers, maps) bool."""
    random = np.random.default_rng([seed, maps])
    half = np.arange(towers * maps) < maps
    return random.permuted(np.tile(half, (draws, 1)), axis=1).reshape(draws, towers, maps)


def seen_by(network: TwoTowerAlexNet, statistics: Statistics, pictures: np.ndarray) -> list[torch.Tensor]:
    """What each tower sees of stored pictures under the centre view: (n, 3, crop, crop) on its device."""
    pipeline = pipeline_of(pictures, network.recipe, network.exchange.devices, statistics)
    with closing(pipeline.views("given", len(pictures), centre_view(network.recipe))) as batches:
        views, _ = next(batches)
        return next(views)


@torch.inference_mode()
def means_of(network: TwoTowerAlexNet, batches: Iterable[Sequence[torch.Tensor]]) -> Means:
    """The `Means` of all layers but the first, over batches of what the towers see; float32, each tower's on its
    device. The network is in test mode."""
    sums, count = {}, 0
    for images in batches:
        for layer, outputs in list(_through(network, images))[1:-1]:
            of_batch = [output.sum(0, dtype=torch.float64) for output in outputs]
            sums[layer.name] = [sum(pair) for pair in zip(sums.get(layer.name, [0] * len(of_batch)), of_batch)]
        count += len(images[0])
    return {name: [(total / count).float() for total in totals] for name, totals in sums.items()}


@torch.inference_mode()
def judge(
    network: TwoTowerAlexNet, images: Sequence[torch.Tensor], labels: np.ndarray, offs: Sequence[Off], means: Means
) -> Judged:
    """The `Judged` of a batch, once for each lesion of `offs`; {} is the network as it is.

    images: what each tower sees; labels: (n,) int64, -1 of a picture without one, which is never right and has a loss
    of NaN. The network is in test mode."""
    layers, labels = network.recipe.layers, torch.from_numpy(np.asarray(labels, np.int64))
    steps = list(_through(network, images))
    rows = []
    for off in offs:
        start = next((place for place, layer in enumerate(layers) if layer.name in off), len(layers))
        outputs = steps[start][1]
        for layer in layers[start:]:
            outputs = network.compute(layer, _silenced_parts(layer, arrived(network, layer, outputs), off, means))
        logs = outputs[0].double().cpu().log_softmax(1)
        own_logs = logs.gather(1, labels.clamp(min=0)[:, None])[:, 0]
        right = (topk_credit_each(logs, labels.clamp(min=0))[0] == 1) & (labels >= 0)
        rows.append((right, -own_logs.where(labels >= 0, torch.nan), logs.argmax(1)))
    network.exchange.clear()
    return Judged(*(torch.stack(field).numpy() for field in zip(*rows)))


def judge_all(
    network: TwoTowerAlexNet,
    statistics: Statistics,
    split: Split,
    numbers: np.ndarray,
    alterations: Mapping[str, Callable[[np.ndarray], np.ndarray]],
    offs: Sequence[Off],
    advance: Callable[[int], None],
) -> dict[str, Judged]:
    """{name of an alteration: `Judged`} over the pictures `numbers` of a split, altered as stored pictures.

    What is off is at its mean over the pictures as they are. statistics: of the network's run. advance(n) is called for
    every n pictures of an alteration."""
    means = means_of(network, (seen_by(network, statistics, pictures) for pictures, _ in _in_batches(split, numbers)))
    judgements = {name: [] for name in alterations}
    for pictures, labels in _in_batches(split, numbers):
        for name, alter in alterations.items():
            judgements[name].append(judge(network, seen_by(network, statistics, alter(pictures)), labels, offs, means))
            advance(len(labels))
    return {
        name: Judged(*(np.concatenate([getattr(part, field.name) for part in parts], 1) for field in fields(Judged)))
        for name, parts in judgements.items()
    }


def _in_batches(split, numbers):
    """Yields stored pictures (n, size, size, 3) uint8 and their labels (n,) int64."""
    for start in range(0, len(numbers), AT_ONCE):
        batch = numbers[start : start + AT_ONCE]
        yield np.stack([split.read(number) for number in batch]), np.asarray(split.labels)[batch]


def _through(network, images):
    """Yields (layer, outputs of the layer before it), and last (None, outputs of the last layer)."""
    outputs = list(images[: network.recipe.towers])
    for layer in network.recipe.layers:
        yield layer, outputs
        outputs = network.compute(layer, arrived(network, layer, outputs))
    yield None, outputs


def arrived(network: TwoTowerAlexNet, layer: Layer, outputs: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    """As `TwoTowerAlexNet.read`, and everything has arrived."""
    return [
        [part if isinstance(part, torch.Tensor) else part.receive() for part in inputs]
        for inputs in network.read(layer, outputs)
    ]


def _silenced_parts(layer, parts, off, means):
    """The parts that a layer's towers read, with the maps that `off` has for it at their means."""
    if layer.name not in off:
        return parts
    substitutes = []
    for reader, inputs in enumerate(parts):
        sources = range(len(inputs)) if layer.reads == "both" else [reader]
        masks = [
            torch.tensor(off[layer.name][reader, source], device=part.device) for source, part in zip(sources, inputs)
        ]
        substitutes.append(
            [
                torch.where(mask.view(-1, *[1] * (part.dim() - 2)), means[layer.name][source].to(part.device), part)
                if mask.any()
                else part
                for source, part, mask in zip(sources, inputs, masks)
            ]
        )
    return substitutes
