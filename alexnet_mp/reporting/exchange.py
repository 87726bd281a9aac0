"""The report's exchange part: the network as two columns, what crosses between them in a step, and how long that takes
here."""

import time
from collections import Counter
from collections.abc import Sequence
from statistics import median

import torch

from ..network.exchange import copy
from ..recipes import shapes
from ..recipes.recipe import Recipe
from . import page

REPEATS = 7  # copies timed of each crossing; the median is told
COLUMN, GAP, BOX, STEP, TOP = 158, 74, 44, 62, 34  # of the drawing, in its own units: it is read on a telephone


def exchange(
    recipe: Recipe, classes: int, devices: Sequence[torch.device], lines: Sequence[dict], trained_on: str
) -> page.Part:
    """The `Part` with the network drawn and its ledger.

    classes: how many. devices: of each tower, here. lines: of `sound_metrics`; trained_on: the devices they are from,
    in words."""
    rows, diagram = timed_crossings(recipe, classes, devices), page.network(drawing(recipe, classes))
    rates = [line["images_per_second"] for line in lines if line["kind"] == "train"]
    step = (
        f" A step of this run took {1e3 * recipe.batch_size / median(rates):,.0f} ms, median, where it was trained "
        f"({trained_on})."
        if rates
        else ""
    )
    if not rows:
        words = "This network has one tower" if recipe.towers == 1 else "No layer reads both towers"
        return page.Part("exchange", "The exchange", [page.text(f"{words}: nothing crosses.{step}"), diagram])
    apart, total = rows[0]["seconds"] is not None, sum(row["bytes"] for row in rows)
    edges = list(dict.fromkeys(row["edge"] for row in rows))
    words = (
        f"Tensors cross between the towers at {', '.join(edges)} and nowhere else: {total:,} bytes a step of "
        f"{recipe.batch_size} images in float32, forward and backward together."
    )
    if apart:
        words += (
            f" Copied here between {devices[0]} and {devices[1]}, one after the other and with nothing beside "
            "them, they "
            f"take {1e3 * sum(row['seconds'] for row in rows):.2f} ms."
        )
    else:
        words += (
            f" Here both towers are on one device ({devices[0]}): nothing is copied, so many bytes would be between "
            "two, and no time can be measured."
        )
    names = ["read by", "direction", "pass", "bytes a step", *(["ms"] if apart else [])]
    table = [
        [
            row["edge"],
            row["direction"],
            row["pass"],
            f"{row['bytes']:,}",
            *([f"{1e3 * row['seconds']:.3f}"] if apart else []),
        ]
        for row in rows
    ]
    return page.Part(
        "exchange",
        "The exchange",
        [
            page.text(words + step),
            diagram,
            page.why(
                "In the boxes: the output of a layer of one tower, after its pooling. Between the columns: what "
                "crosses there in a "
                "step's forward pass, in all. The gradients return the same way."
            ),
            page.table(names, table),
        ],
    )


def timed_crossings(recipe: Recipe, classes: int, devices: Sequence[torch.device]) -> list[dict]:
    """The ledger of one training step: [{"edge", "direction", "pass", "bytes", "seconds"}], forward in order, then
    backward.

    bytes: of float32 between two devices. seconds: median of several copies of so many bytes between these devices,
    alone and one after the other; None where both towers are on one device and nothing is copied."""
    rows = shapes.crossings(recipe, recipe.batch_size, classes)
    apart = len(devices) == 2 and devices[0] != devices[1]
    return [
        {
            "edge": edge,
            "direction": direction,
            "pass": pass_,
            "bytes": count,
            "seconds": _seconds(count, devices["ab".index(direction[0])], devices["ab".index(direction[-1])])
            if apart
            else None,
        }
        for edge, direction, pass_, count in rows
    ]


def _seconds(count, source, target):
    tensor, times = torch.zeros(count // shapes.BYTES_FP32, device=source), []
    for _ in range(REPEATS + 1):  # the first one allocates
        _wait(source, target)
        start = time.perf_counter()
        copy(tensor, target, copy_stream=False)
        _wait(source, target)
        times.append(time.perf_counter() - start)
    return median(times[1:])


def _wait(*devices):
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def drawing(recipe: Recipe, classes: int) -> dict:
    """What the page draws of a network, in units of the drawing: {"width", "height", "column", "box", ...} and, as
    lists,

    towers: {"x", "name"}; boxes: {"x", "y", "title", "what", "tower"}, the image and one for each layer and tower;
    links: {"x1", "y1", "x2", "y2", "edge", "crosses"} from each to those that read it; labels: {"x", "y", "text"}, the
    bytes of a step's forward pass at each layer where anything crosses."""
    offsets = [tower * (COLUMN + GAP) for tower in range(recipe.towers)]
    image = f"3 x {recipe.crop_size} x {recipe.crop_size}"
    boxes = [_box(offsets, TOP, tower, "image", image) for tower in range(recipe.towers)]
    links, labels, crossing = [], [], Counter()
    for edge, _, pass_, count in shapes.crossings(recipe, recipe.batch_size, classes):
        crossing[edge] += count * (pass_ == "forward")
    for number, size in enumerate(shapes.sizes(recipe, classes), 1):
        y, (maps, height, width) = TOP + number * STEP, size.output
        what = f"{maps:,}" if size.layer.kind == "fc" else f"{maps} x {height} x {width}"
        for tower in range(1 if size.layer.towers == "first" else recipe.towers):
            boxes.append(_box(offsets, y, tower, size.layer.name, what))
            for source in range(recipe.towers) if size.layer.reads == "both" else (tower,):
                links.append(
                    {
                        "x1": offsets[source] + COLUMN / 2,
                        "y1": y - STEP + BOX,
                        "x2": offsets[tower] + COLUMN / 2,
                        "y2": y,
                        "edge": size.layer.name,
                        "crosses": source != tower,
                    }
                )
        if size.layer.name in crossing:
            labels.append({"x": COLUMN + GAP / 2, "y": y + BOX / 2, "text": _bytes(crossing[size.layer.name])})
    return {
        "width": offsets[-1] + COLUMN,
        "height": TOP + len(recipe.layers) * STEP + BOX + 1,
        "column": COLUMN,
        "box": BOX,
        "towers": [{"x": x + COLUMN / 2, "name": f"tower {name}"} for x, name in zip(offsets, "ab")],
        "boxes": boxes,
        "links": links,
        "labels": labels,
    }


def _box(offsets, y, tower, title, what):
    return {"x": offsets[tower], "y": y, "title": title, "what": what, "tower": tower}


def _bytes(count):
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
