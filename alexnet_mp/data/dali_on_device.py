"""A DALI pipeline on one device: fed batch by batch, asked for what it has made; and what a GPU may still read of that.

Importing this module does not import DALI."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..system.errors import UserError

if TYPE_CHECKING:
    from nvidia.dali.backend import TensorListCPU, TensorListGPU
    from nvidia.dali.data_node import DataNode
    from nvidia.dali.types import DALIDataType


class DaliOnDevice:
    """A DALI pipeline on one device: of every batch that it is fed it gives one TensorList, in their order.

    DALI knows a stream by its handle alone, and the default stream's is the same on every GPU: it is that of the device
    that is current.

    graph(this) -> its output. Raises UserError where DALI can't use the device.
    """

    def __init__(
        self, device: torch.device, batch_size: int, threads: int, graph: Callable[["DaliOnDevice"], "DataNode"]
    ):
        from nvidia.dali import Pipeline

        self.device, self.on_gpu, self.inputs, self.batches, self.loans = (
            device,
            device.type == "cuda",
            [],
            deque(),
            Lent(device),
        )
        # Depth 1: else the first schedule_run() would want more batches than there may be. More can be in work all the
        # same.
        self.pipe = Pipeline(
            batch_size, max(1, threads), (device.index or 0) if self.on_gpu else None, prefetch_queue_depth=1
        )
        try:
            with self.pipe:
                self.pipe.set_outputs(graph(self))
            self.pipe.build()
        except RuntimeError as error:
            failure = last_line(error)
        else:
            return
        self.close()
        raise UserError(f"--pipeline dali: DALI can't use {device}: {failure}; --pipeline torch works everywhere")

    def input(self, name: str, dtype: "DALIDataType", ndim: int, **options: str) -> "DataNode":
        """What the graph reads of each batch. dtype, ndim: of one value. options: as `external_source` takes them."""
        from nvidia.dali import fn

        self.inputs.append(name)
        return fn.external_source(name=name, dtype=dtype, ndim=ndim, no_copy=True, **options)

    def feed(self, inputs: Mapping[str, Sequence | np.ndarray]) -> None:
        """Start work on a batch. inputs: {name: its N values}, among them all that the graph has; kept until they were
        used."""
        batch = {name: inputs[name] for name in self.inputs}
        with self._here() as stream:
            for name, values in batch.items():
                self.pipe.feed_input(name, values, cuda_stream=stream)
            self.pipe.schedule_run()
        self.batches.append(batch)

    def take(self) -> "TensorListCPU | TensorListGPU":
        """The TensorList of the oldest batch, once it is made. On a GPU it may be used by the stream that is current
        now, and has to be kept until that has been done (`Lent`). Raises RuntimeError where DALI failed."""
        with self._here() as stream:
            (tensors,) = self.pipe.outputs(cuda_stream=stream)
        batch = self.batches.popleft()
        if self.on_gpu:
            self.loans.keep(batch)
        return tensors

    def close(self) -> None:
        """End its threads."""
        self.pipe = None  # ends when the last reference goes
        self.loans.wait()
        self.batches.clear()

    @contextmanager
    def _here(self):
        """The device is the current one, its current stream what is yielded; None for a CPU."""
        with current(self.device):
            yield torch.cuda.current_stream(self.device) if self.on_gpu else None


def current(device: torch.device) -> AbstractContextManager:
    """The device is the current one in here, if it is a GPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


class Lent:
    """What a GPU may still read or copy, while the host goes on: kept until its current stream has come that far."""

    def __init__(self, device: torch.device):
        self.device, self.things = device, deque()

    def keep(self, things: object) -> None:
        """After what reads them was launched on the device's current stream."""
        with torch.cuda.device(self.device):
            self.things.append((torch.cuda.current_stream().record_event(), things))
        while self.things and self.things[0][0].query():
            self.things.popleft()

    def wait(self) -> None:
        while self.things:
            self.things[0][0].synchronize()
            self.things.popleft()


def close_all(pipelines: dict[torch.device, DaliOnDevice]) -> None:
    """End them, and forget them."""
    for dali in pipelines.values():
        dali.close()
    pipelines.clear()


def refuses(device: torch.device, jpeg: np.ndarray, graph: Callable[[DaliOnDevice, str], "DataNode"]) -> bool:
    """Whether DALI's decoder fails on one file."""
    dali = DaliOnDevice(device, 1, 1, lambda dali: graph(dali, "jpeg"))
    try:
        dali.feed({"jpeg": [jpeg]})
        dali.take()
        return False
    except RuntimeError:
        return True
    finally:
        dali.close()


def last_line(error: BaseException) -> str:
    """What went wrong, of a message that may begin with a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "no longer valid" not in line]
    return lines[-1] if lines else type(error).__name__
