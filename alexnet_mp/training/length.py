"""How long a run is: its steps, whether they are enough to learn anything, and at which epochs the rates change."""

import math
from dataclasses import replace

from ..data.batches import minibatches, steps_of_recipe, steps_per_epoch
from ..data.dataset import DataSet
from ..recipes.ablations import shortened
from ..recipes.recipe import Recipe
from ..system.terminal import say

# Steps of a run from random weights. The loss of `mini` moved on 5,000 pictures of Imagenette at step 226 at the latest
# (docs/claims.md, `init`). On 162 of them, of three classes, in batches of 16, `mini` was at chance after 253
# steps and after 506, and came to 33 % top-1 error on 18 others after 1,540 (one run each, two CPU cores, torch 2.13.0,
# 2026-11-29).
TOO_FEW, ENOUGH = 250, 1500
SMALLEST_BATCH, STEPS_OF_AN_EPOCH = 16, 10  # of what is advised


def with_dates(recipe: Recipe, preset: Recipe, origin: Recipe | None) -> Recipe:
    """The recipe with its dates at the same share of its epochs as in the preset, as `claims run` has them; says so.

    origin: the recipe of the checkpoint that a run goes on from: the run keeps the dates that it had, since its steps
    so far were taken at their rates.
    """
    if origin and origin.dates in (preset.dates, shortened(preset, origin.epochs).dates):
        return replace(recipe, dates=origin.dates)
    if recipe.schedule != "dated" or not recipe.dates or recipe.epochs == preset.epochs:
        return recipe
    dates = shortened(preset, recipe.epochs).dates
    changes = [
        f"{old.epoch} -> {new.epoch if new.epoch <= recipe.epochs else 'never'}"
        for old, new in zip(preset.dates, dates, strict=True)
    ]
    say(
        f"the rates change at the same share of {recipe.epochs} epochs as of {preset.name}'s {preset.epochs}: "
        f"epoch {', '.join(changes)}; --set dates=... sets others"
    )
    return replace(recipe, dates=dates)


def say_steps(recipe: Recipe, dataset: DataSet, from_random_weights: bool) -> None:
    """How many steps an epoch and the run have; of a run that begins with random weights, whether they are too few."""
    count = len(dataset.splits["train"])
    steps, total = steps_per_epoch(recipe, dataset), steps_of_recipe(recipe, dataset)
    say(
        f"{count:,} training pictures in batches of {recipe.batch_size:,}: {steps:,} step{'s' if steps > 1 else ''} an "
        f"epoch, {total:,} in {recipe.epochs:,} epoch{'s' if recipe.epochs > 1 else ''}"
    )
    if from_random_weights and total < TOO_FEW:
        advice = _with_more_steps(recipe, count)
        size = f"batches of {advice.batch_size} and " if advice.batch_size != recipe.batch_size else ""
        say(
            f"WARNING: {total:,} steps are too few to learn anything; {size}--epochs {advice.epochs} would take "
            f"{advice.epochs * len(minibatches(advice, count)):,}"
        )


def _with_more_steps(recipe, count):
    """The recipe with batches of half the size, and half of that, until an epoch has some steps; and enough epochs."""
    while recipe.batch_size >= 2 * SMALLEST_BATCH and len(minibatches(recipe, count)) < STEPS_OF_AN_EPOCH:
        recipe = replace(recipe, batch_size=recipe.batch_size // 2)
    return replace(recipe, epochs=math.ceil(ENOUGH / len(minibatches(recipe, count))))
