"""Steps as CUDA graphs have the same bits as eager ones: on a CPU with a fake of the captures, on a GPU with the real ones."""
import dataclasses
import json
import sys

import fake_device
import pytest
import torch
from conftest import one_thread  # noqa: F401
from fake_device import FakeGraphs, LateEvents
from test_exchange_overlap import delayed
from test_golden import GOLDEN
from tiny_run import (  # noqa: F401  (fixtures)
    PLATEAU, SOURCE2012, assert_same_end, bits, data, lines, quick, resume, run)

from alexnet_mp import TwoTowerAlexNet, exchange, graphed_step, mini, paper, taken_steps, train
from alexnet_mp.dataset import open_dataset
from alexnet_mp.errors import UserError
from alexnet_mp.cuda_graphs import CudaGraphs
from alexnet_mp.graphed_step import WARM_UP, GraphedStep
from alexnet_mp.optimizer import PaperSGD
from alexnet_mp.pipeline_torch import TorchPipeline
from alexnet_mp.recipe import change_layers
from alexnet_mp.schedule import make_schedule
from alexnet_mp.statistics import Sums
from alexnet_mp.taken_steps import READ_EVERY, TakenSteps
from alexnet_mp.training_step import TrainingStep

pytestmark = pytest.mark.usefixtures("one_thread", "quick")
GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not GPU, reason="needs a GPU")
CPU, CUDA, OTHER = torch.device("cpu"), torch.device("cuda:0"), torch.device("cuda:1")


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """As a training run has it."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def look(loss):
    pass


class Pair:
    """The same network twice: one trained eagerly, the other with graphs.

    devices: one a tower. apart: the towers carry everything to each other, as two devices would, although they may share one.
    """

    def __init__(self, recipe, devices=(CPU, CPU), classes=5, must=True, apart=False, **fake):
        self.recipe, self.devices, self.classes = recipe, devices[:recipe.towers], classes
        self.networks = [TwoTowerAlexNet(recipe, self.devices, classes) for _ in range(2)]
        for network in self.networks:
            network.exchange.shared &= not apart
        self.optimizers = [PaperSGD(network) for network in self.networks]
        eager, step = [TrainingStep(*both) for both in zip(self.networks, self.optimizers, strict=True)]
        self.on_cpu = devices[0] == CPU
        self.graphs = FakeGraphs(self.networks[1], self.optimizers[1], **fake) if self.on_cpu else CudaGraphs(dict.fromkeys(devices))
        self.graphed = GraphedStep(step, self.graphs, must)
        self.steps = [eager, self.graphed]
        self.draws = torch.Generator().manual_seed(0)

    def set_rates(self, factor=1.0, frozen=()):
        rates = {name: 0.0 if name.partition(".")[0] in frozen else factor * rate
                 for name, rate in make_schedule(self.recipe).rates(1).items()}
        for optimizer in self.optimizers:
            optimizer.set_rates(rates)

    def batch(self, count, dtype=torch.float32):
        size = self.recipe.crop_size
        images = (60 * torch.randn(count, 3, size, size, generator=self.draws)).to(dtype, memory_format=torch.channels_last)
        labels = torch.randint(0, self.classes, (count,), generator=self.draws).to(self.devices[0])
        places = {device: images.to(device) for device in self.devices}
        return [places[device] for device in self.devices], labels

    def train(self, *counts, **options):
        """Steps with batches of so many images; after each all that a run keeps is the same, bit for bit."""
        for count in counts:
            batch = self.batch(count, **options)
            numbers = [[tensor.clone() for tensor in step(*batch, look)] for step in self.steps]
            for one, other in zip(*map(self.state, range(2), numbers), strict=True):
                assert bits(one.cpu()) == bits(other.cpu())
            eager, graphed = (sorted(map(str, network.ledger())) for network in self.networks)  # two GPUs' backward passes interleave
            assert eager == graphed != []
            for network in self.networks:
                network.exchange.clear()  # as the pass of a validation does

    def state(self, which, numbers):
        network, optimizer = self.networks[which], self.optimizers[which]
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        velocities = [part for parts in optimizer.velocities().values() for part in parts]
        return [*numbers, *(tensor.detach() for tensor in network.parameters()), *network.buffers(), *velocities, *gradients]


def small(recipe=mini()):
    return change_layers(dataclasses.replace(recipe, seed=3), "fc6", "fc7", maps=16)


needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
PLACES = {"one CPU": dict(devices=(CPU, CPU)), "one CPU, apart": dict(devices=(CPU, CPU), apart=True),
          "one GPU": dict(devices=(CUDA, CUDA)), "one GPU, apart": dict(devices=(CUDA, CUDA), apart=True),
          "two GPUs": dict(devices=(CUDA, OTHER))}
every_place = pytest.mark.parametrize("where", [
    pytest.param(where, id=name, marks=[needs_gpu] * ("GPU" in name) + [needs_two] * ("two" in name)) for name, where in PLACES.items()])
GRAPHS_APART = 9 + 7 + 7 + 9  # of tower a, of b, and backward


@every_place
def test_twenty_steps_are_the_same_whether_graphed_or_not(where):
    pair = Pair(small(), **where)
    pair.set_rates()
    pair.train(*[4] * (6 if pair.on_cpu else 20))
    (shape,) = pair.graphed.shapes.values()
    assert shape.captured and shape.update and not pair.graphed.given_up
    if pair.on_cpu:  # the update is captured a step after the rest; the first replay is the one that is compared with an eager pass
        graphs = GRAPHS_APART if where.get("apart") else 1
        assert (pair.graphs.captures, pair.graphs.replays) == (graphs + 1, 4 * graphs + 2)


@every_place
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_steps_of_the_paper_with_fewer_units(dtype, where):
    on_cpu = where["devices"][0] == CPU
    pair = Pair(small(mini() if on_cpu and dtype == torch.bfloat16 else paper()), **where, classes=10)  # bfloat16 is slow there
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


@every_place
@pytest.mark.parametrize("frozen", [["conv1"], ["conv2", "fc7"]], ids=str)
def test_a_layer_freezes_and_thaws(frozen, where):
    pair = Pair(small(), **where)
    pair.set_rates()
    pair.train(*[3] * 5)
    for frozen_now in (frozen, []):
        pair.set_rates(0.5, frozen_now)
        pair.train(*[3] * (WARM_UP + 2))
        assert all(shape.captured and shape.update for shape in pair.graphed.shapes.values())
    if pair.on_cpu:
        assert len(pair.graphs.living) == (GRAPHS_APART if where.get("apart") else 1) + 1


@every_place
def test_nothing_is_trained(where):
    pair = Pair(small(), **where)
    pair.set_rates(frozen=[layer.name for layer in pair.recipe.layers])
    pair.train(*[2] * (WARM_UP + 3))
    pair.set_rates()
    pair.train(*[2] * (WARM_UP + 3))


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
    """Those of the last step, though two shapes have their own; and a weight that becomes infinite is seen in the sums."""
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


@pytest.mark.parametrize("apart, number", [(False, 1), (False, 2), (False, 3), (False, 4), (True, 1), (True, 12), (True, 25), (True, 33),
                                           (True, 34), (True, 60), (True, 66)])
def test_a_capture_that_fails_costs_nothing_but_the_graphs(apart, number, capsys):
    """1: the first of all; 2 (33 apart): the first update; what follows: those of the smaller batch, when others were replayed already."""
    pair = Pair(small(), must=False, apart=apart, fails=lambda capture: capture == number)
    pair.set_rates()
    pair.train(*[4, 4, 3] * 6)
    pair.set_rates(0.1, ["conv1"])
    pair.train(4, 3, 4)
    assert pair.graphs.captures == number and pair.graphs.living == []
    assert capsys.readouterr().out.count("WARNING") == 1


def test_a_capture_that_fails_is_an_error_where_graphs_were_asked_for():
    pair = Pair(small(), fails=lambda capture: True)
    pair.set_rates()
    pair.train(2, 2, 2)
    with pytest.raises(UserError, match="--graphs on: .*: operation not permitted when stream is capturing; --graphs auto") as raised:
        pair.train(2)
    assert "\n" not in str(raised.value)


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

    def drifting(*given):
        loss, right = compute(*given)
        passes.append(loss)
        return loss + len(passes), right

    pair.graphed.step.forward_and_backward = drifting
    for _ in range(WARM_UP + 2):
        pair.graphed(*pair.batch(3), look)
    (shape,) = pair.graphed.shapes.values()
    assert shape.captured and not pair.graphed.given_up


# --- from copy to copy

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


@pytest.mark.parametrize("frozen", [["conv1", "conv2"], ["fc6"], ["conv3.weight"], ["conv3.bias", "fc7.bias"], ["fc8"],
                                    ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"]], ids=",".join)
def test_gradients_that_nobody_wants_neither_cross_nor_are_computed(frozen):
    pair = Pair(small(), apart=True)
    rates = make_schedule(pair.recipe).rates(1)
    for optimizer in pair.optimizers:
        optimizer.set_rates({name: 0.0 if name in frozen or name.partition(".")[0] in frozen else rate for name, rate in rates.items()})
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

    def begin(tensor, device, overlap, place=None):
        return Late(torch.full_like(tensor, torch.nan) if place is None else place.fill_(torch.nan), tensor)

    monkeypatch.setattr(exchange, "copy", begin)
    pair = Pair(small(), apart=True)
    pair.set_rates()
    pair.train(*[3] * 6)
    assert all(torch.isfinite(parameter).all() for parameter in pair.networks[1].parameters())


@needs_gpu
def test_a_refused_capture_on_a_gpu_leaves_the_same_numbers(monkeypatch, capsys):
    """A step that waits for the device can't be captured. Memory that other streams read is used again afterwards."""
    pair = Pair(small(), (CUDA, CUDA), must=False)
    pair.set_rates()
    function = pair.graphed.step.forward_and_backward
    monkeypatch.setattr(pair.graphed.step, "forward_and_backward", lambda *given: (torch.cuda.synchronize(), function(*given))[1])
    pair.train(*[4] * (WARM_UP + 3))
    assert pair.graphed.given_up and "WARNING" in capsys.readouterr().out
    other, sizes = torch.cuda.Stream(CUDA), []
    for _ in range(20):
        tensor = torch.empty(2**24, dtype=torch.uint8, device=CUDA)
        tensor.record_stream(other)
        del tensor
        torch.cuda.synchronize()
        sizes.append(torch.cuda.memory_reserved(CUDA))
    assert sizes[-1] == sizes[2]


