"""Whole runs with CUDA graphs end as runs without do; the golden losses; what `--graphs` means and refuses."""

import dataclasses
import json

import pytest
import torch
from alexnet_mp.kernels import augmentation
from fake_device import FakeGraphs, LateEvents
from golden import GOLDEN
from graph_pair import CPU, CUDA, OTHER, look, needs_gpu
from inner_cases import every
from tiny_run import PLATEAU, SOURCE2012, assert_same_end, make_quick, resume, run

from alexnet_mp import TwoTowerAlexNet, mini, train
from alexnet_mp.data import pipeline_raw, step_input
from alexnet_mp.data.dataset import open_dataset
from alexnet_mp.data.pipeline_torch import TorchPipeline
from alexnet_mp.data.pixel_statistics import Sums
from alexnet_mp.network import exchange
from alexnet_mp.system.errors import UserError
from alexnet_mp.training import graphed_step, pending_steps
from alexnet_mp.training.graphed_step import GraphedStep
from alexnet_mp.training.schedule import make_schedule
from alexnet_mp.training.step import TrainingStep
from alexnet_mp.training.update_rule import PaperSGD

pytestmark = [pytest.mark.run, pytest.mark.usefixtures("exact"), pytest.mark.usefixtures("one_thread", "quick")]


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


@pytest.mark.slow
@pytest.mark.parametrize("apart", [False, True])
def test_the_ten_golden_losses(apart):
    assert (losses := ten_losses(True, apart)) == ten_losses(False, apart) and losses == pytest.approx(GOLDEN, rel=1e-9)


# --- whole runs


@pytest.fixture
def faked(monkeypatch):
    """Runs on a CPU have graphs. A list of their `FakeGraphs`."""
    graphs = []

    def graphed(step, choice):
        graphs.append(FakeGraphs(step.network, step.optimizer))
        return GraphedStep(step, graphs[-1], must=True)

    monkeypatch.setattr(graphed_step, "graphed", graphed)
    return graphs


# Epochs have two batches of 9 and one of 6, so these changes meet eager, captured and half captured steps of both.
CHANGES = [
    "--epochs",
    10,
    "--set",
    'dates=[{"epoch": 4, "weights": 0.1, "colour_noise": 0.3}, {"epoch": 6, "weights": 0.1}, '
    '{"epoch": 7, "layers": ["conv1"], "weights": 0, "biases": 0}, {"epoch": 9, "layers": ["conv1"], "weights": 0.1}]',
    "--set",
    "schedule=dated",
]
RUNS = {"dates": CHANGES, "source2012": [*SOURCE2012, *CHANGES], "plateau": [*PLATEAU, "--epochs", 6]}


def put_apart(monkeypatch):
    """Towers on one device carry everything to each other."""
    init = exchange.Exchange.__init__

    def apart(self, *arguments):
        init(self, *arguments)
        self.shared = False

    monkeypatch.setattr(exchange.Exchange, "__init__", apart)


@pytest.mark.parametrize(
    "name, apart",
    [
        pytest.param(name, apart, marks=[] if (name, apart) == ("source2012", False) else [pytest.mark.slow])
        for name in RUNS
        for apart in (False, True)
    ],
)
def test_a_run_with_graphs_is_the_run_without(name, apart, data, tmp_path, monkeypatch, faked):
    if apart:
        put_apart(monkeypatch)
    out = run(data, tmp_path / "graphed", *RUNS[name])
    (graphs,) = faked
    assert graphs.captures >= 4 and graphs.replays > graphs.captures
    monkeypatch.undo()
    make_quick(monkeypatch)
    if apart:
        put_apart(monkeypatch)
    assert_same_end(out, run(data, tmp_path / "eager", *RUNS[name]))


@pytest.mark.parametrize(
    "apart, in_graphs", [(True, True), *(pytest.param(False, each, marks=pytest.mark.slow) for each in (True, False))]
)
def test_a_run_whose_graphs_make_the_images_is_the_run_without(apart, in_graphs, data, tmp_path, monkeypatch, faked):
    """From raw pixels, with crops, noise and a scale that change from batch to batch and epoch to epoch.

    in_graphs: whether graphs can make them; else the pipeline does, and the rest of a step is graphs all the same.
    """
    flags, init, image_types = [*SOURCE2012, *CHANGES, "--pipeline", "raw"], pipeline_raw.RawPipeline.__init__, set()
    take = graphed_step._Shape.take

    def plain(count, size):
        return torch.empty(count, size, size, 3, dtype=torch.uint8)

    def on_gpu(self, *arguments):
        init(self, *arguments)
        self.on_gpu = True

    def watched(shape, images, labels):
        image_types.update(map(type, images))
        take(shape, images, labels)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline_raw.RawPipeline, "__init__", on_gpu)
        patch.setattr(pipeline_raw, "_page_locked", plain)
        patch.setattr(graphed_step._Shape, "take", watched)
        patch.setattr(augmentation, "augments_in_graphs", lambda device: in_graphs)
        if apart:
            put_apart(patch)
        out = run(data, tmp_path / "graphed", *flags)
    (graphs,) = faked
    assert graphs.captures >= 4 and image_types == {step_input.Uncropped if in_graphs else torch.Tensor}
    monkeypatch.undo()
    make_quick(monkeypatch)
    if apart:
        put_apart(monkeypatch)
    assert_same_end(out, run(data, tmp_path / "eager", *flags))


