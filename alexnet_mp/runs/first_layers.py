"""The first layer's weights at many moments of a run, for a look at how figure 3 grows: `RUN/first_layer/`.

`train --keep-every K` writes `step_XXXXXXXX.safetensors` before the first step and after every K-th: one tensor, the
merged network's weights, float32, (maps of all towers, 3, k, k); 139 kB for 96 kernels of 11x11. A run that goes on
from step S keeps those up to S, as it keeps the lines of its metrics, and writes the later ones anew."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from ..system import durable_files
from ..system.errors import UserError, need
from . import safetensors_file
from .checkpoint_format import load_weights, read_state
from .checkpoint_state import State
from .checkpoints import step_of

FIRST_LAYER = "first_layer"
ENDING = ".safetensors"
MOST_BYTES = 64 << 20  # of one file: 400 times the paper's


def write(run: str | Path, step: int, weights: Mapping[str, np.ndarray]) -> None:
    """Keep a first layer's weights, {"conv1.weight": float32}, on the disk when this returns. Raises OSError."""
    directory = Path(run) / FIRST_LAYER
    with suppress(FileExistsError):
        durable_files.make_directory(directory)
        durable_files.sync(run)
    layout = {name: ("F32", tensor.shape) for name, tensor in weights.items()}
    arrays = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in weights.items()}
    durable_files.replace(directory / f"step_{step:08d}{ENDING}", safetensors_file.parts(layout, arrays))


def listing(run: str | Path) -> dict[int, Path]:
    """{step: file} of what a run has kept, oldest first; empty where that is nothing. Raises UserError where it can't
    be listed."""
    directory = Path(run) / FIRST_LAYER
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"cannot list {directory}: {error.strerror}") from None
    paths = {step_of(name.removesuffix(ENDING)): directory / name for name in names if name.endswith(ENDING)}
    paths.pop(None, None)
    return dict(sorted(paths.items()))


def read(path: str | Path) -> np.ndarray:
    """The kernels of one moment, (maps of all towers, 3, k, k) float32. Raises UserError, in one line, where the file
    can't be read or holds anything else."""
    return _read(path)[1]


def of_checkpoint(directory: str | Path) -> tuple[State, np.ndarray]:
    """(its `State`, the first layer's weights (maps of all towers, 3, k, k) float32) of a checkpoint, read whole and
    compared with its sha256. Raises UserError."""
    state = read_state(directory)
    return state, load_weights(directory)[f"{state.recipe.layers[0].name}.weight"].numpy()


def _read(path):
    """(name, kernels)."""
    try:
        content = durable_files.read(path, MOST_BYTES)
        layout = safetensors_file.read_layout(len(content), content)
        need(len(layout) == 1, f"it holds {len(layout)} tensors instead of one")
        ((name, (dtype, shape)),) = layout.items()
        need(
            dtype == "F32" and len(shape) == 4 and shape[1] == 3 and shape[2] == shape[3] and 0 not in shape,
            f"{name!r:.100} is {dtype} {shape}; the kernels of colour images are F32 (maps, 3, k, k)",
        )
        (kernels,) = load(content).values()
        need(safetensors_file.finite(kernels), f"{name!r:.100} has values that are not finite")
        return name, kernels
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError, SafetensorError) as error:
        raise UserError(f"{path} is damaged: {' '.join(str(error).split()):.400}") from None


def forget_after(run: str | Path, step: int) -> None:
    """Remove what was kept after a step, and what a crash left half written. Raises OSError, and what `listing`
    does."""
    paths = [path for of_step, path in listing(run).items() if of_step > step]
    debris = (Path(run) / FIRST_LAYER).glob(f"step_*{ENDING}{durable_files.PARTIAL}")
    for path in (*paths, *debris):
        durable_files.remove(path)


def take_over(run: str | Path, directory: str | Path, step: int) -> None:
    """Begin a run's with those of another's up to a step, as far as they can be read. Raises OSError where one can't be
    written."""
    with suppress(UserError):  # a checkpoint that was copied without its run
        for of_step, path in listing(run).items():
            if of_step <= step:
                with suppress(UserError):
                    write(directory, of_step, dict([_read(path)]))
