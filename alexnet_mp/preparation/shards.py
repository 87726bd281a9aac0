"""The shards of a set that is being made: which image goes where, what is done, and one shard's work from images to a
tar file."""

import io
import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from ..data.pixel_statistics import Sums
from ..data.prepared_format import (
    BLOCK,
    IMAGES_PER_SHARD,
    RECORD,
    WORK,
    Columns,
    Shard,
    Skipped,
    SplitIndex,
    columns_file,
    keys,
    member_header,
    padding,
    ppm_header,
    shard_file,
)
from ..data.resize import decoded
from ..kernels.philox import PLACE_STREAM, philox
from ..system import durable_files
from ..system.errors import MachineError, UserError
from . import sources
from .items import Item


@dataclass(frozen=True)
class Task:
    """A shard to be made: what a worker process needs to know."""

    dest: Path
    split: str
    number: int
    images: list = field(repr=False)  # (number in the source's list, item) in the shard's order
    size: int
    quality: int | None  # None = raw pixels
    skip: bool  # leave unreadable images out
    warp: bool = False  # squeeze the images, see `stored_picture`

    @property
    def file(self) -> str:
        return shard_file(self.split, self.number)

    def __str__(self):
        return str(self.dest / self.file)


class Stored(Protocol):
    """What a `build.Plan` says of the stored pictures."""

    size: int  # pixels a side
    quality: int | None  # of the JPEGs, None = raw pixels
    warp: bool  # whether images are squeezed, see `stored_picture`


class Shards:
    """The shards of one split: which images are in which, which are done, and what is known of those."""

    def __init__(self, dest: Path, split: str, items: Sequence[Item], plan: Stored, skip: bool):
        self.dest, self.split, self.items, self.plan, self.skip = dest, split, items, plan, skip
        # Shuffled once, by a key that no run has: the place of an image depends on the length of the list alone.
        high, low, _, _ = philox((torch.arange(len(items)), 0, 0, 0), (0, PLACE_STREAM))
        order = np.lexsort((low.numpy(), high.numpy()))
        self.numbers = [order[start : start + IMAGES_PER_SHARD] for start in range(0, len(items), IMAGES_PER_SHARD)]
        self.count = len(self.numbers)

    def task(self, number: int) -> Task:
        images = [(int(image), self.items[image]) for image in self.numbers[number]]
        plan = self.plan
        return Task(self.dest, self.split, number, images, plan.size, plan.quality, self.skip, plan.warp)

    def done(self, number: int) -> bool:
        """Whether a shard is there with its part, its images' files have the sizes and times that they had, and nothing
        is left out of it that could be in it now."""
        try:
            with safe_open(part_path(self.dest, self.split, number), "np") as part:
                entry, images = json.loads(part.metadata()["shard"]), part.get_tensor("number")
                stamps = part.get_tensor("stamps")  # KeyError: a former version's, which knew names alone
            gaps = [image["number"] for image in entry["skipped"]]
            if (self.dest / shard_file(self.split, number)).stat().st_size != entry["bytes"]:
                return False
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return False
        if not np.array_equal(np.sort(np.append(images, gaps)), np.sort(self.numbers[number])):
            return False
        if not np.array_equal(stamps, _stamps(self.items[image] for image in self.numbers[number])):
            return False
        return not gaps or self.skip and not any(_readable(self.items[image], self.plan.size) for image in gaps)

    def collect(self, sums: Sums | None) -> tuple[SplitIndex, Columns, np.ndarray]:
        """(`SplitIndex` without the columns' sha256, `Columns`, stamps (N, 2) int64 of the source's images) of all
        shards; adds their pictures to `sums`, where it is given."""
        count, shards, skipped = len(self.items), [], []
        stamps = np.zeros((count, 2), np.int64)
        columns = {name: np.zeros(count, np.int64) for name in ("shard", "offset", "length", "crc32")}
        for number in range(self.count):
            path = part_path(self.dest, self.split, number)
            with safe_open(path, "np") as part:
                entry = json.loads(part.metadata()["shard"])
            part = load_file(path)
            images = part["number"]
            shards.append(Shard(shard_file(self.split, number), len(images), entry["bytes"], entry["sha256"]))
            skipped += [Skipped(**image) for image in entry["skipped"]]
            columns["shard"][images] = number
            stamps[self.numbers[number]] = part["stamps"]
            for name in ("offset", "length", "crc32"):
                columns[name][images] = part[name]
            if sums is not None:
                sums.count += len(images)
                sums.pixels += part["pixels"]
                sums.products += part["products"]
        split = SplitIndex(
            count - len(skipped),
            columns_file(self.split),
            "",
            tuple(shards),
            tuple(sorted(skipped, key=lambda image: image.number)),
        )
        kept_images = keys(split)
        names = [self.items[number].name.encode(errors="surrogateescape") for number in kept_images]
        columns = {name: values[kept_images] for name, values in columns.items()}
        return (
            split,
            Columns(
                columns.pop("shard").astype(np.int32),
                **columns,
                label=np.array([self.items[number].label for number in kept_images], np.int64),
                names=np.frombuffer(b"".join(names), np.uint8),
                name_ends=np.cumsum([len(name) for name in names], dtype=np.int64),
            ),
            stamps,
        )


