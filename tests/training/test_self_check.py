"""The self-check of a run: what follows from each planted fault, what is remembered, and what a run records of it.

The process of the checks is a copy of this one here, so that it has the faults; `test_isolated.py` has real ones.
"""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from alexnet_mp.kernels import dispatch, lrn_pool
from checked_devices import needs_kernels, one_wrong_pixel
from inner_cases import every
from planted import CPU, OTHER, Forked, asked, deliver_stale, one_element_of_the_gradient, plant
from tiny_run import TINY, resume, run

from alexnet_mp import train
from alexnet_mp.data import pipeline_dali
from alexnet_mp.runs.directory import read_run
from alexnet_mp.system import isolated
from alexnet_mp.system.errors import UserError
from alexnet_mp.system.isolated import Unfit
from alexnet_mp.training import device_checks, needed_checks, pipeline_check, self_check

pytestmark = pytest.mark.usefixtures("one_thread")
START = isolated._start


@pytest.fixture(scope="module", autouse=True)
def warm():
    """What the first call imports takes every copy of this process seconds."""
    device_checks.prepare((CPU,), frozenset())
    self_check._installation()


@pytest.fixture(autouse=True)
def forked(monkeypatch, tmp_path):
    monkeypatch.setattr(isolated, "_start", Forked)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(pipeline_dali, "available", lambda: False)  # whose threads a copy of this process may lack
    yield
    dispatch.leave_out(())


@pytest.fixture
def on_cpu(monkeypatch):
    """Runs on a CPU are checked as those on a GPU are."""
    monkeypatch.setattr(self_check, "KINDS", ("cpu",))


def examine(**options):
    """(pipeline, {what: outcome}, the lines for the user)."""
    lines, choices = [], {name: options.pop(name) for name in ("pipeline_is_chosen", "fresh") if name in options}
    return *self_check.examine(asked(**options), **choices, tell=lines.append), lines


def remembered(tmp_path):
    return list((tmp_path / "cache" / "alexnet_mp" / "self_check").iterdir())


def no_process(monkeypatch):
    monkeypatch.setattr(isolated, "outcomes", lambda calls: pytest.fail("a process was started"))


# --- all is right


@pytest.mark.process
@needs_kernels
def test_what_has_passed_is_remembered(tmp_path, monkeypatch):
    pipeline, outcomes, lines = examine(devices=(CPU, OTHER))
    assert pipeline == "raw" and set(outcomes.values()) == {"passed"}
    assert lines == [f"self-check: {len(outcomes)} to be checked on cpu and cpu:0"]
    for what in (
        "lrn_max_pool after conv1 by cpu on cpu",
        "relu_dropout after fc6, fc7 by cpu on cpu",
        "paper_sgd_ by cpu on cpu",
        "augment by cpu on cpu",
        "the exchange for conv3 between cpu and cpu:0",
        "pipeline raw on cpu and cpu:0",
    ):
        assert what in outcomes
    assert len(remembered(tmp_path)) == 2  # of the device, and of the pair; both names are of one device here
    no_process(monkeypatch)
    pipeline, repeat, lines = examine(devices=(CPU, OTHER))
    assert repeat.keys() == outcomes.keys() and set(repeat.values()) == {"passed before"} and lines == []


@pytest.mark.process
@needs_kernels
def test_only_what_is_new_is_checked(monkeypatch):
    _, first, _ = examine()
    _, second, lines = examine(settings=["lrn_beta=0.5", "learning_rate=0.5"])
    assert {what for what, outcome in second.items() if outcome == "passed"} == {
        what for what in first if what.startswith(("lrn", "max_pool", "relu_dropout"))
    }
    assert second["pipeline raw on cpu"] == second["paper_sgd_ by cpu on cpu"] == "passed before"
    _, third, _ = examine(dtype=torch.bfloat16)
    assert {third["pipeline raw on cpu"], third["paper_sgd_ by cpu on cpu"]} == {"passed"}
    _, fresh, _ = examine(fresh=True)
    assert set(fresh.values()) == {"passed"}


@pytest.mark.process
@pytest.mark.parametrize("change", ["driver", "build", "packages", "device"])
def test_another_machine_or_installation_is_checked_anew(change, monkeypatch):
    examine()
    if change == "device":
        monkeypatch.setattr(self_check, "_identity_of", lambda device: ["another"])
    else:
        assert self_check._installation()[change] or change == "driver"  # which a machine without a GPU hasn't
        facts = self_check._installation() | {change: "another"}
        monkeypatch.setattr(self_check, "_installation", lambda: facts)
    assert set(examine()[1].values()) == {"passed"}


