"""Which runs a claim needs, and how much work they are: of each run the recipe, the data and the directory where it
lies.

A run is in OUT/<arm>-<digest>-seed<N>, where the digest is of recipe, data, steps and beginning: two claims that need
the same run share it."""

import hashlib
import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch

from ..data import batches
from ..data.dataset import DataSet, open_dataset
from ..evaluation.protocol import both_protocols, centre_view
from ..recipes import ablations, shapes
from ..recipes.named import PRESETS
from ..recipes.recipe import Recipe, override, to_dict
from ..system.errors import UserError
from .claim import BASE, Arm, Claim, at_rate
from .half_the_classes import every_second_class
from .kind import Kind

SEARCH_SEED = 1000  # of the search for a learning rate: none that the comparison uses


@dataclass(frozen=True)
class Run:
    """One training run of a claim, done or to be done."""

    arm: str
    seed: int
    preset: str
    recipe: Recipe  # with its seed
    data: str  # what --data says
    steps: int | None
    directory: Path
    kind: Kind  # of the claim
    init: Path | None = None  # the run whose weights it begins with
    level: float | None = None  # top-1 training error in % at which it ends


def base_of(options: Namespace) -> str:
    """The preset that --base means: as `train` chooses, paper on CUDA and mini on a CPU."""
    on_cpu = set(options.gpus.replace(" ", "").split(",")) == {"cpu"} or (
        options.gpus == "auto" and torch.cuda.device_count() == 0
    )
    return options.base or ("mini" if on_cpu else "paper")


def arm_recipe(arm: Arm, options: Namespace) -> tuple[str, Recipe]:
    """(preset's name, the arm's recipe): preset, --set, --epochs, then what the claim changes."""
    preset = arm.preset or base_of(options)
    return preset, _derived_recipe(preset, tuple(options.set), options.epochs, arm.derive)


@lru_cache(maxsize=256)  # every seed of an arm asks for the same one, and so does every look at what is left to do
def _derived_recipe(preset, settings, epochs, derivations):
    recipe = override(PRESETS[preset](), settings)
    if epochs is not None:
        # "Reduced three times prior to termination" (5) must hold at the end of fewer epochs as well. A plateau can't
        # promise it: nobody says how patient it is. And arms whose rates fall at different times differ in more than
        # what is claimed.
        recipe = ablations.without_plateaus(ablations.shortened(recipe, epochs))
    for derive in derivations:
        recipe = derive(recipe)
    return recipe


@lru_cache(maxsize=16)
def opened(data: str, stored_size: int, *splits: str) -> DataSet:
    """A data set with its training and validation images, or with the splits that are named."""
    return open_dataset(data, stored_size, splits or ("train", "val"))


def data_of(run: Run) -> DataSet:
    """The run's data set, opened once."""
    return opened(run.data, run.recipe.stored_size)


def has_labelled_test(data: str, stored_size: int) -> bool:
    """Whether a data set has test images whose classes are known: headline figures are of those."""
    try:
        test = opened(data, stored_size, "test").splits["test"]
    except UserError:
        return False
    return bool((np.asarray(test.labels) >= 0).all())


def runs_of_seed(claim: Claim, options: Namespace, seed: int, rates: Mapping[str, float] | None = None) -> list[Run]:
    """The runs of all arms with one seed, in the order in which they are trained.

    Raises UserError if they would tell nothing.
    """
    arms = [at(arm, rates) for arm in claim.arms]
    claim.kind.refuse(claim.id, arm_recipe(arms[0], options)[1])
    runs, base = {}, None if all(arm.preset for arm in arms) else arm_recipe(BASE, options)[1]
    for arm in arms:
        preset, recipe = arm_recipe(arm, options)
        init = runs[arm.init].directory if arm.init else None
        data = data_for(arm, arms, options, recipe)
        run = make_run(claim.kind, arm.name, preset, replace(recipe, seed=seed), data, options, init=init)
        # an arm that changes nothing of this base, as the paper's order of `paper`, has the base's run
        if recipe == base:
            run = replace(run, directory=run.directory.with_name(run.directory.name.replace(arm.name, BASE.name, 1)))
        runs[arm.name] = run
    return list(runs.values())


def make_run(
    kind: Kind,
    name: str,
    preset: str,
    recipe: Recipe,
    data: str,
    options: Namespace,
    init: Path | None = None,
    steps: int | None = None,
) -> Run:
    """A `Run` with its directory."""
    steps = steps or options.steps
    digest = digest_of(recipe, opened(data, recipe.stored_size).fingerprint, steps, init.name if init else None)
    return Run(
        name,
        recipe.seed,
        preset,
        recipe,
        data,
        steps,
        Path(options.out) / f"{name}-{digest}-seed{recipe.seed}",
        kind,
        init,
        kind.level,
    )


