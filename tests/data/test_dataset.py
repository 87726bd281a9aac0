"""Folders of images: the awkward files of a real set are read right, the useless ones are refused by name."""

import hashlib
import multiprocessing
import os
import shutil

import numpy as np
import pytest
from image_folders import make_folder
from inner_cases import every
from small_set import encoded, noise, write

from alexnet_mp import train
from alexnet_mp.data import dataset as dataset_module
from alexnet_mp.data.class_names import SAME_LETTERS, first_difference
from alexnet_mp.data.dataset import CachedSplit, Folder, cache_splits, difference, open_dataset
from alexnet_mp.data.synthetic import Builtin
from alexnet_mp.preparation import sources
from alexnet_mp.system import memory
from alexnet_mp.system.errors import UserError

SIZE = 24


def small_set():
    """Two classes; three training images, two validation images, each with its own pixels."""
    names = ("train/cat/c.png", "train/cat/b.png", "train/ant/a.png", "val/ant/d.png", "val/cat/e.png")
    return {name: encoded(noise(SIZE, SIZE, seed=seed)) for seed, name in enumerate(names)}


def stored(tmp_path, content, name="x.jpg", size=SIZE):
    """The stored picture of one image file, by the way that training takes."""
    files = {f"train/a/{name}": content, "train/b/y.png": encoded(noise(8, 8))}
    files |= {name.replace("train", "val"): data for name, data in files.items()}
    return Folder(write(tmp_path, files), size).splits["train"].read(0)


def test_classes_and_labels_follow_the_order_of_the_names(tmp_path):
    extras = dict.fromkeys(("train/cat/.hidden.png", "train/cat/notes.txt", "train/list.txt", "train/.git/x.png"), b"")
    root = write(tmp_path, small_set() | extras | {"val/cat/upper.JPEG": encoded(noise(9, 9), "JPEG")})
    folder = open_dataset(str(root), SIZE)
    assert folder.classes == ["ant", "cat"] and list(folder.splits) == ["train", "val"]
    train, val = folder.splits["train"], folder.splits["val"]
    assert train.names == [str(root / "train" / name) for name in ("ant/a.png", "cat/b.png", "cat/c.png")]
    assert train.labels.tolist() == [0, 1, 1] and train.labels.dtype == np.int64 and len(train) == 3
    assert [os.path.basename(name) for name in val.names] == ["d.png", "e.png", "upper.JPEG"]
    assert val.labels.tolist() == [0, 1, 1] and len(val) == 3
    for index, seed in enumerate((2, 1, 0)):
        assert np.array_equal(train.read(index), noise(SIZE, SIZE, seed=seed))
    assert "3 train" in folder.description and "2 classes" in folder.description


def test_only_the_splits_asked_for_are_read(tmp_path):
    write(tmp_path, small_set() | {"test/ant/f.png": encoded(noise(5, 5)), "test/cat/g.png": encoded(noise(5, 5))})
    assert list(Folder(tmp_path, SIZE).splits) == ["train", "val"]
    folder = Folder(tmp_path, SIZE, ("test",))  # for a test alone neither train/ nor val/ is looked at
    assert list(folder.splits) == ["test"] and len(folder.splits["test"]) == 2 and folder.classes == ["ant", "cat"]
    with pytest.raises(UserError, match="no extra/ folder"):
        Folder(tmp_path, SIZE, ("extra",))


