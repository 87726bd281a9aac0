"""What the processes that read hand over, whole and in order; when one fails, dies or hangs: the cause, and nothing
stays."""

import errno
import faulthandler
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from forked_process import command
from pipeline_sets import Pixels, in_memory, pipeline
from small_set import TRAIN, tenth, tiny

from alexnet_mp.data import pipeline_torch
from alexnet_mp.data.augmentation import Draws
from alexnet_mp.data.batches_ahead import ahead
from alexnet_mp.data.pipeline_raw import RawPipeline
from alexnet_mp.data.pipeline_torch import TorchPipeline
from alexnet_mp.data.workers import load
from alexnet_mp.recipes.architectures import paper
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
    numbers = []
    with pytest.raises(error) as failure:
        for item in load(source, range(count), workers):
            numbers.append(int(item[0]))
    return numbers, failure.value


@pytest.fixture
def nothing_said(nothing_stays, capfd, monkeypatch):
    """No process or thread stays, none writes to stderr, and nothing that is left breaks when it is freed."""
    failures = []
    monkeypatch.setattr(sys, "unraisablehook", failures.append)
    yield nothing_stays
    nothing_stays()
    assert capfd.readouterr().err == "" and not failures, failures


class NotHandedOver:
    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        raise self.error


class Everything:
    """What an item may hold: key -> tensors, arrays of every layout, a dataclass of them, no array at all."""

    def __len__(self):
        return 20

    def __getitem__(self, key):
        values = np.arange(7 * key, dtype=np.int64).reshape(7, key)
        return (
            torch.from_numpy(np.full((3, 5, key), key, np.uint8)),
            Draws(values, values.T, values[:, ::-1], values[:0]),
            torch.tensor(float(key)),
            key,
            f"{key}",
            np.float64(key),
            bytes(300_000),
        )


@pytest.mark.parametrize("workers", [0, 1, 2, 7, pytest.param(30, marks=pytest.mark.slow)])
def test_items_are_handed_over_whole_and_in_order(nothing_said, workers):
    source, items = Everything(), list(load(Everything(), None, workers))
    assert len(items) == 20 and list(load(source, [], workers)) == []
    for key, (images, draw, scalar, *others) in enumerate(items):
        expected = source[key]
        assert torch.equal(images, expected[0]) and torch.equal(scalar, expected[2]) and tuple(others) == expected[3:]
        for name, values in vars(draw).items():
            assert np.array_equal(values, vars(expected[1])[name]) and values.dtype == np.int64 and values.flags.aligned
        images += 1  # memory of its own


