"""A training step of workers that divide the convolutions by images and the fully connected layers by units
(Krizhevsky 2014, "One weird trick").

The convolutions see the whole minibatch, and are updated once. The fully connected layers take `fc_batch_size` images
of it at a time, in their order, and are updated after each: his scheme (b), in which one worker after the other tells
all others its last maps, if each worker has so many images. How many workers there are changes nothing else, so that
one worker takes the same steps as many, within rounding. The loss of some images is the mean over these; the gradient
that the convolutions get is of the mean over the minibatch."""

from collections import Counter
from collections.abc import Callable, Sequence

import torch

from ..network.exchange import Entry
from ..network.worker_network import WorkerAlexNet
from ..parallel.pieces import Pieces
from ..parallel.workers import places_of
from .piecewise_step import dense_like
from .step import loss_and_right
from .update_rule import PaperSGD


class WorkerStep:
    """Takes steps of a `WorkerAlexNet` by a `PaperSGD`, as `TrainingStep` does. pieces: what is read here."""

    def __init__(self, network: WorkerAlexNet, optimizer: PaperSGD, pieces: Pieces):
        self.network, self.optimizer, self.pieces, self.workers = network, optimizer, pieces, network.workers
        self.convolved = network.layer_parameters().keys() - network.connected

    def __call__(
        self,
        images: Sequence[torch.Tensor],
        labels: torch.Tensor,
        check_loss: Callable[[torch.Tensor], None],
        count: int,
    ) -> list[torch.Tensor]:
        """images, labels: of `Pieces.read`; count: images of the minibatch. Returns what `TrainingStep` does, of the
        whole minibatch, in every worker; the sums of the weights are of those here. check_loss is called before each
        update of the fully connected layers, with the loss of the images that it is of."""
        network, workers = self.network, self.workers
        workers.clear()
        rows = self.pieces.rows_of_all(count)
        span = rows[workers.number]
        network.count_step(first_row=span.start)
        maps = network.convolve(images[0]) if span.stop > span.start else images[0].new_empty(0, network.width)
        labels = workers.share("labels", labels[: len(maps)], rows, 0)()
        size = network.recipe.fc_batch_size
        parts = [slice(start, min(start + size, count)) for start in range(0, count, size)]
        # alike in all workers
        parameters = [parameter for parameter in self._convolutions() if parameter.requires_grad]
        numbers, returns, sums = [], [], []
        arrival = self._begin(maps, rows, parts[0])
        for part, next_part in zip(parts, [*parts[1:], None]):
            part_maps = arrival().requires_grad_(bool(parameters))
            if next_part:  # travels while these are computed
                arrival = self._begin(maps, rows, next_part)
            loss, right = self._connected_pass(part_maps, labels[part], part.start, check_loss)
            weight = (part.stop - part.start) / count
            numbers.append((loss * weight, right))
            if parameters:
                returns.append(workers.give_back(network.border, part_maps.grad * weight, _within(rows, part), 0))
            sums = self.optimizer.step(only=network.connected)
        gradients = [arrive() for arrive in returns]
        if gradients and len(maps):
            maps.backward(torch.cat(gradients))
        sums = [*self._update_convolutions(parameters), *sums]
        loss, right = (torch.stack(terms).sum() for terms in zip(*numbers))
        return [loss, right, *([torch.cat(sums)] if sums else [])]

    def _begin(self, maps, rows, part):
        """Begin to bring the last maps of a part of the minibatch to all workers."""
        span = rows[self.workers.number]
        start, stop = max(span.start, part.start) - span.start, min(span.stop, part.stop) - span.start
        own_maps = maps.detach()[start : max(start, stop)]
        return self.workers.share(self.network.border, own_maps, _within(rows, part), 0)

    def _connected_pass(self, maps, labels, first_row, check_loss):
        """(loss, right answers), after a forward and a backward pass through the fully connected layers."""
        self.optimizer.zero_grad(set_to_none=True)
        self.network.count_step(begins=False, first_row=first_row)
        logits = self.network.connect(maps)
        loss, right = loss_and_right(logits, labels, self.network.kernels)
        check_loss(loss)
        if loss.requires_grad:  # not where every layer is frozen
            loss.backward()
        return loss.detach(), right

    def _update_convolutions(self, parameters):
        """By the sum of all workers' gradients. Returns the sums of the weights."""
        gradients = [
            torch.zeros_like(parameter) if parameter.grad is None else dense_like(parameter.grad, parameter)
            for parameter in parameters
        ]
        for parameter, gradient in zip(parameters, self.workers.sum("convolutions", gradients) if parameters else ()):
            parameter.grad = gradient
        return self.optimizer.step(only=self.convolved)

    def _convolutions(self):
        return [parameter for layer in self.network.convolutions for parameter in layer.parameters()]

    def describe_sum(self) -> str:
        """What the line on the exchange has of sums, for several workers."""
        return "; the last bits depend on the number of workers"

    def ledger(self, count: int) -> list[Entry]:
        """What all workers sent in the last step, together."""
        total = Counter()
        for what, pass_, size in self.workers.ledger:
            total[what, pass_] += size
        return [Entry(what, "all", pass_, size) for (what, pass_), size in total.items()]


def _within(rows, part):
    """Where the images of each worker lie in a part of the minibatch. rows: of each in the minibatch."""
    return places_of([max(0, min(place.stop, part.stop) - max(place.start, part.start)) for place in rows])
