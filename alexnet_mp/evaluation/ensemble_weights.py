"""Averaging what several networks say (paper, table 2: "5 CNNs", "7 CNNs"), plainly or with weights chosen on
validation images.

Probabilities are kept as float32 logarithms, (images, classes) a network and protocol: 1e-50 is 0 as a float32, and a
network that is sure of itself would have ties among its last classes that it doesn't have. What is averaged are the
probabilities."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch

from ..system.errors import UserError
from .accuracy import top5_tells

# a weight is one of 0/20, 1/20, ..., 20/20 and begins as 10/20 (2012, `avg-valid.py:49-71`)
STEPS, START, PASSES = 20, 10, 5
ROWS = 1024  # images at a time, so that what is computed in float64 is small


def parse_weights(words: Sequence[str] | None, runs: int) -> tuple[float, ...] | Literal["validation"]:
    """What `--weights` says: "validation", or a tuple of weights, one a run, that add up to 1. None, nothing said: all
    are equal.

    Raises UserError for a wrong number of weights, and for such as are negative, not finite, or all zero.
    """
    if words is None:
        return (1 / runs,) * runs
    if list(words) == ["validation"]:
        return "validation"
    try:
        weights = [float(word) for word in words]
    except ValueError:
        raise UserError(
            f"--weights {' '.join(words)}: write the word validation, or a number for each RUN; the RUNs come first"
        ) from None
    if len(weights) != runs:
        raise UserError(
            f"--weights {' '.join(words)}: {len(weights)} for {runs} RUNs; write one for each, in their order"
        )
    for weight in weights:
        if not 0 <= weight < math.inf:
            raise UserError(f"--weights: {weight:g} is no weight; it must be finite and not negative")
    if not 0 < sum(weights) < math.inf:
        raise UserError(f"--weights {' '.join(words)}: their sum must be finite and above 0")
    return normalised(weights)


def normalised(weights: Sequence[float]) -> tuple[float, ...]:
    """The weights divided by their sum: the same average, and probabilities that add up to 1."""
    total = sum(weights)
    return tuple(weight / total for weight in weights)


def fold(total: torch.Tensor, logs: torch.Tensor, weight: float) -> None:
    """Add `weight` times a network's probabilities to a sum of such: both are logarithms, float32 (N, classes); total
    is changed.

    A sum begins as -inf everywhere, `nothing`.
    """
    if weight > 0:
        torch.logaddexp(total, logs + math.log(weight), out=total)


def nothing(images: int, classes: int) -> torch.Tensor:
    """The sum of no probabilities, to be given to `fold`."""
    return torch.full((images, classes), -math.inf)


def choose_weights(
    logs: Sequence[torch.Tensor], labels: torch.Tensor, advance: Callable[[int], None] = lambda count: None
) -> tuple[float, ...]:
    """The weights of networks whose average has the least top-5 error on these images: a tuple of multiples of 1/20,
    one a network. Of five classes or fewer, whose top-5 error is 0 with any weights: the least top-1 error.

    logs: of each network, (N, classes) float32 logarithms of probabilities on the CPU; labels: (N,) int64. Coordinate
    search as in the 2012 code (`avg-valid.py:49-71`): all begin at 0.5; each in turn tries 0, 0.05, ..., 1, and what is
    strictly better is kept; five passes at most, and none after one that changed nothing. Ties among the top count as
    in `topk_credit`. Weights that are all 0 are not tried. advance(n) is called for every n averages tried, at most
    PASSES * (STEPS + 1) * networks."""
    count_right = _Right(logs, labels, 5 if top5_tells(logs[0].shape[1]) else 1)
    steps = [START] * len(logs)
    best = count_right(steps)
    for _ in range(PASSES):
        previous_steps = list(steps)
        for network in range(len(logs)):
            for step in range(STEPS + 1):
                candidate = steps[:network] + [step] + steps[network + 1 :]
                count = count_right(candidate) if any(candidate) else 0
                # sums of the same fractions of ties in another order may differ in their last bits
                if count > best + 1e-6:
                    steps, best = candidate, count
            advance(STEPS + 1)
        if steps == previous_steps:
            break
    return tuple(step / STEPS for step in steps)


class _Right:
    """Called with a weight for each network: how many images have their label among the average's top k.

    Of an image only those classes matter that some network finds at least as probable as its label: the others come
    after it whatever the weights are. Those that every network finds more probable come before it always. So far fewer
    numbers are kept than probabilities, and of images that are right, or wrong, with every weighting, none."""

    def __init__(self, logs, labels, k=5):
        self.k = k
        images, leads, self.always, self.count = [], [], 0, 0
        for start in range(0, len(labels), ROWS):
            rows = slice(start, start + ROWS)
            # (networks, n, classes)
            probabilities = torch.stack([of_network[rows].double() for of_network in logs]).exp().numpy()
            if np.isnan(probabilities).any():
                raise ValueError("a probability is not a number")
            lead = probabilities - np.take_along_axis(probabilities, labels[rows].numpy()[None, :, None], 2)
            rival = (lead >= 0).any(0)
            np.put_along_axis(rival, labels[rows].numpy()[:, None], False, 1)
            surely_right, surely_wrong = rival.sum(1) < k, (lead > 0).all(0).sum(1) >= k
            self.always += int(surely_right.sum())
            rival = rival[~surely_right & ~surely_wrong]
            lead = lead[:, ~surely_right & ~surely_wrong]
            image, _ = np.nonzero(rival)
            images.append(image + self.count)
            leads.append(lead[:, rival])  # (networks, rivals)
            self.count += len(rival)
        self.image, self.lead = np.concatenate(images), np.concatenate(leads, 1)

    def __call__(self, weights):
        # Whole numbers times leads, added in one order: leads that are opposite in two networks of equal weight give 0,
        # a tie.
        lead = sum(weight * of_network for weight, of_network in zip(weights, self.lead, strict=True))
        above = np.bincount(self.image[lead > 0], minlength=self.count)
        ties = 1 + np.bincount(self.image[lead == 0], minlength=self.count)
        return self.always + ((self.k - above) / ties).clip(0, 1).sum()
