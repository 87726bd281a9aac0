"""The benchmarks run what was asked for, and name the rest; each builds, checks and times no variant but those."""

import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from checked_devices import needs_kernels

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))
import interleaved
import record
import selection
import test_speed_augmentation as augmentation
import test_speed_exchange as exchange
import test_speed_lrn_pool as lrn_pool
import test_speed_pipeline as pipeline
import test_speed_relu_dropout as relu_dropout
import test_speed_sgd as sgd
import test_speed_step as step

from alexnet_mp import paper, source2012
from alexnet_mp.recipes.recipe import change_layers

CPU = torch.device("cpu")
# Instead of measuring, what a test asks for is written down.
WRITES_DOWN = """
import importlib, pathlib, pytest, test_speed_lrn_pool, test_speed_pipeline

def instead(name):
    def measure(*arguments):
        variants = [each for each in arguments if isinstance(each, tuple) and set(map(type, each)) == {str}]
        print("asked:", name, *sorted(sum(variants, ())))
        pytest.skip("only asked")
    return measure

test_speed_lrn_pool.Measurement = instead("lrn_pool")
for path in pathlib.Path(test_speed_pipeline.__file__).parent.glob("test_speed_*.py"):
    if (name := path.stem.removeprefix("test_speed_")) != "lrn_pool":
        importlib.import_module(path.stem).measure = instead(name)
test_speed_pipeline.measure_steps = instead("fed")
"""
CHOSEN = {
    "test_speed_step and fp32-b128 and (towers or eager)": "step eager towers",
    "cpu-lrnpool1-bwd-fp32-b128-nchw and not copy": "lrn_pool compile eager ours-cpu",
    "test_sgd and cpu and (foreach or fused)": "sgd foreach fused",
    "two-gpus": "towers",
    "test_exchange and cpu-fc7 and not concatenated": "exchange in-order overlapped",
    "test_pipeline and raw-cpu": "pipeline raw",
    "test_step_that_is_fed and cpu and not dali and not torch": "fed fixed raw",
}


# What answers the first questions, where no GPU is; each line is one measurement.
USUAL = {
    "augmentation compile copy eager ours-cpu reference",
    "checkpoint",
    "lrn_pool compile copy eager ours-cpu",
    "pipeline dali raw torch",
    "relu_dropout compile copy eager ours-cpu reference",
    "scaling",
    "sgd copy foreach fused ours-cpu reference",
    "step eager towers",
}
LONG = {
    "exchange concatenated in-order overlapped",
    "fed dali fixed raw torch",
    "lrn_pool copy ours-cpu reference",
    "step compile default-allocator eager merged no-lrn reference towers",
    "towers",
}


@pytest.fixture
def asks(tmp_path):
    """A function: arguments of pytest -> (what the benchmarks would measure, all that was printed)."""
    (tmp_path / "writes_down.py").write_text(WRITES_DOWN)
    path = os.pathsep.join((str(tmp_path), str(BENCHMARKS)))
    # A worker of xdist tells its children so, and there pytest-benchmark measures nothing.
    environment = {name: value for name, value in os.environ.items() if "XDIST" not in name}
    environment |= {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}

    def run(*arguments):
        process = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                *arguments,
                "--benchmark-only",
                "-p",
                "writes_down",
                "-s",
                "-p",
                "no:cacheprovider",
            ],
            env=environment,
            capture_output=True,
            text=True,
        )
        measurements = {line.partition("asked: ")[2] for line in process.stdout.splitlines() if "asked: " in line}
        return measurements, process.stdout + process.stderr

    return run


@pytest.mark.slow
def test_what_the_selection_leaves_is_asked_for(asks):
    measurements, output = asks(str(BENCHMARKS), "-k", " or ".join(f"({words})" for words in CHOSEN))
    assert measurements == set(CHOSEN.values()), output