@pytest.mark.parametrize("where", ["out", "into", "compute"])
@pytest.mark.parametrize("devices", [pytest.param((CUDA, CUDA), marks=needs_gpu, id="one GPU"),
                                     pytest.param((CUDA, OTHER), marks=needs_two, id="two GPUs")])
def test_no_race_between_graphs_and_copies(devices, where, monkeypatch):
    """With pauses on either side of every copy: steps with two shapes of batch, a validation in between."""
    if where == "out" and devices[0] == devices[1]:
        pytest.skip("within one device the copy runs on the target's stream alone")
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


def ten_losses(graphed, apart):
    """Ten steps of test_golden.py's run, in float64 with the reference kernels."""
    recipe = dataclasses.replace(mini(), batch_size=16, seed=7)
    pipeline = TorchPipeline(open_dataset("builtin", recipe.stored_size), recipe, (CPU, CPU), workers=0)
    sums = Sums(recipe.stored_size)
    for index in range(64):
        sums.add(pipeline.dataset.splits["train"].read(index))
    pipeline.use(sums.statistics())
    network = TwoTowerAlexNet(recipe, (CPU, CPU), len(pipeline.dataset.classes), "reference").double()
    optimizer, schedule, losses = PaperSGD(network), make_schedule(recipe), []
    optimizer.set_rates(schedule.rates(1))
    step = TrainingStep(network, optimizer)
    network.exchange.shared = not apart
    if graphed:
        step = GraphedStep(step, FakeGraphs(network, optimizer), must=True)
    for batch in pipeline.train(0, 1, schedule.colour_noise):
        losses.append(step([image.double() for image in batch.images], batch.labels, look)[0].item())
        if len(losses) == 10:
            return losses


