"""CIFAR-10 in each of the forms in which it is distributed; its pickles are followed, never loaded."""

import io
import multiprocessing
import pickle
import tarfile

import numpy as np
import pytest
from inner_cases import every
from make_archives import CIFAR_CLASSES, cifar_batch, cifar_files, make_cifar10, python2, python3, refused, tar, write

from alexnet_mp.preparation import cifar10
from alexnet_mp.preparation.cifar10 import unpickled
from alexnet_mp.preparation.sources import find, picture, read_bytes
from alexnet_mp.system.errors import UserError

FORMS = [(version, archive) for version in ("binary", "python") for archive in (False, True)]
TRAIN = [cifar_batch(number) for number in range(1, 6)]
TEST = cifar_batch(6)


def check(source, split, batches):
    """Labels, order and every byte of a split."""
    rows = sorted(
        (label, number, row) for number, (_, labels) in enumerate(batches) for row, label in enumerate(labels)
    )
    items = source.splits[split]
    assert [item.label for item in items] == [label for label, _, _ in rows]
    assert [read_bytes(item) for item in items] == [batches[number][0][row].tobytes() for _, number, row in rows]


@every("version, archive", FORMS)
@every("given", ["itself", "parent"])
def test_every_picture_has_its_label(tmp_path, version, archive, given):
    path = make_cifar10(tmp_path, version, archive)
    source = find(path if given == "itself" else tmp_path)
    assert source.classes == source.class_names == list(CIFAR_CLASSES) and source.ids is None
    assert list(source.splits) == ["train", "val"] and "CIFAR-10" in source.kind
    check(source, "train", TRAIN)
    check(source, "val", [TEST])
    assert (
        source.splits["train"][0].name == "data_batch_1/00003"
        and len({item.name for item in source.splits["train"]}) == 100
    )


def test_planes_become_a_picture(tmp_path):
    item = find(make_cifar10(tmp_path)).splits["train"][0]
    pixels = picture(item, 32)
    assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8
    red, green, blue = TRAIN[0][0][3].reshape(3, 32, 32)
    assert (
        np.array_equal(pixels[:, :, 0], red)
        and np.array_equal(pixels[:, :, 1], green)
        and np.array_equal(pixels[:, :, 2], blue)
    )
    assert picture(item, 48).shape == (48, 48, 3)


def test_the_same_set_in_every_form(tmp_path):
    """Names, labels and order, also of validation images cut from train; the test batch is then the test set."""
    listings = []
    for version, archive in FORMS:
        source = find(make_cifar10(tmp_path / f"{version}{archive}", version, archive), 0.3)
        listings.append({split: [(item.name, item.label) for item in items] for split, items in source.splits.items()})
    listing = listings[0]
    assert listings.count(listing) == 4 and {split: len(items) for split, items in listing.items()} == {
        "train": 70,
        "val": 30,
        "test": 20,
    }
    assert [label for _, label in listing["val"]] == [label for label in range(10) for _ in range(3)]
    assert all(name.startswith("test_batch/") for name, _ in listing["test"])


@every("dump", [python2, *map(python3, range(2, 6))], ids=["Python 2", *"2345"])
def test_pickles_of_every_age(tmp_path, dump):
    source = find(make_cifar10(tmp_path, "python", dump=dump))
    check(source, "train", TRAIN)
    assert source.classes == list(CIFAR_CLASSES)


@every("protocol", range(2, 6))
def test_pickles_with_keys_of_text(tmp_path, protocol):
    def dump(batch):
        return pickle.dumps(
            {
                key.decode(): [name.decode() if isinstance(name, bytes) else name for name in value]
                if isinstance(value, list)
                else value
                for key, value in batch.items()
            },
            protocol,
        )

    source = find(make_cifar10(tmp_path, "python", dump=dump))
    check(source, "val", [TEST])
    assert source.classes == list(CIFAR_CLASSES)


def test_python_agrees_with_the_fixture_of_python_2():
    fields = pickle.loads(cifar_files("python")["data_batch_1"], encoding="bytes")
    assert np.array_equal(fields[b"data"], TRAIN[0][0]) and fields[b"labels"] == TRAIN[0][1]


def test_the_binary_folder_is_taken_first(tmp_path):
    for version, archive in FORMS:
        make_cifar10(tmp_path, version, archive)
    assert find(tmp_path).kind.startswith("CIFAR-10, binary version")


