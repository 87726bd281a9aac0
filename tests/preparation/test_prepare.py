"""Making a prepared set: the same bytes however it is made; wrong arguments and wrong places are refused."""

import json
import os
import tarfile

import numpy as np
import pytest
from inner_cases import every
from make_archives import IDS, make_cifar10, make_ilsvrc2010, make_ilsvrc2012, make_synset_tars
from PIL import Image
from prepared_sets import PER_SHARD, SIZE, files, interrupted, prepared, refused, sign_json

from alexnet_mp import prepare
from alexnet_mp.data.prepared import Prepared
from alexnet_mp.data.prepared_format import read_index
from alexnet_mp.data.resize import stored_picture
from alexnet_mp.preparation import shards, sources
from alexnet_mp.system.errors import UserError


@pytest.mark.process
@every("options", [[], ["--raw"]], ids=["jpeg", "raw"])
def test_any_number_of_processes_makes_the_same_bytes(source, tmp_path, monkeypatch, options):
    before = files(prepared(monkeypatch, source, tmp_path / "0", *options))
    for workers in (0, 1, 3):
        assert files(prepared(monkeypatch, source, tmp_path / f"again-{workers}", *options, workers=workers)) == before
    os.rename(source, tmp_path / "elsewhere")
    os.mkdir(tmp_path / "in")
    place = os.rename(tmp_path / "elsewhere", tmp_path / "in" / "source") or tmp_path / "in" / "source"
    assert files(prepared(monkeypatch, place, tmp_path / "moved", *options)) == before
    assert not any(str(tmp_path).encode() in content for content in before.values())


def test_the_shards_are_plain_tars_in_webdatasets_naming(source, tmp_path, monkeypatch):
    dest = prepared(monkeypatch, source, tmp_path / "set")
    split, keys = Prepared(dest, SIZE).splits["train"], []
    for number in range(3):
        with tarfile.open(dest / f"train-{number:05d}.tar") as tar:
            members = tar.getmembers()
            for image, label in zip(members[::2], members[1::2], strict=True):
                key = image.name.removesuffix(".jpg")
                assert len(key) == 8 and label.name == f"{key}.cls"
                assert tar.extractfile(image).read() == split.jpeg(int(key)).tobytes()
                assert tar.extractfile(label).read() == b"%d" % split.labels[int(key)]
                keys.append(int(key))
            facts = {(member.mtime, member.uid, member.gid, member.uname, member.mode) for member in members}
            assert facts == {(0, 0, 0, "", 0o644)}
            assert members[0].pax_headers == {}
        assert (dest / f"train-{number:05d}.tar").stat().st_size % 10240 == 0
    assert sorted(keys) == list(range(27)) and keys != sorted(keys)
    assert all(
        len({split.labels[key] for key in keys[start : start + 9]}) == 3 for start in (0, 9, 18)
    )  # mixed classes


@every("options, kind", [([], "jpg"), (["--raw"], "ppm")])
def test_webdataset_reads_it(source, tmp_path, monkeypatch, options, kind):
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    dest = prepared(monkeypatch, source, tmp_path / "set", *options)
    split, shards_of = Prepared(dest, SIZE).splits["train"], str(dest / "train-{00000..00002}.tar")
    samples = list(webdataset.WebDataset(shards_of, shardshuffle=False).decode("rgb8").to_tuple("__key__", kind, "cls"))
    assert sorted(int(key) for key, _, _ in samples) == list(range(27))
    for key, picture, label in samples:
        assert np.array_equal(picture, split.read(int(key))) and label == split.labels[int(key)]


@pytest.mark.process
@every("options", [[], ["--raw"]], ids=["jpeg", "raw"])
@every("workers", [0, 2])
def test_statistics_are_those_of_the_pictures_as_training_reads_them(source, tmp_path, monkeypatch, options, workers):
    data = Prepared(prepared(monkeypatch, source, tmp_path / "set", *options, workers=workers), SIZE)
    split = data.splits["train"]
    pictures = np.stack([split.read(image) for image in range(len(split))]).astype(np.float64)
    assert data.statistics.mean.dtype == np.float64 and np.abs(data.statistics.mean - pictures.mean(0)).max() <= 1e-9
    values, vectors = np.linalg.eigh(np.cov(pictures.reshape(-1, 3).T / 255, bias=True))
    assert np.abs(data.statistics.eigenvalues - values).max() <= 1e-9 * values.max()
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(0), range(3)])
    assert np.abs(data.statistics.eigenvectors - vectors).max() <= 1e-9


