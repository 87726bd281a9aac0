"""Weights as cuda-convnet and the code of 2012 hold them: a matrix for each input of each layer of each tower.

The layout is described in `docs/interchange.md`. NAME.weights is (inputs, outputs): a convolution's row is
(channel * k + y) * k + x of its kernel, a product's the map-major number of the input; those of tower a come first
where a layer reads both. A layer with a matrix for each input may have NAME.weights.0 and NAME.weights.1 instead.
NAME.biases has one value an output. A local layer's matrix has the rows of one position after another, and its biases
are by map, then position. No weights were released in 2012: nothing of this has met any."""

import math

import numpy as np

from ..recipes import shapes
from ..recipes.recipe import Recipe
from ..system.errors import need
from .arrays import DAMAGE, Arrays
from .damage import about

NAMES_OF_2012 = {"fc6": "fc2048", "fc7": "fc2048b", "fc8": "fc1000"}  # layers-145.cfg: fc2048a, fc2048bb, fc1000
BESIDE = {"mean", "classes", "synset_words"}  # what else may lie there


def names_of(recipe: Recipe, arrays: Arrays) -> dict[str, list[str]]:
    """{layer: the names of its towers' layers, tower a's first}: conv1a and conv1b, fc6a or fc2048a, fc8."""
    names = {}
    for layer in recipe.layers:
        single = layer.towers == "first" or recipe.towers == 1
        for stem in (layer.name, NAMES_OF_2012.get(layer.name, layer.name)):
            names[layer.name] = [stem] if single else [f"{stem}a", f"{stem}b"]
            if f"{names[layer.name][0]}.biases" in arrays.files:
                break
        else:
            names[layer.name] = [layer.name] if single else [f"{layer.name}a", f"{layer.name}b"]
    return names


def classes_of(recipe: Recipe, arrays: Arrays) -> int:
    """How many outputs the last layer has: the number of its biases. Raises ValueError."""
    name = f"{names_of(recipe, arrays)[recipe.layers[-1].name][-1]}.biases"
    need(name in arrays.files, f"{name} is missing")
    with about(name, DAMAGE, ValueError):
        return math.prod(arrays.shape(name))


def merged_of(arrays: Arrays, recipe: Recipe, classes: int) -> dict[str, np.ndarray]:
    """The merged tensors, float32, of {name: shape} as `shapes.merged_shapes` has them.

    Raises ValueError, with the array's name, for one that is missing, foreign, or of another shape."""
    names, used_names, tensors = names_of(recipe, arrays), set(), {}
    for size in shapes.sizes(recipe, classes):
        weights, biases = [], []
        for name in names[size.layer.name]:
            rows, columns = _matrix(size)
            halves = [f"{name}.weights.0", f"{name}.weights.1"]
            if size.layer.reads == "both" and recipe.towers == 2 and halves[0] in arrays.files:
                need(f"{name}.weights" not in arrays.files, f"{name}.weights is there, and {halves[0]} too")
                parts = [_read(arrays, half, (rows // 2, columns), used_names) for half in halves]
                matrix = np.concatenate(parts)
            else:
                matrix = _read(arrays, f"{name}.weights", (rows, columns), used_names)
            weights.append(_in_our_order(matrix, size))
            biases.append(
                _read(arrays, f"{name}.biases", (math.prod(size.bias_shape),), used_names).reshape(size.bias_shape)
            )
        tensors[f"{size.layer.name}.weight"] = np.concatenate(weights)
        tensors[f"{size.layer.name}.bias"] = np.concatenate(biases)
    foreign_names = sorted(set(arrays.files) - used_names - BESIDE)
    need(not foreign_names, f"{foreign_names[0] if foreign_names else ''} is no array of recipe {recipe.name}")
    return tensors


def _matrix(size):
    """(rows, columns) of a layer's matrix on one tower."""
    maps, *input_shape = size.weight_shape
    return math.prod(input_shape), maps


def _in_our_order(matrix, size):
    if size.layer.kind == "local":  # (H * W * C * k * k, maps) -> (maps, H, W, C, k, k)
        maps, *input_shape = size.weight_shape
        return np.ascontiguousarray(np.moveaxis(matrix.reshape(*input_shape, maps), -1, 0))
    return np.ascontiguousarray(matrix.T).reshape(size.weight_shape)


def _read(arrays, name, shape, used_names):
    need(name in arrays.files, f"{name} is missing")
    used_names.add(name)
    with about(name, DAMAGE, ValueError):
        return arrays.read(name, shape)