def test_every_file_that_decides_is_in_the_build(monkeypatch, tmp_path):
    before = self_check._installation()["build"]
    library = tmp_path / "compiled.so"
    library.write_bytes(b"another")
    monkeypatch.setattr(self_check.dispatch, "LIBRARY", library)
    self_check._installation.cache_clear()
    assert self_check._installation()["build"] != before
    monkeypatch.undo()
    read = Path.read_bytes
    for changed in (self_check.__file__, self_check.dispatch.__file__):  # one of either package
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", lambda path: read(path) + b"#" * (str(path) == changed))
            self_check._installation.cache_clear()
            assert self_check._installation()["build"] != before, changed
    self_check._installation.cache_clear()
    assert self_check._installation()["build"] == before


@pytest.mark.process
def test_in_a_process_of_its_own(monkeypatch):
    """As it is started outside of these tests."""
    monkeypatch.setattr(isolated, "_start", START)
    _, outcomes, _ = examine(devices=(CPU, OTHER), kernels="reference")
    assert set(outcomes.values()) == {"passed"} and len(outcomes) > 3


# --- a kernel fails


def raising(real, *arguments):
    raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore lines")


def dying(real, *arguments):
    os.kill(os.getpid(), signal.SIGSEGV)


def hanging(real, *arguments):
    time.sleep(600)


FAULTS = {
    "raises": (raising, "raises RuntimeError: CUDA error: an illegal memory access was encountered"),
    "one element": (one_element_of_the_gradient, "differs from the reference in the gradient: off by"),
    "segfault": (dying, "ends its process by SIGSEGV"),
    "hang": (hanging, "gives no answer within 1 s"),
}


@pytest.mark.process
@needs_kernels
@pytest.mark.parametrize("fault", FAULTS)
def test_a_kernel_that_fails_is_left_out_by_name(fault, monkeypatch):
    function, words = FAULTS[fault]
    plant(monkeypatch, "lrn_pool_backward", function)
    monkeypatch.setattr(isolated, "LIMIT", 1 if fault == "hang" else 60)
    pipeline, outcomes, lines = examine(settings=['conv2.then=["relu"]', 'conv5.then=["relu"]'])
    warnings = [line for line in lines if line.startswith("WARNING")]
    assert len(warnings) == 1 and "\n" not in warnings[0]
    assert warnings[0].startswith(f"WARNING: self-check: lrn_max_pool after conv1 by cpu on cpu {words}")
    assert warnings[0].endswith("; it is left out, and reference takes its place")
    message = outcomes.pop("lrn_max_pool after conv1 by cpu on cpu")
    assert message.startswith(f"left out: {words}") and set(outcomes.values()) == {"passed"} and pipeline == "raw"
    assert dispatch.resolve("auto", "cpu", "lrn_max_pool") == "reference"
    assert dispatch.resolve("auto", "cpu", "max_pool") == "cpu"
    assert dispatch.used("auto", CPU) == "cpu (lrn_max_pool: reference)"


@pytest.mark.process
@needs_kernels
def test_each_kernel_that_fails_is_left_out_and_checked_again_next_time(monkeypatch):
    plant(monkeypatch, "lrn_pool_backward", raising)
    _, outcomes, lines = examine()
    left_out = [what.split()[0] for what, outcome in outcomes.items() if outcome.startswith("left out")]
    assert left_out == ["lrn_max_pool", "max_pool"]
    assert sum(line.startswith("WARNING") for line in lines) == 2
    _, repeat, lines = examine()
    assert [what for what, outcome in repeat.items() if outcome != "passed before"] == [
        what for what, outcome in outcomes.items() if outcome.startswith("left out")
    ]
    assert sum(line.startswith("WARNING") for line in lines) == 2


@pytest.mark.process
@needs_kernels
def test_a_kernel_that_was_chosen_is_an_error(monkeypatch):
    plant(monkeypatch, "lrn_pool_backward", raising)
    with pytest.raises(
        UserError,
        match="^--kernels cpu: self-check: lrn_max_pool after conv1 by cpu on cpu raises "
        "RuntimeError: [^\n]*; --kernels auto leaves it out, --no-self-check doesn't look$",
    ):
        examine(kernels="cpu")


@pytest.mark.process
@needs_kernels
def test_the_augmentation_is_left_out_whatever_kernels_were_chosen(monkeypatch):
    """--kernels says nothing about it."""
    plant(monkeypatch, "augment", raising)
    pipeline, outcomes, lines = examine(kernels="cpu", pipeline_is_chosen=True)
    assert outcomes["augment by cpu on cpu"].startswith("left out")
    assert pipeline == "raw" and outcomes["pipeline raw on cpu"] == "passed"
    assert dispatch.resolve("auto", "cpu", "augment") == "reference"


@pytest.mark.process
def test_the_reference_needs_no_check_of_kernels():
    _, outcomes, _ = examine(kernels="reference", pipeline="torch", storage="files")
    assert list(outcomes) == ["pipeline torch on cpu"]


# --- a pipeline, a crossing, a device


