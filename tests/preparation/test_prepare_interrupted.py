"""A set through every kind of interruption, two at once, failing disks: nothing half done counts, the same command goes
on."""

import errno
import os
import random
import resource
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from forked_process import command
from inner_cases import every
from PIL import Image
from prepared_sets import COMMAND, OPTIONS, PER_SHARD, SIZE, complete, files, interrupted, leftovers, prepared, refused
from safetensors import safe_open
from safetensors.numpy import save

from alexnet_mp import prepare
from alexnet_mp.data import file_ranges
from alexnet_mp.data.prepared import Prepared
from alexnet_mp.preparation import build, shards, sources
from alexnet_mp.system.errors import UserError


def test_what_was_done_is_kept_and_the_rest_is_done(source, tmp_path, monkeypatch, capsys):
    expected, dest = files(prepared(monkeypatch, source, tmp_path / "whole")), tmp_path / "set"
    for images in (0, 5, 13, 9, 1):  # of ten a shard, counted from each beginning
        assert interrupted(monkeypatch, source, dest, images) == 130
        output = capsys.readouterr()
        assert output.err == "stopped; the same command goes on from here\n"
        assert not [name for name in leftovers(dest) if "partial" in name] and not (dest / "index.json").exists()
    assert leftovers(dest) == ["train-00000.safetensors", "train-00000.tar"]
    before = (dest / "train-00000.tar").stat()
    prepared(monkeypatch, source, dest)
    assert "42 images of 3 classes in 5 shards; 10 are done already" in capsys.readouterr().out
    assert files(dest) == expected
    after = (dest / "train-00000.tar").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def replaced(place):
    """Another picture of the same name and size, as a viewer that turns pictures leaves it."""
    status = place.stat()
    other = np.random.default_rng(status.st_size).integers(0, 256, (30, 30, 3)).astype(np.uint8)
    Image.fromarray(other).save(place, quality=20)
    content = place.read_bytes()
    assert len(content) <= status.st_size
    place.write_bytes(content + bytes(status.st_size - len(content)))
    os.utime(place, ns=(0, status.st_mtime_ns + 1))


def test_a_picture_that_was_replaced_meanwhile_is_taken_in(source, tmp_path, monkeypatch):
    dest = tmp_path / "set"
    interrupted(monkeypatch, source, dest, 25)
    assert leftovers(dest) == [f"train-0000{n}.{kind}" for n in (0, 1) for kind in ("safetensors", "tar")]
    before = [(dest / f"train-0000{number}.tar").read_bytes() for number in (0, 1)]
    with safe_open(dest / "work" / "train-00000.safetensors", "np") as part:
        index = int(part.get_tensor("number")[0])
    replaced(sorted(source.glob("train/*/*"))[index])
    contents = files(prepared(monkeypatch, source, dest))
    assert contents["train-00000.tar"] != before[0] and contents["train-00001.tar"] == before[1]
    assert contents == files(prepared(monkeypatch, source, tmp_path / "whole"))


def test_a_finished_set_refuses_a_picture_that_was_replaced_by_its_name(source, tmp_path, monkeypatch, capsys):
    dest = prepared(monkeypatch, source, tmp_path / "set")
    prepared(monkeypatch, source, dest)
    assert "and complete: " in (text := capsys.readouterr().out) and "names, sizes and times of its images were" in text
    place = source / "val/leaf/2.jpg"
    status = place.stat()
    replaced(place)
    message = refused(source, dest)
    assert f"{place} has been replaced since (its time of change; the size is equal)" in message and "cp -p" in message
    os.truncate(place, 100)
    assert f"{place} has been replaced since ({status.st_size:,} bytes, now 100)" in refused(source, dest)


def test_sets_and_parts_of_former_versions_go_on(source, tmp_path, monkeypatch, capsys):
    """They know no sizes and times: a finished set says so, a shard is made again."""
    expected, dest = files(prepared(monkeypatch, source, tmp_path / "whole")), tmp_path / "set"
    (tmp_path / "whole" / "source.safetensors").unlink()
    prepared(monkeypatch, source, tmp_path / "whole")
    assert "the names of its images alone were compared" in capsys.readouterr().out
    interrupted(monkeypatch, source, dest, 25)
    for path in (dest / "work").glob("*.safetensors"):
        with safe_open(path, "np") as part:
            metadata, tensors = part.metadata(), {name: part.get_tensor(name) for name in part.keys()}
        del tensors["stamps"]
        path.write_bytes(save(tensors, metadata))
    assert files(prepared(monkeypatch, source, dest)) == expected


def cut_part(dest):
    part = dest / "work" / "train-00000.safetensors"
    os.truncate(part, part.stat().st_size - 1)


