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


def survey(split: Split, size: int, workers: int, advance: Callable[[int], None]) -> Sums:
    """Read every image of a split once: finds unreadable ones, and fills a `CachedSplit`.

    advance(n) is called for every n images read. Returns the exact `Sums` over the split. Raises UserError that names
    the first unreadable image.
    """

    def sums_of(images):
        sums = Sums(size)
        for image in images:
            sums.add(split.read(image))
        return sums

    total = Sums(size)
    with closing(load(_Chunks(len(split), sums_of), None, workers)) as chunks:
        for sums in chunks:
            total.merge(sums)
            advance(sums.count)
    return total


def read_through(split: Split, workers: int, advance: Callable[[int], None]) -> None:
    """Compare every image of a prepared split with its crc32, which brings it into the page cache too.

    Raises UserError.
    """

    def check(images):
        for image in images:
            split.check(image)
        return len(images)

    with closing(load(_Chunks(len(split), check), None, workers)) as chunks:
        for count in chunks:
            advance(count)


class _Chunks:
    """What read(images) makes of each `CHUNK` of so many images, or the UserError that it raises."""

    def __init__(self, count, read):
        self.count, self.read = count, read

    def __len__(self):
        return -(-self.count // CHUNK)

    def __getitem__(self, chunk):
        try:
            return self.read(range(chunk * CHUNK, min((chunk + 1) * CHUNK, self.count)))
        except UserError as error:
            return error
