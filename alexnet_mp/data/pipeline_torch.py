"""From stored pictures to batches on each tower's device, in PyTorch: runs anywhere, and defines what a batch is.

Worker processes read, crop and flip in uint8; the rest (minus mean, colour, float) happens on the tower's own device.
Images go from the host to each device, as in 2012 (source, `src/layer.cu:1195-1236`), labels to the first tower's,
where the loss is."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing

import torch

from ..parallel.pieces import WHOLE
from ..recipes.recipe import Recipe
from ..system.errors import UserError
from .augmentation import Augment, crop_and_flip, draws, of_view
from .batches import Batch, EpochKeys, StoredPictures, in_order
from .dataset import DataSet
from .pixel_statistics import Statistics
from .workers import load


class TorchPipeline:
    """The images of a data set for a network whose towers are on `devices`; workers: processes that read.

    dtype: float32, bfloat16 or float16; memory_format: of the images, channels_last or contiguous (NCHW).
    """

    name = "torch"

    def __init__(
        self,
        dataset: DataSet,
        recipe: Recipe,
        devices: Sequence[torch.device | str],
        workers: int,
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.channels_last,
    ):
        self.dataset, self.recipe, self.workers, self.dtype, self.memory_format = (
            dataset,
            recipe,
            workers,
            dtype,
            memory_format,
        )
        self.devices = [torch.device(device) for device in devices]
        self.pieces = WHOLE  # of each batch, what this pair of towers reads
        self.pin = any(device.type == "cuda" for device in self.devices)
        self.statistics = self.augment = None

    def use(self, statistics: Statistics) -> None:
        """Set the mean image and colour components that all batches are made with."""
        self.statistics = statistics
        self.augment = {device: Augment(self.recipe, statistics, device) for device in set(self.devices)}

    def train(self, step: int, epochs: int, colour_noise: Callable[[int], float]) -> Generator[Batch, None, None]:
        """Training batches from after `step` steps to the end of the last epoch; every image once an epoch.

        colour_noise(epoch) -> the colour deviation of that epoch.
        """
        keys = EpochKeys(self.recipe, len(self.dataset.splits["train"]), step, epochs, self.pieces)
        with closing(
            load(_TrainingCrops(self.dataset.splits["train"], self.recipe), keys, self.workers, self.pin)
        ) as batches:
            for (epoch, _, numbers), (crops, draw, labels) in zip(keys, batches):
                images = self._on_each_tower(crops, draw, colour_noise(epoch))
                yield Batch(epoch, images, labels.to(self.devices[0], non_blocking=True), numbers)

    def views(
        self, split: str, batch_size: int, which: Sequence[tuple[int, int, bool]]
    ) -> Generator[tuple[Iterator[list], torch.Tensor], None, None]:
        """Each image of a split once, in order, under fixed views: yields (iterator of the views' `Batch.images`,
        labels).

        which: the (top, left, flip) of each view, as `centre_view` and `ten_views` give them. A view is made when it is
        asked for."""
        source = self.dataset.splits[split]
        with closing(
            load(StoredPictures(source), in_order(len(source), batch_size, self.pieces), self.workers, self.pin)
        ) as batches:
            for pictures, labels in batches:
                yield self._views_of(pictures.numpy(), which), labels.to(self.devices[0])

    def _views_of(self, pictures, which):
        for view in which:
            draw = of_view(view, len(pictures))
            yield self._on_each_tower(torch.from_numpy(crop_and_flip(pictures, draw, self.recipe.crop_size)), draw, 0.0)

    def _on_each_tower(self, crops, draw, colour_noise):
        images = {
            device: self.augment[device](crops, draw, colour_noise).to(self.dtype, memory_format=self.memory_format)
            for device in dict.fromkeys(self.devices)
        }
        return [images[device] for device in self.devices]


class _TrainingCrops:
    def __init__(self, split, recipe):
        self.split, self.recipe = split, recipe

    def __getitem__(self, key):
        epoch, positions, images = key
        draw = draws(self.recipe, epoch, images, positions)
        try:
            pictures = [self.split.read(image) for image in images]
        except UserError as error:
            return error
        crops = crop_and_flip(pictures, draw, self.recipe.crop_size)
        return torch.from_numpy(crops), draw, torch.from_numpy(self.split.labels[images])
