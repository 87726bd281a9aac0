"""A device that computes later than it is told, and its CUDA graphs, on a CPU: for what the host must do right around
them."""

import time
from contextlib import nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode

MULTIPLY = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default}  # by cuBLAS, on a GPU


class LateEvents:
    """In place of `pending_steps.mark`: an event is reached when `behind` more were made, or when the host waits for
    it."""

    def __init__(self, behind):
        self.behind, self.made, self.waits = behind, 0, []  # waits: how many events had been made by then

    def __call__(self, device):
        self.made += 1
        return _LateEvent(self, self.made)


class _LateEvent:
    def __init__(self, device, number):
        self.device, self.number, self.reached, self.seconds = device, number, False, time.perf_counter()

    def query(self):
        return self.reached or self.device.made - self.number >= self.device.behind

    def synchronize(self):
        if not self.query():
            self.device.waits.append(self.device.made)
        self.reached = True

    def elapsed_time(self, end):
        assert self.query() or self.reached or end.reached, "CUDA would refuse an event that isn't reached"
        return 1e3 * (end.seconds - self.seconds)


class FakeGraphs:
    """In place of `cuda_graphs.CudaGraphs`, for a network whose steps compute on a CPU.

    A capture leaves parameters, velocities and buffers as they were, and nonsense in what it returned and in the
    gradients. A replay computes it again as a graph does: from the tensors that were captured, gradients too, with the
    rates and trained layers of then, into the tensors of then, and leaves the rest of Python as it is. fails(number):
    whether capture `number`, from 1, is refused.

    A graph that is reset breaks all living ones that multiply matrices and were captured on the same stream, as in
    torch 2.13.0: they hold the addresses of cuBLAS's workspaces there, and these are freed.
    """

    def __init__(self, network, optimizer, fails=lambda number: False):
        self.network, self.optimizer, self.fails = network, optimizer, fails
        self.captures = self.replays = 0
        self.living = []

    def aside(self):
        return nullcontext()

    def new_pool(self):
        assert not self.living, "the memory of graphs that are there can be shared"
        return object()

    def capture(self, function, pool, device, update=False):
        self.captures += 1
        assert all(graph.pool is pool for graph in self.living)
        before, python = [tensor.clone() for tensor in self.tensors()], self.python()
        with _Products() as products:
            result = function()
        with torch.no_grad():
            for tensor, value in zip(self.tensors(), before, strict=True):
                if not torch.equal(tensor, value):  # else a history that has the tensor would take it for changed
                    tensor.copy_(value)
        gradients = {
            parameter: parameter.grad
            for parameter in self.network.parameters()
            if parameter.grad is not python["grads"][parameter]
        }
        if self.fails(self.captures):
            raise RuntimeError("operation not permitted when stream is capturing\nand more lines")
        # not the tensors themselves: a history may have them
        result = [torch.full_like(tensor, 12345) for tensor in result]
        for tensor in gradients.values():
            tensor.fill_(12345.0)
        self.living.append(
            _FakeGraph(self, function, pool, python, result, gradients, (device, update), products.found)
        )
        return self.living[-1], result

    def tensors(self):
        return [
            *self.network.parameters(),
            *self.network.buffers(),
            *(part for parts in self.optimizer.velocities().values() for part in parts),
        ]

    def python(self):
        return {
            "grads": {parameter: parameter.grad for parameter in self.network.parameters()},
            "trained": {parameter: parameter.requires_grad for parameter in self.network.parameters()},
            "rates": [group["lr"] for group in self.optimizer.param_groups],
            "ledger": self.network.exchange.ledger,
        }

    def put_back(self, python):
        for parameter, trained in python["trained"].items():
            parameter.requires_grad_(trained)
            parameter.grad = python["grads"][parameter]
        for group, rate in zip(self.optimizer.param_groups, python["rates"], strict=True):
            group["lr"] = rate
        self.network.exchange.ledger = python["ledger"]


class _Products(TorchDispatchMode):
    """Sees whether matrices are multiplied, in backward passes too."""

    found = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.found |= function in MULTIPLY
        return function(*args, **(kwargs or {}))


class _FakeGraph:
    def __init__(self, graphs, function, pool, python, result, gradients, stream, multiplies):
        self.graphs, self.function, self.pool, self.python, self.result, self.made = (
            graphs,
            function,
            pool,
            python,
            result,
            gradients,
        )
        self.stream, self.multiplies, self.broken = stream, multiplies, False

    def replay(self):
        assert self in self.graphs.living, "this graph was freed"
        assert not self.broken, "another graph of its stream was reset: what cuBLAS works in is no longer there"
        self.graphs.replays += 1
        now = self.graphs.python()
        self.graphs.put_back(self.python)
        for place, value in zip(self.result, self.function(), strict=True):
            place.copy_(value)
        for parameter, place in self.made.items():
            place.copy_(parameter.grad)
        self.graphs.put_back(now)

    def reset(self):
        self.graphs.living.remove(self)
        for graph in self.graphs.living:
            graph.broken |= graph.multiplies and graph.stream == self.stream
