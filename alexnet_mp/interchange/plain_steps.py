"""A trained network as a list of plain steps, as other libraries name them: both towers in one, ready for a test.

What a test multiplies by 1 - dropout (4.2) is in the weights that read it: for the paper's a half, which is exact. Of a
product that reads its own tower alone the weights have zeros where the other tower's maps would be read."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ..recipes import shapes
from ..recipes.recipe import Recipe
from ..system.errors import UserError

# f(a x) = a f(x) for every a above 0
_LETS_FACTORS_PASS = ("relu", "max_pool", "avg_pool")


@dataclass(frozen=True)
class Step:
    """One operation on (N, maps, height, width) or (N, units), float32.

    kind and settings: "conv": kernel, stride, pad (all sides), more (zeros besides, right and bottom), groups. "local":
    the same without groups. "linear": none; maps are flattened before. "lrn": size, alpha, beta, k, parts (how many
    parts of the maps are normalised by themselves). "spatial_norm": size, alpha, beta, k. "max_pool", "avg_pool":
    window, stride, more (what the last window reaches over the right and bottom edges). "scale": factor. "relu",
    "tanh", "sigmoid": none. Every alpha multiplies the sum of squares."""

    kind: str
    layer: str  # its name
    shape: tuple[int, ...]  # after it, of one picture: (maps, height, width) or (units,)
    settings: Mapping[str, float] = field(default_factory=dict)
    weight: np.ndarray | None = None  # conv: (maps, channels of a group, k, k); linear: (units, inputs);
    bias: np.ndarray | None = None  # local: (maps, height, width, channels, k, k), and (maps, height, width)


def refuse_last_layer(recipe: Recipe) -> None:
    """Raise UserError for a last layer that gives maps."""
    layer = recipe.layers[-1]
    if layer.kind != "fc":
        raise UserError(f"recipe field {layer.name}.kind is {layer.kind!r}: the last layer gives maps, no logits")


def plain_steps(recipe: Recipe, weights: Mapping[str, np.ndarray], classes: int) -> list[Step]:
    """The steps of a recipe's network from the image minus the mean, (N, 3, crop, crop), to the logits (N, classes).

    weights: merged, float32, as `shapes.merged_shapes` has them. Raises UserError as `refuse_last_layer` does."""
    refuse_last_layer(recipe)
    steps, factor, shape = [], 1.0, (3, recipe.crop_size, recipe.crop_size)
    for size in shapes.sizes(recipe, classes):
        layer, parts = size.layer, 1 if size.layer.towers == "first" else recipe.towers
        groups = parts if layer.reads == "own" else 1
        weight, bias = (np.asarray(weights[f"{layer.name}.{what}"], np.float32) for what in ("weight", "bias"))
        if factor != 1:
            weight, factor = weight * np.float32(factor), 1.0
        maps, side = size.computed[0] * parts, size.computed[1]
        if layer.kind == "fc":
            shape = (maps,)
            steps.append(Step("linear", layer.name, shape, {}, _whole(weight, groups, 1), bias))
        else:
            extra = shapes.ceil_mode_padding(shape[1], layer.kernel, layer.stride, layer.pad)
            settings = dict(kernel=layer.kernel, stride=layer.stride, pad=layer.pad, more=extra)
            shape = (maps, side, side)
            if layer.kind == "local":
                steps.append(Step("local", layer.name, shape, settings, _whole(weight, groups, 3), bias))
            else:
                steps.append(Step("conv", layer.name, shape, {**settings, "groups": groups}, weight, bias))
        for operation in layer.then:
            if factor != 1 and operation not in (*_LETS_FACTORS_PASS, "dropout"):
                steps.append(Step("scale", layer.name, shape, {"factor": factor}))
                factor = 1.0
            if operation == "dropout":
                factor *= 1 - recipe.dropout
            else:
                steps.append(_operation(recipe, operation, layer.name, shape, parts))
                shape = steps[-1].shape
    if factor != 1:
        steps.append(Step("scale", recipe.layers[-1].name, shape, {"factor": factor}))
    return steps


def _operation(recipe, operation, layer, shape, parts):
    settings = {}
    if operation in ("max_pool", "avg_pool"):
        window, stride = recipe.pool_size, recipe.pool_stride
        settings = dict(window=window, stride=stride, more=shapes.ceil_mode_padding(shape[1], window, stride, 0))
        shape = (shape[0], *[shapes.pooled_size(side, window, stride) for side in shape[1:]])
    elif operation == "lrn":
        settings = {name: getattr(recipe, f"lrn_{name}") for name in ("size", "alpha", "beta", "k")}
        settings["parts"] = 1 if recipe.lrn_crosses else parts
    elif operation == "spatial_norm":
        settings = {name: getattr(recipe, f"spatial_{name}") for name in ("size", "alpha", "beta", "k")}
    return Step(operation, layer, shape, settings)


def _whole(weight, groups, axis):
    """Weights of all inputs: zeros beside those of each group's own. axis: of the inputs."""
    if groups == 1:
        return weight
    parts = np.split(weight, groups)
    return np.concatenate(
        [
            np.concatenate([part if number == group else np.zeros_like(part) for number in range(groups)], axis)
            for group, part in enumerate(parts)
        ]
    )