@pytest.mark.run
@every(
    "damage",
    [
        cut_part,
        lambda dest: os.truncate(dest / "train-00000.tar", 512),
        lambda dest: (dest / "train-00000.tar").unlink(),
        lambda dest: (dest / "work" / "train-00000.safetensors").unlink(),
        lambda dest: os.truncate(dest / "work" / "train-00000.safetensors", 100),
        lambda dest: (dest / "work" / "train-00000.safetensors").write_bytes(b""),
        lambda dest: (
            (dest / "work" / "train-00001.safetensors").write_bytes(
                (dest / "work" / "train-00000.safetensors").read_bytes()
            )
            and (dest / "train-00001.tar").write_bytes((dest / "train-00000.tar").read_bytes())
        ),
        lambda dest: (dest / "train-00002.tar.partial").write_bytes(b"half"),
        lambda dest: (dest / "work" / "plan.json.partial").write_bytes(b"half"),
    ],
    ids=[
        "cut part",
        "cut shard",
        "no shard",
        "no part",
        "cut header",
        "empty part",
        "another's part",
        "half a shard",
        "half a plan",
    ],
)
def test_what_is_not_whole_is_done_again(source, tmp_path, monkeypatch, damage):
    expected, dest = files(prepared(monkeypatch, source, tmp_path / "whole")), tmp_path / "set"
    interrupted(monkeypatch, source, dest, 13)
    damage(dest)
    assert files(prepared(monkeypatch, source, dest)) == expected