@pytest.mark.process
def test_forked_processes_share_what_was_unpacked(tmp_path, monkeypatch):
    source = find(make_cifar10(tmp_path, "python", True))
    monkeypatch.setattr(cifar10, "gzip_members", None)  # unpacking once more would fail

    def check_all():
        check(source, "train", TRAIN)

    worker = multiprocessing.get_context("fork").Process(target=check_all)
    worker.start()
    worker.join()
    assert worker.exitcode == 0


@every("name", [*cifar_files(), *cifar_files("python")])
def test_a_missing_part_is_named(tmp_path, name):
    version = "binary" if "." in name and name != "batches.meta" else "python"
    folder = make_cifar10(tmp_path / "folder", version)
    (folder / name).unlink()
    assert f"no file {name}" in refused(folder)
    files = {f"{folder.name}/{file.name}": file.read_bytes() for file in folder.iterdir()}
    path = tmp_path / "cifar-10.tar.gz"
    path.write_bytes(tar(files, mode="w:gz"))
    assert ("it lacks the class names" if "meta" in name else f"it lacks {name.split('.')[0]}") in refused(path)


BATCH = cifar_files()["data_batch_2.bin"]


@every(
    "name, content, message",
    [
        ("data_batch_2.bin", BATCH[:-1], "61,459 bytes are not a whole number of pictures"),
        (
            "data_batch_2.bin",
            BATCH[:-3073],
            "its batches should be of one size, but have data_batch_1 20, data_batch_2 19,",
        ),
        ("data_batch_2.bin", b"", "0 bytes are not a whole number"),
        (
            "data_batch_2.bin",
            BATCH[: 3073 * 4] + b"\x0a" + BATCH[3073 * 4 + 1 :],
            "the label of picture 4 is not one of 0 to 9",
        ),
        ("batches.meta.txt", "\n".join(CIFAR_CLASSES[:9]).encode(), "9 class names; CIFAR-10 has 10"),
        ("batches.meta.txt", "\n".join(["cat"] * 10).encode(), "10 class names; CIFAR-10 has 10, all different"),
        ("batches.meta.txt", "\n".join(["c\x1bat", *CIFAR_CLASSES[1:]]).encode(), "class names"),
        ("batches.meta.txt", b"x" * (65 << 10), "66,560 bytes, more than the 65,536"),
    ],
)
def test_damaged_binary_files_are_refused(tmp_path, name, content, message):
    write(make_cifar10(tmp_path), {name: content})
    assert message in refused(tmp_path)


def batch(**changes):
    rows, labels = cifar_batch(3)
    return python2({key.encode(): value for key, value in ({"data": rows, "labels": labels} | changes).items()})


@every(
    "content, message",
    [
        (batch()[:-1], "exhausted"),
        (batch()[:-100], "expected"),
        (b"", "exhausted"),
        (b"no pickle", "unknown"),
        (batch(labels=[1] * 19), "19 labels and 61,440 bytes of pixels don't belong together"),
        (batch(labels=[10] * 20), "the label of picture 0 is not one of 0 to 9"),
        (batch(labels=[b"1"] * 20), "the label of picture 0"),
        (batch(labels=b"1"), "no data and labels"),
        (batch(data=b"x"), "no data and labels"),
        (batch(data=np.zeros((20, 3071), np.uint8)), "don't belong together"),
        (
            batch(data=np.zeros((20, 3072), np.uint8)).replace(b"M\x14\0M\0\x0c", b"M\x15\0M\0\x0c"),
            "don't belong together",
        ),
        (
            batch(data=np.zeros((19, 3072), np.uint8)).replace(b"M\x13\0M\0\x0c", b"M\x14\0M\0\x0c"),
            "20 labels and 58,368 bytes",
        ),
        (python3(5)({"data": np.asfortranarray(np.zeros((20, 3072), np.uint8)), "labels": [0] * 20}), "row by row"),
        (python3(4)({"data": np.zeros((20, 3072), np.int16), "labels": [0] * 20}), "not of bytes"),
        (python3(2)({"data": np.zeros((20, 3072), ">f8"), "labels": [0] * 20}), "not of bytes"),
        (python3(4)({"data": np.asfortranarray(np.zeros((20, 3072), np.uint8)), "labels": [0] * 20}), "row by row"),
        (python3(4)({"data": np.zeros((2, 2), object), "labels": [0] * 20}), "not of bytes"),
        (python3(4)([1, 2]), "no dictionary"),
        (python3(4)({"data": 1, "labels": {}}), "no data and labels"),
    ],
)
def test_damaged_pickles_are_refused(tmp_path, content, message):
    write(make_cifar10(tmp_path, "python"), {"data_batch_3": content})
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    with pytest.raises(UserError, match=message) as refusal:
        find(tmp_path)
    assert str(refusal.value).startswith(str(path)) and str(refusal.value).isprintable()


