"""Learning rates over time: divide by ten on a plateau (paper 5), or the dated changes of the 2012 runs."""

import math
from collections.abc import Mapping

from ..recipes.recipe import Recipe


class PlateauSchedule:
    """Divide every rate by ten when the validation error stops improving; `plateau_drops` times, then the run is
    finished.

    The error stops improving when `plateau_patience` validations in a row bring no new best of this rate: section 5
    speaks of the error "with the current learning rate". So a drop forgets the best: an error that rises with it and
    then falls again and again is improving, also while it is above what an earlier rate had come to. In 2012 a person
    decided.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.drops, self.best, self.since_best = 0, math.inf, 0

    def rates(self, epoch: int) -> dict[str, float]:
        """{"conv1.weight": rate, ...} now; the epoch doesn't matter here."""
        factor = self.recipe.plateau_factor**self.drops
        return {name: factor * rate for name, rate in _initial_rates(self.recipe).items()}

    def colour_noise(self, epoch: int) -> float:
        return self.recipe.colour_noise

    def observe(self, error: float) -> None:
        """Take in one validation's top-1 error in %."""
        if error < self.best:
            self.best, self.since_best = error, 0
        else:
            self.since_best += 1
            # more, where a resumed run has less patience than before
            if self.since_best >= self.recipe.plateau_patience:
                self.drops, self.best, self.since_best = self.drops + 1, math.inf, 0

    @property
    def finished(self) -> bool:
        return self.drops > self.recipe.plateau_drops

    def state(self) -> dict[str, float | None]:
        """What a checkpoint keeps of it."""
        return {
            "drops": self.drops,
            "best": self.best if math.isfinite(self.best) else None,
            "since_best": self.since_best,
        }

    def restore(self, state: Mapping[str, float | None]) -> None:
        """Go on from what `state` gave. Raises ValueError where it can't be one."""
        drops, best, since_best = (state.get(name) for name in ("drops", "best", "since_best"))
        if not (
            len(state) == 3 and isinstance(drops, int) and isinstance(since_best, int) and drops >= 0 <= since_best
        ):
            raise ValueError(f"{state} is not the state of a plateau schedule")
        self.drops, self.best, self.since_best = drops, math.inf if best is None else best, since_best


class DatedSchedule:
    """The recipe's `dates`: what was changed by hand at the start of an epoch in 2012. Validation errors change
    nothing."""

    finished = False  # the recipe's epochs are the end

    def __init__(self, recipe: Recipe):
        self.recipe = recipe

    def rates(self, epoch: int) -> dict[str, float]:
        """{"conv1.weight": rate, ...} in this epoch (the first is 1)."""
        initial_rates = _initial_rates(self.recipe)
        rates = dict(initial_rates)
        for date in self._past_dates(epoch):
            for layer in date.layers or [layer.name for layer in self.recipe.layers]:
                for what, factor in ((f"{layer}.weight", date.weights), (f"{layer}.bias", date.biases)):
                    if factor is not None:
                        rates[what] = initial_rates[what] * factor
        return rates

    def colour_noise(self, epoch: int) -> float:
        """Standard deviation of the colour factors in this epoch (4.1)."""
        return next(
            (date.colour_noise for date in reversed(self._past_dates(epoch)) if date.colour_noise is not None),
            self.recipe.colour_noise,
        )

    def observe(self, error: float) -> None:
        pass

    def state(self) -> dict[str, float | None]:
        """Nothing: the epoch says it all."""
        return {}

    def restore(self, state: Mapping[str, float | None]) -> None:
        """Raises ValueError for anything but an empty state."""
        if state:
            raise ValueError(f"{state} is not the state of a dated schedule, which has none")

    def _past_dates(self, epoch):
        return [date for date in self.recipe.dates if date.epoch <= epoch]


def make_schedule(recipe: Recipe) -> PlateauSchedule | DatedSchedule:
    """The recipe's schedule, at its beginning."""
    return (PlateauSchedule if recipe.schedule == "plateau" else DatedSchedule)(recipe)


def _initial_rates(recipe):
    return {
        f"{layer.name}.{what}": rate
        for layer in recipe.layers
        for what, rate in (("weight", layer.rate * recipe.learning_rate), ("bias", recipe.bias_learning_rate))
    }
