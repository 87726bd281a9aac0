"""A sum of many terms in an order that doesn't know who has them: the fixed binary tree over their numbers.

Terms 2i and 2i + 1 are added, then the sums of pairs, and so on; a term without a neighbour goes up as it is. So the
sum has the same bits wherever the terms are made, and as long as each is added where it is made, only log2 of their
number are kept."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

Term = list[torch.Tensor]


class Between(Protocol):
    """How a term goes from one owner to another; all tensors of a job's terms have the same shapes and dtypes."""

    def send(self, term: Term, to: int) -> None: ...

    def receive(self, like: Sequence[torch.Tensor], origin: int) -> Term: ...


class TreeSum:
    """The sum of terms 0 to count - 1, lists of tensors. owner(number) -> who makes a term; each owner makes its own in
    their order and none comes back to one (0, 0, 1, 3, ...). here: the owner that this process is.

    like: tensors of a term's shapes and dtypes. A term's tensors are written to."""

    def __init__(
        self, count: int, owner: Callable[[int], int], here: int, like: Sequence[torch.Tensor], between: Between | None
    ):
        self.count, self.owner, self.here, self.like, self.between = count, owner, here, like, between
        self.nodes = {}  # (level, number): the sum of terms number << level to (number + 1) << level

    def add(self, number: int, term: Term) -> None:
        """A term of this owner; sums that can be made of what is here are made."""
        self.nodes[0, number] = term
        level = 0
        while number % 2 and (level, number - 1) in self.nodes:
            self._add_right(level, number - 1, self.nodes.pop((level, number)))
            level, number = level + 1, number // 2

    def total(self) -> Term | None:
        """The sum, at the owner of term 0; None elsewhere. All owners have to call it, in step."""
        level, nodes = 0, self.count
        while nodes > 1:
            for left in range(0, nodes - 1, 2):
                self._join(level, left)
            if nodes % 2 and (level, nodes - 1) in self.nodes:  # goes up as it is
                self.nodes[level + 1, nodes // 2] = self.nodes.pop((level, nodes - 1))
            level, nodes = level + 1, -(-nodes // 2)
        return self.nodes.pop((level, 0), None)

    def _join(self, level, left):
        to, origin = (self.owner(number << level) for number in (left, left + 1))
        if self.here == to == origin:
            if (level, left) in self.nodes:  # not where `add` has done it
                self._add_right(level, left, self.nodes.pop((level, left + 1)))
        elif self.here == origin:
            self.between.send(self.nodes.pop((level, left + 1)), to)
        elif self.here == to:
            self._add_right(level, left, self.between.receive(self.like, origin))

    def _add_right(self, level, left, term):
        node = self.nodes.pop((level, left))
        for tensor, summand in zip(node, term, strict=True):
            tensor.add_(summand)
        self.nodes[level + 1, left // 2] = node
