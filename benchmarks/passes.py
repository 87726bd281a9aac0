"""An operation's forward and backward pass as a variant that `interleaved` can time, on a CPU and on a GPU.

A set of buffers is (inputs, the gradient dy that comes back); the passes give the output, and the gradients of the
inputs that require one.
"""

import torch
from interleaved import GRAPH_CALLS


def gradients(y, inputs, dy, retain_graph=False):
    """Those of the inputs that require one."""
    leaves = [tensor for tensor in inputs if tensor.requires_grad]
    return torch.autograd.grad(y, leaves, dy, retain_graph=retain_graph)


def passes_on(device):
    """`OnGPU` or `OnCPU`, the class of a device."""
    return OnGPU if device.type == "cuda" else OnCPU


class OnCPU:
    """One call a round, on the next set of buffers; results are kept until their set's turn: they rotate, too."""

    calls = 1

    def __init__(self, function, sets):
        self.function, self.tensors, self.kept, self.turn, self.sets = function, sets, [None] * len(sets), 0, len(sets)
        self.runs = {"fwd": self.forward, "bwd": self.backward}

    def forward(self):
        self.turn = (self.turn + 1) % self.sets
        self.y = self.function(*self.tensors[self.turn][0])

    def backward(self):
        inputs, dy = self.tensors[self.turn]
        self.kept[self.turn] = self.y, gradients(self.y, inputs, dy)


class OnGPU:
    """CUDA graphs of at least GRAPH_CALLS forward passes, and of as many backward passes, round the sets of buffers."""

    def __init__(self, function, sets):
        stream, forward, backward = torch.cuda.Stream(), torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        repeats = -(-GRAPH_CALLS // len(sets))
        self.calls, self.sets = repeats * len(sets), 1
        ys, grads = [None] * len(sets), [None] * len(sets)  # kept, so that the outputs rotate as well
        stream.wait_stream(torch.cuda.current_stream())
        # The backward pass runs many times on one forward, whose saved tensors must stay; see `donated_buffer`.
        with torch.cuda.stream(stream):
            for _ in range(3):
                inputs, dy = sets[0]
                gradients(function(*inputs), inputs, dy, retain_graph=True)
        torch.cuda.synchronize()
        with torch.cuda.graph(forward, stream=stream):
            for _ in range(repeats):
                for index, (inputs, _) in enumerate(sets):
                    ys[index] = function(*inputs)
        with torch.cuda.graph(backward, pool=forward.pool(), stream=stream):
            for _ in range(repeats):
                for index, (inputs, dy) in enumerate(sets):
                    grads[index] = gradients(ys[index], inputs, dy, retain_graph=True)
        self.runs = {"fwd": forward.replay, "bwd": backward.replay}
        self.kept = ys, grads
