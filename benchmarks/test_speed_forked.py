"""Whole training steps as CUDA graphs, both towers on one GPU: today's, and the two experiments of `forked.py`.

    pytest benchmarks/test_speed_forked.py --benchmark-only [--batch 128] [--rounds 7]

`graphs` is what `train --graphs on` does; `joined`, `forked` and `joined-forked` compute the same network otherwise.
Before the first round loss and gradients are compared: of `forked` the bits are those of today, of the others the sums
may be added in another order.
"""

import statistics

import pytest
import torch
from forked import Side, change, lay_out
from interleaved import REPLAY, bare, clocks, compare, once, provenance, replay, time_interleaved

from alexnet_mp import TwoTowerAlexNet, paper
from alexnet_mp.training.graphed_step import WARM_UP, graphed
from alexnet_mp.training.step import TrainingStep
from alexnet_mp.training.update_rule import PaperSGD

DEVICE = torch.device("cuda:0")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WAYS = {"graphs": (False, False), "joined": (True, False), "forked": (False, True), "joined-forked": (True, True)}
RATE = 1e-6  # so that no step among hundreds diverges


@pytest.fixture(scope="module")
def measured():
    return once(measure)


@pytest.mark.gpus(1)
@pytest.mark.long("forked")
@pytest.mark.benchmark(timer=REPLAY)
@pytest.mark.parametrize("variant", WAYS)
@pytest.mark.parametrize("dtype, batch", [("bf16", 128), ("bf16", 1024), ("fp32", 128)])
def test_forked(dtype, batch, variant, benchmark, measured, rounds, request):
    batch = (request.config.getoption("batch") or (4 if benchmark.disabled else batch,))[0]
    seconds, conditions, errors = measured(dtype, batch, rounds)
    if variant in errors:
        raise errors[variant]
    benchmark.group = f"forked-{dtype}-b{batch}"
    replay(benchmark, seconds[variant]["step"])
    benchmark.extra_info.update(
        provenance(DEVICE)
        | conditions
        | compare(seconds, "step", None, ("graphs",))[variant]
        | {
            "op": "forked",
            "variant": variant,
            "dtype": dtype,
            "batch": batch,
            "images_per_s": batch / statistics.median(seconds[variant]["step"]),
        }
    )


def measure(dtype, batch, rounds):
    """The answers compared, then the steps timed: (seconds, what the record says of the conditions, {variant: its
    error}). What fails in one of them is told by its own test, and the others go on."""
    images = 60 * torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    images = images.to(DEVICE, DTYPES[dtype], memory_format=torch.channels_last)
    labels = (torch.arange(batch) % 1000).to(DEVICE)
    baseline = Step(images, labels, *WAYS["graphs"])
    references, steps, errors = baseline.answers(), {}, {}
    keepalive = [baseline]  # kept until all are timed: a graph that is dropped frees what others of its stream need
    for name, way in WAYS.items():
        # Roundings of sums in another order, and here and there a ReLU or a window's maximum that falls otherwise.
        tolerance = {"joined": 2e-2, "joined-forked": 2e-2}.get(name, 0)
        try:
            step = baseline if name == "graphs" else Step(images, labels, *way)
            keepalive.append(step)
            for (part, tensor), reference in zip(step.answers().items(), references.values(), strict=True):
                error = ((tensor - reference).norm() / reference.norm()).item()
                assert error <= tolerance, f"{name}: {part} is {error:.1e} off"
            for _ in range(WARM_UP + 3):  # eager ones and captures, whose replays are compared with eager passes
                step.step()
            steps[name] = step
        except Exception as error:
            errors[name] = bare(error)
    before = clocks(DEVICE)
    seconds, _ = time_interleaved(steps, DEVICE, rounds)
    kernels = baseline.network.kernels_used()
    return seconds, {"kernels": kernels, "clocks_before": before, "clocks_after": clocks(DEVICE), "seed": 0}, errors


class Step:
    """A training step of one way, as `train --graphs on` takes it."""

    calls, sets = 1, 1

    def __init__(self, images, labels, joined, forked):
        self.images, self.labels = images, labels
        self.network = TwoTowerAlexNet(paper(), (DEVICE, DEVICE))
        if joined:
            lay_out(self.network, images.dtype)
        if joined or forked:
            change(self.network, joined, Side(DEVICE) if forked else None)
        self.optimizer = PaperSGD(self.network)
        self.optimizer.set_rates(dict.fromkeys(self.network.layer_parameters(), RATE))
        self.plain = TrainingStep(self.network, self.optimizer)
        self.take = graphed(self.plain, "on")
        self.runs = {"step": self.step}

    def step(self):
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            self.take([self.images] * 2, self.labels, lambda loss: None)

    def answers(self):
        """{"loss": ..., "conv1.weight of a": its gradient, ...} of an eager pass that counts for nothing."""
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            self.network.keep_copies(self.images.dtype)
            loss, _ = self.plain.forward_and_backward([self.images] * 2, self.labels, lambda loss: None)
        self.network.step = 0
        return {"loss": loss.clone().float()} | {
            f"{name} of {tower}": part.grad.float()
            for name, parts in self.network.layer_parameters().items()
            for tower, part in zip("ab", parts)
        }