@pytest.mark.process
@every(
    "make",
    [
        make_ilsvrc2012,
        make_ilsvrc2010,
        make_synset_tars,
        make_cifar10,
        lambda root: make_cifar10(root, "python", archive=True),
    ],
    ids=["ILSVRC-2012", "ILSVRC-2010", "tars by wnid", "CIFAR-10", "CIFAR-10 for Python"],
)
def test_every_source_comes_out_as_it_went_in(tmp_path, monkeypatch, make):
    (tmp_path / "source").mkdir()
    place = make(tmp_path / "source") or tmp_path / "source"
    expected = sources.find(place)
    dest = prepared(monkeypatch, place, tmp_path / "set", "--raw", size=24, workers=2)
    dataset, index = Prepared(dest, 24, tuple(expected.splits)), read_index(dest)
    assert dataset.classes == expected.classes and dataset.class_names == expected.class_names
    assert index.source == expected.kind.replace(str(place), place.name) and str(tmp_path) not in index.source
    for name, items in expected.splits.items():
        split = dataset.splits[name]
        assert list(split.names) == [item.name for item in items] and split.labels.tolist() == [
            item.label for item in items
        ]
        for image, item in enumerate(items):
            assert np.array_equal(split.read(image), sources.picture(item, 24))
    assert prepare.main(["--check", str(dest), "--workers", "0"]) == 0


def test_the_competitions_numbers_of_the_classes_are_kept(source, tmp_path, monkeypatch, capsys):
    """Also in a set from before there were any, by the same command; it stays the same set. Others have none."""
    make_ilsvrc2012(tmp_path / "archives")
    dest = prepared(monkeypatch, tmp_path / "archives", tmp_path / "set", size=24)
    assert read_index(dest).ids == IDS and Prepared(dest, 24).ids == list(IDS)
    before, fingerprint = files(dest), read_index(dest).fingerprint()
    sign_json(dest, lambda index: index.pop("ids"))
    assert Prepared(dest, 24).ids is None and read_index(dest).fingerprint() == fingerprint
    capsys.readouterr()
    prepared(monkeypatch, tmp_path / "archives", dest, size=24)
    output = capsys.readouterr().out
    assert files(dest) == before and "numbers in the competition were added" in output and "complete" in output
    prepared(monkeypatch, tmp_path / "archives", dest, size=24)
    assert files(dest) == before and "were added" not in capsys.readouterr().out
    others = prepared(monkeypatch, source, tmp_path / "others")
    assert b'"ids"' not in files(others)["index.json"] and Prepared(others, SIZE).ids is None


def test_validation_images_are_cut_where_they_are_asked_for(source, tmp_path, monkeypatch):
    dest = prepared(monkeypatch, source / "train", tmp_path / "set", "--val-fraction", "0.3")
    assert [split.images for split in read_index(dest).splits.values()] == [18, 9]
    assert "--val-fraction 1.5" in refused(source, tmp_path / "other", "--val-fraction", "1.5")


@pytest.mark.process
def test_size_and_quality_come_from_the_recipe_or_the_command(source, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "IMAGES_PER_SHARD", PER_SHARD)

    def index(name, *options):
        assert prepare.main([str(source), str(tmp_path / name), "--workers", "2", *options]) == 0
        return read_index(tmp_path / name)

    record = index("mini", "--recipe", "mini", "--quality", "60")
    assert (record.stored_size, record.encoding, record.jpeg_quality) == (112, "jpeg", 60)
    record = index("paper", "--raw")
    assert (record.stored_size, record.encoding, record.jpeg_quality) == (256, "raw", None)
    record = index("small", "--size", "8")
    assert (record.stored_size, record.encoding, record.jpeg_quality) == (8, "jpeg", 95)


@every(
    "options, named",
    [
        (["--size", "0"], "--size 0"),
        (["--size", "5000"], "4096"),
        (["--quality", "0"], "1 to 100"),
        (["--quality", "101"], "1 to 100"),
        (["--raw", "--quality", "90"], "raw pixels have none"),
        (["--workers", "-1"], "--workers -1"),
    ],
)
def test_impossible_settings_are_refused(source, tmp_path, options, named):
    with pytest.raises(UserError, match=named):
        prepare.main([str(source), str(tmp_path / "set"), *options])
    assert not (tmp_path / "set").exists()


def test_arguments_that_make_no_sense_are_refused(source, tmp_path):
    for arguments in ([], [str(source)], ["--check", str(tmp_path), str(source)]):
        with pytest.raises(UserError, match="SRC"):
            prepare.main(arguments)


@every("arguments, word", [(["", "set"], "SRC"), (["source", ""], "DEST")])
def test_an_empty_path_is_not_here(arguments, word):
    with pytest.raises(UserError, match=f"{word} is empty"):
        prepare.main(arguments)


def test_a_set_that_is_there_already_is_left_as_it_is(source, tmp_path, monkeypatch, capsys):
    dest = prepared(monkeypatch, source, tmp_path / "set")
    before = {path.name: path.stat().st_mtime_ns for path in dest.iterdir()}
    prepared(monkeypatch, source, dest)
    assert "complete" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in dest.iterdir()} == before


