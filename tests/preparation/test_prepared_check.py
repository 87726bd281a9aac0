"""`prepare --check`: whatever byte of a set has changed, the file and the image are named, and everything that is wrong
is."""

import os
import shutil
import zlib
from dataclasses import replace

import numpy as np
import pytest
from inner_cases import every
from prepared_sets import SIZE, change_columns, files, make_source, prepared, sha256, sign
from safetensors.numpy import load_file, save

from alexnet_mp import prepare
from alexnet_mp.data.prepared_format import member_header, read_index
from alexnet_mp.preparation import check as prepared_check
from alexnet_mp.system.errors import UserError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A JPEG set and a raw set; the raw one of 4x4 pictures."""
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as monkeypatch:
        source = make_source(root / "source")
        return prepared(monkeypatch, source, root / "jpeg"), prepared(
            monkeypatch, source, root / "raw", "--raw", size=4
        )


@pytest.fixture
def jpeg(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "jpeg")


@pytest.fixture
def raw(made, tmp_path):
    return shutil.copytree(made[1], tmp_path / "raw")


def check(directory, capsys, workers=0):
    """(exit status, lines) of the command."""
    capsys.readouterr()
    status = prepare.main(["--check", str(directory), "--workers", str(workers)])
    return status, capsys.readouterr().out.splitlines()


def damage_of(directory, capsys, workers=0):
    """The lines about what is wrong, each once."""
    status, lines = check(directory, capsys, workers)
    assert status == 2 and "damaged" in lines[-1] and len(set(lines)) == len(lines)
    return lines[:-1]


def flip(path, place):
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def image_of(directory, image, split="train"):
    """(path of the shard, offset, length) of an image."""
    columns = load_file(directory / f"{split}.safetensors")
    return (
        directory / f"{split}-{columns['shard'][image]:05d}.tar",
        int(columns["offset"][image]),
        int(columns["length"][image]),
    )


@pytest.mark.process
@every("workers", [0, 2])
def test_a_whole_set_is_one_line(made, capsys, workers):
    for directory in made:
        status, lines = check(directory, capsys, workers)
        assert status == 0 and len(lines) == 1
        assert lines[0].startswith(f"all well: prepared set {directory}: 27 train, 15 val images")


@every(
    "what, place, named",
    [
        ("image", lambda offset, length: offset + length // 2, "crc32"),
        ("header", lambda offset, length: offset - 512 + 140, "tar header"),
        ("label", lambda offset, length: offset + (length + 511) // 512 * 512 + 512, "label"),
        ("padding", lambda offset, length: offset + length, "place"),
        ("padding of the label", lambda offset, length: offset + (length + 511) // 512 * 512 + 1000, "place"),
    ],
)
@every("split, image, name", [("train", 12, "leaf/3.jpg"), ("val", 0, "apple/0.jpg")])
def test_a_flipped_byte_is_named_with_its_image(jpeg, capsys, split, image, name, what, place, named):
    path, offset, length = image_of(jpeg, image, split)
    flip(path, place(offset, length))
    lines = damage_of(jpeg, capsys)
    assert len(lines) == 2 and all(str(path) in line for line in lines)
    assert "sha256" in lines[0] and name in lines[1] and named in lines[1]


@pytest.mark.run
@pytest.mark.parametrize("step", [1999, pytest.param(397, marks=pytest.mark.slow)], ids=["some", "more"])
def test_no_byte_of_any_file_can_change(step, raw, capsys):
    for name, content in files(raw).items():
        for place in range(0, len(content), step):
            flip(raw / name, place)
            if name == "index.json":
                with pytest.raises(UserError, match="index.json"):
                    check(raw, capsys)
            else:
                assert name in " ".join(damage_of(raw, capsys)), (name, place)
            flip(raw / name, place)
    assert check(raw, capsys)[0] == 0


@every(
    "name, damage, named",
    [
        ("train-00001.tar", lambda path: path.unlink(), "No such file"),
        ("val-00000.tar", lambda path: os.truncate(path, 100), "100 bytes"),
        ("train-00000.tar", lambda path: path.write_bytes(path.read_bytes() + bytes(10240)), "index.json says"),
        ("notes.txt", lambda path: path.write_text("x"), "does not belong"),
        ("train-00003.tar", lambda path: path.write_text("x"), "does not belong"),
        ("work", lambda path: path.mkdir(), "does not belong"),
        ("statistics.safetensors", lambda path: flip(path, 300), "sha256"),
        ("statistics.safetensors", lambda path: path.unlink(), "No such file"),
        ("val.safetensors", lambda path: flip(path, 300), "sha256"),
        ("val.safetensors", lambda path: path.unlink(), "No such file"),
    ],
)
def test_a_file_that_is_missing_cut_or_foreign_is_named(jpeg, capsys, name, damage, named):
    damage(jpeg / name)
    (line,) = damage_of(jpeg, capsys)
    assert str(jpeg / name) in line and named in line


@pytest.mark.process
@every("workers", [0, 2])
def test_everything_that_is_wrong_is_named(jpeg, capsys, workers):
    (jpeg / "train-00000.tar").unlink()
    flip(jpeg / "val.safetensors", 200)
    flip(jpeg / "val-00001.tar", 5000)  # found by its sha256, though nothing is known of its images
    flip(jpeg / "statistics.safetensors", 400)
    (jpeg / "notes.txt").write_text("x")
    columns = load_file(jpeg / "train.safetensors")
    images = [int(image) for image in np.flatnonzero(columns["shard"] == 1)[:2]]
    for image in images:
        path, offset, length = image_of(jpeg, image)
        flip(path, offset + length // 2)
    lines = damage_of(jpeg, capsys, workers)
    for name in (
        "train-00000.tar",
        "val.safetensors",
        "val-00001.tar",
        "statistics.safetensors",
        "notes.txt",
        "train-00001.tar",
    ):
        assert any(name in line for line in lines), name
    assert sum("crc32" in line for line in lines) == 2 and len(lines) == 8


def test_more_than_twenty_lines_are_counted(jpeg, capsys):
    for number in range(30):
        (jpeg / f"foreign-{number:02d}").write_text("")
    lines = damage_of(jpeg, capsys)
    assert len(lines) == 21 and lines[-1] == "and 10 more"


def test_statistics_of_other_pictures_are_named_though_their_checksum_is_right(jpeg, capsys):
    fields = {name: values.copy() for name, values in load_file(jpeg / "statistics.safetensors").items()}
    for name in ("mean", "eigenvalues", "eigenvectors"):
        copy = dict(fields)
        copy[name] = fields[name] + 1e-6 * (
            np.arange(fields[name].size).reshape(fields[name].shape) == 4 % fields[name].size
        )
        (jpeg / "statistics.safetensors").write_bytes(save(copy))
        sign(jpeg)
        (line,) = damage_of(jpeg, capsys)
        assert "not those of the pictures" in line
    (jpeg / "statistics.safetensors").write_bytes(save(fields))
    sign(jpeg)
    assert check(jpeg, capsys)[0] == 0


def test_a_label_other_than_in_the_shard_is_named_though_all_checksums_are_right(jpeg, capsys):
    change_columns(jpeg, lambda columns: columns["label"].__setitem__(0, 2))
    (line,) = damage_of(jpeg, capsys)
    assert "apple/0.jpg" in line and "label" in line


def test_an_image_out_of_its_place_is_named_though_all_checksums_are_right(jpeg, capsys):
    def change(columns):
        for field in ("shard", "offset", "length", "crc32"):
            columns[field][[0, 1]] = columns[field][[1, 0]]

    change_columns(jpeg, change)
    lines = damage_of(jpeg, capsys)
    assert len(lines) == 2 and "apple/0.jpg" in " ".join(lines) and "apple/1.jpg" in " ".join(lines)


def test_a_file_that_is_no_picture_is_named_though_all_checksums_are_right(jpeg, capsys):
    path, offset, length = image_of(jpeg, 4)
    content = path.read_bytes()
    scan = content.index(b"\xff\xda", offset) + 14  # the header is whole, the pixels are not
    image = content[offset:scan] + b"\xff" * (offset + length - scan)
    path.write_bytes(content[:offset] + image + content[offset + length :])
    change_columns(jpeg, lambda columns: columns["crc32"].__setitem__(4, zlib.crc32(image)))
    lines = damage_of(jpeg, capsys)
    assert len(lines) == 1 and "apple/4.jpg" in lines[0] and "decoded" in lines[0]


def test_what_follows_the_last_image_is_checked_though_all_checksums_are_right(jpeg, capsys):
    path = jpeg / "train-00002.tar"
    content = path.read_bytes()
    end = len(content.rstrip(b"\0")) // 512 * 512 + 512
    member = member_header(99, "jpg", 4) + b"evil" + bytes(508)
    forgery = content[:end] + member + content[end + len(member) :]
    for variant in (forgery, content + bytes(10240), content + bytes(512), content[: end + 512]):
        path.write_bytes(variant)
        sign(jpeg)
        (line,) = damage_of(jpeg, capsys)
        assert str(path) in line and "end of a tar" in line


def test_a_disk_error_is_named(jpeg, capsys, monkeypatch):
    def fail(*_):
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(prepared_check, "_check_content", fail)
    assert any("train-00001.tar: Input/output error" in line for line in damage_of(jpeg, capsys))


def test_equal_components_turned_against_each_other_agree():
    class Flat:
        mean, eigenvalues = np.zeros((2, 2, 3)), np.array([0.1, 0.1, 0.3])

    rotation = np.array([[np.cos(1), -np.sin(1), 0], [np.sin(1), np.cos(1), 0], [0, 0, 1]])
    one, other, wrong = Flat(), Flat(), Flat()
    one.eigenvectors, other.eigenvectors, wrong.eigenvectors = np.eye(3), rotation, np.eye(3)[::-1]
    assert prepared_check._agree(one, other) and not prepared_check._agree(one, wrong)


def test_a_set_that_is_not_finished_or_not_there_is_refused(tmp_path):
    (tmp_path / "begun" / "work").mkdir(parents=True)
    (tmp_path / "begun" / "work" / "plan.json").write_text("{}")
    for name, message in (("begun", "not finished"), ("nowhere", "No such file")):
        with pytest.raises(UserError, match=message):
            prepare.main(["--check", str(tmp_path / name)])


def test_the_sets_here_are_what_the_index_says(jpeg):
    """The helper that signs a changed set leaves an unchanged one as it is."""
    before = sha256(jpeg / "index.json")
    sign(jpeg)
    assert sha256(jpeg / "index.json") == before and read_index(jpeg).stored_size == SIZE
    sign(jpeg, lambda index: replace(index, source="x"))
    assert sha256(jpeg / "index.json") != before
