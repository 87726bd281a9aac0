"""When the two towers' first layers part, and whether they ever change sides: the kernels of a run, moment by moment.

The moments are those that `train --keep-every` kept, and the run's checkpoints; a run without the first has few. At
each the towers' shares of chroma are computed, and two tests of `specialisation.py`: `division`, over all that kernels
are tuned to, and `random_split_p` of the shares of chroma.

The division begins at the first moment from which on every one is divided (p <= `DIVISION_LEVEL`), up to the last; if
the last is not divided it has not begun. So many looks make no false alarm likelier: the last one alone has to be one.
It turns where the more colourful tower is another one than before, of the moments at which the shares of chroma are
apart by the same level after Holm's correction for the number of moments."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.dataset import evenly
from ..runs import checkpoints, first_layers
from ..system.errors import UserError
from .hypothesis_tests import holm
from .specialisation import DIVISION_LEVEL, chroma_shares, division, random_split_p

MOST_MOMENTS = 60  # of a run: of more, so many that are spread evenly over them
DRAWS = 10_000


@dataclass(frozen=True)
class Moment:
    """The first layer of a run after so many steps."""

    step: int
    kernels: np.ndarray  # (maps of all towers, 3, k, k) float32
    chroma: tuple[float, ...]  # each tower's share
    division_p: float | None  # None of one tower, and where too few kernels are learned
    chroma_p: float | None  # of "the shares of chroma are as far apart as those of random halves"; None of one tower

    @property
    def divided(self) -> bool:
        return self.division_p is not None and self.division_p <= DIVISION_LEVEL


@dataclass(frozen=True)
class Growth:
    """How the first layer of a run became what it is."""

    moments: tuple[Moment, ...]  # oldest first; the newest checkpoint's among them
    kept: int  # moments that `--keep-every` kept, of which more than `MOST_MOMENTS` are not all in `moments`
    unreadable: tuple[str, ...]  # a line for each file that can't be used

    @property
    def begins(self) -> int | None:
        """The step from which on every moment is divided; None where the last is not."""
        step = None
        for moment in reversed(self.moments):
            if not moment.divided:
                break
            step = moment.step
        return step

    @property
    def colourful(self) -> dict[int, int]:
        """{step: the more colourful tower, 0 or 1} of the moments whose shares of chroma are surely apart."""
        corrected_p = holm([moment.chroma_p for moment in self.moments])
        sure_moments = [moment for moment, p in zip(self.moments, corrected_p) if p is not None and p <= DIVISION_LEVEL]
        return {moment.step: int(moment.chroma[1] > moment.chroma[0]) for moment in sure_moments}

    @property
    def turns(self) -> list[int]:
        """The steps at which another tower has become the more colourful one."""
        steps, towers = list(self.colourful), list(self.colourful.values())
        return [step for step, tower, before in zip(steps[1:], towers[1:], towers) if tower != before]


def growth(run: str | Path) -> Growth:
    """The `Growth` of a run of one tower or two. Raises UserError where it has no checkpoint that can be read."""
    _, (state, kernels) = checkpoints.from_newest(run, first_layers.of_checkpoint)
    kernel_files, run_checkpoints = first_layers.listing(run), checkpoints.listing(run)

    def at(step):
        if step == state.step:
            return kernels
        weights = (
            first_layers.read(kernel_files[step])
            if step in kernel_files
            else first_layers.of_checkpoint(run_checkpoints[step])[1]
        )
        if weights.shape != kernels.shape:
            place = kernel_files[step] if step in kernel_files else run_checkpoints[step]
            raise UserError(f"{place}: {weights.shape}; the run's first layer has {kernels.shape}")
        return weights

    moments, unreadable = [], []
    for step in _sample(sorted({*run_checkpoints, *kernel_files, state.step})):
        try:
            weights = at(step)
        except UserError as error:
            unreadable.append(" ".join(str(error).splitlines()))
        else:
            moments.append(moment_of(step, weights, state.recipe.towers))
    return Growth(tuple(moments), len(kernel_files), tuple(unreadable))


def moment_of(step: int, kernels: np.ndarray, towers: int, draws: int = DRAWS) -> Moment:
    """The `Moment` of kernels (maps of all towers, 3, k, k)."""
    shares = tuple(chroma_shares(kernels, towers))
    if towers == 1:
        return Moment(step, kernels, shares, None, None)
    test = division(kernels, draws, by_measure=False)
    return Moment(step, kernels, shares, test.p, random_split_p(kernels, draws))


def _sample(steps: Sequence[int]):
    return [steps[place] for place in evenly(len(steps), MOST_MOMENTS)]
