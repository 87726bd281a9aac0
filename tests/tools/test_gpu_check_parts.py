"""What tools/gpu_check is made of: its table, the packages that it misses, the facts that it gathers."""

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from inner_cases import every

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tools"))
from gpu_check import facts, journal, packages, results, stages

TABLE = {stage.name: stage for stage in stages.table()}


def collected(*arguments):
    """The node ids that pytest selects."""
    # A worker of xdist tells its children so, and there pytest-benchmark measures nothing.
    environment = {name: value for name, value in os.environ.items() if "XDIST" not in name}
    process = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--collect-only",
            "-q",
            "-p",
            "gpu_check.journal",
            "-p",
            "no:cacheprovider",
            *arguments,
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT / "tools"), "CUDA_VISIBLE_DEVICES": ""},
    )
    return [line for line in process.stdout.splitlines() if "::" in line]


def test_what_is_worth_most_comes_first():
    """The order that was decided on; and nothing is there twice."""
    assert len(TABLE) == len(stages.table())
    names = [name for name in TABLE if "gpus:2" not in TABLE[name].needs]
    assert names[:14] == [
        "build",
        "kernels-once",
        "graphs",
        "train-one-device",
        "train-cpu-and-gpu",
        "step-bf16-b128",
        "roof",
        "lrn-pool-bf16-b128",
        "lrn-pool-bf16-b1024",
        "step-bf16-b1024",
        "forked",
        "pipeline-dali",
        "pipeline-raw",
        "fed-step-bf16-b1024",
    ]
    places = {name: place for place, name in enumerate(TABLE)}
    wide = [places[name] for name in TABLE if name.startswith("tests-") and name != "tests-rest"]
    assert places["pipeline"] < min(wide) and max(wide) < places["lrn-pool-fp32-b128"]
    assert list(TABLE)[-4:] == ["memcheck", "racecheck", "synccheck", "initcheck"]
    for stage in TABLE.values():
        assert 0 < stage.seconds <= stage.limit <= 540 and stage.why, stage  # of a command of ten minutes
        assert 100 <= stage.longest_test <= 0.7 * stage.limit or not stage.journal, stage
    for tool in list(TABLE)[-4:]:
        assert "--report-api-errors no" in " ".join(TABLE[tool].command)
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    goals = page.partition("## What a GPU is expected to show\n")[2].partition("\n## ")[0]
    rows = [line.split("|") for line in goals.splitlines() if line.startswith("| ")]
    assert len(rows) > 2 and {name for row in rows for name in re.findall("`(.+?)`", row[4])} <= TABLE.keys()


