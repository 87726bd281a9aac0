"""CUDA's streams and events, and torch's memory on devices, on a CPU: nothing is computed, but every race is seen.

A stream is a clock, and knows up to which moment of every other stream it has waited. A tensor refuses to be read or
written where CUDA would let that race with what was launched on another stream, and to be freed where another stream
may still use its memory when torch gives it to somebody else.
"""

import threading
from collections import Counter, namedtuple
from contextlib import contextmanager

import pytest
import torch

from alexnet_mp.network import exchange
from alexnet_mp.system import devices

OF_A_DEVICE = 32  # streams
Moment = namedtuple("Moment", "stream number")


@pytest.fixture
def streams(monkeypatch):
    """`Streams` in the place of `torch.cuda`'s."""
    stand_ins, empty_like = Streams(), torch.empty_like

    def make(tensor, device=None, **options):
        return Memory(stand_ins, device) if isinstance(tensor, Memory) else empty_like(tensor, device=device, **options)

    monkeypatch.setattr(torch.cuda, "Stream", stand_ins.new)
    monkeypatch.setattr(torch.cuda, "current_stream", stand_ins.current_on)
    monkeypatch.setattr(torch.cuda, "stream", stand_ins.entered)
    monkeypatch.setattr(torch.cuda, "set_stream", stand_ins.set)
    monkeypatch.setattr(torch, "empty_like", make)
    caches = [devices.stream_for, exchange._copy_streams]
    for cache in caches:
        cache.cache_clear()
    yield stand_ins
    for cache in caches:  # of stand-ins
        cache.cache_clear()


class Streams:
    def __init__(self):
        self.default, self.pools, self.asked, self.local = {}, {}, Counter(), threading.local()

    @property
    def current(self):
        """{device: stream} in this thread, where it isn't the default one."""
        return getattr(self.local, "current", {})

    @current.setter
    def current(self, streams):
        self.local.current = streams

    def set(self, stream):
        self.current = self.current | {stream.device: stream}

    def new(self, device):
        """As torch has it: one of 32 of the device, the one that was asked for longest ago."""
        device = torch.device(device)
        pool, number = self.pools.setdefault(device, []), self.asked[device]
        self.asked[device] += 1
        if number < OF_A_DEVICE:
            pool.append(Stream(device, f"stream {number} of {device}"))
        return pool[number % OF_A_DEVICE]

    def current_on(self, device):
        device = torch.device(device)
        if device not in self.default:
            self.default[device] = Stream(device, f"default of {device}")
        return self.current.get(device, self.default[device])

    @contextmanager
    def entered(self, stream):
        before, self.current = self.current, self.current | {stream.device: stream}
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def another_thread(self, *streams):
        """Default streams are current here, but for those given: autograd gives a node that of its forward pass."""
        before, self.current = self.current, {stream.device: stream for stream in streams}
        try:
            yield
        finally:
            self.current = before


class Stream:
    def __init__(self, device, name):
        self.device, self.name, self.knows = device, name, {self: 0}

    def __repr__(self):
        return self.name

    def launch(self):
        """The moment of one more kernel or copy."""
        self.knows[self] += 1
        return Moment(self, self.knows[self])

    def is_after(self, moment):
        return self.knows.get(moment.stream, 0) >= moment.number

    def record_event(self):
        return dict(self.knows)

    def wait_event(self, event):
        for stream, number in event.items():
            self.knows[stream] = max(self.knows.get(stream, 0), number)

    def wait_stream(self, other):
        self.wait_event(other.record_event())


class Memory:
    """A tensor on a fake device, made on the current stream: nothing but who uses its memory when."""

    is_cuda = True

    def __init__(self, streams, device):
        self.streams, self.device = streams, torch.device(device)
        self.owner, self.written, self.used, self.recorded = streams.current_on(device), None, [], set()

    def read(self):
        self._read(self.streams.current_on(self.device))

    def write(self):
        self._write(self.streams.current_on(self.device))

    def _read(self, stream):
        assert self.written is None or stream.is_after(self.written), f"{stream} doesn't wait for {self.written.stream}"
        self.used.append(stream.launch())

    def _write(self, stream):
        for moment in self.used:
            assert stream.is_after(moment), f"{stream} writes what {moment.stream} may still use"
        self.written = stream.launch()
        self.used.append(self.written)

    def detach(self):
        return self

    def numel(self):
        return 1

    def element_size(self):
        return 4

    def copy_(self, source, non_blocking=False):
        """On the source's current stream; before and after, one waits for the other (torch: ATen, `Copy.cu`)."""
        assert non_blocking
        there, here = self.streams.current_on(source.device), self.streams.current_on(self.device)
        there.wait_stream(here)
        source._read(there)
        self._write(there)
        here.wait_stream(there)
        return self

    def record_stream(self, stream):
        """The memory is given to nobody before `stream` has come to where it will be when the tensor is freed."""
        self.recorded.add(stream)

    def free(self):
        """From now on the stream that it was made on may be given the memory again."""
        for moment in self.used:
            over = moment.stream in self.recorded or self.owner.is_after(moment)
            assert over, f"{moment.stream} may still use what is freed"
