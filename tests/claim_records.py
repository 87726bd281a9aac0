"""Records of claims that nothing was trained for."""


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
                **measured,
            }
            for (arm, seed), measured in runs.items()
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
