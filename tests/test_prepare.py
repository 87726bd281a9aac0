"""Making a prepared set: the same bytes however it is made, through every kind of interruption; nothing half done counts."""
import errno
import os
import random
import resource
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from make_archives import make_cifar10, make_ilsvrc2010, make_ilsvrc2012, make_synset_tars
from PIL import Image
from prepared_sets import PER_SHARD, SIZE, files, make_source, prepared

from alexnet_mp import archives, prepare, shards, sources
from alexnet_mp.errors import UserError
from alexnet_mp.prepared import Prepared
from alexnet_mp.prepared_format import read_index

COMMAND = [sys.executable, "-m", "alexnet_mp.prepare"]
OPTIONS = ["--size", "64", "--workers", "2"]  # of the command with many images


@pytest.fixture
def source(tmp_path):
    return make_source(tmp_path / "source")


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """(a folder of 2,300 small images, the files of the set that is made of it without interruption)."""
    root, pixels = tmp_path_factory.mktemp("many"), np.random.default_rng(2)
    for split, count in (("train", 1050), ("val", 100)):
        for name in ("a", "b"):
            (root / "source" / split / name).mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(pixels.integers(0, 256, (9, 9, 3), np.uint8).repeat(4, 0).repeat(4, 1))
                image.save(root / "source" / split / name / f"{number}.jpg")
    return root / "source", complete(root / "source", root / "set")


def complete(source, dest):
    """What the set of many images is when it is done, or gone on with, in this process, which saves a start."""
    assert prepare.main([str(source), str(dest), *OPTIONS]) == 0
    return files(dest)


def refused(*arguments):
    with pytest.raises(UserError) as raised:
        prepare.main([*map(str, arguments), "--size", str(SIZE), "--workers", "0"])
    assert "\n" not in str(raised.value)
    return str(raised.value)


def leftovers(dest):
    """Names of the shards, parts and unfinished files of a set that isn't finished."""
    found = {path.name for path in [*dest.iterdir(), *(dest / "work").iterdir()]}
    return sorted(found - {"work", "lock", "plan.json"})


@pytest.mark.parametrize("options", [[], ["--raw"]], ids=["jpeg", "raw"])
def test_any_number_of_processes_makes_the_same_bytes(source, tmp_path, monkeypatch, options):
    first = files(prepared(monkeypatch, source, tmp_path / "0", *options))
    for workers in (0, 1, 3):
        assert files(prepared(monkeypatch, source, tmp_path / f"again-{workers}", *options, workers=workers)) == first
    os.rename(source, tmp_path / "elsewhere")
    os.mkdir(tmp_path / "in")
    moved = os.rename(tmp_path / "elsewhere", tmp_path / "in" / "source") or tmp_path / "in" / "source"
    assert files(prepared(monkeypatch, moved, tmp_path / "moved", *options)) == first
    assert not any(str(tmp_path).encode() in content for content in first.values())


def test_the_shards_are_plain_tars_in_webdatasets_naming(source, tmp_path, monkeypatch):
    dest = prepared(monkeypatch, source, tmp_path / "set")
    split, seen = Prepared(dest, SIZE).splits["train"], []
    for number in range(3):
        with tarfile.open(dest / f"train-{number:05d}.tar") as tar:
            members = tar.getmembers()
            for image, label in zip(members[::2], members[1::2], strict=True):
                key = image.name.removesuffix(".jpg")
                assert len(key) == 8 and label.name == f"{key}.cls"
                assert tar.extractfile(image).read() == split.jpeg(int(key)).tobytes()
                assert tar.extractfile(label).read() == b"%d" % split.labels[int(key)]
                seen.append(int(key))
            facts = {(member.mtime, member.uid, member.gid, member.uname, member.mode) for member in members}
            assert facts == {(0, 0, 0, "", 0o644)}
            assert members[0].pax_headers == {}
        assert (dest / f"train-{number:05d}.tar").stat().st_size % 10240 == 0
    assert sorted(seen) == list(range(27)) and seen != sorted(seen)
    assert all(len({split.labels[key] for key in seen[start:start + 9]}) == 3 for start in (0, 9, 18))  # mixed classes


