"""Where images come from: a folder of class folders, or the embedded pictures of `builtin.py`.

Every source looks alike: `classes` (names in the order of the labels), `splits` {"train": ..., "val": ..., "test": ...},
`source` (what `--data` said), `fingerprint` and `description`; a split has `labels` (N,) int64, `names`, a length, and `read(i)`,
the *stored picture* of image i: (stored_size, stored_size, 3) uint8, RGB. Reading is lazy; `cached` keeps what was read where it
fits into memory.
"""
import hashlib
import mmap
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from .builtin import Builtin
from .errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png"}


def open_dataset(data, stored_size, splits=("train", "val")):
    """The data set that `--data` names, "builtin" or a directory, with these splits. Raises UserError where it can't be used."""
    return Builtin(stored_size) if data == "builtin" else Folder(data, stored_size, splits)


class Folder:
    """`DIR/train/<class>/*`, `DIR/val/<class>/*`, `DIR/test/<class>/*`: JPEG and PNG files of the splits asked for.

    Classes are numbered in the order of their names. Raises UserError for a missing split, a single or an empty class, and for
    splits whose classes differ.
    """

    def __init__(self, directory, stored_size, splits=("train", "val")):
        root, self.source = Path(directory), str(Path(directory).absolute())
        if not root.is_dir():
            problem = "it is not a directory" if root.exists() else "no such directory"
            raise UserError(f"--data {directory}: {problem} (or write --data builtin)")
        for split in splits:
            if not (root / split).is_dir():
                raise UserError(f"--data {directory}: it has no {split}/ folder; images belong in {split}/<class>/")
        self.classes, digest = _class_names(root / splits[0]), hashlib.sha256()
        self.splits = {split: self._split(root / split, stored_size, digest) for split in splits}
        self.fingerprint = digest.hexdigest()
        self.description = (f"folder {directory}: {', '.join(f'{len(images):,} {split}' for split, images in self.splits.items())} "
                            f"images of {len(self.classes)} classes")

    def _split(self, folder, stored_size, digest):
        found = _class_names(folder)
        if found != self.classes:
            differences = (("missing", set(self.classes) - set(found)), ("extra", set(found) - set(self.classes)))
            raise UserError(f"{folder}: its classes differ from those of the other split: "
                            + "; ".join(f"{what} {_some(sorted(names))}" for what, names in differences if names))
        files, labels = [], []
        for label, name in enumerate(self.classes):
            images = sorted(path for path in (folder / name).iterdir()
                            if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
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
    def __init__(self, files, labels, stored_size):
        self.files, self.labels, self.size = files, labels, stored_size

    def __len__(self):
        return len(self.files)

    @property
    def names(self):
        return [str(path) for path in self.files]

    def read(self, index):
        """The stored picture of image `index`. Raises UserError that names the file where it can't be decoded."""
        path = self.files[index]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large is fine; far too large is an error
                with Image.open(path) as image:
                    return stored_picture(image, self.size)
        except Exception as error:  # Pillow raises a dozen types on damaged files
            reason = str(error).replace(repr(str(path)), "").replace(str(path), "").strip(" ':") or type(error).__name__
            raise UserError(f"cannot read image {path}: {reason}") from None


def stored_picture(image, size):
    """A Pillow image -> (size, size, 3) uint8: shorter side rescaled to `size`, central square kept (paper 2).

    Area averaging down, bicubic up (cuda-convnet2, `pyext.cpp:102-121`). Grey and CMYK become RGB, transparency is dropped,
    orientation tags are ignored, as in 2012.
    """
    if image.mode.startswith("I"):  # 16 bits a pixel: Pillow's own conversion would clip at 255
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if "transparency" in image.info:  # a palette with an alpha table; without this step Pillow warns
        image = image.convert("RGBA")
    image = image.convert("RGB")
    shorter = min(image.size)
    left, top = ((side - shorter) / 2 for side in image.size)
    if shorter != size:
        # The central square is taken by the same resampling; an odd margin then falls on half a source pixel.
        kind = Image.Resampling.BOX if shorter > size else Image.Resampling.BICUBIC
        image = image.resize((size, size), kind, box=(left, top, left + shorter, top + shorter))
    else:
        left, top = int(left), int(top)
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image)


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

    def read(self, index):
        if not self.filled[index]:
            self.pictures[index] = self.split.read(index)
            self.filled[index] = 1
        return self.pictures[index]


def cached(dataset, stored_size):
    """Put a cache before train and val as long as half of the free memory holds them. Returns the names of those it holds."""
    room, held = free_memory() // 2, []
    for name in ("train", "val"):
        split = dataset.splits[name]
        need = len(split) * stored_size * stored_size * 3
        if need <= room:
            dataset.splits[name] = CachedSplit(split, stored_size)
            room -= need
            held.append(name)
    return held


def free_memory():
    """Bytes that this process may still take: the machine's, or its control group's where that is less."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    try:
        group = Path("/sys/fs/cgroup")
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        taken = int((group / "memory.current").read_text()) - int(statistics["inactive_file"])  # cached files give way
        free = min(free, int((group / "memory.max").read_text()) - taken)
    except (OSError, ValueError, KeyError):  # no control group, or no limit ("max")
        pass
    return max(free, 0)


def _class_names(folder):
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(names) < 2:
        raise UserError(f"{folder}: {'a single class' if names else 'no class folders'}; training needs at least two, "
                        f"as {folder.name}/<class>/*.jpg")
    return names


def _some(names):
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
