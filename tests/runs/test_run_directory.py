"""A run directory: made by one run alone, never over something else, and read without trust."""

import json
import os
import shutil
import time
from types import SimpleNamespace

import numpy as np
import pytest
from disk import Dying, below_files, failing, forked, put_all
from faulty_calls import Faulty, odd_files
from inner_cases import every
from tiny_run import LAST, TINY, lines, make_quick, resume, run

from alexnet_mp import train
from alexnet_mp.data.pixel_statistics import Statistics
from alexnet_mp.parallel.pieces import WHOLE
from alexnet_mp.recipes.architectures import mini
from alexnet_mp.runs.directory import RunDirectory, read_run, refuse_foreign, refuse_unusable
from alexnet_mp.runs.lock import RunLock
from alexnet_mp.system.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def parts(quick):
    """What a run directory is made of, without a network."""
    fields = {"source": "builtin", "description": "drawn", "fingerprint": "5f", "class_names": None}
    dataset = SimpleNamespace(**fields, classes=["ant", "bee"])
    network = SimpleNamespace(
        exchange=SimpleNamespace(devices=(), towers=(), overlap=False), kernels_used=lambda: "cpu"
    )
    statistics = Statistics(np.ones((4, 4, 3)), np.ones(3), np.eye(3))
    pipeline = SimpleNamespace(name="torch", statistics=statistics, pieces=WHOLE)
    return mini(), dataset, network, pipeline


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        return run(data, tmp_path_factory.mktemp("finished") / "run", "--steps", 2)


