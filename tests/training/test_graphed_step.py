"""Steps as CUDA graphs have the same bits as eager ones: on a CPU with a fake of the captures, on a GPU with the real
ones."""

import sys

import fake_device
import pytest
import torch
from graph_pair import CPU, CUDA, GRAPHS_APART, OTHER, Pair, every_place, look, needs_gpu, needs_two, small
from inner_cases import every
from overlapped import CYCLES, delayed

from alexnet_mp import mini, paper
from alexnet_mp.network import exchange
from alexnet_mp.recipes.recipe import change_layers
from alexnet_mp.system.errors import UserError
from alexnet_mp.training import tape_program
from alexnet_mp.training.graphed_step import WARM_UP
from alexnet_mp.training.pending_steps import READ_EVERY, PendingSteps
from alexnet_mp.training.schedule import make_schedule

pytestmark = [pytest.mark.run, pytest.mark.usefixtures("exact"), pytest.mark.usefixtures("one_thread", "quick")]


@every_place
def test_twenty_steps_are_the_same_whether_graphed_or_not(where):
    pair = Pair(small(), **where)
    pair.set_rates()
    pair.train(*[4] * (6 if pair.on_cpu else 20))
    (shape,) = pair.graphed.shapes.values()
    assert shape.captured and shape.update and not pair.graphed.given_up
    # the update is captured a step after the rest; the first replay is the one that is compared with an eager pass
    if pair.on_cpu:
        graphs = GRAPHS_APART if where.get("apart") else 1
        assert (pair.graphs.captures, pair.graphs.replays) == (graphs + 1, 4 * graphs + 2)


@every_place
@every("dtype", [torch.float32, torch.bfloat16])
def test_steps_of_the_paper_with_fewer_units(dtype, where):
    on_cpu = where["devices"][0] == CPU
    # bfloat16 is slow there
    pair = Pair(small(mini() if on_cpu and dtype == torch.bfloat16 else paper()), **where, classes=10)
    pair.set_rates()
    pair.train(*[2] * 6 if on_cpu else [16] * 20, dtype=dtype)


@every_place
def test_other_rates_need_another_capture_of_the_update_alone(where):
    pair = Pair(small(), **where)
    pair.set_rates()
    pair.train(*[3] * 6)
    (shape,) = pair.graphed.shapes.values()
    first = shape.forward_and_backward
    for factor in (0.1, 0.1, 0.03):  # the second changes nothing
        pair.set_rates(factor)
        pair.train(3, 3, 3)
        assert shape.forward_and_backward is first and shape.update
    graphs = GRAPHS_APART if where.get("apart") else 1
    if pair.on_cpu:
        assert pair.graphs.captures == graphs + 3 and len(pair.graphs.living) == graphs + 1


@pytest.mark.slow
@every_place
@every("frozen", [["conv1"], ["conv2", "fc7"]])
def test_a_layer_freezes_and_thaws(frozen, where):
    pair = Pair(small(), **where)
    pair.set_rates()
    pair.train(*[3] * 5)
    for layers in (frozen, []):
        pair.set_rates(0.5, layers)
        pair.train(*[3] * (WARM_UP + 2))
        assert all(shape.captured and shape.update for shape in pair.graphed.shapes.values())
    if pair.on_cpu:
        assert len(pair.graphs.living) == (GRAPHS_APART if where.get("apart") else 1) + 1
        assert where.get("apart") or pair.graphs.captures == 6


@every_place
def test_nothing_is_trained(where):
    pair = Pair(small(), **where)
    pair.set_rates(frozen=[layer.name for layer in pair.recipe.layers])
    pair.train(*[2] * (WARM_UP + 3))
    pair.set_rates()
    pair.train(*[2] * (WARM_UP + 3))


@pytest.mark.slow
@every_place
def test_the_smaller_last_batch_of_an_epoch_has_graphs_of_its_own(where):
    pair = Pair(small(), **where)
    pair.set_rates()
    pair.train(*[4, 4, 3] * (WARM_UP + 2))
    pair.set_rates(0.1)
    pair.train(*[4, 4, 3] * 2)
    assert [bool(shape.captured and shape.update) for shape in pair.graphed.shapes.values()] == [True, True]


