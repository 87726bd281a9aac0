"""What all input pipelines share: what a batch is, which images make it, the views of the test, and processes that read."""
import ctypes
import multiprocessing
import os
import signal
import sys
import warnings
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader

from .draws import order
from .errors import UserError
from .statistics import Sums

CHUNK = 32  # images a worker reads at once when it only reads


@dataclass(frozen=True)
class Batch:
    epoch: int  # the first is 1
    images: list  # for each tower: (N, 3, crop, crop) on its device
    labels: torch.Tensor  # (N,) int64 on the first tower's device


class EpochKeys:
    """The batches of training after `step` steps, epoch after epoch: yields (epoch, positions, images), each (N,) int64.

    count: training images. positions: places in the epoch's order; images: which ones they are.
    """

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


def in_order(count, batch_size):
    """The batches of a test: (N,) int64 image numbers, each image once."""
    return [np.arange(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]


def centre_view(recipe):
    """The (top, left, flip) of the central crop."""
    offset = (recipe.stored_size - recipe.crop_size) // 2
    return [(offset, offset, False)]


def ten_views(recipe):
    """The (top, left, flip) of the four corners and the centre, then of their mirror images (paper 4.1)."""
    end, (centre,) = recipe.stored_size - recipe.crop_size, centre_view(recipe)
    places = [(0, 0), (0, end), centre[:2], (end, 0), (end, end)]
    return [(top, left, flip) for flip in (False, True) for top, left in places]


def survey(split, size, workers, progress):
    """Read every image of a split once: finds unreadable ones before anything else starts, and fills a `CachedSplit`.

    progress(n) is called for every n images read. Returns the exact `Sums` over the split. Raises UserError that names the first
    unreadable image.
    """
    total = Sums(size)
    with closing(load(_Survey(split, size), None, workers)) as chunks:
        for sums in chunks:
            total.merge(sums)
            progress(sums.count)
    return total


def read_through(split, workers, progress):
    """Compare every image of a prepared split with its crc32, which brings it into the page cache too. Raises UserError."""
    with closing(load(_Check(split), None, workers)) as chunks:
        for count in chunks:
            progress(count)


class _Check(torch.utils.data.Dataset):
    def __init__(self, split):
        self.split = split

    def __len__(self):
        return -(-len(self.split) // CHUNK)

    def __getitem__(self, chunk):
        images = range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(self.split)))
        try:
            for image in images:
                self.split.check(image)
        except UserError as error:
            return error
        return len(images)


class StoredPictures(torch.utils.data.Dataset):
    """[images] -> their stored pictures, (N, stored, stored, 3) uint8, and labels, (N,) int64."""

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


def load(source, keys, workers, pin=False):
    """source[key] for every key (None: 0, 1, ...), in order, computed by `workers` forked processes, 0 = by this one.

    A UserError that the source returns is raised here. pin: tensors come in page-locked memory. Close it to end the workers.
    """
    items = None
    try:
        with warnings.catch_warnings(), signals_held():  # from the fork on: a worker has no moment in which a signal could end it
            warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores: the user's choice
            items = iter(DataLoader(source, batch_size=None, sampler=keys, num_workers=workers, pin_memory=pin,
                                    multiprocessing_context="fork" if workers else None, worker_init_fn=_begin_worker))
        for item in items:
            if isinstance(item, UserError):  # from a worker, handed over whole: DataLoader would wrap it in its traceback
                raise item
            yield item
    finally:
        if workers and items is not None:  # at once: workers don't hear the signal that would end them at exit
            _end(items)


def _begin_worker(_):
    die_with_parent()
    # The thread that hands file descriptors to the parent reports a parent that hangs up, as one that is stopped does.
    sys.excepthook = lambda *_: None


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
def signals_held():
    """Ctrl-C, a closing terminal and a scheduler's SIGTERM reach every process of a run; the parent decides and ends the workers.

    Workers that are forked in this context inherit the blocked signals for good; the parent hears what came as soon as it is over.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def die_with_parent():
    """In a worker: should the parent die without a word, the kernel ends it too (PR_SET_PDEATHSIG, prctl(2))."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:  # it died before that
        os._exit(1)
