"""All images of a data set, read once before a run begins: damage is named now, and the statistics are fitted."""

from collections.abc import Callable
from contextlib import closing

from ..recipes.recipe import Recipe
from ..system.errors import UserError
from ..system.memory import free_memory
from ..system.terminal import progress
from .dataset import DataSet, Split
from .pixel_statistics import Statistics, Sums
from .workers import load

CHUNK = 32  # images a worker reads at once when it only reads


def statistics_of(dataset: DataSet, recipe: Recipe, workers: int) -> Statistics:
    """Mean image and colour components of the training set: those that a prepared set brings, or fitted ones.

    Nothing is written before, so a damaged image of train or val leaves nothing behind. Raises UserError that names it.
    """
    return prepared_statistics(dataset, workers) or fit_statistics(dataset, recipe, workers)


def prepared_statistics(dataset: DataSet, workers: int) -> Statistics | None:
    """What a prepared set brings, or None for other data.

    A set that half of the free memory holds is read through first, so that no damage shows up in the middle of an
    epoch; in a larger one an image is checked when it is read for the first time.
    """
    splits = [(name, dataset.splits[name]) for name in ("train", "val")]
    if dataset.statistics and sum(split.bytes for _, split in splits) <= free_memory() // 2:
        for name, split in splits:
            with progress(f"checking {name}", len(split)) as advance:
                read_through(split, workers, advance)
    return dataset.statistics


def fit_statistics(dataset: DataSet, recipe: Recipe, workers: int) -> Statistics:
    """Fitted on train. Every image of val is read as well: a damaged one is named before anything is written."""
    sums = {}
    for split in ("train", "val"):
        with progress(f"reading {split}", len(dataset.splits[split])) as advance:
            sums[split] = survey(dataset.splits[split], recipe.stored_size, workers, advance)
    return sums["train"].statistics()


def survey(split: Split, size: int, workers: int, progress: Callable[[int], None]) -> Sums:
    """Read every image of a split once: finds unreadable ones, and fills a `CachedSplit`.

    progress(n) is called for every n images read. Returns the exact `Sums` over the split. Raises UserError that names
    the first unreadable image.
    """
    total = Sums(size)
    with closing(load(_Survey(split, size), None, workers)) as chunks:
        for sums in chunks:
            total.merge(sums)
            progress(sums.count)
    return total


def read_through(split: Split, workers: int, progress: Callable[[int], None]) -> None:
    """Compare every image of a prepared split with its crc32, which brings it into the page cache too.

    Raises UserError.
    """
    with closing(load(_Check(split), None, workers)) as chunks:
        for count in chunks:
            progress(count)


class _Check:
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


class _Survey:
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