@every_place
def test_gradients_are_found_where_an_error_is_looked_for(where):
    """Those of the last step, though two shapes have their own; and a weight that becomes infinite is seen in the
    sums."""
    pair = Pair(small(), **where)
    pair.set_rates()
    pair.train(*[4, 3] * (WARM_UP + 2))
    optimizer, network = pair.optimizers[1], pair.networks[1]
    images, labels = pair.batch(4)
    images = [images[0].clone().fill_(float("inf"))] * len(images)
    loss, _, *sums = pair.graphed(images, labels, look)
    assert not torch.isfinite(loss) and not all(torch.isfinite(values).all() for values in sums)
    assert optimizer.non_finite()[0].startswith("gradient of ")
    assert network.step == pair.networks[0].step + 1


def test_the_loss_is_looked_at_before_a_weight_changes():
    pair = Pair(small())
    pair.set_rates()
    pair.train(*[2] * 6)
    before = [parameter.detach().clone() for parameter in pair.networks[1].parameters()]

    def refuse(loss):
        assert 0 < loss.item() < 100
        raise UserError("stop")

    with pytest.raises(UserError, match="stop"):
        pair.graphed(*pair.batch(2), refuse)
    assert all(map(torch.equal, before, pair.networks[1].parameters()))


@pytest.mark.parametrize(
    "together, apart",
    [([2], [66]), pytest.param([1, 2, 3, 4], [1, 12, 25, 33, 34, 60, 66], marks=pytest.mark.slow)],
    ids=["some", "all"],
)
def test_a_capture_that_fails_costs_nothing_but_the_graphs(together, apart, capsys):
    """1: the first of all; 2 (33 apart): the first update; what follows: those of the smaller batch, when others were
    replayed already."""
    for is_apart, number in [*((False, number) for number in together), *((True, number) for number in apart)]:
        pair = Pair(small(), must=False, apart=is_apart, fails=lambda capture: capture == number)
        pair.set_rates()
        pair.train(*[4, 4, 3] * 6)
        pair.set_rates(0.1, ["conv1"])
        pair.train(4, 3, 4)
        assert pair.graphs.captures == number and pair.graphs.living == [], (is_apart, number)
        assert capsys.readouterr().out.count("WARNING") == 1


def test_a_capture_that_fails_is_an_error_where_graphs_were_asked_for():
    pair = Pair(small(), fails=lambda capture: True)
    pair.set_rates()
    pair.train(2, 2, 2)
    with pytest.raises(
        UserError, match="--graphs on: .*: operation not permitted when stream is capturing; --graphs auto"
    ) as error:
        pair.train(2)
    assert "\n" not in str(error.value)


def spoil(replay, what):
    def spoiled(graph):
        replay(graph)
        if what == "loss" and graph.result:
            graph.result[0] += 1e-3
        for place in list(graph.made.values())[-1:] if what == "gradient" else []:
            place[-1] = torch.nan

    return spoiled


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_graphs_that_compute_something_else_are_given_up(what, apart, monkeypatch, capsys):
    """Seen before any of it is used: the run goes on as if there had been none, or ends where they were asked for."""
    monkeypatch.setattr(fake_device._FakeGraph, "replay", spoil(fake_device._FakeGraph.replay, what))
    for must in (False, True):
        pair = Pair(small(), apart=apart, must=must)
        pair.set_rates()
        pair.train(*[3] * WARM_UP)
        if must:
            with pytest.raises(UserError, match="--graphs on: .*: a replay has other bits than an eager step"):
                pair.train(3)
        else:
            pair.train(*[3] * 4)
            assert pair.graphed.given_up and pair.graphs.living == [] and capsys.readouterr().out.count("WARNING") == 1


@pytest.mark.parametrize("apart", [False, True])
def test_numbers_that_are_none_are_no_reason_to_give_graphs_up(apart):
    pair = Pair(small(), apart=apart)
    pair.set_rates()
    pair.train(*[3] * WARM_UP)
    images, labels = pair.batch(3)
    loss, *_ = pair.graphed([images[0].fill_(torch.inf)] * 2, labels, look)
    (shape,) = pair.graphed.shapes.values()
    assert loss.isnan() and shape.captured and not pair.graphed.given_up


def test_nor_are_passes_whose_results_always_differ():
    """Where an eager pass can't be repeated, there is nothing that a replay must have the bits of."""
    pair, passes = Pair(small()), []
    pair.set_rates()
    compute = pair.graphed.step.forward_and_backward

    def drifting(*arguments):
        loss, right = compute(*arguments)
        passes.append(loss)
        return loss + len(passes), right

    pair.graphed.step.forward_and_backward = drifting
    for _ in range(WARM_UP + 2):
        pair.graphed(*pair.batch(3), look)
    (shape,) = pair.graphed.shapes.values()
    assert shape.captured and not pair.graphed.given_up


