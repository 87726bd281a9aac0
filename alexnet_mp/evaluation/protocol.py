"""The paper's test protocol: the views of a picture, and the errors of the mean over their probabilities."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import zip_longest

import torch

from ..data.pipeline import Pipeline
from ..network.network import TwoTowerAlexNet
from ..recipes.recipe import Recipe
from ..system.ranks import ALONE, Ranks
from ..system.terminal import say
from .accuracy import FEW, Answers, Errors, joined, judged, percent, top5_tells

View = tuple[int, int, bool]  # top, left, flip


def centre_view(recipe: Recipe) -> list[View]:
    """The (top, left, flip) of the central crop."""
    offset = (recipe.stored_size - recipe.crop_size) // 2
    return [(offset, offset, False)]


def ten_views(recipe: Recipe) -> list[View]:
    """The (top, left, flip) of the four corners and the centre, then of their mirror images (paper 4.1)."""
    end, (centre,) = recipe.stored_size - recipe.crop_size, centre_view(recipe)
    places = [(0, 0), (0, end), centre[:2], (end, 0), (end, end)]
    return [(top, left, flip) for flip in (False, True) for top, left in places]


def nine_views(recipe: Recipe) -> list[View]:
    """The (top, left, flip) of 3 x 3 places from corner to corner, not mirrored (`convdata_cifar.py:83-99`, 2013).

    Of a picture that the crop fills all nine are the same.
    """
    end, (centre,) = recipe.stored_size - recipe.crop_size, centre_view(recipe)
    places = (0, centre[0], end)
    return [(top, left, False) for top in places for left in places]


@torch.inference_mode()
def log_probabilities(
    network: TwoTowerAlexNet, pipeline: Pipeline, split: str, protocols: Mapping[str, Sequence[View]], batch_size: int
) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor] | None]:
    """Test a network on every image of a split, once each, in order: yields ({name: (N, classes) float64}, labels (N,))
    a batch.

    protocols: {name: list of views}; a view that several protocols share is computed once. Probabilities are averaged
    over a protocol's views (paper 4.1); what is yielded are their logarithms, on the first tower's device. None where
    the pipeline gives that (`Ranks.together`)."""
    views = list(dict.fromkeys(view for protocol in protocols.values() for view in protocol))
    was_training = network.training
    network.eval()
    try:
        with closing(pipeline.views(split, batch_size, views)) as batches_of_views:
            for batch in batches_of_views:
                if batch is None:
                    for _ in views:
                        network.without_images()
                    yield None
                    continue
                batches, labels = batch
                # In logarithms: a probability of 1e-50 is 0 in float32, and its loss would be infinite.
                logs = {
                    view: network(*towers).double().log_softmax(1) for view, towers in zip(views, batches, strict=True)
                }
                yield (
                    {
                        name: torch.stack([logs[view] for view in protocol]).logsumexp(0) - math.log(len(protocol))
                        for name, protocol in protocols.items()
                    },
                    labels,
                )
    finally:
        network.train(was_training)


def evaluate(
    network: TwoTowerAlexNet,
    pipeline: Pipeline,
    split: str,
    protocols: Mapping[str, Sequence[View]],
    batch_size: int,
    advance: Callable[[int], None],
    take: Callable[[slice, dict[str, torch.Tensor]], None] = lambda rows, means: None,
    ranks: Ranks = ALONE,
) -> dict[str, Answers]:
    """Test a network on every image of a split, once each: {name: `Answers`} of the protocols, {name: list of views}.

    advance(n) is called for every n images; take(their places in the split, {name: (n, classes) logarithms of
    probabilities}) before, in a job of one process. ranks: of a job whose pairs are dealt whole batches by the
    pipeline. Their answers are put together in the order of the batches, for all processes."""
    batches, start = {name: [] for name in protocols}, 0
    with closing(log_probabilities(network, ranks.in_turn(pipeline), split, protocols, batch_size)) as per_batch:
        for batch in per_batch:
            if batch is None:
                advance(0)
                continue
            means, labels = batch
            take(slice(start, start + len(labels)), means)
            for name, mean in means.items():
                batches[name].append(judged(mean, labels))
            start += len(labels)
            advance(len(labels))
    if ranks.pairs > 1:
        batches = _in_order(ranks.gather({name: _on_host(parts) for name, parts in batches.items()}), ranks)
    return {name: joined(of_protocol) for name, of_protocol in batches.items()}


def _on_host(batches):
    return [tuple(tensor.cpu() for tensor in batch) for batch in batches]


def _in_order(of_ranks, ranks):
    """{name: batches} of a split, of which every `ranks.pairs`-th is each pair's."""
    of_pairs = of_ranks[:: ranks.towers]
    return {
        name: [batch for row in zip_longest(*(pair[name] for pair in of_pairs)) for batch in row if batch is not None]
        for name in of_ranks[0]
    }


def both_protocols(recipe: Recipe) -> dict[str, list[View]]:
    """{"centre view": one view, "ten views": ten}, or "nine views"; the centre view alone if the recipe tests one."""
    protocols = {"centre view": centre_view(recipe)}
    if recipe.test_views == "one":
        return protocols
    views = {"ten": ten_views, "nine": nine_views}[recipe.test_views](recipe)
    return protocols | {f"{recipe.test_views} views": views}


def print_errors(errors: Mapping[str, Errors], split: str, classes: int) -> None:
    """The table of a test's protocols, on images of so many classes."""
    for name, error in errors.items():
        top5 = f"top-5 error {percent(error.top5_error, error.images, 6)}   " if top5_tells(classes) else ""
        say(
            f"{split}, {name:11}  top-1 error {percent(error.top1_error, error.images, 6)}   {top5}"
            f"({error.images:,} images{'; 95 % intervals' if error.images < FEW else ''})"
        )
