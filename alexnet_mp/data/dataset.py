"""Where images come from: a folder of class folders, a set of `prepare.py`, or the embedded pictures of `synthetic.py`.

Every source looks alike: it is a `DataSet`, and each of its parts a `Split`.
"""

import hashlib
import mmap
import shlex
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from ..system.command_line import typed
from ..system.errors import UserError
from ..system.memory import free_memory
from ..system.terminal import printable
from .class_folders import (
    DiskFolder,
    PassedOver,
    classes_of,
    has_picture,
    inner_source,
    pictures_of,
    refuse_lost_val,
    split_folders,
    val_by_another_name,
)
from .class_names import accents
from .pixel_statistics import Statistics
from .prepared import Prepared
from .prepared_format import is_prepared
from .resize import decoded
from .synthetic import Builtin

SAME_FILES = 32  # of a fingerprint: the digits that a folder's times don't change
ELSEWHERE = "elsewhere"  # the source of a network that was converted, not trained here: nobody knows its data
TAKES = "it takes a folder, a prepared set, or the word builtin"


class Split(Protocol):
    """The images of one part of a data set, numbered from 0.

    storage: what it takes to read one.

    * "files": open, decode, rescale. `cache_splits` keeps what was read if it fits into memory.
    * "jpeg": decode. `jpeg(index)` gives the bytes, (n,) uint8, of a JPEG of the stored size.
    * "pixels": nothing, a picture is a view of a memory map.
    """

    storage: Literal["files", "jpeg", "pixels"]
    labels: np.ndarray  # (N,) int64
    names: Sequence[str]

    def __len__(self) -> int: ...

    def read(self, index: int | np.integer) -> np.ndarray:
        """The *stored picture* of an image: (stored_size, stored_size, 3) uint8, RGB. Raises UserError with its
        name."""


class DataSet(Protocol):
    """What `--data` names."""

    source: str  # what `--data` said
    description: str  # in words
    fingerprint: str  # another one: other images
    classes: list[str]  # in the order of their labels
    class_names: Sequence[str] | None  # the same as a person knows them; None where there are no others
    ids: Sequence[int] | None  # the classes' numbers in a competition
    splits: dict[str, Split]  # some of "train", "val", "test"
    statistics: Statistics | None  # None: they have to be fitted
    passed_over: Sequence[str]  # lines that name what isn't read of the source, and why


def open_dataset(data: str | Path, stored_size: int, splits: Sequence[str] = ("train", "val")) -> DataSet:
    """The data set that `--data` names, "builtin" or a directory, with these splits. Raises UserError if it can't."""
    if data == "":  # as of a variable that is not set; Path("") is the working directory
        raise UserError(f"--data '': {TAKES}")
    if data == "builtin":
        return Builtin(stored_size)
    return Prepared(data, stored_size, splits) if is_prepared(data) else Folder(data, stored_size, splits)


class DataOfRunMissing(UserError):
    """What a run was trained on can't be opened, and nobody named other data."""


def open_data_of_run(run: str, source: str, stored_size: int, splits: Sequence[str] = ("train", "val")) -> DataSet:
    """The data set that a run was trained on, where nobody says another. Raises DataOfRunMissing, which blames no
    option, if it can't be opened any more."""
    if source == ELSEWHERE:
        raise DataOfRunMissing(f"{run} was converted, its data were never here; say with --data DIR what to use")
    try:
        return open_dataset(source, stored_size, splits)
    except UserError as error:
        way = "takes others" if Path(source).is_dir() else "reads them from where they are now"
        raise DataOfRunMissing(
            f"{source}, where the data of {run} were: {reason_of(error, source)}; "
            f"the same command with --data DIR {way}"
        ) from None


def reason_of(error: UserError, source: str) -> str:
    """Why `open_dataset` refused a source that nobody typed: without --data and what it takes."""
    return str(error).removeprefix(f"--data {source}: ").removesuffix(f"; {TAKES}")


