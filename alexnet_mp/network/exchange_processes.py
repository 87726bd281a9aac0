"""The crossings between towers that have a process each: a send and a receive of `torch.distributed` for each of them.

A process holds one tower and can't name the other's memory. Between CPUs gloo carries the bytes, between GPUs NCCL.
What arrives has the strides of what was sent, so that the kernels that read it compute as on one device. Autograd ends
at the border: a tensor that is sent gets the gradient that returns for it added to its own, two summands, whose order
does not matter."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist

from ..system.ranks import Ranks
from .exchange import NAMES, Entry, Judge, Pass


class ProcessExchange:
    """What `Exchange` is, in the process of tower `tower`, 0 or 1, on `device`; the other tower of its pair is rank
    `peer`.

    ranks: the job's `Ranks`. overlap: see `Exchange`; on by default. The ledger is that of one process: what was sent
    and what was received in a step. What a checkpoint brings to tower a's host memory is no part of it."""

    shared = False
    between = "processes"

    def __init__(self, ranks: Ranks, tower: int, peer: int, device: torch.device | str, overlap: bool | None = None):
        self.ranks, self.tower, self.peer = ranks, tower, peer
        self.devices, self.towers = [torch.device(device)], (tower,)
        self.overlap = self.chosen_overlap = overlap is not False
        self.ledger, self.layouts = [], {}
        self.unfinished = None  # a `Flight` that nobody waits for
        self.clear()

    def clear(self) -> None:
        self.ledger, self.end = [], torch.zeros((), device=self.devices[0])

    # --- a step

    def gather(
        self, edge: str, outputs: Sequence[torch.Tensor], readers: int
    ) -> "list[list[torch.Tensor | ProcessCrossing]]":
        """[[tower a's output, tower b's]] of the one tower here, the other a `ProcessCrossing` with overlap, else a
        tensor; [] where it is not among the first `readers` towers: then its part of the forward pass is over."""
        if not outputs:
            return []
        (own,) = outputs
        other_tower = 1 - self.tower
        if self.tower >= readers:
            self.end = _End.apply(self, edge, own)
            return []
        sends = other_tower < readers
        if self.overlap:
            parts = own, ProcessCrossing(self, edge, own, sends)
        else:
            parts = _Halves.apply(self, edge, own, sends)
        return [list(parts if self.tower == 0 else parts[::-1])]

    def answer(self, outputs: Sequence[torch.Tensor], shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
        """Tower a's logits, of this shape, (N, classes), and dtype. Where gradients are wanted they stay there, and
        tower b's process gets what its backward pass begins at, a number of that dtype."""
        if torch.is_grad_enabled():
            return outputs[0] if outputs else self.end.to(dtype)
        if outputs:
            self._begin(outputs[0].contiguous(), None).receive()
            return outputs[0]
        return self._begin(None, torch.empty(shape, dtype=dtype, device=self.devices[0])).receive()

    def share_loss(self, judge: Judge, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, right answers), as tower a judges its logits; tower b's process is told both, and its `backward`
        waits for the gradient of what it sent last."""
        if self.tower == 0:
            loss, right = judge(logits, labels)
            self._begin(torch.stack([loss.detach().double(), right.detach().double()]), None, keep=True)
            return loss, right
        loss, right = self._begin(None, torch.empty(2, dtype=torch.float64, device=self.devices[0])).receive()
        return _Told.apply(logits, loss.to(logits.dtype)), right

    def cross(
        self, edge: str, pass_: Pass, outgoing: torch.Tensor | None, like: torch.Tensor, arrives: bool = True
    ) -> "Flight":
        """Begin one layer's crossings of a pass: a `Flight`. outgoing: what is sent, or None; like: a tensor of the
        shape and dtype of either; arrives: whether one is received."""
        return self._standing_flight(edge, pass_, outgoing, like, arrives).begin()

    def _standing_flight(self, edge, pass_, outgoing, like, arrives):
        strides, place_strides = self._layout(edge, pass_, like if outgoing is None else outgoing, like)
        size = like.numel() * like.element_size()
        for source, is_target in ((1, self.tower == 0), (0, self.tower == 1)):  # b->a, a->b
            if arrives if is_target else outgoing is not None:
                self.ledger.append(Entry(edge, f"{NAMES[source]}->{NAMES[1 - source]}", pass_, size))
        buffer = outgoing
        if outgoing is not None and outgoing.stride() != strides:
            buffer = torch.empty_strided(outgoing.shape, strides, dtype=outgoing.dtype, device=outgoing.device)
        place = (
            torch.empty_strided(like.shape, place_strides, dtype=like.dtype, device=like.device) if arrives else None
        )
        return StandingFlight(self._begin, outgoing, buffer, place)

    def _layout(self, edge, pass_, outgoing, like):
        """(strides of what is sent, strides of what arrives). The two processes tell each other at the first time."""
        key = edge, pass_, like.shape, like.dtype
        if key not in self.layouts:
            strides = torch.empty_like(outgoing, device="meta").stride()  # dense, whatever gaps the tensor has
            message = torch.tensor(strides, dtype=torch.int64)
            self.layouts[key] = strides, tuple(self._begin(message, torch.empty_like(message)).receive().tolist())
        return self.layouts[key]

    def _begin(self, outgoing, place, keep=False):
        """Send one tensor, dense in its memory, and receive another into its place; either may be None. keep: nobody
        waits for it; the next one does."""
        if self.unfinished is not None:
            self.unfinished, last_flight = None, self.unfinished
            last_flight.receive()
        operations = [
            dist.P2POp(what, _bytes(tensor), self.peer, self.ranks.pair_group)
            for what, tensor in ((dist.isend, outgoing), (dist.irecv, place))
            if tensor is not None
        ]
        with self.ranks.reached():
            flight = Flight(self.ranks, dist.batch_isend_irecv(operations), outgoing, place)
        if keep:
            self.unfinished = flight
        return flight

    # --- the same, begun time and again, as CUDA graphs need it

    def any(self, flag: bool) -> bool:
        """Whether the flag is true in any process."""
        return self.ranks.any(flag)

    def standing(
        self, edge: str, pass_: Pass, outgoing: Mapping[int, torch.Tensor], arriving: Mapping[int, torch.Tensor]
    ) -> "dict[int, StandingFlight]":
        """{the tower here: a `StandingFlight`}, entered in the ledger once; see `Exchange.standing`."""
        departure, arrival = outgoing.get(self.tower), arriving.get(self.tower)
        like = departure if arrival is None else arrival
        return {self.tower: self._standing_flight(edge, pass_, departure, like, arrival is not None)}

    def standing_numbers(self, numbers: torch.Tensor | None) -> "StandingFlight":
        """A `StandingFlight` of (loss, right answers), (2,) float64: from tower a, which has them, to tower b."""
        place = torch.empty(2, dtype=torch.float64, device=self.devices[0]) if numbers is None else None
        return StandingFlight(self._begin, numbers, numbers, place)

    # --- a checkpoint

    def collect(
        self, layers: Mapping[str, Sequence[torch.Tensor]], owners: Mapping[str, int]
    ) -> dict[str, list[torch.Tensor]]:
        """{name: [a's, b's]} on the host, of {name: [the tensor here]}: complete in tower a's process alone.

        owners: {name: how many towers have it}."""
        tensors = {}
        for name, parts in layers.items():
            tensors[name] = parts = [part.detach().cpu().contiguous() for part in parts]
            if owners[name] == 2:
                (own,) = parts
                if self.tower == 0:
                    parts.append(self._begin(None, torch.empty_like(own)).receive())
                else:
                    self._begin(own, None).receive()
        return tensors


class ProcessCrossing:
    """What `exchange.Crossing` is. tensor: the tower's own half, to which the gradient of what was sent returns."""

    def __init__(self, exchange: ProcessExchange, edge: str, own: torch.Tensor, sends: bool):
        self.exchange, self.edge, self.tensor, self.sends = exchange, edge, own, sends
        self.flight = exchange.cross(edge, "forward", own.detach() if sends else None, own)

    @property
    def comes_second(self) -> bool:
        """In the order a, b: whether the tower's own half is the first."""
        return self.exchange.tower == 0

    def receive(self) -> torch.Tensor:
        return self.flight.receive()

    def send_back(self, gradient: torch.Tensor) -> Callable[[], torch.Tensor | None]:
        """Begin the way of both gradients; returns what waits for that of the own half, None where none was sent."""
        flight = self.exchange.cross(self.edge, "backward", gradient, self.tensor, arrives=self.sends)
        return flight.receive if self.sends else lambda: None


class Flight:
    """What is under way between the two processes. kept: what was sent, which must not change meanwhile."""

    def __init__(self, ranks: Ranks, works: Sequence[dist.Work], kept: torch.Tensor | None, place: torch.Tensor | None):
        self.ranks, self.works, self.kept, self.place = ranks, works, kept, place

    def receive(self) -> torch.Tensor | None:
        """What has arrived. On a CPU the host waits; on a GPU its current stream does."""
        with self.ranks.reached():
            for work in self.works:
                work.wait()
        self.works, self.kept = (), None
        return self.place


class StandingFlight:
    """A flight from one place and to another: what `exchange.StandingCopy` is. dense: where the tensor that is sent
    lies without gaps, in the order that the other side reads; it itself, if it does."""

    def __init__(
        self,
        launch: Callable[..., Flight],
        tensor: torch.Tensor | None,
        dense: torch.Tensor | None,
        place: torch.Tensor | None,
    ):
        self.launch, self.tensor, self.dense, self.place = launch, tensor, dense, place

    def begin(self) -> Flight:
        if self.dense is not self.tensor:
            self.dense.copy_(self.tensor)
        self.flight = self.launch(self.dense, self.place, keep=self.place is None)
        return self.flight

    def receive(self) -> None:
        """The current stream waits for what was begun last; on a CPU the host does."""
        self.flight.receive()


class _Halves(torch.autograd.Function):
    """Without overlap: (own half, other half), once it is there."""

    @staticmethod
    def forward(ctx, exchange, edge, own, sends):
        ctx.way, ctx.own = (exchange, edge, sends), own.detach()
        other = exchange.cross(edge, "forward", ctx.own if sends else None, ctx.own).receive()
        return own.view_as(own), other

    @staticmethod
    def backward(ctx, own_gradient, other_gradient):
        exchange, edge, sends = ctx.way
        flight = exchange.cross(edge, "backward", other_gradient, ctx.own, arrives=sends)
        return None, None, own_gradient + flight.receive() if sends else own_gradient, None


class _End(torch.autograd.Function):
    """Tower b's last maps go to tower a, which alone has the layers that follow: a number to go backward from."""

    @staticmethod
    def forward(ctx, exchange, edge, own):
        ctx.way, ctx.own = (exchange, edge), own.detach()
        exchange.cross(edge, "forward", ctx.own, ctx.own, arrives=False)
        return own.new_zeros(())

    @staticmethod
    def backward(ctx, _):
        exchange, edge = ctx.way
        return None, None, exchange.cross(edge, "backward", None, ctx.own).receive()


class _Told(torch.autograd.Function):
    """The loss, as if tower b's process had computed it."""

    @staticmethod
    def forward(ctx, end, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def _bytes(tensor):
    """The memory of a dense tensor, as it lies."""
    memory = tensor.as_strided((tensor.numel(),), (1,))
    return memory.view(torch.uint8)