def test_an_empty_path_is_neither_the_working_directory_nor_builtin(tmp_path, monkeypatch):
    """As a variable of the shell that is not set leaves it."""
    make_folder(tmp_path, 2, 2, (9, 9))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="^--data '': it takes a folder, a prepared set, or the word builtin$"):
        open_dataset("", 8)
    with pytest.raises(UserError, match="^--data '': it takes"):
        train.main(["--gpus", "cpu", "--data", "", "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_builtin_is_a_word_and_not_a_folder():
    assert isinstance(open_dataset("builtin", 32), Builtin)


def test_the_fingerprint_sees_every_change_of_the_file_list(tmp_path):
    """By names and sizes alone: files that are written anew have other times."""

    def fingerprint(root):
        for path in root.rglob("*.png"):
            os.utime(path, (10**9, 10**9))
        return Folder(root, SIZE).fingerprint

    files = small_set()
    original = fingerprint(write(tmp_path / "0", files))
    assert fingerprint(write(tmp_path / "again", files)) == original
    shutil.copytree(tmp_path / "0", tmp_path / "elsewhere")  # with its times
    assert Folder(tmp_path / "elsewhere", SIZE).fingerprint == original  # moving a set does not change it
    for number, variant in enumerate(
        (
            files | {"train/cat/new.png": encoded(noise(3, 3))},
            files | {"val/cat/new.png": encoded(noise(3, 3))},
            files | {"val/cat/e.png": files["val/cat/e.png"] + b"\0"},
            {name.replace("c.png", "z.png"): data for name, data in files.items()},
            # same order of names
            {name.replace("cat/b.png", "ant/b.png"): data for name, data in files.items()},
        ),
        start=1,
    ):
        assert fingerprint(write(tmp_path / str(number), variant)) != original, number


def test_a_picture_that_was_replaced_is_noticed_and_the_difference_said(tmp_path):
    """Of equal name and size: its time tells. Fingerprints of former versions have no times, and count still."""
    root = write(tmp_path / "set", small_set())
    before, place = Folder(root, SIZE), root / "train/cat/b.png"
    content = place.read_bytes()
    place.write_bytes(content[:-20] + bytes(8) + content[-12:])
    os.utime(place, ns=(0, place.stat().st_mtime_ns + 1))
    after = Folder(root, SIZE)
    assert difference(before.fingerprint, before) is None and after.fingerprint != before.fingerprint
    message = difference(before.fingerprint, after)
    assert "names and sizes of its pictures are the same, their times are not" in message and "cp -p" in message
    assert before.names_and_sizes == after.names_and_sizes and difference(before.names_and_sizes, after) is None
    place.write_bytes(content + b"more")
    assert difference(before.fingerprint, Folder(root, SIZE)) == "names or sizes of its pictures have changed"
    assert difference(before.names_and_sizes, Folder(root, SIZE)) == "names or sizes of its pictures have changed"
    assert difference(before.fingerprint, Builtin(32)) == "it is another data set, or another version of it"


def test_names_and_sizes_are_fingerprinted_as_in_former_versions(tmp_path):
    """So that a run of theirs is resumed."""
    root = write(tmp_path, {f"{split}/{name}/1.png": b"abc" for split in ("train", "val") for name in ("a", "b")})
    lines = "".join(f"{split}/{name}/1.png\0" + "3\n" for split in ("train", "val") for name in ("a", "b"))
    assert Folder(root, SIZE).names_and_sizes == hashlib.sha256(lines.encode()).hexdigest()


def test_accents_that_are_written_otherwise_are_a_hint(tmp_path):
    """An archive that went through a Mac has e and an accent where another system has one letter."""
    files = {f"train/{name}/1.png": b"x" for name in ("bar", "caf\u00e9")}
    write(tmp_path / "set", files | {f"val/{name}/1.png": b"x" for name in ("bar", "cafe\u0301")})
    assert "classes differ" in (message := refused(tmp_path / "set")) and "the letters are the same" in message
    assert "convmv --nfc" in message
    write(tmp_path / "other", files | {f"val/{name}/1.png": b"x" for name in ("bar", "cafe")})
    assert "letters" not in refused(tmp_path / "other")
    with pytest.raises(UserError, match="its classes differ from those of train: missing caf\u00e9 .the letters are"):
        sources.find(tmp_path / "set")


@every(
    "expected, classes, said",
    [
        (["a", "b", "c"], ["a", "d", "c"], "its class 2 is 'd', and 'b' in RUN"),
        (["a", "b"], ["a", "b", "c"], "its class 3 is 'c', and missing in RUN"),
        (["a", "b", "c"], ["a"], "its class 2 is missing, and 'b' in RUN"),
        (["caf\u00e9"], ["cafe\u0301"], f"its class 1 is 'cafe\u0301', and 'caf\u00e9' in RUN ({SAME_LETTERS})"),
    ],
)
def test_the_first_class_that_is_another_is_named(expected, classes, said):
    assert first_difference(expected, classes, "RUN") == said


def refused(directory):
    with pytest.raises(UserError) as refusal:
        Folder(directory, SIZE)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@every(
    "change, named",
    [
        (lambda files: {}, ["no such directory", "folder"]),
        (lambda files: {name: data for name, data in files.items() if "train" not in name}, ["train/"]),
        (lambda files: {name: data for name, data in files.items() if "val" not in name}, ["val/"]),
        (lambda files: {name: data for name, data in files.items() if "cat" not in name}, ["train", "single class"]),
        (lambda files: {"train/x.png": b"", "val/x.png": b""}, ["train", "no class folders"]),
        (
            lambda files: (
                {name: data for name, data in files.items() if "d.png" not in name} | {"val/ant/notes.txt": b""}
            ),
            [os.path.join("val", "ant"), "empty"],
        ),
        (lambda files: files | {"val/dog/x.png": b""}, ["val", "extra dog"]),
        (lambda files: files | {"train/dog/x.png": b"", "train/elk/x.png": b""}, ["val", "missing dog, elk"]),
        (lambda files: files | {f"train/new{i}/x.png": b"" for i in range(7)}, ["new0", "new4 and 2 more"]),
        (
            lambda files: {name.replace("val/cat", "val/dog"): data for name, data in files.items()},
            ["val", "missing cat; extra dog"],
        ),
    ],
)
def test_a_wrong_folder_is_refused_by_name(tmp_path, change, named):
    message = refused(write(tmp_path / "folder", change(small_set())))
    assert all(part in message for part in named), message


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "archive.tar").write_bytes(b"")
    assert "archive.tar" in refused(tmp_path / "archive.tar")


def test_a_dangling_link_is_named(tmp_path):
    root = write(tmp_path, small_set())
    (root / "train" / "cat" / "gone.png").symlink_to(root / "nowhere.png")
    assert "gone.png" in refused(root)


def test_a_pipe_is_not_read(tmp_path):
    """Opening it would wait for ever."""
    root = write(tmp_path, small_set())
    os.mkfifo(root / "train" / "cat" / "pipe.png")
    assert "pipe.png" in refused(root)


@every(
    "content",
    [
        encoded(noise(40, 40), "JPEG")[:700],
        encoded(noise(40, 40))[:2000],
        b"no image at all\n" * 9,
        b"",
        b"\xff\xd8\xff",
    ],
    ids=["truncated JPEG", "truncated PNG", "garbage", "empty", "JPEG header alone"],
)
def test_an_unreadable_image_is_named(tmp_path, content):
    with pytest.raises(UserError, match="cannot read image .*train/a/broken.jpg: .") as refusal:
        stored(tmp_path, content, "broken.jpg")
    assert "\n" not in str(refusal.value) and str(refusal.value).count("broken.jpg") == 1


def recording(split, log):
    """Note every file that is really read."""
    read = split.read
    split.read = lambda index: (log.append(index), read(index))[1]
    return split


def test_the_cache_reads_a_file_once(tmp_path):
    split, log = Folder(write(tmp_path, small_set()), SIZE).splits["train"], []
    expected = [split.read(index).copy() for index in range(3)]
    cache = CachedSplit(recording(split, log), SIZE)
    for index in (2, 0, 2, 1, 0, np.int64(1)):
        assert np.array_equal(cache.read(index), expected[index])
        assert cache.storage == ("pixels" if len(log) == 3 else "files")
    assert log == [2, 0, 1]
    assert len(cache) == 3 and cache.names == split.names and np.array_equal(cache.labels, split.labels)


@pytest.mark.process
def test_what_a_forked_process_read_is_in_the_parents_cache(tmp_path):
    split, log = Folder(write(tmp_path, small_set()), SIZE).splits["train"], []
    expected = [split.read(index).copy() for index in range(3)]
    cache = CachedSplit(recording(split, log), SIZE)
    worker = multiprocessing.get_context("fork").Process(target=lambda: [cache.read(index) for index in (0, 2)])
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    assert np.array_equal(cache.read(0), expected[0]) and np.array_equal(cache.read(2), expected[2]) and log == []
    assert np.array_equal(cache.read(1), expected[1]) and log == [1]


def test_an_unreadable_image_is_not_cached(tmp_path):
    root = write(tmp_path, small_set() | {"train/ant/a.png": b""})
    cache = CachedSplit(Folder(root, SIZE).splits["train"], SIZE)
    for _ in range(2):
        with pytest.raises(UserError, match="a.png"):
            cache.read(0)
    write(root, {"train/ant/a.png": encoded(noise(SIZE, SIZE, seed=9))})
    assert np.array_equal(cache.read(0), noise(SIZE, SIZE, seed=9))


PICTURE = SIZE * SIZE * 3  # bytes


@every(
    "free, processes, held",
    [
        (2 * 5 * PICTURE, 1, ["train", "val"]),
        (2 * 5 * PICTURE - 2, 1, ["train"]),
        (2 * 3 * PICTURE, 1, ["train"]),
        (2 * 3 * PICTURE - 2, 1, ["val"]),
        (2 * 2 * PICTURE - 2, 1, []),
        (0, 1, []),
        (2 * 4 * 5 * PICTURE, 4, ["train", "val"]),
        (2 * 4 * 5 * PICTURE - 8, 4, ["train"]),
    ],
)
def test_half_of_the_free_memory_is_the_caches(tmp_path, monkeypatch, free, processes, held):
    folder = Folder(write(tmp_path, small_set()), SIZE)
    monkeypatch.setattr(dataset_module, "free_memory", lambda: free)
    assert cache_splits(folder, SIZE, processes) == list(held)
    assert [name for name, split in folder.splits.items() if isinstance(split, CachedSplit)] == held
    assert np.array_equal(folder.splits["train"].read(0), noise(SIZE, SIZE, seed=2))


def test_free_memory_is_a_plausible_number_of_bytes():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < memory.free_memory() <= total
