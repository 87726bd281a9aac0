"""What a job of several pairs of towers computes in some steps: for `test_piecewise_step.py`."""

import dataclasses

import torch
from two_towers import CLASSES, FROZEN, RECIPES, STEPS, as_bytes, batches

from alexnet_mp import TwoTowerAlexNet
from alexnet_mp.parallel.pairs import Pairs
from alexnet_mp.parallel.pieces import Pieces
from alexnet_mp.system.ranks import ALONE
from alexnet_mp.training.piecewise_step import PiecewiseStep
from alexnet_mp.training.schedule import make_schedule
from alexnet_mp.training.step import TrainingStep
from alexnet_mp.training.update_rule import PaperSGD

# (recipe, overlap, microbatch): of batches of 5 images, and one of 2.
CASES = {
    ("mini", False, 2): {"steps": 3},
    ("mini", True, 2): {"steps": 3},
    ("desk", False, 2): {"steps": 2},
    ("mini", False, 1): {"steps": 2},
    ("mini", False, 5): {"steps": 2},
    ("local", False, 2): {"steps": 2},
    ("frozen", False, 2): {"frozen": FROZEN, "steps": 3},
    ("bfloat16", False, 2): {"dtype": torch.bfloat16, "steps": 2},
}
LARGE = {(name, overlap, 2): {} for name in ("paper", "source2012") for overlap in (False, True)}  # pictures of 224
WITHOUT = ("mini", "desk")  # a microbatch, in float64


def some_steps(ranks, name, overlap, microbatch, frozen=(), dtype=torch.float32, steps=STEPS, whole=False):
    """Losses and right answers, merged weights and velocities, what crossed. whole: by a `TrainingStep`."""
    recipe = RECIPES[name if name in RECIPES else "mini"]()
    towers = 1 if ranks.apart else recipe.towers
    network = TwoTowerAlexNet(
        recipe, ["cpu"] * towers, CLASSES, overlap=overlap, ranks=ranks if ranks.apart else None
    ).train()
    if dtype == torch.float64:
        network.double()
    optimizer, pieces = PaperSGD(network), Pieces(ranks.pair, ranks.pairs, microbatch)
    step = (
        TrainingStep(network, optimizer)
        if whole
        else PiecewiseStep(network, optimizer, Pairs(ranks, network.exchange.devices), pieces)
    )
    rates = make_schedule(recipe).rates(1)
    numbers, ledgers, shared = [], [], []
    network.register_forward_pre_hook(lambda _, inputs: shared.append(inputs[0] is inputs[-1]))
    for number, (images, labels) in enumerate(batches(recipe, steps)):
        layers = frozen if number >= steps // 2 else ()
        optimizer.set_rates({key: 0.0 if key.partition(".")[0] in layers else rate for key, rate in rates.items()})
        count, rows = len(images), slice(None) if whole else pieces.read(len(images))
        arguments = [images[rows].to(dtype)] * towers, labels[rows], lambda loss: None
        loss, right, *sums = step(*arguments) if whole else step(*arguments, count)
        numbers.append((float(loss), float(right), [tensor.tolist() for tensor in sums] if microbatch else None))
        ledgers.append([] if whole else sorted(dataclasses.astuple(entry) for entry in step.ledger(count)))
    weights, velocities = network.merged_state(), network.merged(optimizer.velocities())
    if dtype == torch.float64:
        return numbers, weights, velocities
    return {
        "numbers": numbers,
        "weights": as_bytes(weights),
        "velocities": as_bytes(velocities),
        "crossed": ledgers,
        "step": network.step,
        "shared": all(shared),
    }


def ten_steps(ranks=ALONE):
    """{case: what `some_steps` gives} of ten steps each, of large networks too."""
    return {case: some_steps(ranks, *case, **more | {"steps": STEPS}) for case, more in (CASES | LARGE).items()}


def all_cases(ranks=ALONE):
    """({case: what `some_steps` gives}, {recipe: its numbers, weights and velocities without a microbatch})"""
    return (
        {
            (name, overlap, microbatch): some_steps(ranks, name, overlap, microbatch, **more)
            for (name, overlap, microbatch), more in CASES.items()
        },
        {name: some_steps(ranks, name, False, None, dtype=torch.float64, steps=2) for name in WITHOUT},
    )
