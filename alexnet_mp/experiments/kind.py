"""What a kind of claim is: one class, whose defaults are those of a claim that compares errors.

The classes are in `error_kinds`, `time_kinds` and `network_kinds`. A new one says what differs from `Kind`, and a claim
in a `*_claims.py` names it. What a single claim has of its own is with its verdict (`verdict.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from ..data.pipeline import Pipeline
from ..network.network import TwoTowerAlexNet
from ..recipes.recipe import Recipe
from . import drawing, outcome, sentences
from .outcome import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class PlannedRun(Protocol):
    """What a kind reads of a `plan.Run`, which names its kind in turn."""

    @property
    def recipe(self) -> Recipe: ...

    @property
    def directory(self) -> Path: ...


AnyRun = TypeVar("AnyRun", bound=PlannedRun)


class Kind:
    """What a claim measures and compares.

    A record is what `conduct.new_record` begins, an entry what it has of a run. Arms are names, the reference's first;
    an arm that was trained on a larger label set is not among them.
    """

    word = ""  # in records

    # What is trained and tested.
    level = None  # top-1 training error in % at which a run ends
    searches_rates = False  # each arm has the learning rate with which it comes to the level soonest
    on_training_images = True  # whether each network is tested on them too: a third of an epoch's work
    on_test_images = False  # if they have labels
    tests = 1  # of a network on the validation images
    asks_for = "on_training_images"  # of an entry that is kept: without this it was measured for another kind alone

    # What is said and drawn.
    tells_schedule = False  # whether the findings say when the rates fall
    judged = True  # whether a verdict is tried
    curve_labels = ("step", "training loss (nats)")
    dashed = False  # whether the curves of all arms but the first are
    shows_kernels = False  # whether the first layers of all its runs are a picture of their own

    def refuse(self, claim_id: str, recipe: Recipe) -> None:
        """Raise UserError if the first arm's recipe leaves nothing to compare."""

    def turn(
        self, number: int, runs_of_seed: Callable[[int], list[AnyRun]]
    ) -> tuple[list[AnyRun], list[AnyRun] | None]:
        """(the runs of turn `number`, in order; those of them that are averaged, or None): all arms with one seed."""
        return runs_of_seed(number), None

    def turn_of(self, seed: int) -> int:
        """The number of the turn that has this seed."""
        return seed

    def measure(self, run: PlannedRun, open_network: Callable[[], tuple[TwoTowerAlexNet, Pipeline]]) -> dict:
        """What an entry has of a finished run beside its tests and curve; open_network() -> (network, pipeline)."""
        return {}

    def passes(self, pictures: int) -> int:
        """How many forward passes of a picture `measure` takes, of so many validation pictures."""
        return 0

    def findings(self, record: dict, arms: Sequence[str]) -> list[str | None]:
        """The sentences that a record supports; None for one that it doesn't. By default each arm against the first."""
        return [sentences.difference(record, arms[0], arm) for arm in arms[1:]]

    def seed_by_seed(self, record: dict) -> list[dict[str, str]]:
        """The rows of a table, {column: cell}, of what a record has of every run; [] where the findings say all."""
        return []

    def outcomes(self, record: dict, arms: Sequence[str]) -> list[Outcome]:
        """The `Outcome`s that a verdict rests on, the primary one first. By default of each arm's error."""
        return [outcome.difference(record, arms[0], arm) for arm in arms[1:]]

    def curve(self, run: dict) -> tuple[list[float], list[float]]:
        """(x, y) of an entry's training curve."""
        return run["curve"]["steps"], run["curve"]["loss"]

    def mark_curves(self, axes: "Axes", record: dict) -> None:
        """Draw what is in the picture of the curves beside them."""

    def figure(self, axes: "Axes", record: dict, colours: Mapping[str, str]) -> None:
        """Draw what came out for each seed; colours: {arm: colour}. By default the arms' errors."""
        drawing.errors(axes, record, colours)