@pytest.mark.parametrize("apart", [False, True])
def test_the_ten_golden_losses(apart):
    assert (losses := ten_losses(True, apart)) == ten_losses(False, apart) and losses == pytest.approx(GOLDEN, rel=1e-9)


# --- whole runs

@pytest.fixture
def faked(monkeypatch):
    """Runs on a CPU have graphs. A list of their `FakeGraphs`."""
    made = []

    def make_step(step, choice):
        made.append(FakeGraphs(step.network, step.optimizer))
        return GraphedStep(step, made[-1], must=True)

    monkeypatch.setattr(graphed_step, "make_step", make_step)
    return made


# Epochs have two batches of 9 and one of 6, so these changes meet eager, captured and half captured steps of both.
CHANGES = ["--epochs", 10, "--set", 'dates=[{"epoch": 4, "weights": 0.1, "colour_noise": 0.3}, {"epoch": 6, "weights": 0.1}, '
           '{"epoch": 7, "layers": ["conv1"], "weights": 0, "biases": 0}, {"epoch": 9, "layers": ["conv1"], "weights": 0.1}]',
           "--set", "schedule=dated"]
RUNS = {"dates": CHANGES, "source2012": [*SOURCE2012, *CHANGES], "plateau": [*PLATEAU, "--epochs", 6]}


