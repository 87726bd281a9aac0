"""A directory like a run's, of a network that was not trained here: run.json, the mean image, a checkpoint of step 0.

`evaluate`, `predict`, `report`, `retrieve` and `train --init` take it. `--resume` doesn't: no training came before."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.dataset import ELSEWHERE
from ..data.pixel_statistics import Statistics
from ..recipes.recipe import Recipe
from ..runs import checkpoints, directory
from ..runs.checkpoint_format import Checkpoint
from ..runs.checkpoint_state import Data, Environment, State
from ..runs.metrics import METRICS
from ..runs.unit_means import UnitMeans
from ..system import durable_files
from ..system.errors import UserError
from ..system.file_lock import alone


@dataclass(frozen=True)
class Converted:
    """A network from elsewhere, ready to be written."""

    recipe: Recipe
    weights: Mapping[str, np.ndarray]  # merged, float32
    statistics: Statistics
    classes: Sequence[str]
    words: Sequence[str]  # the classes' names as a person knows them
    source: str  # what it was made of, in words
    sha256: str  # of its weights' file; "" for a folder
    means: UnitMeans | None = None  # that came with it


def write_run(path: str | Path, network: Converted, command: str) -> None:
    """Make the directory, whole or not at all. Raises UserError if it can't be made, or the tensors aren't finite."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    description = f"not known: converted from {network.source}"
    data = Data(ELSEWHERE, description, network.sha256, tuple(network.classes))
    origin = {"from": network.source, "sha256": network.sha256}
    content = directory.fields_of_run(command, now, network.recipe, data, network.words, origin)
    environment = Environment((), "none", "fp32", "none", None, 0, content["packages"], None, 1)
    state = State(0, 0, network.recipe, data, {}, None, True, None, 0, environment, now)
    velocity = {name: np.zeros_like(tensor) for name, tensor in network.weights.items()}
    with alone(path), durable_files.writing(path):
        try:
            with durable_files.new_directory(path) as folder:
                directory.write_run(folder, content)
                durable_files.replace(folder / METRICS, b"")
                network.statistics.save(folder)
                if network.means is not None:
                    network.means.save(folder)
                checkpoints.put(folder, Checkpoint(network.weights, velocity, network.statistics, state))
        except ValueError as error:
            raise UserError(f"{network.source}: {' '.join(str(error).split()):.400}") from None
