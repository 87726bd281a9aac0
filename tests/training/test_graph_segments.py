"""A pass cut at the crossings: what each device computes, in which order, and what flies meanwhile."""

import gc
from contextlib import closing

import pytest
import torch
from inner_cases import every
from overlapped import FROZEN, LABELS, Called, Products, apart, gradients, images

from alexnet_mp import mini
from alexnet_mp.data.batches_ahead import ahead
from alexnet_mp.network import exchange
from alexnet_mp.network.network import merge_tensors
from alexnet_mp.recipes.recipe import change_layers
from alexnet_mp.training import cuda_graphs
from alexnet_mp.training.graph_segments import forward_and_backward

TWO = [torch.device("cuda:0"), torch.device("cuda:1")]
RECIPES = {
    "four edges": mini(),
    "a fifth": change_layers(mini(), "conv4", reads="both"),
    "one edge": change_layers(mini(), "conv3", "fc6", "fc7", reads="own"),
}


class Playing:
    """In place of a `Tape`: runs what it is given, writes down the order, and refuses a tower what lies with the
    other."""

    def __init__(self):
        self.events, self.owners, self.kept = [], {}, []

    def belongs(self, tower, tensors):
        self.kept += tensors  # so that no other gets the same id
        self.owners |= {id(tensor): tower for tensor in tensors}

    def run(self, tower, function, *arguments):
        for argument in arguments:
            for tensor in argument if isinstance(argument, list) else [argument]:
                assert not isinstance(tensor, torch.Tensor) or self.owners[id(tensor)] == tower
        self.events.append((function.__name__, "ab"[tower]))
        results = function(*arguments)
        self.belongs(tower, results)
        return results

    def cross(self, edge, pass_, outgoing, arriving):
        assert all(self.owners[id(tensor)] == tower for tower, tensor in outgoing.items())
        assert all(self.owners[id(tensor)] == tower for tower, tensor in arriving.items())
        assert all(outgoing[1 - tower].shape == like.shape for tower, like in arriving.items())
        self.events += [(f"send {edge} {pass_}", "ab"[1 - tower]) for tower in arriving]
        return {tower: (outgoing[1 - tower].clone(), tower) for tower in arriving}

    def receive(self, copy):
        tensor, target = copy
        self.events.append(("receive", "ab"[target]))
        self.belongs(target, [tensor])
        return tensor

    def told(self, numbers, dtype):
        return numbers


def played(network, x):
    tape, both = Playing(), [x.clone(), x.clone()]
    for tower, own in enumerate(both):
        tape.belongs(tower, [own])
    numbers = forward_and_backward(network, both, LABELS, tape)
    return tape, numbers


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_it_is_the_pass_of_the_network(recipe):
    x = images(recipe)
    network, other = apart(recipe), apart(recipe)
    network.count_step(begins=False, first_row=7)  # as a part of a minibatch leaves it
    logits, expected = gradients(other, x)
    _, (loss, right) = played(network, x)
    assert loss == torch.nn.functional.cross_entropy(logits, LABELS) and right == (logits.argmax(1) == LABELS).sum()
    assert network.step == other.step == 1
    for name, parts in network.layer_parameters().items():
        assert torch.equal(merge_tensors({name: [part.grad for part in parts]})[name], expected[name]), name


