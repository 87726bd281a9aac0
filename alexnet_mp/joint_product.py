"""The product of a layer that reads both towers, by halves: what needs nothing from the other tower is computed while its half flies.

y = product(own half, its weights, bias) + product(other half, its weights). Backward, the other half's gradient is computed first
and sent, and the rest is computed while it is on its way.
"""
import torch


def joined(product, own, crossing, weights, bias):
    """y, on the own half's device. product: a differentiable function of (x, weight, bias). weights: (own, other).

    crossing: the other half, an `exchange.Crossing`.
    """
    if not torch.is_grad_enabled():
        y = product(own, weights[0], bias)
        return y.add_(product(crossing.receive(), weights[1], None))
    return _Joined.apply(product, crossing, own, crossing.tensor, *weights, bias)


class JointProduct:
    """The two products with a history of their own; call `begin`, `end`, and backward `gradient_of_other`, `gradients`, once each.

    wanted: whether gradients of (own, other, own weights, other weights, bias) are.
    """

    def __init__(self, product, own, weights, bias, wanted):
        own_wanted, self.other_wanted, own_weights_wanted, other_weights_wanted, bias_wanted = wanted
        self.product = product
        self.own, (self.own_weights, self.other_weights), self.bias = (
            _leaf(own, own_wanted), (_leaf(weights[0], own_weights_wanted), _leaf(weights[1], other_weights_wanted)),
            _leaf(bias, bias_wanted))

    def begin(self):
        with torch.enable_grad():
            self.y = self.product(self.own, self.own_weights, self.bias)

    def end(self, other):
        """y without history. other: the other half, arrived."""
        self.other = _leaf(other, self.other_wanted)
        with torch.enable_grad():
            y = self.y.add_(self.product(self.other, self.other_weights, None))
        # Not y itself: no product needs its own output again, and what follows keeps what it needs.
        self.edge = torch.autograd.graph.get_gradient_edge(y) if y.requires_grad else None
        del self.y
        return y.detach()

    @property
    def _inputs(self):
        """But the other half."""
        return self.own, self.own_weights, self.other_weights, self.bias

    @property
    def more_is_wanted(self):
        """Whether any gradient is, but the other half's."""
        return any(tensor is not None and tensor.requires_grad for tensor in self._inputs)

    def gradient_of_other(self, dy):
        """None where it isn't wanted."""
        if not self.other.requires_grad:
            return None
        return torch.autograd.grad(self.edge, self.other, dy, retain_graph=self.more_is_wanted)[0]

    def gradients(self, dy):
        """Of own, own weights, other weights, bias: each None where it isn't wanted. The history is let go of."""
        wanted = [tensor for tensor in self._inputs if tensor is not None and tensor.requires_grad]
        found = iter(torch.autograd.grad(self.edge, wanted, dy) if wanted else ())
        return [next(found) if any(tensor is one for one in wanted) else None for tensor in self._inputs]


def _leaf(tensor, wanted):
    """The beginning of a history."""
    return None if tensor is None else tensor.detach().requires_grad_(wanted)


class _Joined(torch.autograd.Function):
    """Takes the other tower's tensor as an input where it was made, so that its gradient returns there."""

    @staticmethod
    def forward(ctx, product, crossing, own, made_there, own_weights, other_weights, bias):
        joint = JointProduct(product, own, (own_weights, other_weights), bias, ctx.needs_input_grad[2:])
        joint.begin()
        y = joint.end(crossing.receive())
        ctx.history = crossing, joint
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        crossing, joint = ctx.history
        gradient = joint.gradient_of_other(dy)
        receive = None if gradient is None else crossing.send_back(gradient)
        own, *rest = joint.gradients(dy)
        del ctx.history
        return None, None, own, receive() if receive else None, *rest
