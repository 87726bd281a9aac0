"""What `prepare` is given, found by looking: folders, the archives of ILSVRC and ImageNet, CIFAR-10; and reading an
image of it.

A source that has no validation images gets them from its training images. Which ones is decided by the names alone, so
a set gives the same split whether it is read from a folder, from a tar or from tars by wnid, and with any number of
processes."""

import hashlib
import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ..data import file_ranges
from ..data.class_names import accents
from ..data.dataset import SUFFIXES
from ..data.prepared_format import UNLABELLED
from ..data.resize import decoded, stored_picture
from ..system.errors import MachineError, UserError
from . import cifar10, ilsvrc, tar_archives
from .tar_archives import Item, Progress, Source, shown

SPLITS = ("train", "val", "test")
VAL_FRACTION = 0.1
LOOKED_FOR = (
    "class folders (<class>/*.jpg, or train/<class>/ and val/<class>/) or a tar of them; the archives of ILSVRC-2012 "
    f"({ilsvrc.COMPETITIONS[0].train}, ...) or ILSVRC-2010; tars by wnid (n01440764.tar, ...) or a tar of them; "
    f"CIFAR-10, as a folder or as {cifar10.VERSIONS[0][1]} or {cifar10.VERSIONS[1][1]}"
)


def find(path, val_fraction=None, note=None, unlabelled_test=False):
    """What there is at `path`, a directory or an archive: a `Source`, its images by label and then by name.

    Where the source has no validation images, `val_fraction` of each class's training images (default 0.1; the paper
    takes half of Fall 2009) become val: round(fraction * n), at least one and not all; a single image stays in train. 0
    means no val at all. Given for a source that has its own, it cuts val from train all the same, and the source's own
    become test; one that has its own test too is refused. unlabelled_test: ILSVRC-2012's test images too, with
    `UNLABELLED` as their labels. `note(text)` is told of what is left aside, and now and then how far a large archive
    has been read. Raises UserError for what can't be used, missing parts, and archives with anything wrong in them."""
    if val_fraction is not None and not 0 <= val_fraction < 1:
        raise UserError(f"--val-fraction {val_fraction}: it must be at least 0 and below 1, such as {VAL_FRACTION}")
    path = Path(path)
    try:
        if not path.exists():
            raise UserError(f"{path}: no such file or directory")
        source = _in_directory(path, note, unlabelled_test) if path.is_dir() else _in_file(path, note)
    except OSError as error:
        raise UserError(f"{error.filename or path}: {error.strerror or error}") from None
    if unlabelled_test and not _unlabelled(source.splits.get("test", ())):
        raise UserError(
            f"--unlabelled-test: {path} has no test images without labels; ILSVRC-2012 has them, in an archive such as "
            "ILSVRC2012_img_test_v10102019.tar"
        )
    return _with_val(_checked(source, path), val_fraction, note)


def read_bytes(item):
    """The bytes of an image: its file, or the 3,072 of CIFAR-10. Raises UserError that names it where they can't be
    had."""
    try:
        if item.form == "cifar batch":
            return cifar10.read(item.path, item.offset, item.length)
        if item.length >= 0:
            content = file_ranges.read(item.path, item.offset, item.length)
        else:
            with file_ranges.Descriptor(item.path, item.path) as file:
                if file.size > ilsvrc.LARGEST_IMAGE:
                    raise UserError(f"{file.size:,} bytes; an image may have {ilsvrc.LARGEST_IMAGE:,}")
                content = file.read(0, file.size)
        # some of ILSVRC-2010's are gzipped JPEGs
        if item.form == "file" and item.length >= 0 and content[:2] == b"\x1f\x8b":
            content = tar_archives.gunzipped(content, ilsvrc.LARGEST_IMAGE)
        return content
    except ValueError as error:  # UserError is one
        kind, reason = (
            MachineError if isinstance(error, MachineError) else UserError,
            str(error).removeprefix(f"{item.path}: "),
        )
        raise kind(f"cannot read image {where(item)}: {reason}") from None


