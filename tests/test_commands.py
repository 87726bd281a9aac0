"""The commands as a user types them: what a run leaves, and one clear line for every wrong flag, path and file."""

import functools
import itertools
import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from alexnet_mp.kernels import dispatch
from forked_process import command
from image_folders import make_folder
from inner_cases import every
from PIL import Image
from safetensors.torch import load_file

from alexnet_mp import __main__ as console
from alexnet_mp import doctor, evaluate, prepare, train
from alexnet_mp.evaluation.accuracy import read_right
from alexnet_mp.runs.metrics import read_metrics
from alexnet_mp.system.errors import UserError, run_command
from alexnet_mp.training import dry_run
from alexnet_mp.training.plan import Options

pytestmark = pytest.mark.process

SMALL = [
    "--gpus",
    "cpu",
    "--recipe",
    "mini",
    "--batch-size",
    "10",
    "--workers",
    "1",
    "--set",
    "fc6.maps=16",
    "--set",
    "fc7.maps=16",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of two epochs on 24 training images in batches of 10."""
    root = tmp_path_factory.mktemp("finished")
    data = make_folder(root / "data")
    assert train.main([*SMALL, "--data", str(data), "--out", str(root / "run"), "--epochs", "2"]) == 0
    return root / "run", data


def test_a_run_leaves_everything_behind(run):
    out, _ = run
    assert {path.name for path in out.iterdir()} == {
        "run.json",
        "metrics.jsonl",
        "statistics.safetensors",
        "checkpoints",
        "tensorboard",
        "curves.png",
        "conv1_kernels.png",
        ".lock",
        "validation_right.npz",
    }
    assert load_file(out / "checkpoints" / "step_00000006" / "weights.safetensors")["fc8.weight"].shape == (3, 32)
    assert Image.open(out / "conv1_kernels.png").size[0] > 500 and Image.open(out / "curves.png").size[0] > 500
    assert any((out / "tensorboard").iterdir())
    right, tests = (
        read_right(out / "validation_right.npz"),
        [line for line in read_metrics(out) if line["kind"] == "test"],
    )
    assert {name: array.shape for name, array in right.items()} == {
        line["protocol"]: (2, line["images"]) for line in tests
    }
    for line in tests:
        assert 100 - 100 * right[line["protocol"]].mean(1) == pytest.approx([line["top1_error"], line["top5_error"]])


def test_metrics_have_one_line_a_step_and_one_a_validation(run):
    lines = read_metrics(run[0])
    steps = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6] and [line["epoch"] for line in steps] == [
        1,
        1,
        1,
        2,
        2,
        2,
    ]
    for line in steps:
        assert 0 < line["loss"] < 10 and 0 <= line["top1_error"] <= 100 and line["images_per_second"] > 0
        assert line["learning_rate"] == line["bias_learning_rate"] == 0.01 and line["bytes_exchanged"] == 0
    validations = [line for line in lines if line["kind"] == "val"]
    assert [(line["step"], line["epoch"], line["images"]) for line in validations] == [(3, 1, 15), (6, 2, 15)]
    tests = [line for line in lines if line["kind"] == "test"]
    assert [line["protocol"] for line in tests] == ["centre view", "ten views"] and all(
        line["images"] == 15 for line in tests
    )
    assert tests[0]["top1_error"] == validations[-1]["top1_error"]


def test_run_json_says_what_ran(run):
    out, data = run
    content = json.loads((out / "run.json").read_text())
    assert content["recipe"]["batch_size"] == 10 and content["recipe"]["layers"][5]["maps"] == 16
    assert content["data"]["classes"] == ["apple", "leaf", "sky"] and len(content["data"]["fingerprint"]) == 64
    assert torch.__version__.startswith(content["packages"]["torch"])  # which may have "+cu130" at its end
    assert content["kernels"] == dispatch.resolve("auto", "cpu")
    assert [device["device"] for device in content["devices"]] == ["cpu", "cpu"] and content["command"].startswith(
        "python -m"
    )


def test_run_json_has_the_command_as_it_was_typed(folder, tmp_path):
    arguments = [*SMALL, "--data", str(folder), "--out", str(tmp_path / "a run"), "--steps", "1"]
    train.main(arguments)
    words = shlex.split(json.loads((tmp_path / "a run" / "run.json").read_text())["command"])
    assert words == ["python", "-m", "alexnet_mp.train", *arguments]


def test_the_command_line_can_ask_for_all_that_a_run_can_be_asked_for():
    """And what it doesn't say is asked for by who calls the training directly, too."""
    defaults = vars(train._parser().parse_args([]))
    assert defaults.pop("dry_run") is False  # which is no run
    assert defaults | {"settings": (), "command": ""} == vars(Options()) and defaults["settings"] == []


def test_evaluate_prints_both_protocols_and_agrees_with_training(run, capsys):
    out, data = run
    tests = {line["protocol"]: line for line in read_metrics(out) if line["kind"] == "test"}
    # without --data: what it was trained on
    for where in (["--data", str(data), "--batch-size", "4", "--workers", "0"], []):
        assert evaluate.main([str(out), "--gpus", "cpu", *where]) == 0
        output = capsys.readouterr().out
        for protocol in ("centre view", "ten views"):
            error = r"error +([\d.]+) % \([\d.]+ of 15: \d+ to \d+ %\)"
            match = re.search(rf"{protocol} +top-1 {error} +\(15 images; 95 % intervals\)", output)
            assert float(match[1]) == pytest.approx(tests[protocol]["top1_error"], abs=0.006)
        assert "top-5" not in output  # of three classes it is always 0


def test_steps_and_set_and_seed(folder, tmp_path, capsys):
    arguments = [
        *SMALL,
        "--data",
        str(folder),
        "--steps",
        "4",
        "--set",
        "conv1.init_std=0.02",
        "--set",
        "learning_rate=0.001",
    ]

    def losses(name, *more):
        train.main([*arguments, "--out", str(tmp_path / name), *more])
        lines = [line for line in read_metrics(tmp_path / name) if line["kind"] == "train"]
        assert [line["step"] for line in lines] == [1, 2, 3, 4] and lines[0]["learning_rate"] == 0.001
        return [line["loss"] for line in lines]

    first = losses("a")
    assert losses("b", "--workers", "0") == first  # a second run, other workers: the same to the last bit
    assert losses("c", "--seed", "1") != first
    output = capsys.readouterr().out
    assert "python -m alexnet_mp.evaluate" in output  # stopped before the end: says how to test it
    assert "top-1 error" in output and "top-5" not in output  # of three classes it is always 0
    assert not [line for line in read_metrics(tmp_path / "a") if line["kind"] == "test"]


@pytest.mark.slow
def test_a_plateau_ends_the_run(folder, tmp_path):
    """With a rate of 0 nothing improves: a drop every second epoch, then the end, long before the recipe's epochs."""
    train.main(
        [
            *SMALL,
            "--data",
            str(folder),
            "--out",
            str(tmp_path / "run"),
            "--epochs",
            "50",
            "--set",
            "schedule=plateau",
            "--set",
            "plateau_patience=1",
            "--set",
            "learning_rate=1e-12",
            "--set",
            "bias_learning_rate=1e-12",
        ]
    )
    lines = read_metrics(tmp_path / "run")
    rates = [line["learning_rates"]["fc8.weight"] for line in lines if line["kind"] == "schedule"]
    assert rates == pytest.approx([1e-12, 1e-13, 1e-14, 1e-15])
    assert len([line for line in lines if line["kind"] == "val"]) == 8
    assert [line["protocol"] for line in lines if line["kind"] == "test"] == ["centre view", "ten views"]


def test_the_default_on_a_cpu_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="no such directory"):
        train.main(["--data", str(tmp_path / "nowhere")])
    output = capsys.readouterr().out
    assert "recipe: mini" in output and "tower a on cpu" in output and "--gpus 0,1" not in output