@pytest.mark.parametrize("options, kind", [([], "jpg"), (["--raw"], "ppm")])
def test_webdataset_reads_it(source, tmp_path, monkeypatch, options, kind):
    import webdataset
    dest = prepared(monkeypatch, source, tmp_path / "set", *options)
    split, shards_of = Prepared(dest, SIZE).splits["train"], str(dest / "train-{00000..00002}.tar")
    samples = list(webdataset.WebDataset(shards_of, shardshuffle=False).decode("rgb8").to_tuple("__key__", kind, "cls"))
    assert sorted(int(key) for key, _, _ in samples) == list(range(27))
    for key, picture, label in samples:
        assert np.array_equal(picture, split.read(int(key))) and label == split.labels[int(key)]


@pytest.mark.parametrize("options", [[], ["--raw"]], ids=["jpeg", "raw"])
@pytest.mark.parametrize("workers", [0, 2])
def test_statistics_are_those_of_the_pictures_as_training_reads_them(source, tmp_path, monkeypatch, options, workers):
    found = Prepared(prepared(monkeypatch, source, tmp_path / "set", *options, workers=workers), SIZE)
    split = found.splits["train"]
    pictures = np.stack([split.read(image) for image in range(len(split))]).astype(np.float64)
    assert found.statistics.mean.dtype == np.float64 and np.abs(found.statistics.mean - pictures.mean(0)).max() <= 1e-9
    values, vectors = np.linalg.eigh(np.cov(pictures.reshape(-1, 3).T / 255, bias=True))
    assert np.abs(found.statistics.eigenvalues - values).max() <= 1e-9 * values.max()
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(0), range(3)])
    assert np.abs(found.statistics.eigenvectors - vectors).max() <= 1e-9


@pytest.mark.parametrize("make", [
    make_ilsvrc2012, make_ilsvrc2010, make_synset_tars, make_cifar10, lambda root: make_cifar10(root, "python", archive=True)],
    ids=["ILSVRC-2012", "ILSVRC-2010", "tars by wnid", "CIFAR-10", "CIFAR-10 for Python"])
def test_every_source_comes_out_as_it_went_in(tmp_path, monkeypatch, make):
    (tmp_path / "source").mkdir()
    place = make(tmp_path / "source") or tmp_path / "source"
    expected = sources.find(place)
    dest = prepared(monkeypatch, place, tmp_path / "set", "--raw", size=24, workers=2)
    found, index = Prepared(dest, 24, tuple(expected.splits)), read_index(dest)
    assert found.classes == expected.classes and found.class_names == expected.class_names
    assert index.source == expected.kind.replace(str(place), place.name) and str(tmp_path) not in index.source
    for name, items in expected.splits.items():
        split = found.splits[name]
        assert list(split.names) == [item.name for item in items] and split.labels.tolist() == [item.label for item in items]
        for image, item in enumerate(items):
            assert np.array_equal(split.read(image), sources.picture(item, 24))
    assert prepare.main(["--check", str(dest), "--workers", "0"]) == 0


def test_validation_images_are_cut_where_they_are_asked_for(source, tmp_path, monkeypatch):
    dest = prepared(monkeypatch, source / "train", tmp_path / "set", "--val-fraction", "0.3")
    assert [split.images for split in read_index(dest).splits.values()] == [18, 9]
    assert "--val-fraction 1.5" in refused(source, tmp_path / "other", "--val-fraction", "1.5")


def test_size_and_quality_come_from_the_recipe_or_the_command(source, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "IMAGES_PER_SHARD", PER_SHARD)

    def index(name, *options):
        assert prepare.main([str(source), str(tmp_path / name), "--workers", "2", *options]) == 0
        return read_index(tmp_path / name)

    made = index("mini", "--recipe", "mini", "--quality", "60")
    assert (made.stored_size, made.encoding, made.jpeg_quality) == (112, "jpeg", 60)
    made = index("paper", "--raw")
    assert (made.stored_size, made.encoding, made.jpeg_quality) == (256, "raw", None)
    made = index("small", "--size", "8")
    assert (made.stored_size, made.encoding, made.jpeg_quality) == (8, "jpeg", 95)


