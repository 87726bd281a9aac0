"""The files of a prepared set: what `prepare.py` writes, and what must hold before anybody believes them.

    index.json              settings, classes, shards with their sha256, images left out; written last
    train.safetensors       a row an image: place, label, crc32 and name of its file (`Columns`); one such file a split
    statistics.safetensors  mean image and RGB components of the training pictures, as training reads them
    source.safetensors      size and time of each image in the source, by which `prepare` notices one that was replaced
    train-00000.tar         1,024 images (as 2012's batch files), each as KEY.jpg or KEY.ppm, then KEY.cls with its
                            label: the naming of WebDataset. KEY is the image's number in the source's list

Images are numbered as in the source: class by class, names sorted. Where an image lies in the shards is shuffled once,
so that readers that stream see mixed classes. There are no paths in it, and dates in `source.safetensors` alone: the
same source gives the same bytes in all other files."""

import hashlib
import json
import os
import stat
import tarfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ..system.errors import UserError
from .pixel_statistics import STATISTICS, Statistics

FORMAT, VERSION = "alexnet_mp prepared set", 1
INDEX, WORK, PLAN = "index.json", "work", "plan.json"
SOURCE = "source.safetensors"  # sizes and times of the source's images: for `prepare` alone, no reader needs it
IMAGES_PER_SHARD = 1024
MOST_PIXELS = 4096  # a side of the stored pictures: one takes 50 MB then
BLOCK, RECORD = 512, 10240  # bytes: a tar's files start at multiples of the one, its end is a multiple of the other
UNLABELLED = -1  # the label of test images whose classes were never published: all of them, in a set that has them
_STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True)
class Shard:
    __pydantic_config__ = _STRICT

    file: str
    images: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Skipped:
    """An image of the source that could not be read and was left out."""

    __pydantic_config__ = _STRICT

    number: int  # in the source's list, so its KEY
    name: str
    reason: str