class Evil:
    """Runs code in whoever loads its pickle."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@every("protocol", range(2, 6))
@every("function", [exec, pickle.loads, np.frombuffer, np.load, getattr])
def test_a_pickle_can_call_nothing(tmp_path, protocol, function):
    mark = tmp_path / "mark"
    content = pickle.dumps({"data": Evil(function, f"open({str(mark)!r}, 'w')")}, protocol)
    write(make_cifar10(tmp_path, "python"), {"data_batch_1": content})
    with pytest.raises(UserError, match=f"it names .*{function.__name__}, which such a file has no use for"):
        find(tmp_path)
    assert not mark.exists()


GLOBALS = b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"c_codecs\nencode\n"


@every(
    "steps, message",
    [
        (b"r\xff\xff\xff\x7f.", "list index"),  # a memo of 2 billion places
        (b"U\1xr\xff\xff\xff\x7f.", None),
        (b"]q\0(h\0h\0h\0e.", None),  # a list in itself
        (b"B\xff\xff\xff\xff.", "expected"),
        (b"\x8e" + b"\xff" * 7 + b"\x7f.", "expected"),  # lengths of 4 GB and of 9 EB
        (b"\x95" + b"\xff" * 8 + b".", "pop from"),
        (
            b"}" + b")\x85" + b"q\0h\0\x86q\0h\0\x86q\0h\0\x86" + b"K\1s.",
            "key is no text",
        ),  # a key that takes long to hash
        (b"]\x8f.", "no place"),
        (b"K\1\x32.", "no place"),
        (b"]K\1Q.", "no place"),
        (b"K\1\x82\1.", "no place"),
        (b"cnumpy\ndtype\n)\x81.", "no place"),
        (GLOBALS[2] + b")R.", "can't be made"),
        (GLOBALS[1] + b"U\2O8\x85R.", "not of bytes"),
        (GLOBALS[3] + b"X\1\0\0\0xX\6\0\0\0rot_13\x86R.", "unknown encoding"),
        (GLOBALS[0] + b"}b.", "can't be set"),
        (b"}}b.", "can't be set"),
        (b"U\1xU\1yR.", "no attribute 'meaning'"),
        (b"e.", "pop from"),
        (b"(e.", "list index"),
        (b"}(U\1xu.", "shorter"),
        (b"U\1x", "expected|exhausted|STOP"),
    ],
)
def test_steps_that_do_harm_elsewhere(steps, message):
    if message is None:
        unpickled(b"\x80\2" + steps)
        return
    with pytest.raises(Exception, match=message):
        unpickled(b"\x80\2" + steps)


def test_a_pickle_cannot_multiply_its_bytes():
    """A few bytes that turn a long text to bytes once more, again and again: 250 MB from 1 MB."""
    text = b"X" + (1 << 20).to_bytes(4, "little") + b"x" * (1 << 20) + b"q\0"
    opcodes = GLOBALS[3] + b"h\0X\6\0\0\0latin1\x86R"
    with pytest.raises(ValueError, match="repeats itself"):
        unpickled(b"\x80\2](" + text + opcodes * 250 + b"e.")


def test_a_large_archive_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "LARGEST_ARCHIVE", 100_000)
    assert "unpacks to more than 100,000 bytes" in refused(make_cifar10(tmp_path / "a", archive=True))
    monkeypatch.setattr(cifar10, "LARGEST_BATCH", 10_000)
    assert "data_batch_1.bin: 61,460 bytes, more than the 10,000" in refused(make_cifar10(tmp_path / "b", archive=True))
    assert "61,460 bytes, more than the 10,000" in refused(make_cifar10(tmp_path / "c"))


def test_another_compressed_archive_is_refused(tmp_path):
    path = tmp_path / "photos.tar.gz"
    path.write_bytes(tar({"a/1.jpg": b"", "b/2.jpg": b""}, mode="w:gz"))
    assert "of compressed archives only CIFAR-10's are read" in refused(path)


def test_a_link_in_place_of_a_batch_is_refused(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        header = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        header.type, header.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(header)
    path = write(tmp_path, {"cifar-10-python.tar.gz": buffer.getvalue()}) / "cifar-10-python.tar.gz"
    assert "data_batch_1: a symbolic link" in refused(path)
