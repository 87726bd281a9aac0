"""What `--resume` goes on from: which checkpoint, in which directory; what it refuses, and that it leaves that as it
was."""

import json
import shutil
import signal
import subprocess
import time

import pytest
from inner_cases import every
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_checkpoint import NO_LONGER_READ, as_old_format
from tiny_run import (
    LAST,
    PER_EPOCH,
    PLATEAU,
    assert_same_end,
    lines,
    make_quick,
    newest,
    process_of,
    resume,
    run,
    signalled_after,
    signalled_in_test,
    state,
)

from alexnet_mp import train
from alexnet_mp.runs.checkpoint_writer import Saver
from alexnet_mp.runs.checkpoints import listing
from alexnet_mp.system.errors import UserError
from alexnet_mp.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread", "quick")


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A run with all its checkpoints: copy it before changing it."""
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        start = Saver.start
        patch.setattr(Saver, "start", lambda self, content: (start(self, content), self.wait()))
        return run(
            data, tmp_path_factory.mktemp("finished") / "whole", *PLATEAU, "--checkpoint-every", 1, "--keep", 100
        )


@pytest.fixture
def short(finished, tmp_path):
    """The same run as if it had been killed after step 7, with the checkpoints of steps 1 to 6."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    for step in (7, 8, 9):
        shutil.rmtree(out / "checkpoints" / f"step_{step:08d}")
    return out


def tree(path):
    """{name: content} of all files below, and the directories; the lock's file may be there or not."""
    return {
        str(file.relative_to(path)): file.read_bytes() if file.is_file() and not file.is_symlink() else None
        for file in path.rglob("*")
        if file.name != ".lock"
    }


def refused(data, *arguments):
    """The line with which train refuses."""
    with pytest.raises(UserError) as error:
        run(data, *arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def refused_without_out(data, *arguments):
    with pytest.raises(UserError) as error:
        train.main(["--gpus", "cpu", "--workers", "0", "--data", str(data), *map(str, arguments)])
    return str(error.value)


def damage(directory, file="weights.safetensors"):
    content = bytearray((directory / file).read_bytes())
    content[-100] ^= 1
    (directory / file).write_bytes(content)


# --- auto


@pytest.mark.run
def test_auto_with_nothing_there(data, tmp_path, finished, capsys):
    out = resume(data, tmp_path / "a" / "run", *PLATEAU)
    assert f"{out} is not there yet; starting from the beginning" in capsys.readouterr().out
    assert_same_end(out, finished)


def unfinished(out, source, *names):
    """What a run leaves that is killed early: some of its files."""
    out.mkdir()
    (out / ".lock").write_text('{"pid": 1234, "host": "elsewhere", "since": "2026-11-25T10:00:00+00:00"}')
    for name in names:
        copy = shutil.copytree if (source / name).is_dir() else shutil.copy
        copy(source / name, out / name)
    (out / "run.json.partial").write_bytes(b'{"comm')


@pytest.mark.run
@every(
    "left",
    [None, [], ["run.json"], ["run.json", "statistics.safetensors", "metrics.jsonl", "tensorboard"]],
    ids=["empty", "before run.json", "with run.json", "before the first checkpoint"],
)
def test_auto_with_a_run_that_saved_nothing_begins_anew(left, data, tmp_path, finished, capsys):
    out = tmp_path / "run"
    if left is None:
        out.mkdir()
    else:
        unfinished(out, finished, *left)
        if left:
            shutil.copytree(finished / "checkpoints" / "step_00000003", out / "checkpoints" / ".partial_00000003")
            (out / "checkpoints" / ".partial_00000003" / "manifest.json").unlink()
    resume(data, out, *PLATEAU)
    output = capsys.readouterr().out
    assert "has no checkpoint yet; starting from the beginning" in output and ("'elsewhere'" in output) == (
        left is not None
    )
    assert_same_end(out, finished)
    assert "resumed" not in json.loads((out / "run.json").read_text())
    assert len(list((out / "tensorboard").iterdir())) == 1
    assert not list((out / "checkpoints").glob(".*"))


@every(
    "files",
    [
        ["photo.jpg"],
        ["checkpoints/epoch1.pt"],
        ["checkpoints/.partial_1/a", "photo.jpg"],
        ["run.json", "notes.txt"],
        ["checkpoints/damaged_step_00000003/weights.safetensors"],
    ],
)
@every("choice", ["auto", "path"])
def test_a_foreign_directory_is_refused_and_untouched(choice, files, data, tmp_path):
    out = tmp_path / "somebody's"
    for name in files:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"precious")
    before = tree(out)
    arguments = [out, "--resume", "auto" if choice == "auto" else out]
    assert "somebody's" in refused(data, *arguments)
    text = refused(data, out)
    assert "somebody's is there already: " in text and "choose another --out" in text and "auto" not in text
    assert tree(out) == before and not (out / ".lock").exists()


