"""The augmentation of section 4.1, and the order: what is drawn is a function of (seed, epoch, image) alone.

Nothing here has a state, so every pipeline, worker count, batch size and restart sees the same crop for the same image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..kernels.philox import COLOUR_STREAM, CROP_STREAM, ORDER_STREAM, below, normal_pair, philox
from ..recipes.recipe import Recipe
from .pixel_statistics import Statistics


@dataclass(frozen=True)
class Draws:
    """The augmentation of N training images."""

    top: np.ndarray  # (N,) int64, pixels from the upper edge of the stored picture
    left: np.ndarray  # (N,) int64
    flip: np.ndarray  # (N,) bool
    colour: np.ndarray  # (N, 3) float64, N(0, 1): times the recipe's deviation it is a_1, a_2, a_3 of section 4.1


def order(recipe: Recipe, epoch: int, count: int) -> np.ndarray:
    """The order of `count` training images in an epoch (the first is 1): a permutation, (count,) int64."""
    shuffle = epoch if recipe.reshuffle else 0
    high, low, _, _ = philox((torch.arange(count), shuffle, 0, 0), (recipe.seed, ORDER_STREAM))
    return np.lexsort((low.numpy(), high.numpy()))


def draws(recipe: Recipe, epoch: int, images: np.ndarray, positions: np.ndarray) -> Draws:
    """The draws of training images in an epoch.

    images: (N,) int64, index in the training set. positions: (N,) int64, their places in the epoch's order. Where
    `crop_share` > 1 the images at `crop_share` consecutive places share one crop and flip (2012 source); the order is a
    function of (seed, epoch), so the draw is one too. Colour is drawn for every image."""
    key = torch.from_numpy(images if recipe.crop_share == 1 else positions // recipe.crop_share)
    top, left, flip, _ = philox((key, epoch, 0, 0), (recipe.seed, CROP_STREAM))
    margin = (recipe.stored_size - recipe.crop_size + 1 - recipe.crop_positions) // 2  # 0 in the presets
    words = philox((torch.from_numpy(images), epoch, 0, 0), (recipe.seed, COLOUR_STREAM))
    colour = torch.stack((*normal_pair(*words[:2]), normal_pair(*words[2:])[0]), dim=1)
    return Draws(
        top=(below(top, recipe.crop_positions) + margin).numpy(),
        left=(below(left, recipe.crop_positions) + margin).numpy(),
        flip=(below(flip, 2) == 1).numpy() & recipe.flip,
        colour=colour.numpy(),
    )


def of_view(view: tuple[int, int, bool], count: int) -> Draws:
    """The draws of `count` images under one fixed view, (top, left, flip), whose colours are as they are."""
    return Draws(*(np.full(count, value) for value in view), np.zeros((count, 3)))


def colour_shift(
    recipe: Recipe, statistics: Statistics, factors: np.ndarray, colour_noise: float
) -> tuple[np.ndarray, float]:
    """What is added to all pixels of an image, and what they are multiplied by then (paper 4.1; 2012 source).

    factors: (N, 3), N(0, 1) for each image and component. Returns ((N, 3) float32 grey levels, scale).
    """
    lengths = statistics.eigenvalues if recipe.colour_scale == "eigenvalue" else np.sqrt(statistics.eigenvalues)
    components = 255.0 * statistics.eigenvectors * lengths  # (RGB, component): grey levels for a factor of 1
    scale = float(np.float32(1 / (1 + colour_noise))) if recipe.colour_shrink else 1.0
    return (colour_noise * factors @ components.T).astype(np.float32), scale


class Augment:
    """uint8 crops -> what the network sees, on one device: minus mean, plus the colour shift (paper 2, 4.1)."""

    def __init__(self, recipe: Recipe, statistics: Statistics, device: torch.device | str):
        self.recipe, self.statistics, self.device = recipe, statistics, device
        self.mean = torch.from_numpy(statistics.mean).float().to(device)

    def __call__(self, crops: torch.Tensor, draw: Draws, colour_noise: float) -> torch.Tensor:
        """crops: (N, crop, crop, 3) uint8 on the host, already flipped; draw: their `Draws`.

        Returns (N, 3, crop, crop) float32 on the device, in channels_last memory: grey levels minus the mean.
        """
        x = crops.to(self.device, non_blocking=True).float()
        for image, top, left, flip in zip(x, draw.top, draw.left, draw.flip, strict=True):
            image -= self._mean_under(top, left, flip)
        if colour_noise:
            shift, scale = colour_shift(self.recipe, self.statistics, draw.colour, colour_noise)
            x += torch.from_numpy(shift).to(self.device, non_blocking=True)[:, None, None, :]
            if scale != 1:
                x *= scale
        return x.permute(0, 3, 1, 2)

    def _mean_under(self, top, left, flip):
        """The mean image under a crop, (crop, crop, 3): cropped and flipped with its picture, or always the centre
        window."""
        crop = self.recipe.crop_size
        if not self.recipe.mean_follows_crop:
            top = left = (self.recipe.stored_size - crop) // 2
            flip = False
        window = self.mean[top : top + crop, left : left + crop]
        return window.flip(1) if flip else window


def crop_and_flip(pictures: np.ndarray | Sequence[np.ndarray], draw: Draws, crop: int) -> np.ndarray:
    """(N, stored, stored, 3) uint8 and N draws -> (N, crop, crop, 3) uint8."""
    crops = np.empty((len(pictures), crop, crop, 3), np.uint8)
    for target, picture, top, left, flip in zip(crops, pictures, draw.top, draw.left, draw.flip, strict=True):
        window = picture[top : top + crop, left : left + crop]
        target[:] = window[:, ::-1] if flip else window
    return crops
