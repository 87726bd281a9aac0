"""A tape as a table: the calls of the operator, compiled for a CPU, and that nothing is read before it is there or
written too early.
"""

import ctypes
import shutil
import subprocess
import types
from pathlib import Path

import pytest
import torch
from overlapped import LABELS, apart, images

from alexnet_mp import mini
from alexnet_mp.recipes.recipe import change_layers
from alexnet_mp.training import cuda_graphs, graph_segments, tape_program

SOURCE = Path(__file__).parents[1].joinpath("tape_on_host.cpp")
GET, SET, LAUNCH, RECORD, WAIT, COPY_WITHIN, COPY_BETWEEN = range(7)  # as in tape_on_host.cpp
WORDS, REFUSED = 8, 400  # of a row there; an error
DEVICES = [torch.device("cuda:0"), torch.device("cuda:1")]
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to compile the host code for stand-ins")


@pytest.fixture(scope="module")
def on_host(tmp_path_factory):
    """(table, device=0, fail=-1) -> (calls, (action, error) or None, name of the call that failed, device
    afterwards)."""
    path = tmp_path_factory.mktemp("tape") / "tape.so"
    subprocess.run(
        ["g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", path, SOURCE], check=True
    )
    library = ctypes.CDLL(str(path))
    library.tape_on_host.restype = ctypes.c_int64
    library.tape_calls.restype = ctypes.POINTER(ctypes.c_int64)
    assert library.tape_columns() == tape_program.COLUMNS

    def replay(table, device=0, fail=-1):
        assert table.is_contiguous() and table.dtype == torch.int64
        failure, name = (ctypes.c_int64 * 2)(), ctypes.c_char_p()
        count = library.tape_on_host(
            ctypes.c_void_p(table.data_ptr()),
            ctypes.c_int64(len(table)),
            device,
            ctypes.c_int64(fail),
            failure,
            ctypes.byref(name),
        )
        words = library.tape_calls()
        calls = [words[WORDS * call : WORDS * (call + 1)] for call in range(count)]
        return calls, None if failure[0] < 0 else tuple(failure), name.value.decode(), library.tape_device()

    return replay


class Numbered:
    """Things with handles: streams, events, graphs."""

    def __init__(self):
        self.things = []

    def stream(self, device):
        return self._numbered(
            types.SimpleNamespace(device=device),
            "cuda_stream",
            record_event=lambda: self._numbered(types.SimpleNamespace(), "cuda_event"),
        )

    def _numbered(self, thing, handle, **more):
        self.things.append(thing)
        setattr(thing, handle, 1000 + len(self.things))
        vars(thing).update(more)
        return thing

    def graph(self):
        number = self._numbered(types.SimpleNamespace(), "number").number
        return types.SimpleNamespace(raw_cuda_graph_exec=lambda: number, number=number)


class Copy:
    """A `StandingCopy` between two devices that aren't there."""

    def __init__(self, way, out, bytes=64):
        self.out = out
        self.tensor, self.place = (_Memory(device, bytes) for device in way)


class _Memory:
    given = 2**40

    def __init__(self, device, bytes):
        self.device, self.bytes, self.address = device, bytes, _Memory.given
        _Memory.given += bytes

    def data_ptr(self):
        return self.address

    def numel(self):
        return self.bytes // 2

    def element_size(self):
        return 2


def taped(recipe, devices):
    """(steps of a whole pass of a network, streams): it is computed on a CPU, as if its towers were on the devices."""
    registry = Numbered()
    streams = {device: registry.stream(device) for device in dict.fromkeys(devices)}
    copy_streams = {way: registry.stream(way[0]) for way in (tuple(devices), tuple(devices[::-1]))}

    class Writing(cuda_graphs.Tape):
        def run(self, tower, function, *arguments):
            self.steps.append(("launch", registry.graph(), devices[tower]))
            return function(*arguments)

        def cross(self, edge, pass_, outgoing, arriving):
            return {target: self.copied(outgoing[1 - target], 1 - target, target) for target in arriving}

        def copied(self, tensor, source, target):
            way = devices[source], devices[target]
            copy = Copy(way, copy_streams[way], tensor.numel() * tensor.element_size())
            self.steps.append(("send", copy))
            return copy, tensor.clone()

        def receive(self, sent):
            copy, tensor = sent
            self.steps.append(("receive", copy))
            return tensor

    network, x = apart(recipe), images(recipe)
    tape = Writing(None, None, network.exchange)
    graph_segments.forward_and_backward(network, [x, x.clone()], LABELS, tape)
    return tape.steps, streams


