"""Images a second of the input pipelines, and what feeding costs a training step.

    pytest benchmarks/test_speed_pipeline.py --benchmark-only [-k "test_pipeline and cpu"] [--rounds 5]

Groups, 256x256, batch 128, fp32, on the CPU and, where there is one, on a GPU: every pipeline, from JPEGs of quality 95
(`dali`, and `torch` with two workers) and from pixels (`raw`), with the colour noise on; and, a long group, one step of
the 2012 recipe with images that are there already (`fixed`) and with those that each pipeline makes meanwhile:
`pct_feeding` is what the step takes longer. The sets are made by `prepare` from 512 pictures whose spectrum falls as
that of photographs does; they stay in the page cache.
"""

import functools
import gc
import os
from contextlib import ExitStack, closing
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from interleaved import REPLAY, clocks, compare, once, provenance, replay, rounds_in, time_interleaved
from PIL import Image

from alexnet_mp import TwoTowerAlexNet, paper, prepare, source2012
from alexnet_mp.data.dataset import open_dataset
from alexnet_mp.data.pipeline_dali import DaliPipeline, available
from alexnet_mp.data.pipeline_raw import RawPipeline
from alexnet_mp.data.pipeline_torch import TorchPipeline

DEVICES = ["cpu", pytest.param("cuda:0", marks=pytest.mark.gpus(1))]
WORKERS = 2 if not torch.cuda.is_available() else len(os.sched_getaffinity(0))
BATCH, PICTURES = 128, 512  # no short batches
VARIANTS = {"dali": (DaliPipeline, "jpeg"), "torch": (TorchPipeline, "jpeg"), "raw": (RawPipeline, "pixels")}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """{"jpeg": prepared set, "pixels": prepared raw set} of the same pictures."""
    random, root = np.random.default_rng(0), tmp_path_factory.mktemp("pipeline")
    for number in range(PICTURES):
        path = root / "pictures" / f"class{number % 4}" / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(random)).save(path, compress_level=1)
    for storage, flags in (("jpeg", []), ("pixels", ["--raw"])):
        assert prepare.main([str(root / "pictures"), str(root / storage), "--val-fraction", "0", *flags]) == 0
    return {storage: open_dataset(str(root / storage), 256, ("train",)) for storage in ("jpeg", "pixels")}


