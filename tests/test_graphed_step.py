"""Steps as CUDA graphs have the same bits as eager ones: on a CPU with a fake of the captures, on a GPU with the real ones."""
import dataclasses
import json
import sys

import pytest
import torch
from conftest import one_thread  # noqa: F401
from fake_device import FakeGraphs, LateEvents
from test_golden import GOLDEN
from tiny_run import (  # noqa: F401  (fixtures)
    PLATEAU, SOURCE2012, assert_same_end, bits, data, lines, quick, resume, run)

from alexnet_mp import TwoTowerAlexNet, graphed_step, mini, paper, taken_steps, train
from alexnet_mp.dataset import open_dataset
from alexnet_mp.errors import UserError
from alexnet_mp.graphed_step import WARM_UP, CudaGraphs, GraphedStep
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
CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """As a training run has it."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def look(loss):
    pass


class Pair:
    """The same network twice: one trained eagerly, the other with graphs."""

    def __init__(self, recipe, device=CPU, classes=5, must=True, **fake):
        self.recipe, self.device, self.classes = recipe, device, classes
        self.networks = [TwoTowerAlexNet(recipe, (device,) * recipe.towers, classes) for _ in range(2)]
        self.optimizers = [PaperSGD(network) for network in self.networks]
        eager, step = [TrainingStep(*both) for both in zip(self.networks, self.optimizers, strict=True)]
        self.graphs = CudaGraphs(device) if device.type == "cuda" else FakeGraphs(self.networks[1], self.optimizers[1], **fake)
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
        images = (60 * torch.randn(count, 3, size, size, generator=self.draws)).to(self.device, dtype, memory_format=torch.channels_last)
        labels = torch.randint(0, self.classes, (count,), generator=self.draws).to(self.device)
        return [images] * self.recipe.towers, labels

    def train(self, *counts, **options):
        """Steps with batches of so many images; after each all that a run keeps is the same, bit for bit."""
        for count in counts:
            batch = self.batch(count, **options)
            numbers = [[tensor.clone() for tensor in step(*batch, look)] for step in self.steps]
            for one, other in zip(*map(self.state, range(2), numbers), strict=True):
                assert bits(one.cpu()) == bits(other.cpu())
            assert self.networks[0].ledger() == self.networks[1].ledger() != []
            for network in self.networks:
                network.exchange.clear()  # as the pass of a validation does

    def state(self, which, numbers):
        network, optimizer = self.networks[which], self.optimizers[which]
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        velocities = [part for parts in optimizer.velocities().values() for part in parts]
        return [*numbers, *(tensor.detach() for tensor in network.parameters()), *network.buffers(), *velocities, *gradients]


def small(recipe=mini()):
    return change_layers(dataclasses.replace(recipe, seed=3), "fc6", "fc7", maps=16)


every_device = pytest.mark.parametrize("device", [CPU, pytest.param(CUDA, marks=needs_gpu)], ids=str)


@every_device
def test_twenty_steps_are_the_same_whether_graphed_or_not(device):
    pair = Pair(small(), device)
    pair.set_rates()
    pair.train(*[4] * (6 if device == CPU else 20))
    (shape,) = pair.graphed.shapes.values()
    assert shape.captured and shape.update and not pair.graphed.given_up
    if device == CPU:  # the update is captured a step after the rest
        assert (pair.graphs.captures, pair.graphs.replays) == (2, 3 + 2)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_twenty_steps_of_the_paper_with_fewer_units(dtype):
    pair = Pair(small(paper()), CUDA, 10)
    pair.set_rates()
    pair.train(*[16] * 20, dtype=dtype)


@every_device
def test_other_rates_need_another_capture_of_the_update_alone(device):
    pair = Pair(small(), device)
    pair.set_rates()
    pair.train(*[3] * 6)
    (shape,) = pair.graphed.shapes.values()
    first = shape.forward_and_backward
    for factor in (0.1, 0.1, 0.03):  # the second changes nothing
        pair.set_rates(factor)
        pair.train(3, 3, 3)
        assert shape.forward_and_backward is first and shape.update
    if device == CPU:
        assert pair.graphs.captures == 2 + 2 and len(pair.graphs.living) == 2


@every_device
@pytest.mark.parametrize("frozen", [["conv1"], ["conv2", "fc7"]], ids=str)
def test_a_layer_freezes_and_thaws(frozen, device):
    pair = Pair(small(), device)
    pair.set_rates()
    pair.train(*[3] * 5)
    for frozen_now in (frozen, []):
        pair.set_rates(0.5, frozen_now)
        pair.train(*[3] * (WARM_UP + 2))
        assert all(shape.captured and shape.update for shape in pair.graphed.shapes.values())
    if device == CPU:
        assert len(pair.graphs.living) == 2 and pair.graphs.captures == 6


@every_device
def test_nothing_is_trained(device):
    pair = Pair(small(), device)
    pair.set_rates(frozen=[layer.name for layer in pair.recipe.layers])
    pair.train(*[2] * (WARM_UP + 3))
    pair.set_rates()
    pair.train(*[2] * (WARM_UP + 3))


@every_device
def test_the_smaller_last_batch_of_an_epoch_has_graphs_of_its_own(device):
    pair = Pair(small(), device)
    pair.set_rates()
    pair.train(*[4, 4, 3] * (WARM_UP + 2))
    pair.set_rates(0.1)
    pair.train(*[4, 4, 3] * 2)
    assert [bool(shape.captured and shape.update) for shape in pair.graphed.shapes.values()] == [True, True]


@every_device
def test_gradients_are_found_where_an_error_is_looked_for(device):
    """Those of the last step, though two shapes have their own; and a weight that becomes infinite is seen in the sums."""
    pair = Pair(small(), device)
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


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_capture_that_fails_costs_nothing_but_the_graphs(number, capsys):
    """1: the first of all; 2: the first update; 3 and 4: those of the smaller batch, when others were replayed already."""
    pair = Pair(small(), must=False, fails=lambda capture: capture == number)
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


@needs_gpu
def test_a_refused_capture_on_a_gpu_leaves_the_same_numbers(monkeypatch, capsys):
    """A step that waits for the device can't be captured. Memory that other streams read is used again afterwards."""
    pair = Pair(small(), CUDA, must=False)
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


