"""Records of claims that nothing was trained for."""

from argparse import Namespace

from alexnet_mp.experiments.paper_claims import CLAIMS
from alexnet_mp.experiments.plan import arm_recipe


def errors(centre, views, name="ten views"):
    return {
        protocol: {"top1_error": top1, "top5_error": top5, "loss": 1.0, "images": 100}
        for protocol, (top1, top5) in (("centre view", centre), (name, views))
    }


def record_of(kind, arms, runs, **more):
    """A record with the runs {(arm, seed): what is measured of it}."""
    return {
        "format": 1,
        "claim": {"difference": "lrn", "views": "views"}.get(kind, kind),
        "kind": kind,
        "date": "2026-11-26T10:00:00+00:00",
        "command": "python -m alexnet_mp.claims run x",
        "note": "",
        "reported_on": {},
        "data": [
            {
                "description": "folder pictures: 90 train, 40 val images of 10 classes",
                "fingerprint": "f",
                "classes": 10,
                "images": {"train": 90, "val": 40},
            }
        ],
        "base": "mini",
        "set": [],
        "epochs": 12,
        "steps": None,
        "search_epochs": None,
        "arms": [
            {
                "name": arm,
                "what": arm,
                "preset": "mini",
                "init": None,
                "larger": False,
                "digest": arm,
                "of_preset": {},
                "differs": {},
            }
            for arm in arms
        ],
        "runs": [
            {
                "arm": arm,
                "seed": seed,
                "directory": f"runs/{arm}{seed}",
                "steps": 100,
                "steps_per_epoch": 10,
                "devices": ["CPU, 1 thread"] * 2,
                "commits": ["abc"],
                **measurements,
            }
            for (arm, seed), measurements in runs.items()
        ],
        "search": [],
        "rates": {},
        "ensembles": [],
        **more,
    }


# three seeds of two arms
THREE = {("base", seed): {"errors": errors((21.0 + seed, 5.0), (20.0 + seed, 4.0))} for seed in range(3)} | {
    ("no_lrn", seed): {"errors": errors((22.0 + 2 * seed, 5.5), (21.0 + 2 * seed, 4.5 + seed))} for seed in range(3)
}

BY_ID = {claim.id: claim for claim in CLAIMS}
SPREAD = [0.1, -0.2, 0.05, 0.15, -0.15, 0.02]


def _run(top1):
    return {
        "errors": errors((top1 + 1, 20.0), (top1, 19.0)),
        "on_training_images": {"top1_error": top1 - 10, "loss": 1.0},
        "moved": 100,
        "steps": 3000,
    }


def _epochs_of(claim):
    return arm_recipe(claim.arms[0], Namespace(base="desk", set=[], epochs=None, gpus="cpu"))[1].epochs


def of_study(name, shift, seeds=6, arms=None, shift_of_seed=lambda seed: 0.0):
    """A record of the study whose second arm is `shift` points above its first, seeds differing by SPREAD and more."""
    claim = BY_ID[name]
    names = arms or [arm.name for arm in claim.arms]
    runs = {
        (arm, seed): _run(60 + seed + number * (shift + SPREAD[seed % 6] + shift_of_seed(seed)))
        for number, arm in enumerate(names)
        for seed in range(seeds)
    }
    return record_of(claim.kind.word, names, runs) | {"claim": name, "base": "desk", "epochs": _epochs_of(claim)}
