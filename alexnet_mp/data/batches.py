"""What all input pipelines share: what a batch is, and which images make it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from ..parallel.pieces import WHOLE, Pieces
from ..recipes.recipe import Recipe
from ..system.errors import UserError
from .augmentation import Draws, draws, order
from .dataset import DataSet, Split

DRAWN_AT_ONCE = 32  # batches: drawing for 4,096 images costs little more than for 128


@dataclass(frozen=True)
class Batch:
    """N training images, on every tower's device."""

    epoch: int  # the first is 1
    images: list  # for each tower: (N, 3, crop, crop) on its device
    labels: torch.Tensor  # (N,) int64 on the first tower's device
    numbers: np.ndarray  # (N,) int64, which images of the training split they are


def minibatches(recipe: Recipe, count: int) -> list[range]:
    """[range of places in an epoch's order] of the steps of an epoch of `count` images, one each.

    Each `batch_file_size` places are cut by themselves, so the last minibatch of every file may be short (2012 source:
    a file of 10,000 pictures of CIFAR-10 gives 78 minibatches of 128 and one of 16).
    """
    file_size = recipe.batch_file_size or max(count, 1)
    return [
        range(start, min(start + recipe.batch_size, file_start + file_size, count))
        for file_start in range(0, count, file_size)
        for start in range(file_start, min(file_start + file_size, count), recipe.batch_size)
    ]


def steps_per_epoch(recipe: Recipe, dataset: DataSet) -> int:
    """How many steps an epoch over the training images of a data set takes."""
    return len(minibatches(recipe, len(dataset.splits["train"])))


def steps_of_recipe(recipe: Recipe, dataset: DataSet) -> int:
    """How many steps all epochs of a recipe take."""
    return recipe.epochs * steps_per_epoch(recipe, dataset)


class EpochKeys:
    """The batches of training after `step` steps, epoch after epoch: yields (epoch, positions, images), each (N,)
    int64.

    count: training images. positions: places in the epoch's order; images: which ones they are. pieces: whose images
    of each batch.
    """

    def __init__(self, recipe: Recipe, count: int, step: int, epochs: int, pieces: Pieces = WHOLE):
        self.recipe, self.count, self.step, self.epochs, self.pieces = recipe, count, step, epochs, pieces

    def __iter__(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        ranges = minibatches(self.recipe, self.count)
        whole_epochs, start = divmod(self.step, len(ranges))
        for epoch in range(whole_epochs + 1, self.epochs + 1):
            images = order(self.recipe, epoch, self.count)
            for places in ranges[start:]:
                part = places[self.pieces.read(len(places))]
                yield epoch, np.arange(part.start, part.stop), images[part.start : part.stop]
            start = 0


def with_draws(
    recipe: Recipe, keys: Iterable[tuple[int, np.ndarray, np.ndarray]]
) -> Iterator[tuple[int, np.ndarray, Draws]]:
    """(epoch, images, their `Draws`) of every batch of `EpochKeys`; drawn for many batches of an epoch at once."""
    keys = iter(keys)
    while group := list(islice(keys, DRAWN_AT_ONCE)):
        for epoch in dict.fromkeys(epoch for epoch, _, _ in group):
            batches = [(images, positions) for batch_epoch, positions, images in group if batch_epoch == epoch]
            draw, start = draws(recipe, epoch, *map(np.concatenate, zip(*batches))), 0
            for images, _ in batches:
                part = slice(start, start + len(images))
                yield epoch, images, Draws(draw.top[part], draw.left[part], draw.flip[part], draw.colour[part])
                start = part.stop


def in_order(count: int, batch_size: int, pieces: Pieces = WHOLE) -> list[np.ndarray]:
    """The batches of a test: (N,) int64 image numbers, each image once. Whole batches are dealt to the pairs."""
    batches = [np.arange(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    return batches[pieces.pair :: pieces.pairs]


class StoredPictures:
    """[images] -> their stored pictures, (N, stored, stored, 3) uint8, and labels, (N,) int64."""

    def __init__(self, split: Split):
        self.split = split

    def __getitem__(self, images):
        try:
            pictures = np.stack([self.split.read(image) for image in images])
        except UserError as error:
            return error
        return torch.from_numpy(pictures), torch.from_numpy(self.split.labels[images])
