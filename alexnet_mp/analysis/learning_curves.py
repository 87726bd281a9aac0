"""What the lines of `metrics.jsonl` tell: when a run learned, and how fast."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np


def moved_at(losses: Sequence[float], classes: int, window: int = 10, share: float = 0.97) -> int | None:
    """The first step from which the mean of `window` losses stays below share * ln(classes); None where it never does
    for good.

    losses: one a step, the first is of step 1. Step t stands for the mean over steps t - window + 1 .. t, so the least
    is `window`."""
    means = _running_means(losses, window)
    exceedances = np.flatnonzero(~(means < share * math.log(classes)))
    start = exceedances[-1] + 1 if len(exceedances) else 0
    return int(start) + window if start < len(means) else None


def epochs_to(errors: Sequence[float], steps_per_epoch: int, level: float = 25.0) -> float | None:
    """Epochs until the mean training error of the last epoch's worth of minibatches is at most `level` %; None where it
    never is.

    errors: top-1 in %, one a step, as they were measured in training; the mean looks back, so the least answer is 1.
    """
    indices = np.flatnonzero(_running_means(errors, steps_per_epoch) <= level)
    return (int(indices[0]) + steps_per_epoch) / steps_per_epoch if len(indices) else None


def drops(lines: Iterable[dict]) -> list[int]:
    """The epochs that began with a lower learning rate of any layer than the one before had, in a run's metrics
    (`read_metrics`).

    From the lines of kind "schedule", which a run writes with the rates it really set, whatever its recipe says.
    """
    rates = [(line["epoch"], line["learning_rates"]) for line in lines if line["kind"] == "schedule"]
    return [
        epoch
        for (_, before), (epoch, after) in zip(rates, rates[1:])
        if any(after[name] < before[name] for name in before)
    ]


def step_of_loss(curve: Mapping[str, Sequence[float]], level: float) -> float | None:
    """The step at which a curve {"steps": [...], "loss": [...]} first is at most `level`; None where it never is.

    Between two points it is on the line through them; a point whose loss is no finite number lies on no line and is
    left out."""
    before = None
    for step, loss in zip(curve["steps"], curve["loss"], strict=True):
        if loss <= level:
            if before is None:
                return float(step)
            return before[0] + (step - before[0]) * (before[1] - level) / (before[1] - loss)
        if math.isfinite(loss):
            before = step, loss
    return None


def thinned(values: Sequence[float] | np.ndarray, points: int = 60) -> list[tuple[int, float]]:
    """[(step, mean)] of at most `points` blocks of consecutive values, nearly equally long; step: the last one of its
    block.

    No values, no blocks; a NaN is the mean of its block, not hidden.
    """
    ends = np.unique(np.linspace(0, len(values), min(points, len(values)) + 1).astype(int))
    return [(int(end), float(np.mean(values[start:end]))) for start, end in zip(ends[:-1], ends[1:])]


def _running_means(values, window):
    """The means of all runs of `window` consecutive values; empty where there are fewer."""
    values = np.asarray(values, np.float64)
    return np.lib.stride_tricks.sliding_window_view(values, window).mean(1) if len(values) >= window else np.empty(0)
