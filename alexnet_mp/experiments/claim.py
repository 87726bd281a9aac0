"""What a claim is: a sentence of the paper, its figures, and the networks that test it.

Figures are errors in % (top-1 / top-5), differences in points. "2012" figures are from the notes in the source's
configuration files, where they record any; 147 is `layers-147.cfg`."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..recipes.recipe import Recipe
from .kind import Kind


@dataclass(frozen=True)
class Arm:
    """One network of a claim: a preset, and what is changed in it."""

    name: str  # a word; run directories begin with it
    what: str
    derive: tuple = ()  # functions Recipe -> Recipe, applied in this order
    preset: str | None = None  # None: what --base says
    init: str | None = None  # the arm, trained before with the same seed, whose weights this one begins with
    larger: bool = False  # trained on the larger label set


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, and the networks that test it."""

    id: str
    section: str
    sentence: str
    paper: str
    source: str  # what the 2012 notes have
    kind: Kind
    arms: tuple[Arm, ...]
    # Or "labelled test", "cifar10", "ilsvrc-2010", "ilsvrc-2012", "fall-2009": on other data `run all` leaves it out.
    data: str = "any"
    seeds: int = 3  # unless --seeds says otherwise
    needs: str = ""  # of the data, said by the list
    more: str = ""  # of the command
    direction: int = 1  # of what `verdict.py` compares, in the paper: 1 above 0, -1 below, 0 none
    points: float | None = None  # of top-1 error, the paper's own figure for that
    effect: float | None = None  # which would count, in that direction, where the paper has no figure
    every: bool = False  # the claim is made of every arm, not of the second alone
    tells_gaps: bool = False  # the sentence speaks of overfitting beside what its kind compares

    @property
    def counts(self) -> float | None:
        """The least effect that would count, in the paper's direction: half of its own, where it has a figure."""
        return self.effect if self.points is None else self.points / 2


def at_rate(factor: float, recipe: Recipe) -> Recipe:
    """Both learning rates times `factor`."""
    return replace(
        recipe, learning_rate=recipe.learning_rate * factor, bias_learning_rate=recipe.bias_learning_rate * factor
    )


GRID = (1.0, 3.0, 10.0)  # of a search, factors on both learning rates; widened if the best is at its edge
FACTORS = (0.01, 0.03, 0.1, 0.3, *GRID, 30.0, 100.0)

BASE = Arm("base", "the network as it is")
NOT_RECORDED = "not recorded"


def base_and(name: str, what: str, *derive: Callable[[Recipe], Recipe]) -> tuple[Arm, Arm]:
    """The network as it is, and one that is changed."""
    return BASE, Arm(name, what, derive)


def command(claim: Claim, data: str = "DIR") -> str:
    return f"python -m alexnet_mp.claims run {claim.id} --data {data}{claim.more}"
