"""Crop, flip, minus the mean image and plus the colour shift of a batch of stored pictures: uint8 -> float32.

    pytest benchmarks/test_speed_augmentation.py --benchmark-only [--batch 128] [--rounds 15]

256x256 pictures, 224x224 crops in channels_last, on the device where the pictures are. `eager` cuts each crop out and
flips it, stacks them, and does the rest on the whole batch, `reference` gathers by index, `compile` is the reference in
torch.compile. The least is to read a byte and write four for each value: `copy` moves as many bytes. On a GPU a round
queues at least 20 calls; the host's part of each is in it.
"""

import functools
import statistics

import pytest
import torch
from alexnet_mp.kernels import augment, reference
from baselines import absence
from interleaved import (
    GRAPH_CALLS,
    REPLAY,
    CopyRoof,
    buffer_sets,
    clocks,
    compare,
    once,
    provenance,
    replay,
    time_interleaved,
)

from alexnet_mp import paper

RECIPE, SEED = paper(), 0
CROP, STORED = RECIPE.crop_size, RECIPE.stored_size
OPTIONS = {"crop": CROP, "mean_follows_crop": True}
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
            id=f"{device.type}-augmentation-{variant}",
            marks=[pytest.mark.gpus(1)] * (device.type == "cuda"),
        )
        for device, variant in ROWS
    ],
)
def test_augmentation(device, variant, benchmark, measured, asked, rounds, request):
    if reason := absence(variant, device):
        pytest.skip(reason)
    batch = (request.config.getoption("batch") or (128,))[0]
    seconds, bytes_, conditions = measured(device, batch, asked, rounds)
    benchmark.group = f"augmentation-fp32-b{batch}"
    replay(benchmark, seconds[variant]["batch"])
    times = compare(seconds, "batch", bytes_, ("eager", "compile", "reference"))
    benchmark.extra_info.update(
        provenance(device)
        | conditions
        | times[variant]
        | {
            "op": "augmentation",
            "variant": variant,
            "dtype": "fp32",
            "batch": batch,
            "bytes": bytes_,
            "images_per_s": batch / statistics.median(seconds[variant]["batch"]),
        }
    )


def measure(device, batch, names, rounds):
    """Those asked for that are there, checked and timed: (seconds, bytes of a batch, the conditions)."""
    values = batch * 3 * CROP * CROP
    sets = [inputs(batch, device, SEED + number) for number in range(buffer_sets(batch * 3 * STORED * STORED, device))]
    expected, variants = reference.augment(*sets[0], **OPTIONS), {}
    for name in names:
        if name == "copy":
            variants[name] = CopyRoof({"batch": 5 * values}, device)
        elif not absence(name, device):  # else its own test says so
            function = implementation(name)
            torch.testing.assert_close(function(*sets[0]), expected, rtol=0, atol=1e-4)
            variants[name] = Batches(function, sets)
    before = clocks(device)
    seconds, _ = time_interleaved(variants, device, rounds, seed=SEED)
    return (
        seconds,
        5 * values,
        {
            "clocks_before": before,
            "clocks_after": clocks(device),
            "seed": SEED,
            "cache": f"cold: {len(sets)} sets of buffers in turn",
        },
    )


def inputs(batch, device, seed):
    """(pictures, top, left, flip, mean, shift), as `augment` takes them."""
    draws = torch.Generator().manual_seed(seed)
    pictures = torch.randint(0, 256, (batch, STORED, STORED, 3), generator=draws, dtype=torch.uint8)
    top, left = (torch.randint(0, RECIPE.crop_positions, (batch,), generator=draws) for _ in range(2))
    flip = torch.rand(batch, generator=draws) < 0.5
    mean = 255 * torch.rand(STORED, STORED, 3, generator=draws)
    return pictures.to(device), top, left, flip, mean.to(device), 20 * torch.randn(batch, 3, generator=draws)


def implementation(name):
    """The variant as a function of `inputs` -> (N, 3, crop, crop) float32 in channels_last."""
    if name == "eager":
        return eager
    if name == "reference":
        return functools.partial(reference.augment, **OPTIONS)
    if name == "compile":
        return torch.compile(functools.partial(reference.augment, **OPTIONS), dynamic=False)
    return functools.partial(augment, **OPTIONS, kernels=name.removeprefix("ours-"))


def eager(pictures, top, left, flip, mean, shift):
    """What is usual in a loader: one crop after another, the arithmetic at once."""
    places = list(zip(top.tolist(), left.tolist(), flip.tolist()))

    def crops(images):
        windows = [
            image[row : row + CROP, column : column + CROP]
            for image, (row, column, _) in zip(images, places, strict=True)
        ]
        return torch.stack([window.flip(1) if mirror else window for window, (_, _, mirror) in zip(windows, places)])

    x = crops(pictures).float()
    x -= crops([mean] * len(pictures))
    x += shift.to(x.device)[:, None, None, :]
    return x.permute(0, 3, 1, 2)


class Batches:
    """Calls on the next set of buffers; a result is kept until its set's turn, so that the outputs rotate as well."""

    def __init__(self, function, sets):
        self.function, self.tensors, self.kept, self.turn, self.sets = function, sets, [None] * len(sets), 0, len(sets)
        self.calls = GRAPH_CALLS if sets[0][0].is_cuda else 1
        self.runs = {"batch": self.batches}

    def batches(self):
        for _ in range(self.calls):
            self.turn = (self.turn + 1) % self.sets
            self.kept[self.turn] = self.function(*self.tensors[self.turn])
