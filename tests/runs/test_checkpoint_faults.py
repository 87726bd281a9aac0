"""Whole runs on disks that are full, failing or read-only, beside other processes, and killed: loud, and nothing is
lost."""

import errno
import os
import re
import resource
import signal
import threading
import time

import pytest
from disk import Dying, at_steps, failing, holds_what_it_should, kill_saves, names, put_all
from forked_process import command
from inner_cases import every
from tiny_run import LAST, TINY, assert_same_end, lines, make_quick, resume, run

from alexnet_mp import checkpoint, evaluate, train
from alexnet_mp.runs import checkpoints
from alexnet_mp.runs.checkpoint_format import verify
from alexnet_mp.runs.checkpoint_writer import Saver
from alexnet_mp.runs.checkpoints import listing
from alexnet_mp.runs.directory import refuse_foreign
from alexnet_mp.system import durable_files
from alexnet_mp.system.errors import UserError, run_command

pytestmark = [pytest.mark.run, pytest.mark.usefixtures("one_thread")]
EVERY = ["--checkpoint-every", 1, "--keep", 2]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        return run(data, tmp_path_factory.mktemp("whole") / "run", *EVERY)


@pytest.fixture
def ended(capsys, data):
    """ended(out, more arguments) -> (exit status, stderr, stdout) of the command, as its user sees them."""

    def command(out, *more):
        capsys.readouterr()
        with pytest.raises(SystemExit) as system_exit:
            run_command(lambda: train.main([*TINY, "--data", str(data), "--out", str(out), *map(str, more)]))
        output = capsys.readouterr()
        return system_exit.value.code, output.err, output.out

    return command