def refused(arguments, tmp_path):
    """The one line with which train refuses; nothing may be left behind."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as error:
        train.main([*map(str, arguments), "--out", str(tmp_path / "refused")])
    assert sorted(tmp_path.rglob("*")) == before, "something was half-written"
    assert "\n" not in str(error.value)
    return str(error.value)


@every(
    "flags, words",
    [
        (["--set", "batchsize=3"], "did you mean batch_size"),
        (["--batch-size", "0"], "batch_size is 0"),
        (["--epochs", "0"], "epochs"),
        (["--steps", "0"], "--steps 0"),
        (["--keep", "0"], "--keep 0"),
        (["--checkpoint-every", "0"], "--checkpoint-every 0"),
        (["--checkpoint-every", "10 minutes"], "as in 10m"),
        (["--checkpoint-every", "0m"], "--checkpoint-every 0m"),
        (["--seed", "-1"], "seed"),
        (["--gpus", "99"], "GPU 99"),
        (["--gpus", "gpu"], "--gpus gpu"),
        (["--pipeline", "raw"], "prepare --raw"),
        (["--kernels", "triton"], "usable there: auto"),
        (["--workers", "-1"], "--workers -1"),
        (["--set", "crop_size=113"], "stored_size 112"),
        (["--data", __file__], "not a directory"),
        (["--kernels", "cuda"], "can't compute on cpu"),
    ],
)
def test_wrong_flags(flags, words, folder, tmp_path):
    assert words in refused([*SMALL, "--data", folder, *flags], tmp_path)


@every(
    "spoil, words",
    [
        (lambda d: None, None),
        (lambda d: (d / "train/leaf/3.jpg").write_bytes(b"not a picture"), "train/leaf/3.jpg"),
        (lambda d: (d / "val/sky/2.jpg").write_bytes(b""), "val/sky/2.jpg"),
        (
            lambda d: (d / "train/leaf/3.jpg").write_bytes((d / "train/leaf/3.jpg").read_bytes()[:900]),
            "train/leaf/3.jpg",
        ),
        (lambda d: [path.unlink() for path in (d / "train/leaf").iterdir()], "train/leaf"),
        (lambda d: (d / "val/leaf").rename(d / "val/tree"), "tree"),
        (lambda d: (d / "val").rename(d / "test"), "val/"),
        (
            lambda d: [
                (d / split / name).rename(d / f"{split}-{name}")
                for split in ("train", "val")
                for name in ("leaf", "sky")
            ],
            "single class",
        ),
    ],
    ids=["intact", "garbage", "empty file", "truncated", "empty class", "other classes", "no val", "single class"],
)
@every("workers", [0, 2])
def test_bad_data(spoil, words, workers, folder, tmp_path):
    spoil(folder)
    arguments = [*SMALL, "--data", folder, "--workers", workers, "--steps", "1"]
    if words is None:
        assert train.main([*map(str, arguments), "--out", str(tmp_path / "run")]) == 0
    else:
        assert words in refused(arguments, tmp_path)


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(["--set", "learning_rate=1e6"], id="in training"),
        pytest.param(["--set", "learning_rate=1e30", "--batch-size", "24"], id="in validation", marks=pytest.mark.slow),
    ],
)
def test_a_loss_that_blows_up_ends_the_run_with_one_line(flags, folder, tmp_path):
    with pytest.raises(UserError, match="the loss is (nan|inf) at step"):
        train.main([*SMALL, "--data", str(folder), "--out", str(tmp_path / "run"), "--epochs", "20", *flags])
    assert all(line["loss"] < float("inf") for line in read_metrics(tmp_path / "run") if "loss" in line)
    assert (tmp_path / "run" / "curves.png").exists()


def test_an_out_that_cannot_be_made_is_refused_before_any_image_is_read(folder, tmp_path):
    shutil.copytree(folder, folder := tmp_path / "set")
    (folder / "train/leaf/2.jpg").write_bytes(b"x")  # which would be refused, too
    with pytest.raises(UserError, match="not a directory that can be written to"):
        train.main([*SMALL, "--data", str(folder), "--out", str(folder / "train/leaf/1.jpg/run")])


def test_errors_are_one_line_and_exit_code_2(run, tmp_path, capsys):
    """No traceback, nothing on stdout that looks like success; and a directory that is taken.

    The first in a process of its own, as the command `alexnet-mp` starts it: one takes two seconds.
    """
    out, data = run
    process = subprocess.run(
        [sys.executable, "-m", "alexnet_mp", "train", *SMALL, "--data", data, "--out", out],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 2, process
    assert re.fullmatch(r"error: [^\n]+\n", process.stderr), process.stderr
    assert "is there already; --resume auto goes on with it" in process.stderr
    for main, arguments, words in (
        (train.main, ["--data", tmp_path / "nowhere"], "no such directory"),
        (evaluate.main, [tmp_path / "nowhere"], "not a run directory"),
        (evaluate.main, [out, "--data", tmp_path / "moved"], "no such directory"),
        (evaluate.main, [out, "--data", data, "--split", "test"], "no test/ folder"),
        (evaluate.main, [out, "--data", "builtin"], "classes"),
        (evaluate.main, [out, "--data", data, "--batch-size", "0"], "--batch-size 0"),
        (console.main, ["trian"], "there is no command 'trian'; did you mean train?"),
        (console.main, [], "required: COMMAND"),
    ):
        with pytest.raises(SystemExit) as system_exit:
            run_command(functools.partial(main, list(map(str, arguments))))
        message = capsys.readouterr().err
        assert system_exit.value.code == 2 and re.fullmatch(r"error: [^\n]+\n", message) and words in message, message
    for option, words in (("--version", r"alexnet_mp \d+\.\d+\.\d+\n"), ("--help", r".*\n  train +Train AlexNet .*")):
        with pytest.raises(SystemExit) as system_exit:
            console.main([option])
        assert not system_exit.value.code and re.fullmatch(words, capsys.readouterr().out, re.S)


def contents(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def test_a_dry_run_tells_all_and_writes_nothing(run, tmp_path, capsys, monkeypatch):
    """Of a new run, of one that goes on, of one in pieces; a step takes a second by the clock here."""
    out, data = run
    before = contents(out.parent), contents(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dry_run.dry_run, "__defaults__", (itertools.count().__next__,))
    arguments = [*SMALL, "--data", str(data), "--dry-run"]
    for options, words in (
        (["--epochs", "7"], "21 steps are about 21 s"),
        (["--epochs", "7", "--steps", "5", "--out", "new"], "run directory new,"),
        (["--epochs", "7", "--out", str(out), "--resume", "auto"], "15 steps are about 15 s"),
        (["--epochs", "7", "--resume", str(out)], "15 steps are about 15 s"),
        (["--epochs", "7", "--resume", str(out), "--out", "new", "--resume-anyway", "--microbatch", "4"], "step of 4"),
        (["--epochs", "7", "--out", "new", "--resume", "auto"], "21 steps are about 21 s"),
    ):
        assert train.main([*arguments, *options]) == 0
        output = capsys.readouterr().out
        assert words in output and "a step takes 1,000 ms (median of 3)" in output, (options, output)
        assert re.search(
            r"memory of a step of \d+ images in float32: tower a [\d.]+ MB .*; tower b .*; both on one ", output
        )
        # 64 maps of 5x5 each way into conv3 and into fc6, of 2x2 there, 16 units into fc7, into fc8 one way; and back
        assert "on two, 0.30 MB a step in float32, at conv3, fc6, fc7, fc8" in output, output
    assert train.main([*arguments, "--batch-size", "1000"]) == 0
    output = capsys.readouterr().out
    assert "memory of a step of 24 images" in output and "on two, 0.72 MB a step" in output  # of all that there are
    for flags, words in (
        (["--out", str(out)], "is there already"),
        (["--resume", str(out), "--out", str(data)], "is there already"),
        (["--resume", str(out), "--seed", "9"], "seed"),
        (["--set", "crop_size=113"], "stored_size 112"),
    ):
        with pytest.raises(UserError, match=words):
            train.main([*arguments, *flags])
    assert (contents(out.parent), contents(tmp_path)) == before


def flip(path):
    """A bit of the last byte."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 64
    path.write_bytes(content)