def digest_of(recipe: Recipe, *more: object) -> str:
    """Eight hexadecimal digits of a recipe but for its seed and name, and of what else makes a run another one.

    Fields that have their default count for nothing, so that a new field of `Recipe` leaves the digests of older
    recipes alone."""
    what = [to_dict(replace(recipe, seed=0, name="x"), defaults=False), *more]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]


def data_for(arm: Arm, arms: Sequence[Arm], options: Namespace, recipe: Recipe) -> str:
    """What an arm is trained on: --data. Pre-training: --larger; or, without it, --data, and the other arms half of its
    classes."""
    if not any(other.larger for other in arms) or (options.larger and not arm.larger):
        return options.data
    if arm.larger:
        return options.larger or options.data
    dataset = opened(options.data, recipe.stored_size)
    folder = Path(options.out) / f"half-{dataset.fingerprint[:8]}-{recipe.stored_size}"
    return str(every_second_class(dataset, folder))


def at(arm: Arm, rates: Mapping[str, float] | None) -> Arm:
    """The arm at the learning rate that was found for it, if one was looked for."""
    return replace(arm, derive=(*arm.derive, lambda recipe: at_rate(rates[arm.name], recipe))) if rates else arm


def search_run(kind: Kind, arm: Arm, factor: float, options: Namespace) -> Run:
    """A run of the search for the arm's learning rate: --search-epochs epochs of it, or until the level is reached."""
    preset, recipe = arm_recipe(at(arm, {arm.name: factor}), options)
    recipe = replace(recipe, seed=SEARCH_SEED)
    full_run = make_run(kind, arm.name, preset, recipe, options.data, options)
    if options.search_epochs is None:
        return full_run
    steps = min(options.search_epochs * steps_per_epoch(full_run), last_step(full_run))
    return make_run(kind, arm.name, preset, recipe, options.data, options, steps=steps)


def turns(
    claim: Claim, options: Namespace, seeds: int, rates: Mapping[str, float] | None = None
) -> list[tuple[list[Run], list[Run] | None]]:
    """[(runs to train, in order; those of them that are averaged, or None)]: a turn a seed, or an ensemble, from
    --first-seed on."""
    of_seed = partial(runs_of_seed, claim, options, rates=rates)
    return [claim.kind.turn(options.first_seed + number, of_seed) for number in range(seeds)]


# --- how much work


def steps_per_epoch(run: Run) -> int:
    return batches.steps_per_epoch(run.recipe, data_of(run))


def last_step(run: Run) -> int:
    """Where the run ends, if it comes to no level or plateau before."""
    steps = run.recipe.epochs * steps_per_epoch(run)
    return steps if run.steps is None else min(run.steps, steps)


def operations(run: Run) -> int:
    """Multiplications and additions of one image's forward pass, all towers."""
    return sum(
        (1 if size.layer.towers == "first" else run.recipe.towers) * size.products
        for size in shapes.sizes(run.recipe, len(data_of(run).classes))
    )


def work_of_steps(run: Run, first: int, last: int) -> float:
    """Multiplications and additions of the steps first + 1 .. last and their validations: a step is three forward
    passes."""
    images = {name: len(split) for name, split in data_of(run).splits.items()}
    return operations(run) * (last - first) / steps_per_epoch(run) * (3 * images["train"] + images["val"])


def work_of_tests(run: Run) -> int:
    """Multiplications and additions of the tests of a run: by itself, and what its claim asks for."""
    pictures = len(data_of(run).splits["val"])
    images = number_of_views(run) * pictures * run.kind.tests
    other_work = sum(work_of_test(run, split, protocols) for split, protocols in more_tests(run))
    return operations(run) * images + work_of_measuring(run) + other_work


def work_of_measuring(run: Run) -> int:
    """Of what the run's kind of claim measures beside tests."""
    return operations(run) * run.kind.passes(len(data_of(run).splits["val"]))


def work_of_test(run: Run, split: str, protocols: Mapping[str, Sequence[tuple[int, int, bool]]]) -> int:
    """Of one test on a split."""
    return (
        operations(run)
        * number_of_views(run, protocols)
        * len(opened(run.data, run.recipe.stored_size, split).splits[split])
    )


def number_of_views(run: Run, protocols: Mapping[str, Sequence[tuple[int, int, bool]]] | None = None) -> int:
    """Of each image, by default of the run's own test."""
    return len({view for protocol in (protocols or both_protocols(run.recipe)).values() for view in protocol})


def more_tests(run: Run) -> list[tuple[str, dict[str, list[tuple[int, int, bool]]]]]:
    """[(split, protocols)] of the tests that a claim asks for beside the run's own.

    The training images are a third of an epoch's work; nearly every claim has a use for them, and claims share their
    runs."""
    tests = []
    if run.kind.on_training_images:
        tests.append(("train", {"centre view": centre_view(run.recipe)}))
    if run.kind.on_test_images and has_labelled_test(run.data, run.recipe.stored_size):
        tests.append(("test", both_protocols(run.recipe)))
    return tests