class Clocks:
    """What has certainly happened before what: streams are in order, and a wait knows all that its event knew."""

    def __init__(self):
        self.known, self.events, self.done = {}, {}, {}

    def play(self, calls):
        for what, _, *words in calls:
            if what == LAUNCH:
                graph, stream = words[:2]
                self._do(("graph", graph), stream)
            elif what in (COPY_WITHIN, COPY_BETWEEN):
                self._do(("copy", words[0]), words[4 if what == COPY_WITHIN else 5])
            elif what == RECORD:
                event, stream = words[:2]
                self.events[event] = set(self.known.setdefault(stream, set()))
            elif what == WAIT:
                stream, event = words[:2]
                self.known.setdefault(stream, set()).update(self.events[event])

    def _do(self, thing, stream):
        before = self.known.setdefault(stream, set())
        times = self.done.setdefault(thing, [])
        times.append(frozenset(before))
        before.add((thing, len(times)))


RECIPES = {
    "four edges": mini(),
    "a fifth": change_layers(mini(), "conv4", reads="both"),
    "one edge": change_layers(mini(), "conv3", "fc6", "fc7", reads="own"),
}


@pytest.mark.compile
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("devices", [DEVICES, DEVICES[:1] * 2], ids=["two devices", "one device, apart"])
def test_nothing_is_read_too_early_or_written_too_early(recipe, devices, on_host):
    steps, streams = taped(recipe, devices)
    table = tape_program.Program(steps, streams).table
    clocks = Clocks()
    for _ in range(3):
        clocks.play(on_host(table)[0])

    graphs = [(("graph", step[1].number), step[2]) for step in steps if step[0] == "launch"]
    assert all(len(clocks.done[graph]) == 3 for graph, _ in graphs)
    for position, (what, copy, *_) in enumerate(steps):
        if what != "send":
            continue
        thing = "copy", copy.place.data_ptr()
        before, after = [
            [("graph", subject.number) for kind, subject, *where in part if kind == "launch" and where == [device]]
            for part, device in (
                (steps[:position], copy.tensor.device),
                (steps[steps.index(("receive", copy)) :], copy.place.device),
            )
        ]
        all_graphs = [
            [graph for graph, device in graphs if device == where] for where in (copy.place.device, copy.tensor.device)
        ]
        for time in (1, 2, 3):
            for graph in before:  # what is copied was made
                assert (graph, time) in clocks.done[thing][time - 1]
            for graph in after:  # what is received has come
                assert (thing, time) in clocks.done[graph][time - 1]
            if time > 1:  # the place was read, and what is copied is not made anew before
                assert all((graph, time - 1) in clocks.done[thing][time - 1] for graph in all_graphs[0])
                assert all((thing, time - 1) in clocks.done[graph][time - 1] for graph in all_graphs[1])
    # Afterwards both devices' streams have waited for all of it.
    copies = [("copy", step[1].place.data_ptr()) for step in steps if step[0] == "send"]
    for stream in streams.values():
        assert all((copy, 3) in clocks.known[stream.cuda_stream] for copy in copies)


