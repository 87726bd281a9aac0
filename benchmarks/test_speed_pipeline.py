"""Images a second of the input pipelines, and what feeding costs a training step.

    pytest benchmarks/test_speed_pipeline.py --benchmark-only [-k "test_pipeline and cpu"] [--rounds 5]

Groups, 256x256, on the CPU and, where there is one, on a GPU: every pipeline, batch 128, fp32, from JPEGs of quality 95
(`dali`, and `torch` with two workers) and from pixels (`raw`), with the colour noise on; and, a long group, the step
that `train` takes, with its update and on a GPU with CUDA graphs, of images that are there already (`fixed`) and of
those that each pipeline makes meanwhile: `pct_feeding` is what an image takes longer. That step is the 2012 recipe's,
batch 128, fp32; on a GPU the paper's, too, batch 1,024, bf16: the network of `step-bf16-b1024`. The sets are made by
`prepare` from 512 pictures or more, two batches at least, whose spectrum falls as that of photographs does; they stay
in the page cache.
"""

import functools
import gc
import os
import statistics
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch
from interleaved import REPLAY, clocks, compare, once, provenance, replay, rounds_in, time_interleaved
from jobs import RATE
from PIL import Image

from alexnet_mp import TwoTowerAlexNet, paper, prepare, source2012
from alexnet_mp.data.batches import Batch
from alexnet_mp.data.dataset import open_dataset
from alexnet_mp.data.pipeline import make_pipeline
from alexnet_mp.data.pipeline_dali import available
from alexnet_mp.data.pipeline_torch import TorchPipeline
from alexnet_mp.parallel.pieces import WHOLE
from alexnet_mp.system.ranks import ALONE
from alexnet_mp.training.graphed_step import GraphedStep
from alexnet_mp.training.make_step import make_step
from alexnet_mp.training.update_rule import PaperSGD

DEVICES = ["cpu", pytest.param("cuda:0", marks=pytest.mark.gpus(1))]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WORKERS = 2 if not torch.cuda.is_available() else len(os.sched_getaffinity(0))
BATCH, PICTURES = 128, 512
VARIANTS = {"dali": "jpeg", "torch": "jpeg", "raw": "pixels"}  # what each reads
FED_STEPS = [
    pytest.param(
        variant,
        device,
        recipe,
        dtype,
        batch,
        id=f"{variant}-{device}-{dtype}-b{batch}",
        marks=[pytest.mark.gpus(1)] * (device != "cpu"),
    )
    for device, recipe, dtype, batch, variants in (
        ("cpu", source2012, "fp32", BATCH, VARIANTS),
        ("cuda:0", source2012, "fp32", BATCH, VARIANTS),
        ("cuda:0", paper, "bf16", 1024, ("dali", "raw")),
    )
    for variant in ("fixed", *variants)
]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A function: number of pictures -> their sets, as `prepared`."""
    return functools.cache(lambda pictures: prepared(tmp_path_factory.mktemp("pipeline"), pictures))


def prepared(root, pictures):
    """{"jpeg": prepared set, "pixels": prepared raw set} of the same pictures, below a folder."""
    random = np.random.default_rng(0)
    for number in range(pictures):
        path = root / "pictures" / f"class{number % 4}" / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(random)).save(path, compress_level=1)
    for storage, flags in (("jpeg", []), ("pixels", ["--raw"])):
        assert prepare.main([str(root / "pictures"), str(root / storage), "--val-fraction", "0", *flags]) == 0
    return {storage: open_dataset(str(root / storage), 256, ("train",)) for storage in ("jpeg", "pixels")}


def pictures_for(batch):
    """How many a set has: whole batches, two at least."""
    return batch * max(2, PICTURES // batch)


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
    batch = (request.config.getoption("batch") or (4 if benchmark.disabled else BATCH,))[0]
    record(benchmark, "pipeline", variant, device, "fp32", batch, measured[0](device, batch, rounds, asked))


@pytest.mark.benchmark(timer=REPLAY)
@pytest.mark.parametrize("variant, device, recipe, dtype, batch", FED_STEPS)
@pytest.mark.long("fed-step")
def test_step_that_is_fed(variant, device, recipe, dtype, batch, benchmark, measured, asked, rounds, request):
    batch = (request.config.getoption("batch") or (4 if benchmark.disabled else batch,))[0]
    results = measured[1](device, recipe, dtype, batch, rounds, asked)
    record(benchmark, "fed-step", variant, device, dtype, batch, results)


def record(benchmark, op, variant, device, dtype, batch, results):
    """Hand one variant's seconds and figures to pytest-benchmark."""
    seconds, figures, conditions = results
    if variant not in seconds:
        pytest.skip("DALI is not installed")
    benchmark.group = f"{op}-{device.partition(':')[0]}-{dtype}-b{batch}"
    replay(benchmark, seconds[variant]["batch"])
    against = VARIANTS if op == "pipeline" else ()
    benchmark.extra_info.update(
        provenance(torch.device(device))
        | conditions
        | compare(seconds, "batch", None, against)[variant]
        | figures[variant]
        | {"op": op, "variant": variant, "dtype": dtype, "batch": batch, "workers": WORKERS}
    )


def there(kinds):
    """Those of the variants asked for that can run."""
    return [kind for kind in kinds if kind != "dali" or available()]