def test_the_own_half_is_computed_while_the_other_flies():
    """Forward both crossings begin before either product; backward what has to cross is sent before the rest is
    computed."""
    tape, _ = played(apart(mini()), images(mini()))
    events = tape.events
    assert events[:2] == [("start", "a"), ("start", "b")]
    for edge in ("conv3", "fc6", "fc7"):
        first = events.index((f"send {edge} forward", "b"))
        assert events[first : first + 8] == [
            (f"send {edge} forward", "b"),
            (f"send {edge} forward", "a"),
            *[(what, tower) for tower in "ab" for what in ("begin", "receive", "end")],
        ]
    last = events.index(("send fc8 forward", "b"))
    assert events[last : last + 4] == [("send fc8 forward", "b"), ("begin", "a"), ("receive", "a"), ("end", "a")]
    assert events[last + 4 : last + 8] == [
        ("backward", "a"),
        ("send fc8 backward", "a"),
        ("backward_of_product", "a"),
        ("receive", "b"),
    ]
    for edge in ("fc7", "fc6", "conv3"):
        first = events.index((f"send {edge} backward", "b")) - 2
        rest = [
            (what, tower) for what in ("backward", f"send {edge} backward", "backward_of_product") for tower in "ba"
        ]
        assert events[first : first + 6] == rest and sorted(events[first + 6 : first + 8]) == [
            ("receive", "a"),
            ("receive", "b"),
        ]
    assert events[-2:] == [("backward", "b"), ("backward", "a")]


@pytest.mark.run
@every("frozen", ["", "conv1.", "conv1. conv2.", "conv3.weight", "conv3.", "conv1. conv2. conv3.", "fc6. conv2.bias"])
def test_no_gradient_that_nobody_wants_is_computed(frozen):
    """Those of convolutions are the ones that autograd computes."""
    x, records = images(mini()), []
    for compute in (gradients, played):
        network, operations = apart(mini()), []
        for name, parts in network.layer_parameters().items():
            for part in parts:
                part.requires_grad_(not any(start in name for start in frozen.split()))
        with Products(operations):
            compute(network, x)
        records.append(sorted(operations))
    assert records[0] == records[1]


@pytest.mark.run
@every("frozen", FROZEN)
def test_a_matrix_gets_its_gradient_half_by_half(frozen):
    """The bits of the eager pass, and as many products."""
    x, gradient_lists, counts = images(mini(), torch.float32), [], []
    for compute in (gradients, played):
        network, counter = apart(mini(), dtype=torch.float32), Called()
        for name, parts in network.layer_parameters().items():
            for part in parts:
                part.requires_grad_(not any(name.startswith(start) for start in frozen.split()))
        with counter:
            compute(network, x)
        gradient_lists.append([part.grad for parts in network.layer_parameters().values() for part in parts])
        counts.append(counter.counts[torch.ops.aten.mm.out])
    assert counts[0] == counts[1] > 0
    assert all(
        one is other or torch.equal(one, other) and one.stride() == other.stride()
        for one, other in zip(*gradient_lists, strict=True)
    )


def test_a_tape_captures_on_each_towers_device():
    class Graphs:
        def capture(self, function, pool, device, update=False):
            assert not update
            captures.append(device)
            return self, function()

        def replay(self):
            replays.append(True)

    captures, replays = [], []
    tape = cuda_graphs.Tape(Graphs(), None, exchange.Exchange(("cpu", "meta")))
    assert tape.run(1, lambda x: [x], 7) == [7] and tape.run(0, list) == []
    tape.replay()
    assert [device.type for device in captures] == ["meta", "cpu"] and len(replays) == 2