def ten_losses(graphed):
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
    if graphed:
        step = GraphedStep(step, FakeGraphs(network, optimizer), must=True)
    for batch in pipeline.train(0, 1, schedule.colour_noise):
        losses.append(step([image.double() for image in batch.images], batch.labels, look)[0].item())
        if len(losses) == 10:
            return losses


def test_the_ten_golden_losses():
    assert (losses := ten_losses(True)) == ten_losses(False) and losses == pytest.approx(GOLDEN, rel=1e-9)


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


@pytest.mark.parametrize("flags", RUNS.values(), ids=RUNS)
def test_a_run_with_graphs_is_the_run_without(flags, data, tmp_path, monkeypatch, faked):  # noqa: F811
    out = run(data, tmp_path / "graphed", *flags)
    (graphs,) = faked
    assert graphs.captures >= 4 and graphs.replays > graphs.captures
    monkeypatch.undo()
    quick.__wrapped__(monkeypatch)
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
    pair, used = Pair(small(), CUDA), []
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
@pytest.mark.parametrize("graphs", ["whole step", "off"])
def test_a_step_does_not_wait_for_the_device(graphs):
    """By the words of torch's own check, and of the runtime calls that a profiler sees."""
    pair = Pair(small(), CUDA)
    pair.set_rates()
    step, batch, taken, read = pair.steps[graphs == "whole step"], pair.batch(4), TakenSteps([CUDA]), []

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
    if graphs == "whole step":
        assert called.count("cudaGraphLaunch") == 2 * (READ_EVERY - 1)


# --- the command

@pytest.mark.parametrize("devices, choice, said", [
    ([CPU, CPU], "auto", "off (cpu)"), ([CPU], "off", "off"), ([CUDA, CUDA], "auto", "whole step"), ([CUDA], "on", "whole step"),
    ([CUDA, CUDA], "off", "off"), ([CPU, CUDA], "auto", "off (cpu and cuda:0)"),
    ([CUDA, torch.device("cuda:1")], "auto", "off (cuda:0 and cuda:1)")])
def test_what_the_flag_means(devices, choice, said):
    assert graphed_step.resolve(choice, devices) == said


@pytest.mark.parametrize("devices, count, works", [
    ([CPU, CPU], 0, "on cpu; --graphs auto would work"), ([CPU, torch.device("cuda:1")], 2, "--gpus 1, or --graphs auto would work"),
    ([CUDA, torch.device("cuda:1")], 2, "on cuda:0 and cuda:1; --gpus 0, or --graphs auto would work")])
def test_on_is_refused_where_it_cannot_be(devices, count, works, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(UserError, match="^--graphs on: both towers must be on one CUDA device") as raised:
        graphed_step.resolve("on", devices)
    assert works in str(raised.value) and "\n" not in str(raised.value)


def test_the_command_says_what_it_uses_and_refuses_before_it_reads(data, tmp_path, capsys):  # noqa: F811
    out = run(data, tmp_path / "run", "--steps", 1)
    assert "graphs: off (cpu)" in capsys.readouterr().out
    with pytest.raises(UserError, match="--graphs on: both towers must be on one CUDA device, and they are on cpu"):
        run(data, tmp_path / "other", "--graphs", "on")
    assert not (tmp_path / "other").exists()
    with pytest.raises(SystemExit) as ended:
        train.main(["--graphs", "sometimes"])
    assert ended.value.code == 2 and "invalid choice: 'sometimes'" in capsys.readouterr().err
    assert json.loads((out / "run.json").read_text())["command"].startswith("python -m alexnet_mp.train")
