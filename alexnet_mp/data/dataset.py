"""Where images come from: a folder of class folders, a set of `prepare.py`, or the embedded pictures of `synthetic.py`.

Every source looks alike: it is a `DataSet`, and each of its parts a `Split`.
"""

import hashlib
import mmap
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from ..system.command_line import typed
from ..system.errors import UserError
from ..system.memory import free_memory
from .pixel_statistics import Statistics
from .prepared import Prepared
from .prepared_format import is_prepared
from .resize import decoded
from .synthetic import Builtin

SUFFIXES = {".jpg", ".jpeg", ".png"}
TAKES = "it takes a folder, a prepared set, or the word builtin"


class Split(Protocol):
    """The images of one part of a data set, numbered from 0.

    storage: what it takes to read one.

    * "files": open, decode, rescale. `cached` keeps what was read if it fits into memory.
    * "jpeg": decode. `jpeg(index)` gives the bytes, (n,) uint8, of a JPEG of the stored size.
    * "pixels": nothing, a picture is a view of a memory map.
    """

    storage: Literal["files", "jpeg", "pixels"]
    labels: np.ndarray  # (N,) int64
    names: Sequence[str]

    def __len__(self) -> int: ...

    def read(self, index: int) -> np.ndarray:
        """The *stored picture* of an image: (stored_size, stored_size, 3) uint8, RGB. Raises UserError with its
        name."""


class DataSet(Protocol):
    """What `--data` names."""

    source: str  # what `--data` said
    description: str  # in words
    fingerprint: str  # another one: other images
    classes: list[str]  # in the order of their labels
    ids: Sequence[int] | None  # the classes' numbers in a competition
    splits: dict[str, Split]  # some of "train", "val", "test"
    statistics: Statistics | None  # None: they have to be fitted


def open_dataset(data: str, stored_size: int, splits: Sequence[str] = ("train", "val")) -> DataSet:
    """The data set that `--data` names, "builtin" or a directory, with these splits. Raises UserError if it can't."""
    if data == "builtin":
        return Builtin(stored_size)
    return Prepared(data, stored_size, splits) if is_prepared(data) else Folder(data, stored_size, splits)


def open_data_of_run(run: str, source: str, stored_size: int, splits: Sequence[str] = ("train", "val")) -> DataSet:
    """The data set that a run was trained on, where nobody says another. Raises UserError, which blames no option, if
    it can't be opened any more."""
    try:
        return open_dataset(source, stored_size, splits)
    except UserError as error:
        reason = str(error).removeprefix(f"--data {source}: ").removesuffix(f"; {TAKES}")
        raise UserError(
            f"{source}, where the data of {run} were: {reason}; the same command with --data DIR reads them from "
            "where they are now"
        ) from None


class Folder:
    """`DIR/train/<class>/*`, `DIR/val/<class>/*`, `DIR/test/<class>/*`: JPEG and PNG files of the splits asked for.

    Classes are numbered in the order of their names. Raises UserError for a missing split, a single or an empty class,
    and for splits whose classes differ."""

    statistics = ids = None

    def __init__(self, directory, stored_size, splits=("train", "val")):
        root, self.source = Path(directory), str(Path(directory).absolute())
        if not root.is_dir():
            problem = "it is not a directory" if root.exists() else "no such directory"
            raise UserError(f"--data {directory}: {problem}; {TAKES}")
        for split in splits:
            if not (root / split).is_dir():
                way = _way_out(root, stored_size) if "train" in splits else ""
                raise UserError(
                    f"--data {directory}: it has no {split}/ folder; {way or f'images belong in {split}/<class>/'}"
                )
        self.classes, digest = _class_names(root / splits[0]), hashlib.sha256()
        self.splits = {split: self._split(root / split, stored_size, digest) for split in splits}
        self.fingerprint = digest.hexdigest()
        self.description = (
            f"folder {directory}: {', '.join(f'{len(images):,} {split}' for split, images in self.splits.items())} "
            f"images of {len(self.classes)} classes"
        )

    def _split(self, folder, stored_size, digest):
        found = _class_names(folder)
        if found != self.classes:
            differences = (("missing", set(self.classes) - set(found)), ("extra", set(found) - set(self.classes)))
            raise UserError(
                f"{folder}: its classes differ from those of the other split: "
                + "; ".join(f"{what} {_some(sorted(names))}" for what, names in differences if names)
            )
        files, labels = [], []
        for label, name in enumerate(self.classes):
            images = sorted(
                path
                for path in (folder / name).iterdir()
                if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
            )
            if not images:
                raise UserError(f"{folder / name}: the class is empty, no .jpg, .jpeg or .png file in it")
            files += images
            labels += [label] * len(images)
        for path in files:  # names and sizes, not contents: a changed set is noticed without reading it
            try:
                status = path.stat()
            except OSError as error:
                raise UserError(f"cannot read image {path}: {error.strerror}") from None
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"cannot read image {path}: it is not a file")
            digest.update(f"{path.relative_to(folder.parent)}\0{status.st_size}\n".encode(errors="surrogateescape"))
        return FolderSplit(files, np.array(labels), stored_size)


