"""Which input pipeline `--pipeline` means, and how many processes read."""
import os

from .errors import UserError
from .pipeline_torch import TorchPipeline

PIPELINES = ("auto", "dali", "torch")
MOST_WORKERS = 16


def make_pipeline(choice, dataset, recipe, devices, workers=None):
    """The pipeline that `--pipeline` and `--workers` ask for. Raises UserError for one that is not built."""
    if choice == "dali":
        raise UserError("--pipeline dali is not built yet; --pipeline torch works everywhere")
    if workers is None:
        workers = min(os.process_cpu_count() if hasattr(os, "process_cpu_count") else len(os.sched_getaffinity(0)), MOST_WORKERS)
    if workers < 0:
        raise UserError(f"--workers {workers}: it must be 0 (read in the main process) or more")
    return TorchPipeline(dataset, recipe, devices, workers)
