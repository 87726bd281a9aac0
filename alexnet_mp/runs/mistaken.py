"""What somebody means who names as a run what is none: a checkpoint, or weights from elsewhere."""

import os
from pathlib import Path

from ..data.pixel_statistics import STATISTICS
from ..system import durable_files
from ..system.command_line import typed
from .checkpoints import CHECKPOINTS, step_of

WEIGHTS = (".safetensors", ".caffemodel", ".npz", ".weights.npy", ".weights.txt")  # as `convert` takes them
MOST_NAMES = 4096  # of a directory that is no run


def meant(path: str | Path) -> str:
    """In words, with what to name or type instead; "" of anything else, and of what can't be read."""
    place = Path(os.path.realpath(path))
    if step_of(place) is not None and place.parent.name == CHECKPOINTS:
        return f"it is a checkpoint of {place.parent.parent}; name that"
    try:
        names = durable_files.names(place, MOST_NAMES) if place.is_dir() else [Path(path).name] * place.exists()
    except OSError:
        return ""
    weights = next((name for name in names if name.endswith(WEIGHTS) and name != STATISTICS), None)
    if weights is None:
        return ""
    return f"{weights} has weights from elsewhere, of which {typed('convert', path, 'OUT')} makes a run"
