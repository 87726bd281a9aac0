"""Counts that a machine can't take are refused before they take it down: processes far above the cores, a batch or a
network that memory can't hold."""

import math
import os

from ..recipes.shapes import parameter_counts, sizes
from ..system.errors import UserError
from ..system.memory import free_memory
from .pipeline_dali import DaliPipeline
from .pipeline_raw import RawPipeline
from .pipeline_torch import TorchPipeline
from .workers import AHEAD

AnyPipeline = DaliPipeline | RawPipeline | TorchPipeline

FEW = 64  # processes that any machine can take: those that wait for a slow disk need no core


def refuse_workers(workers: int, without: str) -> None:
    """Raise UserError for a number of `--workers` that no machine, or not this one, can have. without: what 0 means."""
    if workers < 0:
        raise UserError(f"--workers {workers}: it must be 0 ({without}) or more")
    cores = len(os.sched_getaffinity(0))
    most = max(FEW, 4 * cores)
    if workers > most:
        raise UserError(
            f"--workers {workers}: at most {most} on this machine, which has {cores} core{'s' * (cores > 1)}; "
            "more processes than cores help only where the disk is slow"
        )


def refuse_batch(pipeline: AnyPipeline, batch_size: int, training: bool = False) -> None:
    """Raise UserError if batches of a pipeline need more memory than is free.

    What is counted is the least that they can do with; a GPU says by itself what doesn't fit into its own memory.
    """
    images = min(batch_size, max(map(len, pipeline.dataset.splits.values())))
    fixed, an_image = least_bytes(pipeline, images, training)
    need, free = fixed + images * an_image, free_memory()
    if need <= free:
        return
    short = f"{need / 1e9:,.1f} GB of memory at least, and {free / 1e9:,.1f} GB are free"
    if fixed + an_image > free:
        raise UserError(f"the network of {fixed / 1e9:,.1f} GB and a batch need {short}; fewer maps would fit")
    raise UserError(
        f"batch size {batch_size}: {images:,} images need {short}; about {int((free - fixed) / an_image):,} would fit"
    )


def least_bytes(pipeline: AnyPipeline, images: int, training: bool) -> tuple[int, int]:
    """(bytes whatever the batch is, bytes of each of its images) in the CPU's memory."""
    recipe, classes = pipeline.recipe, len(pipeline.dataset.classes)
    towers = sum(device.type == "cpu" for device in pipeline.devices)
    pixels = 3 * recipe.crop_size**2
    batches = sum(math.ceil(len(split) / images) for split in pipeline.dataset.splits.values())
    ahead = min(AHEAD * pipeline.workers, batches) if pipeline.name == "torch" else 0
    # Forward keeps for backward what every layer computes; in a test only the largest has to be there.
    computed = [math.prod(size.computed) for size in sizes(recipe, classes)[:-1]]
    values = sum(computed) if training else max(computed, default=0)
    an_image = pixels * (1 + ahead) + (4 * pixels if towers else 0) + towers * pipeline.dtype.itemsize * values
    # Weights, their gradients and their velocity.
    return 4 * (3 if training else 1) * sum(parameter_counts(recipe, classes)[:towers]), an_image