def pipeline_of(kind, sets, recipe, device, dtype=torch.float32):
    """A pipeline that has its statistics, for both towers on one device."""
    dataset = sets[VARIANTS[kind]]
    pipeline = make_pipeline(kind, dataset, recipe, [device, device], WORKERS, dtype)
    pipeline.use(dataset.statistics)
    return pipeline


def batches(pipeline):
    """Training batches without end; closed, nothing of the pipeline is at work."""
    return closing(pipeline.train(0, 10**6, lambda epoch: pipeline.recipe.colour_noise))


class Fixed:
    """In place of a pipeline: one batch that is there already, again and again."""

    pieces = WHOLE

    def __init__(self, recipe, device, dtype):
        count, crop, self.recipe = recipe.batch_size, recipe.crop_size, recipe
        images = 60 * torch.randn(count, 3, crop, crop, device=device)
        images = images.to(dtype=dtype, memory_format=torch.channels_last)
        labels = (torch.arange(count) % 1000).to(device)
        self.batch = Batch(1, [images, images], labels, np.arange(count))

    def train(self, *_):
        while True:
            yield self.batch


class Calls:
    """A variant of `interleaved`: several batches, taken one after another, as one pass; `images`: of the last one."""

    sets = 1

    def __init__(self, source, take, calls):
        self.source, self.take, self.calls, self.runs = source, take, calls, {"batch": self.run}

    def run(self):
        self.images = 0
        for _ in range(self.calls):
            batch = next(self.source)
            self.take(batch)
            self.images += len(batch.labels)


def in_turns(pipelines, takes, device, rounds, calls, lead=0):
    """Seconds of a batch, and figures: ({variant: {"batch": [one a round]}}, {variant: {name: value}}).

    takes: {variant: what is done with a `Batch`}. Each pipeline works in its turn alone. There `lead` batches, and as
    many `calls` as are timed at once, come first and don't count: what was made ahead is used up.
    """
    seconds, rates = {kind: {"batch": []} for kind in pipelines}, {kind: [] for kind in pipelines}
    for turn in rounds_in(rounds=rounds):
        for kind in np.random.default_rng(turn).permutation(list(pipelines)):
            with batches(pipelines[kind]) as source:
                for _ in range(lead):
                    next(source)
                variant = Calls(source, takes[kind], calls)
                times, _ = time_interleaved({kind: variant}, device, 1)
            (of_a_call,) = times[kind]["batch"]
            seconds[kind]["batch"].append(of_a_call)
            rates[kind].append(variant.images / (calls * of_a_call))
            gc.collect()
    figures = {kind: {"images_per_s": statistics.median(of_rounds)} for kind, of_rounds in rates.items()}
    for one in figures.values() if "fixed" in figures else ():
        one["pct_feeding"] = 100 * (figures["fixed"]["images_per_s"] / one["images_per_s"] - 1)
    return seconds, figures


def measure(sets, device, batch, rounds, kinds):
    """Batches of each pipeline: (seconds, figures, the conditions, for the record)."""
    device = torch.device(device)
    recipe, before = replace(paper(), batch_size=batch), clocks(device)
    data = sets(pictures_for(batch))
    pipelines = {kind: pipeline_of(kind, data, recipe, device) for kind in there(kinds)}
    for kind in pipelines if device.type == "cpu" else ():  # on a GPU the decoders differ
        oracle = TorchPipeline(data[VARIANTS[kind]], recipe, [device], 0)
        oracle.use(oracle.dataset.statistics)
        with batches(pipelines[kind]) as source, batches(oracle) as expected:
            assert torch.equal(next(source).images[0], next(expected).images[0])
    seconds, figures = in_turns(pipelines, dict.fromkeys(pipelines, lambda batch: None), device, rounds, 8, lead=4)
    images = len(data["jpeg"].splits["train"])
    return seconds, figures, {"clocks_before": before, "clocks_after": clocks(device), "pictures": images}


def measure_steps(sets, device, recipe, dtype, batch, rounds, kinds):
    """Steps on images that are there, and on those of each pipeline: (seconds, figures, the conditions)."""
    device, dtype = torch.device(device), DTYPES[dtype]
    recipe, before = replace(recipe(), batch_size=batch), clocks(device)
    network = TwoTowerAlexNet(recipe, (device, device))
    optimizer = PaperSGD(network)
    optimizer.set_rates(dict.fromkeys(network.layer_parameters(), RATE))
    pipelines = {
        kind: Fixed(recipe, device, dtype)
        if kind == "fixed"
        else pipeline_of(kind, sets(pictures_for(batch)), recipe, device, dtype)
        for kind in there(kinds)
    }
    steps = {kind: make_step(network, optimizer, pipeline, "auto", ALONE) for kind, pipeline in pipelines.items()}
    takes = {
        kind: lambda batch, step=step: step(batch.images, batch.labels, lambda loss: None)
        for kind, step in steps.items()
    }
    # On a GPU many: a pipeline that is slower than the step must not live on the few batches that it has made ahead.
    calls = 2 if device.type == "cpu" else 32
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):  # as `train`
        seconds, figures = in_turns(pipelines, takes, device, rounds, calls)
    for kind, step in steps.items():
        figures[kind]["graphs"] = isinstance(step, GraphedStep) and not step.given_up
    return (
        seconds,
        figures,
        {"clocks_before": before, "clocks_after": clocks(device), "kernels": network.kernels_used()},
    )
