"""Batches made ahead of the network that takes them, by a thread with streams of its own."""

import queue
import threading
from collections.abc import Generator, Sequence
from contextlib import closing

import torch

from ..system.devices import stream_for
from .batches import Batch
from .step_input import Uncropped

AHEAD = 2  # batches
_END = object()


def ahead(items: Generator, devices: Sequence[torch.device]) -> Generator:
    """Yield what a generator yields, made by a thread that is up to AHEAD items ahead of the consumer.

    The thread makes them on a stream of each CUDA device that is for such threads alone; the consumer's streams wait
    for an item's tensors. An exception in the thread is raised here. Closing ends the thread, after the item that it
    is making.
    """
    output, room, closed = queue.SimpleQueue(), threading.Semaphore(AHEAD), threading.Event()

    def make():
        try:
            for device in devices:
                torch.cuda.set_stream(stream_for(device, "batches ahead"))
            with closing(items):
                while True:
                    room.acquire()
                    if closed.is_set():
                        return
                    item = next(items, _END)
                    output.put((item, [torch.cuda.current_stream(device).record_event() for device in devices]))
                    if item is _END:
                        return
                    del item  # or it would live as long as the next one takes
        except BaseException as error:
            output.put((error, []))

    thread = threading.Thread(target=make, name="batches ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, events = output.get()
            room.release()
            if isinstance(item, BaseException):
                raise item
            if item is _END:
                return
            _wait_for(item, devices, events)
            yield item
            del item
    finally:
        closed.set()
        room.release()
        thread.join()


def _wait_for(item, devices, events):
    """Let the current streams wait until an item is made: a `Batch`, or ({device: pictures}, labels). events: one for
    each device, recorded when it was."""
    for device, event in zip(devices, events):
        torch.cuda.current_stream(device).wait_event(event)
    images, labels = (item.images, item.labels) if isinstance(item, Batch) else (item[0].values(), item[1])
    parts = [tensor for each in images for tensor in (each.tensors() if isinstance(each, Uncropped) else [each])]
    for tensor in [*parts, labels]:
        if tensor.is_cuda:  # the memory is the thread's stream's, which must not reuse it before this stream is done
            tensor.record_stream(torch.cuda.current_stream(tensor.device))
