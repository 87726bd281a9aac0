"""What `prepare` is given: found by looking, split by names alone, and every image that can't be read is named."""

import bz2
import gzip
import lzma
import os
import pickle
import struct
import sys
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
from inner_cases import every
from make_archives import (
    WNIDS,
    image,
    make_cifar10,
    make_ilsvrc2010,
    make_ilsvrc2012,
    make_synset_tars,
    pixels,
    synset_tar_files,
    tar,
    write,
)

from alexnet_mp import prepare, report
from alexnet_mp.data.dataset import Folder
from alexnet_mp.preparation.items import Item
from alexnet_mp.preparation.sources import find, picture, read_bytes
from alexnet_mp.system.errors import UserError

SIZE = 24


def refused(path, **options):
    with pytest.raises(UserError) as refusal:
        find(path, **options)
    message = str(refusal.value)
    assert message.isprintable() and str(path) in message, message
    return message


def class_files(images=10, folder="", classes=("cat", "ant", "elk")):
    """{"cat/3.png": bytes, ...}, not in order."""
    return {
        f"{folder}{name}/{number}.png": image(100 * label + number)
        for label, name in enumerate(classes)
        for number in reversed(range(images))
    }


def split_files(**images):
    """class_files of each split."""
    return {
        name: content for split, count in images.items() for name, content in class_files(count, f"{split}/").items()
    }


def names(source):
    return {split: [item.name for item in items] for split, items in source.splits.items()}


def made(tmp_path, form, files):
    """The files as a folder, or as a tar."""
    if form == "folder":
        return write(tmp_path / "set", files)
    (tmp_path / "set.tar").write_bytes(tar(files))
    return tmp_path / "set.tar"


FORMS = every("form", ["folder", "tar"])


@FORMS
def test_class_folders_with_train_and_val(tmp_path, form):
    """Every class's images with its label, by label and then by name; other files are passed over."""
    other = dict.fromkeys(
        ("train/cat/notes.txt", "train/cat/.hidden.png", "train/.git/x.png", "val/list.txt", "train/y.txt"), b""
    )
    source = find(made(tmp_path, form, split_files(train=11, val=2) | {"val/ant/upper.JPEG": image(7)} | other))
    assert source.classes == source.class_names == ["ant", "cat", "elk"] and source.ids is None
    assert names(source)["train"][:12] == [
        *(f"ant/{n}" for n in ("0.png", "1.png", "10.png", *(f"{n}.png" for n in range(2, 10)))),
        "cat/0.png",
    ]
    assert names(source)["val"] == [
        "ant/0.png",
        "ant/1.png",
        "ant/upper.JPEG",
        "cat/0.png",
        "cat/1.png",
        "elk/0.png",
        "elk/1.png",
    ]
    assert [item.label for item in source.splits["val"]] == [0, 0, 0, 1, 1, 2, 2]
    for item in source.splits["train"]:
        name, number = item.name[:-4].split("/")
        assert np.array_equal(
            picture(item, SIZE), pixels(100 * ("cat", "ant", "elk").index(name) + int(number))[:, 3:27]
        )


def test_a_folder_is_read_in_the_order_of_training_from_it(tmp_path):
    root = write(
        tmp_path, split_files(train=12, val=3, test=2) | {"train/cat/a b.JPG": image(1), "train/cat/Z.jpeg": image(2)}
    )
    source, folder = find(root), Folder(root, SIZE, ("train", "val", "test"))
    assert list(source.splits) == list(folder.splits) == ["train", "val", "test"] and source.classes == folder.classes
    for split, images in folder.splits.items():
        assert [item.path for item in source.splits[split]] == list(images.names)
        assert [item.label for item in source.splits[split]] == images.labels.tolist()
        assert all(
            np.array_equal(picture(item, 16), Folder(root, 16, [split]).splits[split].read(i))
            for i, item in enumerate(source.splits[split][::5])
            for i in [5 * i]
        )


@every("fraction, count", [(None, 1), (0.1, 1), (0.26, 3), (0.5, 5), (0.999, 9), (0.001, 1)])
def test_the_fraction_of_each_class_that_becomes_val(tmp_path, fraction, count):
    data = find(write(tmp_path, class_files()), fraction)
    assert [item.label for item in data.splits["val"]] == [label for label in range(3) for _ in range(count)]
    assert sorted(names(data)["train"] + names(data)["val"]) == sorted(class_files())
    assert names(data)["val"] == sorted(names(data)["val"]) and names(data)["train"] == sorted(names(data)["train"])


