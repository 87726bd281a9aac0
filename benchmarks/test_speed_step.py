"""One training step, forward, loss and backward: two towers, the same with plain PyTorch kernels, the equivalent merged network.

    pytest benchmarks/test_speed_step.py --benchmark-only

On a CPU batch 16 of the paper's network, on a GPU batch 128, both towers on one device. `ratio_to_merged` of the towers tells the
gain (above 1) or price of computing two halves instead of one grouped whole, `ratio_to_reference` what the kernels bring to it.
"""
import functools

import pytest
import torch
import torch.nn.functional as F
from in_turn import REPLAY, clocks, compare, provenance, replay, time_in_turn

from alexnet_mp import TwoTowerAlexNet, paper

DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
BATCH = 128 if torch.cuda.is_available() else 16
RIVALS = ("towers", "merged", "reference")


@pytest.fixture(scope="module")
def measured():
    return functools.cache(measure)


@pytest.mark.benchmark(timer=REPLAY)
@pytest.mark.parametrize("rival", RIVALS)
def test_step(rival, benchmark, measured, request):
    batch = (request.config.getoption("batch") or (BATCH,))[0]
    seconds, noted = measured(batch, 1 if benchmark.disabled else request.config.getoption("rounds") or 7)
    if rival not in seconds:
        pytest.skip("the towers themselves run on the reference: no other kernels are built here")
    benchmark.group = f"step-fp32-b{batch}"
    replay(benchmark, seconds[rival]["step"])
    benchmark.extra_info.update(provenance(DEVICE) | noted | compare(seconds, "step", None, ("merged", "reference"))[rival] | {
        "op": "step", "rival": rival, "dtype": "fp32", "batch": batch})


def measure(batch, rounds):
    """The losses compared, then the steps timed: (seconds, what the record says of the conditions)."""
    towers = TwoTowerAlexNet(paper(), (DEVICE, DEVICE))
    images = 60 * torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    labels = (torch.arange(batch) % 1000).to(DEVICE)
    rivals = {"towers": Step(towers, labels, images, images), "merged": Step(towers.merge(), labels, images)}
    if towers.kernels_used() != "reference":
        plain = TwoTowerAlexNet(paper(), (DEVICE, DEVICE), kernels="reference")
        plain.load_state_dict(towers.state_dict())
        rivals["reference"] = Step(plain, labels, images, images)
    losses = {name: step.loss().item() for name, step in rivals.items()}
    assert all(loss == pytest.approx(losses["towers"], rel=1e-4) for loss in losses.values()), losses
    before = clocks(DEVICE)
    seconds, _ = time_in_turn(rivals, DEVICE, rounds)
    return seconds, {"kernels": towers.kernels_used(), "clocks_before": before, "clocks_after": clocks(DEVICE), "seed": 0}


class Step:
    """One network's forward pass, loss and backward pass."""

    calls, sets = 1, 1

    def __init__(self, network, labels, *images):
        self.network, self.labels, self.images = network, labels, images
        self.runs = {"step": self.loss}

    def loss(self):
        self.network.zero_grad()
        loss = F.cross_entropy(self.network(*self.images), self.labels)
        loss.backward()
        return loss.detach()