def test_a_process_reads_no_more_than_a_few_items_ahead(nothing_said):
    keys = []
    items = load(Source(lambda key: None), (keys.append(key) or key for key in range(100)), 3)
    assert int(next(items)[0]) == 0 and len(keys) == 7
    assert int(next(items)[0]) == 1 and len(keys) == 8
    items.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_page_locked_items_come_in_order_and_end_alike(nothing_said, monkeypatch, workers):
    """With processes it is a thread that puts them there, beside the one that uses them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: -tensor)
    source = Everything()
    for key, (images, draw, scalar, number, *_) in enumerate(load(source, None, workers, pin=True)):
        assert torch.equal(images, -source[key][0]) and scalar == -key and number == key and draw.top.sum() >= 0
    assert key == 19
    with pytest.raises(ZeroDivisionError):
        for item in load(Source(lambda key: 1 // 0 if key == 3 else None), range(9), workers, pin=True):
            last_number = int(item[0])
    assert last_number == -2
    items = load(Source(lambda key: time.sleep(10**6 * workers * (key > 0))), range(9), workers, pin=True)
    assert int(next(items)[0]) == 0
    items.close()  # while the thread waits for the second
    nothing_said()


@pytest.mark.parametrize(
    "error, kind, words",
    [
        (OSError(errno.EMFILE, "Too many open files"), UserError, ["Too many open files", "--workers 0"]),
        (KeyError("a bug"), KeyError, ["a bug", "__reduce__"]),
    ],
    ids=["open files", "bug"],
)
def test_an_item_that_cannot_be_handed_over_is_an_error_in_its_place(nothing_said, error, kind, words):
    numbers, exception = until(kind, Source(lambda key: NotHandedOver(error) if key == 7 else None))
    message = str(exception) + "".join(getattr(exception, "__notes__", []))
    assert numbers == list(range(7)) and all(word in message for word in words)
    assert kind is not UserError or "\n" not in message


@pytest.mark.parametrize("where", ["in a process", "here"])
def test_a_limit_of_open_files_is_named(nothing_said, where):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    def none_left(*_):
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))

    items = load(Source(lambda key: none_left() if key == 7 and where == "in a process" else None), range(10**6), 2)
    try:
        with pytest.raises(UserError, match="(?i)too many open files.*--workers 0"):
            for number, _ in enumerate(items):
                if number == 6 and where == "here":
                    none_left()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert number == 6


def test_an_exception_of_a_class_that_nobody_can_look_up_comes_with_its_cause(nothing_said):
    class Local(Exception):
        pass

    def fail(key):
        raise Local("a bug")

    _, error = until(RuntimeError, Source(fail))
    assert str(error) == "Local: a bug" and "in fail" in error.__notes__[0] and _known(error) is None


def test_a_reason_that_cannot_be_handed_over_is_said_in_other_words(nothing_said):
    class Unlucky(UserError):
        def __reduce__(self):
            raise self

    _, error = until(RuntimeError, Source(lambda key: Unlucky("full")))
    assert str(error) == "Unlucky: full"


@pytest.mark.parametrize(
    "where, name, number, words",
    [
        (socket, "socketpair", errno.ENFILE, "^[^\n]*images: Too many open files in system[^\n]*--workers 0[^\n]*$"),
        (os, "pipe", errno.EMFILE, "^[^\n]*images: Too many open files[^\n]*--workers 0[^\n]*$"),
        (os, "fork", errno.EAGAIN, "^[^\n]*images: Resource temporarily unavailable[^\n]*--workers 0[^\n]*$"),
    ],
    ids=["socket", "pipe", "fork"],
)
def test_whatever_fails_when_the_processes_start_is_said_and_none_stays(
    nothing_said, monkeypatch, where, name, number, words
):
    """The first call, then the second, and so on."""
    original, calls = getattr(where, name), []

    def limited(*arguments, **options):
        calls.append(arguments)
        if len(calls) == last_call:
            raise OSError(number, os.strerror(number))
        return original(*arguments, **options)

    monkeypatch.setattr(where, name, limited)
    last_call = 0
    assert [int(item[0]) for item in load(Source(lambda key: None), range(5), 3)] == [0, 1, 2, 3, 4]
    total = len(calls)
    assert total >= 3
    for last_call in range(1, total + 1):
        calls.clear()
        with pytest.raises(UserError, match=words):
            list(load(Source(lambda key: None), range(5), 3))
        nothing_said()


NO_ROOM = MemoryError("Unable to allocate 224. GiB for an array. Error code 12")


@pytest.mark.parametrize("error", [RuntimeError("out of luck"), NO_ROOM, ZeroDivisionError("by zero")])
def test_an_exception_in_a_process_comes_with_its_cause(nothing_said, error):
    def fail(key):
        if key == 7:
            raise error

    numbers, exception = until(type(error), Source(fail))
    assert numbers == list(range(7)) and str(exception) == str(error) and "in fail" in exception.__notes__[0]
    line = _known(exception)  # what a command prints; None: the traceback of a bug
    if isinstance(error, MemoryError):
        assert line.startswith("out of memory") and line.endswith("(Unable to allocate 224. GiB for an array)")
    else:
        assert line is None


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

    epochs = []
    with pytest.raises(ZeroDivisionError):
        for batch in pipeline(kind, in_memory(Pixels("train", TRAIN)), tiny(paper), 2).train(0, 5, fails_late):
            epochs.append(batch.epoch)
    assert epochs == [1] * 3 + [2] * 3


@pytest.mark.parametrize("error", [MemoryError, SystemExit, UserError])
def test_the_thread_that_works_ahead_hands_over_any_exception(nothing_said, error):
    def items():
        yield {}, torch.tensor(1)
        raise error("over")

    with pytest.raises(error, match="over"), closing(ahead(items(), [])) as batches:
        assert [int(number) for _, number in batches] == [1]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS])
def test_a_process_that_a_signal_ends_is_named_when_its_item_is_due(nothing_said, number):
    """SIGBUS: a page of a file that can't be read."""

    def die(key):
        if key == at:
            faulthandler.disable()  # pytest's
            os.kill(os.getpid(), number)

    for at in (0, 1, 7):
        numbers, error = until(UserError, Source(die))
        assert numbers == list(range(at))
        assert str(error).startswith(
            f"a process that reads images was killed ({number.name}: "
        ) and "--workers 0" in str(error)