def test_the_split_is_the_same_in_every_form(tmp_path):
    """The names alone decide: a folder, tars of it, with and without train/, tars by wnid and a tar of these."""
    files = {f"{wnid}/{wnid}_{number}.JPEG": image(number) for wnid in WNIDS for number in range(4)}
    write(tmp_path / "folder", files)
    write(tmp_path / "train only", {f"train/{name}": content for name, content in files.items()})
    for name, prefix in (("a", ""), ("b", "train/"), ("c", "./outer/"), ("d", "outer/inner/train/")):
        (tmp_path / f"{name}.tar").write_bytes(
            tar({prefix + name: content for name, content in reversed(files.items())})
        )
    make_synset_tars(tmp_path / "tars", 4)
    make_synset_tars(tmp_path / "one.tar", 4, one_tar=True)
    listings = [
        names(find(tmp_path / name, 0.5))
        for name in ("folder", "train only", "a.tar", "b.tar", "c.tar", "d.tar", "tars", "one.tar")
    ]
    assert listings.count(listings[0]) == len(listings) and len(listings[0]["val"]) == 8


def test_the_split_is_what_it_was(tmp_path):
    """A set prepared twice, years apart, must not change: sha256 of "class/name"."""
    source = find(write(tmp_path, class_files(5, classes=("a", "b"))), 0.4)
    assert names(source)["val"] == ["a/0.png", "a/2.png", "b/0.png", "b/3.png"]


def test_more_images_of_one_class_leave_the_others_alone(tmp_path):
    first = names(find(write(tmp_path, class_files()), 0.3))["val"]
    second = names(find(write(tmp_path, class_files(20, classes=("cat",))), 0.3))["val"]
    assert [name for name in first if "cat" not in name] == [name for name in second if "cat" not in name]


@FORMS
def test_val_from_train_where_there_is_no_val(tmp_path, form):
    notes, path = [], made(tmp_path, form, split_files(train=10, test=2))
    find(path, note=notes.append)  # without a flag none is named as its cause
    source = find(path, 0.2, notes.append)
    assert notes == [
        "val: 3 of the 30 training images, cut off; --val-fraction sets another share",
        "val: 6 of the 30 training images, cut off by --val-fraction 0.2",
    ]
    assert {split: len(items) for split, items in source.splits.items()} == {"train": 24, "val": 6, "test": 6}


@FORMS
def test_the_sets_own_val_becomes_test_where_a_fraction_is_asked_for(tmp_path, form):
    path = made(tmp_path, form, split_files(train=10, val=3))
    own, other = find(path), find(path, 0.5)
    assert list(other.splits) == ["train", "val", "test"] and other.splits["test"] == own.splits["val"]
    assert sorted(names(other)["train"] + names(other)["val"]) == names(own)["train"] and len(other.splits["val"]) == 15


@FORMS
def test_a_set_with_val_and_test_is_not_split_again(tmp_path, form):
    assert "val and test of its own" in refused(
        made(tmp_path, form, split_files(train=4, val=2, test=2)), val_fraction=0.5
    )


def test_ilsvrc_is_split_like_any_other(tmp_path):
    source = find(make_ilsvrc2012(tmp_path / "12", train=4), 0.5)
    assert {split: len(items) for split, items in source.splits.items()} == {
        "train": 8,
        "val": 8,
        "test": 8,
    } and source.ids
    assert "val and test of its own" in refused(make_ilsvrc2010(tmp_path / "10"), val_fraction=0.5)


@every("fraction", [1, -0.1, 1.5, float("nan")])
def test_impossible_fractions(tmp_path, fraction):
    with pytest.raises(UserError, match="at least 0 and below 1"):
        find(write(tmp_path, class_files()), fraction)


@FORMS
def test_a_single_image_is_for_training(tmp_path, form):
    files, notes = class_files(3) | class_files(1, classes=("dog",)), []
    source = find(made(tmp_path, form, files), None, notes.append)
    dog = source.classes.index("dog")
    assert [item.name for item in source.splits["train"] if item.label == dog] == ["dog/0.png"]
    assert (
        dog not in {item.label for item in source.splits["val"]}
        and len(source.splits["val"]) == len(source.classes) - 1
    )
    assert [note for note in notes if "single image" in note] == [
        "classes with a single image, which is for training: 1"
    ]


@FORMS
def test_where_every_image_is_single_there_is_no_val_to_cut(tmp_path, form):
    path = made(tmp_path, form, class_files(1))
    assert "--val-fraction 0" in refused(path)
    assert list(find(path, 0).splits) == ["train"]


