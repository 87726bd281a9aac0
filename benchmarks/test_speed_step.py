"""One training step, forward, loss and backward: two towers, the equivalent merged network, and rivals in plain PyTorch.

    pytest benchmarks/test_speed_step.py --benchmark-only [--batch 16] [--rounds 3]

Both towers are on one device. `towers` and `merged` are ours, `reference` is the towers with plain PyTorch kernels. `eager` and
`compile` are a good engineer's two towers (`rivals.py`); on a CPU `untouched` is `eager` in a process of its own, whose allocator
gives freed memory back, as PyTorch's does unless it is told otherwise; all else runs in one process, with freed memory kept.
`no-lrn` is the one-tower network without LRN that is called AlexNet today: another network, which shows what the paper's costs.

Before the first round the losses and the first layer's gradients are compared, without dropout. `saved_bytes`: what forward keeps
for backward, each storage once, without weights and images.
"""
import dataclasses
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from in_turn import REPLAY, clocks, compare, provenance, replay, time_in_turn
from rivals import EagerTowers, without_norms_and_towers

from alexnet_mp import TwoTowerAlexNet, paper

DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
RIVALS = ("towers", "merged", "reference", "eager", "compile", "untouched", "no-lrn")
ABSENT = {"reference": "the towers themselves run on the reference: no other kernels are built here",
          "compile": "torch.compile needs a C++ compiler, and there is none", "untouched": "an allocator of CPU memory: only there"}


@pytest.fixture(scope="module")
def measured():
    return functools.cache(measure)


@pytest.mark.benchmark(timer=REPLAY)
@pytest.mark.parametrize("rival", RIVALS)
def test_step(rival, benchmark, measured, request):
    batch = (request.config.getoption("batch") or (4 if benchmark.disabled else 128,))[0]
    seconds, saved, noted = measured(batch, 1 if benchmark.disabled else request.config.getoption("rounds") or 7)
    if rival not in seconds:
        pytest.skip(ABSENT[rival])
    benchmark.group = f"step-fp32-b{batch}"
    replay(benchmark, seconds[rival]["step"])
    figures = compare(seconds, "step", None, ("eager", "compile", "untouched", "no-lrn", "reference", "merged"))[rival]
    benchmark.extra_info.update(provenance(DEVICE) | noted | figures | {"op": "step", "rival": rival, "dtype": "fp32", "batch": batch})
    if rival in saved:
        benchmark.extra_info["saved_bytes"] = saved[rival]


def measure(batch, rounds):
    """The answers compared, then the steps timed: (seconds, bytes saved, what the record says of the conditions)."""
    images = 60 * torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    images, labels = images.to(memory_format=torch.channels_last), (torch.arange(batch) % 1000).to(DEVICE)
    check_answers(images[:16], labels[:16])
    towers = TwoTowerAlexNet(paper(), (DEVICE, DEVICE))
    eager = EagerTowers(paper()).take(towers).to(DEVICE, memory_format=torch.channels_last)
    rivals = {"towers": Step(towers, labels, images, images), "merged": Step(towers.merge(), labels, images),
              "eager": Step(eager, labels, images)}
    if towers.kernels_used() != "reference":
        rivals["reference"] = Step(TwoTowerAlexNet(paper(), (DEVICE, DEVICE), kernels="reference"), labels, images, images)
    other = without_norms_and_towers().to(DEVICE, memory_format=torch.channels_last)
    rivals["no-lrn"] = Step(other, labels, images)
    saved = {name: step.saved_bytes() for name, step in rivals.items()}
    if DEVICE.type == "cuda" or shutil.which(os.environ.get("CXX", "c++")):
        rivals["compile"] = Step(torch.compile(eager, mode="max-autotune-no-cudagraphs" if DEVICE.type == "cuda" else None), labels, images)
    if DEVICE.type == "cpu":
        rivals["untouched"] = Untouched(batch)
    before = clocks(DEVICE)
    try:
        seconds, _ = time_in_turn(rivals, DEVICE, rounds)
    finally:
        if "untouched" in rivals:
            rivals["untouched"].end()
    return seconds, saved, {"kernels": towers.kernels_used(), "clocks_before": before, "clocks_after": clocks(DEVICE), "seed": 0}


def check_answers(images, labels):
    """Loss and gradient of the first layer's weights alike in all that compute the paper's network. Raises AssertionError.

    Without dropout, whose masks differ. A near-tie in a pooling window, or a value near 0 in a ReLU, may fall either way.
    """
    recipe = dataclasses.replace(paper(), dropout=0.0)
    towers = TwoTowerAlexNet(recipe, (DEVICE, DEVICE))
    plain = TwoTowerAlexNet(recipe, (DEVICE, DEVICE), kernels="reference")
    merged, eager = towers.merge(), EagerTowers(recipe).take(towers).to(DEVICE)
    found = {}
    for name, network, count, first in (("towers", towers, 2, towers.towers[0].conv1), ("reference", plain, 2, plain.towers[0].conv1),
                                        ("merged", merged, 1, merged.conv1), ("eager", eager, 1, eager.towers[0]["conv1"])):
        loss = F.cross_entropy(network(*[images] * count), labels)
        loss.backward()
        found[name] = loss.item(), first.weight.grad[:48].clone()
    expected, gradient = found["eager"]
    for name, (loss, other) in found.items():
        assert loss == pytest.approx(expected, rel=1e-4), f"{name}: a loss of {loss}, eager {expected}"
        error = ((other - gradient).norm() / gradient.norm()).item()
        assert error < 2e-2, f"{name}: the gradient of conv1's weights is {error:.1e} off, relative to its norm"


class Step:
    """One network's forward pass, loss and backward pass."""

    calls, sets = 1, 1

    def __init__(self, network, labels, *images):
        self.network, self.labels, self.images = network, labels, images
        self.runs = {"step": self.step}

    def step(self):
        self.network.zero_grad()
        self._loss().backward()

    def _loss(self):
        return F.cross_entropy(self.network(*self.images), self.labels)

    def saved_bytes(self):
        """Bytes that a forward pass keeps for backward beside weights and images, each storage once."""
        known = {tensor.untyped_storage().data_ptr() for tensor in (*self.network.parameters(), *self.images, self.labels)}
        kept = {}

        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                kept[storage.data_ptr()] = tensor, storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = self._loss()
        del loss
        return sum(bytes_ for _, bytes_ in kept.values())


class Untouched:
    """`untouched.py` in its process; a step of it when its turn comes."""

    calls, sets = 1, 1

    def __init__(self, batch):
        self.process = subprocess.Popen([sys.executable, Path(__file__).with_name("untouched.py"), str(batch)], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.runs = {"step": self.step}
        self._hear("ready")

    def step(self):
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        self._hear("done")

    def _hear(self, word):
        if (said := self.process.stdout.readline().strip()) != word:
            raise RuntimeError(f"untouched.py said {said!r} for {word!r}; it ended with status {self.process.poll()}")

    def end(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
