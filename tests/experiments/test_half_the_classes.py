"""Half of the classes of a set: written whole or not at all, by one process at a time, whatever was left and whatever
fails."""

import errno
import multiprocessing
import os
import signal

import numpy as np
import pytest
from image_folders import make_folder
from PIL import Image

from alexnet_mp.data.dataset import open_dataset
from alexnet_mp.experiments.half_the_classes import every_second_class
from alexnet_mp.system.errors import UserError

SIZE = 32


@pytest.fixture
def whole(tmp_path):
    return open_dataset(
        make_folder(tmp_path / "data", train=2, val=1, size=(60, 50), classes=("a", "b", "c d", "e")), SIZE
    )


def beside(folder):
    """What lies beside the folder, and it."""
    return sorted(path.name for path in folder.parent.glob("half*"))


def failing_at(monkeypatch, number, error):
    """The `number`th picture can't be written."""
    save, count = Image.Image.save, 0

    def save_or_fail(self, path, **options):
        nonlocal count
        count += 1
        if count == number:
            raise error
        save(self, path, **options)

    monkeypatch.setattr(Image.Image, "save", save_or_fail)


def assert_whole(folder):
    assert beside(folder) == ["half", "half.lock"]
    half = open_dataset(folder, SIZE)
    assert half.classes == ["00000-a", "00002-c_d"]
    assert [half.splits[name].labels.tolist() for name in ("train", "val")] == [[0, 0, 1, 1], [0, 1]]


def test_it_has_the_same_fingerprint_wherever_it_is_written(whole, tmp_path):
    """Else the runs on it would have other names on another machine, and none would be found."""
    first, again = (open_dataset(every_second_class(whole, tmp_path / name), 84).fingerprint for name in ("one", "two"))
    assert first == again


def test_it_is_written_once(whole, tmp_path, monkeypatch):
    folder = every_second_class(whole, tmp_path / "out" / "half")
    assert_whole(folder)
    failing_at(monkeypatch, 1, AssertionError("written again"))
    assert every_second_class(whole, folder) == folder


@pytest.mark.parametrize(
    "error, raised, message",
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), UserError, r"cannot write .*/half: No space left on device"),
        (
            OSError(errno.EIO, "Input/output error", "/disk/1.png"),
            UserError,
            "cannot write /disk/1.png: Input/output error",
        ),
        (OSError("encoder error -2"), UserError, r"cannot write .*/half: encoder error -2"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_what_is_broken_off_leaves_nothing(whole, tmp_path, monkeypatch, error, raised, message):
    folder = tmp_path / "half"
    with monkeypatch.context() as patch:
        failing_at(patch, 3, error)
        with pytest.raises(raised, match=message):
            every_second_class(whole, folder)
    assert beside(folder) == ["half.lock"]
    assert_whole(every_second_class(whole, folder))


def test_what_a_killed_process_left_is_cleared_away(whole, tmp_path):
    folder = tmp_path / "half"
    (tmp_path / "half.partial" / "train" / "00001-b").mkdir(parents=True)
    (tmp_path / "half.partial" / "train" / "00001-b" / "00000009.png").write_bytes(b"half of a pic")
    assert_whole(every_second_class(whole, folder))


def test_where_nothing_can_be_written(whole, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*/file: (File exists|Not a directory)"):
        every_second_class(whole, tmp_path / "file" / "half")
    (tmp_path / "half").write_text("")
    with pytest.raises(UserError, match="cannot write .*half.*: Not a directory"):
        every_second_class(whole, tmp_path / "half")


class Slow:
    """A split that tells of its first picture, and reads it when it may."""

    def __init__(self, split, reached, gate):
        self.split, self.labels, self.reached, self.gate = split, split.labels, reached, gate

    def __len__(self):
        return len(self.labels)

    def read(self, index):
        self.reached.set()
        assert self.gate.wait(60)
        return self.split.read(index)


@pytest.mark.process
@pytest.mark.parametrize("killed", [False, True])
def test_two_processes_at_once(whole, tmp_path, killed):
    context, folder = multiprocessing.get_context("fork"), tmp_path / "half"
    reached, gate = context.Event(), context.Event()
    train = whole.splits["train"]
    whole.splits["train"] = Slow(train, reached, gate)
    first = context.Process(target=every_second_class, args=(whole, folder))
    first.start()
    assert reached.wait(60) and beside(folder) == ["half.lock", "half.partial"]
    whole.splits["train"] = train
    second = context.Process(target=every_second_class, args=(whole, folder))
    second.start()
    second.join(0.3)
    assert second.is_alive() and not folder.exists()  # it waits
    if killed:
        os.kill(first.pid, signal.SIGKILL)
    else:
        gate.set()
    for process in (first, second):
        process.join(60)
    assert [first.exitcode, second.exitcode] == [-signal.SIGKILL if killed else 0, 0]
    assert_whole(folder)
    half, numbers = open_dataset(folder, SIZE), np.flatnonzero(train.labels % 2 == 0)
    assert all(
        (half.splits["train"].read(index) == train.read(original)).all() for index, original in enumerate(numbers)
    )


def test_half_of_the_classes_has_the_stored_pictures(tmp_path):
    whole = open_dataset(
        make_folder(tmp_path / "data", train=2, val=1, size=(60, 50), classes=("a/b"[:1], "b", "c", "d e")), 32
    )
    half = open_dataset(every_second_class(whole, tmp_path / "half"), 32)
    assert half.classes == ["00000-a", "00002-c"] and half.splits["val"].labels.tolist() == [0, 1]
    numbers = np.flatnonzero(whole.splits["train"].labels % 2 == 0)
    for index, original in enumerate(numbers):
        assert (half.splits["train"].read(index) == whole.splits["train"].read(original)).all()
    with pytest.raises(UserError, match="leaves 1 of the two"):
        every_second_class(half, tmp_path / "quarter")
