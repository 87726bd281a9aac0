"""Folders of class folders: one reading on a disk, in a tar and in training, and nothing passed over in silence."""

from pathlib import Path

import pytest
from inner_cases import every
from make_archives import image, tar
from small_set import write
from tiny_run import make_quick, run

from alexnet_mp.data.class_folders import NO_PICTURE, OUTSIDE, PassedOver
from alexnet_mp.data.dataset import Folder
from alexnet_mp.data.prepared_format import UNLABELLED
from alexnet_mp.preparation.sources import find, picture
from alexnet_mp.system.errors import UserError

SETS = {f"{split}/{name}/{n}.png": image(n) for split in ("train", "val") for name in ("cat", "dog") for n in range(3)}
MESS = {
    "README": b"text",
    ".git/config": b"",
    ".git/index": b"",
    "train/.DS_Store": b"",
    "train/list.txt": b"",
    "train/cat/4": image(4, "BMP"),
    "train/cat/5.tiff": image(5, "TIFF"),
    "train/cat/é.txt": b"",
    "train/cat/._1.png": b"",
    "train/dog/.thumbs/1.png": b"",
    "train/dog/old/1.png": b"",
    "train/dog/old/older/2.png": b"",
    "train/dog/zzz": b"GIF, says a text",
    "val/dog/x.JPE": image(6, "JPEG"),
    "val/dog/Thumbs.db": bytes(9),
    "runs/1/metrics.csv": b"",
    "runs/1/checkpoint": b"",
}


def forms(tmp_path, files):
    """(a folder, a tar) of the files."""
    (tmp_path / "set.tar").write_bytes(tar(dict(reversed(files.items()))))
    return write(tmp_path / "set", files), tmp_path / "set.tar"


def listed(source):
    return {split: [(item.name, item.label) for item in items] for split, items in source.splits.items()}


@every("valid", ["val", "valid", "validation", "Val"])
def test_a_folder_a_tar_and_training_agree(tmp_path, valid):
    """On the pictures, their numbers and labels, and on every line about what is passed over."""
    files = {name.replace("val/", f"{valid}/"): content for name, content in (SETS | MESS).items()}
    listings, notes = [], []
    for path in forms(tmp_path, files):
        notes.append([])
        listings.append(listed(find(path, note=notes[-1].append)))
    folder = Folder(tmp_path / "set", 24)
    expected = {
        name: [("/".join(Path(file).parts[-2:]), label) for file, label in zip(split.names, split.labels.tolist())]
        for name, split in folder.splits.items()
    }
    assert listings[0] == listings[1] == expected and len(expected["train"]) == 8 and len(expected["val"]) == 7
    assert notes[0] == folder.passed_over and sorted(notes[1]) == sorted(notes[0])
    assert "passed over, hidden: 4 (.git, train/.DS_Store, train/cat/._1.png, train/dog/.thumbs)" in notes[0]
    assert "passed over, no split: 1 (runs/); read are train/, val/ (or valid/, validation/) and test/" in notes[0]
    assert any("(train/cat/é.txt, train/dog/zzz, " in line for line in notes[0])


def test_what_was_read_before_keeps_its_numbers(tmp_path):
    files = {f"{split}/{name}/{file}": b"12345" for split in ("train", "val") for name in "ab" for file in
             ("10.png", "9.PNG", "B.jpg", "a b.JPEG", "é.jpeg", "a.jpg.png")}  # fmt: skip
    folder = Folder(
        write(tmp_path, files | {"train/a/notes.txt": b"", "train/a/more/1.jpg": b"", "labels.csv": b""}), 24
    )
    names = ["10.png", "9.PNG", "B.jpg", "a b.JPEG", "a.jpg.png", "é.jpeg"]
    assert folder.splits["train"].names == [str(tmp_path / "train" / name / file) for name in "ab" for file in names]


def test_a_few_names_stand_for_many():
    tally = PassedOver()
    for number in range(1234):
        tally.add(NO_PICTURE, f"{number}.txt")
    tally.add(OUTSIDE, "x" * 500 + "\n")
    first, second = tally.lines()
    assert first.startswith("passed over, no picture: 1,234 (0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 1,229 more); ")
    assert len(second) < 300 and second.isprintable()


def test_a_link_that_leads_round_is_not_followed(tmp_path):
    write(tmp_path, SETS)
    (tmp_path / "train" / "cat" / "all").symlink_to(tmp_path)
    (line,) = Folder(tmp_path, 24).passed_over
    assert "in a folder within a class: 1 (train/cat/all)" in line


def test_a_class_folder_may_be_a_link(tmp_path):
    write(tmp_path / "elsewhere", {"1.png": image(1)})
    root = write(tmp_path / "set", SETS)
    for split in ("train", "val"):
        (root / split / "elk").symlink_to(tmp_path / "elsewhere")
    assert len(Folder(root, 24).splits["train"]) == len(find(root).splits["train"]) == 7


def test_another_folder_with_trains_classes_stops_where_val_would_be_cut(tmp_path):
    """A part of train in its place is not what its owner expects; a fraction that is asked for is."""
    for path in forms(tmp_path, {name.replace("val/", "dev/"): content for name, content in SETS.items()}):
        with pytest.raises(
            UserError, match="it has no val/, and dev/ has .*rename it to val/, or write --val-fraction 0.1"
        ):
            find(path)
        notes = []
        assert len(find(path, 0.3, notes.append).splits["val"]) == 2 and "no split: 1 (dev/)" in notes[0]
    files = {name.replace("val/", "docs/"): b"text" for name in SETS if "val" in name}
    (tmp_path / "more").mkdir()
    for path in forms(tmp_path / "more", SETS | files):
        assert len(find(path).splits["val"]) == 6


def test_split_names_may_be_classes_where_there_is_no_train(tmp_path):
    files = {f"{name}/{n}.png": image(n) for name in ("Test", "Train", "valid", "validation") for n in range(2)}
    for path in forms(tmp_path, files):
        assert find(path).classes == ["Test", "Train", "valid", "validation"]


@every("names", [["9.png", "x.JPG", "10.png"]])
def test_unlabelled_test_pictures(tmp_path, names):
    """Left out and said; taken where that is asked for."""
    pictures = {f"test/{name}": image(7) for name in names} | {"test/notes.txt": b"", "test/.x": b""}
    (tmp_path / "none.tar").write_bytes(tar(SETS))
    with pytest.raises(UserError, match="no test images without labels; they lie in test/ itself"):
        find(tmp_path / "none.tar", unlabelled_test=True)
    for path in forms(tmp_path, SETS | pictures):
        notes = []
        assert list(find(path, note=notes.append).splits) == ["train", "val"]
        assert any("without a class folder, so without a label: 3 (test/10.png, " in line for line in notes)
        notes.clear()
        items = find(path, note=notes.append, unlabelled_test=True).splits["test"]
        assert [(item.name, item.label) for item in items] == [(name, UNLABELLED) for name in sorted(names)]
        assert picture(items[0], 24).shape == (24, 24, 3) and not any("without" in line for line in notes)


def test_train_says_what_it_passed_over(tmp_path, monkeypatch, capsys):
    make_quick(monkeypatch)
    files = {name: image(n, height=50) for n, name in enumerate(SETS)}
    run(write(tmp_path / "set", files | {"train/cat/notes.txt": b""}), tmp_path / "run", "--epochs", "1")
    assert "passed over, no picture: 1 (train/cat/notes.txt); pictures are JPEG" in capsys.readouterr().out