def put_apart(monkeypatch):
    """Towers on one device carry everything to each other."""
    made = exchange.Exchange.__init__

    def apart(self, *arguments):
        made(self, *arguments)
        self.shared = False

    monkeypatch.setattr(exchange.Exchange, "__init__", apart)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("flags", RUNS.values(), ids=RUNS)
def test_a_run_with_graphs_is_the_run_without(flags, apart, data, tmp_path, monkeypatch, faked):  # noqa: F811
    if apart:
        put_apart(monkeypatch)
    out = run(data, tmp_path / "graphed", *flags)
    (graphs,) = faked
    assert graphs.captures >= 4 and graphs.replays > graphs.captures
    monkeypatch.undo()
    quick.__wrapped__(monkeypatch)
    if apart:
        put_apart(monkeypatch)
    assert_same_end(out, run(data, tmp_path / "eager", *flags))


@pytest.mark.parametrize("cut", [4, 11, 14])
def test_it_is_cut_and_goes_on(cut, data, tmp_path, monkeypatch, faked):  # noqa: F811
    """In the middle of an epoch too, with graphs and numbers on their way; the rest of the run begins eagerly again."""
    run(data, tmp_path / "run", *CHANGES, "--steps", cut)
    monkeypatch.setattr(taken_steps, "mark", LateEvents(100))  # numbers lie about while graphs are replayed
    resume(data, tmp_path / "run", *CHANGES)
    monkeypatch.undo()
    quick.__wrapped__(monkeypatch)
    assert_same_end(tmp_path / "run", run(data, tmp_path / "eager", *CHANGES))


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_on_a_gpu_with_graphs_is_the_run_without(precision, data, tmp_path, capsys):  # noqa: F811
    flags = [*CHANGES, "--gpus", "0", "--precision", precision]
    out = run(data, tmp_path / "graphed", *flags, "--graphs", "on", "--steps", 11)
    assert "graphs: whole step" in capsys.readouterr().out
    resume(data, out, *flags, "--graphs", "on")
    whole = run(data, tmp_path / "eager", *flags, "--graphs", "off")
    assert_same_end(out, whole)
    assert "WARNING" not in capsys.readouterr().out


# --- what a step may not do on a GPU

@needs_gpu
def test_memory_does_not_grow_with_the_rates_changes():
    pair, used = Pair(small(), (CUDA, CUDA)), []
    pair.set_rates()
    pair.train(*[4, 3] * 5)
    sgd = sys.modules.get("alexnet_mp.kernels.sgd")  # not where the reference computes
    others = len(sgd._captured) if sgd else 0
    for change in range(30):
        pair.set_rates(1 / (change + 1))
        pair.train(4, 4, 4, 3, 3)
        torch.cuda.synchronize()
        used.append((torch.cuda.memory_allocated(CUDA), torch.cuda.memory_reserved(CUDA)))
    assert all(last <= early for last, early in zip(used[-1], used[5], strict=True))
    if sgd:
        assert len(sgd._captured) == others and [len(shape.tables) for shape in pair.graphed.shapes.values()] == [1, 1]


