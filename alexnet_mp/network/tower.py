"""One tower: the layers that live on one device."""

from collections.abc import Sequence

import torch
from torch import nn

from ..recipes import shapes
from ..recipes.recipe import Recipe
from .exchange import Crossing
from .layer import TowerLayer


class Tower(nn.Module):
    """The layers that live on one device, as submodules conv1 ... fc8 (fc8 on tower 0 alone).

    index: 0 for tower a, 1 for tower b. forward(name, parts): what one layer makes of the parts it reads, in the order
    a, b: tensors on this tower's device; or, with overlap, one of them is a `Crossing` on its way. step: training
    passes so far (`network.py`). part: (number, count) of the slice of every fully connected layer's units that is
    here; all of them by default."""

    def __init__(
        self,
        recipe: Recipe,
        index: int,
        device: torch.device | str,
        classes: int,
        kernels: str,
        part: tuple[int, int] = (0, 1),
    ):
        super().__init__()
        self.index = index
        self.register_buffer("step", torch.zeros((), dtype=torch.int64, device=device), persistent=False)
        for number, size in enumerate(shapes.sizes(recipe, classes)):
            if size.layer.kind == "fc":
                size = size.slice_of_units(*part)
            if index == 0 or size.layer.towers == "each":
                self.add_module(size.layer.name, TowerLayer(recipe, size, number, (index,), kernels, device))

    def forward(self, name: str, parts: Sequence[torch.Tensor | Crossing]) -> torch.Tensor:
        """Layer `name` of what it reads: one tensor, or both towers' halves in the order a, b, each (N, C, H, W) or
        (N, units). See `TowerLayer.forward`."""
        layer = getattr(self, name)
        for crossing, own in (parts, parts[::-1]) if len(parts) == 2 else ():
            if not isinstance(crossing, torch.Tensor):
                return layer(own, self.step, crossing)
        return layer(parts[0] if len(parts) == 1 else torch.cat(parts, 1), self.step)
