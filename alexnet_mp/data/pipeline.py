"""Which input pipeline `--pipeline` means, and how many processes or threads read."""

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Protocol

import torch

from ..parallel.pieces import Pieces
from ..recipes.recipe import Recipe
from ..system.errors import UserError
from ..system.terminal import say
from . import pipeline_dali
from .batches import Batch
from .dataset import DataSet
from .limits import refuse_workers
from .pipeline_dali import DaliPipeline
from .pipeline_raw import RawPipeline
from .pipeline_torch import TorchPipeline
from .pixel_statistics import Statistics

PIPELINES = ("auto", "dali", "raw", "torch")
MOST_WORKERS = 16


class Pipeline(Protocol):
    """From a data set to images on the towers' devices; `pipeline_torch.py` defines what they are."""

    name: str  # as in `--pipeline`
    dataset: DataSet
    recipe: Recipe
    devices: list[torch.device]  # of each tower
    workers: int  # processes or threads that read
    dtype: torch.dtype  # of the images
    statistics: Statistics | None  # None before `use`
    pieces: Pieces  # what it reads of each batch: of training its images, of a test whole batches

    def use(self, statistics: Statistics) -> None:
        """Set the mean image and colour components that all batches are made with."""

    def train(self, step: int, epochs: int, colour_noise: Callable[[int], float]) -> Generator[Batch, None, None]:
        """Training batches from after `step` steps to the end of the last epoch; every image once an epoch.

        colour_noise(epoch) -> the colour deviation of that epoch. Raises UserError that names an image it can't read.
        """

    def views(
        self, split: str, batch_size: int, which: Sequence[tuple[int, int, bool]]
    ) -> Generator[tuple[Iterator[list], torch.Tensor], None, None]:
        """Each image of a split once, in order: yields (iterator of the views' `Batch.images`, labels).

        which: the (top, left, flip) of each view, as `centre_view` and `ten_views` give them.
        """


def make_pipeline(
    choice: str,
    dataset: DataSet,
    recipe: Recipe,
    devices: Sequence[torch.device | str],
    workers: int | None = None,
    dtype: torch.dtype = torch.float32,
    processes: int = 1,
) -> Pipeline:
    """The pipeline that `--pipeline` and `--workers` ask for. processes: on this machine that each have one, and share
    its cores.

    "auto": "raw" for sets of raw pixels; else "dali" where DALI is there and loads; else "torch". Raises UserError for
    one that is not installed or doesn't fit the data. dtype: of the images."""
    raw = all(split.storage == "pixels" for split in dataset.splits.values())
    if choice == "auto":
        choice = "raw" if raw else "dali" if pipeline_dali.available() else "torch"
        if choice == "torch":
            say("pipeline torch: DALI is not installed (pip install nvidia-dali-cuda130)")
        elif choice == "dali" and (reason := pipeline_dali.problem()):
            say(f"WARNING: pipeline torch: DALI can't be loaded ({reason})")
            choice = "torch"
    if choice == "raw" and not raw:
        raise UserError(
            "--pipeline raw reads sets that `python -m alexnet_mp.prepare --raw` made, at the recipe's stored size; "
            f"this is {dataset.description}"
        )
    if workers is None:
        cores = os.process_cpu_count() if hasattr(os, "process_cpu_count") else len(os.sched_getaffinity(0))
        workers = max(1, min(cores // processes, MOST_WORKERS))
    refuse_workers(workers, "read in the main process")
    return {"dali": DaliPipeline, "raw": RawPipeline, "torch": TorchPipeline}[choice](
        dataset, recipe, devices, workers, dtype
    )
