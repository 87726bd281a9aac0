"""Streams that are not used by two at once, though torch gives each of its 32 out again and again."""
import collections
from dataclasses import dataclass

import pytest
import torch

from alexnet_mp import exchange, pipeline_raw, streams
from alexnet_mp.cuda_graphs import CudaGraphs

DEVICES = [torch.device("cuda:0"), torch.device("cuda:1")]
POOL = 32  # streams of a device (c10/cuda/CUDAStream.h, kStreamsPerPool)


@dataclass(frozen=True)
class Stream:
    device: torch.device
    number: int


@pytest.fixture
def pool(monkeypatch):
    """Stand-ins for torch's streams, given out as torch does."""
    asked = collections.Counter()

    def give(device):
        asked[device] += 1
        return Stream(device, (asked[device] - 1) % POOL)

    monkeypatch.setattr(torch.cuda, "Stream", give)
    monkeypatch.setattr(streams, "_kept", set())
    caches = pipeline_raw._stream, exchange._copy_streams
    for cache in caches:
        cache.cache_clear()
    yield asked
    for cache in caches:
        cache.cache_clear()  # of stand-ins


@pytest.mark.parametrize("before", [0, 1, 30])
def test_no_training_captures_on_a_stream_of_copies_or_of_the_thread_that_makes_batches(before, pool):
    """However often the process trains."""
    for device in DEVICES:
        for _ in range(before):
            torch.cuda.Stream(device)
    used = [pipeline_raw._stream(device) for device in DEVICES]
    used += [stream for way in (DEVICES, DEVICES[::-1]) for stream in exchange._copy_streams(*way)]
    assert len(set(used)) == 6
    for _ in range(2 * POOL):
        graphs = CudaGraphs(DEVICES)
        own = [*graphs.streams.values(), *graphs.update_streams.values()]
        assert [stream.device for stream in own] == DEVICES * 2
        assert len({*used, *own}) == 10