@pytest.mark.parametrize("options, named", [
    (["--size", "0"], "--size 0"), (["--size", "5000"], "4096"), (["--quality", "0"], "1 to 100"),
    (["--quality", "101"], "1 to 100"),
    (["--raw", "--quality", "90"], "raw pixels have none"), (["--workers", "-1"], "--workers -1")])
def test_impossible_settings_are_refused(source, tmp_path, options, named):
    with pytest.raises(UserError, match=named):
        prepare.main([str(source), str(tmp_path / "set"), *options])
    assert not (tmp_path / "set").exists()


def test_arguments_that_make_no_sense_are_refused(source, tmp_path):
    for arguments in ([], [str(source)], ["--check", str(tmp_path), str(source)]):
        with pytest.raises(UserError, match="SRC"):
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


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("options, change, named", [
    (["--size", "40"], None, "size: 48, now 40"), (["--quality", "90"], None, "quality: 95, now 90"),
    (["--raw"], None, "quality: 95, now raw"), ([], one_less, "val images: 15, now 14"),
    ([], other_class, "classes: not the same"), ([], other_name, "images")])
def test_a_set_of_something_else_is_not_gone_on_with(source, tmp_path, monkeypatch, finished, options, change, named):
    dest = tmp_path / "set"
    if finished:
        prepared(monkeypatch, source, dest)
    else:
        interrupted(monkeypatch, source, dest, 12)
    before = files(dest)
    if change:
        change(source)
    with pytest.raises(UserError, match=named) as raised:
        prepare.main([str(source), str(dest), "--size", "48", "--workers", "0", *options])
    assert "another source or other settings" in str(raised.value) and "another DEST" in str(raised.value)
    assert files(dest) == before


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
    for dest in (source, source / "set", source / "train" / "set", tmp_path / "link" / "set", source / ".." / "source" / "set"):
        assert "lies in" in refused(source, dest)
    assert {path.name for path in source.iterdir()} == {"train", "val"}


def test_a_directory_that_cannot_be_made_is_named(source):
    assert "/proc/set" in refused(source, "/proc/set")


def interrupted(monkeypatch, source, dest, images, error=KeyboardInterrupt):
    """Begin a set and stop in the middle of image number `images`."""
    picture, count = sources.picture, 0

    def read(item, size):
        nonlocal count
        count += 1
        if count > images:
            raise error
        return picture(item, size)

    with monkeypatch.context() as patch:
        patch.setattr(sources, "picture", read)
        patch.setattr(shards, "IMAGES_PER_SHARD", PER_SHARD)
        return prepare.main([str(source), str(dest), "--size", str(SIZE), "--workers", "0"])


def test_what_was_done_is_kept_and_the_rest_is_done(source, tmp_path, monkeypatch, capsys):
    whole, dest = files(prepared(monkeypatch, source, tmp_path / "whole")), tmp_path / "set"
    for images in (0, 5, 13, 9, 1):  # of ten a shard, counted from each beginning
        assert interrupted(monkeypatch, source, dest, images) == 130
        captured = capsys.readouterr()
        assert captured.err == "stopped; the same command goes on from here\n"
        assert not [name for name in leftovers(dest) if "unfinished" in name] and not (dest / "index.json").exists()
    assert leftovers(dest) == ["train-00000.safetensors", "train-00000.tar"]
    before = (dest / "train-00000.tar").stat()
    prepared(monkeypatch, source, dest)
    assert "42 images of 3 classes in 5 shards; 10 are done already" in capsys.readouterr().out
    assert files(dest) == whole
    after = (dest / "train-00000.tar").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def cut_part(dest):
    part = dest / "work" / "train-00000.safetensors"
    os.truncate(part, part.stat().st_size - 1)


