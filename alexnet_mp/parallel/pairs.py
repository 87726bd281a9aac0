"""The pairs of towers of a job, each of which computes a part of every minibatch: how gradients go between them."""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from ..system.ranks import Ranks
from .tree_sum import Term


class Pairs:
    """This process's pair, number `pair` of `count`, and the same tower's processes in the others.

    All methods have to be called by all pairs, in step; each raises `Lost` where one can't be reached. Tensors on GPUs
    travel by NCCL, those on the host by gloo."""

    def __init__(self, ranks: Ranks, devices: Sequence[torch.device]):
        """devices: of the towers here."""
        self.ranks, self.pair, self.count = ranks, ranks.pair, ranks.pairs
        groups = ranks.groups[ranks.tower :] if ranks.apart else ranks.groups
        self.groups = dict(zip(dict.fromkeys(devices), groups))  # of each device
        # NCCL wants all processes of a group at its first operation; a pair may have no image of the first minibatch.
        self.sum([torch.zeros(1, device=device) for device in self.groups])

    def send(self, term: Term, to: int) -> None:
        """To a pair, which receives it."""
        self._travel(dist.isend, term, to)

    def receive(self, like: Sequence[torch.Tensor], origin: int) -> Term:
        """What a pair sends, of these shapes, dtypes and strides."""
        term = [torch.empty_like(tensor) for tensor in like]
        self._travel(dist.irecv, term, origin)
        return term

    def _travel(self, what, term, pair):
        """In one batch a device: NCCL would make a communicator of their own for two that send one by one."""
        with self.ranks.reached():
            works = []
            for device, group in self.groups.items():
                operations = [
                    dist.P2POp(what, flat(tensor), self._rank(pair), group)
                    for tensor in term
                    if tensor.device == device
                ]
                works += dist.batch_isend_irecv(operations) if operations else []
            for work in works:
                work.wait()

    def from_first(self, term: Term | None, like: Sequence[torch.Tensor]) -> Term:
        """The first pair's, in all of them."""
        term = [torch.empty_like(tensor) for tensor in like] if term is None else term
        with self.ranks.reached():
            for tensor in term if self.count > 1 else ():
                dist.broadcast(flat(tensor), self._rank(0), group=self.groups[tensor.device])
        return term

    def sum(self, term: Term) -> Term:
        """Of all pairs' terms, in whatever order the library adds them: the same bits in all pairs."""
        if self.count == 1:
            return term
        with self.ranks.reached():
            works = [dist.all_reduce(flat(tensor), group=self.groups[tensor.device], async_op=True) for tensor in term]
            for work in works:
                work.wait()
        return term

    def _rank(self, pair):
        return pair * self.ranks.towers + self.ranks.tower


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """A view of a dense tensor's memory, as it lies: a channels_last one is sent without a copy."""
    return tensor.as_strided((tensor.numel(),), (1,))
