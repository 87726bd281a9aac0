"""Forward and backward of towers on two devices, or in two processes, cut at every crossing into what one device
computes by itself: a graph can hold that.

torch's autograd goes through both devices in one backward pass, and lets one wait for the other on its own: no capture
can follow. Here a tower's layers from one that reads both to the next have a history of their own, and gradients are
handed on by hand. The operations and their order are those of `TrainingStep`, and so are the bits."""

from collections.abc import Sequence

import torch

from ..data.step_input import Uncropped, images_of
from ..network.layer import TowerLayer
from ..network.network import TwoTowerAlexNet
from ..network.split_product import SplitInputProduct
from ..network.tower import Tower
from .cuda_graphs import Tape
from .step import loss_and_right


def forward_and_backward(
    network: TwoTowerAlexNet, images: Sequence[torch.Tensor | Uncropped], labels: torch.Tensor, tape: Tape
) -> list[torch.Tensor]:
    """[loss, right answers], as `TrainingStep.forward_and_backward` has it; trained parameters get their gradients.

    network: with both towers, or that of this process. images: of its towers. tape: has run(tower, function,
    *arguments) -> what the function returns, a list of tensors; cross(edge, pass, outgoing, arriving) -> {tower:
    crossing}; receive(crossing) -> the tensor on the tower's device; told(tower a's numbers, dtype) -> the numbers
    (`cuda_graphs.Tape`)."""
    network.exchange.clear()
    for layer in (layer for tower in network.towers for layer in tower.children()):
        layer.first_row = 0  # the whole minibatch; before, the network may have computed a part of one
    runs = _runs(network.recipe.layers)
    stages = _forward(network, runs, images, labels, tape)
    loss_segment = stages[-1].get(0)
    numbers = tape.told(loss_segment and loss_segment.results, network.dtype)
    _backward(runs, stages, tape)
    return numbers


def _forward(network, runs, images, labels, tape):
    """[{tower: its segment}, ...] in the order of the layers."""

    def answer(logits):
        return loss_and_right(logits.to(network.dtype), labels, network.kernels)

    stages = []
    for layers in runs:
        segments = {
            tower.index: Segment(tower, [getattr(tower, layer.name) for layer in layers if hasattr(tower, layer.name)])
            for tower in network.towers
            if hasattr(tower, layers[0].name)
        }
        if layers is runs[-1] and 0 in segments:
            segments[0].finish = answer
        if not stages:
            for (tower, segment), image in zip(segments.items(), images):
                segment.results = tape.run(tower, segment.start, image)
        else:
            input_segments = stages[-1]
            outgoing = {
                tower: source.results[0] for tower, source in input_segments.items() if _reads(layers, 1 - tower)
            }
            arriving = {tower: input_segments[tower].results[0] for tower in segments}
            crossings = tape.cross(layers[0].name, "forward", outgoing, arriving)
            for tower, segment in segments.items():
                source = input_segments[tower]
                # in both processes the same layers are trained
                needs_grad = source.trained, input_segments.get(1 - tower, source).trained
                tape.run(tower, segment.begin, source.results[0], needs_grad, tower == 0)
                segment.results = tape.run(tower, segment.end, tape.receive(crossings[tower]))
        stages.append(segments)
    return stages


def _backward(runs, stages, tape):
    # {tower: of its outputs, to be summed}; the loss has none, and needs none
    gradients = dict.fromkeys(stages[-1], ())
    for number in range(len(runs) - 1, -1, -1):
        layers, segments, input_segments = runs[number], stages[number], stages[number - 1] if number else {}
        trained = {tower: segment for tower, segment in reversed(segments.items()) if segment.trained}
        returns = {tower: tape.run(tower, segment.backward, gradients[tower]) for tower, segment in trained.items()}
        outgoing = {tower: tensors[0] for tower, tensors in returns.items() if tensors}
        arriving = {
            tower: source.results[0]
            for tower, source in input_segments.items()
            if source.trained and _reads(layers, 1 - tower)
        }
        crossings = tape.cross(layers[0].name, "backward", outgoing, arriving) if outgoing or arriving else {}
        gradients = {tower: [] for tower in input_segments}
        for tower, segment in trained.items():
            if segment.split and segment.split.needs_more_grad:
                gradients[tower] += tape.run(tower, segment.backward_of_product)
        for tower in arriving:
            gradients[tower].append(tape.receive(crossings[tower]))