def test_what_is_launched_aside_waits_for_what_was_before_and_is_waited_for(monkeypatch):
    events, current = [], {}

    class Stream:
        def __init__(self, device, name):
            self.device, self.name = device, f"{name} {device}"

        def wait_stream(self, other):
            events.append(f"{self.name} waits for {other.name}")

        def __enter__(self):
            self.before, current[self.device] = current[self.device], self

        def __exit__(self, *_):
            current[self.device] = self.before

    monkeypatch.setattr(cuda_graphs, "stream_for", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", current.__getitem__)
    current.update({device: Stream(device, "usual") for device in ("0", "1")})
    graphs = cuda_graphs.CudaGraphs(["0", "1"])
    with pytest.raises(ValueError), graphs.aside():
        assert [current[device].name for device in "01"] == ["graphs 0", "graphs 1"]
        assert sorted(events) == ["graphs 0 waits for usual 0", "graphs 1 waits for usual 1"]
        events.clear()
        raise ValueError
    assert sorted(events) == ["usual 0 waits for graphs 0", "usual 1 waits for graphs 1"]
    assert [current[device].name for device in "01"] == ["usual 0", "usual 1"]


class Capture:
    """In place of `torch.cuda.graph`."""

    streams = []

    def __init__(self, graph, pool, stream, capture_error_mode):
        assert pool == f"pool {stream.device}" and capture_error_mode == "thread_local"
        self.streams.append(stream)

    def __enter__(self):
        pass

    def __exit__(self, *_):
        pass


def test_updates_are_captured_on_a_stream_of_their_own(streams, monkeypatch):
    """They are reset while the other graphs of their device live on, which must not have used that stream."""
    capture_streams = []
    monkeypatch.setattr(Capture, "streams", capture_streams)
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    graphs = cuda_graphs.CudaGraphs(TWO)
    for device in TWO:
        for update in (False, True, False, True):
            graphs.capture(list, {device: f"pool {device}"}, device, update=update)
    assert [stream.device for stream in capture_streams] == [TWO[0]] * 4 + [TWO[1]] * 4 and len(
        set(capture_streams)
    ) == 4
    assert all(capture_streams[number] is capture_streams[number + 2] for number in (0, 1, 4, 5))
    # those of the eager steps before, with cuBLAS's workspaces
    assert [capture_streams[0], capture_streams[4]] == [*graphs.streams.values()]


def test_after_a_refused_capture_one_of_nothing_ends_well(streams, monkeypatch):
    """Of which torch's generator learns that no capture goes on; dropped, it breaks no graph of the other's stream."""
    captures = []

    class Refused:
        def __init__(self, graph, pool=None, stream=None, capture_error_mode=""):
            self.of = pool, stream, capture_error_mode

        def __enter__(self):
            pass

        def __exit__(self, *_):
            captures.append(self.of)
            if len(captures) == 1:
                raise RuntimeError("operation not permitted when stream is capturing")

    class Graph:
        def pool(self):
            raise RuntimeError("it has not ended")

    monkeypatch.setattr(torch.cuda, "graph", Refused)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(torch._C, name, lambda *_: None, raising=False)
    graphs = cuda_graphs.CudaGraphs(TWO)
    with pytest.raises(RuntimeError, match="not permitted"):
        graphs.capture(list, {TWO[1]: "pool"}, TWO[1])
    (first, second) = captures
    assert first == ("pool", graphs.streams[TWO[1]], "thread_local") and second[::2] == (None, "thread_local")
    assert second[1].device == TWO[1] and second[1] not in (graphs.streams[TWO[1]], graphs.update_streams[TWO[1]])


def test_of_many_trainings_in_a_process_no_two_uses_share_a_stream(streams, monkeypatch):
    """A capture would hold what the thread that works ahead launches, or what crosses, if it were on their stream."""
    monkeypatch.setattr(gc, "collect", lambda: None)  # it takes a while
    with closing(ahead((({}, torch.tensor(number)) for number in range(10**6)), TWO)) as batches:
        next(batches)
        copy_streams = {stream for way in (TWO, TWO[::-1]) for stream in exchange._copy_streams(*way)}
        for _ in range(20):
            graphs = cuda_graphs.CudaGraphs(TWO)
            assert copy_streams.isdisjoint([*graphs.streams.values(), *graphs.update_streams.values()])
            with closing(ahead((({}, torch.tensor(number)) for number in range(2)), TWO)) as views:
                list(views)
    assert streams.asked == dict.fromkeys(TWO, 2 + 1 + 2)


@pytest.mark.run
def test_graphs_of_an_earlier_training_are_reset_before_there_are_new_ones(streams):
    """On the same streams, although nobody but themselves knows of them any more."""

    class Knot:
        def __init__(self):
            self.graphs, self.self = cuda_graphs.CudaGraphs(TWO), self

        def __del__(self):
            ends.append(True)

    ends = []
    gc.disable()
    try:
        Knot()
        assert not ends
        cuda_graphs.CudaGraphs(TWO)
        assert ends
    finally:
        gc.enable()