def test_processes_that_are_stopped_or_hang_are_killed_when_the_loader_is_closed(nothing_said):
    """All of them together, not each after its own patience."""
    for hang in (lambda: time.sleep(10**6), lambda: os.kill(os.getpid(), signal.SIGSTOP)):
        items = load(Source(lambda key: hang() if key % 6 else None), range(50), 6)  # all but the first process
        assert int(next(items)[0]) == 0
        time.sleep(0.5)  # they have begun
        items.close()
        nothing_said()


def test_processes_that_stop_after_their_last_item_are_killed(nothing_said):
    items = load(Source(lambda key: None), range(4), 2)
    assert [int(next(items)[0]) for _ in range(4)] == [0, 1, 2, 3]
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGSTOP)
    with pytest.raises(StopIteration):
        next(items)


# In a process of its own: what a user sees, and what is left when the whole run ends.


def for_ever(size=10, at=-1, do=lambda: None):
    """A run. at, do: at this key a worker calls this."""
    source = Source(lambda key: (do() if key == at else None, torch.zeros(size, dtype=torch.uint8))[1])
    for number, _ in enumerate(load(source, range(10**9), 2)):
        if number == 3:
            print("started", flush=True)
        time.sleep(0.01)


def start(environment, **how):
    """The run, begun."""
    process = command(lambda words: for_ever(**how), environment=environment)
    process.until(lambda: process.out == "started\n")
    return process


def ended(process, status):
    """What it said on stderr. No process of it is left."""
    assert process.wait() == status, process.err
    assert process.leaves_none()
    return process.err


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


TYPED = """
import sys
sys.path[:0] = sys.argv[2:]
from data.test_workers import for_ever
from alexnet_mp.system.errors import run_command
run_command(lambda: for_ever(int(sys.argv[1])))
"""


def typed(size=10, before=(), **environment):
    """The run in an interpreter of its own, begun. before: a command that starts it."""
    process = subprocess.Popen(
        [*before, sys.executable, "-c", TYPED, str(size), *sys.path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | environment,
    )
    assert process.stdout.readline() == "started\n"
    return process


@pytest.mark.slow
def test_a_small_shared_memory_is_no_hindrance(own_mounts):
    """Containers have 64 MB of /dev/shm."""
    process = typed(30_000_000, with_shared_memory("4k"))
    os.kill(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "stopped\n" and process.returncode == 130


@pytest.mark.slow
def test_an_unusable_tmpdir_is_no_hindrance():
    process = typed(TMPDIR="/tmp/" + "d" * 200)
    os.kill(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "stopped\n" and process.returncode == 130
    process = start({"TMPDIR": "/nonexistent"})
    process.signal(signal.SIGINT)
    assert ended(process, 130) == "stopped\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS])
def test_a_killed_process_leaves_one_line_and_no_temporary_file(tmp_path, number):
    process = start({"TMPDIR": str(tmp_path)}, at=60, do=lambda: os.kill(os.getpid(), number))
    errors = ended(process, 2)
    assert errors.startswith("error: a process that reads images was killed") and errors.count("\n") == 1, errors
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_process_ends_with_the_run(tmp_path, number):
    process = start({"TMPDIR": str(tmp_path)})
    os.kill(workers_of(process)[0], signal.SIGSTOP)
    time.sleep(0.3)  # the run waits for it
    process.signal(number)
    assert ended(process, 130 if number == signal.SIGINT else -number) == (
        "stopped\n" if number == signal.SIGINT else ""
    )
