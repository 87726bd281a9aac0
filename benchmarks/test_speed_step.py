"""One training step, forward, loss and backward: two towers against the equivalent merged network, in turn.

`pytest benchmarks/ --benchmark-only`. On a CPU batch 16 of the paper's network, on a GPU batch 128, both towers on one device. The
ratio of the two is the price (or gain) of computing two halves instead of one grouped whole.
"""
import pytest
import torch
import torch.nn.functional as F

from alexnet_mp import TwoTowerAlexNet, paper

DEVICE = "cuda:0" if torch.cuda.is_available() else "cpu"
BATCH = 128 if torch.cuda.is_available() else 16


@pytest.fixture(scope="module")
def networks():
    """Two towers and the merged network with the same weights, images and labels; their losses agree before anything is timed."""
    towers = TwoTowerAlexNet(paper(), (DEVICE, DEVICE))
    merged = towers.merge()
    images = 60 * torch.randn(BATCH, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    labels = (torch.arange(BATCH) % 1000).to(DEVICE)

    def step(network, *inputs):
        network.zero_grad()
        loss = F.cross_entropy(network(*inputs), labels)
        loss.backward()
        if DEVICE != "cpu":
            torch.cuda.synchronize()
        return loss.item()

    steps = {"two-towers": lambda: step(towers, images, images), "merged": lambda: step(merged, images)}
    losses = [run() for run in steps.values()]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    return steps


@pytest.mark.parametrize("rival", ["two-towers", "merged"])
def test_step(rival, networks, benchmark):
    benchmark.group = f"step-fp32-b{BATCH}"
    benchmark.pedantic(networks[rival], rounds=5, warmup_rounds=1)