@pytest.mark.parametrize("damage", [
    cut_part, lambda dest: os.truncate(dest / "train-00000.tar", 512), lambda dest: (dest / "train-00000.tar").unlink(),
    lambda dest: (dest / "work" / "train-00000.safetensors").unlink(),
    lambda dest: os.truncate(dest / "work" / "train-00000.safetensors", 100),
    lambda dest: (dest / "work" / "train-00000.safetensors").write_bytes(b""),
    lambda dest: (dest / "work" / "train-00001.safetensors").write_bytes((dest / "work" / "train-00000.safetensors").read_bytes())
    and (dest / "train-00001.tar").write_bytes((dest / "train-00000.tar").read_bytes()),
    lambda dest: (dest / "train-00002.tar.unfinished").write_bytes(b"half"),
    lambda dest: (dest / "work" / "plan.json.unfinished").write_bytes(b"half"),
], ids=["cut part", "cut shard", "no shard", "no part", "cut header", "empty part", "another's part", "half a shard",
        "half a plan"])
def test_what_is_not_whole_is_done_again(source, tmp_path, monkeypatch, damage):
    whole, dest = files(prepared(monkeypatch, source, tmp_path / "whole")), tmp_path / "set"
    interrupted(monkeypatch, source, dest, 13)
    damage(dest)
    assert files(prepared(monkeypatch, source, dest)) == whole