def test_a_damaged_run_is_refused(run, tmp_path):
    out, data = run
    for name, spoil, words in (
        ("recipe", lambda d: (d / "run.json").write_text("{"), "damaged"),
        ("weights", lambda d: max(d.glob("checkpoints/*/weights*")).write_bytes(b"x"), "weights.safetensors"),
        ("statistics", lambda d: max(d.glob("checkpoints/*/statistics*")).unlink(), "statistics.safetensors"),
        (
            "mean",
            lambda d: flip(max(d.glob("checkpoints/*/statistics*"))),
            "statistics.safetensors.* its sha256 is not",
        ),
        ("checkpoints", lambda d: shutil.rmtree(d / "checkpoints"), "no checkpoint"),
    ):
        copy = tmp_path / name
        shutil.copytree(out, copy)
        spoil(copy)
        with pytest.raises(UserError, match=words):
            evaluate.main([str(copy), "--data", str(data), "--workers", "0"])


FOR_EVER = ["--epochs", "100000", "--workers", "2", "--pipeline", "torch"]


def start(folder, run, **more):
    """A run that would take for ever, after its first few steps. more: of `forked_process.command`."""
    process = command(train.main, *SMALL, "--data", folder, "--out", run, *FOR_EVER, **more)
    process.until(lambda: steps_of(run) >= 6)
    return process


