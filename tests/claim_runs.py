"""Claims run at toy size."""

from pathlib import Path

import pytest
from image_folders import make_folder

from alexnet_mp import claims
from alexnet_mp.experiments import records
from alexnet_mp.experiments.paper_claims import CLAIMS
from alexnet_mp.experiments.records import read_records
from alexnet_mp.training.trainer import Trainer

SMALL = [
    "--gpus",
    "cpu",
    "--pipeline",
    "torch",
    "--workers",
    "0",
    "--epochs",
    "1",
    "--set",
    "batch_size=9",
    "--set",
    "conv1.maps=2",
    "--set",
    "learning_rate=0.002",
]
MINI = [
    *SMALL,
    "--base",
    "mini",
    "--set",
    "stored_size=84",
    "--set",
    "crop_size=80",
    "--set",
    "crop_positions=4",
    *(word for layer in ("conv2", "conv3", "conv4", "conv5", "fc6", "fc7") for word in ("--set", f"{layer}.maps=4")),
]
CIFAR = [*SMALL, "--set", "conv2.maps=2"]
BY_ID = {claim.id: claim for claim in CLAIMS}
STEPS = 3  # an epoch: two batches of 9 images and one of 6


@pytest.fixture
def no_pictures(monkeypatch):
    """They take a second each."""
    monkeypatch.setattr(records, "draw_claim", lambda record, path: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("pictures") / "data", train=8, val=2, size=(100, 96))


def run(claim, data, out, *more, status=0):
    """`claims run`; returns the newest record, or None."""
    options = CIFAR if claim in BY_ID and BY_ID[claim].data == "cifar10" else MINI
    where = ["--data", data, "--out", out, "--records", Path(out) / "records"]
    assert claims.main(["run", claim, *where, *options, *more]) == status
    return read_records(Path(out) / "records").get(claim, [None])[0]


def without_times(record):
    """A record but for what may differ between two runs."""
    runs = [
        {
            name: value
            for name, value in entry.items()
            if name not in ("seconds", "images_per_second", "directory", "command")
        }
        for entry in record["runs"]
    ]
    return {name: value for name, value in record.items() if name not in ("date", "command", "runs")} | {"runs": runs}


def steps_taken(monkeypatch):
    """A list that grows by the seed of every step's recipe."""
    seeds, function = [], Trainer.one_step

    def one_step(self, batch):
        function(self, batch)
        seeds.append(self.recipe.seed)

    monkeypatch.setattr(Trainer, "one_step", one_step)
    return seeds
