"""Two ways to give one GPU more work at once where both towers are on it: an experiment, which nothing but its
benchmark uses.

joined: layers of both towers that read the same maps (conv1 the image, conv3, fc6 and fc7 both towers) are one product
of twice as many maps, whose halves are then made dense for each tower's kernels. Weights, their copies and their
gradients lie one behind the other, so that joining them copies nothing (`lay_out`).

forked: what tower b computes from its own maps runs on a second stream beside tower a, forward and, since autograd
computes where forward did, backward; in a capture both become branches of one graph.
"""

from contextlib import contextmanager

import torch


class Side:
    """The second stream of a device. `fork` and `join` name the tensors that go over, whose memory must wait for
    both."""

    def __init__(self, device):
        self.stream = torch.cuda.Stream(device)

    def fork(self, *tensors):
        """What runs `aside` from now on comes after all that was launched on the current stream."""
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        for tensor in tensors:
            tensor.record_stream(self.stream)

    def join(self, *tensors):
        """The current stream comes after all that was launched `aside`."""
        caller_stream = torch.cuda.current_stream(self.stream.device)
        caller_stream.wait_stream(self.stream)
        for tensor in tensors:
            tensor.record_stream(caller_stream)

    @contextmanager
    def aside(self):
        with torch.cuda.stream(self.stream):
            yield


class Here:
    """No second stream."""

    def fork(self, *tensors):
        pass

    join = fork

    @contextmanager
    def aside(self):
        yield


def change(network, joined=False, side=None):
    """Let a `TwoTowerAlexNet` with both towers on one device compute so from now on. side: a `Side`, or None not to
    fork.
    """
    if not network.exchange.shared or len(network.towers) != 2:
        raise ValueError("both towers must be on one device")
    side, forks = side or Here(), side is not None
    a, b = network.towers

    def forward(images_a, images_b):
        network.exchange.clear()
        if network.training:
            for tower in network.towers:
                tower.step += 1
        first = network.recipe.layers[0]
        maps_a = maps_b = getattr(a, first.name).pad_ceil_mode(images_a)
        aside = False  # whether maps_b are made on the side
        for layer in network.recipe.layers:
            layer_a, layer_b = (getattr(tower, layer.name, None) for tower in (a, b))
            if layer.reads == "both":
                if aside:
                    side.join(maps_b)
                maps_a = maps_b = torch.cat([maps_a, maps_b], 1)
                aside = False
            if layer_b is None:
                maps_a = layer_a(maps_a, a.step)
                continue
            if joined and maps_a is maps_b:
                maps_a, maps_b, late_bias_a, late_bias_b = both_products(layer_a, layer_b, maps_a)
                steps = (layer_a.apply_epilogue, (late_bias_a, a.step)), (layer_b.apply_epilogue, (late_bias_b, b.step))
            else:
                steps = (layer_a, (a.step,)), (layer_b, (b.step,))
            if not aside:
                side.fork(maps_b)
            with side.aside():
                maps_b = steps[1][0](maps_b, *steps[1][1])
            maps_a, aside = steps[0][0](maps_a, *steps[0][1]), forks
        if aside:
            side.join(maps_b)
        return maps_a.to(network.dtype)

    network.forward = forward


def both_products(layer_a, layer_b, x):
    """(tower a's product, b's, the bias that what follows a's adds, and b's)."""
    (weight_a, bias_a, late_bias_a), (weight_b, bias_b, late_bias_b) = (
        layer.operands(x.dtype) for layer in (layer_a, layer_b)
    )
    bias = None if bias_a is None else Behind.apply(bias_a, bias_b)
    y = layer_a.product(x, Behind.apply(weight_a, weight_b), bias)
    last = y.dim() == 4 and y.is_contiguous(memory_format=torch.channels_last)
    order = torch.channels_last if last else torch.contiguous_format
    return *(half.contiguous(memory_format=order) for half in y.chunk(2, 1)), late_bias_a, late_bias_b


class Behind(torch.autograd.Function):
    """Two tensors as one, along their first dimension: without a copy where the second lies behind the first."""

    @staticmethod
    def forward(ctx, a, b):
        if lies_behind(a, b):
            return torch.as_strided(a.detach(), (2 * len(a), *a.shape[1:]), a.stride())
        return torch.cat([a, b])

    @staticmethod
    def backward(ctx, gradient):
        return gradient.chunk(2)


def lies_behind(a, b):
    return (
        a.shape == b.shape
        and a.stride() == b.stride()
        and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
        and b.data_ptr() == a.data_ptr() + a.nbytes
    )


@torch.no_grad()
def lay_out(network, dtype):
    """Put the parameters of layers whose towers read the same maps, and their copies in a dtype, one behind the
    other."""
    network.keep_copies(dtype)
    a, b = network.towers
    for number, layer in enumerate(network.recipe.layers):
        if (number == 0 or layer.reads == "both") and layer.towers == "each":
            pair = getattr(a, layer.name), getattr(b, layer.name)
            for name in ("weight", "bias"):
                parameters = [getattr(owner, name) for owner in pair]
                for parameter, half in zip(parameters, torch.cat(parameters).chunk(2), strict=True):
                    parameter.data = half
                if dtype != network.dtype:
                    for owner, half in zip(
                        pair, torch.cat([owner.kept[name][0] for owner in pair]).chunk(2), strict=True
                    ):
                        owner.kept[name] = half, getattr(owner, name)._version