def steps_of(run):
    """Lines of its metrics."""
    return len((run / "metrics.jsonl").read_text().splitlines()) if (run / "metrics.jsonl").exists() else 0


def ended_cleanly(out, group):
    """Every step that was taken is in the metrics, the last one's weights are saved, and no worker is left behind."""
    steps = [line["step"] for line in read_metrics(out) if line["kind"] == "train"]
    assert steps == list(range(1, len(steps) + 1))
    assert (out / "checkpoints" / f"step_{steps[-1]:08d}" / "weights.safetensors").exists() and (
        out / "curves.png"
    ).exists()
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)


def test_ctrl_c_saves_and_ends_cleanly(folder, tmp_path):
    """As a user types it."""
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "alexnet_mp.train", *SMALL, "--data", str(folder), "--out", str(out), *FOR_EVER],
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    deadline = time.monotonic() + 120
    while steps_of(out) < 6:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # a terminal's Ctrl-C reaches the workers too
    output = process.communicate(timeout=60)[0]
    assert "Traceback" not in output and "stopped as asked" in output and process.returncode == 0
    ended_cleanly(out, process.pid)


def test_a_termination_saves_and_ends_cleanly(folder, tmp_path):
    process = start(folder, tmp_path / "run")
    os.killpg(process.pid, signal.SIGTERM)  # a scheduler's reaches the workers too
    assert process.wait() == 0 and "stopped as asked" in process.out and "Traceback" not in process.err
    ended_cleanly(tmp_path / "run", process.pid)