def test_an_end_between_the_index_and_the_removal_of_the_parts(source, tmp_path, monkeypatch, capsys):
    dest, expected = tmp_path / "set", files(prepared(monkeypatch, source, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(build, "_remove_work", lambda work: None)
        prepared(monkeypatch, source, dest)
    assert (dest / "work").exists() and Prepared(dest, SIZE)
    prepared(monkeypatch, source, dest)
    assert files(dest) == expected and "complete" in capsys.readouterr().out


@every("name", ["train.safetensors", "statistics.safetensors", "index.json"])
def test_an_end_before_a_file_of_the_index(source, tmp_path, monkeypatch, name):
    dest, expected = tmp_path / "set", files(prepared(monkeypatch, source, tmp_path / "whole"))
    rename = os.rename

    def stop(old, new):
        if Path(new) == dest / name:
            raise KeyboardInterrupt
        rename(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", stop)
        patch.setattr(shards, "IMAGES_PER_SHARD", PER_SHARD)
        assert prepare.main([str(source), str(dest), "--size", str(SIZE), "--workers", "0"]) == 130
    assert not (dest / "index.json").exists() and "not finished" in str(
        pytest.raises(UserError, Prepared, dest, SIZE).value
    )
    assert files(prepared(monkeypatch, source, dest)) == expected


def test_a_shards_part_is_on_the_disk_after_the_shard_and_the_index_last(source, tmp_path, monkeypatch):
    """Each file is synced before it gets its name, and the name before the next file is begun: a power cut can't mix
    them."""
    log, rename, sync = [], os.rename, os.fsync

    def name_of(descriptor):
        return Path(os.readlink(f"/proc/self/fd/{descriptor}")).name

    monkeypatch.setattr(os, "rename", lambda old, new: (log.append(("rename", Path(new).name)), rename(old, new))[1])
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: (log.append(("sync", name_of(descriptor))), sync(descriptor))[1]
    )
    prepared(monkeypatch, source, tmp_path / "set", per_shard=40)
    order = [
        ("plan.json", "work"),
        ("train-00000.tar", "set"),
        ("train-00000.safetensors", "work"),
        ("val-00000.tar", "set"),
        ("val-00000.safetensors", "work"),
        ("train.safetensors", "set"),
        ("val.safetensors", "set"),
        ("source.safetensors", "set"),
        ("statistics.safetensors", "set"),
        ("index.json", "set"),
    ]
    assert log == [
        step for name, folder in order for step in (("sync", f"{name}.partial"), ("rename", name), ("sync", folder))
    ]


def begun(source, dest):
    """The command as a process, with the group of its workers, that has begun to make shards."""
    process = command(prepare.main, source, dest, *OPTIONS)
    process.until(lambda: "shards" in process.out)
    return process


def typed(source, dest):
    """The same, as a user starts it."""
    process = subprocess.Popen(
        [*COMMAND, source, dest, *OPTIONS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while "shards" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    return process


def running(group):
    """The processes of a group that still run."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, of_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(of_group) == group and state not in "ZX":
                pids.append(path.parent.name)
    return pids


@pytest.mark.slow
@pytest.mark.process
def test_killed_at_any_moment_the_same_command_goes_on(many, tmp_path):
    source, expected = many
    dest, moments = tmp_path / "set", random.Random(os.getpid())
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        process = begun(source, dest)
        time.sleep(moments.uniform(0, 0.5))
        process.signal(number)  # to the parent alone: its workers have to notice
        assert process.wait() in ((130, 0) if number == signal.SIGTERM else (-number, 0))
        assert number == signal.SIGKILL or not list(dest.glob("*.partial"))
        if not (dest / "index.json").exists():
            with pytest.raises(UserError, match="not finished"):
                Prepared(dest, 64)
    assert complete(source, dest) == expected
    assert not running(process.pid)


@pytest.mark.process
def test_ctrl_c_ends_all_processes_and_says_that_the_same_command_goes_on(many, tmp_path):
    source, expected = many
    process = typed(source, tmp_path / "set")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the workers too
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "stopped; the same command goes on from here\n")
    assert not running(process.pid) and not [name for name in leftovers(tmp_path / "set") if "partial" in name]
    assert complete(source, tmp_path / "set") == expected


@pytest.mark.slow
@pytest.mark.process
def test_ctrl_c_twice_ends_it_as_fast(many, tmp_path):
    source, expected = many
    process = begun(source, tmp_path / "set")
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.02)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    assert process.wait() == 130 and "Traceback" not in process.err and process.leaves_none()
    assert complete(source, tmp_path / "set") == expected


def test_what_the_machine_does_wrong_is_no_bad_image(source, tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(file_ranges, "os", SimpleNamespace(**vars(os) | {"pread": fails}))  # of the images alone
    message = refused(source, tmp_path / "set", "--bad-images", "skip", "--workers", "0")
    assert "Input/output error" in message and not (tmp_path / "set" / "index.json").exists()


@pytest.mark.process
def test_two_at_once_and_the_second_is_refused(many, tmp_path, monkeypatch):
    source, expected = many
    process = begun(source, tmp_path / "set")
    os.killpg(process.pid, signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(build, "SECONDS_FOR_LOCK", 0.2)
        with pytest.raises(UserError, match="another prepare is writing"):
            complete(source, tmp_path / "set")
    # its workers, which hold the lock too, may have been stopped in their first moment
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert complete(source, tmp_path / "set") == expected


def test_a_lock_file_without_an_owner_is_no_obstacle(source, tmp_path, monkeypatch):
    (tmp_path / "set" / "work").mkdir(parents=True)
    (tmp_path / "set" / "work" / "lock").write_text("")
    assert (prepared(monkeypatch, source, tmp_path / "set") / "index.json").exists()


@pytest.mark.process
def test_a_worker_that_is_killed_is_one_line(source, tmp_path, monkeypatch):
    expected, parent, picture = files(prepared(monkeypatch, source, tmp_path / "whole")), os.getpid(), sources.picture

    def read(item, *options):
        if item.name == "sky/3.jpg" and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return picture(item, *options)

    with monkeypatch.context() as patch:
        patch.setattr(sources, "picture", read)
        with pytest.raises(UserError, match="SIGKILL.*fewer --workers") as refusal:
            prepared(patch, source, tmp_path / "set", workers=2)
    assert "\n" not in str(refusal.value) and ".tar" in str(refusal.value)
    assert not [name for name in leftovers(tmp_path / "set") if "partial" in name]
    assert files(prepared(monkeypatch, source, tmp_path / "set")) == expected


@pytest.mark.process
def test_a_quota_is_named_and_nothing_of_the_shard_is_left(many, tmp_path):
    source, expected = many
    quota = (400_000, 400_000)
    process = command(
        prepare.main,
        source,
        tmp_path / "set",
        *OPTIONS,
        before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, quota),
    )
    assert process.wait() == 2 and process.err.count("\n") == 1
    assert "train-0000" in process.err and "File too large" in process.err and "nothing of it counts" in process.err
    assert not any(name.startswith("train") for name in leftovers(tmp_path / "set"))
    assert complete(source, tmp_path / "set") == expected


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


@pytest.mark.process
@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_is_named_and_with_room_it_goes_on(source, tmp_path, monkeypatch, small_disk, workers):
    expected, dest = files(prepared(monkeypatch, source, tmp_path / "whole")), small_disk / "set"
    with pytest.raises(UserError, match="No space left on device; nothing of it counts as done") as refusal:
        prepared(monkeypatch, source, dest, workers=workers)
    assert "\n" not in str(refusal.value) and str(dest) in str(refusal.value)
    shards_left = [name.split(".")[0] for name in leftovers(dest)]
    assert not [name for name in leftovers(dest) if "partial" in name]
    assert all(shards_left.count(name) == 2 for name in shards_left)  # a shard with its part
    remount(small_disk, "size=10m")
    assert files(prepared(monkeypatch, source, dest, workers=workers)) == expected


@pytest.mark.process
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


@every("name", ["train-00001.tar", "train-00001.safetensors", "statistics.safetensors", "index.json"])
def test_a_disk_error_is_named_with_its_file(source, tmp_path, monkeypatch, name):
    """At the end of every file's writing: what the disk refuses then is not there, nor the shard whose part it is."""
    expected, sync = files(prepared(monkeypatch, source, tmp_path / "whole")), os.fsync

    def fail(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(f"/{name}.partial"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(UserError, match=f"{name}: Input/output error; nothing of it counts"):
            prepared(patch, source, tmp_path / "set")
    assert not [leftover for leftover in leftovers(tmp_path / "set") if name.split(".")[0] in leftover]
    assert files(prepared(monkeypatch, source, tmp_path / "set")) == expected