def test_every_file_of_tests_is_in_one_stage():
    wide, rest = map(set, stages.test_files())
    assert wide | rest == {path.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py")} and not wide & rest
    assert {"test_lrn_pool", "test_triton_kernels", "test_sgd", "test_graphed_step"} <= {path.stem for path in wide}
    assert {"test_sources", "test_metrics"} <= {path.stem for path in rest}
    for path in wide:
        assert str(path) in TABLE[f"tests-{path.stem.removeprefix('test_')}"].command
    assert set(map(str, rest)) < set(TABLE["tests-rest"].command)
    assert stages.LONG_FILES.keys() <= {path.stem for path in wide}
    assert "not network" in TABLE["tests-rest"].command  # a machine that is lent has none


@pytest.mark.slow
@pytest.mark.process
def test_every_benchmark_for_a_gpu_is_in_a_stage_and_the_quick_stages_compile_nothing():
    """pytest's -k, as far as the table uses it: parts of names, `and`, `not`."""
    ids, selected = collected("benchmarks", "--benchmark-only"), set()
    pairs = {test for test in ids if re.search(r"\[two-gpu", test)}
    for stage in TABLE.values():
        if "-k" not in stage.command or "benchmarks/record.py" not in stage.command:
            continue
        words = stage.command[stage.command.index("-k") + 1].split(" and ")
        selection = [
            test
            for test in ids
            if all((word.removeprefix("not ") in test) != word.startswith("not ") for word in words)
        ]
        assert selection and not any("cpu-" in test or "-cpu]" in test for test in selection), stage.name
        assert pairs.isdisjoint(selection) or "gpus:2" in stage.needs and pairs.issuperset(selection), stage.name
        if stage.seconds <= 60:
            assert not any("compile" in test for test in selection), stage.name
        selected.update(selection)
    assert set(collected("benchmarks", "--benchmark-only", "-m", "gpus")) - selected == set()
    files = {test.partition("::")[0] for test in selected}
    assert files == {str(path.relative_to(ROOT)) for path in (ROOT / "benchmarks").glob("test_speed_*.py")}


@pytest.mark.slow
@pytest.mark.process
def test_the_first_stages_of_tests_are_few_cases_and_all_for_a_gpu():
    files = {
        stage: [word for word in TABLE[stage].command if word.startswith("tests/")]
        for stage in ("kernels-once", "graphs")
    }
    assert TABLE["kernels-once"].command[-2:] == ("-k", "fp32") and TABLE["graphs"].command[-1] == "--gpu-only"
    assert files["kernels-once"][0] in TABLE["memcheck"].command
    ids = collected(*files["kernels-once"], *files["graphs"], "--gpu-only")
    cases = [test for test in ids if test.startswith(files["kernels-once"][0])]
    quick = {test for test in cases if "fp32" in test}
    others = {re.sub("bf16|fp16", "fp32", test) for test in cases} - quick
    assert len(quick) >= 10 and {re.split(r"::|\[", test)[1] for test in others} == {"test_paper_sgd_of_a_run"}
    assert all(re.search(r"\b(cuda|triton)-", test) for test in cases)
    assert 30 <= len(ids) - len(cases) <= 80 and not any("one CPU" in test for test in ids)


def test_a_line_that_was_half_written_and_a_test_that_passed_later(tmp_path):
    lines = (
        "begun A a[x y]",
        "failed A a[x y]",
        "begun A b",
        "begun B b",
        "passed B b",
        "begun A c",
        "begun A d",
        "skipped A d",
        "pass",
    )
    (tmp_path / "lines").write_text("\n".join(lines))
    assert journal.read(tmp_path / "lines", "A") == ({"b"}, {"a[x y]"}, {"c"})
    assert journal.read(tmp_path / "lines", "C") == ({"b"}, set(), set())
    assert journal.read(tmp_path / "none", "A") == (set(), set(), set())


def test_a_long_log_keeps_its_ends(tmp_path):
    (tmp_path / "log").write_text("begin " + "x" * results.LOG * 3 + " end")
    results.shorten(tmp_path / "log")
    text = (tmp_path / "log").read_text()
    assert text.startswith("begin ") and text.endswith(" end") and "left out" in text and len(text) < results.LOG + 100


def test_a_large_file_is_not_packed(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "MOST", 100)
    results.replace(tmp_path / "home" / "check.json", "{}")
    (tmp_path / "home" / "large").write_bytes(bytes(101))
    results.pack(tmp_path / "home", tmp_path / "results")
    with results.tarfile.open(tmp_path / "results" / "gpu-check.tar.gz") as tar:
        assert tar.getnames() == ["check.json"]


# --- packages


# without which nothing starts
NEEDED = {"jinja2", "matplotlib", "mpmath", "numpy", "pillow", "pydantic"} | {
    *("pytest", "pytest-benchmark", "rich", "safetensors", "tensorboard", "torch")
}


def project(folder, *dependencies):
    folder.mkdir(exist_ok=True)
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools>=60.1"]\n'
        f"[project]\ndependencies = {json.dumps(['numpy>=2', *dependencies])}\n"
        '[project.optional-dependencies]\ngpu = []\ntest = ["pytest>=8"]\n'
    )
    return folder


def test_missing_packages_are_named_with_the_way_to_bring_them(tmp_path, monkeypatch):
    assert packages.bring(project(tmp_path)) == ""
    monkeypatch.setattr(packages, "LOST", {"faiss-cuda-of-mine": "retrieval"})
    line = packages.bring(project(tmp_path, "faiss-cuda-of-mine>=1"))
    assert line.startswith("not installed: faiss-cuda-of-mine (retrieval); ") and "\n" not in line
    assert "pip download" in line and "--wheels WHEELS" in line
    with pytest.raises(results.Refused, match="not installed: pydantic-of-mine, and nothing starts ") as error:
        packages.bring(project(tmp_path, "faiss-cuda-of-mine>=1", "pydantic-of-mine"))
    assert str(error.value).endswith("--wheels WHEELS") and "faiss" not in str(error.value)
    monkeypatch.setattr(packages.metadata, "version", {"setuptools": "59.8.0"}.__getitem__)
    with pytest.raises(results.Refused, match="not installed: setuptools, and nothing starts "):
        packages.bring(project(tmp_path))


