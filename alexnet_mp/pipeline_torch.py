"""From stored pictures to batches on each tower's device, in PyTorch: runs anywhere, and defines what a batch is.

Worker processes read, crop and flip in uint8; the rest (minus mean, colour, float) happens on the tower's own device. Images go
from the host to each device, as in 2012 (source, `src/layer.cu:1195-1236`), labels to the first tower's, where the loss is.
"""
import ctypes
import signal
import warnings
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader

from .draws import Draws, draws, order
from .errors import UserError
from .statistics import Sums

CHUNK = 32  # images a worker reads at once when it only reads


@dataclass(frozen=True)
class Batch:
    epoch: int  # the first is 1
    images: list  # for each tower: (N, 3, crop, crop) float32 on its device
    labels: torch.Tensor  # (N,) int64 on the first tower's device


class TorchPipeline:
    """The images of a data set for a network whose towers are on `devices`; workers: processes that read."""

    name = "torch"

    def __init__(self, dataset, recipe, devices, workers):
        self.dataset, self.recipe, self.workers = dataset, recipe, workers
        self.devices = [torch.device(device) for device in devices]
        self.pin = any(device.type == "cuda" for device in self.devices)
        self.statistics = self.augment = None

    def survey(self, split, progress):
        """Read every image of a split once: finds unreadable ones before anything else starts, and fills the cache.

        progress(n) is called for every n images read. Returns the exact `Sums` over the split. Raises UserError that names the
        first unreadable image.
        """
        total = Sums(self.recipe.stored_size)
        with closing(self._load(_Survey(self.dataset.splits[split], self.recipe.stored_size))) as chunks:
            for sums in chunks:
                total.merge(sums)
                progress(sums.count)
        return total

    def use(self, statistics):
        """Set the mean image and colour components that all batches are made with."""
        self.statistics = statistics
        self.augment = {device: Augment(self.recipe, statistics, device) for device in set(self.devices)}

    def train(self, step, epochs, colour_noise):
        """Training batches from after `step` steps to the end of the last epoch; every image once an epoch.

        colour_noise(epoch) -> the colour deviation of that epoch.
        """
        keys = _EpochKeys(self.recipe, len(self.dataset.splits["train"]), step, epochs)
        with closing(self._load(_TrainingCrops(self.dataset.splits["train"], self.recipe), keys)) as loaded:
            for epoch, crops, drawn, labels in loaded:
                images = self._on_each_tower(crops, drawn, colour_noise(epoch))
                yield Batch(epoch, images, labels.to(self.devices[0], non_blocking=True))

    def views(self, split, batch_size, which):
        """Each image of a split once, in order, under fixed views: yields (iterator of the views' `Batch.images`, labels).

        which: the (top, left, flip) of each view, as `centre_view` and `ten_views` give them. A view is made when it is asked for.
        """
        source = self.dataset.splits[split]
        keys = [np.arange(start, min(start + batch_size, len(source))) for start in range(0, len(source), batch_size)]
        with closing(self._load(_StoredPictures(source), keys)) as loaded:
            for pictures, labels in loaded:
                yield self._views_of(pictures.numpy(), which), labels.to(self.devices[0])

    def _views_of(self, pictures, which):
        for view in which:
            fixed = Draws(*(np.full(len(pictures), value) for value in view), np.zeros((len(pictures), 3)))
            yield self._on_each_tower(torch.from_numpy(crop_and_flip(pictures, fixed, self.recipe.crop_size)), fixed, 0.0)

    def _on_each_tower(self, crops, drawn, colour_noise):
        images = {device: self.augment[device](crops, drawn, colour_noise) for device in dict.fromkeys(self.devices)}
        return [images[device] for device in self.devices]

    def _load(self, source, keys=None):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores: the user's choice
            loader = DataLoader(source, batch_size=None, sampler=keys, num_workers=self.workers, pin_memory=self.pin,
                                multiprocessing_context="fork" if self.workers else None, worker_init_fn=_die_with_parent)
        items = None
        try:
            with _signals_held():  # from the fork on: a worker has no moment in which a signal could end it
                items = iter(loader)
            for item in items:
                if isinstance(item, UserError):  # from a worker, handed over whole: DataLoader would wrap it in its traceback
                    raise item
                yield item
        finally:
            if self.workers and items is not None:  # at once: workers don't hear the signal that would end them at exit
                _end(items)


