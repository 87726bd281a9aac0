"""Captures of CUDA graphs on one device or two, and the tape of a step whose graphs take turns with copies.

A capture of torch's has its stream and its memory on one device (pytorch issue 153025), and cannot hold a copy between two. Nor does
`torch.cuda.make_graphed_callables` help: it captures on a stream of the device that was the first to have a graph, and in the mode
that forbids the pipelines' threads to copy and allocate meanwhile (torch 2.13, `torch/cuda/graphs.py`).
"""
from contextlib import ExitStack, contextmanager, suppress

import torch

from .exchange import settle


class CudaGraphs:
    """Captures on streams of its own, one a CUDA device."""

    def __init__(self, devices):
        self.streams = {device: torch.cuda.Stream(device) for device in devices}

    @contextmanager
    def aside(self):
        """What is launched in here comes on this object's streams after what was launched before, and before what is launched after.

        So memory that either stream of a device frees meanwhile may be given out again by it: the other is done, or comes later.
        """
        usual = {device: torch.cuda.current_stream(device) for device in self.streams}
        with ExitStack() as streams:
            for device, stream in self.streams.items():
                stream.wait_stream(usual[device])
            for stream in reversed(self.streams.values()):  # the first device stays the current one
                streams.enter_context(torch.cuda.stream(stream))
            try:
                yield
            finally:
                for device, stream in self.streams.items():
                    usual[device].wait_stream(stream)

    def new_pool(self):
        """Memory for graphs, which those of all shapes share: no two of a device run at once, and a step reads what only it left."""
        return {device: torch.cuda.graph_pool_handle() for device in self.streams}

    def capture(self, function, pool, device):
        """(graph with replay() and reset(), what `function` returned): what it would have computed on the device. Called `aside`.

        In the mode "thread_local": pipelines allocate and copy in other threads meanwhile, which the default mode forbids them.
        Raises RuntimeError where it can't be captured.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=pool[device], stream=self.streams[device], capture_error_mode="thread_local"):
                result = function()
        except BaseException:
            # Where CUDA refuses the end of a capture, torch leaves its allocator as within one, and memory that other streams have
            # read (`record_stream`) would never be used again.
            with suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(device.index, pool[device])
                torch._C._cuda_releasePool(device.index, pool[device])
            raise
        return graph, result


class Tape:
    """Graphs of two devices and the copies between them, in the order of a step.

    run, send and receive put one more at the end; `replay` launches them all again, called `aside`. What a graph reads of another device
    lies in a place of its own, written by the copy of that step.
    """

    def __init__(self, graphs, pool, exchange):
        self.graphs, self.pool, self.exchange = graphs, pool, exchange
        self.captured, self.actions = [], []

    def run(self, tower, function, *arguments):
        """What the function returns: tensors that every replay writes."""
        graph, results = self.graphs.capture(lambda: function(*arguments), self.pool, self.exchange.devices[tower])
        self.captured.append(graph)
        self.actions.append(graph.replay)
        return results

    def send(self, edge, tensor, source, target, pass_):
        copy = self.exchange.standing(edge, tensor, source, target, pass_)
        self.actions.append(copy.begin)
        return copy

    def receive(self, copy):
        """The copy's place, on the target's device."""
        self.actions.append(copy.receive)
        return copy.place

    def replay(self):
        settle(self.exchange.devices)
        for action in self.actions:
            action()
        settle(self.exchange.devices)  # now what the copies read may be freed, too

    def reset(self):
        for graph in self.captured:
            graph.reset()
