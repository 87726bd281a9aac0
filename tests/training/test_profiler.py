"""`train --profile`: the run stays the same bit for bit, the times add up, and each layer gets its own."""

import gzip
import json
import signal
from pathlib import Path

import pytest
import torch
from alexnet_mp.kernels import linear_op
from fake_device import FakeGraphs
from inner_cases import every
from tiny_run import LAST, assert_same_end, lines, make_quick, newest, resume, run, signalled_after

from alexnet_mp.network import exchange, split_product
from alexnet_mp.network.layer import TowerLayer
from alexnet_mp.profiling import machine_limits
from alexnet_mp.profiling.attribution import (
    CROSSING,
    FORWARD_BACKWARD,
    INPUT,
    LAYER,
    NETWORK,
    NODE,
    ONEDNN,
    SPLIT_INPUT,
    STEP,
    UPDATE,
    Operation,
    Place,
    Times,
    attribute,
)
from alexnet_mp.profiling.machine_limits import Ceilings
from alexnet_mp.profiling.roofline import layer_limits
from alexnet_mp.profiling.roofline import step as roofline_step
from alexnet_mp.profiling.table import table
from alexnet_mp.recipes.architectures import paper
from alexnet_mp.system import durable_files
from alexnet_mp.system.errors import UserError
from alexnet_mp.training import graphed_step, profiler
from alexnet_mp.training.graphed_step import GraphedStep
from alexnet_mp.training.step import TrainingStep
from alexnet_mp.training.trainer import Trainer

LAYERS = ("conv1", "conv1 relu+lrn+max_pool", "conv2", "conv2 relu+max_pool", "fc6", "fc6 relu+dropout", "fc8")
OTHERS = ("loss, accuracy", "exchange, joining of maps", "update", "waiting for input", "other")


@pytest.fixture(autouse=True)
def small(quick, one_thread, monkeypatch):
    small_ceilings(monkeypatch)