def difference(old_fingerprint: str, dataset: DataSet) -> str | None:
    """In words, why an earlier fingerprint is not that of a data set; None where it is.

    Of a folder, names, sizes and times of the pictures are compared; where it was fingerprinted without times, as
    former versions did, names and sizes alone."""
    if old_fingerprint in (dataset.fingerprint, getattr(dataset, "names_and_sizes", None)):
        return None
    if not isinstance(dataset, Folder):
        return "it is another data set, or another version of it"
    if old_fingerprint[:SAME_FILES] == dataset.fingerprint[:SAME_FILES]:
        return (
            "names and sizes of its pictures are the same, their times are not: some were replaced, or all were copied "
            "without their times (cp -p keeps them)"
        )
    return "names or sizes of its pictures have changed"


class Folder:
    """`DIR/train/<class>/*`, `DIR/val/<class>/*`, `DIR/test/<class>/*`: the pictures of the splits asked for.

    Classes are numbered in the order of their names. `class_folders` says what is a picture, by which other names a
    split is found, and what is passed over. Raises UserError for a missing split, a single or an empty class, and for
    splits whose classes differ.

    fingerprint: of the pictures' names, sizes and times of change; contents are not read. names_and_sizes: without the
    times."""

    statistics = ids = class_names = None

    def __init__(self, directory: str | Path, stored_size: int, splits: Sequence[str] = ("train", "val")):
        root, self.source = Path(directory), str(Path(directory).absolute())
        if not root.is_dir():
            problem = "it is not a directory" if root.exists() else "no such directory"
            raise UserError(f"--data {directory}: {problem}; {TAKES}")
        omissions = PassedOver()
        folders = _split_folders(DiskFolder(root), directory, splits, stored_size, omissions)
        self.classes, files, times = classes_of(folders[splits[0]]), hashlib.sha256(), hashlib.sha256()
        self.splits = {split: self._split(folders[split], stored_size, files, times, omissions) for split in splits}
        self.passed_over = omissions.lines()
        self.names_and_sizes = files.hexdigest()
        self.fingerprint = self.names_and_sizes[:SAME_FILES] + times.hexdigest()[SAME_FILES:]
        self.description = (
            f"folder {directory}: {', '.join(f'{len(images):,} {split}' for split, images in self.splits.items())} "
            f"images of {len(self.classes)} classes"
        )

    def _split(self, tree, stored_size, names_and_sizes, times, omissions):
        folder, classes = Path(tree.path), classes_of(tree, fewest=1)
        if classes != self.classes:
            differences = (("missing", set(self.classes) - set(classes)), ("extra", set(classes) - set(self.classes)))
            raise UserError(
                f"{folder}: its classes differ from those of the other split: "
                + "; ".join(f"{what} {_some(sorted(names))}" for what, names in differences if names)
                + accents(*(names for _, names in differences))
            )
        files, labels = [], []
        for label, images in enumerate(pictures_of(tree, omissions, f"{tree.name}/").values()):
            files += map(Path, images.values())
            labels += [label] * len(images)
        for path in files:  # not their contents: a changed set is noticed without reading it
            try:
                status = path.stat()
            except OSError as error:
                raise UserError(f"cannot read image {path}: {error.strerror}") from None
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"cannot read image {path}: it is not a file")
            line = f"{path.relative_to(folder.parent)}\0{status.st_size}\n"
            names_and_sizes.update(line.encode(errors="surrogateescape"))
            times.update(b"%d\n" % status.st_mtime_ns)
        return FolderSplit(files, np.array(labels), stored_size)


class FolderSplit:
    storage = "files"

    def __init__(self, files: Sequence[Path], labels: np.ndarray, stored_size: int):
        self.files, self.labels, self.size = files, labels, stored_size

    def __len__(self):
        return len(self.files)

    @property
    def names(self) -> list[str]:
        return [str(path) for path in self.files]

    def read(self, index: int | np.integer) -> np.ndarray:
        """The stored picture of image `index`. Raises UserError that names the file where it can't be decoded."""
        return decoded(self.files[index], self.size, self.files[index])


