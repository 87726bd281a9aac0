"""What the report says first: how well the network classifies, how far its towers are apart, what crosses."""

from collections.abc import Sequence

import numpy as np

from ..analysis.specialisation import chroma_shares, random_split_p
from ..evaluation.accuracy import count_of_few, top5_tells
from ..recipes import shapes
from ..recipes.recipe import Recipe
from .page import Fact


def headline(kernels: np.ndarray, lines: list[dict], recipe: Recipe, classes: int) -> list[Fact]:
    """The facts of a run. kernels: its first layer's, (maps of all towers, 3, k, k); lines: of `sound_metrics`."""
    facts = [error_fact(lines, classes), chroma_fact(kernels, recipe.towers), crossing_fact(recipe, classes)]
    return [fact for fact in facts if fact]


def error_fact(lines: Sequence[dict], classes: int) -> Fact | None:
    """Of the last test, else of the last validation."""
    tests = [line for line in lines if line["kind"] in ("val", "test")]
    if not tests:
        return None
    line, ks = tests[-1], [k for k in (1, 5) if k == 1 or top5_tells(classes)]
    chance = f"a guess: {' / '.join(f'{100 - 100 * k / classes:.1f}' for k in ks)} %"
    names = [f"top-{k}" for k in ks]
    errors = [line[f"{name.replace('-', '')}_error"] for name in names]
    counts = [count_of_few(error, line["images"]) for error in errors]
    notes = [f"{name} {count}, 95 % interval; " for name, count in zip(names, counts) if count]
    return Fact(
        f"{' / '.join(names)} error, {line.get('protocol', 'centre view')}",
        f"{' / '.join(f'{error:.2f}' for error in errors)} %",
        "".join([*notes, chance]),
    )


def chroma_fact(kernels: np.ndarray, towers: int) -> Fact:
    shares = " / ".join(f"{share:.2f}" for share in chroma_shares(kernels, towers))
    if towers == 1:
        return Fact("share of chroma in the first layer", shares)
    p = random_split_p(kernels)
    return Fact("share of chroma, tower a / b", shares, f"random halves are as far apart with p = {p:.2g}")


def crossing_fact(recipe: Recipe, classes: int) -> Fact | None:
    rows = shapes.crossings(recipe, recipe.batch_size, classes)
    if not rows:
        return None
    edges = ", ".join(dict.fromkeys(edge for edge, *_ in rows))
    total = sum(count for *_, count in rows)
    return Fact(
        "between the towers, a step", f"{total / 1e6:,.1f} MB", f"float32, batch {recipe.batch_size}; at {edges}"
    )