# --- from crossing to crossing

FIFTH = change_layers(mini(), "conv4", reads="both")
LOCAL = change_layers(mini(), "conv4", kind="local", reads="both", kernel=4, stride=2, pad=1, maps=5)
NO_MEETING = change_layers(mini(), "conv3", "fc6", "fc7", reads="own")
OTHERS = {"a fifth edge": FIFTH, "a local layer": LOCAL, "one edge": NO_MEETING}


@pytest.mark.parametrize("recipe", OTHERS.values(), ids=OTHERS)
def test_other_networks(recipe):
    pair = Pair(small(recipe), apart=True)
    pair.set_rates()
    pair.train(*[3] * 6)
    assert len(pair.graphs.living) > 2


@every(
    "frozen",
    [
        ["conv1", "conv2"],
        ["fc6"],
        ["conv3.weight"],
        ["conv3.bias", "fc7.bias"],
        ["fc8"],
        ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"],
    ],
)
def test_gradients_that_nobody_wants_neither_cross_nor_are_computed(frozen):
    pair = Pair(small(), apart=True)
    rates = make_schedule(pair.recipe).rates(1)
    for optimizer in pair.optimizers:
        optimizer.set_rates(
            {name: 0.0 if name in frozen or name.partition(".")[0] in frozen else rate for name, rate in rates.items()}
        )
    pair.train(*[3] * 6)
    (shape,) = pair.graphed.shapes.values()
    assert shape.captured and shape.update


def test_a_graph_reads_no_copy_before_it_has_arrived(monkeypatch):
    """A copy is NaN until it is waited for, and made only then."""

    class Late(exchange.Arrival):
        def receive(self, stream=None):
            if self.event is not None:
                self.tensor.copy_(self.event)
            return self.tensor

    def begin(tensor, device, copy_stream, place=None):
        return Late(torch.full_like(tensor, torch.nan) if place is None else place.fill_(torch.nan), tensor)

    monkeypatch.setattr(exchange, "copy", begin)
    pair = Pair(small(), apart=True)
    pair.set_rates()
    pair.train(*[3] * 6)
    assert all(torch.isfinite(parameter).all() for parameter in pair.networks[1].parameters())


@needs_gpu
def test_a_refused_capture_on_a_gpu_leaves_the_same_numbers(monkeypatch, capsys):
    """A step that waits for the device can't be captured. Memory that other streams read is used again afterwards, and
    torch's generator draws as before."""
    pair = Pair(small(), (CUDA, CUDA), must=False)
    pair.set_rates()
    function = pair.graphed.step.forward_and_backward
    monkeypatch.setattr(
        pair.graphed.step,
        "forward_and_backward",
        lambda *arguments: (torch.cuda.synchronize(), function(*arguments))[1],
    )
    pair.train(*[4] * (WARM_UP + 3))
    assert pair.graphed.given_up and "WARNING" in capsys.readouterr().out
    torch.cuda.manual_seed(0)
    numbers = torch.rand(3, device=CUDA)
    torch.cuda.manual_seed(0)
    assert torch.equal(torch.rand(3, device=CUDA), numbers)
    other, sizes = torch.cuda.Stream(CUDA), []
    for _ in range(20):
        tensor = torch.empty(2**24, dtype=torch.uint8, device=CUDA)
        tensor.record_stream(other)
        del tensor
        torch.cuda.synchronize()
        sizes.append(torch.cuda.memory_reserved(CUDA))
    assert sizes[-1] == sizes[2]


def delay_rows(monkeypatch, where, devices):
    """`delayed`, for the copies of a table: a pause before the copy on its stream ("out"), after it ("into"), or of
    what computes.
    """
    row, pauses = tape_program.Program._row, {}
    for device in devices:
        pauses[device] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(pauses[device], stream=torch.cuda.Stream(device)):  # torch's own is of the first device
            torch.cuda._sleep(CYCLES)

    def slow(self, kind, device, stream, *numbers):
        before, after = [
            [(device, stream)] if kind == tape_program.COPY and where == side else [] for side in ("out", "into")
        ]
        if kind == tape_program.COPY and where == "compute":
            after = list(self.streams.items())
        for place, on in before:
            row(self, tape_program.LAUNCH, place, on, pauses[place].raw_cuda_graph_exec())
        row(self, kind, device, stream, *numbers)
        for place, on in after:
            row(self, tape_program.LAUNCH, place, on, pauses[place].raw_cuda_graph_exec())

    monkeypatch.setattr(tape_program.Program, "_row", slow)