@pytest.mark.parametrize("cut", [pytest.param(4, marks=pytest.mark.slow), 11, pytest.param(14, marks=pytest.mark.slow)])
def test_it_is_cut_and_goes_on(cut, data, tmp_path, monkeypatch, faked):
    """In the middle of an epoch too, with graphs and numbers on their way; the rest of the run begins eagerly again."""
    run(data, tmp_path / "run", *CHANGES, "--steps", cut)
    monkeypatch.setattr(pending_steps, "mark", LateEvents(100))  # numbers lie about while graphs are replayed
    resume(data, tmp_path / "run", *CHANGES)
    assert len(faked) == 2 and all(graphs.captures for graphs in faked[cut == 4 :])
    monkeypatch.undo()
    make_quick(monkeypatch)
    assert_same_end(tmp_path / "run", run(data, tmp_path / "eager", *CHANGES))


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_on_a_gpu_with_graphs_is_the_run_without(precision, data, tmp_path, capsys):
    flags = [*CHANGES, "--gpus", "0", "--precision", precision]
    out = run(data, tmp_path / "graphed", *flags, "--graphs", "on", "--steps", 11)
    assert "graphs: whole step" in capsys.readouterr().out
    resume(data, out, *flags, "--graphs", "on")
    whole = run(data, tmp_path / "eager", *flags, "--graphs", "off")
    assert_same_end(out, whole)
    assert "WARNING" not in capsys.readouterr().out


# --- the command


@every(
    "devices, choice, said",
    [
        ([CPU, CPU], "auto", "off (cpu)"),
        ([CPU], "off", "off"),
        ([CUDA, CUDA], "auto", "whole step"),
        ([CUDA], "on", "whole step"),
        ([CUDA, CUDA], "off", "off"),
        ([CPU, CUDA], "auto", "off (cpu and cuda:0)"),
        ([CUDA, OTHER], "auto", "from crossing to crossing"),
        ([CUDA, OTHER], "on", "from crossing to crossing"),
        ([OTHER, CPU], "auto", "off (cuda:1 and cpu)"),
    ],
)
def test_what_the_flag_means(devices, choice, said):
    graphed = not said.startswith("off")
    assert graphed_step.resolve(choice, devices) == (graphed, said)
    assert graphed_step.resolve(choice, devices, overlap=True) == (graphed, said)
    words = "off (--overlap off)" if said == "from crossing to crossing" else said
    if (choice, words) != ("on", "off (--overlap off)"):
        assert graphed_step.resolve(choice, devices, overlap=False) == (not words.startswith("off"), words)


def test_a_process_a_tower_has_graphs_of_its_own_device():
    assert graphed_step.resolve("on", [OTHER], apart=True) == (True, "from crossing to crossing")
    assert graphed_step.resolve("auto", [OTHER], False, apart=True) == (False, "off (--overlap off)")
    assert graphed_step.resolve("auto", [CPU], apart=True) == (False, "off (cpu)")
    for devices, overlap, words in [
        ([OTHER], False, "in two processes it goes with --overlap on alone"),
        ([CPU], True, "its tower must be on a CUDA device, and it is on cpu"),
    ]:
        with pytest.raises(UserError, match=f"^--graphs on: {words}"):
            graphed_step.resolve("on", devices, overlap, apart=True)


def test_graphs_of_two_devices_go_by_halves():
    with pytest.raises(UserError, match="^--graphs on: on two devices it goes with --overlap on alone"):
        graphed_step.resolve("on", [CUDA, OTHER], overlap=False)


@pytest.mark.parametrize(
    "devices, count, works",
    [([CPU, CPU], 0, "on cpu; --graphs auto would work"), ([CPU, OTHER], 2, "--gpus 1, or --graphs auto would work")],
)
def test_on_is_refused_where_it_cannot_be(devices, count, works, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(UserError, match="^--graphs on: both towers must be on CUDA devices") as error:
        graphed_step.resolve("on", devices)
    assert works in str(error.value) and "\n" not in str(error.value)


def test_the_command_says_what_it_uses_and_refuses_before_it_reads(data, tmp_path, capsys):
    out = run(data, tmp_path / "run", "--steps", 1)
    assert "graphs: off (cpu)" in capsys.readouterr().out
    with pytest.raises(UserError, match="--graphs on: both towers must be on CUDA devices, and they are on cpu"):
        run(data, tmp_path / "other", "--graphs", "on")
    assert not (tmp_path / "other").exists()
    with pytest.raises(SystemExit) as system_exit:
        train.main(["--graphs", "sometimes"])
    assert system_exit.value.code == 2 and "invalid choice: 'sometimes'" in capsys.readouterr().err
    assert json.loads((out / "run.json").read_text())["command"].startswith("python -m alexnet_mp.train")
