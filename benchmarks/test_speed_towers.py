"""One training step of the network on two GPUs against the one-GPU network that the paper compares it with (3.2).

    pytest benchmarks/test_speed_towers.py --benchmark-only [--batch 128] [--rounds 7]

`two-towers`: the paper's network, a tower a device. `one-gpu`: half the kernels in each convolution but the last, the
fully connected layers whole, on the first of them (`ablations.one_gpu`). Both take forward, loss, backward and update
as `train` does, without CUDA graphs; `two-towers-graphs` and `one-gpu-graphs` with them, in one process on GPUs. On two
GPUs the graphs go from crossing to crossing, and the record says whether `replay_tape` of `csrc/` launches them, or
Python. Only `two-gpus` is what the sentence is about; with both towers on one GPU, or on the CPU, the larger network
has no second device to save time with. `two-processes` is the sentence on a CPU: a process and a core for each tower,
against one process on one core; `two-gpu-processes` is that on two GPUs, a process each.
"""

import math
import statistics
from contextlib import ExitStack, closing

import pytest
import torch
from interleaved import REPLAY, clocks, compare, once, provenance, replay, time_interleaved
from jobs import RATE, Job

from alexnet_mp import TwoTowerAlexNet, paper
from alexnet_mp.recipes import shapes
from alexnet_mp.recipes.ablations import one_gpu
from alexnet_mp.training.graphed_step import WARM_UP, graphed
from alexnet_mp.training.step import TrainingStep
from alexnet_mp.training.update_rule import PaperSGD

PLACES = {"cpu": ("cpu", "cpu"), "one-gpu": ("cuda:0", "cuda:0"), "two-gpus": ("cuda:0", "cuda:1")}
PROCESSES = {"two-processes": ("cpu", "cpu"), "two-gpu-processes": ("cuda:0", "cuda:1")}
GPUS = {"one-gpu": 1, "two-gpus": 2, "two-gpu-processes": 2}
RECIPES = {"two-towers": paper, "one-gpu": lambda: one_gpu(paper())}
GRAPHS = {f"{name}-graphs": name for name in RECIPES}
VARIANTS = (*RECIPES, *GRAPHS)
CASES = [
    pytest.param(
        place, variant, id=f"{place}-{variant}", marks=[pytest.mark.gpus(GPUS[place])] if place in GPUS else ()
    )
    for place in (*PLACES, *PROCESSES)
    for variant in (VARIANTS if place in GPUS and place in PLACES else RECIPES)
]


@pytest.fixture(scope="module")
def measured():
    return once(measure)


@pytest.mark.benchmark(timer=REPLAY)
@pytest.mark.parametrize("place, variant", CASES)
@pytest.mark.long("two-gpus")
def test_step_of_towers(place, variant, benchmark, measured, rounds, request):
    devices = tuple(map(torch.device, PLACES.get(place) or PROCESSES[place]))
    batch = (request.config.getoption("batch") or (2 if benchmark.disabled else 128,))[0]
    seconds, parameters, conditions = measured(devices, place in PROCESSES, batch, rounds)
    benchmark.group = f"two-gpus-{place}-fp32-b{batch}"
    replay(benchmark, seconds[variant]["step"])
    benchmark.extra_info.update(
        provenance(devices[0])
        | conditions
        | compare(seconds, "step", None, VARIANTS)[variant]
        | {
            "op": "two-gpus",
            "variant": variant,
            "dtype": "fp32",
            "batch": batch,
            "place": place,
            "parameters": parameters[variant],
            "images_per_s": batch / statistics.median(seconds[variant]["step"]),
        }
    )


def measure(devices, in_processes, batch, rounds):
    """The steps timed, interleaved: (seconds, {variant: parameters}, what the record says of the conditions)."""
    recipes = {name: make() for name, make in RECIPES.items()}
    if devices[0].type == "cuda" and not in_processes:
        recipes |= {name: recipes[recipe] for name, recipe in GRAPHS.items()}
    with ExitStack() as stack:
        if in_processes:
            variants = {
                name: stack.enter_context(closing(of_processes(recipe, devices, batch)))
                for name, recipe in recipes.items()
            }
            clock_device, conditions = torch.device("cpu"), {"threads_each": 1}
        else:
            variants = {
                name: Step(recipe, devices[: recipe.towers], batch, "on" if name in GRAPHS else "off")
                for name, recipe in recipes.items()
            }
            for name, variant in variants.items():
                for _ in range(WARM_UP + 3 if name in GRAPHS else 1):  # of graphs eager steps and captures
                    assert variant.step().isfinite()
            clock_device, conditions = devices[0], {"kernels": variants["two-towers"].network.kernels_used()}
            if "two-towers-graphs" in variants and devices[0] != devices[1]:  # else a graph is the whole step
                conditions["replay_tape"] = variants["two-towers-graphs"].has_program()
        before = clocks(devices[0])
        seconds, _ = time_interleaved(variants, clock_device, rounds)
        conditions |= {"clocks_before": before, "clocks_after": clocks(devices[0]), "seed": 0}
    return seconds, {name: sum(shapes.parameter_counts(recipe)) for name, recipe in recipes.items()}, conditions


def of_processes(recipe, devices, batch):
    """A `Job`: a process with one thread for each tower. What it costs to tell it to take a step is in its time."""
    job = Job([[str(device)] for device in devices[: recipe.towers]], 1, batch, apart=recipe.towers == 2, recipe=recipe)
    assert all(loss == job.losses[0] for loss in job.losses) and math.isfinite(job.losses[0])
    return job


class Step:
    """A network's training step on pictures that are there; on two GPUs its time ends when both have ended.

    graphs: "off", or "on": its CUDA graphs."""

    calls, sets = 1, 1

    def __init__(self, recipe, devices, batch, graphs="off"):
        self.devices, self.network = devices, TwoTowerAlexNet(recipe, devices)
        optimizer = PaperSGD(self.network)
        optimizer.set_rates(dict.fromkeys(self.network.layer_parameters(), RATE))
        self.take = graphed(TrainingStep(self.network, optimizer), graphs)
        images = 60 * torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        replicas = {device: images.to(device, memory_format=torch.channels_last) for device in dict.fromkeys(devices)}
        self.images, self.labels = [replicas[device] for device in devices], (torch.arange(batch) % 1000).to(devices[0])
        self.runs = {"step": self.step}

    def has_program(self):
        """Whether one compiled operator launches the step's graphs and copies (`cuda_graphs.Tape`)."""
        return all(bool(getattr(shape.forward_and_backward, "program", None)) for shape in self.take.shapes.values())

    def step(self):
        streams = [torch.cuda.current_stream(device) for device in dict.fromkeys(self.devices) if device.type == "cuda"]
        first, rest = streams[:1], streams[1:]
        for stream in rest:  # the clock is the first device's: the second must not start before it, nor end after it
            stream.wait_stream(*first)
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            loss, *_ = self.take(self.images, self.labels, lambda loss: None)
        for stream in rest:
            first[0].wait_stream(stream)
        return loss