@every(
    "form, files, message",
    [
        ("folder", {}, "nothing to train from was found. Looked for: class folders"),
        ("folder", {"a.txt": b"", "b/c.txt": b""}, "nothing to train from was found. Looked for: class folders"),
        ("folder", {"x.jpg": b""}, "nothing to train from"),
        ("tar", {"x.jpg": b""}, "nothing to train from"),
        ("folder", class_files(2, classes=("cat",)), "a single class"),
        ("tar", class_files(2, classes=("cat",)), "a single class, cat"),
        ("folder", class_files(2, "train/", ("cat",)), "train: a single class"),
        ("tar", class_files(2, "train/", ("cat",)), "a single class, cat"),
        ("folder", {"train/x.png": b""}, "train: no class folders"),
        ("tar", {"train/x.png": b"", "train/y.png": b""}, "train: no class folders"),
        ("folder", split_files(train=2) | {"train/dog/x.txt": b""}, "dog: the class is empty"),
        ("folder", class_files(2) | {"dog/x.txt": b""}, "dog: the class is empty"),
        ("folder", split_files(train=2, val=1) | {"val/dog/1.png": b""}, "val: its classes differ"),
        (
            "tar",
            split_files(train=2, val=1) | {"val/dog/1.png": b""},
            "val: its classes differ from those of train: extra dog",
        ),
        (
            "tar",
            split_files(train=2, val=1) | {"train/dog/1.png": b""},
            "val: its classes differ from those of train: missing dog",
        ),
        ("tar", split_files(val=2), "no train/ folder"),
        ("tar", split_files(val=2, test=2), "no train/ folder"),
        ("tar", {"notes.txt": b""}, "no images in it. Looked for: class folders"),
        ("tar", {}, "no images in it"),
        ("folder", split_files(train=2) | {"extra/cat/1.png": b""}, "extra/ has pictures of train's classes"),
        ("tar", split_files(train=2) | {"extra/cat/1.png": b""}, "extra/ has pictures of train's classes"),
        ("folder", split_files(val=2), "no train/ folder"),
    ],
)
def test_what_can_not_be_used_is_refused(tmp_path, form, files, message):
    (tmp_path / "set").mkdir()
    assert message in refused(made(tmp_path, form, files))


def test_links_that_lead_round_are_one_line(tmp_path):
    """As SRC, as DEST and as a run: no traceback."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    loop = str(tmp_path / "a")
    with pytest.raises(UserError, match="a: no such file or directory"):
        prepare.main([loop, str(tmp_path / "set")])
    with pytest.raises(UserError, match="a is there already and is not a directory"):
        prepare.main([str(tmp_path / "source"), loop])
    with pytest.raises(UserError, match="a is not a run directory"):
        report.main([loop])


def test_a_missing_path_and_a_strange_file(tmp_path):
    assert "no such file or directory" in refused(tmp_path / "gone")
    (tmp_path / "notes.txt").write_bytes(b"Some notes.\n" * 100)
    assert "no tar header at byte 0" in refused(tmp_path / "notes.txt")
    os.mkfifo(tmp_path / "pipe")
    assert "pipe: " in refused(tmp_path / "pipe")
    with zipfile.ZipFile(tmp_path / "set", "w") as archive:
        archive.writestr("cat/1.png", b"")
    assert "set: a ZIP archive is not read; unpack it" in refused(tmp_path / "set")
    with tarfile.open(tmp_path / "PK, BZh and others", "w") as archive:  # a tar begins with a name
        archive.addfile(tarfile.TarInfo("PK/cat/notes.txt"))
    assert "no images in it" in refused(tmp_path / "PK, BZh and others")
    for name, compress in (("xz", lzma.compress), ("bzip2", bz2.compress)):
        (tmp_path / "set").write_bytes(compress(bytes(1024)))
        assert f"set: a file compressed by {name} is not read" in refused(tmp_path / "set")


def test_a_directory_with_two_sources_is_not_guessed_at(tmp_path):
    make_ilsvrc2012(write(tmp_path, split_files(train=2)))
    assert "more than one source, ILSVRC2012_img_train.tar and train/" in refused(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read(tmp_path):
    write(tmp_path, class_files())
    (tmp_path / "cat").chmod(0)
    assert "cat: Permission denied" in refused(tmp_path)


def vast_png():
    """A PNG whose header says 50,000 x 50,000."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 50000, 50000, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


BAD = {
    "truncated JPEG": image(1, "JPEG", height=90)[:700],
    "truncated PNG": image(1, height=90)[:2000],
    "empty": b"",
    "garbage": b"no image at all\n" * 9,
    "JPEG header alone": b"\xff\xd8\xff",
    "vast": vast_png(),
    "damaged gzip": gzip.compress(image(1))[:-9],
    "gzipped garbage": gzip.compress(b"no image"),
}