def small_ceilings(patch):
    """The ceilings take milliseconds."""
    patch.setattr(machine_limits, "SECONDS", 0)
    patch.setattr(machine_limits, "COPY_BYTES", 1 << 20)
    patch.setattr(machine_limits, "CACHES", 0)
    patch.setitem(machine_limits.PRODUCT, "cpu", 64)


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory, one_thread):
    """The same run without --profile and with it: (directory, directory)."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        small_ceilings(patch)
        return run(data, root / "plain"), run(data, root / "profiled", "--profile")


def profile_of(out):
    return json.loads((out / "profile.json").read_text())


def rows_of(out):
    (entry,) = profile_of(out)["tables"]
    return {row["row"]: row for row in entry["rows"]}


def trace_of(out):
    return json.loads(gzip.decompress((out / "trace.json.gz").read_bytes()))["traceEvents"]


# --- a run


@pytest.mark.run
def test_the_run_is_the_same_bit_for_bit(runs):
    plain, profiled = runs
    assert_same_end(profiled, plain)
    assert not (plain / "profile.json").exists() and not (plain / "trace.json.gz").exists()


def test_it_records_five_steps_after_three_and_says_of_what(runs):
    content = profile_of(runs[1])
    assert content["steps"] == [4, 5, 6, 7, 8] and content["images_per_step"] == pytest.approx((9 + 9 + 6 + 9 + 9) / 5)
    assert content["precision"] == "fp32" and content["kernels"]
    ours, its = (version.partition("+")[0] for version in (torch.__version__, content["packages"]["torch"]))
    assert ours == its  # but for "+cu130" at the end
    (entry,) = content["tables"]
    assert entry["device"] == "cpu" and entry["towers"] == ["a", "b"] and entry["ceilings"]["bandwidth"] > 0


def test_the_rows_add_up_to_the_whole_step(runs):
    content, rows = profile_of(runs[1]), rows_of(runs[1])
    assert tuple(rows) == (*LAYERS, *OTHERS, "the whole step")
    whole = rows.pop("the whole step")
    assert whole["ms"] == pytest.approx(content["step_ms"]) and whole["share"] == pytest.approx(100)
    assert sum(row["ms"] for row in rows.values()) == pytest.approx(whole["ms"])
    assert sum(row["share"] for row in rows.values()) == pytest.approx(100)
    assert 0 < content["waiting_for_input_ms"] == pytest.approx(rows["waiting for input"]["ms"])


def test_every_part_has_a_time(runs):
    rows = rows_of(runs[1])
    for name in (*LAYERS, "loss, accuracy", "exchange, joining of maps"):
        assert rows[name]["forward_ms"] > 0 and rows[name]["backward_ms"] > 0, name
    assert all(rows[name]["ms"] > 0 for name in OTHERS)
    assert all(rows[name]["roofline_ms"] > 0 and rows[name]["percent_of_roofline"] > 0 for name in (*LAYERS, "update"))


def test_the_trace_has_every_layer_of_every_step(runs):
    names = [event.get("name") for event in trace_of(runs[1]) if event.get("cat") == "user_annotation"]
    for layer in ("conv1 a", "conv1 b", "conv2 b", "fc6 a", "fc8 a"):
        assert names.count(LAYER + layer) == 5
    assert LAYER + "fc8 b" not in names


def test_the_table_is_printed_and_the_run_goes_on(data, tmp_path, capsys):
    run(data, tmp_path / "run", "--profile", 1, "--steps", 6)
    out, err = capsys.readouterr()
    assert (
        "profile of step 4, 9 images a step, precision fp32" in out
        and "% of roofline" in out
        and "both measured now" in out
    )
    assert all(f"\n{name} " in out for name in (*LAYERS, *OTHERS, "the whole step"))
    assert out.index("opens in https://ui.perfetto.dev") < out.index("epoch 2, step 6") and "profiler_start" not in err
    assert lines(tmp_path / "run")[-1]["step"] == 6


@every("value", ["0", "-1", "x", "", "1.5", "1" * 9])
def test_a_wrong_number_of_steps_is_one_line(value, data, tmp_path):
    with pytest.raises(UserError, match=rf"^--profile {value}: write how many steps to record, 1 to 1000;[^\n]*$"):
        run(data, tmp_path / "run", "--profile", value)
    assert not list(tmp_path.iterdir())


def test_a_run_that_ends_before_the_warm_up(data, tmp_path, capsys):
    out = run(data, tmp_path / "run", "--profile", "--steps", 3)
    assert "profile: nothing was recorded, since the first 3 steps only warm up" in capsys.readouterr().out
    assert not (out / "profile.json").exists() and not (out / "trace.json.gz").exists()


@pytest.mark.run
def test_a_resumed_run_records_its_own_steps_and_writes_over_the_first(data, tmp_path):
    out = run(data, tmp_path / "run", "--profile", "--steps", 4)
    assert profile_of(out)["steps"] == [4]  # what there was
    first = (out / "trace.json.gz").read_bytes()
    resume(data, out, "--profile")
    assert profile_of(out)["steps"] == [8, LAST] and (out / "trace.json.gz").read_bytes() != first


@pytest.mark.run
def test_ctrl_c_while_it_records_saves_and_writes_what_there_is(data, tmp_path, monkeypatch, runs):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        signalled_after(patch, TrainingStep, "update", 5, then=lambda: signal.raise_signal(signal.SIGINT))
        run(data, out, "--profile")
    assert newest(out).name == "step_00000005" and profile_of(out)["steps"] == [4, 5] and trace_of(out)
    assert_same_end(resume(data, out), runs[0])


@every("has_graphs", [False, True])
def test_nothing_of_it_stays(has_graphs, data, tmp_path, monkeypatch, capsys):
    """Hooks, the plain step, and the ranges of steps after the recorded ones. A run with graphs has them afterwards;
    that they were not recorded is said."""
    if has_graphs:
        monkeypatch.setattr(
            graphed_step, "graphed", lambda step, choice: GraphedStep(step, FakeGraphs(step.network, step.optimizer))
        )
    trainers, init = [], Trainer.__init__
    monkeypatch.setattr(
        Trainer,
        "__init__",
        lambda self, *arguments, **options: (trainers.append(self), init(self, *arguments, **options))[1],
    )
    steps = []
    signalled_after(monkeypatch, Trainer, "one_step", 4, then=lambda: steps.append(trainers[0].training_step))
    out = run(data, tmp_path / "run", "--profile", 1)
    (trainer,) = trainers
    assert isinstance(steps[0], profiler._RangedStep)
    assert type(trainer.training_step) is (GraphedStep if has_graphs else TrainingStep)
    assert profile_of(out)["run_has_graphs"] == has_graphs
    assert ("launched kernel by kernel, since a replay of a CUDA graph" in capsys.readouterr().out) == has_graphs
    assert not trainer.profiler.recording and not trainer.profiler.ranges
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in trainer.network.modules())


@pytest.mark.run
@pytest.mark.parametrize("fault", ["disk", "memory"])
def test_a_profile_that_fails_does_not_end_the_run(fault, data, tmp_path, monkeypatch, capsys, runs):
    def full(path, content, function=durable_files.replace):
        if path.name in (profiler.NUMBERS, profiler.TRACE):
            raise OSError(28, "No space left on device", str(path))
        function(path, content)

    def measure(device, dtype):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(*(durable_files, "replace", full) if fault == "disk" else (machine_limits, "measure", measure))
    out = run(data, tmp_path / "run", "--profile", 2)
    output = capsys.readouterr().out
    if fault == "disk":
        assert "WARNING: the profile can't be written" in output and "No space left on device" in output
    else:
        assert "no roofline for cpu: CUDA out of memory" in output
        assert all(row["roofline_ms"] is row["percent_of_roofline"] is None for row in rows_of(out).values())
    assert_same_end(out, runs[0])


# --- whose time it is


class _SlowBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        work()
        return gradient


def work():
    """Tens of milliseconds; no product, which would be taken for the layer's own."""
    a = torch.ones(1 << 20)
    for _ in range(20):
        a = torch.sin(a)


