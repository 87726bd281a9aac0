"""One picture through both towers as one figure: the answer in every state, and the maps of the whole network."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .figure_4 import TOP, percent, short_name
from .figures import TOWER_COLOURS
from .one_picture import LayerView, OnePicture, Side

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# From nothing to the most, over each tower's colour: brightness alone carries the value.
RAMPS = ("#0c0610", "#762a83", "#c2a5cf", "#fcf9fd"), ("#050d07", "#1b7837", "#5aae61", "#f5fcf6")
BAR = "#56b4e9"  # Okabe and Ito's sky blue
NAME_LETTERS = 20  # of a class's name


def most_probable(probabilities: np.ndarray) -> list[int]:
    """The labels of the `TOP` most probable classes, of equals the first. probabilities: (classes,)."""
    return np.argsort(-probabilities, kind="stable")[:TOP].tolist()


def levels(side: Side, layer: LayerView) -> np.ndarray:
    """A side's maps in the layer's scale: (K, height, width) uint8."""
    span = max(layer.high - layer.low, 1e-30)
    return np.rint((np.clip(side.maps, layer.low, layer.high) - layer.low) / span * 255).astype(np.uint8)


def draw_one_picture(crop: np.ndarray, trace: OnePicture, words: Sequence[str]) -> "Figure":
    """A matplotlib Figure. crop: (side, side, 3) uint8, what the network saw. words: of all classes."""
    # Imported late: it takes a second. The object interface draws without a display and without global state.
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    layers, states = trace.states[0].layers, trace.states
    towers, heights = len(layers[0].sides), [_height(layer) for layer in layers]
    figure = Figure(figsize=(9, 2.3 + sum(heights)), layout="constrained", facecolor="white")
    top, below = figure.subfigures(2, 1, height_ratios=[1.9, sum(heights) + 0.4])
    axes = top.subplots(1, 1 + len(states), width_ratios=[1.2, *(1 for _ in states)])
    axes[0].imshow(crop)
    axes[0].set(xticks=[], yticks=[])
    for place, state in zip(axes[1:], states):
        _bars(place, state, words)
    for row, layer in zip(below.subplots(len(layers), towers, squeeze=False, height_ratios=heights), layers):
        for tower, (place, side) in enumerate(zip(row, layer.sides)):
            ramp = LinearSegmentedColormap.from_list("", RAMPS[tower])
            maps = [ramp(level) for level in levels(side, layer)]
            maps = [_with_gap(colours) for colours in maps] if len(maps) > 1 else maps
            place.imshow(np.concatenate(maps, 1), interpolation="nearest", aspect="auto")
            place.set(xticks=[], yticks=[])
            place.spines[:].set_visible(False)
            if not tower:
                place.set_ylabel(layer.name, rotation=0, ha="right", va="center", fontsize=9)
    for tower, place in enumerate(below.axes[:towers]):
        name = f"tower {'ab'[tower]}" if towers == 2 else "the network"
        place.set_title(name, color=TOWER_COLOURS[tower], fontweight="bold", fontsize=10)
    return figure


def _with_gap(colours):
    """A map's colours (height, width, 4), some sixty pixels wide, and a gap on its right, through which one sees."""
    repeats = max(1, 60 // colours.shape[1])
    return np.pad(colours.repeat(repeats, 0).repeat(repeats, 1), ((0, 0), (0, 3), (0, 0)))


def _height(layer):
    """Inches of a row: eight maps side by side stay square, as far as the column's width of some 4 inches goes."""
    count, height, width = layer.sides[0].maps.shape
    return min(4.0 * height / (count * width), 1.0)


def _bars(axes, state, words):
    for row, label in enumerate(most_probable(state.probabilities)):
        probability = float(state.probabilities[label])
        axes.barh(row, probability, color=BAR, alpha=0.6)
        words_of_bar = f"{short_name(words[label], NAME_LETTERS)}  {percent(probability)}"
        axes.text(0.02, row, words_of_bar, va="center", fontsize=8, parse_math=False)
    axes.set(xlim=(0, 1), ylim=(TOP - 0.5, -0.5), xticks=[], yticks=[])
    axes.set_title(state.name, fontsize=9)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