def test_an_end_between_the_index_and_the_removal_of_the_parts(source, tmp_path, monkeypatch, capsys):
    dest, whole = tmp_path / "set", files(prepared(monkeypatch, source, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_remove_work", lambda work: None)
        prepared(monkeypatch, source, dest)
    assert (dest / "work").exists() and Prepared(dest, SIZE)
    prepared(monkeypatch, source, dest)
    assert files(dest) == whole and "complete" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["train.safetensors", "statistics.safetensors", "index.json"])
def test_an_end_before_a_file_of_the_index(source, tmp_path, monkeypatch, name):
    dest, whole = tmp_path / "set", files(prepared(monkeypatch, source, tmp_path / "whole"))
    rename = os.rename

    def stop(old, new):
        if Path(new) == dest / name:
            raise KeyboardInterrupt
        rename(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", stop)
        patch.setattr(shards, "IMAGES_PER_SHARD", PER_SHARD)
        assert prepare.main([str(source), str(dest), "--size", str(SIZE), "--workers", "0"]) == 130
    assert not (dest / "index.json").exists() and "not finished" in str(pytest.raises(UserError, Prepared, dest, SIZE).value)
    assert files(prepared(monkeypatch, source, dest)) == whole


def test_a_shards_part_is_on_the_disk_after_the_shard_and_the_index_last(source, tmp_path, monkeypatch):
    """Each file is synced before it gets its name, and the name before the next file is begun: a power cut can't mix them."""
    log, rename, sync = [], os.rename, os.fsync

    def name_of(descriptor):
        return Path(os.readlink(f"/proc/self/fd/{descriptor}")).name

    monkeypatch.setattr(os, "rename", lambda old, new: (log.append(("rename", Path(new).name)), rename(old, new))[1])
    monkeypatch.setattr(os, "fsync", lambda descriptor: (log.append(("sync", name_of(descriptor))), sync(descriptor))[1])
    prepared(monkeypatch, source, tmp_path / "set", per_shard=40)
    order = [("plan.json", "work"), ("train-00000.tar", "set"), ("train-00000.safetensors", "work"), ("val-00000.tar", "set"),
             ("val-00000.safetensors", "work"), ("train.safetensors", "set"), ("val.safetensors", "set"),
             ("statistics.safetensors", "set"), ("index.json", "set")]
    assert log == [step for name, folder in order
                   for step in (("sync", f"{name}.unfinished"), ("rename", name), ("sync", folder))]


def begun(source, dest):
    """The command as a process of its own, with the group of its workers, that has begun to make shards."""
    process = subprocess.Popen([*COMMAND, source, dest, *OPTIONS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)
    while "shards" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    return process


def running(group):
    """The processes of a group that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, of_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(of_group) == group and state not in "ZX":
                found.append(path.parent.name)
    return found


def test_killed_at_any_moment_the_same_command_goes_on(many, tmp_path):
    source, whole = many
    dest, moments = tmp_path / "set", random.Random(os.getpid())
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        process = begun(source, dest)
        time.sleep(moments.uniform(0, 0.5))
        process.send_signal(number)  # to the parent alone: its workers have to notice
        process.communicate()
        assert process.returncode in ((130, 0) if number == signal.SIGTERM else (-number, 0))
        assert number == signal.SIGKILL or not list(dest.glob("*.unfinished"))
        if not (dest / "index.json").exists():
            with pytest.raises(UserError, match="not finished"):
                Prepared(dest, 64)
    assert complete(source, dest) == whole
    assert not running(process.pid)


def test_ctrl_c_ends_all_processes_and_says_that_the_same_command_goes_on(many, tmp_path):
    source, whole = many
    process = begun(source, tmp_path / "set")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the workers too
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "stopped; the same command goes on from here\n")
    assert not running(process.pid) and not [name for name in leftovers(tmp_path / "set") if "unfinished" in name]
    assert complete(source, tmp_path / "set") == whole


def test_ctrl_c_twice_ends_it_as_fast(many, tmp_path):
    source, whole = many
    process = begun(source, tmp_path / "set")
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.02)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors and not running(process.pid)
    assert complete(source, tmp_path / "set") == whole


def test_what_the_machine_does_wrong_is_no_bad_image(source, tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(archives.os, "pread", fails)
    message = refused(source, tmp_path / "set", "--bad-images", "skip", "--workers", "0")
    assert "Input/output error" in message and not (tmp_path / "set" / "index.json").exists()


@pytest.mark.parametrize("arguments, word", [(["", "set"], "SRC"), (["source", ""], "DEST")])
def test_an_empty_path_is_not_here(arguments, word):
    with pytest.raises(UserError, match=f"{word} is empty"):
        prepare.main(arguments)


def test_two_at_once_and_the_second_is_refused(many, tmp_path, monkeypatch):
    source, whole = many
    process = begun(source, tmp_path / "set")
    os.killpg(process.pid, signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "SECONDS_FOR_LOCK", 0.2)
        with pytest.raises(UserError, match="another prepare is writing"):
            complete(source, tmp_path / "set")
    os.kill(process.pid, signal.SIGKILL)  # its workers, stopped, are killed with it; until then they keep the lock
    process.communicate()
    assert complete(source, tmp_path / "set") == whole


def test_a_lock_file_without_an_owner_is_no_obstacle(source, tmp_path, monkeypatch):
    (tmp_path / "set" / "work").mkdir(parents=True)
    (tmp_path / "set" / "work" / "lock").write_text("")
    assert (prepared(monkeypatch, source, tmp_path / "set") / "index.json").exists()


def test_a_worker_that_is_killed_is_one_line(source, tmp_path, monkeypatch):
    whole, parent, picture = files(prepared(monkeypatch, source, tmp_path / "whole")), os.getpid(), sources.picture

    def read(item, size):
        if item.name == "sky/3.jpg" and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return picture(item, size)

    with monkeypatch.context() as patch:
        patch.setattr(sources, "picture", read)
        with pytest.raises(UserError, match="SIGKILL.*fewer --workers") as raised:
            prepared(patch, source, tmp_path / "set", workers=2)
    assert "\n" not in str(raised.value) and ".tar" in str(raised.value)
    assert not [name for name in leftovers(tmp_path / "set") if "unfinished" in name]
    assert files(prepared(monkeypatch, source, tmp_path / "set")) == whole


def test_a_quota_is_named_and_nothing_of_the_shard_is_left(many, tmp_path):
    source, whole = many
    done = subprocess.run([*COMMAND, source, tmp_path / "set", *OPTIONS], capture_output=True, text=True,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000)))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "train-0000" in done.stderr and "File too large" in done.stderr and "nothing of it counts" in done.stderr
    assert not any(name.startswith("train") for name in leftovers(tmp_path / "set"))
    assert complete(source, tmp_path / "set") == whole


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def remount(place, option):
    subprocess.run(["mount", "-o", f"remount,{option}", place], check=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_is_named_and_with_room_it_goes_on(source, tmp_path, monkeypatch, small_disk, workers):
    whole, dest = files(prepared(monkeypatch, source, tmp_path / "whole")), small_disk / "set"
    with pytest.raises(UserError, match="No space left on device; nothing of it counts as done") as raised:
        prepared(monkeypatch, source, dest, workers=workers)
    assert "\n" not in str(raised.value) and str(dest) in str(raised.value)
    shards_left = [name.split(".")[0] for name in leftovers(dest)]
    assert not [name for name in leftovers(dest) if "unfinished" in name]
    assert all(shards_left.count(name) == 2 for name in shards_left)  # a shard with its part
    remount(small_disk, "size=10m")
    assert files(prepared(monkeypatch, source, dest, workers=workers)) == whole


def test_a_read_only_disk_is_named(source, tmp_path, monkeypatch, small_disk):
    remount(small_disk, "ro")
    assert "Read-only file system" in refused(source, small_disk / "set")
    remount(small_disk, "rw,size=10m")
    interrupted(monkeypatch, source, small_disk / "set", 13)
    remount(small_disk, "ro")
    assert "Read-only file system" in refused(source, small_disk / "set")
    remount(small_disk, "rw")
    dest = prepared(monkeypatch, source, small_disk / "set")
    remount(small_disk, "ro")
    assert prepared(monkeypatch, source, dest) and Prepared(dest, SIZE).splits["val"].read(0) is not None


@pytest.mark.parametrize("name", ["train-00001.tar", "train-00001.safetensors", "statistics.safetensors", "index.json"])
def test_a_disk_error_is_named_with_its_file(source, tmp_path, monkeypatch, name):
    """At the end of every file's writing: what the disk refuses then is not there, nor the shard whose part it is."""
    whole, sync = files(prepared(monkeypatch, source, tmp_path / "whole")), os.fsync

    def fail(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(f"/{name}.unfinished"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(UserError, match=f"{name}: Input/output error; nothing of it counts"):
            prepared(patch, source, tmp_path / "set")
    assert not [left for left in leftovers(tmp_path / "set") if name.split(".")[0] in left]
    assert files(prepared(monkeypatch, source, tmp_path / "set")) == whole


def break_image(source, name="train/leaf/3.jpg"):
    """Cut an image short. Returns its whole content."""
    content = (source / name).read_bytes()
    (source / name).write_bytes(content[:300])
    return content


@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_unreadable_image_stops_it(source, tmp_path, monkeypatch, workers):
    whole, content = files(prepared(monkeypatch, source, tmp_path / "whole")), break_image(source)
    with pytest.raises(UserError, match="cannot read image .*train/leaf/3.jpg: .*runcated.*--bad-images skip"):
        prepared(monkeypatch, source, tmp_path / "set", workers=workers)
    assert not (tmp_path / "set" / "index.json").exists()
    assert not [name for name in leftovers(tmp_path / "set") if "unfinished" in name]
    (source / "train/leaf/3.jpg").write_bytes(content)
    assert files(prepared(monkeypatch, source, tmp_path / "set", workers=workers)) == whole  # mended, the same command goes on


def test_unreadable_images_are_left_out_and_listed(source, tmp_path, monkeypatch, capsys):
    whole = Prepared(prepared(monkeypatch, source, tmp_path / "whole", "--raw"), SIZE)
    break_image(source)
    (source / "val/sky/0.jpg").write_bytes(b"")
    dest = prepared(monkeypatch, source, tmp_path / "set", "--raw", "--bad-images", "skip", workers=2)
    printed = capsys.readouterr().out
    assert "2 unreadable images were left out" in printed and "left out: leaf/3.jpg: " in printed
    index, found = read_index(dest), Prepared(dest, SIZE)
    (first,), (second,) = index.splits["train"].skipped, index.splits["val"].skipped
    assert (first.number, first.name) == (9 + 3, "leaf/3.jpg") and "runcated" in first.reason
    assert (second.number, second.name) == (10, "sky/0.jpg") and second.reason and str(tmp_path) not in second.reason + first.reason
    for split, number in (("train", 12), ("val", 10)):
        ours, theirs = found.splits[split], whole.splits[split]
        kept = np.delete(np.arange(len(theirs)), number)
        assert len(ours) == len(kept) and np.array_equal(ours.labels, theirs.labels[kept])
        assert list(ours.names) == [theirs.names[image] for image in kept]
        assert np.array_equal(ours.columns.shard, theirs.columns.shard[kept])  # the others are in the shards that they would be in
        for image, before in enumerate(kept):
            assert np.array_equal(ours.read(image), theirs.read(before))
    keys = [member.name for shard in index.splits["train"].shards for member in tarfile.open(dest / shard.file)]
    assert "00000013.ppm" in keys and "00000012.ppm" not in keys and len(keys) == 52
    assert np.abs(found.statistics.mean - np.mean([found.splits["train"].read(image) for image in range(26)], 0)).max() < 1e-9
    assert prepare.main(["--check", str(dest), "--workers", "0"]) == 0
    prepared(monkeypatch, source, dest, "--raw")
    assert "2 unreadable images were left out" in capsys.readouterr().out


def test_skip_goes_on_where_stop_stopped_and_what_was_mended_is_taken_in(source, tmp_path, monkeypatch):
    whole, dest, content = files(prepared(monkeypatch, source, tmp_path / "whole")), tmp_path / "set", break_image(source)
    without = files(prepared(monkeypatch, source, tmp_path / "without", "--bad-images", "skip"))
    with pytest.raises(UserError, match="3.jpg"):
        prepared(monkeypatch, source, dest)
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr(shards, "IMAGES_PER_SHARD", PER_SHARD)
        skip = [str(source), str(dest), "--size", str(SIZE), "--workers", "0", "--bad-images", "skip"]
        assert prepare.main(skip) == 130  # all shards are there now, one of them without the image
    with pytest.raises(UserError, match="3.jpg"):  # not what "stop" allows
        prepared(monkeypatch, source, dest)
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        prepare.main(skip)
    (source / "train/leaf/3.jpg").write_bytes(content)
    assert files(prepared(monkeypatch, source, dest, "--bad-images", "skip")) == whole != without


def test_a_part_of_fewer_images_is_never_taken_for_that_of_the_whole_shard(source, tmp_path, monkeypatch):
    """A tar's size is rounded up, so that of the shard with one image more may be the same as before."""
    def stop(*_):
        raise KeyboardInterrupt

    def stopped(name, where):
        with monkeypatch.context() as patch:
            patch.setattr(shards, "IMAGES_PER_SHARD", PER_SHARD)
            patch.setattr(where, name, stop)
            patch.setattr(Path, "unlink", lambda path, **kwargs: None if path.suffix == ".tar" else unlink(path, **kwargs))
            assert prepare.main([str(source), str(dest), "--size", "4", "--workers", "0", "--bad-images", "skip"]) == 130

    content, dest, unlink = break_image(source), tmp_path / "set", Path.unlink
    stopped("_finish", prepare)
    (source / "train/leaf/3.jpg").write_bytes(content)
    stopped("save", shards)  # as by a kill after the tar, so that nothing could be tidied up
    break_image(source)
    prepared(monkeypatch, source, dest, "--bad-images", "skip", size=4)
    assert prepare.main(["--check", str(dest), "--workers", "0"]) == 0 and read_index(dest).splits["train"].images == 26


@pytest.mark.parametrize("lost, named", [("train/leaf", "class leaf of train"), ("val/*", "no image of val")])
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
    whole = Prepared(prepared(monkeypatch, source, tmp_path / "whole"), SIZE).splits["train"]
    for image in np.flatnonzero(whole.columns.shard == 2):
        (source / "train" / whole.names[image]).write_bytes(b"no image")
    dest = prepared(monkeypatch, source, tmp_path / "set", "--bad-images", "skip")
    assert [shard.images for shard in read_index(dest).splits["train"].shards] == [10, 10, 0]
    assert len(Prepared(dest, SIZE).splits["train"]) == 20 and prepare.main(["--check", str(dest), "--workers", "0"]) == 0
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


def test_progress_counts_every_image_that_is_left_to_do(source, tmp_path, monkeypatch):
    interrupted(monkeypatch, source, tmp_path / "set", 13)
    seen = []

    class Bar:
        def __init__(self, what, total):
            seen.append(total)

        def __enter__(self):
            return seen.append

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(prepare, "progress", Bar)
    prepared(monkeypatch, source, tmp_path / "set", workers=2)
    assert seen[0] == 32 and sum(seen[1:]) == 32
