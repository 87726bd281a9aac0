"""Where a training step's time went, a table a device: milliseconds of every part, beside what the roofline allows."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch

from ..recipes import shapes
from ..recipes.recipe import Recipe
from .attribution import Times
from .machine_limits import Ceilings
from .roofline import SGD_BYTES, DType, layer_limits

PARTS = {
    "loss": "loss, accuracy",
    "exchange": "exchange, joining of maps",
    "update": "update",
    "input": "waiting for input",
    "other": "other",
}
TWO_PASSES = ("loss", "exchange")  # the other parts are of neither
NO_PASS = {"forward_ms": None, "backward_ms": None}
HEAD = ("", "forward ms", "backward ms", "ms", "share", "roofline ms", "% of roofline")
WIDTHS = (33, 11, 12, 10, 8, 12, 14)


def table(
    recipe: Recipe,
    times: Times,
    device: torch.device,
    towers: Sequence[int],
    steps: int,
    images: float,
    dtype: DType,
    ceilings: Ceilings | None,
    classes: int,
) -> list[dict]:
    """One device's rows in the order of the step, "other" and the whole step at the end; all times in ms a step.

    towers: the numbers of those on the device. images: of a step, on average. dtype: of values. ceilings: None where
    they could not be measured. The rows add up to the whole step. Of a GPU they are times of kernels: "other" is then
    what it idled, and below 0 where kernels of several streams ran at once. On a CPU "other" has all that the host did
    for towers that are elsewhere, too."""
    step_times, total = _step_times(times, device, towers, steps), 1e-3 * times.whole / steps
    limits = _limits(recipe, towers, images, dtype, ceilings, classes) if ceilings else {}
    rows = []
    for layer in recipe.layers:
        for kind, name in (("product", layer.name), ("then", f"{layer.name} {'+'.join(layer.then) or 'rest'}")):
            if (layer.name, kind) in step_times or (
                (kind == "product" or layer.then) and (0 in towers or layer.towers == "each")
            ):
                rows.append(_row(name, step_times[layer.name, kind], limits.get((layer.name, kind)), total))
    rows += [_row(PARTS[part], step_times[part, ""], None, total) for part in TWO_PASSES]
    rows += [
        _row(PARTS[part], step_times[part, ""], limits.get((part, "")), total) | NO_PASS for part in ("update", "input")
    ]
    rows.append(_row(PARTS["other"], [total - sum(row["ms"] for row in rows), 0.0], None, total) | NO_PASS)
    roofs = [row["roofline_ms"] for row in rows if row["roofline_ms"] is not None]
    passes = {name: sum(row[name] or 0.0 for row in rows) for name in NO_PASS}
    return [*rows, _row("the whole step", [total, 0.0], (1e-3 * sum(roofs), 0.0) if roofs else None, total) | passes]


def lines(rows: Iterable[dict]) -> list[str]:
    """The table as it is printed, a string a row."""
    texts = [
        "".join(
            name.ljust(width) if not number else name.rjust(width)
            for number, (name, width) in enumerate(zip(HEAD, WIDTHS))
        )
    ]
    for row in rows:
        cells = [
            _number(row["forward_ms"], ".2f"),
            _number(row["backward_ms"], ".2f"),
            _number(row["ms"], ".2f"),
            f"{row['share']:.1f} %",
            _number(row["roofline_ms"], ".3f"),
            _number(row["percent_of_roofline"], ".0f"),
        ]
        texts.append(row["row"].ljust(WIDTHS[0]) + "".join(cell.rjust(width) for cell, width in zip(cells, WIDTHS[1:])))
    return texts


def _step_times(times, device, towers, steps):
    """{(part, kind): [forward, backward]} in ms a step on this device."""
    on_cpu = device.type == "cpu"
    step_times, letters = defaultdict(lambda: [0.0, 0.0]), {"ab"[tower] for tower in towers}
    for place, microseconds in (times.host if on_cpu else times.gpus.get(device.index, {})).items():
        if not on_cpu or not place.tower or place.tower in letters:
            step_times[place.part, place.kind][place.backward] += 1e-3 * microseconds / steps
    return step_times


def _limits(recipe, towers, images, dtype, ceilings, classes):
    """{(part, kind): (forward, backward)} in seconds, of all towers on the device together."""
    layers = layer_limits(recipe, images, dtype, ceilings.bandwidth, ceilings.tflops, classes)
    limits = {}
    for size in shapes.sizes(recipe, classes):
        count = sum(tower == 0 or size.layer.towers == "each" for tower in towers)
        parts = layers[size.layer.name]
        limits[size.layer.name, "product"] = tuple(count * limit for limit in parts["product"])
        limits[size.layer.name, "then"] = tuple(
            count * (relu + maps) for relu, maps in zip(parts["relu"], parts["maps"])
        )
    parameters = sum(shapes.parameter_counts(recipe, classes)[tower] for tower in towers)
    limits["update", ""] = (SGD_BYTES * parameters / (1e9 * ceilings.bandwidth), 0.0)
    return {key: limit for key, limit in limits.items() if any(limit)}


def _row(name, step_times, limit, total):
    forward, backward = step_times
    ms = forward + backward
    # A layer that is frozen has no backward pass, and nothing is asked of it.
    roof = None if limit is None else 1e3 * (limit[0] + (limit[1] if backward > 0 else 0.0))
    return {
        "row": name,
        "forward_ms": forward,
        "backward_ms": backward,
        "ms": ms,
        "share": 100 * ms / total if total else 0.0,
        "roofline_ms": roof,
        "percent_of_roofline": 100 * roof / ms if roof is not None and ms > 0 else None,
    }


def _number(value, form):
    return "-" if value is None else f"{value:,{form}}"