@pytest.mark.run
@needs_kernels
def test_long_groups_are_named_and_a_missing_gpu_is_told_once(asks):
    measurements, output = asks(str(BENCHMARKS))
    assert measurements == USUAL, output
    _, _, listing = output.partition("long groups, not run; --long runs all, -k NAME one:\n")
    assert {line.split()[0] for line in listing.splitlines()[:5]} == {*selection.LONG} - {"forked"}, output
    skips = [line for line in output.splitlines() if line.startswith("SKIPPED") and "only asked" not in line]
    assert len(skips) == 2 and all("needs" in line and "found 0" in line for line in skips), output
    assert max(map(len, skips)) <= 120 and "needs 2 CUDA devices, found 0 (22 cases in one line)" in skips[1]
    counts = "exchange 24, forked 12, lrn_pool 432, pipeline 10, relu_dropout 5, sgd 10, step 17, towers 10"
    assert f"for lack of GPUs: augmentation 5, {counts}" in " ".join(output.split())


@pytest.mark.slow
@pytest.mark.run
@pytest.mark.parametrize(
    "arguments, expected",
    [
        pytest.param(["", "--long"], USUAL - {"step eager towers"} | LONG, marks=pytest.mark.slow),
        (
            ["/test_speed_exchange.py", "/test_speed_step.py::test_step[fp32-b128-no-lrn]"],
            {"exchange concatenated in-order overlapped", "step no-lrn"},
        ),
    ],
    ids=["all", "a file and a case"],
)
def test_a_long_group_runs_where_it_is_asked_for(asks, arguments, expected):
    measurements, output = asks(*(one if one.startswith("-") else f"{BENCHMARKS}{one}" for one in arguments))
    assert measurements == expected and "long groups" not in output, output


@pytest.fixture
def forbidden(monkeypatch):
    """A function that makes names of a module raise when they are called."""

    def forbid(module, *names):
        for name in names:
            monkeypatch.setattr(module, name, lambda *_, name=name, **__: pytest.fail(f"{name} was built"))

    return forbid


def test_a_step(forbidden, monkeypatch):
    checks, recipe = [], change_layers(paper(), "fc6", "fc7", maps=8)
    monkeypatch.setattr(step, "DEVICE", CPU)
    monkeypatch.setattr(step, "paper", lambda: recipe)
    monkeypatch.setattr(step, "check_answers", lambda images, labels, names: checks.append(names) or {})
    forbidden(step, "EagerTowers", "without_norms_and_towers", "DefaultAllocator")
    forbidden(step.torch, "compile")
    forbidden(step.TwoTowerAlexNet, "merge")
    seconds, figures, _, errors = step.measure("fp32", 1, ("towers", "graphs"), 1)
    assert list(seconds) == list(figures) == ["towers"] and checks == [("towers", "graphs")]  # graphs need a GPU
    assert not errors


def test_a_group_that_fails_is_set_up_once():
    calls, references = [], []

    def measure(case):
        calls.append(case)
        references.append(weakref.ref(tensor := torch.zeros(9)))
        return float(tensor[0]) + 1 / case

    measured = interleaved.once(measure)
    assert measured(2) == measured(2) == 0.5
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            measured(0)
    assert calls == [2, 0] and not any(
        one() is not None for one in references
    )  # nor does its error keep what it had made


@pytest.mark.slow
@pytest.mark.run
def test_what_fails_in_one_way_of_a_step_is_told_by_that_one_alone(monkeypatch):
    """Wrong answers, a network that can't be built, a step that fails."""
    recipe, builder = change_layers(paper(), "fc6", "fc7", maps=8), step.build
    monkeypatch.setattr(step, "DEVICE", CPU)
    monkeypatch.setattr(step, "paper", lambda: recipe)

    def build(name, *arguments):
        if name == "graphs":
            raise RuntimeError("cannot be captured")
        variant = builder(name, *arguments)
        if name == "merged":
            monkeypatch.setattr(variant, "step", lambda: 1 / 0)
        return variant

    monkeypatch.setattr(step, "build", build)
    monkeypatch.setattr(step.EagerTowers, "take", lambda self, towers: self)  # other weights than ours
    seconds, _, _, errors = step.measure("fp32", 1, ("towers", "graphs", "eager"), 1)
    assert list(seconds) == ["eager"] and set(errors) == {"towers", "graphs"} and "a loss of" in str(errors["towers"])
    monkeypatch.setattr(step.TwoTowerAlexNet, "merge", lambda self: 1 / 0)
    _, _, _, errors = step.measure("fp32", 1, ("merged", "eager"), 1)
    assert isinstance(errors["merged"], ZeroDivisionError) and "Traceback" in errors["merged"].__notes__[0]
    monkeypatch.undo()
    monkeypatch.setattr(step, "DEVICE", CPU)
    monkeypatch.setattr(step, "paper", lambda: recipe)
    monkeypatch.setattr(step, "build", build)
    monkeypatch.setattr(step, "check_answers", lambda *_: {})
    seconds, _, _, errors = step.measure("fp32", 1, ("towers", "graphs", "merged"), 1)
    assert list(seconds) == ["towers"] and str(errors["graphs"]) == "cannot be captured"
    assert isinstance(errors["merged"], ZeroDivisionError)