def picture(item, size):
    """The stored picture of an image, (size, size, 3) uint8. Raises UserError that names it where it can't be read."""
    content = read_bytes(item)
    if item.form == "file":
        return decoded(io.BytesIO(content), size, where(item))
    planes = np.frombuffer(content, np.uint8).reshape(3, 32, 32)
    return stored_picture(Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0))), size)


def stamp(item):
    """(bytes, time of change in ns) of an image's file; in an archive the time is the archive's. (-1, -1) where there
    is no such file: reading it will say so."""
    try:
        status = os.stat(item.path)
    except OSError:
        return -1, -1
    return (status.st_size if item.length < 0 else item.length), status.st_mtime_ns


def where(item):
    """An image's name as messages give it: the file on disk, and the name within it."""
    return item.path if item.length < 0 else f"{item.path}: {item.name}"


def _in_directory(path, note, unlabelled_test):
    """The one source that a directory holds."""
    found = [
        (
            competition.train,
            lambda competition=competition: ilsvrc.find_competition(path, competition, note, unlabelled_test),
        )
        for competition in ilsvrc.competitions(path)
    ]
    if (path / "train").is_dir():
        found.append(("train/", lambda: _folders(path)))
    if not found and any(ilsvrc.SYNSET_TAR.fullmatch(file.name) for file in path.iterdir()):
        found.append(("n########.tar", lambda: ilsvrc.find_synset_tars(path, (), note)))
    if len(found) > 1:
        raise UserError(
            f"{path}: it holds more than one source, {' and '.join(name for name, _ in found)}; "
            "put each into a directory of its own"
        )
    if found:
        return found[0][1]()
    source = cifar10.find(path)
    if source:
        return source
    if any(
        _visible(folder) and any(_is_image(file) for file in folder.iterdir())
        for folder in path.iterdir()
        if folder.is_dir()
    ):
        return Source(
            f"class folders in {path}", *_named(names := _class_names(path)), {"train": _folder_items(path, names)}
        )
    raise UserError(f"{path}: nothing to train from was found. Looked for: {LOOKED_FOR}")


def _in_file(path, note):
    source = cifar10.find(path)
    if source:
        return source
    progress, found = Progress(note), []
    for member in tar_archives.members(path):
        found.append(member)
        progress(lambda: f"{path.name}: {len(found):,} files")
    return ilsvrc.find_synset_tars(path, found, note) or _tar_of_folders(path, found)


def _folders(root):
    """`root/train/<class>/*` and, where they are there, val and test."""
    classes = _class_names(root / "train")
    splits = {}
    for split in SPLITS:
        if (root / split).is_dir():
            _same_classes(classes, _class_names(root / split), root / split)
            splits[split] = _folder_items(root / split, classes)
    return Source(f"folder {root}", *_named(classes), splits)


def _folder_items(folder, classes):
    """The images of `folder/<class>/`, in the order of training from the folder itself."""
    items = []
    for label, name in enumerate(classes):
        files = sorted(file.name for file in (folder / name).iterdir() if _is_image(file))
        items += [Item(f"{name}/{file}", label, str(folder / name / file)) for file in files]
    return items