class Augment:
    """uint8 crops -> what the network sees, on one device: minus mean, plus the colour shift (paper 2, 4.1)."""

    def __init__(self, recipe, statistics, device):
        self.recipe, self.device = recipe, device
        self.mean = torch.from_numpy(statistics.mean).to(device)
        scale = statistics.eigenvalues if recipe.colour_scale == "eigenvalue" else np.sqrt(statistics.eigenvalues)
        self.components = 255.0 * statistics.eigenvectors * scale  # (RGB, component): grey levels for a factor of 1

    def __call__(self, crops, drawn, colour_noise):
        """crops: (N, crop, crop, 3) uint8 on the host, already flipped; drawn: their `Draws`.

        Returns (N, 3, crop, crop) float32 on the device, in channels_last memory: grey levels minus the mean.
        """
        x = crops.to(self.device, non_blocking=True).float() - self._mean(drawn)
        if colour_noise:
            shift = torch.from_numpy((colour_noise * drawn.colour @ self.components.T).astype(np.float32))  # (N, 3)
            x = x + shift.to(self.device, non_blocking=True)[:, None, None, :]
            if self.recipe.colour_shrink:
                x = x / (1 + colour_noise)
        return x.permute(0, 3, 1, 2)

    def _mean(self, drawn):
        """The mean under each crop: (N, crop, crop, 3), or its centre window (1, crop, crop, 3) for all."""
        crop = self.recipe.crop_size
        if not self.recipe.mean_follows_crop:
            offset = (self.recipe.stored_size - crop) // 2
            return self.mean[None, offset:offset + crop, offset:offset + crop]
        top, left, flip = (torch.from_numpy(values)[:, None].to(self.device, non_blocking=True)
                           for values in (drawn.top, drawn.left, drawn.flip))
        side = torch.arange(crop, device=self.device)
        rows, columns = top + side, left + torch.where(flip, crop - 1 - side, side)
        return self.mean[rows[:, :, None], columns[:, None, :]]


def crop_and_flip(pictures, drawn, crop):
    """(N, stored, stored, 3) uint8 and N draws -> (N, crop, crop, 3) uint8."""
    crops = np.empty((len(pictures), crop, crop, 3), np.uint8)
    for target, picture, top, left, flip in zip(crops, pictures, drawn.top, drawn.left, drawn.flip, strict=True):
        window = picture[top:top + crop, left:left + crop]
        target[:] = window[:, ::-1] if flip else window
    return crops


def centre_view(recipe):
    """The (top, left, flip) of the central crop."""
    offset = (recipe.stored_size - recipe.crop_size) // 2
    return [(offset, offset, False)]


def ten_views(recipe):
    """The (top, left, flip) of the four corners and the centre, then of their mirror images (paper 4.1)."""
    end, (centre,) = recipe.stored_size - recipe.crop_size, centre_view(recipe)
    places = [(0, 0), (0, end), centre[:2], (end, 0), (end, end)]
    return [(top, left, flip) for flip in (False, True) for top, left in places]


class _EpochKeys:
    """The sampler of training: (epoch, positions, images) of every batch after `step`, epoch after epoch."""

    def __init__(self, recipe, count, step, epochs):
        self.recipe, self.count, self.step, self.epochs = recipe, count, step, epochs

    def __iter__(self):
        size = self.recipe.batch_size
        done, first = divmod(self.step, -(-self.count // size))
        for epoch in range(done + 1, self.epochs + 1):
            places = order(self.recipe, epoch, self.count)
            for start in range(first * size, self.count, size):
                images = places[start:start + size]
                yield epoch, np.arange(start, start + len(images)), images
            first = 0


class _TrainingCrops(torch.utils.data.Dataset):
    def __init__(self, split, recipe):
        self.split, self.recipe = split, recipe

    def __getitem__(self, key):
        epoch, positions, images = key
        drawn = draws(self.recipe, epoch, images, positions)
        try:
            pictures = [self.split.read(image) for image in images]
        except UserError as error:
            return error
        crops = crop_and_flip(pictures, drawn, self.recipe.crop_size)
        return epoch, torch.from_numpy(crops), drawn, torch.from_numpy(self.split.labels[images])


class _StoredPictures(torch.utils.data.Dataset):
    def __init__(self, split):
        self.split = split

    def __getitem__(self, images):
        try:
            pictures = np.stack([self.split.read(image) for image in images])
        except UserError as error:
            return error
        return torch.from_numpy(pictures), torch.from_numpy(self.split.labels[images])


class _Survey(torch.utils.data.Dataset):
    def __init__(self, split, size):
        self.split, self.size = split, size

    def __len__(self):
        return -(-len(self.split) // CHUNK)

    def __getitem__(self, chunk):
        sums = Sums(self.size)
        try:
            for image in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(self.split))):
                sums.add(self.split.read(image))
        except UserError as error:
            return error
        return sums


def _end(items):
    """End a loader's workers; one that hangs in a read (a network file system) is killed."""
    try:
        items._shutdown_workers()
    finally:
        for worker in items._workers:
            if worker.is_alive():
                worker.kill()
                worker.join()


@contextmanager
def _signals_held():
    """Ctrl-C, a closing terminal and a scheduler's SIGTERM reach every process of a run; the parent decides and ends the workers.

    Workers that are forked in this context inherit the blocked signals for good; the parent hears what came as soon as it is over.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _die_with_parent(_):
    """Should the parent die without a word, the kernel ends its workers (PR_SET_PDEATHSIG, prctl(2))."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