@pytest.fixture
def file_limit():
    """file_limit(n): no file of this process can be written beyond n bytes; file_limit(): as before."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(number=before[0]):
        resource.setrlimit(resource.RLIMIT_FSIZE, (number, before[1]))

    yield limit
    limit()


def all_whole(out):
    """No debris, and each checkpoint as its manifest says; their steps."""
    refuse_foreign(out)
    assert not [name for name in names(out) if checkpoints.step_of(name) is None]
    assert not [name for name in os.listdir(out) if name.endswith(durable_files.PARTIAL)]
    assert (out / ".lock").read_bytes() == b""
    return [verify(directory).step for directory in listing(out).values()]


# --- full, for a while


@pytest.mark.process
def test_a_disk_that_is_full_for_a_while(quick, small_disk, monkeypatch, ended, whole):
    disk = small_disk(1)
    listings = []

    def fill(self):
        disk.fill()
        listings.append(list(listing(self.run.path)))

    def free(self):
        listings.append(all_but_lock(self.run.path))
        disk.free()

    at_steps(monkeypatch, {2: fill, 7: free})
    status, error, output = ended(disk.path / "run", *EVERY)
    assert (
        (status, error) == (0, "")
        and output.count("WARNING: cannot write") >= 2
        and "No space left on device" in output
    )
    assert listings == [[1], [1]]  # nothing was saved meanwhile, and the old one was not touched
    assert all_whole(disk.path / "run")[-1] == LAST
    assert_same_end(disk.path / "run", whole)


def all_but_lock(out):
    assert not [name for name in names(out) if checkpoints.step_of(name) is None], "debris while the run goes on"
    return [verify(directory).step for directory in listing(out).values()]


def test_no_line_of_the_metrics_is_lost_where_not_a_byte_can_be_added(
    quick, file_limit, monkeypatch, tmp_path, ended, whole
):
    """As a full disk, but for every file; the metrics are checked to have stood still."""
    sizes = []

    def limit(self):
        sizes.append(self.run.metrics.length())
        file_limit(sizes[0])

    def free(self):
        sizes.append((tmp_path / "run" / "metrics.jsonl").stat().st_size)
        file_limit()

    at_steps(monkeypatch, {2: limit, 7: free})
    status, error, output = ended(tmp_path / "run", *EVERY)
    assert (status, error) == (0, "") and sizes[0] == sizes[1] > 0
    assert len(re.findall("WARNING: cannot write metrics.jsonl: .*File too large; the training goes on", output)) == 1
    assert output.count("WARNING: no TensorBoard events any more") == 1
    assert all_whole(tmp_path / "run")[-1] == LAST
    assert_same_end(tmp_path / "run", whole)


@pytest.mark.process
def test_a_disk_that_is_full_from_the_start(quick, small_disk, ended, data, whole):
    disk = small_disk(1)
    disk.fill()
    status, error, _ = ended(disk.path / "run", *EVERY)
    assert status == 2 and re.fullmatch(r"error: --out [^\n]*No space left on device\n", error), error
    disk.free()
    assert ended(disk.path / "run", *EVERY, "--resume", "auto")[0] == 0
    assert all_whole(disk.path / "run")[-1] == LAST
    assert_same_end(disk.path / "run", whole)


@every("limit", [0, 100, 3000, 30_000])
def test_too_little_room_from_the_start(limit, quick, file_limit, tmp_path, ended, whole):
    """Not enough for run.json, or for the statistics: never a traceback, and the next start has its room."""
    file_limit(limit)
    status, error, output = ended(tmp_path / "run", *EVERY)
    assert status == 2 and re.fullmatch(r"error: [^\n]*File too large[^\n]*\n", error), error
    file_limit()
    assert not listing(tmp_path / "run")
    assert ended(tmp_path / "run", *EVERY, "--resume", "auto")[0] == 0
    assert all_whole(tmp_path / "run")[-1] == LAST
    assert_same_end(tmp_path / "run", whole)


# --- full, for good


@pytest.mark.process
def test_stop_on_a_save_error(quick, small_disk, monkeypatch, ended, data, whole):
    disk = small_disk(1)
    actions = at_steps(monkeypatch, {4: lambda self: disk.fill()})
    status, error, output = ended(disk.path / "run", *EVERY, "--on-save-error", "stop")
    assert status == 2 and re.fullmatch(
        r"error: cannot write [^\n]*No space left on device; --on-save-error continue would go on "
        rf"without; the newest checkpoint is {disk.path}/run/checkpoints/step_\d+\n",
        error,
    ), error
    assert (
        output.count("WARNING") == output.count("WARNING: 9 steps are too few") == 1
        and all_whole(disk.path / "run")[-1] == 3
    )
    assert len([line for line in lines(disk.path / "run") if line["kind"] == "train"]) < LAST
    disk.free()
    actions.clear()
    resume(data, disk.path / "run", *EVERY)
    assert_same_end(disk.path / "run", whole)


@pytest.mark.process
@pytest.mark.parametrize("policy", ["continue", "stop"])
def test_a_last_save_that_fails(policy, small_disk, monkeypatch, ended, data, whole):
    """With all the pictures that an end draws."""
    disk = small_disk(1)
    actions = at_steps(monkeypatch, {LAST: lambda self: disk.fill()})
    status, error, output = ended(disk.path / "run", *EVERY, "--on-save-error", policy)
    assert status == 2 and re.fullmatch(r"error: [^\n]*No space left on device[^\n]*step_0000000\d\n", error), error
    assert f"done after step {LAST}: checkpoint" not in output
    assert all_whole(disk.path / "run")[-1] < LAST
    disk.free()
    actions.clear()
    resume(data, disk.path / "run", *EVERY)
    assert_same_end(disk.path / "run", whole)


def test_a_save_that_failed_before_the_last_one_does_not_spoil_the_end(quick, monkeypatch, tmp_path, ended, whole):
    """The write of the last step but one fails after the last step was taken."""
    put, wait, wait_event, outcomes = checkpoints.put, Saver.wait, threading.Event(), []

    def wait_and_say_so(self, timeout=None):
        wait_event.set()
        return wait(self, timeout)

    def fail_once(path, content):
        if content.state.step == LAST - 1:
            outcomes.append(wait_event.wait(60))
            raise OSError(errno.EIO, "Input/output error", "disk")
        return put(path, content)

    monkeypatch.setattr(checkpoints, "put", fail_once)
    monkeypatch.setattr(Saver, "wait", wait_and_say_so)
    at_steps(monkeypatch, {LAST - 1: lambda self: wait_event.clear()})
    status, error, output = ended(tmp_path / "run", *EVERY)
    assert outcomes == [True] and all_whole(tmp_path / "run")[-1] == LAST
    assert (status, error) == (0, "") and output.count(
        "WARNING: cannot write a checkpoint: disk: Input/output error"
    ) == 1
    assert_same_end(tmp_path / "run", whole)


# --- read-only, failing


@pytest.mark.process
def test_a_disk_that_becomes_read_only_for_a_while(quick, small_disk, monkeypatch, ended, whole):
    """Where the checkpoints lie; the kernel doesn't let a disk become so while one of its files is open to be
    written."""
    disk = small_disk(1)
    place = f"{disk.place}/run/checkpoints"
    (disk.path / "run" / "checkpoints").mkdir(parents=True)
    assert disk.tell(f"mount -t tmpfs -o size=1m none '{place}'") == "0"
    at_steps(monkeypatch, {3: lambda self: remount("ro"), 7: lambda self: remount("rw")})

    def remount(mode):
        assert disk.tell(f"mount -o remount,{mode} '{place}'") == "0"

    status, error, output = ended(disk.path / "run", *EVERY, "--resume", "auto")
    assert (status, error) == (0, "") and "WARNING: cannot write" in output and "Read-only file system" in output
    assert all_whole(disk.path / "run")[-1] == LAST
    assert_same_end(disk.path / "run", whole)


@every("policy", ["continue", "stop"])
@every("at", [0, 5, 12, 19])
def test_input_and_output_errors(policy, at, quick, monkeypatch, tmp_path, ended, data, whole):
    """From a system call in the middle of a save on nothing works, until two steps later."""

    def break_down(self):
        monkeypatch.setattr(durable_files, "os", Dying(at, failing))

    def recover(self):
        monkeypatch.setattr(durable_files, "os", os)

    actions = at_steps(monkeypatch, {3: break_down, 5: recover})
    status, error, output = ended(tmp_path / "run", *EVERY, "--on-save-error", policy)
    if policy == "continue":
        assert (status, error) == (0, "") and re.search(r"WARNING: .*/run/.*: Input/output error", output)
    else:
        assert status == 2 and re.fullmatch(r"error: cannot write [^\n]*Input/output error[^\n]*\n", error), error
        monkeypatch.setattr(durable_files, "os", os)
        actions.clear()
        resume(data, tmp_path / "run", *EVERY)
    assert all_whole(tmp_path / "run")[-1] == LAST
    assert_same_end(tmp_path / "run", whole)


# --- other processes


@pytest.mark.slow
@pytest.mark.process
def test_kills_of_processes_that_save_all_the_time(tmp_path):
    """`python tools/kill_saves.py` does it a thousand times."""
    kills, losses, _ = kill_saves.kill_saves(put_all(tmp_path / "run"), 20, 3)
    assert not losses and kills.total() >= 20 and len({stage for stage, _ in kills}) >= 2
    assert holds_what_it_should(checkpoints.newest(tmp_path / "run"))


@pytest.mark.process
def test_kill_saves_finds_a_loss(tmp_path, monkeypatch):
    """A run that removes the old one before it writes the new one."""
    put = checkpoints.put

    def careless(run, content):
        for directory in listing(run).values():
            durable_files.remove(directory)
        return put(run, content)

    monkeypatch.setattr(checkpoints, "put", careless)
    kills, losses, _ = kill_saves.kill_saves(put_all(tmp_path / "run"), 20, 0)
    assert losses


@pytest.mark.process
def test_beside_a_run_that_saves_and_prunes_all_the_time_and_is_killed(quick, data, tmp_path, capsys):
    out = tmp_path / "run"
    words = ["--epochs", 10**6, "--checkpoint-every", 1, "--keep", 1]
    process = command(train.main, *TINY, "--data", data, "--out", out, *words)
    try:
        process.until(lambda: (out / "checkpoints").is_dir() and max(listing(out), default=0) >= 3)
        for more, text in (
            (["--resume", "auto"], f"is in use: process {process.pid} on "),
            ([], "is there already; --resume auto"),
        ):
            with pytest.raises(UserError, match=text):
                train.main([*TINY, "--data", str(data), "--out", str(out), *more])
        with pytest.raises(UserError, match=rf"is in use: process {process.pid} on "):
            checkpoint.main([str(out), "--prune", "1"])
        steps = set()
        capsys.readouterr()
        for turn in range(4):
            assert evaluate.main([str(out), "--gpus", "cpu", "--workers", "0"]) == 0
            assert checkpoint.main([str(out)]) == 0
            assert checkpoint.main([str(out), "--weights", str(tmp_path / f"{turn}.safetensors")]) == 0
            steps |= set(re.findall(r"(step_\d+) on cpu", capsys.readouterr().out))
        assert len(steps) >= 2 and not process.has_ended()  # it did go on meanwhile
    finally:
        process.signal(signal.SIGKILL)
        status = process.wait()
    assert status == -signal.SIGKILL
    last_step = max(listing(out))
    assert (
        train.main(
            [
                *TINY,
                "--data",
                str(data),
                "--out",
                str(out),
                "--epochs",
                "1000000",
                "--steps",
                str(last_step + 3),
                "--resume",
                "auto",
            ]
        )
        == 0
    )
    text = capsys.readouterr().out
    assert f"the lock of process {process.pid} on" in text and "is stale" in text
    assert all_whole(out)[-1] == last_step + 3
    assert [line["step"] for line in lines(out) if line["kind"] == "train"] == list(range(1, last_step + 4))


# --- the clock


@every("jump", [-7200, 7200])
def test_a_clock_that_jumps_is_said_once(jump, quick, monkeypatch, tmp_path, ended, whole):
    now = time.time
    at_steps(monkeypatch, {3: lambda self: monkeypatch.setattr(time, "time", lambda: now() + jump)})
    status, error, output = ended(tmp_path / "run", *EVERY)
    assert (status, error) == (0, "") and output.count(f"the clock of this machine jumped by {jump:+,} s") == 1
    assert output.count("the clock of this machine") == 1
    assert_same_end(tmp_path / "run", whole)
