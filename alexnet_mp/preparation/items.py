"""What was found in a place that images come from: its classes and images, before any is read."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..data.file_ranges import Descriptor
from ..system.errors import UserError


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a source. Small: a set may have 14 million of them.

    `form` says what `length` bytes at `offset` of the file `path` are: "file", an image file, where length -1 means the
    whole of `path`; "cifar", 3,072 bytes of a 32x32 picture, the planes R, G, B one after the other; or "cifar batch",
    the same in what `path` unpacks to."""

    name: str  # unique in its split, "class/file" where there is a class folder
    label: int
    path: str
    offset: int = 0
    length: int = -1
    form: str = "file"


@dataclass(frozen=True)
class Source:
    """What was found: `kind` in a few words; per class, in the order of the labels, its name (a wnid, a folder), its
    name in words and its number in the competition (or None); per split its items, by label and then by name."""

    kind: str
    classes: list
    class_names: list
    splits: dict
    ids: list | None = None


class Progress:
    """Hands a text to `note` (a function, or None) every few seconds. The text is made, by a function, when its time
    has come."""

    def __init__(self, note: Callable[[str], None] | None, seconds: float = 2):
        self.note, self.seconds, self.last = note, seconds, time.monotonic()

    def __call__(self, text):
        if self.note and time.monotonic() - self.last >= self.seconds:
            self.last = time.monotonic()
            self.note(text())


def whole_file(path: str | Path, largest: int) -> bytes:
    """A file's bytes. Raises UserError for one of more than `largest`, and for what is no plain file."""
    with Descriptor(path, path) as file:
        if file.size > largest:
            raise UserError(f"{path}: {file.size:,} bytes, more than the {largest:,} it may have")
        return file.read(0, file.size)