def part_path(dest: Path, split: str, number: int) -> Path:
    """The file that keeps what `make_shard` knows of a shard until the set is finished."""
    return dest / WORK / f"{split}-{number:05d}.safetensors"


def make_shard(task: Task, tick: Callable[[], None]) -> None:
    """Write a shard, then its part; each is there whole or not at all. tick() is called for every image.

    Raises UserError for an unreadable image, unless they are left out, and where a file can't be written.
    """
    stamps = _stamps(item for _, item in task.images)  # before they are read: one replaced meanwhile is noticed later
    sums, columns, skipped = Sums(task.size), {name: [] for name in ("number", "offset", "length", "crc32")}, []
    kind = "ppm" if task.quality is None else "jpg"
    part_file = part_path(task.dest, task.split, task.number)
    if part_file.exists():  # of an earlier shard with fewer images: it must not be taken for this one's
        part_file.unlink()
        durable_files.sync(part_file.parent)

    def content():
        """The tar file, an image at a time."""
        place = 0
        for number, item in task.images:
            try:
                picture = sources.picture(item, task.size, task.warp)
            except MachineError:
                raise
            except UserError as error:
                if not task.skip:
                    split = f" (in {task.split})" if item.length >= 0 else ""  # else the path says it
                    raise UserError(
                        f"{error}{split}; mend it and run the same command again, or leave such images out with "
                        "--bad-images skip"
                    ) from None
                skipped.append({"number": number, "name": for_json(item.name), "reason": _reason(error, item)})
                tick()
                continue
            image = encoded(picture, task.quality)
            if task.split == "train":
                sums.add(picture if task.quality is None else decoded(io.BytesIO(image), task.size, item.name))
            row = {"number": number, "offset": place + BLOCK, "length": len(image), "crc32": zlib.crc32(image)}
            for name, value in row.items():
                columns[name].append(value)
            label = b"%d" % item.label
            part = b"".join(
                (
                    member_header(number, kind, len(image)),
                    image,
                    padding(len(image)),
                    member_header(number, "cls", len(label)),
                    label,
                    padding(len(label)),
                )
            )
            place += len(part)
            yield part
            tick()
        yield bytes(2 * BLOCK + -(place + 2 * BLOCK) % RECORD)

    length, digest = written(task.dest / task.file, content())
    arrays = {name: np.array(values, np.int64) for name, values in columns.items()} | {"stamps": stamps}
    if task.split == "train":
        arrays |= {"pixels": sums.pixels.astype(np.uint32), "products": sums.products}  # at most 1,024 times 255
    entry = {"bytes": length, "sha256": digest, "skipped": skipped}
    try:
        written(part_file, save(arrays, {"shard": json.dumps(entry)}))
    except BaseException:
        (task.dest / task.file).unlink()
        raise


def encoded(picture: np.ndarray, quality: int | None) -> bytes:
    """(size, size, 3) uint8 -> a file: a baseline JPEG, chroma at half the resolution; a PPM where quality is None."""
    if quality is None:
        return ppm_header(len(picture)) + picture.tobytes()
    content = io.BytesIO()
    Image.fromarray(picture).save(
        content, "JPEG", quality=quality, subsampling="4:2:0", progressive=False, optimize=False
    )
    return content.getvalue()


def written(path: Path, content: bytes | Iterable[bytes]) -> tuple[int, str]:
    """`durable_files.replace`. Raises UserError if the file can't be written, and leaves nothing of it then."""
    try:
        return durable_files.replace(path, content)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; nothing of it counts as done; when that is mended, "
            "the same command goes on"
        ) from None


def _stamps(items):
    """(images, 2) int64: bytes and times of their files, see `sources.stamp`."""
    return np.array([sources.stamp(item) for item in items], np.int64).reshape(-1, 2)


def _readable(item, size):
    try:
        sources.picture(item, size)
    except UserError:
        return False
    return True


def _reason(error, item):
    """Why an image can't be read, without the place where it lies: the index has no paths."""
    reason = str(error).removeprefix(f"cannot read image {sources.where(item)}: ")
    return for_json(reason.replace(item.path, "..."))


def for_json(name: str) -> str:
    """A name that JSON can hold: a file's name may be no UTF-8."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")
