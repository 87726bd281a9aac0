"""Counts that a machine can't take are refused before they take it down: processes far above the cores, a batch or a
network that memory can't hold."""

import math
import os
from bisect import bisect_right

from ..parallel.pieces import WHOLE, Pieces
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


def refuse_batch(
    pipeline: AnyPipeline, batch_size: int, training: bool = False, pieces: Pieces = WHOLE, processes: int = 1
) -> None:
    """Raise UserError if batches of a pipeline need more memory than is free.

    pieces: what a process computes of each minibatch; processes: on this machine, that need as much each. What is
    counted is the least that they can do with; a GPU says by itself what doesn't fit into its own memory.
    """

    images, free_bytes = min(batch_size, max(map(len, pipeline.dataset.splits.values()))), free_memory()
    ahead = _ahead(pipeline, images)

    def need(images):
        return processes * least_bytes(pipeline, images, training, pieces, ahead)

    if need(images) <= free_bytes:
        return
    where = f" in {processes} processes" if processes > 1 else ""
    shortage = f"{need(images) / 1e9:,.1f} GB of memory at least{where}, and {free_bytes / 1e9:,.1f} GB are free"
    if need(1) > free_bytes:
        raise UserError(f"the network of {need(0) / 1e9:,.1f} GB and a batch need {shortage}; fewer maps would fit")
    most = bisect_right(range(1, images), free_bytes, key=need)
    raise UserError(f"batch size {batch_size}: {images:,} images need {shortage}; about {most:,} would fit")


def least_bytes(
    pipeline: AnyPipeline, images: int, training: bool, pieces: Pieces = WHOLE, ahead: int | None = None
) -> int:
    """Bytes of the CPU's memory that a process holds at a time, with batches of so many images. ahead: batches that
    wait; None: those of the pipeline's workers."""
    recipe, classes = pipeline.recipe, len(pipeline.dataset.classes)
    towers = sum(device.type == "cpu" for device in pipeline.devices)
    # Weights, their gradients and their velocity.
    state_bytes = 4 * (3 if training else 1) * sum(parameter_counts(recipe, classes)[:towers])
    if not images:
        return state_bytes
    pixels = 3 * recipe.crop_size**2
    ahead = _ahead(pipeline, images) if ahead is None else ahead
    image_bytes = pixels * (1 + ahead) + (4 * pixels if towers else 0)
    # Forward keeps for backward what every layer computes; in a test, of whole batches, only the largest has to be
    # there.
    activations = [math.prod(size.computed) for size in sizes(recipe, classes)[:-1]]
    value_bytes = towers * pipeline.dtype.itemsize
    test_bytes = images * (image_bytes + value_bytes * max(activations, default=0))
    if not training:
        return state_bytes + test_bytes
    row_ranges = [pieces.rows(piece, images) for piece in pieces.own(images)]
    read_range = pieces.read(images)
    most_rows = max((rows.stop - rows.start for rows in row_ranges), default=0)
    return state_bytes + max(
        test_bytes, (read_range.stop - read_range.start) * image_bytes + most_rows * value_bytes * sum(activations)
    )


def _ahead(pipeline, images):
    """The batches that workers hold ready."""
    batches = sum(math.ceil(len(split) / images) for split in pipeline.dataset.splits.values())
    return min(AHEAD * pipeline.workers, batches) if pipeline.name == "torch" else 0