@pytest.mark.parametrize("where", ["out", "into", "compute"])
@pytest.mark.parametrize(
    "devices",
    [
        pytest.param((CUDA, CUDA), marks=needs_gpu, id="one GPU"),
        pytest.param((CUDA, OTHER), marks=needs_two, id="two GPUs"),
    ],
)
@pytest.mark.parametrize("tape", ["Python", "compiled"])
def test_no_race_between_graphs_and_copies(tape, devices, where, monkeypatch):
    """With pauses on either side of every copy: steps with two shapes of batch, a validation in between."""
    if tape == "Python":
        monkeypatch.setattr(tape_program, "operator", lambda: None)
    elif tape_program.operator() is None:
        pytest.skip("the compiled library has no replay_tape")
    if where == "out" and devices[0] == devices[1]:
        pytest.skip("within one device the copy runs on the target's stream alone")
    delay_rows(monkeypatch, where, devices)
    pair = Pair(small(), devices, apart=True)
    pair.set_rates()
    with delayed(monkeypatch, where):
        pair.train(*[4, 4, 3] * 4)
        for network in pair.networks:
            with torch.no_grad():
                network.eval()(*pair.batch(5)[0])
            network.train()
        pair.set_rates(0.1, ["conv1"])
        pair.train(*[4, 4, 3] * 4)
    assert not pair.graphed.given_up


# --- what a step may not do on a GPU


@needs_gpu
def test_memory_does_not_grow_with_the_rates_changes():
    pair, memory = Pair(small(), (CUDA, CUDA)), []
    pair.set_rates()
    pair.train(*[4, 3] * 5)
    sgd = sys.modules.get("alexnet_mp.kernels.sgd_triton")  # not where the reference computes
    others = len(sgd._captured) if sgd else 0
    for change in range(30):
        pair.set_rates(1 / (change + 1))
        pair.train(4, 4, 4, 3, 3)
        torch.cuda.synchronize()
        memory.append((torch.cuda.memory_allocated(CUDA), torch.cuda.memory_reserved(CUDA)))
    assert all(last <= early for last, early in zip(memory[-1], memory[5], strict=True))
    if sgd:
        assert len(sgd._captured) == others and [len(shape.tables) for shape in pair.graphed.shapes.values()] == [1, 1]


@needs_gpu
@pytest.mark.parametrize("graphs", ["whole step", "from crossing to crossing", "off"])
def test_a_step_does_not_wait_for_the_device(graphs):
    """By the words of torch's own check, and of the runtime calls that a profiler sees."""
    pair = Pair(small(), (CUDA, CUDA), apart=graphs == "from crossing to crossing")
    pair.set_rates()
    step, batch, pending, records = pair.steps[graphs != "off"], pair.batch(4), PendingSteps([CUDA]), []

    def steps(count, wait=False):
        for _ in range(count):
            pending.add(len(records), [0], 0, step(*batch, look))
            records.extend(pending.read(wait))

    steps(2 * READ_EVERY)  # captures, page-locked memory
    records.extend(pending.read(wait=True))
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps(READ_EVERY - 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    records.extend(pending.read(wait=True))
    with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as profile:
        with torch.profiler.record_function("all steps"):
            steps(READ_EVERY - 1)
    records.extend(pending.read(wait=True))
    assert len(records) == 4 * READ_EVERY - 2 and all(seconds > 0 for _, seconds in records)
    (span,) = {
        (event.time_range.start, event.time_range.end)
        for event in profile.events()
        if event.name == "all steps" and event.device_type == torch.autograd.DeviceType.CPU
    }
    calls = [event.name for event in profile.events() if span[0] <= event.time_range.start <= span[1]]
    assert any(name.startswith("cuda") for name in calls)  # the runtime's calls are seen
    assert not {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy"} & set(calls)
    launches = {"whole step": 2, "from crossing to crossing": GRAPHS_APART + 1, "off": 0}[graphs]
    assert calls.count("cudaGraphLaunch") == launches * (READ_EVERY - 1)