class CachedSplit:
    """A split whose stored pictures stay in memory once read, shared with worker processes that are forked later."""

    def __init__(self, split: Split, size: int):
        self.split, self.labels, self.names = split, split.labels, split.names
        count = len(split)
        # Anonymous shared memory: what a forked worker writes, all processes see. Pages are taken when first written.
        self.pictures = np.frombuffer(mmap.mmap(-1, count * size * size * 3), np.uint8).reshape(count, size, size, 3)
        self.filled = np.frombuffer(mmap.mmap(-1, count), np.uint8)

    def __len__(self):
        return len(self.split)

    @property
    def storage(self) -> Literal["files", "pixels"]:
        return "pixels" if self.filled.all() else "files"

    def read(self, index: int | np.integer) -> np.ndarray:
        if not self.filled[index]:
            self.pictures[index] = self.split.read(index)
            self.filled[index] = 1
        return self.pictures[index]


def cache_splits(dataset: DataSet, stored_size: int, processes: int = 1) -> list[str]:
    """Put a cache before train and val where reading is slow and half of the free memory holds them, once in each of
    so many processes of this machine. Returns their names."""
    room, names = free_memory() // (2 * processes), []
    for name in ("train", "val"):
        split = dataset.splits[name]
        need = len(split) * stored_size * stored_size * 3
        if split.storage == "files" and need <= room:
            dataset.splits[name] = CachedSplit(split, stored_size)
            room -= need
            names.append(name)
    return names


def cost_of_reading(dataset: DataSet, in_memory: Sequence[str]) -> str:
    """How pictures come to the pipeline, in words. in_memory: the names that `cache_splits` returned."""
    if in_memory:
        return f"pictures held in memory: {', '.join(in_memory)}"
    return {
        "files": "pictures are decoded and rescaled in every epoch",
        "jpeg": "JPEGs of the stored size are decoded in every epoch",
        "pixels": "raw pixels, nothing to decode",
    }[dataset.splits["train"].storage]


def _split_folders(root, data, splits, stored_size, omissions):
    """{split: its folder} of a root with all splits asked for."""
    folders = split_folders(root, omissions)
    for split in splits:
        if split not in folders:
            if split == "val":
                refuse_lost_val(root, folders)
            alias = val_by_another_name(root, folders) if split == "val" else None
            way = _way_out(root, folders, stored_size) if "train" in splits and not alias else ""
            if not way and split == "train" and (inner := inner_source(root)):
                way = f"if {printable(inner)}/ in it is meant, write {Path(data) / inner}"
            names = "" if way else ", ".join(f"{folder.name}/" for folder in folders.values())
            raise UserError(
                f"--data {data}: it has no {split}/ folder{f', only {names}' if names else ''}; "
                f"{way or f'images belong in {split}/<class>/'}"
                + (f"; if {alias}/ is meant, rename it" if alias else "")
            )
    return folders


def _way_out(root, folders, stored_size):
    """What makes a set of a folder of class folders that nobody has split, or "" where it is none."""
    classes = [name for name, folder in folders.get("train", root).folders.items() if has_picture(folder)]
    path, real_path = Path(root.path), Path(root.path).resolve()
    if len(classes) < 2 or not real_path.name:
        return ""
    dest = (real_path if path.name in ("", "..") else path).with_name(f"{real_path.name}-prepared")
    return (
        f"of its {len(classes)} class folders ({_some(classes)}) a part can be cut off for validation: "
        f"{typed('prepare', path, dest, '--size', stored_size)}, then the same command with "
        f"--data {shlex.quote(str(dest))}"
    )


def _some(names):
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def evenly(count: int, most: int) -> np.ndarray:
    """At most `most` of the numbers below `count`, spread evenly, the first and the last among them: (n,) int64."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(np.int64))
