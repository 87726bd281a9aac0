"""When /dev/shm or temporary files run out under the processes that read, or one dies or hangs: the cause, and nothing
stays."""

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from multiprocessing.synchronize import SemLock
from pathlib import Path

import pytest
import torch
from pipeline_sets import Pixels, in_memory, pipeline
from small_set import TRAIN, tenth, tiny

from alexnet_mp.data import pipeline_torch
from alexnet_mp.data import workers as processes
from alexnet_mp.data.pipeline_raw import RawPipeline, ahead
from alexnet_mp.data.pipeline_torch import TorchPipeline
from alexnet_mp.data.workers import load
from alexnet_mp.recipes.presets import paper
from alexnet_mp.system.errors import UserError, _known

pytestmark = pytest.mark.process


class Source(torch.utils.data.Dataset):
    """key -> a tensor of that number; before that, at(key) is called in the worker."""

    def __init__(self, at, size=10):
        self.at, self.size = at, size

    def __getitem__(self, key):
        answer = self.at(key)
        return torch.full((self.size,), key) if answer is None else answer


def until(error, source, count=100, workers=2):
    """([what comes before], the exception)."""
    found = []
    with pytest.raises(error) as raised:
        for item in load(source, range(count), workers):
            found.append(int(item[0]))
    return found, raised.value


@pytest.fixture
def nothing_said(nothing_stays, capfd, monkeypatch):
    """No process or thread stays, none writes to stderr, and nothing that is left breaks when it is freed."""
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    yield nothing_stays
    nothing_stays()
    assert capfd.readouterr().err == "" and not unraisable, unraisable


class NotHandedOver:
    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        raise self.error


FULL = "unable to allocate shared memory(shm) for file </torch_5021_3938455604_1>: No space left on device (28)\nmore"


@pytest.mark.parametrize(
    "error, kind, words",
    [
        (RuntimeError(FULL), UserError, ["/dev/shm", "No space left on device (28)", "--workers 0"]),
        (OSError("AF_UNIX path too long"), UserError, ["AF_UNIX path too long", "TMPDIR", "--workers 0"]),
        (OSError(errno.EMFILE, "Too many open files"), UserError, ["Too many open files", "--workers 0"]),
        (KeyError("a bug"), KeyError, ["a bug", "__reduce__"]),
    ],
    ids=["full", "path", "open files", "bug"],
)
def test_an_item_that_cannot_be_handed_over_is_an_error_in_its_place(nothing_said, error, kind, words):
    found, raised = until(kind, Source(lambda key: NotHandedOver(error) if key == 7 else None))
    assert found == list(range(7)) and all(word in str(raised) for word in words)
    assert kind is not UserError or "\n" not in str(raised)


def test_an_exception_of_a_class_that_nobody_can_look_up_comes_with_its_cause(nothing_said):
    class Local(Exception):
        pass

    def fail(key):
        raise Local("a bug")

    _, raised = until(RuntimeError, Source(fail))
    assert "Local: a bug" in str(raised) and _known(raised) is None


def test_a_process_that_cannot_even_hand_over_the_reason_ends(nothing_said):
    class Unlucky(UserError):
        def __reduce__(self):
            raise self

    _, raised = until(RuntimeError, Source(lambda key: Unlucky("full")))
    assert _known(raised).startswith("a process that reads images was killed")


@pytest.mark.parametrize(
    "where, name, number, words",
    [
        (SemLock, "__init__", errno.ENOSPC, "^[^\n]*/dev/shm[^\n]*No space left on device[^\n]*--workers 0[^\n]*$"),
        (os, "pipe", errno.EMFILE, "^[^\n]*images: Too many open files[^\n]*--workers 0[^\n]*$"),
        (os, "fork", errno.EAGAIN, "^[^\n]*images: Resource temporarily unavailable[^\n]*--workers 0[^\n]*$"),
    ],
    ids=["semaphore", "pipe", "fork"],
)
def test_whatever_fails_when_the_processes_start_is_said_and_none_stays(
    nothing_said, monkeypatch, where, name, number, words
):
    """The first call, then the second, and so on."""
    original, calls = getattr(where, name), []

    def limited(*arguments, **options):
        calls.append(arguments)
        if len(calls) == fails:
            raise OSError(number, os.strerror(number))
        return original(*arguments, **options)

    monkeypatch.setattr(where, name, limited)
    fails = 0
    assert [int(item[0]) for item in load(Source(lambda key: None), range(5), 3)] == [0, 1, 2, 3, 4]
    in_all = len(calls)
    assert in_all >= 3
    for fails in range(1, in_all + 1):
        calls.clear()
        with pytest.raises(UserError, match=words):
            list(load(Source(lambda key: None), range(5), 3))
        nothing_said()