def test_a_closed_terminal_saves_and_ends_cleanly(folder, tmp_path):
    """The hang-up comes with a terminal that can't be written to any more."""
    terminal, end = pty.openpty()
    process = start(folder, tmp_path / "run", out=end, err=end, before=lambda: os.close(terminal))
    os.close(end)
    os.close(terminal)
    os.killpg(process.pid, signal.SIGHUP)
    assert process.wait() == 0
    ended_cleanly(tmp_path / "run", process.pid)


def test_a_killed_worker_ends_the_run_with_one_line(folder, tmp_path):
    process = start(folder, tmp_path / "run")
    workers = [int(child) for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    os.kill(workers[0], signal.SIGKILL)
    assert process.wait() == 2 and "a process that reads images was killed" in process.err
    assert process.err.count("\n") == 1 and process.leaves_none()


@pytest.mark.slow
def test_a_reader_that_leaves_does_not_end_the_run(folder, tmp_path):
    """train | head -2"""
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "alexnet_mp.train", *SMALL, "--data", str(folder), "--out", str(out), "--steps", "3"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(120) == 0 and process.stderr.read() == ""
    assert (out / "checkpoints" / "step_00000003" / "weights.safetensors").exists()


def test_everything_frozen_still_runs(folder, tmp_path):
    arguments = [*SMALL, "--data", str(folder), "--out", str(tmp_path / "run"), "--epochs", "1"]
    assert train.main([*arguments, "--set", "learning_rate=0", "--set", "bias_learning_rate=0"]) == 0


def test_evaluate_needs_only_the_split_that_it_tests(run, tmp_path, capsys):
    out, data = run
    shutil.copytree(data / "val", tmp_path / "images" / "test")
    assert evaluate.main([str(out), "--data", str(tmp_path / "images"), "--split", "test", "--gpus", "cpu"]) == 0
    assert capsys.readouterr().out.count("test, ") >= 2


@every("module", [prepare, train, evaluate, doctor])
def test_help_teaches_by_examples(module, capsys):
    with pytest.raises(SystemExit) as system_exit:
        module.main(["--help"])
    output = capsys.readouterr().out
    assert system_exit.value.code == 0 and output.count(f"python -m {module.__name__}") >= 2 and "default" in output


IMPORTS = """
import sys
import alexnet_mp
assert "torch" not in sys.modules
from alexnet_mp import *
assert paper().name == "paper"
assert TwoTowerAlexNet.__name__ == "TwoTowerAlexNet" and not hasattr(alexnet_mp, "caffe")
import importlib
for name in sys.argv[1:]:
    importlib.import_module(name)
from alexnet_mp.data import pipeline_dali
pipeline_dali.available()
import torch
assert not torch.cuda.is_initialized()
found = [name for name in sys.modules if name.startswith(("triton", "nvidia.dali", "matplotlib"))]
assert not found, found
"""


def test_importing_does_nothing():
    """The package imports torch when it is asked for what needs it. No module opens a device, prints, or needs CUDA,
    Triton or DALI; nor does the question whether DALI is there import it."""
    names = [f"alexnet_mp.{path.stem}" for path in Path(train.__file__).parent.glob("*.py")]
    process = subprocess.run([sys.executable, "-c", IMPORTS, *names], capture_output=True, text=True)
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")


def test_ctrl_c_while_a_command_is_imported_is_no_traceback(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise KeyboardInterrupt")
    script = tmp_path / "alexnet-mp"  # as an installation writes it
    script.write_text("import sys\nfrom alexnet_mp.__main__ import script\nsys.exit(script())\n")
    module = ["-m", "alexnet_mp.train"]
    for words, place, message in (
        (module, {}, "stopped\n"),
        (module, {"LOCAL_RANK": "1"}, ""),
        ([script, "train"], {}, "stopped\n"),
    ):
        process = subprocess.run(
            [sys.executable, *words],
            env={**os.environ, "PYTHONPATH": str(tmp_path), **place},
            capture_output=True,
            text=True,
        )
        assert (process.returncode, process.stdout, process.stderr) == (-signal.SIGINT, "", message)


@pytest.mark.slow
@pytest.mark.parametrize("closed", [1, 2])
def test_an_output_that_is_closed_from_the_beginning(closed, tmp_path):
    """train >&-"""
    process = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import os, sys\nos.close({closed})\n"
            f"os.execv({sys.executable!r}, [{sys.executable!r}, '-m', 'alexnet_mp.checkpoint', "
            f"{str(tmp_path / 'nowhere')!r}])",
        ],
        capture_output=True,
        text=True,
    )
    assert (
        process.returncode == 2
        and "Traceback" not in process.stderr
        and (closed == 2 or process.stderr.startswith("error: "))
    )
