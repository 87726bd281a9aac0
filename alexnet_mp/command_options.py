"""How the commands with a network begin: the options that they share, memory and precision."""

import argparse

import torch

from .data.pipeline import PIPELINES
from .kernels import dispatch
from .system.devices import CHOICES
from .system.memory import keep_freed_memory


def compute_as_in_training() -> None:
    """Keep the memory of freed tensors, and round no float32 of a convolution to TF32: for commands with a network."""
    keep_freed_memory()
    torch.backends.cudnn.allow_tf32 = False


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    add_run_options(parser)
    parser.add_argument("--pipeline", choices=PIPELINES, default="auto", help="default: auto")
    parser.add_argument(
        "--workers",
        type=int,
        help="processes that read images; default: by the number of cores, which the processes of a machine share",
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Of commands that read no data set."""
    parser.add_argument("--gpus", default="auto", help=f"{CHOICES}; default: auto")
    parser.add_argument(
        "--kernels",
        choices=dispatch.CHOICES,
        default="auto",
        help="who computes norms, pools and the update; default: auto, the fastest built for each device",
    )
