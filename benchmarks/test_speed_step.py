"""One training step: two towers, the equivalent merged network, and baselines in plain PyTorch.

    pytest benchmarks/test_speed_step.py --benchmark-only [--batch 16] [--rounds 3] [-k "towers or eager"]

On a CPU a step is forward, loss and backward; on a GPU the update follows, of ours the paper's, of the others torch's
SGD (foreach). Both towers are on one device. `towers` and `merged` are ours, `graphs` the towers as CUDA graphs,
`reference` the towers with plain PyTorch kernels. `eager` and `compile` are a good engineer's two towers
(`baselines.py`), in bf16 under autocast; on a CPU `default-allocator` is `eager` in a process of its own, whose
allocator gives freed memory back, as PyTorch's does unless it is told otherwise; all else runs in one process, with
freed memory kept. `no-lrn` is the one-tower network without LRN that is called AlexNet today: another network, which
shows what the paper's costs. `--long`, or a name, asks for all but `towers`, `graphs` and `eager`.

Before the first round the losses and the first layer's gradients are compared, without dropout. `saved_bytes`: what
forward keeps for backward, each storage once, without weights and images. On a GPU `launch_s` is the host's time to
launch a step, and `pct_of_roofline` the least time of `roofline.py` with the bandwidth and the product measured on that
device, over the step's."""

import copy
import dataclasses
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from baselines import EagerTowers, absence, without_norms_and_towers
from interleaved import REPLAY, bare, clocks, compare, once, provenance, replay, time_interleaved

from alexnet_mp import TwoTowerAlexNet, paper
from alexnet_mp.profiling import machine_limits, roofline
from alexnet_mp.training.graphed_step import WARM_UP, graphed
from alexnet_mp.training.step import TrainingStep
from alexnet_mp.training.update_rule import PaperSGD

DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
CASES = [("fp32", 128), ("bf16", 128), ("bf16", 1024)]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
RATE = 1e-6  # so that no step among hundreds diverges
VARIANTS = ("towers", "graphs", "merged", "reference", "eager", "compile", "default-allocator", "no-lrn")
USUAL = ("towers", "graphs", "eager")  # the others ask for --long
ABSENT = {
    "reference": "the towers themselves run on the reference: no other kernels are built here",
    "graphs": "CUDA graphs need a GPU",
    "compile": "torch.compile needs a C++ compiler, and there is none",
    "default-allocator": "an allocator of CPU memory: only there",
}


@pytest.fixture(scope="module")
def measured():
    return once(measure)


@pytest.mark.benchmark(timer=REPLAY)
@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(
            name,
            marks=[pytest.mark.gpus(1)] * (name == "graphs") + [pytest.mark.long("step-all")] * (name not in USUAL),
        )
        for name in VARIANTS
    ],
)
@pytest.mark.parametrize(
    "dtype, batch",
    [
        # bf16, and 1,024 images, are measured on a GPU.
        pytest.param(
            dtype,
            batch,
            id=f"{dtype}-b{batch}",
            marks=[pytest.mark.gpus(1)] * ((dtype, batch) != CASES[0]) + [pytest.mark.long("step-all")] * (batch > 128),
        )
        for dtype, batch in CASES
    ],
)
def test_step(dtype, batch, variant, benchmark, measured, asked, rounds, request):
    batch = (request.config.getoption("batch") or (4 if benchmark.disabled else batch,))[0]
    seconds, extras, conditions, errors = measured(dtype, batch, asked, rounds)
    if variant in errors:
        raise errors[variant]
    if variant not in seconds:
        pytest.skip(ABSENT[variant])
    benchmark.group = f"step-{dtype}-b{batch}"
    replay(benchmark, seconds[variant]["step"])
    against = ("eager", "compile", "default-allocator", "no-lrn", "reference", "merged", "towers")
    figures = compare(seconds, "step", None, against)[variant] | extras.get(variant, {})
    figures["images_per_s"] = batch / statistics.median(seconds[variant]["step"])
    benchmark.extra_info.update(
        provenance(DEVICE) | conditions | figures | {"op": "step", "variant": variant, "dtype": dtype, "batch": batch}
    )


