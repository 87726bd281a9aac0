"""Unreadable images and archives: named, left out where that is asked for, never passed over."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from inner_cases import every
from make_archives import make_ilsvrc2012
from prepared_sets import PER_SHARD, SIZE, but_times, files, interrupted, leftovers, prepared, refused

from alexnet_mp import prepare
from alexnet_mp.data.prepared import Prepared
from alexnet_mp.data.prepared_format import read_index
from alexnet_mp.preparation import build, shards
from alexnet_mp.system.errors import UserError


def break_image(source, name="train/leaf/3.jpg"):
    """Cut an image short. Returns its whole content."""
    content = (source / name).read_bytes()
    (source / name).write_bytes(content[:300])
    return content


@pytest.mark.process
@every("workers", [0, 2])
def test_the_first_unreadable_image_stops_it(source, tmp_path, monkeypatch, workers):
    expected, content = files(prepared(monkeypatch, source, tmp_path / "whole")), break_image(source)
    with pytest.raises(UserError, match="cannot read image .*train/leaf/3.jpg: .*runcated.*--bad-images skip"):
        prepared(monkeypatch, source, tmp_path / "set", workers=workers)
    assert not (tmp_path / "set" / "index.json").exists()
    assert not [name for name in leftovers(tmp_path / "set") if "partial" in name]
    (source / "train/leaf/3.jpg").write_bytes(content)
    # mended, the same command goes on
    assert but_times(files(prepared(monkeypatch, source, tmp_path / "set", workers=workers))) == but_times(expected)


@pytest.mark.process
def test_unreadable_images_are_left_out_and_listed(source, tmp_path, monkeypatch, capsys):
    original = Prepared(prepared(monkeypatch, source, tmp_path / "whole", "--raw"), SIZE)
    break_image(source)
    (source / "val/sky/0.jpg").write_bytes(b"")
    dest = prepared(monkeypatch, source, tmp_path / "set", "--raw", "--bad-images", "skip", workers=2)
    output = capsys.readouterr().out
    assert "2 unreadable images were left out" in output and "left out: leaf/3.jpg: " in output
    index, subset = read_index(dest), Prepared(dest, SIZE)
    (first,), (second,) = index.splits["train"].skipped, index.splits["val"].skipped
    assert (first.number, first.name) == (9 + 3, "leaf/3.jpg") and "runcated" in first.reason
    assert (
        (second.number, second.name) == (10, "sky/0.jpg")
        and second.reason
        and str(tmp_path) not in second.reason + first.reason
    )
    for split, number in (("train", 12), ("val", 10)):
        ours, theirs = subset.splits[split], original.splits[split]
        indices = np.delete(np.arange(len(theirs)), number)
        assert len(ours) == len(indices) and np.array_equal(ours.labels, theirs.labels[indices])
        assert list(ours.names) == [theirs.names[image] for image in indices]
        # the others are in the shards that they would be in
        assert np.array_equal(ours.columns.shard, theirs.columns.shard[indices])
        for image, before in enumerate(indices):
            assert np.array_equal(ours.read(image), theirs.read(before))
    keys = [member.name for shard in index.splits["train"].shards for member in tarfile.open(dest / shard.file)]
    assert "00000013.ppm" in keys and "00000012.ppm" not in keys and len(keys) == 52
    assert (
        np.abs(subset.statistics.mean - np.mean([subset.splits["train"].read(image) for image in range(26)], 0)).max()
        < 1e-9
    )
    assert prepare.main(["--check", str(dest), "--workers", "0"]) == 0
    prepared(monkeypatch, source, dest, "--raw")
    assert "2 unreadable images were left out" in capsys.readouterr().out


def test_skip_goes_on_where_stop_stopped_and_what_was_mended_is_taken_in(source, tmp_path, monkeypatch):
    expected, dest, content = (
        files(prepared(monkeypatch, source, tmp_path / "whole")),
        tmp_path / "set",
        break_image(source),
    )
    without = files(prepared(monkeypatch, source, tmp_path / "without", "--bad-images", "skip"))
    with pytest.raises(UserError, match="3.jpg"):
        prepared(monkeypatch, source, dest)
    with monkeypatch.context() as patch:
        patch.setattr(build, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr(shards, "IMAGES_PER_SHARD", PER_SHARD)
        skip = [str(source), str(dest), "--size", str(SIZE), "--workers", "0", "--bad-images", "skip"]
        assert prepare.main(skip) == 130  # all shards are there now, one of them without the image
    with pytest.raises(UserError, match="3.jpg"):  # not what "stop" allows
        prepared(monkeypatch, source, dest)
    with monkeypatch.context() as patch:
        patch.setattr(build, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        prepare.main(skip)
    (source / "train/leaf/3.jpg").write_bytes(content)
    contents = but_times(files(prepared(monkeypatch, source, dest, "--bad-images", "skip")))
    assert contents == but_times(expected) != but_times(without)


def test_a_part_of_fewer_images_is_never_taken_for_that_of_the_whole_shard(source, tmp_path, monkeypatch):
    """A tar's size is rounded up, so that of the shard with one image more may be the same as before."""

    def stop(*_):
        raise KeyboardInterrupt

    def stopped(name, module):
        with monkeypatch.context() as patch:
            patch.setattr(shards, "IMAGES_PER_SHARD", PER_SHARD)
            patch.setattr(module, name, stop)
            patch.setattr(
                Path, "unlink", lambda path, **kwargs: None if path.suffix == ".tar" else unlink(path, **kwargs)
            )
            assert (
                prepare.main([str(source), str(dest), "--size", "4", "--workers", "0", "--bad-images", "skip"]) == 130
            )

    content, dest, unlink = break_image(source), tmp_path / "set", Path.unlink
    stopped("_finish", build)
    (source / "train/leaf/3.jpg").write_bytes(content)
    stopped("save", shards)  # as by a kill after the tar, so that nothing could be tidied up
    break_image(source)
    prepared(monkeypatch, source, dest, "--bad-images", "skip", size=4)
    assert prepare.main(["--check", str(dest), "--workers", "0"]) == 0 and read_index(dest).splits["train"].images == 26


