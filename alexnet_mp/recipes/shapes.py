"""What follows from a recipe's list of layers: sizes, parameter counts, and the tensors that cross between the
towers."""

import math
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from ..system.errors import UserError

BYTES_FP32 = 4


class ArchitectureLayer(Protocol):
    """The fields of a `Layer` that all of this follows from."""

    name: str
    kind: Literal["conv", "local", "fc"]
    maps: int | None
    reads: Literal["image", "own", "both"]
    then: tuple[str, ...]
    kernel: int
    stride: int
    pad: int
    towers: Literal["each", "first"]


class Architecture(Protocol):
    """The fields of a `Recipe` that all of this follows from. (`recipe.py` checks a recipe by its sizes.)"""

    layers: tuple[ArchitectureLayer, ...]
    towers: Literal[1, 2]
    crop_size: int
    pool_size: int
    pool_stride: int


@dataclass(frozen=True)
class Size:
    """One layer's sizes on one tower, images left out: (channels, height, width); a fully connected layer has 1 x 1
    maps."""

    layer: ArchitectureLayer
    reads: tuple[int, int, int]  # all that one tower reads: both towers' maps where the layer reads both
    computed: tuple[int, int, int]  # the layer's own output, before what follows it (`Layer.then`)
    output: tuple[int, int, int]  # after it
    first_unit: int = 0  # of a slice of the units: those of the tower before it
    units: int | None = None  # of the tower in all, if this is a slice of them

    def slice_of_units(self, number: int, count: int) -> "Size":
        """Slice `number` of `count` of a fully connected layer's units; its input stays whole."""
        units = self.computed[0]
        place = slice_of(number, count, units)
        part = (place.stop - place.start, 1, 1)
        return replace(self, computed=part, output=part, first_unit=place.start, units=units)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of this tower's weights: (maps, channels, kernel, kernel); fully connected (units, inputs); local
        (maps, height, width, channels, kernel, kernel)."""
        (maps, *places), (channels, height, width), k = self.computed, self.reads, self.layer.kernel
        if self.layer.kind == "fc":
            return (maps, channels * height * width)
        return (maps, *places, channels, k, k) if self.layer.kind == "local" else (maps, channels, k, k)

    @property
    def bias_shape(self) -> tuple[int, ...]:
        """(maps,), or local (maps, height, width): one a position, as its kernels (2012 source)."""
        return self.computed if self.layer.kind == "local" else self.computed[:1]

    @property
    def parameters(self) -> int:
        """Weights and biases of this layer on one tower."""
        return math.prod(self.weight_shape) + math.prod(self.bias_shape)

    @property
    def products(self) -> int:
        """Products of a weight and an input in one image's forward pass on one tower."""
        return math.prod(self.weight_shape) * (math.prod(self.computed[1:]) if self.layer.kind == "conv" else 1)


def slice_of(number: int, count: int, units: int) -> slice:
    """Slice `number` of `count` of so many units, which differ by one at most."""
    return slice(*(place * units // count for place in (number, number + 1)))


def fewest_units(recipe: Architecture, classes: int) -> int:
    """The least number of units that a fully connected layer of the recipe has."""
    return min(size.computed[0] for size in sizes(recipe, classes) if size.layer.kind == "fc")


def conv_size(size: int, kernel: int, stride: int, pad: int) -> int:
    """1 + ceil((size + 2 pad - kernel) / stride): the last window may hang over the edge (2012 source,
    `layer.py:1004`)."""
    return 1 + -(-(size + 2 * pad - kernel) // stride)


def ceil_mode_padding(size: int, kernel: int, stride: int, pad: int) -> int:
    """Rows (or columns) of zeros that the last window needs at the bottom (or right): 3 for 224 pixels in layer 1."""
    return (conv_size(size, kernel, stride, pad) - 1) * stride + kernel - size - 2 * pad


def pooled_size(size: int, window: int, stride: int) -> int:
    """1 + ceil((size - window) / stride) (2012 source, `layer.py:1164`)."""
    return 1 + -(-(size - window) // stride)


def sizes(recipe: Architecture, classes: int = 1000) -> list[Size]:
    """A `Size` for every layer of the recipe, in order. Raises UserError where a window doesn't fit its input."""
    layer_sizes, (channels, height, width) = [], (3, recipe.crop_size, recipe.crop_size)
    for layer in recipe.layers:
        reads = (channels * recipe.towers if layer.reads == "both" else channels, height, width)
        maps = classes if layer.maps is None else layer.maps
        if layer.kind == "fc":
            height = width = 1
        else:
            if layer.kernel > height + 2 * layer.pad:
                raise UserError(
                    f"{layer.name}.kernel is {layer.kernel}, but its input is {height}x{width} with pad {layer.pad}; "
                    "a larger crop_size or a smaller kernel would fit"
                )
            height = width = conv_size(height, layer.kernel, layer.stride, layer.pad)
        product_shape = (maps, height, width)
        for operation in layer.then:
            if operation in ("max_pool", "avg_pool"):
                if recipe.pool_size > height:
                    raise UserError(
                        f"pool_size is {recipe.pool_size}, but {layer.name} has maps of {height}x{width}; "
                        "a larger crop_size would fit"
                    )
                height = width = pooled_size(height, recipe.pool_size, recipe.pool_stride)
        layer_sizes.append(Size(layer, reads, product_shape, (maps, height, width)))
        channels = maps
    return layer_sizes


def parameter_counts(recipe: Architecture, classes: int = 1000) -> tuple[int, ...]:
    """Parameters on each tower, a tuple of one or two ints: (32,531,112, 28,434,112) for the paper's network."""
    return tuple(
        sum(size.parameters for size in sizes(recipe, classes) if tower == 0 or size.layer.towers == "each")
        for tower in range(recipe.towers)
    )


def merged_shapes(recipe: Architecture, classes: int) -> dict[str, tuple[int, ...]]:
    """{"conv1.weight": (96, 3, 11, 11), "conv1.bias": (96,), ...}: what `TwoTowerAlexNet.merged_state` holds, in its
    order."""
    shapes = {}
    for size in sizes(recipe, classes):
        towers = 1 if size.layer.towers == "first" else recipe.towers
        for what, (maps, *dims) in (("weight", size.weight_shape), ("bias", size.bias_shape)):
            shapes[f"{size.layer.name}.{what}"] = (maps * towers, *dims)
    return shapes


def crossings(
    recipe: Architecture, batch_size: int, classes: int = 1000, bytes_per_value: int = BYTES_FP32
) -> list[tuple[str, str, str, int]]:
    """The analytic ledger of one training step: rows (edge, direction, pass, bytes), forward in order, then backward.

    A layer that reads both towers needs the other tower's maps on each tower that has the layer; backward the gradients
    return."""
    rows, source = [], None
    for size in sizes(recipe, classes):
        if size.layer.reads == "both" and recipe.towers == 2:
            channels, height, width = source.output
            count = batch_size * channels * height * width * bytes_per_value
            rows += [
                (size.layer.name, direction, "forward", count)
                for direction in (("b->a",) if size.layer.towers == "first" else ("b->a", "a->b"))
            ]
        source = size
    back = {"a->b": "b->a", "b->a": "a->b"}
    return rows + [(edge, back[direction], "backward", count) for edge, direction, _, count in reversed(rows)]
