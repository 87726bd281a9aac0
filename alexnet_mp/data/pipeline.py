"""Which input pipeline `--pipeline` means, and how many processes or threads read."""
import os

import torch

from ..system.errors import UserError
from ..system.terminal import say
from . import pipeline_dali
from .pipeline_dali import DaliPipeline
from .pipeline_raw import RawPipeline
from .pipeline_torch import TorchPipeline

PIPELINES = ("auto", "dali", "raw", "torch")
MOST_WORKERS = 16


def make_pipeline(choice, dataset, recipe, devices, workers=None, dtype=torch.float32):
    """The pipeline that `--pipeline` and `--workers` ask for.

    "auto": "raw" for sets of raw pixels; else "dali" where DALI is there and loads; else "torch". Raises UserError for one that is not
    installed or doesn't fit the data. dtype: of the images.
    """
    raw = all(split.holds == "pixels" for split in dataset.splits.values())
    if choice == "auto":
        choice = "raw" if raw else "dali" if pipeline_dali.available() else "torch"
        if choice == "torch":
            say("pipeline torch: DALI is not installed (pip install nvidia-dali-cuda130)")
        elif choice == "dali" and (why := pipeline_dali.problem()):
            say(f"WARNING: pipeline torch: DALI can't be loaded ({why})")
            choice = "torch"
    if choice == "raw" and not raw:
        raise UserError("--pipeline raw reads sets that `python -m alexnet_mp.prepare --raw` made, at the recipe's stored size; "
                        f"this is {dataset.description}")
    if workers is None:
        workers = min(os.process_cpu_count() if hasattr(os, "process_cpu_count") else len(os.sched_getaffinity(0)), MOST_WORKERS)
    if workers < 0:
        raise UserError(f"--workers {workers}: it must be 0 (read in the main process) or more")
    return {"dali": DaliPipeline, "raw": RawPipeline, "torch": TorchPipeline}[choice](dataset, recipe, devices, workers, dtype)
