"""ReLU and dropout after one tower's fc6, forward and backward, float32: the mask by Philox, in one pass.

    pytest benchmarks/test_speed_relu_dropout.py --benchmark-only [--batch 128] [--rounds 15]

Ours and `reference` make the same mask, a function of seed, step, layer, tower and position, and rescale nothing, as
the paper. `eager` and `compile` are F.dropout(F.relu(x)), whose masks are of torch's generator and whose values are
doubled.
The least is to read x and write y, and to read dy and y and write dx: `copy` moves as many bytes.
"""

import functools

import pytest
import torch
import torch.nn.functional as F
from alexnet_mp.kernels import reference, relu_dropout
from baselines import absence
from interleaved import REPLAY, CopyRoof, buffer_sets, clocks, compare, once, provenance, replay, time_interleaved
from passes import gradients, passes_on

from alexnet_mp import paper
from alexnet_mp.recipes.shapes import sizes

RECIPE, SEED = paper(), 0
UNITS = next(size.output[0] for size in sizes(RECIPE) if "dropout" in size.layer.then)  # of one tower
MASK = {"probability": RECIPE.dropout, "seed": SEED, "layer": 6, "tower": 0}
ROWS = [
    (torch.device(device), variant)
    for device, ours in (("cpu", "ours-cpu"), ("cuda:0", "ours-triton"))
    for variant in (ours, "reference", "eager", "compile", "copy")
]


@pytest.fixture(scope="module")
def measured():
    return once(measure)


@pytest.mark.benchmark(timer=REPLAY)
@pytest.mark.parametrize(
    "device, variant",
    [
        pytest.param(
            device,
            variant,
            id=f"{device.type}-relu-dropout-{variant}",
            marks=[pytest.mark.gpus(1)] * (device.type == "cuda"),
        )
        for device, variant in ROWS
    ],
)
def test_relu_dropout(device, variant, benchmark, measured, asked, rounds, request):
    if reason := absence(variant, device):
        pytest.skip(reason)
    batch = (request.config.getoption("batch") or (128,))[0]
    seconds, bytes_, conditions = measured(device, batch, asked, rounds)
    benchmark.group = f"relu-dropout-fp32-b{batch}"
    replay(benchmark, seconds[variant]["fwdbwd"])
    times = compare(seconds, "fwdbwd", bytes_, ("eager", "compile", "reference"))
    benchmark.extra_info.update(
        provenance(device)
        | conditions
        | times[variant]
        | {"op": "relu-dropout", "variant": variant, "dtype": "fp32", "batch": batch, "bytes": bytes_}
    )


def measure(device, batch, names, rounds):
    """Those asked for that are there, checked and timed: (seconds, bytes of both passes, the conditions)."""
    values = batch * UNITS
    steps, variants = {"fwd": 2 * 4 * values, "bwd": 3 * 4 * values}, {}
    sets = [inputs(batch, device, SEED + number) for number in range(buffer_sets(4 * values, device))]
    for name in names:
        if name == "copy":
            variants[name] = CopyRoof(steps, device)
        elif not absence(name, device):  # else its own test says so
            function = implementation(name, device)
            check(function, sets[0], rescaled=name in ("eager", "compile"))
            variants[name] = passes_on(device)(function, sets)
    before = clocks(device)
    seconds, _ = time_interleaved(variants, device, rounds, seed=SEED)
    for passes in seconds.values():
        passes["fwdbwd"] = [sum(pair) for pair in zip(passes["fwd"], passes["bwd"])]
    return (
        seconds,
        sum(steps.values()),
        {
            "clocks_before": before,
            "clocks_after": clocks(device),
            "seed": SEED,
            "shape": [UNITS],
            "cache": f"cold: {len(sets)} sets of buffers in turn",
        },
    )


def inputs(batch, device, seed):
    """((x,), dy), both (batch, units): half of x is negative."""
    generator = torch.Generator(device).manual_seed(seed)
    x, dy = (torch.randn(batch, UNITS, generator=generator, device=device) for _ in range(2))
    return (x.requires_grad_(),), dy


def implementation(name, device):
    """The variant as a function x -> y."""

    def eager(x):
        return F.dropout(F.relu(x), RECIPE.dropout)

    if name == "compile":
        torch._functorch.config.donated_buffer = False  # else a backward pass can't run twice, which a graph needs
        return torch.compile(eager, dynamic=False)
    if name == "eager":
        return eager
    mask = MASK | {"step": torch.tensor(1, device=device)}
    if name == "reference":
        return functools.partial(reference.relu_dropout, **mask)
    return functools.partial(relu_dropout, **mask, kernels=name.removeprefix("ours-"))


def check(function, tensors, rescaled):
    """Compare y and dx with the reference, or, where the mask is another, with what any mask gives.

    Raises AssertionError.
    """
    (x,), dy = tensors
    y = function(x)
    (dx,) = gradients(y, (x,), dy)
    if rescaled:
        mask, positives = (y > 0).float(), (x > 0).sum().item()
        factor, share = 1 / (1 - RECIPE.dropout), mask.sum().item() / positives
        # Six standard deviations of as many draws, or more.
        assert abs(share - (1 - RECIPE.dropout)) < 3 / positives**0.5, f"{share:.3f} of the values are kept"
        torch.testing.assert_close(y, factor * mask * x)
        torch.testing.assert_close(dx, factor * mask * dy)
    else:
        leaf = x.detach().clone().requires_grad_()
        expected = reference.relu_dropout(leaf, **MASK, step=1)
        assert torch.equal(y, expected), "y is not the reference's"
        torch.testing.assert_close(dx, *gradients(expected, (leaf,), dy), rtol=0, atol=0)
