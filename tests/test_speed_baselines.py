"""A benchmark builds, checks and times the variants that were asked for, and no others."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.append(str(BENCHMARKS))
import record  # noqa: E402
import test_speed_exchange as exchange  # noqa: E402
import test_speed_lrn_pool as lrn_pool  # noqa: E402
import test_speed_pipeline as pipeline  # noqa: E402
import test_speed_sgd as sgd  # noqa: E402
import test_speed_step as step  # noqa: E402

from alexnet_mp import paper  # noqa: E402
from alexnet_mp.recipe import change_layers  # noqa: E402

CPU = torch.device("cpu")
# Instead of measuring, what a test asks for is written down.
WRITES_DOWN = """
import pytest, test_speed_exchange, test_speed_lrn_pool, test_speed_pipeline, test_speed_sgd, test_speed_step

def instead(name):
    def measure(*arguments):
        variants, = [each for each in arguments if isinstance(each, tuple) and set(map(type, each)) == {str}]
        print("asked:", name, *sorted(variants))
        pytest.skip("only asked")
    return measure

test_speed_lrn_pool.Measurement = instead("lrn_pool")
for module in (test_speed_exchange, test_speed_sgd, test_speed_step, test_speed_pipeline):
    module.measure = instead(module.__name__.removeprefix("test_speed_"))
test_speed_pipeline.measure_steps = instead("fed")
test_speed_pipeline.prepare.main = lambda arguments: 0
test_speed_pipeline.open_dataset = lambda *arguments: None
test_speed_pipeline.PICTURES = 0
"""
CHOSEN = {
    "test_speed_step and fp32-b128 and (towers or eager)": "step eager towers",
    "cpu-lrnpool1-bwd-fp32-b128-nchw and not copy": "lrn_pool compile eager ours-cpu",
    "test_sgd and cpu and (foreach or fused)": "sgd foreach fused",
    "test_exchange and cpu-fc7 and not concatenated": "exchange in-order overlapped",
    "test_pipeline and raw-cpu": "pipeline raw",
    "test_step_that_is_fed and cpu and not dali and not torch": "fed fixed raw"}


def test_what_the_selection_leaves_is_asked_for(tmp_path):
    (tmp_path / "writes_down.py").write_text(WRITES_DOWN)
    path = os.pathsep.join((str(tmp_path), str(BENCHMARKS)))
    # A worker of xdist tells its children so, and there pytest-benchmark measures nothing.
    environment = {name: value for name, value in os.environ.items() if "XDIST" not in name} | {"PYTHONPATH": path}
    chosen = " or ".join(f"({words})" for words in CHOSEN)
    done = subprocess.run([sys.executable, "-m", "pytest", str(BENCHMARKS), "--benchmark-only", "-p", "writes_down", "-s",
                           "-p", "no:cacheprovider", "-k", chosen],
                          env=environment, capture_output=True, text=True)
    said = {line.partition("asked: ")[2] for line in done.stdout.splitlines() if "asked: " in line}
    assert said == set(CHOSEN.values()), done.stdout + done.stderr


@pytest.fixture
def forbidden(monkeypatch):
    """A function that makes names of a module raise when they are called."""
    def forbid(module, *names):
        for name in names:
            monkeypatch.setattr(module, name, lambda *_, name=name, **__: pytest.fail(f"{name} was built"))
    return forbid


def test_a_step(forbidden, monkeypatch):
    checked, small = [], change_layers(paper(), "fc6", "fc7", maps=8)
    monkeypatch.setattr(step, "DEVICE", CPU)
    monkeypatch.setattr(step, "paper", lambda: small)
    monkeypatch.setattr(step, "check_answers", lambda images, labels, asked: checked.append(asked))
    forbidden(step, "EagerTowers", "without_norms_and_towers", "DefaultAllocator")
    forbidden(step.torch, "compile")
    forbidden(step.TwoTowerAlexNet, "merge")
    seconds, found, _ = step.measure("fp32", 1, ("towers", "graphs"), 1)
    assert list(seconds) == list(found) == ["towers"] and checked == [("towers", "graphs")]  # graphs need a GPU


def test_map_operations_and_their_copy(forbidden):
    case = next(case for case in lrn_pool.cases((1,)) if case.device == CPU and case.op.name == "maxpool5")
    forbidden(lrn_pool, "CopyRoof")
    forbidden(lrn_pool.torch, "compile")
    found = lrn_pool.Measurement(case, 1, ("eager",))
    assert list(found.seconds) == ["eager"] and not found.wrong and "pct_of_roof" not in found.facts("fwd", "eager")


def test_an_update(forbidden, monkeypatch):
    monkeypatch.setattr(sgd, "parameters", lambda device: tuple([torch.ones(9000)] for _ in range(3)))
    forbidden(sgd, "CopyRoof", "check_paper_sgd")
    seconds, _, _ = sgd.measure(CPU, ("foreach",), 1)
    assert list(seconds) == ["foreach"]


def test_crossings_are_compared_with_one_that_was_not_asked_for(monkeypatch):
    built, edge = [], exchange.Edge
    monkeypatch.setattr(exchange, "Edge", lambda *arguments: built.append(arguments[-1]) or edge(*arguments))
    seconds, _, _ = exchange.measure((CPU, CPU), "fc8", 2, 1, ("overlapped",))
    assert list(seconds) == ["overlapped"] and built == ["overlapped", "in-order"]


def test_pipelines(monkeypatch):
    monkeypatch.setattr(pipeline, "available", lambda: False)
    assert pipeline.there(("dali", "raw")) == ["raw"] and pipeline.there(("torch",)) == ["torch"]


def test_a_record_names_the_source_where_there_is_no_git(tmp_path):
    entry = {"group": "g", "name": "n", "stats": dict.fromkeys(("median", "iqr", "min", "rounds"), 1)}
    for commit, expected in ((None, "cafe+changes"), ("beef", "beef")):
        info = {"device": "GPU", "variant": "r", "commit": commit, "dirty": False}
        raw = {"datetime": "2026-11-29T10:00:00", "benchmarks": [entry | {"extra_info": info}]}
        (tmp_path / "raw.json").write_text(json.dumps(raw))
        assert record.main(["--from", str(tmp_path / "raw.json"), "--records", str(tmp_path / str(commit)),
                            "--commit", "cafe+changes"]) == 0
        path, = (tmp_path / str(commit)).glob("*/*.json")
        kept = json.loads(path.read_text())
        assert kept["machine"]["commit"] == expected and kept["machine"]["dirty"] == (commit is None)
        assert kept["command"] == f"python benchmarks/record.py --from {tmp_path}/raw.json"
