"""The weights of a run on disk: `checkpoints/step_XXXXXXXX/weights.safetensors`, the merged network's 16 tensors. Never pickle."""
import os
import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .errors import UserError

WEIGHTS = "weights.safetensors"


def save(run, network, step):
    """Write the weights after `step` steps and return their directory.

    A reader sees the whole checkpoint or none: everything is written and synced in a directory of another name, which a rename
    then puts in its place; a crash leaves at most that directory, and the next save removes it.
    """
    parent = Path(run) / "checkpoints"
    parent.mkdir(exist_ok=True)
    final, partial = parent / f"step_{step:08d}", parent / f".partial_{step:08d}"
    for leftover in parent.glob(".partial_*"):
        shutil.rmtree(leftover)
    partial.mkdir()
    save_file(network.merged_state(), partial / WEIGHTS)
    for path in (partial / WEIGHTS, partial):
        _sync(path)
    partial.rename(final)
    _sync(parent)
    return final


def newest(run):
    """The directory of a run's newest checkpoint. Raises UserError where there is none."""
    found = sorted((Path(run) / "checkpoints").glob("step_*"))
    if not found:
        raise UserError(f"{run}: no checkpoint in it (expected {run}/checkpoints/step_XXXXXXXX/)")
    return found[-1]


def load(directory):
    """The merged network's tensors from a checkpoint directory. Raises UserError where the file can't be read."""
    path = Path(directory) / WEIGHTS
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def _sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
