"""Captures of CUDA graphs on one device or two, and the tape of a step whose graphs take turns with crossings.

A capture of torch's has its stream and its memory on one device (pytorch issue 153025), and cannot hold a copy between
two. Nor does `torch.cuda.make_graphed_callables` help: it captures on a stream of the device that was the first to have
a graph, and in the mode that forbids the pipelines' threads to copy and allocate meanwhile (torch 2.13,
`torch/cuda/graphs.py`)."""

import gc
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Literal, TypeVar
from warnings import catch_warnings

import torch

from ..network.exchange import Exchange, StandingCopy, settle
from ..network.exchange_processes import ProcessExchange, StandingFlight
from ..system.devices import stream_for
from . import tape_program

_Result = TypeVar("_Result")


class CudaGraphs:
    """Captures on streams for that alone, one a CUDA device, and one more a device for graphs of updates."""

    def __init__(self, devices: Collection[torch.device]):
        # In torch 2.13.0 a graph that is reset frees cuBLAS's workspaces of the stream that captured it, whose
        # addresses all other graphs of that stream hold (pytorch issue 193402). A change of rates resets updates
        # alone, and an update multiplies no matrices.
        self.streams, self.update_streams = (
            {device: stream_for(device, use) for device in devices} for use in ("graphs", "graphs of updates")
        )
        gc.collect()  # those of an earlier training are reset now, not when there are others of the same streams

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is launched in here runs on this object's streams, after all that was launched before and before all
        that comes later.

        So a tensor may be made on one stream, read on the other and freed: nobody writes its memory anew before that.
        """
        caller_streams = {device: torch.cuda.current_stream(device) for device in self.streams}
        with ExitStack() as streams:
            for device, stream in self.streams.items():
                stream.wait_stream(caller_streams[device])
            for stream in reversed(self.streams.values()):  # the first device stays the current one
                streams.enter_context(torch.cuda.stream(stream))
            try:
                yield
            finally:
                for device, stream in self.streams.items():
                    caller_streams[device].wait_stream(stream)

    def new_pool(self) -> dict[torch.device, tuple[int, int]]:
        """Memory for graphs, which those of all shapes share: no two of a device run at once, and a step reads what
        only it left."""
        return {device: torch.cuda.graph_pool_handle() for device in self.streams}

    def capture(
        self,
        function: Callable[[], _Result],
        pool: Mapping[torch.device, tuple[int, int]],
        device: torch.device,
        update: bool = False,
    ) -> tuple[torch.cuda.CUDAGraph, _Result]:
        """(graph with replay() and reset(), what `function` returned): what it would have computed on the device.
        Called `aside`.

        update: of an update, which may be reset while others live on; all others of a device are reset together. In the
        mode "thread_local": pipelines allocate and copy in other threads meanwhile, which the default mode forbids
        them. Raises RuntimeError where it can't be captured."""
        graph, stream = torch.cuda.CUDAGraph(), (self.update_streams if update else self.streams)[device]
        try:
            with torch.cuda.graph(graph, pool=pool[device], stream=stream, capture_error_mode="thread_local"):
                result = function()
        except BaseException:
            self._give_back(graph, pool[device], device)
            raise
        return graph, result

    @staticmethod
    def _give_back(graph, pool, device):
        """What a capture holds that CUDA refused to end.

        torch leaves its generator as within a capture, and every later draw outside of one would fail; a capture that
        ends well, though of nothing, sets it right, on a stream of its own, since dropping it frees what living graphs
        of its stream need (`__init__`). torch before 2.13 leaves its allocator as within a capture, and
        memory that other streams have read (`record_stream`) would never be used again; before 2.14 the memory of the
        pool is held for ever (pytorch pull requests 180395, 190348)."""
        with suppress(RuntimeError):
            graph.pool()
            return  # it has ended: the graph gives back all of it
        with suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(device.index, pool)
        if torch.__version__ < "2.14":
            with suppress(RuntimeError):
                torch._C._cuda_releasePool(device.index, pool)
        with suppress(RuntimeError), catch_warnings(action="ignore"):  # it warns of an empty graph
            stream = stream_for(device, "captures of nothing")
            with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream, capture_error_mode="thread_local"):
                pass


class Tape:
    """Graphs of the towers that are here, and the crossings between the towers, in the order of a step.

    run, cross, receive and told put more at the end; `replay` launches them all again, called `aside`. What a graph
    reads of the other tower lies in a place of its own, written by the crossing of that step. Between two devices the
    first replay makes a `tape_program.Program` of it, where the operator for that is there. Between processes a
    crossing is a send and a receive of `torch.distributed`, which waits for what its stream was given before, and is
    never captured."""

    def __init__(
        self, graphs: CudaGraphs, pool: Mapping[torch.device, tuple[int, int]], exchange: Exchange | ProcessExchange
    ):
        self.graphs, self.pool, self.exchange = graphs, pool, exchange
        self.devices = dict(zip(exchange.towers, exchange.devices, strict=True))
        self.steps = []  # ("launch", graph, device), ("send", crossing), ("receive", crossing)
        self.program = None  # of the steps, once replayed; False where Python replays them

    def run(self, tower: int, function: Callable[..., list[torch.Tensor]], *arguments: object) -> list[torch.Tensor]:
        """What the function returns: tensors that every replay writes."""
        device = self.devices[tower]
        graph, results = self.graphs.capture(lambda: function(*arguments), self.pool, device)
        self.steps.append(("launch", graph, device))
        return results

    def cross(
        self,
        edge: str,
        pass_: Literal["forward", "backward"],
        outgoing: Mapping[int, torch.Tensor],
        arriving: Mapping[int, torch.Tensor],
    ) -> dict[int, StandingCopy | StandingFlight]:
        """Begin a layer's crossings: {tower: what it receives}. See `Exchange.standing`."""
        crossings = self.exchange.standing(edge, pass_, outgoing, arriving)
        self.steps += [("send", crossing) for crossing in crossings.values()]
        return crossings

    def receive(self, crossing: StandingCopy | StandingFlight) -> torch.Tensor:
        """Where it arrives, on the target's device."""
        self.steps.append(("receive", crossing))
        return crossing.place

    def told(self, numbers: list[torch.Tensor] | None, dtype: torch.dtype) -> list[torch.Tensor]:
        """[loss, right answers] here, of tower a's; None: tower a has another process. dtype: the loss's."""
        if self.exchange.between == "devices":
            return numbers
        if numbers is not None:
            (bundle,) = self.run(0, lambda: [torch.stack([number.double() for number in numbers])])
            self.steps.append(("send", self.exchange.standing_numbers(bundle)))
            return numbers
        flight = self.exchange.standing_numbers(None)
        self.steps.append(("send", flight))
        bundle = self.receive(flight)
        return self.run(1, lambda: [bundle[0].to(dtype), bundle[1].clone()])

    def replay(self) -> None:
        if self.program is None:
            fits = tape_program.operator() is not None and tape_program.fits(self.steps, self.exchange)
            self.program = fits and tape_program.Program(self.steps, self.graphs.streams)
        if self.program:
            tape_program.operator()(self.program.table)
        else:
            self._replay_in_python()

    def _replay_in_python(self):
        settle(self.exchange.devices)
        for what, subject, *_ in self.steps:
            if what == "launch":
                subject.replay()
            elif what == "send":
                subject.begin()
            else:
                subject.receive()
        settle(self.exchange.devices)  # now what the copies read may be freed, too

    def reset(self) -> None:
        self.program = None
        for what, graph, *_ in self.steps:
            if what == "launch":
                graph.reset()