def test_without_a_directory_for_temporary_files_the_error_says_so(nothing_said, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", None)
        patch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nonexistent"])
        patch.delitem(multiprocessing.current_process()._config, "tempdir", raising=False)
        found, error = until(UserError, Source(lambda key: None))
        without = [int(item[0]) for item in load(Source(lambda key: None), range(3), 0)]
    assert (
        not found
        and all(word in str(error) for word in ("TMPDIR", "--workers 0", "/nonexistent"))
        and "\n" not in str(error)
    )
    assert without == [0, 1, 2]


@pytest.mark.parametrize("error", [RuntimeError("out of luck"), MemoryError("no room"), ZeroDivisionError("by zero")])
def test_an_exception_in_a_process_comes_with_its_cause(nothing_said, error):
    def fail(key):
        if key == 7:
            raise error

    found, raised = until(type(error), Source(fail))
    assert found == list(range(7)) and str(error) in str(raised)
    line = _known(raised)  # what a command prints; None: the traceback of a bug
    assert line.startswith("out of memory") if isinstance(error, MemoryError) else line is None


@pytest.mark.parametrize("workers", [0, 2])
def test_an_exception_when_crops_are_drawn_comes_with_its_cause(nothing_said, monkeypatch, workers):
    def fail(*_):
        raise ZeroDivisionError("drawn")

    monkeypatch.setattr(pipeline_torch, "draws", fail)
    with pytest.raises(ZeroDivisionError, match="drawn"):
        list(pipeline(TorchPipeline, in_memory(Pixels("train", TRAIN)), tiny(paper), workers).train(0, 1, tenth))


@pytest.mark.parametrize("kind", [RawPipeline, TorchPipeline], ids=["raw", "torch"])
def test_an_exception_in_the_schedule_ends_the_pipeline(nothing_said, kind):
    def fails_late(epoch):
        return 0.1 if epoch < 3 else 1 // 0

    found = []
    with pytest.raises(ZeroDivisionError):
        for batch in pipeline(kind, in_memory(Pixels("train", TRAIN)), tiny(paper), 2).train(0, 5, fails_late):
            found.append(batch.epoch)
    assert found == [1] * 3 + [2] * 3


@pytest.mark.parametrize("error", [MemoryError, SystemExit, UserError])
def test_the_thread_that_works_ahead_hands_over_any_exception(nothing_said, error):
    def items():
        yield {}, torch.tensor(1)
        raise error("over")

    with pytest.raises(error, match="over"), closing(ahead(items(), [])) as made:
        assert [int(number) for _, number in made] == [1]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS])
def test_a_process_that_a_signal_ends_is_noticed(nothing_said, number):
    """SIGBUS: a page of a file that can't be read, or of a full /dev/shm."""
    for at in (0, 1, 7, 7, 7):  # when the one before may be on its way
        found, error = until(RuntimeError, Source(lambda key: os.kill(os.getpid(), number) if key == at else None))
        assert found == list(range(len(found))) and len(found) <= at
        line = _known(error)
        assert (
            line.startswith("a process that reads images was killed") and "/dev/shm" in line and "--workers 0" in line
        )


def test_processes_that_are_stopped_or_hang_are_killed_when_the_loader_is_closed(nothing_said, monkeypatch):
    """All of them together within some seconds, not each after its own."""
    monkeypatch.setattr(processes, "PATIENCE", 0.5)
    for hang in (lambda: time.sleep(10**6), lambda: os.kill(os.getpid(), signal.SIGSTOP)):
        items = load(Source(lambda key: hang() if key % 6 else None), range(50), 6)  # all but the first process
        assert int(next(items)[0]) == 0
        time.sleep(0.5)  # they have begun
        begun = time.monotonic()
        items.close()
        assert time.monotonic() - begun < 9  # one after the other they would take a minute
        nothing_said()


def test_processes_that_stop_after_their_last_item_are_killed(nothing_said, monkeypatch):
    monkeypatch.setattr(processes, "PATIENCE", 0.5)
    items = load(Source(lambda key: None), range(4), 2)
    assert [int(next(items)[0]) for _ in range(4)] == [0, 1, 2, 3]
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGSTOP)
    with pytest.raises(StopIteration):
        next(items)