@pytest.mark.process
def test_a_pipeline_with_a_wrong_pixel_gives_way(monkeypatch):
    one_wrong_pixel(monkeypatch)
    pipeline, outcomes, lines = examine()
    assert pipeline == "torch" and outcomes["pipeline torch on cpu"] == "passed"
    words = "left out: differs from the reference in the pixels of a batch: off by 0.1"
    assert outcomes["pipeline raw on cpu"].startswith(words)
    assert lines[1].endswith("it is left out, and pipeline torch takes its place")
    with pytest.raises(UserError, match="^--pipeline raw: self-check: pipeline raw on cpu differs .*; --pipeline auto"):
        examine(pipeline_is_chosen=True)


def test_the_next_best_pipeline(monkeypatch):
    assert [self_check.next_pipeline(name) for name in ("raw", "dali", "torch")] == ["torch", "torch", None]
    monkeypatch.setattr(pipeline_dali, "available", lambda: True)
    assert self_check.next_pipeline("raw") == "dali"


@pytest.mark.process
def test_a_wrong_definition_ends_the_run(monkeypatch):
    """After pipeline torch there is none."""
    monkeypatch.setattr(pipeline_check, "pipeline", raise_in_pipeline)
    with pytest.raises(UserError, match="^self-check: pipeline torch on cpu raises OSError: nothing to read; it is"):
        examine(pipeline="torch", storage="files")


def raise_in_pipeline(*arguments):
    raise OSError("nothing to read")


@pytest.mark.process
@pytest.mark.parametrize("pass_, words", [("forward", "other values"), ("backward", "other gradients")])
def test_a_stale_crossing_ends_the_run(pass_, words, monkeypatch):
    deliver_stale(monkeypatch, pass_)
    with pytest.raises(
        UserError,
        match="^self-check: the exchange for conv3 between cpu and cpu:0 is wrong: "
        f"{words} arrive than were sent from [^\n]*; no network can be split between these devices; "
        "--gpus cpu does without$",
    ):
        examine(devices=(CPU, OTHER))


@pytest.mark.process
def test_a_device_that_can_t_be_used_is_said_and_nothing_is_left_out(monkeypatch):
    monkeypatch.setattr(device_checks, "prepare", no_device)
    pipeline, outcomes, lines = examine()
    assert lines[1] == "WARNING: self-check: nothing more can be checked: cuda:0 can't be used: busy"
    assert pipeline == "raw" and set(outcomes.values()) == {"not checked: cuda:0 can't be used: busy"}
    assert dispatch.used("auto", CPU) == dispatch.resolve("auto", "cpu")
    monkeypatch.setattr(device_checks, "prepare", dying)
    _, outcomes, _ = examine()
    assert set(outcomes.values()) == {"not checked: the process for it ends its process by SIGSEGV"}


def no_device(devices, left_out):
    raise Unfit("cuda:0 can't be used: busy")


# --- what is remembered may be damaged, or not be kept