@pytest.mark.run
def test_map_operations_and_their_copy(forbidden):
    case = next(case for case in lrn_pool.cases((1,)) if case.device == CPU and case.op.name == "maxpool5")
    forbidden(lrn_pool, "CopyRoof")
    forbidden(lrn_pool.torch, "compile")
    measurement = lrn_pool.Measurement(case, 1, ("eager",))
    assert (
        list(measurement.seconds) == ["eager"]
        and not measurement.wrong
        and "pct_of_roof" not in measurement.facts("fwd", "eager")
    )


def test_an_update(forbidden, monkeypatch):
    tensors, hyper = tuple([torch.ones(9000)] for _ in range(3)), dict(learning_rates=[0.1], weight_decays=[0.0])
    monkeypatch.setattr(sgd, "parameters", lambda device: tensors)
    paper_sgd_, calls = sgd.paper_sgd_, []
    monkeypatch.setattr(sgd, "paper_sgd_", lambda *lists, **how: calls.append(how) or paper_sgd_(*lists, **how))
    sgd.measure(CPU, "bf16", ("reference",), 1)
    assert calls and all(how["copies"][0].dtype == torch.bfloat16 and how["sums"] is not None for how in calls)
    for forgotten in ({"copies": []}, {"sums": None}):
        with pytest.raises(AssertionError):
            sgd.check_paper_sgd(
                lambda *lists, forgotten=forgotten, **how: paper_sgd_(*lists, **how | forgotten),
                tensors,
                hyper | {"momentum": 0.9},
                [torch.zeros(9000, dtype=torch.bfloat16)],
                torch.zeros(1),
            )
    forbidden(sgd, "CopyRoof", "check_paper_sgd")
    for dtype in ("fp32", "bf16"):
        seconds, _, _ = sgd.measure(CPU, dtype, ("foreach",), 1)
        assert list(seconds) == ["foreach"]


@pytest.mark.run
def test_augmented_batches(forbidden):
    forbidden(augmentation, "CopyRoof", "eager")
    forbidden(augmentation.torch, "compile")
    seconds, bytes_, _ = augmentation.measure(CPU, 2, ("reference",), 1)
    assert list(seconds) == ["reference"] and bytes_ == 5 * 2 * 3 * 224 * 224


def test_crops_one_after_another_are_the_reference():
    tensors = augmentation.inputs(3, CPU, 0)
    assert tensors[3].any() and not tensors[3].all()  # flips
    torch.testing.assert_close(augmentation.eager(*tensors), augmentation.implementation("reference")(*tensors))


def test_relu_and_dropout(forbidden, monkeypatch):
    monkeypatch.setattr(relu_dropout, "buffer_sets", lambda bytes_, device: 2)
    forbidden(relu_dropout, "CopyRoof")
    forbidden(relu_dropout.torch, "compile")
    seconds, bytes_, _ = relu_dropout.measure(CPU, 128, ("reference", "eager"), 1)
    assert list(seconds) == ["reference", "eager"] and bytes_ == 20 * 128 * 2048
    assert seconds["eager"]["fwdbwd"] == [seconds["eager"]["fwd"][0] + seconds["eager"]["bwd"][0]]