@pytest.mark.run
@every("file", ["weights.safetensors", "velocity.safetensors", "statistics.safetensors", "state.json", "manifest.json"])
def test_a_damaged_newest_checkpoint_is_set_aside(file, data, short, finished, capsys):
    damage(short / "checkpoints" / "step_00000006", file)
    resume(data, short, *PLATEAU)
    output = capsys.readouterr().out
    assert f"WARNING: {short}/checkpoints/step_00000006/{file}" in output and "kept as damaged_step_00000006" in output
    assert f"resumed from {short}/checkpoints/step_00000005" in output
    assert (short / "checkpoints" / "damaged_step_00000006").is_dir()
    assert_same_end(short, finished)


def test_several_damaged_checkpoints(data, short, finished):
    """One cut short, one empty, one without its manifest, one that is a file."""
    checkpoints = short / "checkpoints"
    weights = checkpoints / "step_00000006" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (checkpoints / "step_00000005" / "state.json").write_bytes(b"")
    (checkpoints / "step_00000004" / "manifest.json").unlink()
    shutil.rmtree(checkpoints / "step_00000003")
    (checkpoints / "step_00000003").write_bytes(b"a file")
    resume(data, short, *PLATEAU)
    assert len(list(checkpoints.glob("damaged_*"))) == 4
    assert_same_end(short, finished)


def test_all_damaged_is_refused_and_nothing_is_touched(data, short):
    for directory in listing(short).values():
        damage(directory)
    before = tree(short)
    assert "none of the checkpoints" in refused(data, short, *PLATEAU, "--resume", "auto")
    assert tree(short) == before


@every("number", [0, 1, 2])
def test_a_newest_checkpoint_of_an_old_format_is_no_damaged_one(number, data, short):
    """Nothing older may quietly take its place."""
    place = as_old_format(short / "checkpoints" / "step_00000006", number)
    before = tree(short)
    message = refused(data, short, *PLATEAU, "--resume", "auto")
    assert message == f"{place}: {NO_LONGER_READ.format(number)}" and tree(short) == before


# --- PATH


@pytest.mark.run
@every("what", ["run", "run/", "run/checkpoints/step_00000006"])
@every("named", [False, True], ids=["without --out", "with --out"])
def test_a_path_goes_on_in_the_run(what, named, data, short, finished, monkeypatch, capsys):
    monkeypatch.chdir(short.parent)
    out = ["--out", str(short)] if named else []
    assert train.main(["--gpus", "cpu", "--workers", "0", "--pipeline", "torch", *out, "--resume", what]) == 0
    assert "as the checkpoint has it" in capsys.readouterr().out
    assert_same_end(short, finished)
    assert [entry["step"] for entry in json.loads((short / "run.json").read_text())["resumed"]] == [6]


