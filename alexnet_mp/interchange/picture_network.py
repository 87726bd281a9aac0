"""A network together with its preprocessing: from stored pictures to logits, in this package's own operations."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from ..network.network import MergedAlexNet
from ..recipes.recipe import Recipe


class PictureNetwork(nn.Module):
    """A merged network that takes stored pictures; what `from_pretrained` returns.

    forward(pictures): (N, stored_size, stored_size, 3) uint8, RGB, as `data.resize.decoded` gives them of a file ->
    logits (N, classes) float32 of the centre view, on the network's device. ValueError for other pictures. `network` is
    the `MergedAlexNet`, `recipe` its `Recipe`, `classes` the names of its outputs, `class_names` the same as a
    person knows them."""

    def __init__(self, network: MergedAlexNet, mean: np.ndarray, classes: Sequence[str], class_names: Sequence[str]):
        """mean: (stored_size, stored_size, 3), grey levels."""
        super().__init__()
        self.network, self.classes, self.class_names = network, tuple(classes), tuple(class_names)
        self.register_buffer("mean", torch.from_numpy(mean).float().to(network.step.device))

    @property
    def recipe(self) -> Recipe:
        return self.network.recipe

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        side, crop = self.recipe.stored_size, self.recipe.crop_size
        requirement = f"this network takes a tensor, torch.uint8 (N, {side}, {side}, 3)"
        if not isinstance(pictures, torch.Tensor):
            raise ValueError(f"pictures are a {type(pictures).__name__}; {requirement}")
        if pictures.dim() != 4 or tuple(pictures.shape[1:]) != (side, side, 3) or pictures.dtype != torch.uint8:
            raise ValueError(f"pictures are {pictures.dtype} {tuple(pictures.shape)}; {requirement}")
        window = slice(start := (side - crop) // 2, start + crop)
        x = pictures.to(self.mean.device)[:, window, window].float() - self.mean[window, window]
        x = x.permute(0, 3, 1, 2)
        if not torch.compiler.is_exporting():
            return self.network(x)
        for layer in self.network.children():  # without the count of pictures, which is to stay any number
            x = layer(x)
        return x


def told_input(recipe: Recipe) -> str:
    """What an exported network takes, for a file that says it to people."""
    side = recipe.stored_size
    return f"(N, {side}, {side}, 3) uint8, RGB: the shorter side rescaled to {side}, the central square kept"
