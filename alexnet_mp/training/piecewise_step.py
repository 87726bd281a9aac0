"""A training step of which each pair of towers computes a part, in pieces: the gradients are added before the update.

Every pair has all weights of its towers, and updates them by the same sum. With a microbatch that sum is a fixed tree
over the pieces (`parallel/tree_sum.py`), so that its bits depend on no number of pairs; without, it is the library's
all-reduce. The loss is a sum over the images, divided by their number in the whole minibatch."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from ..network.exchange import Entry
from ..network.network import TwoTowerAlexNet
from ..parallel.pairs import Pairs
from ..parallel.pieces import Pieces
from ..parallel.tree_sum import TreeSum
from ..recipes import shapes
from .step import loss_and_right
from .update_rule import PaperSGD


class PiecewiseStep:
    """Takes steps of a `TwoTowerAlexNet` by a `PaperSGD`, as `TrainingStep` does.

    pairs: with whom; pieces: what is computed here.
    """

    def __init__(self, network: TwoTowerAlexNet, optimizer: PaperSGD, pairs: Pairs, pieces: Pieces):
        self.network, self.optimizer, self.pairs, self.pieces = network, optimizer, pairs, pieces
        self.crossed, self.rows = [], 1  # of the last piece: its ledger, its images

    def __call__(
        self,
        images: Sequence[torch.Tensor],
        labels: torch.Tensor,
        check_loss: Callable[[torch.Tensor], None],
        count: int,
    ) -> list[torch.Tensor]:
        """images, labels: of `Pieces.read`, else as `TrainingStep` has them; count: images of the minibatch. Returns
        what `TrainingStep` does, of the whole minibatch, in every pair."""
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        *gradients, numbers = self._sum(self._terms(images, labels, parameters, count), parameters, count)
        loss, right = numbers
        check_loss(loss)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        return [loss, right, *(self.optimizer.step(device)[0] for device in self.optimizer.devices())]

    def _sum(self, terms, parameters, count):
        """Of all pieces, wherever they are computed; the same in all pairs."""
        like = [*parameters, torch.empty(2, dtype=torch.float64, device=self.network.exchange.devices[0])]
        if not self.pieces.microbatch:
            _, term = next(terms, (None, None))
            return self.pairs.sum(term or [torch.zeros_like(tensor) for tensor in like])
        tree = TreeSum(
            self.pieces.number(count), lambda piece: self.pieces.owner(piece, count), self.pieces.pair, like, self.pairs
        )
        for piece, term in terms:
            tree.add(piece, term)
        return self.pairs.from_first(tree.total(), like)

    def _terms(self, images, labels, parameters, count):
        """(number, term) of each piece that is computed here."""
        own_pieces, offset = self.pieces.own(count), self.pieces.read(count).start
        if not own_pieces:
            self.network.count_step()
        for piece in own_pieces:
            rows = self.pieces.rows(piece, count)
            part = slice(rows.start - offset, rows.stop - offset)
            inputs = [tensor[part] for tensor in images]
            if images[0] is images[-1]:  # on one device: the network then pads them once
                inputs = inputs[:1] * len(images)
            yield piece, self._term(inputs, labels[part], parameters, count, rows.start, piece == own_pieces[0])

    def _term(self, images, labels, parameters, count, first_row, begins):
        """[gradients, (loss, right answers)] of a piece."""
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.network(*images, first_row=first_row, begins_step=begins)
        judge = partial(loss_and_right, kernels=self.network.kernels, count=count)
        loss, right = self.network.exchange.share_loss(judge, logits, labels)
        if loss.requires_grad:  # not where every layer is frozen
            loss.backward()
        self.crossed, self.rows = self.network.ledger(), len(labels)
        gradients = [dense_like(parameter.grad, parameter) for parameter in parameters]
        return [*gradients, torch.stack([loss.detach().double(), right.double()])]

    def describe_sum(self) -> str:
        """What the pairs add up in a step, for the line on the exchange."""
        size = shapes.BYTES_FP32 * sum(shapes.parameter_counts(self.network.recipe, self.network.classes))
        bits = "" if self.pieces.microbatch else "; without --microbatch the last bits depend on the number of pairs"
        return f"; {self.pairs.count} pairs of towers add up their gradients, {size / 1e6:,.2f} MB each{bits}"

    def ledger(self, count: int) -> list[Entry]:
        """What crossed between the towers of all pairs in a step of so many images: a piece's is in proportion."""
        return [replace(entry, bytes=entry.bytes * count // self.rows) for entry in self.crossed]


def dense_like(gradient: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """The gradient in the parameter's memory order, as it is sent and added."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)
