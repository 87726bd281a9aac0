"""A tape as a table of numbers, which one compiled operator replays (`csrc/cuda/tape.h`): some hundred CUDA calls
without Python.

The order is that of `exchange.copy` and `exchange.settle`, with fewer events: a copy between two CUDA devices has one
stream, its source's. It begins when what it copies is made, and before the tape's first copy when both devices have
come so far; who receives it waits for it; and at the end both devices wait for all copies. What runs in a graph must
draw nothing from torch's own generators, whose counts only a replay from Python moves on; nothing of ours does.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import torch

from ..kernels.dispatch import compiled
from ..network.exchange import Exchange

LAUNCH, COPY, RECORD, WAIT = range(4)  # as in csrc/cuda/tape.h
# Kind, the stream's device, stream, graph or event or the place of a copy; of a copy also source, target device, bytes.
COLUMNS = 7


@functools.cache
def operator() -> Callable[[torch.Tensor], None] | None:
    """The operator that replays a table, or None in a library without CUDA kernels, or older than it."""
    if compiled() is None:
        return None
    replay = getattr(compiled(), "replay_tape", None)
    built = replay and torch._C._dispatch_has_kernel_for_dispatch_key("alexnet_mp_csrc::replay_tape", "CPU")
    return replay if built else None


def fits(steps: Sequence[tuple], towers: Exchange) -> bool:
    """Whether a table can say what the steps of a `Tape` do. towers: an `Exchange`."""
    copies = [step[1] for step in steps if step[0] == "send"]
    graphs = [step[1] for step in steps if step[0] == "launch"]
    return (
        towers.between == "devices"
        and all(device.type == "cuda" for device in towers.devices)
        and towers.copy_stream  # else the computing streams copy
        and all(hasattr(graph, "raw_cuda_graph_exec") for graph in graphs)  # not in older versions of torch
        and all(_as_bytes(copy.tensor, copy.place) for copy in copies)
    )


def _as_bytes(tensor, place):
    """Whether a tensor is copied to its place as so many bytes."""
    return (
        tensor.dtype == place.dtype
        and tensor.stride() == place.stride()
        and torch.ops.aten.is_non_overlapping_and_dense(tensor)
    )


class Program:
    """The table of a tape's steps, and what must live as long as it.

    steps: ("launch", graph, device), ("send", copy), ("receive", copy), as `Tape` has them. streams: {device: where
    graphs are launched}.
    """

    def __init__(self, steps: Sequence[tuple], streams: Mapping[torch.device, torch.cuda.Stream]):
        self.rows, self.streams, self.kept = [], streams, [steps]
        copy_streams = {_way(copy): copy.out for what, copy, *_ in steps if what == "send"}
        starts = [self._record(device, stream) for device, stream in streams.items()]
        for (source, _), stream in copy_streams.items():
            for event in starts:
                self._wait(source, stream, event)
        arrivals = {}
        for what, subject, *where in steps:
            if what == "launch":
                (device,) = where
                self._row(LAUNCH, device, streams[device], subject.raw_cuda_graph_exec())
            elif what == "send":
                source, target = way = _way(subject)
                self._wait(source, copy_streams[way], self._record(source, streams[source]))
                tensor = subject.tensor
                self._row(
                    COPY,
                    source,
                    copy_streams[way],
                    subject.place.data_ptr(),
                    tensor.data_ptr(),
                    target.index,
                    tensor.numel() * tensor.element_size(),
                )
                arrivals[subject] = self._record(source, copy_streams[way])
            else:
                target = subject.place.device
                self._wait(target, streams[target], arrivals[subject])
        for (source, target), stream in copy_streams.items():
            end = self._record(source, stream)
            for device in dict.fromkeys((source, target)):
                self._wait(device, streams[device], end)
        self.table = torch.tensor(self.rows, dtype=torch.int64).reshape(-1, COLUMNS)

    def _row(self, kind, device, stream, handle, *copy):
        self.kept.append(stream)
        self.rows.append([kind, device.index, stream.cuda_stream, handle, *(copy or (0, 0, 0))])

    def _record(self, device, stream):
        event = stream.record_event()  # recorded once: until then torch's has no handle
        self.kept.append(event)
        self._row(RECORD, device, stream, event.cuda_event)
        return event

    def _wait(self, device, stream, event):
        self._row(WAIT, device, stream, event.cuda_event)


def _way(copy):
    return copy.tensor.device, copy.place.device