@pytest.mark.run
@pytest.mark.parametrize(
    "slow, row, column",
    [
        ("before", "conv2", "forward_ms"),
        ("after", "conv2 relu+max_pool", "forward_ms"),
        ("backward", "conv2", "backward_ms"),
        ("backward after", "conv2 relu+max_pool", "backward_ms"),
    ],
)
def test_a_layer_that_is_made_slow_is_the_one_that_is_shown(slow, row, column, data, tmp_path, monkeypatch):
    forward = TowerLayer.forward

    def slowed(self, x, *arguments):
        if self.layer.name != "conv2" or not self.training:
            return forward(self, x, *arguments)
        if slow == "before":
            work()
        y = forward(self, _SlowBackward.apply(x) if slow == "backward" else x, *arguments)
        if slow == "after":
            work()
        return _SlowBackward.apply(y) if slow == "backward after" else y

    monkeypatch.setattr(TowerLayer, "forward", slowed)
    rows = rows_of(run(data, tmp_path / "run", "--profile", 1, "--steps", 4))
    del rows["the whole step"]
    cells = {(name, column): rows[name][column] or 0.0 for name in rows for column in ("forward_ms", "backward_ms")}
    assert max(cells, key=cells.get) == (row, column) and rows[row]["share"] > 40
    assert cells[row, column] > 3 * max(value for cell, value in cells.items() if cell != (row, column))


def test_operations_are_looked_for_under_the_names_that_they_have():
    """The profiler names an autograd function after its class."""
    classes = exchange._Whole, split_product._SplitInputFunction, linear_op._OneDnn
    assert (CROSSING, SPLIT_INPUT, ONEDNN) == tuple(function.__name__ for function in classes)


# --- what a machine with GPUs records, made by hand: (name, start, end, thread, forward thread, sequence, kernels)

