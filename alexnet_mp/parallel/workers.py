"""What the workers of a network that is divided two ways send each other (Krizhevsky 2014, "One weird trick").

Convolutions are divided by images: every worker has all of them, and computes some images of the minibatch. Fully
connected layers are divided by units: every worker has a slice of each, and computes it for all images. At the border,
and between those layers, `share` puts together what each has a part of, and backward `give_back` brings each worker the
sum of what all have for its part. Only the gradients of the convolutions are added (`sum`): no weight travels
in a step, and of the fully connected layers no gradient of one either."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

from ..system.ranks import Ranks
from .pairs import Pairs, flat

TAGS = 1 << 20
Value = TypeVar("Value")
Arrival = Callable[[], torch.Tensor]  # waits for what was begun, on a GPU without the host


class Workers:
    """This process, worker `number` of `count`, with all that it has on one device. All methods have to be called by
    all workers, in step; each raises `Lost` where one can't be reached.

    ledger: (what, "forward" or "backward", bytes that all workers sent together) since `clear`."""

    def __init__(self, ranks: Ranks, device: torch.device):
        self.ranks, self.number, self.count, self.device = ranks, ranks.pair, ranks.pairs, device
        self.pairs = Pairs(ranks, [device])
        self.ledger, self.swaps = [], 0

    def clear(self) -> None:
        self.ledger = []

    def gather(self, value: Value) -> list[Value]:
        """Every worker's value."""
        return self.ranks.gather(value)

    def share(self, what: str, part: torch.Tensor, places: Sequence[slice], dim: int) -> Arrival:
        """Begin to put together a tensor of which each worker k has the `part` that lies at places[k] of `dim`, without
        gaps: gives it whole, in all workers. On a GPU the part must not change meanwhile."""
        if self.count == 1:
            return lambda: part
        self._enter(what, "forward", part, places, dim)
        part = part.contiguous()
        shapes = [_with(part.shape, dim, _length(place)) for place in places]
        parts = [part if k == self.number else part.new_empty(shape) for k, shape in enumerate(shapes)]
        arrive = self.swap([part] * self.count, parts)

        def join():
            arrive()
            return torch.cat(parts, dim)

        return join

    def give_back(self, what: str, whole: torch.Tensor, places: Sequence[slice], dim: int) -> Arrival:
        """The way back: begin to add up the whole tensors, which each worker has one of; worker k gets the sum's part
        at places[k] of `dim`. It is added in the order of the workers."""
        if self.count == 1:
            return lambda: whole
        self._enter(what, "backward", whole, places, dim)
        parts = [whole.narrow(dim, place.start, _length(place)).contiguous() for place in places]
        own = parts[self.number]
        contributions = [own if k == self.number else torch.empty_like(own) for k in range(self.count)]
        arrive = self.swap(parts, contributions)

        def total():
            arrive()
            return sum(contributions[1:], start=contributions[0])

        return total

    def sum(self, what: str, gradients: list[torch.Tensor]) -> list[torch.Tensor]:
        """Of all workers' gradients. The ledger has what a ring sends, whatever way the library goes."""
        if self.count > 1:
            size = sum(tensor.numel() * tensor.element_size() for tensor in gradients)
            self.ledger.append((what, "backward", 2 * (self.count - 1) * size))
        return self.pairs.sum(gradients)

    def in_first(self, part: torch.Tensor) -> list[torch.Tensor]:
        """Every worker's slice of one tensor in the first one's host memory, for a checkpoint; in the others their own
        alone. Slices differ in their first dimension."""
        own = part.detach().cpu().contiguous()
        lengths = self.gather(len(own))
        if self.number:
            self.swap([own, *[None] * (self.count - 1)], [None] * self.count)()
            return [own]
        slices = [own, *(own.new_empty(length, *own.shape[1:]) for length in lengths[1:])]
        self.swap([None] * self.count, slices)()
        return slices

    def swap(
        self, outgoing: Sequence[torch.Tensor | None], incoming: Sequence[torch.Tensor | None]
    ) -> Callable[[], None]:
        """Begin to send outgoing[k] to each other worker k, and to receive incoming[k]; None and what is empty don't
        travel. Returns what waits for all of it: everything that is sent or received has to stay until then."""
        self.swaps += 1
        tensors = [
            (what, tensor, k)
            for what, buffers in ((dist.isend, outgoing), (dist.irecv, incoming))
            for k, tensor in enumerate(buffers)
            if k != self.number and tensor is not None and tensor.numel()
        ]
        if not tensors:
            return lambda: None
        group = self.pairs.groups.get(tensors[0][1].device)  # None, that of all, for what is on the host
        with self.ranks.reached():
            works = dist.batch_isend_irecv(
                [
                    # A tag of their own, since several are under way.
                    dist.P2POp(what, flat(tensor).view(torch.uint8), k, group, self.swaps % TAGS)
                    for what, tensor, k in tensors
                ]
            )

        def wait():
            with self.ranks.reached():
                for work in works:
                    work.wait()
            tensors.clear()

        return wait

    def _enter(self, what, pass_, tensor, places, dim):
        """Every part goes to all others, or comes from them."""
        values = math.prod(_with(tensor.shape, dim, sum(map(_length, places))))
        self.ledger.append((what, pass_, (self.count - 1) * values * tensor.element_size()))


class Shared(torch.autograd.Function):
    """The whole of what each worker has a part of, see `Workers.share`; its gradient is given back. alike: all workers
    have the same gradient, as that of the logits, from which each computes the loss: then each takes its part."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        workers: Workers,
        what: str,
        part: torch.Tensor,
        places: Sequence[slice],
        alike: bool,
    ) -> torch.Tensor:
        ctx.way = workers, what, places, alike
        tensor = workers.share(what, part, places, 1)()
        return tensor.view_as(tensor)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> tuple:
        workers, what, places, alike = ctx.way
        own = gradient[:, places[workers.number]] if alike else workers.give_back(what, gradient, places, 1)()
        return None, None, own, None, None


def places_of(lengths: Sequence[int]) -> list[slice]:
    """Where parts of these lengths lie, one behind the other."""
    ends = [sum(lengths[: number + 1]) for number in range(len(lengths))]
    return [slice(end - length, end) for end, length in zip(ends, lengths)]


def _length(place):
    return place.stop - place.start


def _with(shape, dim, length):
    return [length if axis == dim else extent for axis, extent in enumerate(shape)]