def picture(random, size=256):
    """(256, 256, 3) uint8: brightness and two weaker colours, each noise whose amplitude falls as 1/frequency."""
    axis = np.fft.fftfreq(size)
    frequency = np.hypot(axis[:, None], axis[None, : size // 2 + 1])
    frequency[0, 0] = np.inf
    layers = [np.fft.irfft2(np.fft.rfft2(random.normal(size=(size, size))) / frequency) for _ in range(3)]
    brightness, *colours = (layer / layer.std() for layer in layers)
    pixels = brightness[:, :, None] + 0.25 * (
        np.outer(colours[0].ravel(), (1, 0, -1)) + np.outer(colours[1].ravel(), (1, -2, 1))
    ).reshape(size, size, 3)
    return (120 + 55 * pixels).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def measured(sets):
    return once(functools.partial(measure, sets)), once(functools.partial(measure_steps, sets))


@pytest.mark.benchmark(timer=REPLAY)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_pipeline(variant, device, benchmark, measured, asked, rounds, request):
    batch = (request.config.getoption("batch") or (BATCH,))[0]
    seconds, conditions = measured[0](device, batch, rounds, asked)
    if variant not in seconds:
        pytest.skip("DALI is not installed")
    benchmark.group = f"pipeline-{device.partition(':')[0]}-fp32-b{batch}"
    replay(benchmark, seconds[variant]["batch"])
    figures = compare(seconds, "batch", None, VARIANTS)[variant]
    benchmark.extra_info.update(
        provenance(torch.device(device))
        | conditions
        | figures
        | {
            "op": "pipeline",
            "variant": variant,
            "dtype": "fp32",
            "batch": batch,
            "workers": WORKERS,
            "images_per_s": batch / float(np.median(seconds[variant]["batch"])),
        }
    )


@pytest.mark.benchmark(timer=REPLAY)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", ["fixed", *VARIANTS])
@pytest.mark.long("fed-step")
def test_step_that_is_fed(variant, device, benchmark, measured, asked, rounds, request):
    batch = (request.config.getoption("batch") or (BATCH,))[0]
    seconds, conditions = measured[1](device, batch, rounds, asked)
    if variant not in seconds:
        pytest.skip("DALI is not installed")
    medians = {name: float(np.median(steps["step"])) for name, steps in seconds.items()}
    benchmark.group = f"fed-step-{device.partition(':')[0]}-fp32-b{batch}"
    replay(benchmark, seconds[variant]["step"])
    feeding = {"pct_feeding": 100 * (medians[variant] / medians["fixed"] - 1)} if "fixed" in medians else {}
    benchmark.extra_info.update(
        provenance(torch.device(device))
        | conditions
        | feeding
        | {
            "op": "fed-step",
            "variant": variant,
            "dtype": "fp32",
            "batch": batch,
            "workers": WORKERS,
            "images_per_s": batch / medians[variant],
        }
    )


def batches(sets, kind, recipe, device):
    """Training batches without end of one pipeline, on one device."""
    pipeline_class, storage = VARIANTS[kind]
    pipeline = pipeline_class(sets[storage], recipe, [device, device], WORKERS)
    pipeline.use(sets[storage].statistics)
    return closing(pipeline.train(0, 10**6, lambda epoch: recipe.colour_noise))


def there(kinds):
    """Those of the variants asked for that can run."""
    return [kind for kind in kinds if kind != "dali" or available()]


class Calls:
    """A variant of `interleaved`: several calls of a function, as one pass."""

    sets = 1

    def __init__(self, step, function, calls=1):
        self.calls, self.runs = calls, {step: lambda: [function() for _ in range(calls)] and None}


def measure(sets, device, batch, rounds, kinds):
    """Batches of each pipeline, which works alone in its turn: what it made ahead while others ran is used up first."""
    device = torch.device(device)
    recipe, before = replace(paper(), batch_size=batch), clocks(device)
    images = len(sets["jpeg"].splits["train"])
    for kind in there(kinds) if device.type == "cpu" else ():  # on a GPU the decoders differ
        oracle = TorchPipeline(sets[VARIANTS[kind][1]], recipe, [device], 0)
        oracle.use(sets[VARIANTS[kind][1]].statistics)
        with (
            batches(sets, kind, recipe, device) as source,
            closing(oracle.train(0, 1, lambda epoch: recipe.colour_noise)) as oracle_batches,
        ):
            assert torch.equal(next(source).images[0], next(oracle_batches).images[0])
    runs = {kind: {"batch": []} for kind in there(kinds)}
    for turn in rounds_in(rounds=rounds):
        for kind in np.random.default_rng(turn).permutation(list(runs)):
            with batches(sets, kind, recipe, device) as source:  # alone: nothing of another is at work
                for _ in range(4):
                    next(source)
                times, _ = time_interleaved({kind: Calls("batch", lambda: next(source), 8)}, device, 1)
            runs[kind]["batch"] += times[kind]["batch"]
            gc.collect()
    return runs, {"clocks_before": before, "clocks_after": clocks(device), "pictures": images}


def measure_steps(sets, device, batch, rounds, kinds):
    """Steps of the 2012 recipe on images that are there, and on those of each pipeline; a pipeline exists only in its
    turn."""
    device = torch.device(device)
    recipe, before = replace(source2012(), batch_size=batch), clocks(device)
    network = TwoTowerAlexNet(recipe, (device, device))
    batch_images = 60 * torch.randn(batch, 3, 224, 224).to(device, memory_format=torch.channels_last)
    labels = (torch.arange(batch) % 1000).to(device)

    def step(images):
        network.zero_grad()
        F.cross_entropy(network(*images), labels[: len(images[0])]).backward()

    runs = {kind: {"step": []} for kind in there(kinds)}
    for turn in rounds_in(rounds=rounds):
        for kind in np.random.default_rng(turn).permutation(list(runs)):
            with ExitStack() as stack:
                if kind == "fixed":

                    def call():
                        step([batch_images, batch_images])
                else:
                    source = stack.enter_context(batches(sets, kind, recipe, device))

                    def call(source=source):
                        step(next(source).images)

                times, _ = time_interleaved({kind: Calls("step", call, 2)}, device, 1)  # after as many that don't count
            runs[kind]["step"] += times[kind]["step"]
            gc.collect()
    return runs, {"clocks_before": before, "clocks_after": clocks(device), "kernels": network.kernels_used()}
