"""The crossings between the towers of one process: the one file in which tensors of one go to the other's device.
Towers that have a process each cross by `exchange_processes.py`.

A tensor of one tower becomes readable on the other tower's device by a copy, and its gradient returns the same way. In
2012 the consumer's thread read the peer's memory (source, `src/layer.cu:78-109`). Between CUDA devices the copies run
on streams of their own, one pair a direction, and what needs nothing from the other side runs meanwhile
(`split_product.py`). With both towers on one device nothing is copied, and the ledger says so."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ..system.devices import stream_for

NAMES = "ab"
Pass = Literal["forward", "backward"]
# Of (logits, labels): (loss, right answers).
Judge = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Entry:
    """One crossing of one step."""

    edge: str  # the layer that reads it: "conv3"
    direction: str  # "a->b" or "b->a"
    pass_: str  # "forward" or "backward"
    bytes: int  # copied between devices; 0 where both towers share one


def described(ledger: Sequence[Entry], between: str) -> str:
    """What crossed in a step, in words. between: "devices", or what else there is on both sides."""
    if not ledger:
        return "the towers have no layer that reads both"
    edges = ", ".join(dict.fromkeys(entry.edge for entry in ledger))
    total = sum(entry.bytes for entry in ledger)
    if not total:
        return f"both towers are on one device; at {edges} nothing has to be copied"
    return f"{total / 1e6:,.2f} MB a step cross between the {between}, at {edges}"


class Exchange:
    """Carries tensors between the towers on `devices` (one or two) and keeps a ledger of what crossed since `clear()`.

    overlap: whether a tower multiplies its own half of what it reads while the other half travels, which makes a layer
    the sum of two products (`split_product.py`); off, it waits and multiplies both at once. None: on where the towers
    have two devices. The two ways round differently. copy_stream: whether copies between CUDA devices run on streams
    of their own, beside the computation; the results are the same bits.
    """

    between = "devices"  # what tensors cross

    def __init__(self, devices: Sequence[torch.device | str], overlap: bool | None = None, copy_stream: bool = True):
        self.devices = [_with_index(torch.device(device)) for device in devices]
        self.shared = len(set(self.devices)) == 1
        self.chosen_overlap, self.copy_stream = overlap, copy_stream
        self.ledger = []

    @property
    def overlap(self) -> bool:
        return not self.shared if self.chosen_overlap is None else self.chosen_overlap

    @property
    def towers(self) -> tuple[int, ...]:
        """The numbers of the towers here: all."""
        return tuple(range(len(self.devices)))

    def clear(self) -> None:
        self.ledger = []

    def gather(self, edge: str, outputs: Sequence[torch.Tensor], readers: int) -> "list[list[torch.Tensor | Crossing]]":
        """For each of the first `readers` towers: all towers' outputs, (N, C, H, W) or (N, units), in the order a, b.

        The other tower's output is a `Crossing` with overlap, else a tensor on the reader's device; all crossings have
        begun."""
        meet = functools.partial(Crossing, self) if self.overlap else self._carry_whole
        return [
            [
                output if source == reader else meet(edge, output, source, reader)
                for source, output in enumerate(outputs)
            ]
            for reader in range(readers)
        ]

    def answer(self, outputs: Sequence[torch.Tensor], shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
        """Tower a's logits, which are the outputs. shape, dtype: theirs."""
        return outputs[0]

    def share_loss(self, judge: Judge, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, right answers): what judge(logits, labels) gives."""
        return judge(logits, labels)

    def collect(
        self, layers: Mapping[str, Sequence[torch.Tensor]], owners: Mapping[str, int]
    ) -> Mapping[str, Sequence[torch.Tensor]]:
        """{name: [tower a's tensor, tower b's]}: all are here. owners: {name: how many towers have it}."""
        return layers

    def any(self, flag: bool) -> bool:
        """Whether the flag is true in any process that has one of the towers."""
        return flag

    def standing(
        self, edge: str, pass_: Pass, outgoing: Mapping[int, torch.Tensor], arriving: Mapping[int, torch.Tensor]
    ) -> "dict[int, StandingCopy]":
        """{tower that reads: a `StandingCopy` of the other one's tensor}, each entered in the ledger once.

        outgoing: {tower: what it sends}; arriving: {tower: a tensor of the shape and dtype of what comes to it}."""
        copies = {}
        for target in arriving:
            self.enter(edge, outgoing[1 - target], 1 - target, target, pass_)
            copies[target] = StandingCopy(outgoing[1 - target], self.devices[target], self.copy_stream)
        return copies

    def carry(self, edge: str, tensor: torch.Tensor, source: int, target: int, pass_: Pass) -> "Arrival":
        """Begin a crossing, and enter it in the ledger: an `Arrival`."""
        self.enter(edge, tensor, source, target, pass_)
        return Arrival(tensor) if self.shared else copy(tensor, self.devices[target], self.copy_stream)

    def _carry_whole(self, *way):
        return _Whole.apply(self, *way)

    def enter(self, edge: str, tensor: torch.Tensor, source: int, target: int, pass_: Pass) -> None:
        """Write a crossing into the ledger; between towers on one device nothing travels, so it has 0 bytes."""
        size = 0 if self.shared else tensor.numel() * tensor.element_size()
        self.ledger.append(Entry(edge, f"{NAMES[source]}->{NAMES[target]}", pass_, size))


class Crossing:
    """A tensor of tower `source` on its way to tower `target`'s device."""

    def __init__(self, exchange: Exchange, edge: str, tensor: torch.Tensor, source: int, target: int):
        self.exchange, self.edge, self.tensor, self.source, self.target = exchange, edge, tensor, source, target
        self.home = current_stream(tensor)
        self.there = self._carry(tensor.detach(), source, target, "forward")

    @property
    def comes_second(self) -> bool:
        """In the order a, b: whether the target's own half is the first."""
        return self.source > self.target

    def receive(self) -> torch.Tensor:
        """The copy on the target's device, without history."""
        return self.there.receive()

    def send_back(self, gradient: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Begin the gradient's way back; returns what makes it readable on the source's device.

        That is for the stream on which the tensor was made, where autograd goes on with it: in the thread that calls
        this, another may be current on that device."""
        return functools.partial(self._carry(gradient, self.target, self.source, "backward").receive, self.home)

    def _carry(self, tensor, source, target, pass_):
        return self.exchange.carry(self.edge, tensor, source, target, pass_)


@dataclass
class Arrival:
    """A copy that may still be on its way."""

    tensor: torch.Tensor
    # of the target's stream that has waited for the copy, where both are CUDA devices
    event: torch.cuda.Event | None = None

    def receive(self, stream: torch.cuda.Stream | None = None) -> torch.Tensor:
        """The copy, readable from now on on a stream of its device, by default the current one. The host doesn't
        wait."""
        if self.event is not None:
            stream = stream or current_stream(self.tensor)
            stream.wait_event(self.event)
            self.tensor.record_stream(stream)
        return self.tensor


def current_stream(tensor: torch.Tensor) -> torch.cuda.Stream | None:
    """The current stream of a tensor's device; None on a CPU."""
    return torch.cuda.current_stream(tensor.device) if tensor.is_cuda else None


def copy(tensor: torch.Tensor, device: torch.device, copy_stream: bool, place: torch.Tensor | None = None) -> Arrival:
    """Begin to copy a tensor to another device, to `place` if there is one: an `Arrival`.

    Where a CPU is one of the two, the host waits for the copy itself. A place has to be free by then, and the tensor
    has to stay as it is until the copy's streams were waited for (`StandingCopy`)."""

    def destination():
        return torch.empty_like(tensor, device=device) if place is None else place

    if not tensor.is_cuda or device.type != "cuda":
        return Arrival(tensor.to(device) if place is None else place.copy_(tensor))
    if not copy_stream:
        replica = destination().copy_(tensor, non_blocking=True)
        # A gradient's way back may start while the current stream is not the one that consumes it.
        return Arrival(replica, current_stream(replica).record_event())
    event = current_stream(tensor).record_event()
    out, into = streams = _copy_streams(tensor.device, device)
    for stream in streams:
        stream.wait_event(event)
    # Between devices torch copies on the source's current stream, and lets the target's wait for it.
    with torch.cuda.stream(out), torch.cuda.stream(into):
        replica = destination().copy_(tensor, non_blocking=True)
        reader = current_stream(tensor)  # out; within one device, where both are, into
    if place is None:
        tensor.record_stream(reader)  # its memory must not be given to others before it is read
    return Arrival(replica, into.record_event())


class StandingCopy:
    """A copy that is begun time and again from one tensor to one place on another device, as CUDA graphs need it."""

    def __init__(self, tensor: torch.Tensor, device: torch.device, copy_stream: bool):
        self.tensor, self.copy_stream, self.place = tensor, copy_stream, torch.empty_like(tensor, device=device)

    @property
    def out(self) -> torch.cuda.Stream:
        """The stream that such a copy leaves its CUDA device on."""
        return _copy_streams(self.tensor.device, self.place.device)[0]

    def begin(self) -> None:
        self.arrival = copy(self.tensor, self.place.device, self.copy_stream, self.place)

    def receive(self) -> None:
        """The current stream waits for the copy that was begun last."""
        self.arrival.receive()


def settle(devices: Sequence[torch.device]) -> None:
    """Copies and computation on CUDA devices wait for each other: from then on all tensors and places may be written
    again."""
    for source, target in itertools.permutations(devices, 2):
        if source.type == target.type == "cuda":
            for stream in _copy_streams(source, target):
                current = torch.cuda.current_stream(stream.device)
                current.wait_stream(stream)
                stream.wait_stream(current)


@functools.cache
def _copy_streams(source, target):
    """A stream on each of the two devices, for copies in this direction alone: the two directions don't wait for each
    other."""
    return stream_for(source, f"copies to {target}"), stream_for(target, f"copies from {source}")


class _Whole(torch.autograd.Function):
    """Without overlap: the tensor on the target's device, once it is there; its gradient returns the same way."""

    generate_vmap_rule = True  # this, and a context apart, are what the transforms of torch.func ask for

    @staticmethod
    def forward(exchange, edge, tensor, source, target):
        replica = exchange.carry(edge, tensor, source, target, "forward").receive()
        return replica.view_as(replica)  # on one device it is the tensor itself

    @staticmethod
    def setup_context(ctx, inputs, output):
        exchange, edge, tensor, source, target = inputs
        ctx.way, ctx.home = (exchange, edge, target, source), current_stream(tensor)

    @staticmethod
    def jvp(ctx, _, edge, tangent, *__):
        exchange, edge, target, source = ctx.way
        return _Whole.apply(exchange, edge, tangent, source, target)

    @staticmethod
    def backward(ctx, gradient):
        exchange, edge, *way = ctx.way
        return None, None, exchange.carry(edge, gradient, *way, "backward").receive(ctx.home), None, None


def _with_index(device):
    """ "cuda" is the current CUDA device: named in full, so that it equals "cuda:0" where it is that."""
    return (
        torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" and device.index is None else device
    )