class FolderSplit:
    storage = "files"

    def __init__(self, files, labels, stored_size):
        self.files, self.labels, self.size = files, labels, stored_size

    def __len__(self):
        return len(self.files)

    @property
    def names(self):
        return [str(path) for path in self.files]

    def read(self, index):
        """The stored picture of image `index`. Raises UserError that names the file where it can't be decoded."""
        return decoded(self.files[index], self.size, self.files[index])


class CachedSplit:
    """A split whose stored pictures stay in memory once read, shared with worker processes that are forked later."""

    def __init__(self, split, size):
        self.split, self.labels, self.names = split, split.labels, split.names
        count = len(split)
        # Anonymous shared memory: what a forked worker writes, all processes see. Pages are taken when first written.
        self.pictures = np.frombuffer(mmap.mmap(-1, count * size * size * 3), np.uint8).reshape(count, size, size, 3)
        self.filled = np.frombuffer(mmap.mmap(-1, count), np.uint8)

    def __len__(self):
        return len(self.split)

    @property
    def storage(self):
        return "pixels" if self.filled.all() else "files"

    def read(self, index):
        if not self.filled[index]:
            self.pictures[index] = self.split.read(index)
            self.filled[index] = 1
        return self.pictures[index]


def cached(dataset: DataSet, stored_size: int) -> list[str]:
    """Put a cache before train and val where reading is slow and half of the free memory holds them. Returns their
    names."""
    room, held = free_memory() // 2, []
    for name in ("train", "val"):
        split = dataset.splits[name]
        need = len(split) * stored_size * stored_size * 3
        if split.storage == "files" and need <= room:
            dataset.splits[name] = CachedSplit(split, stored_size)
            room -= need
            held.append(name)
    return held


def cost_of_reading(dataset: DataSet, in_memory: Sequence[str]) -> str:
    """How pictures come to the pipeline, in words. in_memory: the names that `cached` returned."""
    if in_memory:
        return f"pictures held in memory: {', '.join(in_memory)}"
    return {
        "files": "pictures are decoded and rescaled in every epoch",
        "jpeg": "JPEGs of the stored size are decoded in every epoch",
        "pixels": "raw pixels, nothing to decode",
    }[dataset.splits["train"].storage]


def _way_out(root, stored_size):
    """What makes a set of a folder of class folders that nobody has split, or "" where it is none."""
    classes = root / "train" if (root / "train").is_dir() else root
    found = sorted(
        path.name
        for path in classes.iterdir()
        if path.is_dir()
        and not path.name.startswith(".")
        and any(file.suffix.lower() in SUFFIXES for file in path.iterdir())
    )
    whole = root.resolve()
    if len(found) < 2 or not whole.name:
        return ""
    made = (whole if root.name in ("", "..") else root).with_name(f"{whole.name}-prepared")
    return (
        f"of its {len(found)} class folders ({_some(found)}) a part can be cut off for validation: "
        f"{typed('prepare', root, made, '--size', stored_size)} && {typed('train', '--data', made)}"
    )


def _class_names(folder):
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(names) < 2:
        raise UserError(
            f"{folder}: {'a single class' if names else 'no class folders'}; training needs at least two, "
            f"as {folder.name}/<class>/*.jpg"
        )
    return names


def _some(names):
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