def refused(action, *arguments):
    with pytest.raises(UserError) as error:
        action(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- made


def test_what_is_made_can_be_read(parts, tmp_path, capsys):
    directory = RunDirectory(tmp_path / "new" / "run", *parts)
    directory.log("train", step=1, loss=0.5)
    directory.close()
    record = read_run(tmp_path / "new" / "run")
    assert record["recipe"] == mini() and record["data"]["classes"] == ["ant", "bee"] and "resumed" not in record
    assert lines(tmp_path / "new" / "run") == [{"kind": "train", "step": 1, "loss": 0.5}]
    refuse_foreign(tmp_path / "new" / "run")
    RunLock(tmp_path / "new" / "run").release()
    assert "stale" not in capsys.readouterr().out  # it was let go of


@pytest.mark.process
def test_two_at_once_into_a_new_directory(parts, tmp_path):
    """Of eight processes that begin at the same moment one makes it, and the others are refused with one line."""
    ready, go = os.pipe(), os.pipe()

    def begin():
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        try:
            RunDirectory(tmp_path / "run", *parts)
            message = "made"
        except UserError as error:
            message = str(error)
        (tmp_path / f"said-{os.getpid()}").write_text(message)
        deadline = time.monotonic() + 60
        # the lock is held until all have tried
        while len(list(tmp_path.glob("said-*"))) < 8 and time.monotonic() < deadline:
            time.sleep(0.01)

    processes = [forked(begin) for _ in range(8)]
    for _ in processes:
        os.read(ready[0], 1)
    os.write(go[1], b"x" * 8)
    assert [os.waitpid(process, 0)[1] for process in processes] == [0] * 8
    messages = sorted((tmp_path / f"said-{process}").read_text() for process in processes)
    assert messages[-1] == "made" and all(f"--out {tmp_path}/run is there already" in words for words in messages[:-1])
    assert read_run(tmp_path / "run")
    for descriptor in ready + go:
        os.close(descriptor)


@every("fake", [Faulty, Dying])
def test_a_disk_that_fails_at_any_call_leaves_nothing_and_no_lock(fake, parts, tmp_path):
    counter = Faulty()
    with below_files(counter):
        RunDirectory(tmp_path / "first", *parts).close()
    assert len(counter.calls) >= 10
    for at, call in enumerate(counter.calls):
        with below_files(fake(at, failing)):
            message = refused(RunDirectory, tmp_path / "run", *parts)
        assert message.startswith(f"--out {tmp_path}/run: {tmp_path}") and "Input/output error" in message, call
        assert not (tmp_path / "run").exists(), f"{call}, call {at}"
    RunDirectory(tmp_path / "run", *parts).close()


def test_a_directory_that_was_there_is_not_removed_by_a_failure(parts, tmp_path, capsys):
    put_all(tmp_path / "run", 1)
    with below_files(Dying(3, failing)):
        message = refused(lambda: RunDirectory(tmp_path / "run", *parts, lock=RunLock(tmp_path / "run")))
    assert "Input/output error" in message
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["step_00000001"]
    capsys.readouterr()
    RunLock(tmp_path / "run").release()
    assert "stale" not in capsys.readouterr().out  # it was let go of


def test_what_stands_in_its_place(parts, tmp_path):
    before = odd_files(tmp_path)[:5] + [tmp_path / "file"]
    for path in before:
        hint = "; --resume auto goes on with it, or" if path.is_dir() else ", and is no directory;"
        for action in (refuse_unusable, lambda path: RunDirectory(path, *parts)):
            assert refused(action, path) == f"--out {path} is there already{hint} choose another --out"
    for path in (tmp_path / "file" / "run", tmp_path / "file" / "a" / "b"):
        assert f"--out {path}: {tmp_path}/file is not a directory that can be written to" in refused(
            refuse_unusable, path
        )
        assert f"--out {path}: " in refused(RunDirectory, path, *parts)
    assert (tmp_path / "file").read_bytes() == b"content" and not (tmp_path / "nowhere").exists()
    refuse_unusable(tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()


def test_what_is_in_it_that_no_run_wrote(tmp_path, finished):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "run.json.partial").write_bytes(b"half")  # a kill leaves it
    for name in ("report", "retrieval", "retrieval.partial"):  # of the commands report and retrieve
        (tmp_path / "run" / name).mkdir()
    refuse_foreign(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    refuse_foreign(tmp_path / "empty")
    for name in ("thesis.tex", ".git", "checkpoints.old", "run.json.partial.partial"):
        (tmp_path / "run" / name).write_bytes(b"")
        assert f"{name} is in it" in refused(refuse_foreign, tmp_path / "run")
        (tmp_path / "run" / name).unlink()


def test_resume_is_advised_where_it_would_go_on(tmp_path, finished, monkeypatch):
    shutil.copytree(finished, tmp_path / "run")
    hint = "is there already; --resume auto goes on with it, or choose another --out"
    assert hint in refused(refuse_unusable, tmp_path / "run")
    (tmp_path / "run" / "thesis.tex").write_bytes(b"")  # beside checkpoints it does no harm
    assert hint in refused(refuse_unusable, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert refused(refuse_unusable, tmp_path / "run") == (
        f"--out {tmp_path}/run is there already: it is no run directory, thesis.tex is in it; choose another --out"
    )
    (tmp_path / "run" / "thesis.tex").unlink()
    assert hint in refused(refuse_unusable, tmp_path / "run")
    content = json.loads((tmp_path / "run" / "run.json").read_text())
    content["resumed"] = [{"from": "elsewhere/checkpoints/step_00000003"}]
    (tmp_path / "run" / "run.json").write_text(json.dumps(content))
    assert refused(refuse_unusable, tmp_path / "run") == (
        f"--out {tmp_path}/run is there already: {tmp_path}/run went on from elsewhere/checkpoints/step_00000003, and "
        "has no checkpoint of its own; --resume that one, with a new --out"
    )
    monkeypatch.setattr(os, "listdir", failing)
    assert "Input/output error" in refused(refuse_unusable, tmp_path / "run")


# --- a run that goes on


def test_run_json_keeps_how_the_run_came_here(quick, finished, data, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    before = json.loads((out / "run.json").read_text())
    resume(data, out, "--steps", 4)
    resume(data, out)
    after = json.loads((out / "run.json").read_text())
    assert [after[name] for name in ("command", "started", "recipe")] == [
        before[name] for name in ("command", "started", "recipe")
    ]
    assert [(entry["step"], entry["changed"]) for entry in after["resumed"]] == [(2, {}), (4, {})]
    assert [line["step"] for line in lines(out) if line["kind"] == "train"] == list(range(1, LAST + 1))


@pytest.mark.run
@every(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff", b'{"resumed": 5}', b"[" * 100000, None],
    ids=["empty", "cut", "list", "null", "no UTF-8", "odd history", "deep", "missing"],
)
def test_a_damaged_run_json_does_not_keep_a_run_from_going_on(content, quick, finished, data, tmp_path):
    """A checkpoint holds all that is needed; the file is written anew."""
    out = shutil.copytree(finished, tmp_path / "run")
    (out / "run.json").unlink()
    if content is not None:
        (out / "run.json").write_bytes(content)
    resume(data, out, "--steps", 3)
    record = read_run(out)
    assert record["data"]["classes"] == ["apple", "leaf", "sky"] and [entry["step"] for entry in record["resumed"]] == [
        2
    ]


def test_links_in_place_of_its_files_are_replaced_or_refused(quick, finished, data, tmp_path):
    """Nothing outside of the directory is written to."""
    out, secret = shutil.copytree(finished, tmp_path / "run"), tmp_path / "secret"
    secret.write_bytes(b"secret")
    for name in ("run.json", "statistics.safetensors"):
        (out / name).unlink()
        (out / name).symlink_to(secret)
    resume(data, out, "--steps", 3)
    assert not (out / "run.json").is_symlink() and secret.read_bytes() == b"secret"
    for name, words in (("metrics.jsonl", "metrics.jsonl"), (".lock", "cannot lock")):
        (out / name).rename(out / "kept")
        (out / name).symlink_to(secret)
        assert words in refused(train.main, [*TINY, "--data", str(data), "--out", str(out), "--resume", "auto"])
        assert secret.read_bytes() == b"secret"
        (out / name).unlink()
        (out / "kept").rename(out / name)


def test_last_lines_that_cannot_be_written_are_said(parts, tmp_path, monkeypatch, capsys):
    directory = RunDirectory(tmp_path / "run", *parts)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        directory.log("train", step=1, loss=0.5)
        directory.close()
    assert (
        f"WARNING: the last lines of {tmp_path}/run/metrics.jsonl are lost: No space left on device"
        in capsys.readouterr().out
    )
    RunLock(tmp_path / "run").release()  # the lock was let go of all the same, and the file closed
    assert "stale" not in capsys.readouterr().out


# --- read


@every(
    "spoil, words",
    [
        (lambda run: "{", "damaged"),
        (lambda run: "[" * 100000, "damaged"),
        (lambda run: "[]", "damaged"),
        (lambda run: "null", "damaged"),
        (lambda run: json.dumps({**run, "recipe": {}}), "not a run directory of this version"),
        (lambda run: json.dumps({**run, "recipe": 5}), "not a run directory of this version"),
        (lambda run: json.dumps({**run, "recipe": {**run["recipe"], "batch_size": "8"}}), "batch_size"),
        (
            lambda run: json.dumps({**run, "recipe": {**run["recipe"], "learning_rate": float("nan")}}),
            "not a run directory",
        ),
        (
            lambda run: json.dumps(
                {**run, "recipe": {name: value for name, value in run["recipe"].items() if name != "momentum"}}
            ),
            "not complete",
        ),
        (lambda run: json.dumps({**run, "data": {**run["data"], "classes": "ab"}}), "what data"),
        (lambda run: json.dumps({**run, "data": {**run["data"], "classes": ["a"]}}), "what data"),
        (lambda run: json.dumps({**run, "data": {**run["data"], "classes": [1, 2]}}), "what data"),
        (lambda run: json.dumps({**run, "data": {**run["data"], "source": None}}), "what data"),
        (lambda run: json.dumps({name: value for name, value in run.items() if name != "data"}), "damaged"),
        (lambda run: b"\xff\xfe", "damaged"),
    ],
)
def test_a_run_json_that_lies(spoil, words, finished, tmp_path):
    content = spoil(json.loads((finished / "run.json").read_text()))
    (tmp_path / "run.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    message = refused(read_run, tmp_path)
    assert words in message and message.startswith(str(tmp_path)) and len(message) < 1000


def test_a_run_json_that_is_none(tmp_path):
    for number, path in enumerate(odd_files(tmp_path)[:5]):
        (tmp_path / str(number)).mkdir()
        path.rename(tmp_path / str(number) / "run.json")
        assert "cannot read" in refused(read_run, tmp_path / str(number))
    assert "cannot read" in refused(read_run, tmp_path / "nowhere") and "cannot read" in refused(
        read_run, tmp_path / "file"
    )
    (tmp_path / "large").mkdir()
    with open(tmp_path / "large" / "run.json", "wb") as file:
        os.truncate(file.fileno(), 1 << 40)
    assert "at most are read" in refused(read_run, tmp_path / "large")
