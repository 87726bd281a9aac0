"""Caffe's networks as ours: BVLC AlexNet, the reference CaffeNet, and what was fine-tuned of them under the same names.

Kernels are (outputs, inputs, rows, columns) in both, and both halves of the outputs of a grouped convolution are the
towers. fc6 reads the maps in the same order. Three things differ. Caffe's images are BGR, so conv1's input channels are
turned round. A test of Caffe's takes what dropout layers give as it is, and ours a half of it: the weights that read
it are multiplied by 2, which is exact. Its normalisation sees across the towers' border: `Recipe.lrn_crosses`."""

from collections.abc import Mapping

import numpy as np

from ..recipes import shapes
from ..recipes.recipe import Recipe
from ..runs.safetensors_file import finite
from ..system.errors import need
from .caffe_files import Net

BOTH = "--recipe caffe_alexnet normalises first, --recipe caffenet pools first"


def recipe_of(net: Net) -> str:
    """ "caffe_alexnet" or "caffenet", whose weights have the same names and shapes: by which of the layers norm1 and
    pool1 comes first. Raises ValueError where they aren't there."""
    need("norm1" in net.layers and "pool1" in net.layers, f"it has no layers norm1 and pool1 to tell by; {BOTH}")
    return "caffe_alexnet" if net.layers.index("norm1") < net.layers.index("pool1") else "caffenet"


def classes_of(net: Net, recipe: Recipe) -> int:
    """How many outputs the last layer has. Raises ValueError if it isn't there."""
    name = recipe.layers[-1].name
    need(name in net.blobs, f"it has no weights of {name}; those that it has are of {_some(net.blobs)}")
    return net.blobs[name][-1].size


def merged_of(net: Net, recipe: Recipe, classes: int) -> dict[str, np.ndarray]:
    """The merged tensors, float32, of {name: shape} as `shapes.merged_shapes` has them.

    Raises ValueError, with the layer's name, for one that is missing, foreign, or of another shape."""
    names = [layer.name for layer in recipe.layers]
    for name in names:
        need(name in net.blobs, f"it has no weights of {name}, which recipe {recipe.name} has")
    foreign_names = [name for name in net.blobs if name not in names]
    need(not foreign_names, f"it has weights of {_some(foreign_names)}, which recipe {recipe.name} has not")
    expected, tensors, factor = shapes.merged_shapes(recipe, classes), {}, 1.0
    for layer in recipe.layers:
        blobs = net.blobs[layer.name]
        need(len(blobs) == 2, f"{layer.name} has {len(blobs)} blobs; weights and biases are two")
        for what, blob in zip(("weight", "bias"), blobs, strict=True):
            name = f"{layer.name}.{what}"
            need(
                _without_ones(blob.shape) == _without_ones(expected[name]),
                f"{name} is {blob.shape}, but recipe {recipe.name} has {expected[name]}",
            )
            tensors[name] = _single(blob.reshape(expected[name]), name)
        if layer.reads == "image":
            tensors[f"{layer.name}.weight"] = np.ascontiguousarray(tensors[f"{layer.name}.weight"][:, ::-1])
        if factor != 1:
            with np.errstate(over="ignore"):
                tensors[f"{layer.name}.weight"] = tensors[f"{layer.name}.weight"] * np.float32(factor)
            need(finite(tensors[name := f"{layer.name}.weight"]), f"{name} has values that overflow, times {factor:g}")
        factor = 1 / (1 - recipe.dropout) if "dropout" in layer.then else 1.0
    return tensors


def told(recipe: Recipe) -> str:
    """What `merged_of` does, in words."""
    layers = recipe.layers
    names = [next_layer.name for layer, next_layer in zip(layers, layers[1:]) if "dropout" in layer.then]
    return (
        f"{layers[0].name} and the mean image are RGB now, not BGR"
        + (f"; weights of {', '.join(names)} times {1 / (1 - recipe.dropout):g}" if names and recipe.dropout else "")
        + ("; normalisation sees across the towers' border" if recipe.lrn_crosses else "")
    )


def _single(array: np.ndarray, name: str) -> np.ndarray:
    """float32, of another dtype rounded."""
    with np.errstate(over="ignore"):
        values = array.astype(np.float32)
    need(finite(values), f"{name} has values that are not finite")
    return values


def _without_ones(shape):
    """Old blobs have four sides, of a bias (1, 1, 1, 96)."""
    sides = list(shape)
    while sides and sides[0] == 1:
        sides.pop(0)
    return sides


def _some(names: Mapping | list) -> str:
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "nothing"
