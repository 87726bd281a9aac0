"""From raw pixels in a memory map to batches on each tower's device: no decoder, one fused pass (`augment` in
`kernels/`).

On a CPU the kernel reads its crops straight from the map. For GPUs a thread works two batches ahead of the network: a
few others copy the pictures to page-locked memory; from there they go, in uint8, to each device (from the host, as in
2012, never from GPU to GPU) and are augmented there, on a stream of their own. Beside a network that computes on the
CPU such a thread would only take cores from it."""

import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext

import numpy as np
import torch

from ..kernels import augment
from ..kernels.augmentation import crops_of
from ..parallel.pieces import WHOLE
from ..recipes.recipe import Recipe
from .augmentation import colour_shift, of_view
from .batches import Batch, EpochKeys, in_order, with_draws
from .batches_ahead import ahead
from .dataset import DataSet
from .pixel_statistics import Statistics
from .step_input import Uncropped

MOST_THREADS = 8  # that read: more would wait for Python's lock rather than for memory


class RawPipeline:
    """The images of a data set whose splits hold pixels, for a network whose towers are on `devices`; workers: threads
    that read.

    dtype: float32, bfloat16 or float16; memory_format: of the images, channels_last or contiguous (NCHW).
    """

    name = "raw"

    def __init__(
        self,
        dataset: DataSet,
        recipe: Recipe,
        devices: Sequence[torch.device | str],
        workers: int,
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.channels_last,
    ):
        self.dataset, self.recipe, self.dtype, self.memory_format = dataset, recipe, dtype, memory_format
        self.workers, self.threads = workers, min(workers, MOST_THREADS)
        self.devices = [torch.device(device) for device in devices]
        self.pieces = WHOLE  # of each batch, what this pair of towers reads
        self.on_gpu = any(device.type == "cuda" for device in self.devices)
        self.statistics = self.means = None
        # Whether a GPU's training batches are `Uncropped`: a step as CUDA graphs makes its images itself.
        self.left_to_step = False

    def use(self, statistics: Statistics) -> None:
        """Set the mean image and colour components that all batches are made with."""
        self.statistics, mean = statistics, torch.from_numpy(np.ascontiguousarray(statistics.mean, np.float32))
        self.means = {device: mean.to(device) for device in dict.fromkeys(self.devices)}

    def train(self, step: int, epochs: int, colour_noise: Callable[[int], float]) -> Generator[Batch, None, None]:
        """Training batches from after `step` steps to the end of the last epoch; every image once an epoch.

        colour_noise(epoch) -> the colour deviation of that epoch; it may be asked for two batches before the epoch
        begins. Raises UserError that names a damaged image."""
        yield from self._prefetch(self._training(step, epochs, colour_noise))

    def views(
        self, split: str, batch_size: int, which: Sequence[tuple[int, int, bool]]
    ) -> Generator[tuple[Iterator[list], torch.Tensor], None, None]:
        """Each image of a split once, in order, under fixed views: yields (iterator of the views' `Batch.images`,
        labels).

        which: the (top, left, flip) of each view, as `centre_view` and `ten_views` give them. A view is made when it is
        asked for."""
        with closing(self._prefetch(self._testing(split, batch_size))) as batches:
            for pictures, labels in batches:
                yield self._views_of(pictures, which, len(labels)), labels

    def _views_of(self, pictures, which, count):
        for view in which:
            yield self._on_each_tower(pictures, of_view(view, count), torch.zeros(count, 3), 1.0)

    def _training(self, step, epochs, colour_noise):
        split = self.dataset.splits["train"]
        with self._pool() as pool:
            for epoch, images, draw in with_draws(
                self.recipe, EpochKeys(self.recipe, len(split), step, epochs, self.pieces)
            ):
                shift, scale = colour_shift(self.recipe, self.statistics, draw.colour, colour_noise(epoch))
                make = self._uncropped if self.left_to_step and self.on_gpu else self._on_each_tower
                yield Batch(
                    epoch,
                    make(self._pictures(split, images, pool), draw, torch.from_numpy(shift), scale),
                    self._labels(split, images),
                    images,
                )

    def _testing(self, split, batch_size):
        split = self.dataset.splits[split]
        with self._pool() as pool:
            for images in in_order(len(split), batch_size, self.pieces):
                yield self._pictures(split, images, pool), self._labels(split, images)

    def _on_each_tower(self, pictures, draw, shift, scale):
        """`Batch.images`, of the pictures for each distinct device."""
        images = {device: self._augmented(pictures[device], device, draw, shift, scale) for device in self.means}
        return [images[device] for device in self.devices]

    def _uncropped(self, pictures, draw, shift, scale):
        """`Batch.images` that are still to be made."""
        places = (torch.from_numpy(values) for values in (draw.top, draw.left, draw.flip))
        crops = crops_of(*places, shift, scale, crop=self.recipe.crop_size, side=self.recipe.stored_size)
        options = self.recipe.crop_size, self.recipe.mean_follows_crop, self.dtype, self.memory_format
        inputs = {
            device: Uncropped(pictures[device], crops.to(device, non_blocking=True), mean, *options)
            for device, mean in self.means.items()
        }
        return [inputs[device] for device in self.devices]

    def _augmented(self, pictures, device, draw, shift, scale):
        places = (torch.from_numpy(values) for values in (draw.top, draw.left, draw.flip))
        return augment(
            pictures,
            *places,
            self.means[device],
            shift,
            scale,
            crop=self.recipe.crop_size,
            dtype=self.dtype,
            mean_follows_crop=self.recipe.mean_follows_crop,
            memory_format=self.memory_format,
        )

    def _pictures(self, split, images, pool):
        """The stored pictures of a batch, {device: one (N, S, S, 3) uint8 tensor, or on the host N views of the memory
        map}."""
        parts = np.array_split(images, max(self.threads, 1))
        if not self.on_gpu:
            pictures = (pool.map if pool else map)(lambda part: [split.read(image) for image in part], parts)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nor will it be written
                views = [torch.from_numpy(picture) for part in pictures for picture in part]
            return dict.fromkeys(self.means, views)
        batch = _page_locked(len(images), self.recipe.stored_size)

        def copy(part, targets):
            for image, target in zip(part, targets, strict=True):
                np.copyto(target, split.read(image))  # lets go of Python's lock while it copies

        list((pool.map if pool else map)(copy, parts, np.array_split(batch.numpy(), len(parts))))
        return {device: batch.to(device, non_blocking=True) for device in self.means}

    def _labels(self, split, images):
        return torch.from_numpy(split.labels[images]).to(self.devices[0], non_blocking=True)

    def _pool(self):
        return ThreadPoolExecutor(self.threads, "read") if self.threads > 1 else nullcontext()

    def _prefetch(self, batches):
        return ahead(batches, [device for device in self.means if device.type == "cuda"]) if self.on_gpu else batches


def _page_locked(count, size):
    """(count, size, size, 3) uint8, not yet written. Freed, the memory goes to nobody else before all copies from it
    are done."""
    return torch.empty(count, size, size, 3, dtype=torch.uint8, pin_memory=True)
