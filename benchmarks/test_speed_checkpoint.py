"""What a checkpoint of the paper's network costs a training: `snapshot`, for which a step waits, and `write`, which
runs beside it.

    pytest benchmarks/test_speed_checkpoint.py --benchmark-only

On a CPU batch 16, on a GPU batch 128, both towers on one device. `step` is a training step, `step-meanwhile` the mean
of those that begin before one write ends; pct_of_training is what a checkpoint every ten minutes, `train`'s default,
takes of the time: the snapshot, and what these steps lose. `copy` clones the same tensors to host memory, the least
that a snapshot can take; % of a copy is in that. The files go through the page cache and are synced, in pytest's
temporary directory."""

import random
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from interleaved import REPLAY, clocks, compare, once, provenance, replay, rounds_in

from alexnet_mp import TwoTowerAlexNet, paper
from alexnet_mp.data.pixel_statistics import Statistics
from alexnet_mp.parallel.pieces import WHOLE
from alexnet_mp.runs.checkpoint_format import load
from alexnet_mp.runs.checkpoint_state import Data
from alexnet_mp.runs.lock import RunLock
from alexnet_mp.runs.metrics import Metrics
from alexnet_mp.system.ranks import ALONE
from alexnet_mp.training.resume import environment
from alexnet_mp.training.trainer import Trainer

DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
BATCH = 128 if torch.cuda.is_available() else 16
VARIANTS = ("copy", "snapshot", "write", "step", "step-meanwhile")
INTERVAL = 600  # seconds


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return once(lambda batch, rounds: measure(batch, rounds, tmp_path_factory.mktemp("checkpoints")))


@pytest.mark.benchmark(timer=REPLAY)
@pytest.mark.parametrize("variant", VARIANTS)
def test_checkpoint(variant, benchmark, measured, rounds, request):
    batch = (request.config.getoption("batch") or (BATCH,))[0]
    seconds, conditions = measured(batch, rounds)
    benchmark.group = f"checkpoint-{DEVICE.type}-fp32-b{batch}"
    replay(benchmark, seconds[variant])
    benchmark.extra_info.update(
        provenance(DEVICE) | conditions | {"op": "checkpoint", "variant": variant, "dtype": "fp32", "batch": batch}
    )
    if variant == "step-meanwhile":
        turns = {name: {"round": values} for name, values in seconds.items() if name.startswith("step")}
        benchmark.extra_info.update(compare(turns, "round", None, ("step",))[variant])
    if variant == "snapshot":
        median = {name: float(np.median(values)) for name, values in seconds.items()}
        cost = median["snapshot"] + conditions["steps_meanwhile"] * max(0.0, median["step-meanwhile"] - median["step"])
        benchmark.extra_info.update(
            pct_of_training=100 * cost / INTERVAL, pct_of_roof=100 * median["copy"] / median["snapshot"]
        )


def measure(batch, rounds, directory):
    """({variant: seconds, one a round}, what the record says of the conditions).

    The snapshot is compared with the weights first.
    """
    training = Training(batch, directory)
    training.step()  # the velocities come to be
    content, copies = training.trainer.snapshot(), training.copy()
    training.step()
    for merged, tensors in zip((content.weights, content.velocity), copies, strict=True):  # of the step before
        assert (
            all(torch.equal(merged[name], torch.cat(parts)) for name, parts in tensors.items())
            and merged.keys() == tensors.keys()
        )
    assert not torch.equal(content.weights["fc8.weight"], training.network.merged_state()["fc8.weight"])
    del content, copies

    seconds, before = {name: [] for name in VARIANTS}, clocks(DEVICE)
    runs = {
        "copy": training.copy,
        "snapshot": training.trainer.snapshot,
        "write": training.write,
        "step": training.step,
    }
    for turn in rounds_in(rounds=rounds, warm_up=1):
        for name in random.Random(turn).sample(VARIANTS, len(VARIANTS)):
            duration = training.step_meanwhile() if name == "step-meanwhile" else training.clock(runs[name])
            if turn >= 0:
                seconds[name].append(duration)
    checkpoint = load(training.trainer.checkpoints.saver.saved)
    assert all(torch.equal(tensor, training.content.weights[name]) for name, tensor in checkpoint.weights.items())
    bytes_ = sum(path.stat().st_size for path in training.trainer.checkpoints.saver.saved.iterdir())
    return seconds, {
        "kernels": training.network.kernels_used(),
        "bytes": bytes_,
        "clocks_before": before,
        "clocks_after": clocks(DEVICE),
        "steps_meanwhile": round(float(np.median(training.steps_meanwhile))),
    }


class Training:
    """The paper's network, a `Trainer` for its snapshots and saves, and a batch that is there already."""

    def __init__(self, batch, directory):
        recipe = paper()
        self.network = TwoTowerAlexNet(recipe, (DEVICE, DEVICE))
        self.images = 60 * torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(DEVICE)
        self.labels = (torch.arange(batch) % 1000).to(DEVICE)
        statistics = Statistics(np.ones((recipe.stored_size, recipe.stored_size, 3)), np.ones(3), np.eye(3))
        pipeline = SimpleNamespace(
            name="none",
            dataset=SimpleNamespace(splits={"train": range(1_200_000)}),
            statistics=statistics,
            pieces=WHOLE,
        )
        run = SimpleNamespace(path=directory, lock=RunLock(directory), metrics=Metrics(directory))
        data = Data("none", "", "", tuple(f"n{number:08}" for number in range(1000)))
        constants = {"recipe": recipe, "data": data, "made_by": environment(self.network, pipeline, "fp32")}
        options = {"keep": 3, "on_save_error": "continue", "keep_every": None, "graphs": "auto", "ranks": ALONE}
        self.trainer = Trainer(self.network, pipeline, run, constants, steps=None, every=(600, "seconds"), **options)
        self.trainer.optimizer.set_rates(self.trainer.schedule.rates(1))
        self.content, self.steps_meanwhile = None, []

    def step(self):
        loss = F.cross_entropy(self.network(self.images, self.images), self.labels)
        self.trainer.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.trainer.optimizer.step()

    def copy(self):
        """({name: parts} of the weights, and of the velocities), each tensor by itself."""
        return [
            {name: [part.detach().to("cpu", copy=True) for part in parts] for name, parts in layers.items()}
            for layers in (self.network.layer_parameters(), self.trainer.optimizer.velocities())
        ]

    def write(self):
        self.begin()
        self.end()

    def begin(self):
        self.content = self.content or self.trainer.snapshot()
        self.trainer.checkpoints.saver.start(self.content)

    def end(self):
        self.trainer.checkpoints.saver.wait()
        assert self.trainer.checkpoints.saver.outcome() == (None, None)

    def step_meanwhile(self):
        """Seconds of a step, the mean of those that begin before the write of one checkpoint ends."""
        self.begin()
        durations = [self.clock(self.step)]
        while self.trainer.checkpoints.saver.busy:
            durations.append(self.clock(self.step))
        self.end()
        self.steps_meanwhile.append(len(durations))
        return sum(durations) / len(durations)

    def clock(self, function):
        if DEVICE.type == "cuda":
            torch.cuda.synchronize(DEVICE)
        start = time.perf_counter()
        output = function()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize(DEVICE)
        duration = time.perf_counter() - start
        del output
        return duration