@pytest.mark.compile
def test_the_own_half_is_computed_while_the_other_flies(on_host):
    """No graph waits for a copy but those after the one that receives it."""
    steps, streams = taped(mini(), DEVICES)
    clocks = Clocks()
    clocks.play(on_host(tape_program.Program(steps, streams).table)[0])
    receipts = {device: set() for device in DEVICES}
    for what, subject, *where in steps:
        if what == "receive":
            receipts[subject.place.device].add(("copy", subject.place.data_ptr()))
        elif what == "launch":
            copies = {thing for thing, _ in clocks.done["graph", subject.number][0] if thing[0] == "copy"}
            # What the other tower had received before it sent is known, too; but nothing that flies now.
            sent_here = {
                ("copy", copy.place.data_ptr())
                for kind, copy, *_ in steps
                if kind == "send" and copy.place.device == where[0]
            }
            assert copies & sent_here == receipts[where[0]]


@pytest.mark.compile
def test_the_calls_are_those_of_the_table(on_host):
    """Devices are made current where they have to be, and the one of before in the end; a copy within a device is
    one."""
    registry = Numbered()
    streams = {device: registry.stream(device) for device in DEVICES}
    first, second = registry.graph(), registry.graph()
    out = registry.stream(DEVICES[1])
    copy = Copy((DEVICES[1], DEVICES[0]), out, 48)
    steps = [("launch", first, DEVICES[1]), ("send", copy), ("receive", copy), ("launch", second, DEVICES[0])]
    program = tape_program.Program(steps, streams)
    calls, failure, name, device = on_host(program.table, device=0)
    assert (failure, name, device) == (None, "", 0)
    main = [call for call in calls if call[0] in (LAUNCH, COPY_BETWEEN, COPY_WITHIN)]
    assert main == [
        [LAUNCH, 1, first.number, streams[DEVICES[1]].cuda_stream, 0, 0, 0, 0],
        [COPY_BETWEEN, 1, copy.place.data_ptr(), 0, copy.tensor.data_ptr(), 1, 48, out.cuda_stream],
        [LAUNCH, 0, second.number, streams[DEVICES[0]].cuda_stream, 0, 0, 0, 0],
    ]
    assert [call[0] for call in calls].count(SET) <= 6 and calls[0][0] == GET
    for what, current, *words in calls:  # an event is recorded on a stream of the current device
        if what == RECORD:
            candidates = [stream for stream in (*streams.values(), out) if stream.device.index == current]
            assert words[1] in [stream.cuda_stream for stream in candidates]
    local_copy = Copy(DEVICES[:1] * 2, registry.stream(DEVICES[0]), 48)
    program = tape_program.Program([("send", local_copy), ("receive", local_copy)], {DEVICES[0]: streams[DEVICES[0]]})
    calls = on_host(program.table, device=1)[0]
    place, source = local_copy.place.data_ptr(), local_copy.tensor.data_ptr()
    assert [COPY_WITHIN, 0, place, source, 48, 3, local_copy.out.cuda_stream, 0] in calls
    assert calls[-1][0] == SET and calls[-1][2] == 1


@pytest.mark.compile
def test_an_empty_table(on_host):
    calls, failure, _, device = on_host(torch.empty(0, tape_program.COLUMNS, dtype=torch.int64), device=1)
    assert [call[0] for call in calls] == [GET] and failure is None and device == 1


NAMES = {
    GET: "cudaGetDevice",
    SET: "cudaSetDevice",
    LAUNCH: "cudaGraphLaunch",
    RECORD: "cudaEventRecord",
    WAIT: "cudaStreamWaitEvent",
    COPY_WITHIN: "cudaMemcpyAsync",
    COPY_BETWEEN: "cudaMemcpyPeerAsync",
}


@pytest.mark.compile
@pytest.mark.parametrize("devices", [DEVICES, DEVICES[:1] * 2], ids=["two devices", "one device, apart"])
def test_every_call_that_fails_is_named(devices, on_host):
    """And is the last; the current device is what it was."""
    table = tape_program.Program(*taped(mini(), devices)).table
    calls = on_host(table)[0]
    for number, (what, *_) in enumerate(calls):
        calls_made, failure, name, device = on_host(table, fail=number)
        assert (name, failure[1]) == (NAMES[what], REFUSED)
        rows = [row for row, call in enumerate(calls[: number + 1]) if call[0] not in (GET, SET)]
        if what not in (GET, SET):
            assert failure[0] == len(rows) - 1 < len(table)
        kinds = [call[0] for call in calls_made[number + 1 :]]
        assert kinds in ([], [SET]) and (device == 0 or number == len(calls) - 1 or what == SET)