@needs_gpu
@pytest.mark.parametrize("graphs", ["whole step", "from copy to copy", "off"])
def test_a_step_does_not_wait_for_the_device(graphs):
    """By the words of torch's own check, and of the runtime calls that a profiler sees."""
    pair = Pair(small(), (CUDA, CUDA), apart=graphs == "from copy to copy")
    pair.set_rates()
    step, batch, taken, read = pair.steps[graphs != "off"], pair.batch(4), TakenSteps([CUDA]), []

    def steps(count, wait=False):
        for _ in range(count):
            taken.add(len(read), [0], 0, step(*batch, look))
            read.extend(taken.read(wait))

    steps(2 * READ_EVERY)  # captures, page-locked memory
    read.extend(taken.read(wait=True))
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps(READ_EVERY - 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    read.extend(taken.read(wait=True))
    with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as profile:
        with torch.profiler.record_function("all steps"):
            steps(READ_EVERY - 1)
    read.extend(taken.read(wait=True))
    assert len(read) == 4 * READ_EVERY - 2 and all(0 < seconds < 60 for _, seconds in read)
    (span,) = {(event.time_range.start, event.time_range.end) for event in profile.events()
               if event.name == "all steps" and event.device_type == torch.autograd.DeviceType.CPU}
    called = [event.name for event in profile.events() if span[0] <= event.time_range.start <= span[1]]
    assert any(name.startswith("cuda") for name in called)  # the runtime's calls are seen
    assert not {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy"} & set(called)
    launches = {"whole step": 2, "from copy to copy": GRAPHS_APART + 1, "off": 0}[graphs]
    assert called.count("cudaGraphLaunch") == launches * (READ_EVERY - 1)


# --- the command

@pytest.mark.parametrize("devices, choice, said", [
    ([CPU, CPU], "auto", "off (cpu)"), ([CPU], "off", "off"), ([CUDA, CUDA], "auto", "whole step"), ([CUDA], "on", "whole step"),
    ([CUDA, CUDA], "off", "off"), ([CPU, CUDA], "auto", "off (cpu and cuda:0)"),
    ([CUDA, OTHER], "auto", "from copy to copy"), ([CUDA, OTHER], "on", "from copy to copy"), ([OTHER, CPU], "auto", "off (cuda:1 and cpu)")])
def test_what_the_flag_means(devices, choice, said):
    assert graphed_step.resolve(choice, devices) == said


@pytest.mark.parametrize("devices, count, works", [
    ([CPU, CPU], 0, "on cpu; --graphs auto would work"), ([CPU, OTHER], 2, "--gpus 1, or --graphs auto would work")])
def test_on_is_refused_where_it_cannot_be(devices, count, works, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(UserError, match="^--graphs on: both towers must be on CUDA devices") as raised:
        graphed_step.resolve("on", devices)
    assert works in str(raised.value) and "\n" not in str(raised.value)


def test_the_command_says_what_it_uses_and_refuses_before_it_reads(data, tmp_path, capsys):  # noqa: F811
    out = run(data, tmp_path / "run", "--steps", 1)
    assert "graphs: off (cpu)" in capsys.readouterr().out
    with pytest.raises(UserError, match="--graphs on: both towers must be on CUDA devices, and they are on cpu"):
        run(data, tmp_path / "other", "--graphs", "on")
    assert not (tmp_path / "other").exists()
    with pytest.raises(SystemExit) as ended:
        train.main(["--graphs", "sometimes"])
    assert ended.value.code == 2 and "invalid choice: 'sometimes'" in capsys.readouterr().err
    assert json.loads((out / "run.json").read_text())["command"].startswith("python -m alexnet_mp.train")
