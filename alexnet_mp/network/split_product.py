"""The product of a layer that reads both towers, by halves: what needs nothing from the other tower is computed while
its half flies.

y = product(own half, its weights, bias) + product(other half, its weights). Backward, the other half's gradient is
computed first and sent, and the rest is computed while it is on its way."""

from collections.abc import Callable, Sequence

import torch

from .exchange import Crossing

# A differentiable function of (x, weight, bias); with a matrix, x.flatten(1) weight^T + bias.
Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
# Of the weights, views of those that meet the own half of the input and of those that meet the other.
Halves = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def split_input_product(
    product: Product,
    own: torch.Tensor,
    crossing: Crossing,
    weight: torch.Tensor,
    halves: Halves,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """y, on the own half's device. crossing: the other half."""
    if not torch.is_grad_enabled():
        own_weight, other_weight = halves(weight)
        y = product(own, own_weight, bias)
        return y.add_(product(crossing.receive(), other_weight, None))
    return _SplitInputFunction.apply(product, halves, crossing, own, crossing.tensor, weight, bias)


class SplitInputProduct:
    """The two products with a history of their own; call `begin`, `end`, and backward `gradient_of_other`, `gradients`,
    once each.

    needs_grad: whether gradients of (own, other, weight, bias) are needed.
    """

    def __init__(
        self,
        product: Product,
        own: torch.Tensor,
        weight: torch.Tensor,
        halves: Halves,
        bias: torch.Tensor | None,
        needs_grad: Sequence[bool],
    ):
        own_needs_grad, self.other_needs_grad, weight_needs_grad, bias_needs_grad = needs_grad
        self.product, self.halves = product, halves
        self.own, self.bias = _leaf(own, own_needs_grad), _leaf(bias, bias_needs_grad)
        self.weight = _leaf(weight, weight_needs_grad)

    def begin(self) -> None:
        with torch.enable_grad():
            own_weight, self.other_weight = self.halves(self.weight)
            self.y = self.product(self.own, own_weight, self.bias)

    def end(self, other: torch.Tensor) -> torch.Tensor:
        """y without history. other: the other half, arrived."""
        self.other = _leaf(other, self.other_needs_grad)
        with torch.enable_grad():
            y = self.y.add_(self.product(self.other, self.other_weight, None))
        # Not y itself: no product needs its own output again, and what follows keeps what it needs.
        self.gradient_edge = torch.autograd.graph.get_gradient_edge(y) if y.requires_grad else None
        del self.y, self.other_weight
        return y.detach()

    @property
    def _inputs(self):
        """But the other half."""
        return self.own, self.weight, self.bias

    @property
    def needs_more_grad(self) -> bool:
        """Whether any gradient is needed but the other half's."""
        return any(tensor is not None and tensor.requires_grad for tensor in self._inputs)

    def gradient_of_other(self, dy: torch.Tensor) -> torch.Tensor | None:
        """dy's gradient of the other half; None where it isn't needed."""
        if not self.other.requires_grad:
            return None
        return torch.autograd.grad(self.gradient_edge, self.other, dy, retain_graph=self.needs_more_grad)[0]

    def gradients(self, dy: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Of own, weight, bias: each None where it isn't needed. The history is let go of."""
        by_hand = self.weight.requires_grad and written_by_halves(self.weight)
        leaves = [
            tensor
            for tensor in self._inputs
            if tensor is not None and tensor.requires_grad and not (by_hand and tensor is self.weight)
        ]
        gradients = iter(torch.autograd.grad(self.gradient_edge, leaves, dy) if leaves else ())
        own, weight, bias = [
            next(gradients) if any(tensor is leaf for leaf in leaves) else None for tensor in self._inputs
        ]
        del self.gradient_edge
        return own, self._gradient_of_matrix(dy) if by_hand else weight, bias

    def _gradient_of_matrix(self, dy):
        gradient = torch.empty_like(self.weight)
        for x, place in zip((self.own, self.other), self.halves(gradient), strict=True):
            torch.mm(dy.t(), x.detach().flatten(1), out=place)
        return gradient


def written_by_halves(weight: torch.Tensor) -> bool:
    """Whether the gradient of a weight is two products, each written to its half of it.

    autograd's are transposed, since half a matrix has its rows apart, and `cat` would transpose them back in every
    step. The two ways can differ in the last bit.
    """
    return weight.dim() == 2


def _leaf(tensor, needs_grad):
    """The beginning of a history."""
    return None if tensor is None else tensor.detach().requires_grad_(needs_grad)


class _SplitInputFunction(torch.autograd.Function):
    """Takes the other tower's tensor as an input where it was made, so that its gradient returns there."""

    @staticmethod
    def forward(ctx, product, halves, crossing, own, other, weight, bias):
        split = SplitInputProduct(product, own, weight, halves, bias, ctx.needs_input_grad[3:])
        split.begin()
        y = split.end(crossing.receive())
        ctx.history = crossing, split
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        crossing, split = ctx.history
        gradient = split.gradient_of_other(dy)
        receive = None if gradient is None else crossing.send_back(gradient)
        own, weight, bias = split.gradients(dy)
        del ctx.history
        return None, None, None, own, receive() if receive else None, weight, bias