# In a process of its own: what a user sees, and what is left when the whole run ends.

SCRIPT = """
import os, signal, sys, time
import torch
from alexnet_mp.system.errors import run_command
from alexnet_mp.data.workers import load


class Source(torch.utils.data.Dataset):
    def __getitem__(self, key):
        if key == int(sys.argv[2]):
            exec(sys.argv[3])
        return torch.zeros(int(sys.argv[1]), dtype=torch.uint8)


def main():
    for number, item in enumerate(load(Source(), range(10**9), 2)):
        if number == 3:
            print("started", flush=True)
        time.sleep(0.01)

run_command(main)
"""


def start(size=10, at=-1, do="pass", before=(), **environment):
    """A run that goes on for ever. at, do: at this key a worker executes this; before: a command that starts it."""
    return subprocess.Popen(
        [*before, sys.executable, "-c", SCRIPT, str(size), str(at), do],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | environment,
    )


def ended(process, status, seconds=60):
    """What it said on stderr. No process of it is left."""
    _, errors = process.communicate(timeout=seconds)
    assert process.returncode == status, errors
    end = time.monotonic() + 10
    while time.monotonic() < end:  # workers whose parent was killed are reaped by another process
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return errors
        time.sleep(0.05)
    pytest.fail("a process is left")


def workers_of(process):
    return [int(child) for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def with_shared_memory(size):
    """What starts a command whose /dev/shm holds `size`."""
    return ["unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"', "sh"]


@pytest.fixture(scope="module")
def own_mounts():
    if (
        not shutil.which("unshare")
        or subprocess.run([*with_shared_memory("1m"), "true"], capture_output=True).returncode
    ):
        pytest.skip("a /dev/shm of the test's own needs `unshare`, and permission to mount")


@pytest.mark.parametrize("size", ["4k", "16k", "32k", "48k", "64k"])
def test_a_small_shared_memory_is_named_before_the_first_item(own_mounts, size):
    """Whether the queues find no room in it, the first or the second process, or the first item."""
    errors = ended(start(100_000, before=with_shared_memory(size)), 2)
    assert (
        errors.startswith("error: ") and errors.count("\n") == 1 and "/dev/shm" in errors and "--workers 0" in errors
    ), errors


@pytest.mark.parametrize(
    "do",
    ["sys.argv[1] = 30_000_000", "os.system('yes > /dev/shm/other 2> /dev/null')"],
    ids=["larger items", "another process"],
)
def test_a_shared_memory_that_fills_up_in_the_middle_is_named(own_mounts, do):
    process = start(2_000_000, 20, do, before=with_shared_memory("24m"))
    assert process.stdout.readline() == "started\n"
    errors = ended(process, 2)
    assert errors.startswith("error: /dev/shm") and errors.count("\n") == 1 and "--workers 0" in errors, errors


def test_an_unusable_tmpdir_is_passed_over():
    process = start(TMPDIR="/nonexistent")
    assert process.stdout.readline() == "started\n"
    os.kill(process.pid, signal.SIGINT)
    assert ended(process, 130) == "stopped\n"


def test_a_tmpdir_that_is_too_long_for_a_socket_is_named(tmp_path):
    long = tmp_path / ("d" * 100)
    long.mkdir()
    process = start(TMPDIR=str(long))
    if process.stdout.readline() == "started\n":  # Python 3.14 takes another directory
        os.kill(process.pid, signal.SIGINT)
        assert ended(process, 130) == "stopped\n"
    else:
        errors = ended(process, 2)
        assert errors.count("\n") == 1 and "TMPDIR" in errors and "--workers 0" in errors, errors
    assert not list(long.iterdir())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS])
def test_a_killed_process_leaves_one_line_and_no_temporary_file(tmp_path, number):
    process = start(at=60, do=f"os.kill(os.getpid(), {int(number)})", TMPDIR=str(tmp_path))
    assert process.stdout.readline() == "started\n"
    errors = ended(process, 2)
    assert errors.startswith("error: a process that reads images was killed") and errors.count("\n") == 1, errors
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_process_ends_with_the_run(tmp_path, number):
    process = start(TMPDIR=str(tmp_path))
    assert process.stdout.readline() == "started\n"
    os.kill(workers_of(process)[0], signal.SIGSTOP)
    time.sleep(0.3)  # the run waits for it
    os.kill(process.pid, number)
    assert ended(process, 130 if number == signal.SIGINT else -number) == (
        "stopped\n" if number == signal.SIGINT else ""
    )
