"""A model card, README.md of a folder for the hub, filled from what a run says of itself."""

import math
from collections.abc import Mapping, Sequence

from ..recipes.recipe import Recipe, describe
from ..runs.checkpoint_state import State
from ..system.terminal import printable

MOST_CLASSES = 20  # that are named
ROUNDED = "\n\nMeasured before the weights were rounded to float16."
_CARD = """---
library_name: alexnet_mp
pipeline_tag: image-classification
tags:
- alexnet
- image-classification
---

# AlexNet, recipe {recipe}, {classes} classes

AlexNet (Krizhevsky, Sutskever, Hinton 2012), {towers}, {training}. It takes pictures of
{stored}x{stored} pixels, RGB, 8 bits, and looks at the central {crop}x{crop}. The mean image is subtracted inside.

```python
import torch
from alexnet_mp import from_pretrained
from alexnet_mp.data.resize import decoded

network = from_pretrained("FOLDER")  # nothing is downloaded, and nothing in the folder is run
# the shorter side is rescaled and the central square kept: ({stored}, {stored}, 3) uint8
picture = decoded("photograph.jpg", {stored}, "photograph.jpg")
logits = network(torch.tensor(picture)[None])  # (1, {classes})
print(network.class_names[logits.argmax()])
```

## Errors

{errors}

## Where it comes from

{rows}

## Classes

{names}

## Recipe

```
{described}
```
"""


def model_card(
    run: Mapping[str, object],
    state: State,
    tests: Sequence[Mapping[str, object]],
    words: Sequence[str],
    half: bool = False,
) -> str:
    """The text. run: what `read_run` gives; state: of the checkpoint; tests: lines of the kind "test" of its metrics;
    words: the classes' names as a person knows them; half: the weights are rounded to float16, and were not when they
    were tested."""
    recipe, data = state.recipe, state.data
    origin = run.get("converted")
    packages = run.get("packages") if isinstance(run.get("packages"), dict) else {}
    facts = (
        ("data", data.description),
        ("fingerprint of the data", data.fingerprint[:16]),
        ("converted from", origin.get("from") if isinstance(origin, dict) else None),
        ("command", run.get("command")),
        ("started", run.get("started")),
        ("seed", None if origin else recipe.seed),
        ("commit", run.get("commit")),
        ("precision", run.get("precision")),
        ("kernels", run.get("kernels")),
        ("python", run.get("python")),
        ("packages", ", ".join(f"{name} {version}" for name, version in packages.items() if version)),
    )
    names = ", ".join(_code(name) for name in words[:MOST_CLASSES])
    ending = f" and {len(words) - MOST_CLASSES:,} more, in `config.json`" if len(words) > MOST_CLASSES else ""
    return _CARD.format(
        recipe=recipe.name,
        classes=len(words),
        towers="both towers as one network" if recipe.towers == 2 else "one tower",
        training=f"trained to step {state.step:,} (epoch {state.epoch:,})" if not origin else "trained elsewhere",
        stored=recipe.stored_size,
        crop=recipe.crop_size,
        errors=_errors(recipe, state, tests, len(words)) + ROUNDED * half,
        rows="\n".join(
            ["| | |", "|---|---|", *(f"| {name} | {_code(fact)} |" for name, fact in facts if fact not in (None, ""))]
        ),
        names=names + ending,
        described=describe(recipe),
    )


def _errors(recipe: Recipe, state, tests, classes):
    """A table of the tests of this very step; else the validation of the checkpoint; else that there is none."""
    columns = ["top1_error", "top5_error"] if classes > 5 else ["top1_error"]
    rows = [
        (_code(test.get("protocol")), test.get("images"), *(test.get(column) for column in columns))
        for test in tests
        if test.get("step") == state.step
    ]
    if not rows and state.validation:
        validation = state.validation
        rows = [("centre view", validation.images, *(getattr(validation, column) for column in columns))]
    rows = [row for row in rows if all(_is_number(each) for each in row[1:])]
    if not rows:
        return "Not tested at this step."
    heads = ["validation pictures", "number", *(f"{column[:3]}-{column[3]} error" for column in columns)]
    return "\n".join(
        [
            f"| {' | '.join(heads)} |",
            f"|---|{'---:|' * (len(heads) - 1)}",
            *(f"| {row[0]} | {row[1]:,} | {' | '.join(f'{each:.2f} %' for each in row[2:])} |" for row in rows),
        ]
    )


def _is_number(value):
    return isinstance(value, int | float) and math.isfinite(value)


def _code(value):
    """As code in a table: nothing of it is markup."""
    text = printable(str(value)).replace("`", "'").replace("|", "\\|")
    return f"`{text:.1000}`"
