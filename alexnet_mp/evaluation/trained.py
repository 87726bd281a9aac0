"""A trained network from its run directory, with what it was trained on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..data.pixel_statistics import Statistics
from ..network.network import TwoTowerAlexNet
from ..recipes.recipe import Recipe
from ..runs import checkpoint_format, checkpoints
from ..runs.directory import read_run
from ..system.devices import check_kernels, here, make_current
from ..system.errors import UserError
from ..system.ranks import ALONE, Ranks
from ..system.terminal import say


@dataclass(frozen=True)
class Trained:
    """What the newest weights of a run were trained with, which is not always what the run does now
    (`--resume-anyway`)."""

    recipe: Recipe
    source: str  # of the data
    classes: list
    statistics: Statistics
    weights: dict | None
    checkpoint: Path  # its directory


def trained(directory: str | Path, with_weights: bool = False) -> Trained:
    """The `Trained` of a run's newest checkpoint.

    Raises UserError if it is no run, or the checkpoint can't be used.
    """
    read_run(directory)

    def read(path):
        state = checkpoint_format.read_state(path)
        weights = checkpoint_format.load_weights(path) if with_weights else None
        statistics = checkpoint_format.load_statistics(path, state)
        return Trained(state.recipe, state.data.source, list(state.data.classes), statistics, weights, path)

    return checkpoints.from_newest(directory, read)[1]


def load_run(
    directory: str | Path, gpus: str = "auto", kernels: str = "auto", ranks: Ranks = ALONE
) -> tuple[TwoTowerAlexNet, Trained]:
    """(network in test mode, its `Trained`) of a run directory's newest weights. ranks: of a job of which this process
    has a pair of towers. Raises UserError where it can't be used."""
    training = trained(directory, with_weights=True)
    devices = here(gpus, training.recipe.towers, ranks, training.recipe.lrn_crosses)
    check_kernels(kernels, devices)
    make_current(devices)
    network = TwoTowerAlexNet(training.recipe, devices, len(training.classes), kernels)
    try:
        network.load_merged(training.weights)
    except ValueError as error:
        raise UserError(f"{training.checkpoint} doesn't fit {directory}/run.json: {error}") from None
    say(f"{training.checkpoint} on {', '.join(map(str, devices))}, kernels {network.kernels_used()}")
    return network.eval(), replace(training, weights=None)


def class_words(directory: str | Path, classes: Sequence[str]) -> list[str]:
    """The names of a run's classes as a person knows them: `run.json` has words where the data set had them; else
    `classes`."""
    data = read_run(directory)["data"]
    words = data.get("class_names")
    fits = isinstance(words, list) and len(words) == len(classes) and all(isinstance(name, str) for name in words)
    return words if fits and data["classes"] == list(classes) else list(classes)
