"""Calls in a process of their own: whatever they do is an outcome in words, and nothing of them is left."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import isolated_calls
import pytest
from inner_cases import every

from alexnet_mp.system import isolated
from alexnet_mp.system.isolated import FAILED, PASSED, UNCHECKED, Outcome

pytestmark = pytest.mark.process

TESTS = Path(__file__).parents[1]


def outcomes(*calls, **options):
    with closing(isolated.outcomes(list(calls), **options)) as results:
        return list(results)


def alive(pid):
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pids, seconds=5):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(alive(pid) for pid in pids):
            return True
        time.sleep(0.02)
    return False


def test_calls_are_made_in_order_in_one_process(tmp_path):
    file = str(tmp_path / "file")
    calls = [(isolated_calls.append, (file, text)) for text in "abc"]
    assert outcomes(*calls, (isolated_calls.chatter, ()), (isolated_calls.needs_no_torch, ())) == [Outcome(PASSED)] * 5
    assert Path(file).read_text() == "abc"


@every(
    "call, state, words",
    [
        ((isolated_calls.fail, ("wrong",)), FAILED, "differs by 3"),
        ((isolated_calls.fail, ("error",)), FAILED, "raises RuntimeError: an illegal address"),
        ((isolated_calls.fail, ("exit",)), FAILED, "raises SystemExit: 3"),
        ((isolated_calls.fail, ("interrupt",)), FAILED, "raises KeyboardInterrupt"),
        ((isolated_calls.fail, ("wordless",)), FAILED, "raises ValueError"),
        ((isolated_calls.fail, ("unfit",)), UNCHECKED, "no room"),
        ((isolated_calls.fail, ("memory",)), UNCHECKED, "out of memory"),
        ((isolated_calls.die, (signal.SIGSEGV,)), FAILED, "ends its process by SIGSEGV"),
        ((isolated_calls.die, (signal.SIGKILL,)), FAILED, "ends its process by SIGKILL"),
        ((isolated_calls.leave, ()), FAILED, "ends its process with status 7"),
    ],
)
def test_after_a_call_that_fails_none_is_made(call, state, words, tmp_path):
    file = str(tmp_path / "file")
    results = outcomes((isolated_calls.append, (file, "a")), call, (isolated_calls.append, (file, "b")))
    assert results == [Outcome(PASSED), Outcome(state, words)]
    assert Path(file).read_text() == "a"


def test_a_hang_is_a_failure_and_all_its_processes_end(tmp_path, monkeypatch):
    monkeypatch.setattr(isolated, "LIMIT", 0.5)
    file = tmp_path / "pids"
    assert outcomes((isolated_calls.hang, (str(file),))) == [Outcome(FAILED, "gives no answer within 0.5 s")]
    assert gone(file.read_text().split())


def test_a_process_that_dies_before_its_child_is_noticed(tmp_path):
    file = tmp_path / "pids"
    assert outcomes((isolated_calls.die_with_heir, (str(file),))) == [Outcome(FAILED, "ends its process by SIGSEGV")]
    assert gone(file.read_text().split())


def test_a_process_that_can_t_be_started_checks_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    (outcome,) = outcomes((isolated_calls.leave, ()))
    assert outcome == Outcome(UNCHECKED, "no process can be started for it: No such file or directory")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    (outcome,) = outcomes((isolated_calls.leave, ()))
    assert outcome == Outcome(UNCHECKED, "the process for it ends its process with status 1")


def test_what_can_t_be_imported_there_checks_nothing():
    (outcome,) = outcomes((isolated_calls.append, (isolated_calls.Unreadable(),)))
    assert outcome.state == UNCHECKED and "an illegal address" in outcome.why


def test_a_slow_start_is_not_a_hang_of_the_first_call(monkeypatch):
    monkeypatch.setattr(isolated, "STARTING", 0)
    assert outcomes((isolated_calls.leave, ())) == [Outcome(UNCHECKED, "the process for it gives no answer within 0 s")]


def test_what_makes_ready_is_no_call(monkeypatch, tmp_path):
    monkeypatch.setattr(isolated, "LIMIT", 0.5)
    call, file = (isolated_calls.append, (str(tmp_path / "file"), "a")), tmp_path / "file"
    assert outcomes(call, prepare=(isolated_calls.append, (str(file), "b"))) == [Outcome(PASSED)]
    assert file.read_text() == "ba"
    assert outcomes(call, prepare=(time.sleep, (1,))) == [Outcome(PASSED)], "it has more time"
    for function, arguments, words in (
        (isolated_calls.fail, ("unfit",), "no room"),
        (isolated_calls.leave, (), "the process for it ends its process with status 7"),
        (isolated_calls.fail, ("error",), "the process for it raises RuntimeError: an illegal address"),
    ):
        assert outcomes(call, call, prepare=(function, arguments)) == [Outcome(UNCHECKED, words)]
    assert file.read_text() == "baa"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "killed"])
def test_the_process_ends_with_its_parent(number, tmp_path):
    """Ctrl-C reaches the parent alone; one that is killed can't tell it anything."""
    file = tmp_path / "pids"
    code = (
        f"import sys\nsys.path.insert(0, {str(TESTS)!r})\nimport isolated_calls\nfrom alexnet_mp.system import "
        "isolated\n"
        f"list(isolated.outcomes([(isolated_calls.hang, ({str(file)!r},))]))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, start_new_session=True)
    end = time.monotonic() + 60
    while not file.exists() or not file.read_text().endswith("\n"):
        assert parent.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    os.kill(parent.pid, number)
    _, errors = parent.communicate(timeout=60)
    assert gone(file.read_text().split())
    assert number == signal.SIGKILL or errors.rstrip().endswith("KeyboardInterrupt")
