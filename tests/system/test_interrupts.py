"""Ctrl-C, SIGTERM, SIGHUP at any time of a run: before anything is written, in a step, while it saves, twice, or
ignored."""

import os
import signal
import subprocess
import sys
import threading

import pytest
from forked_process import command
from image_folders import make_folder
from inner_cases import every
from tiny_run import TINY, assert_same_end, interrupt, newest, resume, run, signalled_after, signalled_in_test, state

from alexnet_mp import train
from alexnet_mp.data import survey
from alexnet_mp.runs import checkpoint_format, checkpoint_writer, checkpoints
from alexnet_mp.system import errors
from alexnet_mp.system.interrupts import SIGNALS, interruptible
from alexnet_mp.training import run as runs
from alexnet_mp.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread", "quick")


def twice():
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGTERM)


# --- the handlers


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_and_the_second_raises(number, capfd):
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    with interruptible() as interrupts:
        interrupts.wait_for_step = True
        assert not interrupts
        signal.raise_signal(number)
        assert interrupts and "once more to stop without saving" in capfd.readouterr().err
        for other in SIGNALS:
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(other)
    assert {signum: signal.getsignal(signum) for signum in SIGNALS} == before


class Freed:
    def __del__(self):
        twice()


def test_a_second_one_is_not_lost_where_what_is_raised_is_swallowed(monkeypatch):
    """The interpreter ignores what a callback of its own raises."""
    exceptions = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: exceptions.append(unraisable.exc_type))
    with interruptible() as interrupts:
        interrupts.wait_for_step = True
        Freed()
        assert exceptions == [KeyboardInterrupt]
        with pytest.raises(KeyboardInterrupt):
            bool(interrupts)


@pytest.mark.parametrize("number", SIGNALS)
def test_before_there_is_anything_to_save_the_first_raises(number):
    with interruptible() as interrupts:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        assert interrupts.count == 1