@pytest.mark.run
@every("what", ["run", "run/checkpoints/step_00000006", "run/checkpoints/step_00000002", "copy", "odd name"])
def test_a_path_goes_on_in_a_new_directory(what, data, short, tmp_path, finished, capsys):
    source = tmp_path / what
    if what in ("copy", "odd name"):
        shutil.copytree(short / "checkpoints" / "step_00000006", source)
        (tmp_path.parent / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n')  # of something else
        (tmp_path.parent / "run.json").write_text('{"command": "something else"}')
    before = tree(short)
    out = run(data, tmp_path / "new", *PLATEAU, "--resume", source)
    assert tree(short) == before
    if what in ("copy", "odd name"):  # the metrics were left behind
        assert "those lines are lost" in capsys.readouterr().out
        assert lines(out) == [
            line for line in lines(finished) if line["step"] > 6 or (line["step"], line["kind"]) == (6, "schedule")
        ]
        assert json.loads((out / "run.json").read_text())["command"].startswith("python -m")
    else:
        assert_same_end(out, finished)
    (entry,) = json.loads((out / "run.json").read_text())["resumed"]
    assert entry["step"] == (2 if what.endswith("2") else 6) and what in entry["from"] and entry["changed"] == {}


def test_a_second_history_is_refused(data, short):
    before = tree(short)
    text = refused(data, short, *PLATEAU, "--resume", short / "checkpoints" / "step_00000004")
    assert "newer checkpoints (of step 5, 6)" in text and "choose a new --out" in text
    assert tree(short) == before


def test_paths_that_are_refused(data, tmp_path, short, monkeypatch):
    monkeypatch.chdir(tmp_path)
    damage(short / "checkpoints" / "step_00000006")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    unfinished(tmp_path / "early", short, "run.json")
    (tmp_path / "early" / "checkpoints").mkdir()
    shutil.copytree(short / "checkpoints" / "step_00000005", tmp_path / "step_00000004")
    before = tree(tmp_path)
    for choice, words in [
        ("", "no such directory"),
        ("nowhere", "no such directory"),
        ("file", "no such directory"),
        ("Auto", "the word auto"),
        ("auto", "--out DIR"),
        ("empty", "neither a run nor a checkpoint"),
        ("early", "there is no checkpoint in it"),
        ("run/checkpoints", "neither a run nor a checkpoint"),
        ("step_00000004", "lies in no run"),
        ("run/checkpoints/step_00000006", "weights.safetensors"),
        ("run/checkpoints/step_00000099", "no such directory"),
    ]:
        assert words in refused_without_out(data, "--resume", choice), choice
    for choice, out, words in [
        ("early", "new", "there is no checkpoint in it"),
        ("run/checkpoints/step_00000006", "new", "weights.safetensors"),
        ("step_00000004", "new", "named like another step"),
        ("run", "empty", "is there already"),
        ("run/checkpoints/step_00000005", "file", "is there already"),
        ("auto", "file", "not a directory"),
        ("auto", "dangling", "not a directory"),
        ("auto", "file/run", "not a directory"),
    ]:
        assert words in refused_without_out(data, "--resume", choice, "--out", out), choice
    assert tree(tmp_path) == before


def test_an_out_that_is_a_link_to_a_run(data, tmp_path, short, finished):
    (tmp_path / "link").symlink_to(short)
    resume(data, tmp_path / "link", *PLATEAU)
    assert_same_end(short, finished)


def test_fewer_steps_than_were_taken_are_refused(data, short):
    before = tree(short)
    assert "has taken 6 steps already" in refused(data, short, *PLATEAU, "--resume", "auto", "--steps", 5)
    assert "has taken 6 steps already; 1 epochs are only 3" in refused(
        data, short, *PLATEAU, "--resume", "auto", "--epochs", 1
    )
    assert tree(short) == before
    resume(data, short, *PLATEAU, "--steps", 6)  # as many are nothing to do
    assert newest(short).name == "step_00000006" and "test" not in [line["kind"] for line in lines(short)]


@every("form", ["auto", "run", "a new directory", "checkpoint"])
@every("more", [[], ["--steps", 5]])
def test_a_changed_batch_size_is_named_before_steps_are_counted(form, more, data, tmp_path, short):
    """24 pictures a batch make three steps of three epochs, fewer than were taken."""
    out = tmp_path / "new" if form == "a new directory" else short
    choice = {"auto": "auto", "checkpoint": short / "checkpoints" / "step_00000006"}.get(form, short)
    arguments = [data, out, *PLATEAU, "--batch-size", 24, *more, "--resume", choice]
    before = tree(short)
    text = refused(*arguments)
    assert "batch_size 9 -> 24; --resume-anyway" in text and "steps" not in text
    text = refused(*arguments, "--resume-anyway")
    assert "has taken 6 steps already" in text
    if not more:
        assert "3 epochs are only 3: batch_size 9 -> 24" in text
    assert tree(short) == before


# --- what is written down


def test_run_json_tells_of_every_resume(data, tmp_path):
    out = run(data, tmp_path / "run", *PLATEAU, "--steps", 2)
    first = json.loads((out / "run.json").read_text())
    resume(data, out, *PLATEAU, "--steps", 4)
    resume(data, out, *PLATEAU, "--set", "momentum=0.8", "--resume-anyway")
    content = json.loads((out / "run.json").read_text())
    assert (content["command"], content["started"]) == (first["command"], first["started"])
    assert content["recipe"]["momentum"] == 0.8
    assert [
        (entry["step"], entry["from"], entry["changed"], entry["commit_before"]) for entry in content["resumed"]
    ] == [
        (2, f"{out}/checkpoints/step_00000002", {}, "0123abc"),
        (4, f"{out}/checkpoints/step_00000004", {"momentum": [0.9, 0.8]}, "0123abc"),
    ]


def events(out):
    """{tag: [(step, value)]} as TensorBoard shows them."""
    accumulator = EventAccumulator(str(out / "tensorboard"), {"scalars": 0})
    accumulator.Reload()
    scalars = {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }
    # not where all are of steps that were taken again
    return {tag: values for tag, values in scalars.items() if values}


def of_lines(out):
    """The same of metrics.jsonl."""
    series = {}
    for line in lines(out):
        kind = "/".join(line.pop(name).replace(" ", "_") for name in ("kind", "protocol") if name in line)
        step, _ = line.pop("step"), line.pop("epoch")
        for name, value in line.items():
            if isinstance(value, (int, float)):
                series.setdefault(f"{kind}/{name}", []).append((step, pytest.approx(value, rel=1e-6)))
    return series


def assert_events_fit(out):
    series = events(out)
    for tag in [tag for tag in series if tag.endswith("images_per_second")]:
        assert [step for step, _ in series.pop(tag)] == list(range(1, len(series["train/loss"]) + 1))
    assert series == of_lines(out)


@pytest.mark.run
def test_tensorboard_has_each_step_once(data, tmp_path, monkeypatch):
    """Cut before and in a step, in and after a validation, in and after the last test."""
    out = tmp_path / "run"
    for cut in (
        lambda patch: signalled_after(patch, Trainer, "__init__", 1),
        lambda patch: signalled_after(patch, Trainer, "one_step", 2),
        lambda patch: signalled_in_test(patch, 1),
        lambda patch: signalled_after(patch, Trainer, "validate", 1),
        lambda patch: signalled_in_test(patch, 3),
        lambda patch: None,
        lambda patch: None,
    ):
        with monkeypatch.context() as patch:
            cut(patch)
            resume(data, out, *PLATEAU)
        assert_events_fit(out)
    assert len(events(out)["train/loss"]) == LAST


def test_tensorboard_after_lost_steps(data, short):
    """The event file tells of steps 7 to 9, which are taken again."""
    resume(data, short, *PLATEAU, "--steps", 7)
    assert_events_fit(short)
    resume(data, short, *PLATEAU)
    assert_events_fit(short)


# --- other processes


def until_line(process, out, count):
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() or (out / "metrics.jsonl").read_bytes().count(b"\n") < count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.process
def test_a_kill_and_a_termination_of_real_processes(data, tmp_path):
    """Killed at any moment between two saves, then told to stop, then gone on with here."""
    out, flags = (
        tmp_path / "run",
        [*PLATEAU, "--set", "plateau_patience=1000000", "--epochs", 100000, "--checkpoint-every", 7],
    )
    command, environment = process_of(data, out, *flags, "--resume", "auto")
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        until_line(process, out, 30)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        until_line(process, out, 60)
        process.send_signal(signal.SIGTERM)
        output = process.communicate(timeout=120)[0]
    assert (
        process.returncode == 0
        and "the lock of process" in output
        and "resumed from" in output
        and "stopped as asked" in output
    )
    steps = state(newest(out))["step"] + PER_EPOCH + 1
    resume(data, out, *flags, "--steps", steps)
    whole = run(data, tmp_path / "whole", *flags, "--steps", steps)
    assert_same_end(out, whole)
    assert_events_fit(out)