def _tar_of_folders(path, found):
    """A tar of <class>/*, or of train/<class>/* and perhaps val and test; all of it may lie in one folder more."""
    found = [(member.name.split("/"), member) for member in ilsvrc.images(path, found)]
    if not found:
        raise UserError(f"{path}: no images in it. Looked for: {LOOKED_FOR}")
    around, depth = 0, min(len(parts) for parts, _ in found)
    while around + 2 < depth and found[0][0][around] not in SPLITS and len({parts[around] for parts, _ in found}) == 1:
        around += 1  # a folder around everything
    has_splits = not {parts[around] for parts, _ in found}.isdisjoint(SPLITS)
    items, classes = {}, {}
    for parts, member in found:
        if len(parts) - around != (3 if has_splits else 2) or has_splits and parts[around] not in SPLITS:
            raise UserError(
                f"{path}: {shown(member.name)}: images belong in <class>/, or in train/<class>/ and val/<class>/"
            )
        split, name = parts[around] if has_splits else "train", parts[-2]
        classes.setdefault(split, set()).add(name)
        items.setdefault(split, []).append((name, parts[-1], member))
    if "train" not in items:
        raise UserError(f"{path}: it has no train/ folder; images belong in train/<class>/")
    names, place, splits = sorted(classes["train"]), str(path), {}
    labels = {name: label for label, name in enumerate(names)}
    for split in (split for split in SPLITS if split in items):
        _same_classes(names, sorted(classes[split]), f"{path}: {split}/")
        splits[split] = [
            Item(f"{name}/{file}", labels[name], place, member.offset, member.size)
            for name, file, member in sorted(items[split])
        ]
    return Source(f"tar of class folders {path}", *_named(names), splits)


def _with_val(source, fraction, note):
    """The source with a validation split, cut from the training images where it has to be or is asked for."""
    splits = dict(source.splits)
    if "val" in splits and fraction is None:
        return source
    if "val" in splits:
        if "test" in splits:
            raise UserError(f"{source.kind}: it has val and test of its own, so no validation fraction can be taken")
        splits["test"] = splits.pop("val")
    if fraction == 0:
        return replace(source, splits=splits)
    held_out = _cut(source, VAL_FRACTION if fraction is None else fraction, note)
    cut = {
        "train": [item for item in splits["train"] if item.name not in held_out],
        "val": [item for item in splits["train"] if item.name in held_out],
    }
    return replace(source, splits=cut | {name: splits[name] for name in splits if name == "test"})


def _cut(source, fraction, note):
    """The names of the training images that become val: in each class the first by the sha256 of their names."""
    names = [[] for _ in source.classes]
    for item in source.splits["train"]:
        names[item.label].append(item.name)
    held_out, single = set(), sum(len(of_class) == 1 for of_class in names)
    if single == len(names):
        raise UserError(
            f"{source.kind}: every class has a single image, so none can be for validation; --val-fraction 0 makes "
            "a set "
            "of training images alone"
        )
    if single and note:
        note(f"classes with a single image, which is for training: {single:,}")
    for of_class in names:
        of_class.sort(key=lambda name: hashlib.sha256(name.encode(errors="surrogateescape")).digest())
        held_out.update(of_class[: min(max(round(fraction * len(of_class)), 1), len(of_class) - 1)])
    return held_out


def _checked(source, path):
    if len(source.classes) < 2:
        raise UserError(f"{path}: a single class, {source.classes[0]}; training needs at least two")
    for split, items in source.splits.items():
        empty = set(range(len(source.classes))) - {item.label for item in items}
        if empty and not _unlabelled(items):
            raise UserError(f"{path}: its {split} split has no image of class {source.classes[min(empty)]}")
    return source


def _unlabelled(items):
    return len(items) > 0 and all(item.label == UNLABELLED for item in items)


def _named(classes):
    return classes, classes


def _class_names(folder):
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and _visible(path))
    if len(names) < 2:
        raise UserError(
            f"{folder}: {'a single class' if names else 'no class folders'}; training needs at least two, "
            f"as {folder.name}/<class>/*.jpg"
        )
    for name in names:
        if not any(_is_image(file) for file in (folder / name).iterdir()):
            raise UserError(f"{folder / name}: the class is empty, no .jpg, .jpeg or .png file in it")
    return names


def _same_classes(expected, found, where):
    for what, names in (("missing", set(expected) - set(found)), ("extra", set(found) - set(expected))):
        if names:
            raise UserError(
                f"{where}: its classes differ from those of train: {what} {shown(min(names))}"
                + (f" and {len(names) - 1:,} more" if len(names) > 1 else "")
                + accents(set(expected) - set(found), set(found) - set(expected))
            )


def _is_image(path):
    return path.suffix.lower() in SUFFIXES and _visible(path)


def _visible(path):
    return not path.name.startswith(".")