MAIN, DEVICE_0, DEVICE_1 = 1, 7, 8
RECORDED = [
    (INPUT, 0, 100, MAIN, 0, -1, ()),
    ("aten::copy_", 10, 90, MAIN, 0, -1, ((0, 11), (1, 12))),
    (STEP, 100, 1000, MAIN, 0, -1, ()),
    (FORWARD_BACKWARD, 110, 800, MAIN, 0, -1, ()),
    (NETWORK, 120, 400, MAIN, 0, -1, ()),
    (LAYER + "conv1 a", 130, 200, MAIN, 0, -1, ()),
    ("aten::pad", 132, 138, MAIN, 0, 5, ((0, 3),)),  # before the product: its part
    ("aten::conv2d", 140, 160, MAIN, 0, 6, ()),
    ("aten::cudnn_convolution", 145, 155, MAIN, 0, -1, ((0, 100),)),
    ("alexnet_mp::lrn_pool", 170, 190, MAIN, 0, 7, ((0, 40),)),
    (LAYER + "conv1 b", 200, 240, MAIN, 0, -1, ()),
    ("aten::conv2d", 205, 220, MAIN, 0, 8, ((1, 110),)),
    ("aten::relu", 225, 235, MAIN, 0, 9, ((1, 5),)),
    ("_Whole", 250, 260, MAIN, 0, 10, ()),
    ("aten::copy_", 251, 259, MAIN, 0, -1, ((1, 20),)),
    (LAYER + "fc8 a", 270, 300, MAIN, 0, -1, ()),
    ("_SplitInputFunction", 272, 298, MAIN, 0, 11, ()),  # two products and their sum
    ("aten::add_", 296, 297, MAIN, 0, -1, ((0, 6),)),
    ("aten::linear", 280, 295, MAIN, 0, 12, ()),
    ("aten::addmm", 282, 290, MAIN, 0, 13, ((0, 30),)),
    ("aten::cross_entropy_loss", 410, 440, MAIN, 0, 14, ((0, 2),)),
    # Backward, a thread a GPU; a parameter's gradient has no number of its own.
    (NODE + "_SplitInputFunctionBackward", 441, 489, DEVICE_0, MAIN, 11, ()),
    ("_SplitInputFunctionBackward", 442, 488, DEVICE_0, MAIN, 11, ()),
    ("aten::copy_", 486, 487, DEVICE_0, 0, -1, ((0, 13),)),  # a gradient that is sent
    (NODE + "AddmmBackward0", 450, 480, DEVICE_0, MAIN, 13, ((0, 1),)),
    ("AddmmBackward0", 452, 478, DEVICE_0, MAIN, 13, ()),
    ("aten::mm", 455, 470, DEVICE_0, 0, -1, ((0, 60),)),
    (NODE + "torch::autograd::AccumulateGrad", 481, 485, DEVICE_0, 0, -1, ((0, 4),)),
    (NODE + "GeneratedBackwardFor_alexnet_mp_lrn_pool_default", 490, 520, DEVICE_0, MAIN, 7, ((0, 80),)),
    (NODE + "ConvolutionBackward0", 530, 560, DEVICE_0, MAIN, 6, ((0, 200),)),
    (NODE + "ReluBackward0", 500, 520, DEVICE_1, MAIN, 9, ((1, 7),)),
    (NODE + "ConvolutionBackward0", 521, 560, DEVICE_1, MAIN, 8, ((1, 210),)),
    (NODE + "_WholeBackward", 561, 565, DEVICE_1, MAIN, 10, ((1, 25),)),
    ("aten::copy_", 600, 610, 99, 0, -1, ((0, 1000),)),  # a thread that saves
    (UPDATE, 800, 900, MAIN, 0, -1, ()),
    ("Optimizer.step#PaperSGD.step", 810, 850, MAIN, 0, -1, ()),
    ("alexnet_mp::paper_sgd_", 815, 845, MAIN, 0, -1, ((0, 50), (1, 51))),
    ("aten::sum", 860, 880, MAIN, 0, -1, ((0, 9),)),
    ("aten::to", 910, 950, MAIN, 0, -1, ((0, 1),)),
    ("aten::relu", 1100, 1200, MAIN, 0, -1, ((0, 500),)),
]  # a validation


@pytest.fixture
def recorded():
    return attribute([Operation(*operation) for operation in RECORDED])


def test_kernels_belong_to_the_layer_whose_operation_launched_them(recorded):
    forward, backward = {}, {}
    for place, duration in recorded.gpus[0].items():
        (backward if place.backward else forward)[place.part, place.kind, place.tower] = duration
    assert forward == {
        ("input", "", ""): 11,
        ("conv1", "product", "a"): 103,
        ("conv1", "then", "a"): 40,
        ("fc8", "product", "a"): 36,
        ("loss", "", ""): 2,
        ("update", "", ""): 59,
        ("other", "", ""): 1,
    }
    assert backward == {
        ("fc8", "product", "a"): 65,
        ("exchange", "", ""): 13,
        ("conv1", "then", "a"): 80,
        ("conv1", "product", "a"): 200,
    }
    assert recorded.gpus[1] == {
        Place("input"): 12,
        Place("conv1", "product", "b"): 110,
        Place("conv1", "then", "b"): 5,
        Place("exchange"): 20,
        Place("conv1", "then", "b", True): 7,
        Place("conv1", "product", "b", True): 210,
        Place("exchange", backward=True): 25,
        Place("update"): 51,
    }