@every("form", ["folder", "tar", "tars by wnid", "tar of tars"])
@every("content", BAD)
def test_an_unreadable_image_is_named(tmp_path, form, content):
    """By reading it; the set as a whole is found all the same."""
    if form in ("folder", "tar"):
        path = made(tmp_path, form, split_files(train=2, val=1) | {"train/elk/bad.jpg": BAD[content]})
        name = f"{path}/train/elk/bad.jpg" if form == "folder" else f"{path}: elk/bad.jpg"
    else:
        files = synset_tar_files(2) | {"n09999999.tar": tar({"ok.jpg": image(1), "bad.jpg": BAD[content]})}
        path = made(tmp_path, {"tars by wnid": "folder", "tar of tars": "tar"}[form], files)
        name = (f"{path}/n09999999.tar" if form == "tars by wnid" else f"{path}") + ": n09999999/bad.jpg"
    source = find(path)
    bad_items = [item for items in source.splits.values() for item in items if item.name.endswith("bad.jpg")]
    with pytest.raises(UserError) as refusal:
        picture(bad_items[0], SIZE)
    message = str(refusal.value)
    assert message.startswith(f"cannot read image {name}: ") and message.isprintable() and "0x" not in message
    assert len(message) > len(f"cannot read image {name}: ") and message.endswith("it is empty") == (content == "empty")
    others = [item for items in source.splits.values() for item in items if item not in bad_items]
    assert all(picture(item, SIZE).shape == (SIZE, SIZE, 3) for item in others)


@every("form", ["folder", "tar"])
def test_what_disappears_after_it_was_found(tmp_path, form):
    path = made(tmp_path, form, split_files(train=2, val=1))
    item = find(path).splits["train"][-1]
    if form == "folder":
        os.unlink(item.path)
    else:
        os.truncate(path, item.offset + 5)
    with pytest.raises(UserError, match="cannot read image .*elk/1.png: (No such file|it ends at byte)"):
        picture(item, SIZE)


def test_a_gzipped_image_is_read_everywhere(tmp_path):
    """Some of ILSVRC-2010's are."""
    files = split_files(train=2, val=1) | {"train/elk/x.png": gzip.compress(image(1))}
    for form in ("folder", "tar"):
        item = next(item for item in find(made(tmp_path, form, files)).splits["train"] if item.name == "elk/x.png")
        assert np.array_equal(picture(item, SIZE), pixels(1)[:, 3:27])
    split = Folder(tmp_path / "set", SIZE).splits["train"]
    index = [name.endswith("elk/x.png") for name in split.names].index(True)
    assert np.array_equal(split.read(index), pixels(1)[:, 3:27])


def test_a_file_that_is_none_is_not_read(tmp_path):
    root = write(tmp_path, split_files(train=2, val=1))
    os.mkfifo(root / "train/cat/pipe.png")
    (root / "train/cat/gone.png").symlink_to(root / "nowhere.png")
    items = {item.name: item for item in find(root).splits["train"]}
    for name in ("cat/pipe.png", "cat/gone.png"):
        with pytest.raises(UserError, match=f"cannot read image {root}/train/{name}: (it is not a file|No such file)"):
            read_bytes(items[name])


@every("make", [make_ilsvrc2012, make_cifar10, lambda root: write(root, class_files())])
def test_items_go_to_other_processes_whole(tmp_path, make):
    items = find(make(tmp_path)).splits["train"]
    assert pickle.loads(pickle.dumps(items)) == items
    assert items[0].path is items[1].path or items[0].length < 0
    with pytest.raises(AttributeError):
        items[0].label = 5


def test_an_item_is_small():
    """14 million images of Fall 2011 have to fit."""
    item = Item("n01440764/n01440764_10026.JPEG", 7, "shared", 10**11, 10**5)
    assert sys.getsizeof(item) + sum(sys.getsizeof(getattr(item, name)) for name in ("name", "offset", "length")) < 300


def test_progress_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("alexnet_mp.preparation.items.Progress.__init__.__defaults__", (0,))
    notes = []
    find(make_ilsvrc2012(tmp_path / "{x}"), note=notes.append)
    find(made(tmp_path, "tar", class_files(2)), note=notes.append)
    assert (
        "ILSVRC2012_img_train.tar: 12 images, 4 of 4 classes" in notes and "ILSVRC2012_img_val.tar: 8 images" in notes
    )
    assert "set.tar: 6 files" in notes