@pytest.mark.parametrize("number", SIGNALS)
def test_an_ignored_signal_stays_ignored(number):
    """nohup, and what a shell starts with &."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with interruptible() as interrupts:
            signal.raise_signal(number)
            assert not interrupts and signal.getsignal(number) == signal.SIG_IGN
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_the_handlers_of_before_are_back_after_an_error():
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    with pytest.raises(ZeroDivisionError), interruptible():
        1 / 0
    assert {signum: signal.getsignal(signum) for signum in SIGNALS} == before


def test_a_terminal_that_is_gone_is_no_hindrance(monkeypatch):
    monkeypatch.setattr(
        "alexnet_mp.system.interrupts.os.write", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error"))
    )
    with interruptible() as interrupts:
        interrupts.wait_for_step = True
        signal.raise_signal(signal.SIGHUP)
        assert interrupts


# --- during start-up

STARTS = ["open_dataset", "make_pipeline", "statistics_of", "TwoTowerAlexNet"]


@every("name", STARTS)
@every("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_during_start_up_leaves_nothing(name, number, data, tmp_path, monkeypatch, capsys):
    signalled_after(monkeypatch, runs, name, 1, then=lambda: signal.raise_signal(number))
    run(data, tmp_path / "run")
    assert "stopped before the first step: there is nothing to save" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.process
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stop_while_all_images_are_read_leaves_nothing(workers, tmp_path, monkeypatch, capsys, nothing_stays):
    folder, counts = make_folder(tmp_path / "folder", train=30, val=2, size=(48, 44)), []
    read_all = survey.survey

    def surveyed(split, size, workers, advance):
        return read_all(split, size, workers, lambda count: (counts.append(count), interrupt()))

    monkeypatch.setattr(survey, "survey", surveyed)
    run(folder, tmp_path / "run", "--workers", workers)
    assert "stopped before the first step" in capsys.readouterr().out
    assert counts == [32] and not (tmp_path / "run").exists()


def test_a_second_stop_during_start_up_is_obeyed_at_once(data, tmp_path, monkeypatch):
    """The second comes while the first still unwinds."""
    function = runs.open_dataset

    def opened(*arguments):
        try:
            interrupt()
        finally:
            interrupt()
        return function(*arguments)

    monkeypatch.setattr(runs, "open_dataset", opened)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["open_data_of_run", *STARTS[1:]])
def test_a_stop_during_the_start_of_a_resume_leaves_the_run_as_it_was(name, data, tmp_path, monkeypatch, capsys):
    out = run(data, tmp_path / "run", "--steps", 2)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        signalled_after(patch, runs, name, 1)
        resume(data, out)
    assert "stopped before the first step" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    resume(data, out, "--steps", 3)  # the lock is free
    assert "stale" not in capsys.readouterr().out


@pytest.mark.parametrize("owner, name", [(runs, "RunDirectory"), (runs, "Trainer"), (Trainer, "restore")])
def test_a_stop_once_the_directory_is_there_is_saved(owner, name, data, tmp_path, monkeypatch):
    """The run can be gone on with from where it is, which may be before its first step."""
    whole = run(data, tmp_path / "whole", "--steps", 4)
    step = 0
    if name == "restore":
        step = 2
        run(data, tmp_path / "run", "--steps", 2)
    with monkeypatch.context() as patch:
        signalled_after(patch, owner, name, 1)
        resume(data, tmp_path / "run")
    assert state(newest(tmp_path / "run"))["step"] == step
    resume(data, tmp_path / "run", "--steps", 4)
    assert_same_end(tmp_path / "run", whole)


# --- twice

TWICE = {
    "in a step": lambda patch: signalled_after(patch, Trainer, "one_step", 2, then=twice),
    "in a validation": lambda patch: signalled_in_test(patch, 1, then=twice),
    "in the last test": lambda patch: signalled_in_test(patch, 3, then=twice),
}


@pytest.mark.run
@pytest.mark.parametrize("where", TWICE)
def test_a_second_one_stops_at_once_without_saving(where, data, tmp_path, monkeypatch):
    whole = run(data, tmp_path / "whole")
    out = run(data, tmp_path / "run", "--steps", 3)
    before = {path: path.read_bytes() for path in newest(out).iterdir()}
    with monkeypatch.context() as patch:
        TWICE[where](patch)
        with pytest.raises(KeyboardInterrupt):
            run(data, tmp_path / "run", "--resume", "auto")
    if where != "in the last test":  # the end of the run was saved before it
        assert {path: path.read_bytes() for path in newest(out).iterdir()} == before
    resume(data, out)
    assert_same_end(out, whole)


@pytest.mark.run
def test_a_second_one_while_it_saves_does_not_wait_for_the_disk(data, tmp_path, monkeypatch):
    whole = run(data, tmp_path / "whole")
    out = run(data, tmp_path / "run", "--steps", 3)
    before, release, end = (
        {path: path.read_bytes() for path in newest(out).iterdir()},
        threading.Event(),
        threading.Event(),
    )

    def put(directory, content):
        checkpoint_format.write(directory / "checkpoints" / f".partial_{content.state.step:08d}", content)
        os.kill(os.getpid(), signal.SIGTERM)  # while the training waits for this thread
        release.wait(60)
        end.set()
        raise OSError("the process has ended")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_writer.checkpoints, "put", put)
        signalled_after(patch, Trainer, "one_step", 2)
        with pytest.raises(KeyboardInterrupt):
            resume(data, out)
        assert not end.is_set()
        release.set()
        assert end.wait(60)
    assert {path: path.read_bytes() for path in newest(out).iterdir()} == before
    assert (out / "checkpoints" / ".partial_00000005").exists()
    resume(data, out)
    assert not list((out / "checkpoints").glob(".*"))
    assert_same_end(out, whole)


def test_the_status_of_a_second_one_is_130_and_there_is_no_traceback(monkeypatch, capsys):
    def main():
        with interruptible() as interrupts:
            interrupts.wait_for_step = True
            twice()

    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as system_exit:
            errors.run_command(main)
    finally:
        signal.signal(signal.SIGINT, before)
    assert system_exit.value.code == 130 and capsys.readouterr().err.endswith("stopped\n")


def test_a_second_one_that_waits_is_no_traceback(monkeypatch):
    """signal.signal raises it: where the first is told, and where a command ends that told it itself."""

    def stopped():
        raise KeyboardInterrupt

    for main in (stopped, lambda: 130):
        interruptions = [1, 2]
        set_handler = signal.signal

        def handler(*arguments, interruptions=interruptions, set_handler=set_handler):
            if interruptions:
                interruptions.pop()
                raise KeyboardInterrupt
            return set_handler(*arguments)

        before = signal.getsignal(signal.SIGINT)
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as system_exit:
            patch.setattr(errors.signal, "signal", handler)
            errors.run_command(main)
        assert system_exit.value.code == 130 and not interruptions and signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        signal.signal(signal.SIGINT, before)


def test_one_within_a_text_that_is_executed_leaves_the_status(tmp_path):
    """As within the making of a dataclass: Python marks it, and ends by the signal in the end."""
    (tmp_path / "interrupted.py").write_text(
        "from alexnet_mp.system.errors import run_command\n"
        "def main():\n"
        "    try:\n"
        "        exec('raise KeyboardInterrupt')\n"
        "    except KeyboardInterrupt:\n"
        "        return 130\n"
        "if __name__ == '__main__':\n"
        "    run_command(main)\n"
    )
    process = subprocess.run([sys.executable, "-m", "interrupted"], cwd=tmp_path, capture_output=True)
    assert (process.returncode, process.stderr) == (130, b"")


def lines_of(out):
    return (out / "metrics.jsonl").read_bytes().count(b"\n") if (out / "metrics.jsonl").exists() else 0


@pytest.mark.process
def test_a_real_process_ignores_what_it_should_and_ends_at_once_at_a_second_signal(data, tmp_path):
    out = tmp_path / "run"
    process = command(
        *(train.main, *TINY, "--data", data, "--out", out),
        *("--epochs", 100000, "--workers", 1, "--checkpoint-every", 2),
        before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    process.until(lambda: lines_of(out) >= 10)
    process.signal(signal.SIGHUP)  # nohup
    target = lines_of(out) + 20
    process.until(lambda: lines_of(out) >= target)
    # Two of the same could become one; stopped meanwhile, it can't end between them on a busy machine.
    for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
        process.signal(number)
    assert process.wait() == 130, process.err
    assert "Traceback" not in process.err and process.err.strip().endswith("stopped")
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    checkpoints.recover(out)
    assert checkpoint_format.load(newest(out)).state.step >= 2