@pytest.mark.process
@every("content", [b"", b"{", b"[]", b'{"facts": 1, "passed": {}}', b"\xff\xfe", b"[" * 100_000, "old", "list"])
def test_a_damaged_memory_counts_as_nothing_and_is_mended(content, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _, first, _ = examine()
    (file,) = remembered(tmp_path)
    whole = file.read_bytes()
    if content == "old":
        content = json.dumps(json.loads(whole) | {"facts": {"build": "old"}}).encode()
    elif content == "list":
        content = json.dumps(json.loads(whole) | {"passed": [1, 2]}).encode()
    file.write_bytes(content)
    assert set(examine()[1].values()) == {"passed"}
    assert file.read_bytes() == whole and remembered(tmp_path) == [file]


@pytest.mark.process
@needs_kernels
@pytest.mark.parametrize("kind", ["a file in the way", "a read-only system", "no home", "a directory in the way"])
def test_a_memory_that_can_t_be_kept_is_said_once(kind, tmp_path, monkeypatch):
    if kind == "a file in the way":
        (tmp_path / "cache").write_text("")
    elif kind == "a read-only system":
        monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    elif kind == "no home":
        monkeypatch.setattr(self_check.machine, "cache_directory", lambda: None)
    else:
        examine()
        (file,) = remembered(tmp_path)
        file.unlink()
        file.mkdir()
    _, outcomes, lines = examine(devices=(CPU, OTHER))
    messages = [line for line in lines if "can't be remembered" in line]
    assert len(messages) == 1 and "\n" not in messages[0] and set(outcomes.values()) == {"passed"}
    if kind == "a directory in the way":
        assert not [path for path in remembered(tmp_path) if path.name.endswith(".partial")]


def test_two_that_remember_at_once_leave_a_whole_file(tmp_path):
    checks = needed_checks.checks(asked())
    threads = [
        threading.Thread(target=self_check.PassedChecks(print).keep, args=(checks[number::4],)) for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (file,) = remembered(tmp_path)
    identities = json.loads(file.read_bytes())["passed"]
    assert identities and set(identities) <= {check.identity for check in checks}


def test_where_the_memory_lies(monkeypatch, tmp_path):
    from alexnet_mp.system import machine

    assert machine.cache_directory() == tmp_path / "cache"
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in ("", "relative/cache"):  # as the specification has it
        monkeypatch.setenv("XDG_CACHE_HOME", folder)
        assert machine.cache_directory() == tmp_path / ".cache"
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert machine.cache_directory() is None


# --- whole runs


def record(out):
    return read_run(out)["self_check"]


def test_a_run_on_a_cpu_is_not_checked(data, quick, tmp_path, monkeypatch):
    no_process(monkeypatch)
    assert record(run(data, tmp_path / "run", "--steps", 1)) == "none: no CUDA device"


@pytest.mark.process
@needs_kernels
def test_a_run_records_what_was_checked_and_resumed_too(on_cpu, data, quick, tmp_path, monkeypatch, capsys):
    plant(monkeypatch, "lrn_pool_backward", raising)
    out = run(data, tmp_path / "run", "--steps", 2)
    outcomes, output = record(out), capsys.readouterr().out
    assert outcomes["lrn_max_pool after conv1 by cpu on cpu"].startswith("left out: raises RuntimeError")
    kernels = "cpu (lrn_max_pool: reference, max_pool: reference)"
    assert outcomes["pipeline torch on cpu"] == "passed" and read_run(out)["kernels"] == kernels
    assert "self-check: 3 of 5 checks passed\n" in output and f"kernels {kernels}" in output
    monkeypatch.setattr(lrn_pool, "compiled", dispatch.compiled)
    resume(data, out, "--steps", 3)
    repeat, output = record(out), capsys.readouterr().out
    assert set(repeat.values()) == {"passed", "passed before"}
    assert repeat["lrn_max_pool after conv1 by cpu on cpu"] == "passed"
    assert f"kernels: {kernels} -> cpu" in output  # no longer bit for bit


def test_a_run_without_the_check(on_cpu, data, quick, tmp_path, monkeypatch):
    no_process(monkeypatch)
    dispatch.leave_out({("max_pool", "cpu", "cpu")})  # by a run before
    assert record(run(data, tmp_path / "run", "--steps", 1, "--no-self-check")) == "off (--no-self-check)"
    assert dispatch.used("auto", CPU) == dispatch.resolve("auto", "cpu")


@pytest.mark.process
def test_a_run_takes_the_next_best_pipeline(on_cpu, data, quick, tmp_path, monkeypatch):
    one_wrong_pixel(monkeypatch)
    out = tmp_path / "run"
    assert run(data, out, "--steps", 1, "--pipeline", "auto") == out
    assert read_run(out)["pipeline"] == "torch" and record(out)["pipeline raw on cpu"].startswith("left out")
    with pytest.raises(UserError, match="^--pipeline raw: self-check"):
        run(data, tmp_path / "other", "--steps", 1, "--pipeline", "raw")
    assert not (tmp_path / "other").exists(), "nothing is left of a run that must not begin"


@pytest.mark.process
@needs_kernels
def test_a_chosen_kernel_that_fails_leaves_no_run(on_cpu, data, quick, tmp_path, monkeypatch):
    plant(monkeypatch, "lrn_pool_forward", raising)
    with pytest.raises(UserError, match="^--kernels cpu: self-check: lrn_max_pool"):
        run(data, tmp_path / "run", "--steps", 1, "--kernels", "cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_during_the_check(number, on_cpu, data, quick, tmp_path, monkeypatch, capsys):
    """The process of the check ends, nothing is left, and the run says so."""
    processes = []

    def start(connection):
        processes.append(Forked(connection))
        threading.Timer(0.3, os.kill, (os.getpid(), number)).start()
        return processes[0]

    monkeypatch.setattr(isolated, "_start", start)
    monkeypatch.setattr(device_checks, "fused_operation", hanging)
    monkeypatch.setattr(device_checks, "update", hanging)
    monkeypatch.setattr(pipeline_check, "pipeline", hanging)
    assert train.main([*TINY, "--data", str(data), "--out", str(tmp_path / "run")]) == 0
    assert "stopped before the first step" in capsys.readouterr().out and not (tmp_path / "run").exists()
    assert processes[0].returncode == -signal.SIGKILL


@pytest.mark.gpu(reason="needs a GPU")
def test_a_gpu_is_known_by_what_stays():
    identity = self_check._identity_of(torch.device("cuda:0"))
    assert (
        identity == self_check._identity_of(torch.device("cuda", 0))
        and "0x" not in str(identity)
        and len(identity[1]) > 30
    )