@dataclass(frozen=True)
class SplitIndex:
    __pydantic_config__ = _STRICT

    images: int
    index: str  # the file of its columns
    index_sha256: str
    shards: tuple[Shard, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class Index:
    """The content of `index.json`."""

    __pydantic_config__ = _STRICT

    format: Literal["alexnet_mp prepared set"]
    version: Literal[1]
    stored_size: int  # pixels a side
    encoding: Literal["jpeg", "raw"]
    jpeg_quality: int | None
    source: str  # what it was made from, in one line
    plan: str  # digest of the settings and of the source's list of images
    classes: tuple[str, ...]  # in the order of their labels
    class_names: tuple[str, ...]  # the same in words
    splits: dict[Literal["train", "val", "test"], SplitIndex]
    statistics_sha256: str
    sha256: str = ""  # of this file with this field empty
    ids: tuple[int, ...] | None = None  # the classes' numbers in the competition (ILSVRC2012_ID); None: none are known
    squeezed: bool = False  # whether images were squeezed into the square (`prepare --warp`)

    def to_bytes(self) -> bytes:
        """The file, with its own digest filled in."""
        digest = hashlib.sha256(_as_json(replace(self, sha256=""))).hexdigest()
        return _as_json(replace(self, sha256=digest))

    def fingerprint(self) -> str:
        """A digest of what training sees: not from where a set was made, and by which list."""
        return hashlib.sha256(_as_json(replace(self, source="", plan="", sha256="", ids=None))).hexdigest()

    def describe(self, directory: str | Path, splits: Iterable[str]) -> str:
        encoding = f"JPEG of quality {self.jpeg_quality}" if self.encoding == "jpeg" else "raw pixels"
        counts = ", ".join(f"{self.splits[split].images:,} {split}" for split in splits)
        return (
            f"prepared set {directory}: {counts} images of {len(self.classes)} classes, {encoding}, "
            f"{self.stored_size}x{self.stored_size}{', squeezed' if self.squeezed else ''}"
        )


@dataclass(frozen=True)
class Columns:
    """Of the N images of a split, in the source's order."""

    shard: np.ndarray  # (N,) int32
    offset: np.ndarray  # (N,) int64, bytes from the shard's start to the image's file
    length: np.ndarray  # (N,) int64, bytes of that file
    label: np.ndarray  # (N,) int64
    crc32: np.ndarray  # (N,) int64, of that file
    names: np.ndarray  # uint8, UTF-8: all names in the source, one after the other
    name_ends: np.ndarray  # (N,) int64, bytes


def is_prepared(path: str | Path) -> bool:
    """Whether a directory is a prepared set, finished or not; a folder of images may hold an index.json too."""
    path = Path(path)
    return (path / INDEX).is_file() and not (path / "train").is_dir() or (path / WORK / PLAN).is_file()


def shard_file(split: str, number: int) -> str:
    return f"{split}-{number:05d}.tar"


def columns_file(split: str) -> str:
    return f"{split}.safetensors"


def member_header(number: int, kind: Literal["jpg", "ppm", "cls"], length: int) -> bytes:
    """The 512 bytes before a file of `length` bytes in a shard. kind: "jpg", "ppm" or "cls"."""
    member = tarfile.TarInfo(f"{number:08d}.{kind}")
    member.size = length
    return member.tobuf(tarfile.USTAR_FORMAT)


def padding(length: int) -> bytes:
    """The zero bytes after a file of `length` bytes in a shard."""
    return bytes(-length % BLOCK)


def ppm_header(size: int) -> bytes:
    return b"P6\n%d %d\n255\n" % (size, size)


def keys(split: SplitIndex) -> np.ndarray:
    """The numbers in the source's list of a `SplitIndex`'s images: (N,) int64."""
    return np.setdiff1d(np.arange(split.images + len(split.skipped)), [image.number for image in split.skipped])


def read_index(directory: str | Path) -> Index:
    """The `Index` of a finished set. Raises UserError where there is none, or where it is damaged or contradicts
    itself."""
    path = Path(directory) / INDEX
    if not path.exists() and is_prepared(directory):
        raise UserError(f"{directory}: the prepared set is not finished; run prepare again with the same arguments")
    content = read_bytes(path)
    try:
        fields = json.loads(content)
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            raise UserError(f"{path} is not the index of a prepared set")
        if fields.get("version") != VERSION:
            raise UserError(
                f"{path} is of version {fields.get('version')!r:.20}, this program reads {VERSION}; prepare it anew"
            )
        index = _ADAPTER.validate_json(content)
    except UserError:
        raise
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise UserError(f"{path} is damaged: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None
    except (ValueError, RecursionError) as error:  # ValueError: neither JSON nor UTF-8
        raise UserError(f"{path} is damaged: {error}") from None
    if index.to_bytes() != content:
        raise UserError(f"{path} is damaged: it is not what prepare wrote")
    _check_index(index, path)
    return index


def _needs(path):
    """need(condition, what): raises UserError, by which the file is damaged, unless the condition is true."""

    def need(condition, what):
        if not condition:
            raise UserError(f"{path} is damaged: {what}")

    return need


def _check_index(index, path):
    need = _needs(path)
    need(1 <= index.stored_size <= MOST_PIXELS, f"stored_size is {index.stored_size}")
    need(
        index.jpeg_quality is None if index.encoding == "raw" else 1 <= (index.jpeg_quality or 0) <= 100,
        f"jpeg_quality is {index.jpeg_quality}",
    )
    need(len(index.classes) == len(index.class_names) == len(set(index.classes)) > 0, "its classes")
    need(
        index.ids is None or len(index.ids) == len(set(index.ids)) == len(index.classes) and min(index.ids) > 0,
        "its ids",
    )
    need("train" in index.splits, "it has no train split")
    for name, split in index.splits.items():
        need(split.index == columns_file(name), f"splits.{name}.index is {split.index!r}")
        for number, shard in enumerate(split.shards):  # the only names there are: nothing outside the set can be meant
            need(shard.file == shard_file(name, number), f"shard {number} of {name} is {shard.file!r}")
            need(0 <= shard.images <= IMAGES_PER_SHARD and 0 < shard.bytes < 2**63, f"the sizes of {shard.file}")
        numbers = [image.number for image in split.skipped]
        need(
            split.images > 0 and sum(shard.images for shard in split.shards) == split.images,
            f"the number of {name} images",
        )
        need(
            numbers == sorted(set(numbers)) and all(0 <= number < split.images + len(numbers) for number in numbers),
            f"the images left out of {name}",
        )


def read_columns(directory: str | Path, index: Index, name: str) -> Columns:
    """The `Columns` of a split, all values in range. Raises UserError where they are damaged."""
    split, path = index.splits[name], Path(directory) / columns_file(name)
    need, content = _needs(path), read_bytes(path)
    need(hashlib.sha256(content).hexdigest() == split.index_sha256, f"its sha256 is not the one in {INDEX}")
    try:
        columns = Columns(**load(content))
    except (SafetensorError, TypeError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    for field, values in asdict(columns).items():
        kind = {"shard": np.int32, "names": np.uint8}.get(field, np.int64)
        need(values.dtype == kind and values.ndim == 1, f"the type of {field}")
        need(field == "names" or len(values) == split.images, f"it has {len(values)} values of {field}")
    need((columns.shard >= 0).all() and (columns.shard < len(split.shards)).all(), "a shard that there is not")
    counts = np.bincount(columns.shard, minlength=len(split.shards))
    need((counts == [shard.images for shard in split.shards]).all(), "the number of images in a shard")
    # no sum: it could overflow
    room = np.array([shard.bytes for shard in split.shards])[columns.shard] - columns.offset
    need(
        (columns.offset >= BLOCK).all() and (columns.length > 0).all() and (columns.length <= room).all(),
        "a place outside its shard",
    )
    pixels = 3 * index.stored_size**2
    need(
        (columns.length == len(ppm_header(index.stored_size)) + pixels).all()
        if index.encoding == "raw"
        else (columns.length <= 2 * pixels + 65536).all(),
        "the length of a picture",
    )
    unlabelled = name == "test" and (columns.label == UNLABELLED).all()
    need(
        unlabelled or (columns.label >= 0).all() and (columns.label < len(index.classes)).all(),
        "a label that there is not",
    )
    need((columns.crc32 >= 0).all() and (columns.crc32 < 2**32).all(), "a crc32 out of range")
    ends = np.concatenate(([0], columns.name_ends))
    need((ends[1:] >= ends[:-1]).all() and ends[-1] == len(columns.names), "the ends of the names")
    return columns


def read_statistics(directory: str | Path, index: Index) -> Statistics:
    """The `Statistics` of the training pictures. Raises UserError where they are damaged."""
    path = Path(directory) / STATISTICS
    if hashlib.sha256(read_bytes(path)).hexdigest() != index.statistics_sha256:
        raise UserError(f"{path} is damaged: its sha256 is not the one in {INDEX}")
    statistics = Statistics.load(directory)
    try:
        statistics.check(index.stored_size)
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    return statistics


def source_file(stamps: dict[str, np.ndarray]) -> bytes:
    """The bytes of `SOURCE`. stamps: a split's name -> (N, 2) int64, bytes and time in ns of each image's file."""
    digest = hashlib.sha256(save(stamps)).hexdigest()
    return save(stamps, {"sha256": digest})


def read_source_file(directory: str | Path) -> dict[str, np.ndarray] | None:
    """What `source_file` was given; None where there is none, as in sets of former versions. Raises UserError where it
    is damaged."""
    path = Path(directory) / SOURCE
    if not path.exists():
        return None
    content = read_bytes(path)
    try:
        stamps = load(content)
        whole = source_file(stamps) == content and all(values.shape[1:] == (2,) for values in stamps.values())
    except (SafetensorError, ValueError, KeyError):  # KeyError: of a kind of number that numpy has not
        whole = False
    if not whole:
        raise UserError(f"{path} is damaged; removed, names of images alone are compared")
    return stamps


def check_shard(directory: str | Path, shard: Shard) -> Path:
    """The path of a shard. Raises UserError where it is missing or hasn't the size that the index says."""
    path = Path(directory) / shard.file
    size = _regular_file(path).st_size
    if size != shard.bytes:
        raise UserError(f"{path} is damaged: it has {size:,} bytes, {INDEX} says {shard.bytes:,}")
    return path


def read_bytes(path: str | Path) -> bytes:
    """A small file's content. Raises UserError where it can't be read."""
    _regular_file(path)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _regular_file(path):
    try:
        status = os.stat(path)
    except FileNotFoundError:
        hint = ": no prepared set, or one that was not finished" if Path(path).name == INDEX else ""
        raise UserError(f"cannot read {path}: No such file or directory{hint}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
        raise UserError(f"cannot read {path}: it is not a file")
    return status


def _as_json(index):
    fields = asdict(index)
    if index.ids is None:  # a set without them has the bytes that it had before there were any
        del fields["ids"]
    if not index.squeezed:
        del fields["squeezed"]
    return json.dumps(fields, indent=1).encode() + b"\n"


_ADAPTER = TypeAdapter(Index)