@pytest.mark.parametrize(
    "rescaled, function",
    [
        (True, lambda x: 2 * x.relu()),
        (True, lambda x: torch.nn.functional.dropout(x.relu(), 0.6) * 0.8),
        (True, lambda x: torch.nn.functional.dropout(x)),
        (False, lambda x: x.relu()),
        (False, lambda x: torch.nn.functional.dropout(x.relu()) / 2),
    ],
    ids=["no mask", "another share", "no ReLU", "ours without a mask", "ours with another mask"],
)
def test_a_wrong_dropout_is_found_out(rescaled, function):
    with pytest.raises(AssertionError):
        relu_dropout.check(function, relu_dropout.inputs(16, CPU, 0), rescaled)


@pytest.mark.run
def test_crossings_are_compared_with_one_that_was_not_asked_for(monkeypatch):
    built, edge = [], exchange.Edge
    monkeypatch.setattr(exchange, "Edge", lambda *arguments: built.append(arguments[-1]) or edge(*arguments))
    seconds, _, _ = exchange.measure((CPU, CPU), "fc8", 2, 1, ("overlapped",))
    assert list(seconds) == ["overlapped"] and built == ["overlapped", "in-order"]


@pytest.mark.run
def test_pipelines(monkeypatch, tmp_path):
    """Images are counted as they come, here in batches of 2 and 1; the sets that are measured have no short ones."""
    monkeypatch.setattr(pipeline, "available", lambda: False)
    assert pipeline.there(("dali", "raw")) == ["raw"] and pipeline.there(("torch",)) == ["torch"]
    assert [pipeline.pictures_for(batch) for batch in (1, 100, 128, 512, 1024)] == [512, 500, 512, 1024, 2048]
    asked, three = [], pipeline.prepared(tmp_path, 3)

    def sets(pictures):
        return asked.append(pictures) or three

    def recipe():
        return change_layers(source2012(), "fc6", "fc7", maps=8)

    seconds, figures, _ = pipeline.measure(sets, "cpu", 2, 1, ("dali", "raw"))
    assert list(seconds) == ["raw"] and asked == [512]
    assert figures["raw"]["images_per_s"] == pytest.approx(1.5 / seconds["raw"]["batch"][0])
    updates, step = [], pipeline.PaperSGD.step
    monkeypatch.setattr(pipeline.PaperSGD, "step", lambda *arguments: updates.append(1) or step(*arguments))
    seconds, figures, _ = pipeline.measure_steps(sets, "cpu", recipe, "fp32", 2, 1, ("fixed", "raw"))
    fixed, raw = (2 / seconds["fixed"]["batch"][0], 1.5 / seconds["raw"]["batch"][0])
    assert figures["fixed"] == {"images_per_s": pytest.approx(fixed), "pct_feeding": 0.0, "graphs": False}
    assert figures["raw"]["images_per_s"] == pytest.approx(raw) and len(updates) == 8
    assert figures["raw"]["pct_feeding"] == pytest.approx(100 * (fixed / raw - 1))


def test_a_record_names_the_source_where_there_is_no_git(tmp_path):
    entry = {"group": "g", "name": "n", "stats": dict.fromkeys(("median", "iqr", "min", "rounds"), 1)}
    for commit, expected in ((None, "cafe+changes"), ("beef", "beef")):
        info = {"device": "GPU", "variant": "r", "commit": commit, "dirty": False}
        raw = {"datetime": "2026-11-29T10:00:00", "benchmarks": [entry | {"extra_info": info}]}
        (tmp_path / "raw.json").write_text(json.dumps(raw))
        assert (
            record.main(
                [
                    "--from",
                    str(tmp_path / "raw.json"),
                    "--records",
                    str(tmp_path / str(commit)),
                    "--commit",
                    "cafe+changes",
                ]
            )
            == 0
        )
        (path,) = (tmp_path / str(commit)).glob("*/*.json")
        content = json.loads(path.read_text())
        assert content["machine"]["commit"] == expected and content["machine"]["dirty"] == (commit is None)
        assert content["command"] == f"python benchmarks/record.py --from {tmp_path}/raw.json"