def test_what_a_machine_of_torch_needs_is_chosen_and_all_else_is_said_to_be_lost():
    """A package that pyproject.toml is given has to be in one of the two: else the check doesn't start without it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    names = {re.match(r"[\w.-]+", text)[0] for text in (*project["dependencies"], *extras["gpu"], *extras["test"])}
    assert names - packages.LOST.keys() == NEEDED and packages.LOST.keys() < names


@pytest.mark.slow
@pytest.mark.process
def test_wheels_are_installed_without_an_index(tmp_path, monkeypatch, capsys):
    """One by one: one that lacks what it needs keeps no other away."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name, needs in (("toy_of_mine", ""), ("toy_in_need", "Requires-Dist: not-among-the-wheels\n")):
        with zipfile.ZipFile(wheels / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}.py", "")
            wheel.writestr(
                f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needs}"
            )
            wheel.writestr(
                f"{name}-1.0.dist-info/WHEEL",
                "Wheel-Version: 1.0\nGenerator: toy\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            )
            wheel.writestr(f"{name}-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "site"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(packages, "LOST", {"toy-in-need": "nothing"})
    line = packages.bring(project(tmp_path / "project", "toy-in-need", "toy-of-mine>=1"), wheels)
    assert line.startswith("not installed: toy-in-need (nothing); ")
    assert (tmp_path / "site" / "toy_of_mine.py").exists()
    assert "toy-in-need was not installed from" in capsys.readouterr().out


def test_the_packages_of_this_project_are_known_by_their_modules():
    for name in packages.missing(ROOT):
        with pytest.raises(metadata.PackageNotFoundError):
            metadata.version(name)


# --- facts


@pytest.mark.process
def test_environment(tmp_path):
    facts.environment(tmp_path / "facts.json")
    environment = json.loads((tmp_path / "facts.json").read_text())
    assert (
        environment["torch"]
        and environment["packages"]["numpy"]
        and environment["processors"] >= 1
        and environment["memory_bytes"] > 2**30
    )
    assert {"devices", "driver", "nvidia_smi", "cuda", "nvcc", "python"} <= set(environment)


def test_roof(tmp_path, monkeypatch):
    from alexnet_mp.profiling import machine_limits

    monkeypatch.setattr(
        machine_limits, "measure", lambda device, dtype: machine_limits.Ceilings(4000.0, 700.0, 1 << 28, 8192)
    )
    facts.roof(tmp_path / "roof.json")
    roof = json.loads((tmp_path / "roof.json").read_text())
    assert roof["copy_gb_per_s"] == 4000 and roof["bf16_tflop_per_s"] == roof["fp32_tflop_per_s"] == 700


@pytest.mark.compile
def test_resources_of_compiled_kernels(tmp_path, monkeypatch):
    """As cuobjdump prints them; of two kernels one keeps a value in local memory."""
    tool = tmp_path / "cuobjdump"
    tool.write_text("""#!/bin/sh
case $1 in
-res-usage) echo 'arch = sm_90
 Function forward:
  REG:32 STACK:0 SHARED:1024 LOCAL:0
 Function backward:
  REG:40 STACK:8 SHARED:0 LOCAL:0';;
-sass) echo 'arch = sm_90
        Function : forward
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 FADD R2, R2, R3 ;
        /*0020*/                   NOP ;
        Function : backward
        /*0000*/                   STL [R1], R2 ;';;
esac
""")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert facts.resources(tmp_path / "resources.json") == 0
    assert json.loads((tmp_path / "resources.json").read_text()) == {
        "sm_90 forward": {"registers": 32, "stack": 0, "shared": 1024, "instructions": 2, "local": 0},
        "sm_90 backward": {"registers": 40, "stack": 8, "shared": 0, "instructions": 1, "local": 1},
    }


@pytest.mark.parametrize("errors, code, status", [([93.0, 0.5], 0, 0), ([93.0, 93.0], 0, 1), ([], 0, 1), ([0.5], 3, 3)])
def test_a_run_has_to_learn(errors, code, status, tmp_path, monkeypatch):
    commands = []

    def run(command):
        commands.append(command)
        lines = [{"kind": "train", "loss": 1.0}, *({"kind": "val", "top1_error": error} for error in errors)]
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(facts.subprocess, "run", run)
    monkeypatch.setattr(facts.signal, "signal", lambda *_: None)
    (tmp_path / "out").mkdir()
    for arguments in (["--gpus", "0"], ["--towers", "apart", "--gpus", "0,1"]):
        assert facts.train(str(tmp_path / "run"), str(tmp_path / "out"), arguments) == status
        assert commands[-1][-len(arguments) :] == arguments
    assert (tmp_path / "out" / "metrics.jsonl").exists()
    assert ["torch.distributed.run" in command for command in commands] == [False, True]


LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")


@every(
    "device, towers, rows, said",
    [
        ("cuda:0", "ab", dict.fromkeys(LAYERS, 0.5), ""),
        ("cuda:0", "b", dict.fromkeys(LAYERS[:-1], 0.5), ""),
        ("cpu", "ab", dict.fromkeys(LAYERS, 0.5), "cuda:0: no table"),
        ("cuda:0", "ab", dict.fromkeys(LAYERS[1:], 0.5), "cuda:0: no milliseconds of conv1"),
        ("cuda:0", "a", dict.fromkeys(LAYERS, 0.5) | {"fc8": 0.0}, "cuda:0: no milliseconds of fc8"),
    ],
)
def test_a_profile_has_every_layer(device, towers, rows, said, tmp_path, capsys):
    assert not facts.profiled(tmp_path / "profile.json", "0,0") and "no profile" in capsys.readouterr().out
    table_rows = [{"row": name, "forward_ms": ms, "backward_ms": 1.0} for name, ms in rows.items()]
    (tmp_path / "profile.json").write_text(
        json.dumps({"tables": [{"device": device, "rows": table_rows, "towers": towers}]})
    )
    assert facts.profiled(tmp_path / "profile.json", "0,0") == (not said)
    assert capsys.readouterr().out.strip() == said
