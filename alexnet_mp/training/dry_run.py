"""What a run would do, need and take, found out in a few steps that leave nothing behind: `train --dry-run`."""

import os
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from ..data.batches import steps_of_recipe, steps_per_epoch
from ..data.dataset import DataSet
from ..data.pixel_statistics import Statistics
from ..network.network import TwoTowerAlexNet
from ..profiling.layer_memory import step_bytes
from ..recipes import shapes
from ..recipes.recipe import Recipe
from ..runs.checkpoints import CHECKPOINTS, listing
from ..system.errors import UserError
from ..system.job import joined
from ..system.memory import keep_freed_memory
from ..system.terminal import duration, say
from . import graphed_step, run
from .make_step import make_step
from .plan import Options, Plan, resolve
from .schedule import make_schedule
from .update_rule import PaperSGD

TIMED = 3  # steps, of which the median counts
BEFORE = 1  # steps before them: the first makes its memory


def dry_run(options: Options, clock: Callable[[], float] = time.perf_counter) -> None:
    """Say what a run that is asked for like this would do: all that it says of itself before its first step, then the
    memory of a tower, the bytes of a step, and an estimate of the time. Raises UserError as the run would.

    Nothing is written, and no lock is taken. Images are read for the steps alone: a mean image that would have to be
    fitted first is a grey one here, and the self-check is left out. clock: in seconds.
    """
    keep_freed_memory()
    torch.backends.cudnn.deterministic = True
    with joined(options.towers == "apart") as ranks, ExitStack() as resources:
        if ranks.count > 1:
            raise UserError("--dry-run: not yet of several processes; in one it tells the memory of the same towers")
        dry_options, directory = _without_writing(options)
        plan = resolve(replace(dry_options, self_check=False), resources)
        dataset, pipeline, findings = run.choose_pipeline(plan)
        pipeline.pieces = plan.pieces
        pipeline.use(_statistics(plan, dataset))
        network = run.build_network(plan, run.TrainingData(dataset, pipeline, [], findings, {}))
        say(f"dry run: nothing is written; run directory {directory or plan.out}, kernels {network.kernels_used()}")
        classes = len(dataset.classes)
        say(f"{sum(shapes.parameter_counts(plan.recipe, classes)):,} parameters")
        # a set may be smaller than a batch
        batch_size = min(plan.recipe.batch_size, len(dataset.splits["train"]))
        images = min(batch_size, plan.pieces.microbatch or batch_size)
        say(_memory_in_words(plan.recipe, classes, images, len(set(network.exchange.devices)) == 1))
        steps_so_far = plan.point.checkpoint.state.step if plan.point else 0
        seconds = _seconds_a_step(plan, network, pipeline, steps_so_far, clock)
        say(_bytes_in_words(network, plan.recipe, classes, batch_size))
        _say_time(seconds, steps_so_far, options.steps, plan.recipe, dataset)


def _without_writing(options: Options) -> tuple[Options, str]:
    """(the options in which `--resume` asks for the same checkpoint without the run's lock, the directory that they
    name). `resolve` takes a lock where a run goes on in its own directory, and none where it goes on in a new one."""
    if options.resume is None:
        return options, options.out or ""
    source = options.out if options.resume == "auto" else options.resume
    if not source or not os.path.isdir(source):
        return options, options.out or ""  # begins, or is refused, before any lock
    if options.resume == "auto" and not listing(source):
        return replace(options, resume=None, out=f"{source}.dry-run"), source
    path = Path(os.path.abspath(source))
    directory = path.parent.parent if path.parent.name == CHECKPOINTS else path
    if options.out and os.path.realpath(options.out) != os.path.realpath(directory):
        return options, options.out
    return replace(options, resume=str(source), out=f"{directory}.dry-run"), options.out or os.path.relpath(directory)


def _statistics(plan: Plan, dataset: DataSet) -> Statistics:
    if plan.point:
        return plan.point.checkpoint.statistics
    size = plan.recipe.stored_size
    return dataset.statistics or Statistics(np.full((size, size, 3), 127.5), np.zeros(3), np.eye(3))


def _memory_in_words(recipe, classes, images, on_one_device):
    memory = step_bytes(recipe, classes, images)
    parts = {f"tower {'ab'[number]}": tower for number, tower in enumerate(memory.towers)}
    if on_one_device and len(parts) == 2:
        parts["both on one device"] = memory.one_device
    words = "; ".join(
        f"{name} {part.total / 1e6:,.1f} MB (weights, gradients and velocity {3 * part.weights / 1e6:,.1f}, "
        f"activations {part.activations / 1e6:,.1f}, workspace {part.workspace / 1e6:,.1f})"
        for name, part in parts.items()
    )
    return f"memory of a step of {images:,} images in float32: {words}"


def _bytes_in_words(network: TwoTowerAlexNet, recipe: Recipe, classes: int, images: int) -> str:
    rows = shapes.crossings(recipe, images, classes)
    if not rows:
        return "the towers have no layer that reads both: nothing crosses"
    edges = ", ".join(dict.fromkeys(row[0] for row in rows))
    crossing = f"{sum(row[-1] for row in rows) / 1e6:,.2f} MB a step"
    if len(set(network.exchange.devices)) == 1:
        return f"nothing is copied between towers on one device; on two, {crossing} in float32, at {edges}"
    return f"{crossing} cross between the {network.exchange.between} in float32, at {edges}"


def _seconds_a_step(plan, network, pipeline, steps_so_far, clock):
    """[seconds] of up to `TIMED` steps, each with the wait for its images."""
    optimizer, schedule = PaperSGD(network), make_schedule(plan.recipe)
    step = make_step(network, optimizer, pipeline, plan.options.graphs, plan.ranks)
    warm_up = graphed_step.WARM_UP + BEFORE if isinstance(step, graphed_step.GraphedStep) else BEFORE
    devices = {device for device in network.exchange.devices if device.type == "cuda"}
    network.train()
    seconds, epochs = [], max(plan.recipe.epochs, steps_so_far // steps_per_epoch(plan.recipe, pipeline.dataset) + 1)
    with closing(pipeline.train(steps_so_far, epochs, schedule.colour_noise)) as batches:
        start = clock()
        for batch in islice(batches, warm_up + TIMED):
            optimizer.set_rates(schedule.rates(batch.epoch))
            step(batch.images, batch.labels, lambda loss: None, len(batch.numbers))
            for device in devices:
                torch.cuda.synchronize(device)
            now = clock()
            seconds.append(now - start)
            start = now
    return seconds[warm_up:] or seconds[-1:]


def _say_time(seconds, steps_so_far, limit, recipe, dataset):
    total = steps_of_recipe(recipe, dataset)
    remainder = max(0, (total if limit is None else min(limit, total)) - steps_so_far)
    median = statistics.median(seconds)
    say(
        f"a step takes {1e3 * median:,.0f} ms (median of {len(seconds)}), with the wait for its images: "
        f"{remainder:,} step{' is' if remainder == 1 else 's are'} about {duration(remainder * median)}; "
        "reading all images first, validations and tests come on top"
    )
