"""The page of one picture: what each tower makes of it, what crosses, and the answer without one or the other.

One file that loads nothing. `one_picture.html` is its template; a small script in it shows one state and one layer at a
time, and without scripts all of them stand in order."""

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..analysis.figure_4 import percent
from ..analysis.figures import boxes_for_letters
from ..analysis.one_picture import OnePicture, Side, State
from ..analysis.one_picture_figure import RAMPS, draw_one_picture, levels, most_probable
from ..recipes.recipe import Recipe
from ..retrieval.contact_sheet import png
from ..system import durable_files
from .page import environment

SHORT = {"the whole network": "whole", "tower a off": "a off", "tower b off": "b off", "links cut": "links cut"}
KERNEL_SIDE = 5  # screen pixels a pixel of a first-layer kernel


def write_page(
    path: str | Path,
    name: str,
    crop: np.ndarray,
    trace: OnePicture,
    kernels: np.ndarray,
    words: Sequence[str],
    about: str,
    means_of: str,
    recipe: Recipe,
) -> None:
    """Render the page and write it, whole or not at all.

    name: of the picture's file. crop: (side, side, 3) uint8, what the network saw of it. kernels: the first layer's,
    (maps of all towers, 3, k, k). words: of all classes, told apart. about: the network, in words. means_of: the
    pictures whose means stand for what is off, in words; or why nothing can be off. Raises UserError where it can't
    be written."""
    towers, first_layer = len(trace.states[0].layers[0].sides), trace.states[0].layers[0].name
    pixels = np.split(each_in_its_scale(kernels), towers)
    probabilities = trace.states[0].probabilities
    labels = most_probable(probabilities)
    content = (
        environment()
        .get_template("one_picture.html")
        .render(
            title=f"One picture through {'both towers' if towers == 2 else 'the network'}: {name}",
            name=name,
            about=about,
            means_of=means_of,
            seen=_base64(png(Image.fromarray(crop))),
            towers=towers,
            states=[_state(state, pixels, first_layer, words, labels[0]) for state in trace.states],
            links={layer: _links(trace, layer) for layer in dict.fromkeys(link.layer for link in trace.links)},
            last=recipe.layers[-1].name,
            crosses=recipe.lrn_crosses and len(trace.states) > 1,
            names=[SHORT[state.name] for state in trace.states],
            rows=[(words[label], [percent(state.probabilities[label]) for state in trace.states]) for label in labels],
        )
    )
    durable_files.write_output(str(path), content.encode())


def draw_page(path: str | Path, crop: np.ndarray, trace: OnePicture, words: Sequence[str]) -> None:
    """Write `draw_one_picture` as a PNG, on white. Raises UserError where it can't be written."""
    content = io.BytesIO()
    with boxes_for_letters():
        draw_one_picture(crop, trace, words).savefig(content, format="png", dpi=160, metadata={"Software": None})
    durable_files.write_output(str(path), content.getvalue())


def each_in_its_scale(kernels: np.ndarray) -> np.ndarray:
    """(maps, 3, k, k) -> (maps, k, k, 3) uint8: grey is 0, each kernel's largest weight black, white or a full
    colour."""
    maxima = np.abs(kernels).max((1, 2, 3), keepdims=True)
    return np.rint((kernels / np.where(maxima > 0, maxima, 1) + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)


def _state(state: State, pixels, first_layer, words, answer):
    return {
        "name": state.name,
        "short": SHORT[state.name],
        "what": _in_words(state),
        "bars": [
            {"name": words[label], "percent": percent(p), "width": f"{100 * p:.1f}", "same": label == answer}
            for label in most_probable(state.probabilities)
            for p in [float(state.probabilities[label])]
        ],
        "layers": [
            {
                "name": layer.name,
                "sides": [
                    _side(side, tower, layer, pixels[tower] if layer.name == first_layer else None)
                    for tower, side in enumerate(layer.sides)
                ],
                "cut": layer.name in state.cut,
            }
            for layer in state.layers
        ],
        "off": ["ab"[tower] for tower in state.off],
        "silenced": bool(state.off or state.cut),
    }


def _in_words(state):
    if state.off:
        (tower,) = state.off
        return f"Every output of tower {'ab'[tower]} is put to its mean. Tower {'ba'[tower]} reads that and goes on."
    if state.cut:
        return (
            f"At {', '.join(state.cut)} each tower reads the mean of the other's output, and goes on by itself. The "
            "last layer adds both, as ever: cut there too, it would be tower b off."
        )
    return "Nothing is changed."


def _side(side: Side, tower, layer, pixels):
    cells = []
    for place, level in enumerate(levels(side, layer)):
        kernel = int(side.kernels[place]) if len(side.kernels) else None
        cells.append(
            {
                "kernel": None if kernel is None else kernel + 1,  # counted from 1, as in the report
                "width": level.shape[1],
                "height": level.shape[0],
                "base64": _base64(_palette_png(level, RAMPS[tower])),
                "picture": _base64(png(_tile(pixels[kernel]))) if pixels is not None and kernel is not None else "",
            }
        )
    return {
        "tower": "ab"[tower],
        "cells": cells,
        "units": len(side.kernels) == 0,
        "count": side.units,
        "off": side.off,
        "change": None if side.change is None or side.off else _change(side.change),
    }


def _change(change):
    if math.isinf(change):
        return "unlike the whole network's, where nothing was"
    return "as in the whole network" if change == 0 else f"changed by {100 * change:.2g} %"


def _tile(pixels):
    k = len(pixels)
    return Image.fromarray(pixels).resize((k * KERNEL_SIDE, k * KERNEL_SIDE), Image.Resampling.NEAREST)


def _links(trace, layer):
    return [
        {
            "direction": link.direction.replace("->", " \N{RIGHTWARDS ARROW} "),
            "source": link.direction[0],
            "reader": link.direction[-1],
            "shape": " x ".join(f"{side:,}" for side in link.shape) + " units" * (len(link.shape) == 1),
            "bytes": _bytes(link.bytes),
            "zeros": f"{100 * link.zeros:.0f} %",
            "own": f"{link.own:.3g}",
            "other": f"{link.other:.3g}",
            "share": round(100 * link.other / max(link.own + link.other, 1e-30)),
        }
        for link in trace.links
        if link.layer == layer
    ]


def _bytes(count):
    return f"{count / 1e3:,.1f} kB" if count >= 1000 else f"{count} bytes"


def _palette_png(level, ramp):
    """The bytes of a PNG of (height, width) uint8 with a palette along a ramp of colours."""
    stops = np.array([[int(colour[place : place + 2], 16) for place in (1, 3, 5)] for colour in ramp], float)
    places = np.linspace(0, 255, len(ramp))
    palette = np.stack([np.interp(np.arange(256), places, stops[:, channel]) for channel in range(3)], 1)
    image = Image.fromarray(level)
    image.putpalette(np.rint(palette).astype(np.uint8).tobytes())
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return content.getvalue()


def _base64(content):
    return base64.b64encode(content).decode()
