"""`prepare --check`: is a prepared set, down to the last byte, what `prepare` wrote?"""

import hashlib
import io
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.pixel_statistics import STATISTICS, Sums
from ..data.prepared import Names, content_problem
from ..data.prepared_format import (
    BLOCK,
    INDEX,
    RECORD,
    SOURCE,
    Columns,
    Index,
    Shard,
    check_shard,
    columns_file,
    keys,
    member_header,
    padding,
    read_columns,
    read_index,
    read_source_file,
    read_statistics,
)
from ..system.errors import UserError
from ..system.terminal import progress, say
from .process_pool import in_processes

MOST_LINES = 20
PIECE = 1 << 24  # bytes hashed at a time


@dataclass(frozen=True)
class ShardTask:
    """A shard to be checked: what a worker process needs to know."""

    directory: Path
    index: Index
    split: str
    number: int
    # of the whole split; None = they are damaged: only the file's size and sha256 can be checked
    columns: Columns | None

    @property
    def shard(self) -> Shard:
        return self.index.splits[self.split].shards[self.number]

    def __str__(self):
        return str(self.directory / self.shard.file)


def check(directory: str | Path, workers: int) -> int:
    """Verify every file, checksum and image of a finished set, and say what is wrong. Returns the exit status: 0, or
    2."""
    index, directory, problems, columns = read_index(directory), Path(directory), [], {}
    for split in index.splits:
        try:
            columns[split] = read_columns(directory, index, split)
        except UserError as error:
            problems.append(str(error))
            columns[split] = None
    try:
        statistics = read_statistics(directory, index)
    except UserError as error:
        problems.append(str(error))
        statistics = None
    try:
        read_source_file(directory)
    except UserError as error:
        problems.append(str(error))
    own_names = {INDEX, STATISTICS, SOURCE}
    for split in index.splits.values():
        own_names |= {split.index, *(shard.file for shard in split.shards)}
    problems += [
        f"{directory / name} does not belong to the set" for name in sorted(set(os.listdir(directory)) - own_names)
    ]

    tasks = [
        ShardTask(directory, index, split, number, columns[split])
        for split in index.splits
        for number in range(len(index.splits[split].shards))
    ]
    sums, shard_problems = Sums(index.stored_size), {}
    images = sum(split.images for split in index.splits.values())
    places = {str(task): place for place, task in enumerate(tasks)}
    with (
        progress("checking", images) as advance,
        closing(in_processes(check_shard_of, tasks, workers, advance)) as answers,
    ):
        for task, (lines, shard_sums) in answers:
            shard_problems[places[str(task)]] = lines
            if task.split == "train":
                sums.merge(shard_sums)
    for place in sorted(shard_problems):
        problems += shard_problems[place]
    if statistics and sums.count == index.splits["train"].images and not _agree(statistics, sums.statistics()):
        problems.append(f"{directory / STATISTICS}: mean and components are not those of the pictures")

    for problem in problems[:MOST_LINES]:
        say(" ".join(problem.splitlines()))
    if len(problems) > MOST_LINES:
        say(f"and {len(problems) - MOST_LINES:,} more")
    if problems:
        say(f"{directory} is damaged; prepare it anew, into another directory")
        return 2
    say(f"all well: {index.describe(directory, index.splits)}")
    return 0


def check_shard_of(task: ShardTask, tick: Callable[[], None]) -> tuple[list[str], Sums]:
    """(what is wrong, in lines; the `Sums` of the pictures that could be read) of a shard. tick() is called for every
    image."""
    sums, problems = Sums(task.index.stored_size), []
    try:
        # Read, not mapped: a bad disk is then an error like others, not the end of the process.
        with open(check_shard(task.directory, task.shard), "rb") as file:
            _check_content(task, file, sums, problems, tick)
    except UserError as error:
        problems.append(str(error))
    except OSError as error:
        problems.append(f"cannot read {task}: {error.strerror}")
    return problems, sums


def _check_content(task, file, sums, problems, tick):
    digest = hashlib.sha256()
    while piece := file.read(PIECE):
        digest.update(piece)
    if digest.hexdigest() != task.shard.sha256:
        problems.append(f"{task} is damaged: its sha256 is not the one in {INDEX}")
    if task.columns is None:
        return

    def read(start, end):
        file.seek(start)
        return file.read(max(end - start, 0))

    columns, names, end = task.columns, Names(task.columns), 0
    images = np.flatnonzero(columns.shard == task.number)
    numbers = keys(task.index.splits[task.split])
    for image in images[np.argsort(columns.offset[images], kind="stable")]:
        offset, length, label = (int(column[image]) for column in (columns.offset, columns.length, columns.label))
        picture, problem = _picture(
            np.frombuffer(read(offset, offset + length), np.uint8), int(columns.crc32[image]), task.index
        )
        if problem:
            problems.append(f"{task}: image {names[image]}: {problem}")
        elif task.split == "train":
            sums.add(picture)
        before, after = _around(int(numbers[image]), task.index.encoding, length, label)
        place, end = end, offset + length + len(after)
        if offset != place + len(before) or read(place, offset) != before or read(offset + length, end) != after:
            problems.append(
                f"{task}: image {names[image]}: its tar header, place or label is not {columns_file(task.split)}'s"
            )
        tick()
    tail_size = task.shard.bytes - end
    if not 2 * BLOCK <= tail_size < 2 * BLOCK + RECORD or task.shard.bytes % RECORD or any(read(end, task.shard.bytes)):
        problems.append(f"{task}: what follows the last image is not the end of a tar file")


def _around(number, encoding, length, label):
    """The bytes of a shard before and after an image's file."""
    text = b"%d" % label
    return (
        member_header(number, "jpg" if encoding == "jpeg" else "ppm", length),
        padding(length) + member_header(number, "cls", len(text)) + text + padding(len(text)),
    )


def _picture(content, crc32, index):
    """(picture, None) of an image's file, or (None, what is wrong with it)."""
    size = index.stored_size
    problem = content_problem(content, crc32, index.encoding, size)
    if problem:
        return None, problem
    if index.encoding == "raw":
        return content[-3 * size**2 :].reshape(size, size, 3), None
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            return np.asarray(image.convert("RGB")), None
    except Exception as error:  # Pillow raises a dozen types on damaged files
        return None, f"it can't be decoded: {error}"


def _agree(one, other):
    """Whether mean and covariance are equal within 1e-9: grey levels, and 0..1 units squared."""

    def covariance(statistics):  # components of equal variance may be turned against each other
        return statistics.eigenvectors * statistics.eigenvalues @ statistics.eigenvectors.T

    return all(
        np.abs(a - b).max() <= 1e-9
        for a, b in (
            (one.mean, other.mean),
            (covariance(one), covariance(other)),
            (one.eigenvectors.T @ one.eigenvectors, np.eye(3)),
        )
    )