@pytest.mark.compile
def test_a_row_of_no_kind_is_refused(on_host):
    _, failure, name, _ = on_host(torch.tensor([[7, 0, 1, 1, 0, 0, 0]]))
    assert failure == (0, 1) and name == "no such kind of action"


@pytest.fixture
def compiled(monkeypatch):
    """A library that has the operator. What is replayed is written down."""
    tables = []
    monkeypatch.setattr(tape_program, "operator", lambda: tables.append)
    return tables


class Graph:
    def __init__(self, history):
        self.happened, self.freed = history, False

    def raw_cuda_graph_exec(self):
        return 5

    def replay(self):
        self.happened.append("replay")

    def reset(self):
        self.freed = True


def tape_of(history, devices=DEVICES, copy_stream=True, graph=Graph):
    graphs = types.SimpleNamespace(
        streams={device: Numbered().stream(device) for device in devices},
        capture=lambda function, pool, device: (graph(history), function()),
    )
    exchange = types.SimpleNamespace(
        devices=devices, towers=range(len(devices)), copy_stream=copy_stream, between="devices"
    )
    tape = cuda_graphs.Tape(graphs, None, exchange)
    tape.run(0, list)
    return tape


def test_the_operator_replays_where_it_is_there(compiled):
    history = []
    tape = tape_of(history)
    tape.replay()
    tape.replay()
    assert history == [] and len(compiled) == 2 and compiled[0] is compiled[1]
    assert [row[3].item() for row in compiled[0] if row[0] == tape_program.LAUNCH] == [5]
    tape.reset()
    assert tape.steps[0][1].freed and not tape.program


def test_a_library_without_the_operator_leaves_it_to_python(monkeypatch):
    history = []
    monkeypatch.setattr(cuda_graphs, "settle", lambda devices: history.append("settle"))
    monkeypatch.setattr(tape_program, "operator", lambda: None)
    tape_of(history).replay()
    assert history == ["settle", "replay", "settle"]


@pytest.mark.parametrize("why", ["a CPU", "no copy stream", "an old torch", "gaps in memory", "another dtype"])
def test_what_a_table_can_not_say_is_left_to_python(why, compiled, monkeypatch):
    history = []
    monkeypatch.setattr(cuda_graphs, "settle", lambda devices: None)

    class OldGraph:
        def __init__(self, history):
            pass

        def replay(self):
            history.append("replay")

    tape = tape_of(
        history,
        [torch.device("cpu")] * 2 if why == "a CPU" else DEVICES,
        copy_stream=why != "no copy stream",
        graph=OldGraph if why == "an old torch" else Graph,
    )
    tensor, place = torch.ones(4, 6), torch.ones(4, 6)
    if why == "gaps in memory":
        tensor = place = torch.ones(4, 12)[:, :6]
    elif why == "another dtype":
        place = place.double()
    copy = types.SimpleNamespace(tensor=tensor, place=place, begin=lambda: history.append("begin"))
    tape.steps.append(("send", copy))
    tape.replay()
    assert history == ["replay", "begin"] and compiled == []


def test_the_operator_of_this_library_is_known():
    """Built without CUDA it has the schema alone, and a call says so."""
    tape_program.operator.cache_clear()
    if tape_program.operator() is None:
        operator = getattr(tape_program.compiled(), "replay_tape", None) if tape_program.compiled() else None
        if operator is None:
            pytest.skip("no compiled library, or one from before this operator")
        with pytest.raises(NotImplementedError):
            operator(torch.empty(0, tape_program.COLUMNS, dtype=torch.int64))
    else:
        with pytest.raises(RuntimeError, match="must be \\(n, 7\\) int64"):
            tape_program.operator()(torch.empty(3, dtype=torch.int64))
