"""Counts that would take the machine down are refused in one line, before a process is started or an image is read."""

import os
import re
import resource
import subprocess
from types import SimpleNamespace

import pytest
import torch
from inner_cases import every
from tiny_run import TINY, process_of, run

from alexnet_mp import evaluate, prepare, retrieve, train
from alexnet_mp.data import limits
from alexnet_mp.data.limits import least_bytes, refuse_batch, refuse_workers
from alexnet_mp.parallel.pieces import Pieces
from alexnet_mp.profiling.layer_memory import step_bytes
from alexnet_mp.recipes.architectures import mini
from alexnet_mp.system.errors import UserError
from alexnet_mp.training.profiler import MOST_STEPS, steps_of

pytestmark = pytest.mark.usefixtures("quick", "one_thread")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    return run(data, tmp_path_factory.mktemp("runs") / "run", "--steps", "1")


@every("cores, most", [(1, 64), (2, 64), (16, 64), (17, 68), (256, 1024)])
def test_the_most_workers(cores, most, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    for workers in (0, 1, cores, most):
        refuse_workers(workers, "")
    for workers in (most + 1, 100_000, 10**30):
        with pytest.raises(UserError, match=rf"^--workers {workers}: at most {most} on .* {cores} cores?; [^\n]+$"):
            refuse_workers(workers, "")


@pytest.mark.run
@every(
    "main, words",
    [
        (train.main, [*TINY, "--data", "DATA", "--out", "OUT"]),
        (evaluate.main, ["RUN", "--data", "DATA", "--gpus", "cpu"]),
        (retrieve.main, ["index", "RUN", "--data", "DATA", "--gpus", "cpu", "--out", "OUT"]),
        (prepare.main, ["DATA", "OUT"]),
        (prepare.main, ["--check", "DATA"]),
    ],
)
def test_no_command_starts_so_many_processes(main, words, trained, data, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("a process was started"))
    places = {"DATA": str(data), "RUN": str(trained), "OUT": str(tmp_path / "out")}
    words = [places.get(word, word) for word in words]
    with pytest.raises(UserError, match="^--workers 100000: at most "):
        main([*words, "--workers", "100000"])
    assert not (tmp_path / "out").exists()


def test_a_batch_that_memory_cannot_hold(trained, data, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "free_memory", lambda: 20_000)
    options = ["--gpus", "cpu", "--workers", "0", "--data", str(data)]
    for main, words in (
        (train.main, [*TINY, "--out", str(tmp_path / "out")]),
        (evaluate.main, [str(trained)]),
        (retrieve.main, ["index", str(trained), "--out", str(tmp_path / "out")]),
    ):
        with pytest.raises(UserError, match="need .* GB of memory at least, and 0.0 GB are free; .* would fit$"):
            main([*words, *options])
    assert not (tmp_path / "out").exists()


def pipeline(images, **others):
    return SimpleNamespace(
        **{
            "recipe": mini(),
            "dataset": SimpleNamespace(classes=range(10), splits={"train": range(images), "val": range(9)}),
            "devices": [torch.device("cpu")] * 2,
            "workers": 0,
            "name": "torch",
            "dtype": torch.float32,
            **others,
        }
    )


def test_how_many_images_would_fit_is_said_and_fits(monkeypatch):
    monkeypatch.setattr(limits, "free_memory", lambda: least_bytes(pipeline(10**6), 1000, True) + 1)
    refuse_batch(pipeline(10**6), 1000, training=True)
    refuse_batch(pipeline(900), 10**9, training=True)  # there are no more
    with pytest.raises(UserError, match="^batch size 1001: 1,001 images need .*; about 1,000 would fit$"):
        refuse_batch(pipeline(10**6), 1001, training=True)
    with pytest.raises(UserError, match="^batch size 128: .* images need "):  # what workers hold ready
        refuse_batch(pipeline(10**6, workers=10_000), 128, training=True)
    refuse_batch(pipeline(10**6, devices=[torch.device("cuda")] * 2), 10_000, training=True)  # it says so itself


def test_what_one_process_holds_at_a_time_is_counted(monkeypatch):
    """Of a minibatch in pieces only one piece is computed at a time; but all its images are read, and tested."""
    total = least_bytes(pipeline(10**6), 1000, True)
    base, test_total = (least_bytes(pipeline(10**6), images, False) for images in (0, 1000))
    network, piece = least_bytes(pipeline(10**6), 0, True), least_bytes(pipeline(10**6), 100, True)
    for pieces, bound in (
        (Pieces(0, 1, 1000), total),
        (Pieces(1, 2), least_bytes(pipeline(10**6), 500, True)),
        (Pieces(0, 10), max(piece, network + test_total - base)),
        (Pieces(3, 1000, 1), network + test_total - base),
        (Pieces(0, 2, 100), max(piece, network + test_total - base)),
    ):
        need = least_bytes(pipeline(10**6), 1000, True, pieces)
        assert bound <= need < total or pieces.microbatch == 1000 and need == total, pieces
        for processes in (1, 3):
            monkeypatch.setattr(limits, "free_memory", lambda: processes * need)
            refuse_batch(pipeline(10**6), 1000, True, pieces, processes)
            monkeypatch.setattr(limits, "free_memory", lambda: processes * need - 1)
            with pytest.raises(UserError, match=r"^batch size 1000: 1,000 images need .*; about \d+ would fit$"):
                refuse_batch(pipeline(10**6), 1000, True, pieces, processes)


def test_a_network_that_memory_cannot_hold(monkeypatch):
    monkeypatch.setattr(limits, "free_memory", lambda: 10**6)
    with pytest.raises(UserError, match="^the network of .* GB and a batch need .*; fewer maps would fit$"):
        refuse_batch(pipeline(100), 10, training=True)


def test_nothing_is_refused_that_fits():
    """What is counted is less than a step keeps, and not by much."""
    memory = step_bytes(mini(), 10, 64).one_device
    base = least_bytes(pipeline(64), 0, True)
    assert base == 3 * memory.weights
    activations = memory.activations
    assert activations / 2 < least_bytes(pipeline(64), 64, True) - base < 1.1 * activations


def test_other_counts_of_memory(trained, data):
    assert steps_of(str(MOST_STEPS)) == MOST_STEPS
    for steps in (MOST_STEPS + 1, "9" * 30, "9" * 5000):
        with pytest.raises(UserError, match=f"1 to {MOST_STEPS}"):
            steps_of(str(steps))
    for size in ("0", "-3"):
        with pytest.raises(UserError, match=f"^--batch-size {size}: it must be at least 1$"):
            retrieve.main(["index", str(trained), "--gpus", "cpu", "--batch-size", size])
    for seed in (-1, 2**32, 10**30):
        with pytest.raises(UserError, match=f"^--seed {seed}: it must be 0 to 4294967295$"):
            retrieve.main(["index", str(trained), "--gpus", "cpu", "--seed", str(seed)])


@pytest.mark.process
def test_few_open_files_are_one_line(data, tmp_path):
    """ulimit -n 24"""
    arguments, environment = process_of(data, tmp_path / "run", "--steps", "1", "--workers", "8")
    limit = (24, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    process = subprocess.run(
        arguments,
        env=environment,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limit),
        capture_output=True,
        text=True,
    )
    assert process.returncode == 2 and "Traceback" not in process.stdout
    assert re.fullmatch(r"error: [^\n]*[Tt]oo many open files; --workers 0 [^\n]*\n", process.stderr), process.stderr
