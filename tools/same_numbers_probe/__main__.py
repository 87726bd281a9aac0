"""See the package."""

import json
import os
import sys
import traceback
from pathlib import Path

import alexnet_mp
from alexnet_mp import kernels

from .commands import checkpoints, claimed, evaluated, predicted, prepared, recipes, reported, resumed, retrieved, runs
from .operations import network, operations

PROBES = (
    recipes,
    operations,
    network,
    prepared,
    runs,
    resumed,
    evaluated,
    predicted,
    retrieved,
    checkpoints,
    reported,
    claimed,
)


def main(file, *only):
    digests = {"imported": [os.path.dirname(module.__file__) for module in (alexnet_mp, kernels)]}
    failures = sorted(set(only) - {probe.__name__ for probe in PROBES})
    for probe in PROBES:
        if only and probe.__name__ not in only:
            continue
        try:
            digests |= {f"{probe.__name__}: {name}": value for name, value in probe().items()}
        except Exception:
            traceback.print_exc()
            failures.append(probe.__name__)
    Path(file).write_text(json.dumps(digests, indent=1), encoding="utf-8")
    if failures:
        print(f"failed: {', '.join(failures)}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