def test_the_host_is_counted_by_the_thread_that_trains_alone(recorded):
    assert recorded.whole == 1000 and recorded.waited == 100
    assert sum(recorded.host.values()) == pytest.approx(1000)
    assert recorded.host[Place("conv1", "then", "a")] == 20 and recorded.host[Place("update")] == 60
    assert recorded.host[Place("conv1", "product", "a")] == 50


def test_gpus_and_the_cpu_are_kept_apart(recorded):
    """Each table adds up to the step; what a GPU idles, or a host does for another device, is "other"."""
    recipe = paper()
    expected = {"cuda:0": 1.0 - (610 - 1) / 1000, "cuda:1": 1.0 - 440 / 1000}
    for number, device in enumerate(expected):
        rows = {
            row["row"]: row
            for row in table(recipe, recorded, torch.device(device), [number], 1, 128, "fp32", None, 1000)
        }
        whole = rows.pop("the whole step")
        assert whole["ms"] == 1.0 and sum(row["ms"] for row in rows.values()) == pytest.approx(1.0)
        assert rows["other"]["ms"] == pytest.approx(expected[device])
        assert ("fc8" in rows) == (number == 0)  # on the first tower alone
    rows = {row["row"]: row for row in table(recipe, recorded, torch.device("cpu"), [1], 1, 128, "fp32", None, 1000)}
    assert rows["conv1"]["ms"] == pytest.approx(0.030) and rows["conv1 relu+lrn+max_pool"]["ms"] == pytest.approx(0.010)
    assert sum(row["ms"] for name, row in rows.items() if name != "the whole step") == pytest.approx(1.0)


def test_a_recording_without_a_step_is_empty():
    assert attribute([Operation("aten::relu", 0, 1, MAIN)]).whole == 0


# --- the roofline


def test_the_limits_of_the_layers_are_those_of_the_step():
    """Two towers on one device."""
    times = Times(
        1.0,
        0.0,
        {Place(size.name, kind, "a", True): 1.0 for size in paper().layers for kind in ("product", "then")},
        {},
    )
    for dtype, peak in (("fp32", 395.0), ("bf16", 790.0)):
        rows = table(paper(), times, torch.device("cpu"), [0, 1], 1, 128, dtype, Ceilings(4300.0, peak, 0, 0), 1000)
        assert rows[-1]["roofline_ms"] == pytest.approx(roofline_step(paper(), 128, dtype)["step"])


def test_a_frozen_layer_is_asked_for_no_backward_pass():
    times = Times(1.0, 0.0, {Place("conv1", "product", "a"): 1.0}, {})
    rows = {
        row["row"]: row
        for row in table(paper(), times, torch.device("cpu"), [0], 1, 8, "fp32", Ceilings(10.0, 0.1, 0, 0), 10)
    }
    seconds = layer_limits(paper(), 8, "fp32", 10.0, 0.1, 10)["conv1"]["product"][0]
    assert rows["conv1"]["roofline_ms"] == pytest.approx(1e3 * seconds)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ceilings_are_measured_and_leave_the_random_numbers_alone(dtype):
    before = torch.get_rng_state()
    ceilings = machine_limits.measure(torch.device("cpu"), dtype)
    assert (
        0.05 < ceilings.bandwidth < 1e5
        and 1e-6 < ceilings.tflops < 1e3
        and (ceilings.copy_bytes, ceilings.product) == (1 << 20, 64)
    )
    assert torch.equal(torch.get_rng_state(), before)


def test_no_cache_holds_the_copy(monkeypatch):
    monkeypatch.undo()
    caches = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    largest = max((int(path.read_text().strip().removesuffix("K")) << 10 for path in caches), default=0)
    assert (
        machine_limits.COPY_BYTES <= machine_limits.copy_bytes(torch.device("cpu")) <= machine_limits.LARGEST_COPY
        and machine_limits.copy_bytes(torch.device("cuda:0")) == machine_limits.COPY_BYTES
    )
    monkeypatch.setattr(machine_limits, "COPY_BYTES", 1 << 10)
    assert machine_limits.copy_bytes(torch.device("cpu")) == max(1 << 10, machine_limits.CACHES * largest)
