"""The crossings between the towers: the one file that knows that there are two devices.

A tensor of one tower becomes readable on the other tower's device by one differentiable operation; its gradient returns the same
way. In 2012 the consumer's thread read the peer's memory (source, `src/layer.cu:78-109`); here it is a copy that both devices'
current streams wait for. With both towers on one device nothing is copied, and the ledger says so.
"""
from dataclasses import dataclass

import torch

NAMES = "ab"


@dataclass(frozen=True)
class Entry:
    """One crossing of one step."""

    edge: str  # the layer that reads it: "conv3"
    direction: str  # "a->b" or "b->a"
    pass_: str  # "forward" or "backward"
    bytes: int  # copied between devices; 0 where both towers share one


class Exchange:
    """Carries tensors between the towers on `devices` (one or two) and keeps a ledger of what crossed since `clear()`."""

    def __init__(self, devices):
        self.devices = [_with_index(torch.device(device)) for device in devices]
        self.ledger = []

    def clear(self):
        self.ledger = []

    def gather(self, edge, outputs, readers):
        """For each of the first `readers` towers: all towers' outputs in the order a, b, readable on that tower's device."""
        return [[output if source == reader else _Crossing.apply(output, self, edge, source, reader)
                 for source, output in enumerate(outputs)] for reader in range(readers)]

    def carry(self, tensor, edge, source, target, pass_):
        """Copy a tensor of tower `source` to tower `target`'s device and enter it in the ledger."""
        shared = self.devices[source] == self.devices[target]
        size = 0 if shared else tensor.numel() * tensor.element_size()
        self.ledger.append(Entry(edge, f"{NAMES[source]}->{NAMES[target]}", pass_, size))
        return tensor if shared else copy(tensor, self.devices[target])


def copy(tensor, device):
    """The copy itself. Between CUDA devices it is ordered against the current streams of both; nothing overlaps it yet."""
    return tensor.to(device, non_blocking=tensor.is_cuda and device.type == "cuda")


class _Crossing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, exchange, edge, source, target):
        ctx.way = exchange, edge, source, target
        return exchange.carry(tensor, edge, source, target, "forward").view_as(tensor)

    @staticmethod
    def backward(ctx, gradient):
        exchange, edge, source, target = ctx.way
        return exchange.carry(gradient, edge, target, source, "backward"), None, None, None, None


def _with_index(device):
    """ "cuda" is the current CUDA device: named in full, so that it equals "cuda:0" where it is that."""
    return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" and device.index is None else device
