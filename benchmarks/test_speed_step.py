"""One training step, forward, loss and backward: two towers against the equivalent merged network.

`pytest benchmarks/ --benchmark-only`. On a CPU batch 16 of the paper's network, on a GPU batch 128, both towers on one device. The two
are measured in turn, round by round; `extra_info["ratio_to_merged"]` is the ratio of their medians: the price (above 1) or gain of
computing two halves instead of one grouped whole.
"""
import statistics
import time

import pytest
import torch
import torch.nn.functional as F

from alexnet_mp import TwoTowerAlexNet, paper

DEVICE = "cuda:0" if torch.cuda.is_available() else "cpu"
BATCH = 128 if torch.cuda.is_available() else 16


def step(network, labels, *images):
    network.zero_grad()
    loss = F.cross_entropy(network(*images), labels)
    loss.backward()
    if DEVICE != "cpu":
        torch.cuda.synchronize()
    return loss.item()


def test_step(benchmark):
    towers = TwoTowerAlexNet(paper(), (DEVICE, DEVICE))
    merged = towers.merge()
    images = 60 * torch.randn(BATCH, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    labels = (torch.arange(BATCH) % 1000).to(DEVICE)
    assert step(towers, labels, images, images) == pytest.approx(step(merged, labels, images), rel=1e-4)
    rival = []

    def merged_first():
        start = time.perf_counter()
        step(merged, labels, images)
        rival.append(time.perf_counter() - start)

    benchmark.group = f"step-fp32-b{BATCH}"
    benchmark.pedantic(step, args=(towers, labels, images, images), setup=merged_first, rounds=7)
    if benchmark.stats:  # not with --benchmark-disable
        benchmark.extra_info.update(batch=BATCH, merged_seconds=statistics.median(rival),
                                    ratio_to_merged=benchmark.stats.stats.median / statistics.median(rival))
