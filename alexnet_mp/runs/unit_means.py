"""The mean of every unit's output over some pictures, kept beside weights: what stands for a tower that is off, for who
has the network and not the pictures."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from ..recipes.recipe import Recipe
from ..recipes.shapes import sizes
from ..system import durable_files
from ..system.errors import UserError, need
from . import safetensors_file

UNIT_MEANS = "unit_means.safetensors"
OF = "over"  # the field of the file's metadata that says of which pictures
DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, SafetensorError)


@dataclass(frozen=True)
class UnitMeans:
    """values: {layer: [of each tower that has it, float32 (1, maps, height, width), fully connected (1, units)]}.
    over: which pictures, in words, as "256 pictures of SET, split val"."""

    values: Mapping[str, Sequence[np.ndarray]]
    over: str

    def save(self, folder: str | Path) -> None:
        arrays = {
            f"{name}.{'ab'[tower]}": np.ascontiguousarray(value, np.float32)
            for name, of_towers in self.values.items()
            for tower, value in enumerate(of_towers)
        }
        layout = {name: ("F32", array.shape) for name, array in arrays.items()}
        content = [safetensors_file.header(layout, {OF: self.over})]
        content += [arrays[name].tobytes() for name in safetensors_file.order(layout)]
        durable_files.replace(Path(folder) / UNIT_MEANS, b"".join(content))


def load_unit_means(folder: str | Path, recipe: Recipe, classes: int) -> UnitMeans | None:
    """What is kept in a folder, None if nothing is. Raises UserError unless it is of such a network, and finite.

    The file may be a link, as in a cache of models."""
    path = Path(folder) / UNIT_MEANS
    if not os.path.lexists(path):
        return None
    shapes = {}
    for size in sizes(recipe, classes):
        towers = range(1 if size.layer.towers == "first" else recipe.towers)
        shape = size.output[:1] if size.layer.kind == "fc" else size.output
        shapes |= {f"{size.layer.name}.{'ab'[tower]}": (1, *shape) for tower in towers}
    try:
        layout = {name: ("F32", shape) for name, shape in shapes.items()}
        content = durable_files.read(
            os.path.realpath(path), 4 * sum(map(math.prod, shapes.values())) + safetensors_file.MOST_HEADER
        )
        need(safetensors_file.read_layout(len(content), content) == layout, "its tensors are of another network")
        description = safetensors_file.parse(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"][OF]
        need(isinstance(description, str) and len(description) < 1000, "it doesn't say of which pictures it is")
        arrays = load(content)
        need(all(map(safetensors_file.finite, arrays.values())), "it has values that are no numbers")
    except DAMAGE as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split()):.300}") from None
    values = {}
    for name in sorted(arrays):
        values.setdefault(name.rpartition(".")[0], []).append(arrays[name])
    return UnitMeans(values, description)
