"""Safetensors from anywhere, under the names of the merged network: conv1.weight (96, 3, 11, 11) to fc8.bias.

The files' headers are compared with the recipe before any tensor is read."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load

from ..data.pixel_statistics import STATISTICS
from ..recipes import shapes
from ..recipes.recipe import Recipe
from ..runs import safetensors_file
from ..runs.unit_means import UNIT_MEANS
from ..system import durable_files
from ..system.errors import need

MOST_FILES = 64
DAMAGE = (ValueError, OSError, RecursionError, SafetensorError)


def files_of(path: Path) -> list[Path]:
    """The .safetensors files that a path names or holds, but the statistics and means of a run."""
    if not path.is_dir():
        return [path]
    names = durable_files.names(path, 4096)
    return [path / name for name in names if name.endswith(".safetensors") and name not in (STATISTICS, UNIT_MEANS)]


def layouts_of(files: Sequence[Path]) -> dict[str, tuple[Path, str, tuple[int, ...]]]:
    """{tensor: (file, dtype, shape)} by the headers alone. Raises OSError, RecursionError, and ValueError for a tensor
    that is there twice."""
    need(len(files) <= MOST_FILES, f"it holds {len(files)} files of tensors, {MOST_FILES} at most are read")
    layouts = {}
    for file in files:
        try:
            layout = safetensors_file.read_head(os.path.realpath(file))  # in a cache of models it is a link
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file.name}: {error}") from None
        for name, (dtype, shape) in layout.items():
            need(name not in layouts, f"{name!r:.100} is in {file.name} and in {layouts.get(name, [file])[0].name}")
            layouts[name] = (file, dtype, shape)
    return layouts


def classes_of(layouts: dict, recipe: Recipe) -> int:
    """How many outputs the last layer has. Raises ValueError if it isn't there."""
    name = f"{recipe.layers[-1].name}.bias"
    need(name in layouts, f"{name} is missing")
    shape = layouts[name][2]
    need(len(shape) == 1, f"{name} is {shape}, and a bias has one dimension")
    return shape[0]


def merged_of(layouts: dict, recipe: Recipe, classes: int) -> dict[str, np.ndarray]:
    """The merged tensors, float32, of {name: shape} as `shapes.merged_shapes` has them.

    Raises ValueError, with the tensor's name, for one that is missing, foreign, or of another shape; OSError."""
    expected = shapes.merged_shapes(recipe, classes)
    for name, shape in expected.items():
        need(name in layouts, f"{name} is missing, which recipe {recipe.name} has")
        file_shape = layouts[name][2]
        need(file_shape == shape, f"{name} is {str(file_shape):.100}, but recipe {recipe.name} has {shape}")
    foreign_names = sorted(set(layouts) - set(expected))
    need(not foreign_names, f"{''.join(foreign_names[:1]):.100} is no tensor of recipe {recipe.name}")
    tensors = {}
    for file in dict.fromkeys(file for file, *_ in layouts.values()):
        layout, content = safetensors_file.read(os.path.realpath(file))
        need(layout == {name: row[1:] for name, row in layouts.items() if row[0] == file}, f"{file.name} has changed")
        for name, tensor in load(content).items():
            tensors[name] = tensor.to(torch.float32).numpy()
            need(safetensors_file.finite(tensors[name]), f"{name} has values that are not finite")
    return {name: tensors[name] for name in expected}
