"""`python -m alexnet_mp.checkpoint`: what it lists, exports and removes, and one clear line for every wrong flag, path
and file."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from disk import checkpoint_of, forked, names, put_all
from faulty_calls import odd_files
from inner_cases import every
from tiny_checkpoint import NO_LONGER_READ, as_old_format

from alexnet_mp.checkpoint import main
from alexnet_mp.runs import checkpoints
from alexnet_mp.runs.checkpoints import listing
from alexnet_mp.runs.lock import RunLock
from alexnet_mp.system import durable_files
from alexnet_mp.system.errors import UserError


@pytest.fixture
def run(tmp_path):
    return put_all(tmp_path / "run", 3, 6, 9, 12, top1_errors=[None, 20.0, 30.5])


def refused(*arguments):
    """The one line with which the command refuses."""
    with pytest.raises(UserError) as error:
        main([*map(str, arguments)])
    assert "\n" not in str(error.value)
    return str(error.value)


def damage(run):
    """One of each kind of damage: {step: what has to be said}."""
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    put_all(run, 20, 21, 22, 23, 24)
    directories = listing(run)
    content = bytearray((directories[20] / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (directories[20] / "weights.safetensors").write_bytes(content)
    (directories[21] / "velocity.safetensors").unlink()
    os.truncate(directories[22] / "state.json", 100)
    (directories[23] / "notes.txt").write_text("foreign")
    (directories[24] / "weights.safetensors").write_bytes(b"\x80\x04K\x01." + bytes(20))
    reasons = {
        20: "weights.safetensors is damaged: its sha256",
        21: "velocity.safetensors: it is missing",
        22: "100 of",
        23: "notes.txt",
        24: "a pickle is never loaded",
    }
    for step, path in enumerate(odd_files(run)[:5], 30):
        path.rename(run / "checkpoints" / f"step_{step:08d}")
        reasons[step] = f"step_{step:08d}"
    return reasons


def test_the_list(run, capsys):
    assert main([str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all("whole, epoch 1" in line and "0.0 MB" in line for line in lines)
    assert "not validated" in lines[0] and "the best" not in lines[0]
    assert (
        "top-1 error  20.00 % (1.6 of 8: 7 to 59 %), the best; 95 % intervals" in lines[1]
    )  # of so few classes no top-5 error is told
    assert "top-1 error  30.50 %" in lines[2] and "the best" not in lines[2]


def test_sizes_are_those_of_all_files(run, capsys):
    checkpoint = checkpoint_of(15)
    state = replace(checkpoint.state, recipe=replace(checkpoint.state.recipe, stored_size=300))
    directory = checkpoints.put(
        run, replace(checkpoint, state=state, statistics=replace(checkpoint.statistics, mean=np.ones((300, 300, 3))))
    )
    size = sum(path.stat().st_size for path in directory.iterdir())
    assert main([str(run)]) == 0 and size > 2e6
    assert f" {size / 1e6:.1f} MB" in capsys.readouterr().out.splitlines()[-1]


def test_damaged_ones_are_named_and_the_status_is_2(run, capsys):
    reasons = damage(run)
    message = refused(run)
    assert (
        f"{len(reasons)} of the {4 + len(reasons)} checkpoints of {run} are damaged" in message
        and "--resume auto" in message
    )
    lines = {int(re.match(r"step +([\d,]+) ", line)[1]): line for line in capsys.readouterr().out.splitlines()}
    assert list(lines) == sorted([3, 6, 9, 12, *reasons])
    for step, words in reasons.items():
        assert "DAMAGED" in lines[step] and words in lines[step] and "Errno" not in lines[step], lines[step]
    assert not [step for step in (3, 6, 9, 12) if "DAMAGED" in lines[step]]


@every("number", [0, 1, 2])
def test_an_old_format_is_told_by_its_last_reader_and_left_alone(number, run, tmp_path, capsys):
    place = as_old_format(listing(run)[9], number)
    assert "1 of the 4 checkpoints" in (message := refused(run)) and "damaged" not in message
    lines = capsys.readouterr().out.splitlines()
    reason = f"{place}: {NO_LONGER_READ.format(number)}"
    assert lines[2].endswith(f"  {reason}") and sum("whole" in line for line in lines) == 3
    assert refused(run, "--step", "9", "--weights", tmp_path / "weights") == reason
    assert main([str(run), "--prune", "1"]) == 0 and list(listing(run)) == [6, 9, 12]


@every(
    "flags, step, top1_error",
    [([], 12, None), (["--step", "9"], 9, 30.5), (["--best"], 6, 20.0)],
    ids=["newest", "step", "best"],
)
def test_weights_load_in_plain_pytorch(flags, step, top1_error, run, tmp_path, capsys):
    """Three lines, without this project."""
    target = tmp_path / "weights.safetensors"
    assert main([str(run), "--weights", str(target), *flags]) == 0
    assert f"4 tensors of {listing(run)[step]} in {target}" in capsys.readouterr().out
    module = torch.nn.ModuleDict({"conv1": torch.nn.Conv2d(3, 4, 2), "fc8": torch.nn.Linear(36, 2)})
    from safetensors.torch import load_file

    state = load_file(target)
    module.load_state_dict(state)
    assert all(
        torch.equal(values, checkpoint_of(step, top1_error).weights[name])
        for name, values in module.state_dict().items()
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "weights.safetensors"]


def test_an_export_takes_the_place_of_nothing(run, tmp_path):
    for path in odd_files(tmp_path)[:5] + [tmp_path / "file"]:
        before = sorted(tmp_path.rglob("*"))
        assert "is there already" in refused(run, "--weights", path)
        assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_bytes() == b"content" and not (tmp_path / "nowhere").exists()


def test_an_export_that_cannot_be_written(run, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    for target in (tmp_path / "nowhere" / "weights", tmp_path / "file" / "weights"):
        message = f"--weights {target}: {target.parent} is not a directory that can be written to"
        assert refused(run, "--weights", target) == message
    for target in (Path("/proc/weights"), tmp_path / ("x" * 300)):
        assert f"cannot write {target}" in refused(run, "--weights", target)
    monkeypatch.setattr(
        durable_files.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    assert f"cannot write {tmp_path}/weights: No space left on device" in refused(
        run, "--weights", tmp_path / "weights"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "run"]


def test_a_damaged_one_is_not_exported(run, tmp_path):
    reasons = damage(run)
    for step, words in reasons.items():
        if step not in (21, 22, 23):  # what is damaged beside the weights
            assert words in refused(run, "--step", step, "--weights", tmp_path / "weights")
    # Where the newest is damaged, that is said, and no other one taken.
    assert "step_00000034" in refused(run, "--weights", tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


def test_prune_keeps_the_newest_and_the_best(run, capsys):
    place = checkpoints.put(run, checkpoint_of(15))
    (place / "state.json").write_bytes(b"")
    (run / "checkpoints" / ".partial_00000016").mkdir()
    assert main([str(run), "--prune", "1"]) == 0
    assert "removed 2: steps 3, 9" in capsys.readouterr().out
    assert names(run) == ["step_00000006", "step_00000012", "step_00000015"]
    assert main([str(run), "--prune", "1"]) == 0
    assert "nothing to remove" in capsys.readouterr().out


@pytest.mark.process
def test_a_run_that_is_at_work_is_not_pruned(run, tmp_path):
    """A lock holds against other processes alone, so another one takes it."""
    ready, go = os.pipe(), os.pipe()

    def hold():
        lock = RunLock(run)
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        lock.release()

    holder = forked(hold)
    os.read(ready[0], 1)
    before = names(run)
    try:
        assert re.search(rf"{run} is in use: process {holder} on '.*', since 20..-", refused(run, "--prune", "1"))
        assert names(run) == before
        # to read is allowed
        assert main([str(run)]) == 0 and main([str(run), "--weights", str(tmp_path / "weights")]) == 0
    finally:
        os.write(go[1], b"x")
        assert os.waitpid(holder, 0)[1] == 0
        for descriptor in ready + go:
            os.close(descriptor)
    assert main([str(run), "--prune", "1"]) == 0


def test_a_prune_that_fails(run, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(
            durable_files.os, "rename", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system"))
        )
        assert re.search(r"cannot remove .*step_00000003: Read-only file system", refused(run, "--prune", "1"))
    assert names(run) == [f"step_{step:08d}" for step in (3, 6, 9, 12)]
    capsys.readouterr()
    assert main([str(run), "--prune", "1"]) == 0
    assert "stale" not in capsys.readouterr().out  # the lock was let go of


def test_wrong_paths_and_flags(run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "odd" / "checkpoints").mkdir(parents=True)
    for arguments, words in (
        ([tmp_path / "nowhere"], "not a directory"),
        ([tmp_path / "file"], "not a directory"),
        ([""], "not a directory"),
        ([tmp_path / "empty"], "no checkpoint"),
        ([tmp_path / "odd"], "no checkpoint"),
        ([listing(run)[3]], "no checkpoint"),
        ([tmp_path / "empty", "--prune", 1], "no checkpoint"),
        ([tmp_path / "empty", "--weights", tmp_path / "x"], "no checkpoint"),
        ([run, "--prune", 0], "--prune 0"),
        ([run, "--prune", -1], "--prune -1"),
        ([run, "--weights", ""], "name of a file"),
        ([run, "--step", 3], "--weights FILE"),
        ([run, "--best"], "--weights FILE"),
        ([run, "--best", "--prune", 1], "--weights FILE"),
        ([run, "--step", 4, "--weights", tmp_path / "x"], "are of steps 3, 6, 9, 12"),
        ([tmp_path / "empty", "--step", 4, "--weights", tmp_path / "x"], "(none)"),
        ([tmp_path / "empty", "--best", "--weights", tmp_path / "x"], "none is the best"),
    ):
        assert words in refused(*arguments), arguments
    for arguments in (
        [],
        [str(run), "--prune", "x"],
        [str(run), "--weights", "x", "--prune", "1"],
        [str(run), "--best", "--step", "3"],
    ):
        with pytest.raises(SystemExit) as system_exit:
            main(arguments)
        assert system_exit.value.code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "odd", "run"]
    assert not os.listdir(tmp_path / "empty")


@pytest.mark.slow
@pytest.mark.process
def test_as_a_command(run):
    """In a process of its own: the list on stdout, one line on stderr, status 2."""
    (listing(run)[9] / "weights.safetensors").write_bytes(b"x")
    process = subprocess.run([sys.executable, "-m", "alexnet_mp.checkpoint", str(run)], capture_output=True, text=True)
    assert process.returncode == 2 and re.fullmatch(r"error: 1 of the 4 checkpoints [^\n]+\n", process.stderr), (
        process.stderr
    )
    assert [line[:16] for line in process.stdout.splitlines()] == [f"step {step:9}  " for step in (3, 6, 9, 12)]


def test_help_teaches_by_examples(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert capsys.readouterr().out.count("python -m alexnet_mp.checkpoint") >= 3
