"""Picture files that somebody names on a command line: read as training reads its own, and seen by a network."""

import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch

from ..recipes.recipe import Recipe
from ..system.errors import UserError, complain
from ..system.terminal import printable
from .class_folders import HIDDEN, NO_PICTURE, UNOPENED, DiskFolder, PassedOver, is_hidden
from .pipeline_torch import TorchPipeline
from .pixel_statistics import Statistics
from .remarks import count_remarks
from .resize import decoded

AT_ONCE = 64  # pictures in memory
LINKED = "a link to a folder", ""
STDIN = "-"
MOST_BYTES = 1 << 30  # of standard input
Answer = TypeVar("Answer")


class Given:
    """Of a data set what `TorchPipeline.views` asks for, `splits` with "given" alone: pictures (N, stored_size,
    stored_size, 3) uint8 in memory.

    It has no classes, statistics or fingerprint, its labels are all -1, and its images have no names."""

    def __init__(self, pictures: np.ndarray):
        self.splits = {"given": _GivenSplit(pictures)}


class _GivenSplit:
    storage = "pixels"

    def __init__(self, pictures):
        self.pictures, self.labels = pictures, np.full(len(pictures), -1)

    def __len__(self):
        return len(self.pictures)

    def read(self, index):
        return self.pictures[index]


def map_pictures(
    paths: Iterable[str], size: int, answer: Callable[[list[np.ndarray]], Iterable[Answer]]
) -> Iterator[tuple[str, np.ndarray | UserError, Answer | None]]:
    """Yields (path, stored picture (size, size, 3) uint8, its answer) of each file, in order.

    answer(pictures): one answer a picture, of `AT_ONCE` at most. A file that can't be read is a line on standard error,
    and yields (path, the UserError that says why, None). "-" is standard input; a folder stands for the pictures in it
    and below, see `pictures_below`. Any of `image_formats`; `stored_picture` decides about modes, transparency and
    orientation."""
    paths = [file for path in paths for file in (pictures_below(path) if os.path.isdir(path) else [path])]
    for start in range(0, len(paths), AT_ONCE):
        batch = [(path, _read(path, size)) for path in paths[start : start + AT_ONCE]]
        pictures = [picture for _, picture in batch if not isinstance(picture, UserError)]
        answers = iter(answer(pictures)) if pictures else iter(())
        for path, picture in batch:
            if isinstance(picture, UserError):
                complain(picture)
                yield path, picture, None
            else:
                yield path, picture, next(answers)
    count_remarks()


def pictures_below(folder: str) -> list[str]:
    """The paths of the pictures in a folder and below, in the order of their names; the folder itself where there is
    none, or where it can't be read.

    What is passed over, hidden files and folders, files that are no pictures and links to folders, is counted and named
    on standard error, a line a reason; a file that is named like a picture counts as one."""
    pictures, omissions, places = [], PassedOver(), [DiskFolder(folder)]
    try:
        while places:
            place = places.pop()
            for name in sorted([*place.files, *place.folders, *place.hidden]):
                relative_path = os.path.relpath(os.path.join(place.path, name), folder)
                if is_hidden(name):
                    omissions.add(HIDDEN, relative_path)
                elif name in place.files:
                    _look(place, name, relative_path, pictures, omissions)
                elif os.path.islink(place.folders[name].path):
                    omissions.add(LINKED, relative_path)
            places += [inner for inner in reversed(place.folders.values()) if not os.path.islink(inner.path)]
    except UserError as error:
        complain(printable(str(error)))
        return [folder]
    for line in omissions.lines():
        print(f"{printable(folder)}: {line}", file=sys.stderr)
    return pictures or [folder]


def _look(place, name, relative_path, pictures, omissions):
    """Add a file of a folder to the pictures or to what is passed over."""
    path = place.files[name]
    try:
        if place.is_picture(name):
            pictures.append(path)
        else:
            omissions.add(NO_PICTURE, relative_path)
    except UserError as error:
        if os.path.isfile(path):  # the reason is said where it is read
            pictures.append(path)
        else:
            omissions.add(UNOPENED, f"{relative_path}: {str(error).rsplit(': ', 1)[-1]}")


def _read(path, size):
    try:
        if path != STDIN:
            if os.path.isdir(path):
                raise UserError(f"cannot read image {path}: a folder without pictures")
            # a pipe would be waited for
            if os.path.exists(path) and not os.path.isfile(path):
                raise UserError(f"cannot read image {path}: it is not a regular file")
            return decoded(path, size, path)
        content = sys.stdin.buffer.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise UserError(f"cannot read image -: more than {MOST_BYTES:,} bytes")
        return decoded(io.BytesIO(content), size, STDIN)
    except UserError as error:
        return UserError(printable(str(error)))


def pipeline_of(
    pictures: Sequence[np.ndarray], recipe: Recipe, devices: Sequence[torch.device], statistics: Statistics
) -> TorchPipeline:
    """The pipeline whose split "given" is a list of stored pictures, at least one. devices: of the network's towers."""
    pipeline = TorchPipeline(Given(np.stack(pictures)), recipe, devices, workers=0)
    pipeline.use(statistics)
    return pipeline