@every("lost, named", [("train/leaf", "class leaf of train"), ("val/*", "no image of val")])
def test_a_class_that_lost_all_its_images_is_an_error(source, tmp_path, monkeypatch, lost, named):
    for path in source.glob(f"{lost}/*"):
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match=named):
        prepared(monkeypatch, source, tmp_path / "set", "--bad-images", "skip")
    assert not (tmp_path / "set" / "index.json").exists()


def test_a_class_may_be_missing_from_the_validation_images(source, tmp_path, monkeypatch):
    for path in source.glob("val/leaf/*"):
        path.write_bytes(b"no image")
    dest = prepared(monkeypatch, source, tmp_path / "set", "--bad-images", "skip")
    assert set(Prepared(dest, SIZE).splits["val"].labels.tolist()) == {0, 2}
    assert prepare.main(["--check", str(dest), "--workers", "0"]) == 0


def test_a_shard_whose_images_are_all_unreadable_is_an_empty_tar(source, tmp_path, monkeypatch):
    split = Prepared(prepared(monkeypatch, source, tmp_path / "whole"), SIZE).splits["train"]
    for image in np.flatnonzero(split.columns.shard == 2):
        (source / "train" / split.names[image]).write_bytes(b"no image")
    dest = prepared(monkeypatch, source, tmp_path / "set", "--bad-images", "skip")
    assert [shard.images for shard in read_index(dest).splits["train"].shards] == [10, 10, 0]
    assert (
        len(Prepared(dest, SIZE).splits["train"]) == 20 and prepare.main(["--check", str(dest), "--workers", "0"]) == 0
    )
    with tarfile.open(dest / "train-00002.tar") as tar:
        assert tar.getmembers() == []


def test_names_that_are_no_utf8_and_bad_are_listed(source, tmp_path, monkeypatch):
    name = os.fsdecode(b"\xff\xe9.jpg")
    (source / "train" / "leaf" / name).write_bytes(b"no image")
    dest = prepared(monkeypatch, source, tmp_path / "set", "--bad-images", "skip")
    assert read_index(dest).splits["train"].skipped[0].name == "leaf/\\xff\\xe9.jpg"


def test_a_broken_archive_is_named_and_makes_nothing(tmp_path):
    make_ilsvrc2012(tmp_path / "source")
    os.truncate(tmp_path / "source" / "ILSVRC2012_img_train.tar", 5000)
    assert "ILSVRC2012_img_train.tar" in refused(tmp_path / "source", tmp_path / "set")
    assert not (tmp_path / "set").exists()


@pytest.mark.process
def test_progress_counts_every_image_that_is_left_to_do(source, tmp_path, monkeypatch):
    interrupted(monkeypatch, source, tmp_path / "set", 13)
    counts = []

    class Bar:
        def __init__(self, what, total):
            counts.append(total)

        def __enter__(self):
            return counts.append

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(build, "progress", Bar)
    prepared(monkeypatch, source, tmp_path / "set", workers=2)
    assert counts[0] == 32 and sum(counts[1:]) == 32
