"""The training steps whose numbers are on their way to the host, and when the host waits for them: as seldom as it may.

A GPU is given its next steps while it computes one. A host that read each step's loss would wait for the device every
time, and the device for the host after that. So the numbers of a step are copied to page-locked memory behind it, and
read when an event says that they are there. On a CPU they are there at once."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import torch

READ_EVERY = 16  # steps: with so many unread the host waits


@dataclass(frozen=True)
class PendingStep:
    """A step whose numbers are not read yet."""

    step: int
    images: np.ndarray  # (N,) int64: which training images
    exchanged: int  # bytes
    numbers: list  # tensors on the host: loss, right, sums of weights; valid once all `ends` have been reached
    begin: "torch.cuda.Event | _Now"  # the end of the step before, or when the clock was started: a `mark`
    ends: list  # one a device

    def is_there(self) -> bool:
        return all(end.query() for end in self.ends)


class PendingSteps:
    """The steps taken and not read yet. devices: the towers'. least: of a number, the smallest that any process of the
    job has; those that take a step together have to read it together."""

    def __init__(self, devices: Iterable[torch.device], least: Callable[[int], int] = int):
        self.least = least
        # A GPU first: where there is one, the time that a step takes is taken on it.
        self.devices = sorted(dict.fromkeys(devices), key=lambda device: device.type != "cuda")
        self.unread = deque()
        self.start_clock()

    def start_clock(self) -> None:
        """Let the next step's time begin now: what came before, say a validation, was no part of it."""
        self.before = mark(self.devices[0])

    def add(
        self, step: int, images: np.ndarray | Sequence[int], exchanged: int, numbers: Sequence[torch.Tensor]
    ) -> None:
        """numbers: tensors on the devices. They are copied in the order of the current streams; the host doesn't
        wait."""
        copies = [tensor.to("cpu", non_blocking=True, copy=True) for tensor in numbers]
        ends = [mark(device) for device in self.devices]
        self.unread.append(PendingStep(step, images, exchanged, copies, self.before, ends))
        self.before = ends[0]

    def read(self, wait: bool) -> Iterator[tuple[PendingStep, float]]:
        """Yield (`PendingStep`, seconds from the end of the one before), oldest first.

        All if `wait`, else those that are there. If READ_EVERY are unread all the same, the host waits for the older
        half of them. Not for all: the device would have nothing to do then until the host has given it the next step.
        """
        for _ in range(self.least(self._ready_count())):
            yield self._pop()
        if wait or len(self.unread) >= READ_EVERY:
            for _ in range(len(self.unread) if wait else READ_EVERY // 2):
                for end in self.unread[0].ends:
                    end.synchronize()
                yield self._pop()

    def _ready_count(self):
        """How many have all their numbers, of the oldest."""
        return sum(1 for _ in takewhile(PendingStep.is_there, self.unread))

    def _pop(self):
        step = self.unread.popleft()
        return step, max(step.begin.elapsed_time(step.ends[0]) / 1e3, 1e-9)


def mark(device: torch.device) -> "torch.cuda.Event | _Now":
    """A point in the work of a device's current stream, as CUDA's events are."""
    if device.type != "cuda":
        return _Now()
    return torch.cuda.current_stream(device).record_event(torch.cuda.Event(enable_timing=True))


class _Now:
    """What an event is where the host computes: reached when it is made."""

    def __init__(self):
        self.seconds = time.perf_counter()

    def query(self):
        return True

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        """Milliseconds."""
        return 1e3 * (end.seconds - self.seconds)