def other_name(source):
    (source / "train" / "leaf" / "a.png").rename(source / "train" / "leaf" / "b.png")


def one_less(source):
    (source / "val" / "leaf" / "3.jpg").unlink()


def other_class(source):
    for split in ("train", "val"):
        (source / split / "leaf").rename(source / split / "moss")


@pytest.mark.run
@every("finished", [True, False])
@every(
    "options, change, named",
    [
        (["--size", "40"], None, "size: 48, now 40"),
        (["--quality", "90"], None, "quality: 95, now 90"),
        (["--raw"], None, "quality: 95, now raw"),
        ([], one_less, "val images: 15, now 14"),
        ([], other_class, "classes: not the same"),
        ([], other_name, "images"),
    ],
)
def test_a_set_of_something_else_is_not_gone_on_with(source, tmp_path, monkeypatch, finished, options, change, named):
    dest = tmp_path / "set"
    if finished:
        prepared(monkeypatch, source, dest)
    else:
        interrupted(monkeypatch, source, dest, 12)
    before = every_file(dest)
    assert len(before) > 3
    if change:
        change(source)
    with pytest.raises(UserError, match=named) as refusal:
        prepare.main([str(source), str(dest), "--size", "48", "--workers", "0", *options])
    assert "another source or other settings" in str(refusal.value) and "another DEST" in str(refusal.value)
    assert every_file(dest) == before


def test_a_set_that_was_begun_with_another_way_to_reduce_pictures_is_not_gone_on_with(source, tmp_path, monkeypatch):
    dest = tmp_path / "set"
    interrupted(monkeypatch, source, dest, 12)
    (plan,) = dest.rglob("plan.json")
    fields = json.loads(plan.read_bytes())
    assert fields.pop("reduced") == "by areas"
    plan.write_text(json.dumps(fields))
    before = every_file(dest)
    with pytest.raises(UserError, match=r"\(pictures are reduced by Pillow's box filter, now by areas\)"):
        prepare.main([str(source), str(dest), "--size", "48", "--workers", "0"])
    assert every_file(dest) == before


def every_file(directory):
    """{path: content} of all that lies in a directory, at any depth."""
    return {path: path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def test_a_directory_of_something_else_is_refused(source, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("dear")
    assert "not empty" in refused(source, tmp_path / "home") and files(tmp_path / "home") == {"letter": b"dear"}
    assert "not a directory" in refused(source, tmp_path / "home" / "letter")
    (tmp_path / "work" / "work").mkdir(parents=True)
    (tmp_path / "work" / "work" / "thesis").write_text("dear")
    assert "not empty" in refused(source, tmp_path / "work")
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "index.json").write_text("{}")
    assert "index.json" in refused(source, tmp_path / "web") and files(tmp_path / "web") == {"index.json": b"{}"}


def test_a_destination_within_the_source_is_refused(source, tmp_path):
    (tmp_path / "link").symlink_to(source)
    for dest in (
        source,
        source / "set",
        source / "train" / "set",
        tmp_path / "link" / "set",
        source / ".." / "source" / "set",
    ):
        assert "lies in" in refused(source, dest)
    assert {path.name for path in source.iterdir()} == {"train", "val"}


def test_a_directory_that_cannot_be_made_is_named(source):
    assert "/proc/set" in refused(source, "/proc/set")


def test_a_squeezed_set_says_so_and_is_another_one(source, tmp_path, monkeypatch, capsys):
    """--warp: the pictures are squeezed, the index says it, a set of the other kind is not taken for it."""
    warp_dest = prepared(monkeypatch, source, tmp_path / "squeezed", "--raw", "--warp", workers=2)
    plain_dest = prepared(monkeypatch, source, tmp_path / "plain", "--raw")
    split = Prepared(warp_dest, SIZE).splits["train"]
    for number, name in enumerate(split.names):
        with Image.open(source / "train" / name) as image:
            assert np.array_equal(split.read(number), stored_picture(image, SIZE, warp=True)), name
    descriptions = [Prepared(place, SIZE).description.replace(str(place), "") for place in (warp_dest, plain_dest)]
    assert read_index(warp_dest).squeezed and ["squeezed" in text for text in descriptions] == [True, False]
    assert not read_index(plain_dest).squeezed and b"squeezed" not in (plain_dest / "index.json").read_bytes()
    assert read_index(plain_dest).fingerprint() != read_index(warp_dest).fingerprint()
    capsys.readouterr()
    prepared(monkeypatch, source, warp_dest, "--raw", "--warp")
    assert "there already, and complete" in capsys.readouterr().out
    for place, options in ((plain_dest, ["--warp"]), (warp_dest, [])):
        with pytest.raises(UserError, match="other settings .pictures"):
            prepared(monkeypatch, source, place, "--raw", *options)
