"""Whole training runs of half a second: a network of 1,475 weights on 24 + 6 small pictures; and what two runs must
have alike."""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from image_folders import make_folder

from alexnet_mp import prepare, train
from alexnet_mp.runs import checkpoint_format, checkpoint_state, directory
from alexnet_mp.runs.checkpoints import listing
from alexnet_mp.runs.metrics import read_metrics
from alexnet_mp.training import trainer
from alexnet_mp.training.trainer import Trainer

LAYERS = [
    {
        "name": "conv1",
        "kind": "conv",
        "maps": 3,
        "reads": "image",
        "then": ["relu", "lrn", "max_pool"],
        "kernel": 5,
        "stride": 4,
        "init_std": 0.02,
    },
    {
        "name": "conv2",
        "kind": "conv",
        "maps": 4,
        "reads": "both",
        "then": ["relu", "max_pool"],
        "kernel": 3,
        "pad": 1,
        "init_std": 0.2,
    },
    {
        "name": "fc6",
        "kind": "fc",
        "maps": 8,
        "reads": "both",
        "then": ["relu", "dropout"],
        "init_std": 0.3,
        "init_bias": 0.5,
    },
    {"name": "fc8", "kind": "fc", "maps": None, "reads": "both", "then": [], "init_std": 0.3, "towers": "first"},
]
PER_EPOCH, EPOCHS = 3, 3  # two batches of 9 images and one of 6
LAST = PER_EPOCH * EPOCHS
TINY = [
    "--gpus",
    "cpu",
    "--recipe",
    "mini",
    "--batch-size",
    "9",
    "--pipeline",
    "torch",
    "--workers",
    "0",
    "--set",
    "stored_size=40",
    "--set",
    "crop_size=32",
    "--set",
    "crop_positions=8",
    "--set",
    "learning_rate=0.002",
    "--epochs",
    str(EPOCHS),
    "--set",
    f"layers={json.dumps(LAYERS)}",
]
# Schedules whose changes are in reach of three epochs. With such small rates every validation has the same errors, and
# every second one brings a drop.
DATED = [
    "--set",
    'dates=[{"epoch": 2, "weights": 0.1, "colour_noise": 0.3}, '
    '{"epoch": 3, "layers": ["conv1"], "weights": 0, "biases": 0}]',
    "--set",
    "schedule=dated",
]
PLATEAU = [
    "--set",
    "schedule=plateau",
    "--set",
    "plateau_patience=1",
    "--set",
    "learning_rate=1e-6",
    "--set",
    "bias_learning_rate=1e-6",
]
SOURCE2012 = [
    "--set",
    "crop_share=4",
    "--set",
    "reshuffle=false",
    "--set",
    "mean_follows_crop=false",
    "--set",
    "colour_scale=root",
    "--set",
    "colour_shrink=true",
    "--set",
    "pool_ties=all",
    *DATED,
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pictures prepared as raw pixels, which every pipeline reads."""
    root = tmp_path_factory.mktemp("pictures")
    make_folder(root / "folder", train=8, val=2, size=(48, 44))
    assert prepare.main([str(root / "folder"), str(root / "set"), "--size", "40", "--workers", "0", "--raw"]) == 0
    return root / "set"


@pytest.fixture
def quick(monkeypatch):
    make_quick(monkeypatch)


def make_quick(monkeypatch):
    """No pictures are drawn, and git isn't asked: 0.5 s a run."""
    monkeypatch.setattr(trainer, "draw_curves", lambda run, classes: None)
    monkeypatch.setattr(trainer, "draw_kernels", lambda *_: None)
    monkeypatch.setattr(directory, "source_commit", lambda: "0123abc")


def run(data, out, *more):
    """Train in this process; a list stands for the arguments in it."""
    assert train.main([*TINY, "--data", str(data), "--out", str(out), *map(str, more)]) == 0
    return Path(out)


def resume(data, out, *more):
    return run(data, out, "--resume", "auto", *more)


def process_of(data, out, *more):
    """The command of the same run in another process, and its environment: as many threads as here, or the bits may
    differ."""
    return (
        [sys.executable, "-m", "alexnet_mp.train", *TINY, "--data", str(data), "--out", str(out), *map(str, more)],
        {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )


def interrupt():
    signal.raise_signal(signal.SIGTERM)


def signalled_after(monkeypatch, owner, name, calls, then=interrupt):
    """`then` happens right after `owner.name` was called for the `calls`th time."""
    function, count = getattr(owner, name), 0

    def counted(*arguments, **options):
        nonlocal count
        result = function(*arguments, **options)
        count += 1
        if count == calls:
            then()
        return result

    monkeypatch.setattr(owner, name, counted)


def signalled_in_test(monkeypatch, number, then=interrupt):
    """`then` happens after the first batch of test `number` (1: the first validation; at the end of the run both
    protocols)."""
    function, count = trainer.evaluate, 0

    def evaluate(network, pipeline, split, protocols, batch_size, advance, **how):
        nonlocal count
        count += 1
        turn = count

        def watched(images):
            if turn == number:
                then()
            advance(images)

        return function(network, pipeline, split, protocols, batch_size, watched, **how)

    monkeypatch.setattr(trainer, "evaluate", evaluate)


@pytest.fixture
def seen(monkeypatch):
    return see_steps(monkeypatch)


def see_steps(monkeypatch):
    """What every step of all runs read: [(step, epoch, image numbers, digest of each tower's images, labels, dropout's
    step)]."""
    steps, function = [], Trainer.one_step

    def one_step(self, batch):
        images = [hashlib.sha256(part.contiguous().numpy().tobytes()).hexdigest() for part in batch.images]
        entry = [batch.epoch, batch.numbers.tolist(), *images, batch.labels.tolist()]
        function(self, batch)
        steps.append((self.step, *entry, self.network.step))

    monkeypatch.setattr(Trainer, "one_step", one_step)
    return steps


def lines(out):
    """metrics.jsonl without the only number that may differ."""
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in read_metrics(out)]


def state(directory):
    """A checkpoint's state; for its length of metrics.jsonl, whose images/s have more or fewer digits: how many lines
    these are."""
    fields = checkpoint_state.fields_of(checkpoint_format.read_state(directory))
    content = (directory.parent.parent / "metrics.jsonl").read_bytes()[: fields.pop("metrics_bytes")]
    assert not content or content.endswith(b"\n")
    del fields["saved"]
    return fields | {"metrics_lines": content.count(b"\n")}


def newest(out):
    return next(reversed(listing(out).values()))


def tensors(directory):
    content = checkpoint_format.load(directory)
    return {
        "weights": content.weights,
        "velocity": content.velocity,
        "statistics": {name: torch.from_numpy(value) for name, value in vars(content.statistics).items()},
    }


def bits(tensor):
    """For a comparison that tells -0.0 from 0.0."""
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy().tobytes()


def assert_same_end(out, whole, but=()):
    """Two runs ended alike: metrics, and the newest checkpoint's tensors and state, bit for bit. but: fields of the
    state."""
    assert lines(out) == lines(whole)
    assert newest(out).name == newest(whole).name
    actual, expected = state(newest(out)), state(newest(whole))
    for name in but:
        del actual[name], expected[name]
    assert actual == expected
    actual, expected = tensors(newest(out)), tensors(newest(whole))
    for kind in expected:
        assert actual[kind].keys() == expected[kind].keys()
        for name, tensor in expected[kind].items():
            assert bits(actual[kind][name]) == bits(tensor), f"{kind}: {name}"


def add_to_step(monkeypatch, step, action):
    """`action(trainer)` happens just before step `step`."""
    function = Trainer.one_step

    def one_step(self, batch):
        if self.step + 1 == step:
            action(self)
        function(self, batch)

    monkeypatch.setattr(Trainer, "one_step", one_step)