def measure(dtype, batch, names, rounds):
    """The answers compared, then the steps timed: (seconds, {variant: other figures}, the conditions, for the record,
    {variant: its error}).

    names: the variants to build, check and time; those that can't be here are left out. What fails in one of them is
    told by its own test, and the others go on.
    """
    images = 60 * torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    images, labels = images.to(memory_format=torch.channels_last), (torch.arange(batch) % 1000).to(DEVICE)
    errors = check_answers(images[:16], labels[:16], names)
    towers, ours, variants, figures = TwoTowerAlexNet(paper(), (DEVICE, DEVICE)), images.to(DTYPES[dtype]), {}, {}
    keepalive = {}  # kept until the others are timed: a graph that is dropped frees what others of its stream need
    try:
        for name in names:
            try:
                if name in errors or (step := build(name, towers, labels, ours, images, autocast(dtype))) is None:
                    continue
                variants[name] = step
                if name not in ("graphs", "compile", "default-allocator"):
                    figures[name] = {"saved_bytes": step.saved_bytes()}
                for _ in range(WARM_UP + 3 if name == "graphs" else 1):
                    step.step()  # of graphs eager ones and captures
            except Exception as error:
                errors[name], keepalive[name] = bare(error), variants.pop(name, None)
        before = clocks(DEVICE)
        seconds, _ = time_interleaved(variants, DEVICE, rounds)
    finally:
        if process := (variants | keepalive).get("default-allocator"):
            process.end()
    if DEVICE.type == "cuda":
        ceilings = machine_limits.measure(DEVICE, DTYPES[dtype])
        # the model takes a bf16 product's, and half of it for float32
        product = ceilings.tflops * (2 if dtype == "fp32" else 1)
        bound = roofline.step(paper(), batch, dtype, ceilings.bandwidth, product)["step"] / 1e3
        for name, step in variants.items():
            figures.setdefault(name, {})["launch_s"] = launch_seconds(step)
            if name not in ("no-lrn", "default-allocator"):
                figures[name]["pct_of_roofline"] = 100 * bound / statistics.median(seconds[name]["step"])
    return (
        seconds,
        figures,
        {"kernels": towers.kernels_used(), "clocks_before": before, "clocks_after": clocks(DEVICE), "seed": 0},
        errors,
    )


def build(name, towers, labels, ours, images, context):
    """One variant's step, None where it can't be here (`ABSENT`).

    ours: the images that we train on; the others take the float32 ones in their context.
    """
    gpu = DEVICE.type == "cuda"
    if name == "towers":
        return OurStep(towers, labels, ours) if gpu else Step(towers, labels, ours, ours)
    if name == "graphs":
        return OurStep(copy.deepcopy(towers), labels, ours, "on") if gpu else None
    if name == "merged":
        return Step(towers.merge(), labels, ours)
    if name == "reference":
        if towers.kernels_used() == "reference":
            return None
        return Step(TwoTowerAlexNet(paper(), (DEVICE, DEVICE), kernels="reference"), labels, ours, ours)
    if name == "no-lrn":
        network = without_norms_and_towers().to(DEVICE, memory_format=torch.channels_last)
        return Step(network, labels, images, context=context)
    if name == "default-allocator":
        return None if gpu else DefaultAllocator(len(images))
    if absence(name, DEVICE):
        return None
    eager = EagerTowers(paper()).take(towers).to(DEVICE, memory_format=torch.channels_last)
    if name == "compile":
        torch.compiler.reset()  # else another number of images would make it compile for any number
        eager = torch.compile(eager, dynamic=False, mode="max-autotune-no-cudagraphs" if gpu else None)
    return Step(eager, labels, images, context=context)


def autocast(dtype):
    """What a baseline's forward pass runs in."""
    return torch.autocast(DEVICE.type, torch.bfloat16) if dtype == "bf16" else nullcontext()


def launch_seconds(step, repeats=10):
    """The host's time to launch a step on an idle device."""
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step.step()
        times.append(time.perf_counter() - start)
    torch.cuda.synchronize()
    return statistics.median(times)