def _reads(layers, tower):
    """Whether a tower has these layers, and so reads what comes before them."""
    return tower == 0 or layers[0].towers == "each"


def _runs(layers):
    """The layers, cut before each that reads both towers."""
    runs = [[]]
    for layer in layers:
        if layer.reads == "both":
            runs.append([])
        runs[-1].append(layer)
    return runs


class Segment:
    """A tower's layers, from one that reads both towers (or the image) to the next that does.

    Forward: `start`, or `begin` and `end`; backward: `backward`, and `backward_of_product` where the first layer reads
    both. Results are what `finish` makes of the last maps, without history; backward begins at the first of them."""

    def __init__(self, tower: Tower, layers: Sequence[TowerLayer]):
        self.tower, self.layers, self.finish = tower, layers, lambda maps: (maps,)
        self.results = self.out = None  # out: the first result, with its history
        # Where the first layer reads both: its product, its result and that one's gradient; its operands, and the
        # parameters they are of.
        self.split = self.y = self.dy = self.weight = self.added = self.bias = None
        self.of_product = set()

    @property
    def trained(self) -> bool:
        """Whether anything here or before has a gradient."""
        return self.out.requires_grad

    def start(self, images: torch.Tensor | Uncropped) -> list[torch.Tensor]:
        """The first segment of all, where a training pass is counted."""
        self.tower.step += 1
        with torch.enable_grad():
            return self._go_on(self.layers[0](images_of(images), self.tower.step))

    def begin(self, own: torch.Tensor, needs_grad: tuple[bool, bool], own_is_first: bool) -> list[torch.Tensor]:
        """The product with the tower's own half. needs_grad: whether gradients of (own, other half) are needed."""
        layer = self.layers[0]
        with torch.enable_grad():
            self.weight, self.added, self.bias = layer.operands(own.dtype)
        self.of_product = {layer.weight} if self.added is None else {layer.weight, layer.bias}
        needs_grad = *needs_grad, self.weight.requires_grad, self.added is not None and self.added.requires_grad
        self.split = SplitInputProduct(
            layer.product, own, self.weight, layer.halves(own_is_first), self.added, needs_grad
        )
        self.split.begin()
        return []

    def end(self, other: torch.Tensor) -> list[torch.Tensor]:
        """The product with the other half, and the epilogue."""
        y = self.split.end(other)
        self.y = y.requires_grad_(self.split.other_needs_grad or self.split.needs_more_grad)
        with torch.enable_grad():
            return self._go_on(self.layers[0].apply_epilogue(y, self.bias, self.tower.step))

    def _go_on(self, maps):
        for layer in self.layers[1:]:
            maps = layer(maps, self.tower.step)
        self.out, *extras = self.finish(maps)
        return [self.out.detach(), *extras]

    def backward(self, gradients: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """All but the split product, and the gradient of the other half: [it], or [] where it isn't wanted.

        gradients: of the outputs, one or two to be summed; none where the output is the loss.
        """
        parameters = [
            parameter
            for layer in self.layers
            for parameter in layer.parameters()
            if parameter.requires_grad and parameter not in self.of_product
        ]
        y = [self.y] if self.y is not None and self.y.requires_grad else []
        input_gradients = torch.autograd.grad(
            self.out, [*y, *parameters], sum(gradients[1:], gradients[0]) if gradients else None
        )
        self.dy, *parameter_gradients = input_gradients if y else (None, *input_gradients)
        _set_gradients(parameters, parameter_gradients)
        gradient = self.split.gradient_of_other(self.dy) if y else None
        return [] if gradient is None else [gradient]

    def backward_of_product(self) -> list[torch.Tensor]:
        """The rest of the split product: [gradient of the own half], or [] where it isn't wanted."""
        own, *gradients = self.split.gradients(self.dy)
        pairs = [pair for pair in zip((self.weight, self.added), gradients, strict=True) if pair[1] is not None]
        parameters = [parameter for parameter in self.of_product if parameter.requires_grad]
        if parameters:
            operands, gradients = zip(*pairs)
            _set_gradients(parameters, torch.autograd.grad(operands, parameters, gradients))
        return [] if own is None else [own]


def _set_gradients(parameters, gradients):
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
