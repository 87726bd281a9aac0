"""Which stream waits for which where tensors cross, and which memory is kept for it, on a stand-in that sees races."""

import pytest
import torch
from fake_streams import Memory

from alexnet_mp.network import exchange

ZERO, ONE = torch.device("cuda:0"), torch.device("cuda:1")
WAYS = pytest.mark.parametrize("target", [ONE, ZERO], ids=["two devices", "one device"])
COPY_STREAMS = pytest.mark.parametrize("copy_stream", [True, False], ids=["copy stream", "in order"])


def made(streams, device=ZERO):
    tensor = Memory(streams, device)
    tensor.write()
    return tensor


@WAYS
@COPY_STREAMS
def test_a_copy_is_read_by_whom_has_waited_for_it(streams, target, copy_stream):
    arrival = exchange.copy(made(streams), target, copy_stream)
    if copy_stream:
        with pytest.raises(AssertionError, match="doesn't wait for"):
            arrival.tensor.read()
    arrival.receive().read()
    with streams.entered(streams.new(target)):
        with pytest.raises(AssertionError, match="doesn't wait for"):
            arrival.tensor.read()
        arrival.receive().read()


@WAYS
def test_memory_is_kept_for_the_stream_that_reads_it_and_for_no_other(streams, target):
    tensor = made(streams)
    exchange.copy(tensor, target, copy_stream=True)
    out, into = exchange._copy_streams(ZERO, target)
    assert tensor.recorded == {out if target == ONE else into}
    tensor.free()
    tensor.recorded.clear()  # torch would give the memory to others on its own stream then, which waits for no copy
    with pytest.raises(AssertionError, match="may still use what is freed"):
        tensor.free()


@WAYS
@COPY_STREAMS
def test_what_has_arrived_is_kept_for_the_stream_that_received_it(streams, target, copy_stream):
    arrival = exchange.copy(made(streams), target, copy_stream)
    with streams.entered(streams.new(target)):
        tensor = arrival.receive()
        tensor.read()
    tensor.free()


@WAYS
@COPY_STREAMS
@pytest.mark.parametrize("aside", [True, False])
def test_a_gradient_is_awaited_by_the_stream_of_the_forward_pass(streams, target, copy_stream, aside):
    """Where backward runs in a thread of the reader's device, the default stream is current on the other one."""
    home, there = [streams.new(device) if aside else streams.current_on(device) for device in (ZERO, target)]
    carrier = exchange.Exchange((ZERO, target), copy_stream=copy_stream)
    carrier.shared = False  # it copies within one device, too
    with streams.entered(there), streams.entered(home):
        crossing = exchange.Crossing(carrier, "conv3", made(streams), 0, 1)
        with streams.entered(there):
            crossing.receive().read()
    with streams.another_thread(there):
        gradient = made(streams, target)
        home_gradient = crossing.send_back(gradient)()
        gradient.free()
    with streams.entered(home):
        home_gradient.read()
        home_gradient.free()


@WAYS
@COPY_STREAMS
def test_what_a_standing_copy_reads_and_writes_is_free_once_all_has_settled(streams, target, copy_stream):
    carrier, tensor = exchange.Exchange((ZERO, target), copy_stream=copy_stream), made(streams)
    copy = carrier.standing("conv3", "forward", {0: tensor}, {1: tensor})[1]
    for number in range(3):
        copy.begin()
        copy.receive()
        copy.place.read()
        if copy_stream and target == ONE:  # on one device the stream that received the copy has waited for all there is
            with pytest.raises(AssertionError, match="writes what .* may still use"):
                tensor.write()
            with pytest.raises(AssertionError, match="writes what .* may still use"):
                copy.begin()
        exchange.settle((ZERO, target))
        tensor.write()
    assert tensor.recorded == set()