def check_answers(images, labels, names):
    """Whether loss and gradient of the first layer's weights are those of `eager` in all asked for that compute the
    same network: {variant: error} of those of which they aren't, or that fail.

    Without dropout, whose masks differ. A near-tie in a pooling window, or a value near 0 in a ReLU, may fall either
    way."""
    recipe = dataclasses.replace(paper(), dropout=0.0)
    towers, answers, errors = TwoTowerAlexNet(recipe, (DEVICE, DEVICE)), {}, {}

    def note(network, first, count=1):
        loss = F.cross_entropy(network(*[images] * count), labels)
        loss.backward()
        return loss.item(), first(network).weight.grad[:48].clone()

    eager = EagerTowers(recipe).take(towers).to(DEVICE)
    eager_loss, eager_gradient = note(eager, lambda network: network.towers[0]["conv1"])
    ways = {  # how each is made, its first layer, how often it takes the images
        "towers": (lambda: towers, lambda network: network.towers[0].conv1, 2),
        "reference": (
            lambda: TwoTowerAlexNet(recipe, (DEVICE, DEVICE), kernels="reference"),
            lambda network: network.towers[0].conv1,
            2,
        ),
        "merged": (towers.merge, lambda network: network.conv1),
    }
    for name, (make, *arguments) in ways.items():
        if name not in names and not (name == "towers" and "graphs" in names):
            continue
        try:
            answers[name] = note(make(), *arguments)
        except Exception as error:
            errors[name] = bare(error)
    for name, (loss, gradient) in answers.items():
        error = ((gradient - eager_gradient).norm() / eager_gradient.norm()).item()
        if loss != pytest.approx(eager_loss, rel=1e-4):
            errors[name] = AssertionError(f"{name}: a loss of {loss}, eager {eager_loss}")
        elif not error < 2e-2:
            errors[name] = AssertionError(f"{name}: the gradient of conv1's weights is {error:.1e} off, of its norm")
    return errors | ({"graphs": errors["towers"]} if "towers" in errors else {})


class Step:
    """One network's forward pass, loss and backward pass; on a GPU the update by torch's SGD, too."""

    calls, sets = 1, 1

    def __init__(self, network, labels, *images, context=nullcontext()):
        self.network, self.labels, self.images, self.context = network, labels, images, context
        self.update = lambda: None
        if DEVICE.type == "cuda":
            self.update = torch.optim.SGD(
                network.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4, foreach=True
            ).step
        self.runs = {"step": self.step}

    def step(self):
        self.network.zero_grad()
        self._loss().backward()
        self.update()

    def _loss(self):
        with self.context:
            return F.cross_entropy(self.network(*self.images), self.labels)

    def saved_bytes(self):
        """Bytes that a forward pass keeps for backward beside weights and images, each storage once."""
        pointers = {
            tensor.untyped_storage().data_ptr() for tensor in (*self.network.parameters(), *self.images, self.labels)
        }
        activations = {}

        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in pointers:
                activations[storage.data_ptr()] = tensor, storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = self._loss()
        del loss
        return sum(bytes_ for _, bytes_ in activations.values())


class OurStep(Step):
    """A training step as `train` takes it, with `--graphs` "off" or "on", and with the convolutions that are
    reproducible."""

    def __init__(self, network, labels, images, graphs="off"):
        super().__init__(network, labels, images, images)
        optimizer = PaperSGD(network)
        optimizer.set_rates(dict.fromkeys(network.layer_parameters(), RATE))
        self.take = graphed(TrainingStep(network, optimizer), graphs)

    def step(self):
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            self.take(self.images, self.labels, lambda loss: None)


class DefaultAllocator:
    """`default_allocator.py` in its process; a step of it when its turn comes."""

    calls, sets = 1, 1

    def __init__(self, batch):
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("default_allocator.py"), str(batch)],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        self.runs = {"step": self.step}
        self._hear("ready")

    def step(self):
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        self._hear("done")

    def _hear(self, word):
        if (answer := self.process.stdout.readline().strip()) != word:
            raise RuntimeError(
                f"default_allocator.py said {answer!r} for {word!r}; it ended with status {self.process.poll()}"
            )

    def end(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
