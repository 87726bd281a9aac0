"""What `prepare` is given, found by looking: folders, the archives of ILSVRC and ImageNet, CIFAR-10; and reading an
image of it.

A source that has no validation images gets them from its training images. Which ones is decided by the names alone, so
a set gives the same split whether it is read from a folder, from a tar or from tars by wnid, and with any number of
processes."""

import hashlib
import io
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ..data import file_ranges
from ..data.class_folders import (
    HIDDEN,
    OUTSIDE,
    SPLITS,
    UNLABELLED_TEST,
    DiskFolder,
    PassedOver,
    classes_of,
    has_no_train,
    inner_source,
    is_hidden,
    pictures_in,
    pictures_of,
    refuse_lost_val,
    split_folders,
    val_by_another_name,
)
from ..data.class_names import accents
from ..data.image_formats import check_bytes, is_picture
from ..data.prepared_format import UNLABELLED
from ..data.resize import decoded, stored_picture
from ..system.errors import MachineError, UserError
from . import cifar10, ilsvrc, tar_archives
from .items import Item, Progress, Source
from .tar_archives import shown

VAL_FRACTION = 0.1
# How files begin that hold others, and that are not read. A tar begins with a name: none can begin like these.
PACKED = {
    "a ZIP archive": rb"PK(\x03\x04|\x05\x06)",
    "a 7z archive": rb"7z\xbc\xaf",
    "a RAR archive": rb"Rar!\x1a",
    "a file compressed by zstd": rb"\x28\xb5\x2f\xfd",
    "a file compressed by xz": rb"\xfd7zXZ\0",
    "a file compressed by bzip2": rb"BZh[1-9]1AY&SY",
}
LOOKED_FOR = (
    "class folders (<class>/*.jpg, or train/<class>/ and val/<class>/) or a tar of them; the archives of ILSVRC-2012 "
    f"({ilsvrc.COMPETITIONS[0].train}, ...) or ILSVRC-2010; tars by wnid (n01440764.tar, ...) or a tar of them; "
    f"CIFAR-10, as a folder or as {cifar10.VERSIONS[0][1]} or {cifar10.VERSIONS[1][1]}"
)


def find(
    path: str | Path,
    val_fraction: float | None = None,
    note: Callable[[str], None] | None = None,
    unlabelled_test: bool = False,
) -> Source:
    """What there is at `path`, a directory or an archive: a `Source`, its images by label and then by name.

    Where the source has no validation images, `val_fraction` of each class's training images (default 0.1; the paper
    takes half of Fall 2009) become val: round(fraction * n), at least one and not all; a single image stays in train. 0
    means no val at all. Given for a source that has its own, it cuts val from train all the same, and the source's own
    become test; one that has its own test too is refused. unlabelled_test: test images without labels too, with
    `UNLABELLED` in their place: ILSVRC-2012's, or those that lie in test/ itself. `note(text)` is told of what is left
    aside, and now and then how far a large archive has been read. Raises UserError for what can't be used,
    missing parts, and archives with anything wrong in them."""
    if val_fraction is not None and not 0 <= val_fraction < 1:
        raise UserError(f"--val-fraction {val_fraction}: it must be at least 0 and below 1, such as {VAL_FRACTION}")
    path = Path(path)
    try:
        if not path.exists():
            raise UserError(f"{path}: no such file or directory")
        look = _in_directory if path.is_dir() else _in_file
        source = look(path, note, unlabelled_test, val_fraction is not None)
    except OSError as error:
        raise UserError(f"{error.filename or path}: {error.strerror or error}") from None
    if unlabelled_test and not _unlabelled(source.splits.get("test", ())):
        raise UserError(
            f"--unlabelled-test: {path} has no test images without labels; they lie in test/ itself, or, of "
            "ILSVRC-2012, in an archive such as ILSVRC2012_img_test_v10102019.tar"
        )
    return _with_val(_checked(source, path), val_fraction, note)


def read_bytes(item: Item) -> bytes:
    """The bytes of an image: its file, or the 3,072 of CIFAR-10. Raises UserError that names it where they can't be
    had."""
    try:
        if item.form == "cifar batch":
            return cifar10.read(item.path, item.offset, item.length)
        if item.length >= 0:
            check_bytes(item.length)
            return file_ranges.read(item.path, item.offset, item.length)
        with file_ranges.Descriptor(item.path, item.path) as file:
            check_bytes(file.size)
            return file.read(0, file.size)
    except ValueError as error:  # UserError is one
        kind, reason = (
            MachineError if isinstance(error, MachineError) else UserError,
            str(error).removeprefix(f"{item.path}: "),
        )
        raise kind(f"cannot read image {where(item)}: {reason}") from None


def picture(item: Item, size: int, warp: bool = False) -> np.ndarray:
    """The stored picture of an image, (size, size, 3) uint8; warp: squeezed, see `stored_picture`. Raises UserError
    that names it where it can't be read."""
    content = read_bytes(item)
    if item.form == "file":
        return decoded(io.BytesIO(content), size, where(item), warp)
    planes = np.frombuffer(content, np.uint8).reshape(3, 32, 32)
    return stored_picture(Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0))), size, warp=warp)


def stamp(item: Item) -> tuple[int, int]:
    """(bytes, time of change in ns) of an image's file; in an archive the time is the archive's. (-1, -1) where there
    is no such file: reading it will say so."""
    try:
        status = os.stat(item.path)
    except OSError:
        return -1, -1
    return (status.st_size if item.length < 0 else item.length), status.st_mtime_ns


def where(item: Item) -> str:
    """An image's name as messages give it: the file on disk, and the name within it."""
    return item.path if item.length < 0 else f"{item.path}: {item.name}"


def _in_directory(path, note, unlabelled_test, cut):
    """The one source that a directory holds."""
    candidates = [
        (
            competition.train,
            lambda competition=competition: ilsvrc.find_competition(path, competition, note, unlabelled_test),
        )
        for competition in ilsvrc.competitions(path)
    ]
    root, omissions = DiskFolder(path), PassedOver()
    if "train" in root.folders or not candidates and "train" in split_folders(root, PassedOver()):
        candidates.append(
            ("train/", lambda: _splits(f"folder {path}", root, omissions, _file_item, unlabelled_test, cut))
        )
    if not candidates and any(ilsvrc.SYNSET_TAR.fullmatch(file.name) for file in path.iterdir()):
        candidates.append(("n########.tar", lambda: ilsvrc.find_synset_tars(path, (), note)))
    if len(candidates) > 1:
        raise UserError(
            f"{path}: it holds more than one source, {' and '.join(name for name, _ in candidates)}; "
            "put each into a directory of its own"
        )
    source = candidates[0][1]() if candidates else cifar10.find(path)
    if source is None:
        source = _bare_classes(f"class folders in {path}", root, omissions, _file_item)
    omissions.tell(note)
    return source


def _refuse_packed(path):
    with file_ranges.Descriptor(path, path) as file:
        head = file.read(0, 16)
    for name, beginning in PACKED.items():
        if re.match(beginning, head):
            raise UserError(f"{path}: {name} is not read; unpack it, and give the folder, or a plain tar of it")


def _in_file(path, note, unlabelled_test, cut):
    source = cifar10.find(path)
    if source:
        return source
    _refuse_packed(path)
    progress, entries, folders = Progress(note), [], []
    for member in tar_archives.members(path, folders=folders):
        entries.append(member)
        progress(lambda: f"{path.name}: {len(entries):,} files")
    return ilsvrc.find_synset_tars(path, entries, note) or _tar_of_folders(
        path, entries, folders, note, unlabelled_test, cut
    )


def _splits(kind, root, omissions, item, unlabelled_test, cut):
    """`root/train/<class>/*` and, where they are there, val and test, as a folder on a disk or in a tar.

    item(name, label, file): the `Item` of a file. cut: whether val is to be cut from train whatever else there is."""
    folders = split_folders(root, omissions)
    alias = val_by_another_name(root, folders)
    if not cut:
        refuse_lost_val(root, folders, f", or write --val-fraction {VAL_FRACTION} to cut val from train all the same")
    if alias and not cut:
        raise UserError(
            f"{root.where}: it has no val/, and {alias}/ has pictures of train's classes; rename it to val/, or write "
            f"--val-fraction {VAL_FRACTION} to cut val from train all the same"
        )
    names, splits = classes_of(folders["train"]), {}
    for split, folder in folders.items():
        place = f"{folder.name}/"
        if split == "test" and not folder.folders:
            pictures = pictures_in(folder, omissions, place)
            if unlabelled_test and pictures:
                splits[split] = [item(name, UNLABELLED, file) for name, file in pictures.items()]
            for name in pictures if not unlabelled_test else ():
                omissions.add(UNLABELLED_TEST, place + name)
            continue
        _same_classes(names, classes_of(folder, fewest=1), folder.where)
        splits[split] = _items(pictures_of(folder, omissions, place), item)
    return Source(kind, names, names, splits)


def _bare_classes(kind, root, omissions, item):
    """`root/<class>/*`: all of it is train."""
    if has_no_train(root):
        raise UserError(f"{root.where}: it has no train/ folder; images belong in train/<class>/")
    if not any(folder.is_picture(name) for folder in root.folders.values() for name in folder.files):
        inner = inner_source(root)
        hint = f"; {shown(inner)}/ in it has class folders: if it is meant, give that" if inner else ""
        raise UserError(f"{root.where}: nothing to train from was found{hint}. Looked for: {LOOKED_FOR}")
    names = classes_of(root)
    return Source(kind, names, names, {"train": _items(pictures_of(root, omissions), item)})


def _items(pictures, item):
    """The items of {class: {name: file}}, in that order."""
    return [
        item(f"{class_name}/{name}", label, file)
        for label, (class_name, files) in enumerate(pictures.items())
        for name, file in files.items()
    ]


def _file_item(name, label, path):
    return Item(name, label, path)


def _tar_of_folders(path, entries, folders, note, unlabelled_test, cut):
    """A tar of <class>/*, or of train/<class>/* and perhaps val and test; all of it may lie in one folder more.

    folders: the names of those that the tar names itself; some may be empty."""
    entries = [(member.name.split("/"), member) for member in entries] + [(name.split("/"), None) for name in folders]
    entries.sort(key=lambda entry: entry[0])
    pictures = [
        bool(member) and not any(map(is_hidden, parts)) and is_picture(parts[-1], tar_archives.beginning(path, member))
        for parts, member in entries
    ]
    paths = [parts for (parts, _), picture in zip(entries, pictures) if picture]
    if not paths:
        raise UserError(f"{path}: no images in it. Looked for: {LOOKED_FOR}")
    nesting, depth = 0, min(map(len, paths))
    while nesting + 2 < depth and paths[0][nesting] not in SPLITS and len({parts[nesting] for parts in paths}) == 1:
        nesting += 1  # a folder around everything
    root, omissions, place = tar_archives.TarFolder(str(path)), PassedOver(), str(path)
    for (parts, member), picture in zip(entries, pictures):
        if parts[:nesting] == paths[0][:nesting]:
            root.add(parts[nesting:], member, picture)
        elif member:
            omissions.add(HIDDEN if any(map(is_hidden, parts)) else OUTSIDE, member.name)

    def item(name, label, member):
        return Item(name, label, place, member.offset, member.size)

    kind = f"tar of class folders {path}"
    if "train" in split_folders(root, PassedOver()):
        source = _splits(kind, root, omissions, item, unlabelled_test, cut)
    else:
        source = _bare_classes(kind, root, omissions, item)
    omissions.tell(note)
    return source


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
    names = _cut(source, VAL_FRACTION if fraction is None else fraction, note)
    if note:
        share = f"{len(names):,} of the {len(splits['train']):,} training images"
        by_whom = "; --val-fraction sets another share" if fraction is None else f" by --val-fraction {fraction:g}"
        note(f"val: {share}, cut off{by_whom}")
    parts = {
        "train": [item for item in splits["train"] if item.name not in names],
        "val": [item for item in splits["train"] if item.name in names],
    }
    return replace(source, splits=parts | {name: splits[name] for name in splits if name == "test"})


def _cut(source, fraction, note):
    """The names of the training images that become val: in each class the first by the sha256 of their names."""
    names = [[] for _ in source.classes]
    for item in source.splits["train"]:
        names[item.label].append(item.name)
    val_names, singles = set(), sum(len(group) == 1 for group in names)
    if singles == len(names):
        raise UserError(
            f"{source.kind}: every class has a single image, so none can be for validation; --val-fraction 0 makes "
            "a set "
            "of training images alone"
        )
    if singles and note:
        note(f"classes with a single image, which is for training: {singles:,}")
    for group in names:
        group.sort(key=lambda name: hashlib.sha256(name.encode(errors="surrogateescape")).digest())
        val_names.update(group[: min(max(round(fraction * len(group)), 1), len(group) - 1)])
    return val_names


def _checked(source, path):
    if len(source.classes) < 2:
        raise UserError(f"{path}: a single class, {source.classes[0]}; training needs at least two")
    for split, items in source.splits.items():
        empty_labels = set(range(len(source.classes))) - {item.label for item in items}
        if empty_labels and not _unlabelled(items):
            raise UserError(f"{path}: its {split} split has no image of class {source.classes[min(empty_labels)]}")
    return source


def _unlabelled(items):
    return len(items) > 0 and all(item.label == UNLABELLED for item in items)


def _same_classes(expected, classes, where):
    for what, names in (("missing", set(expected) - set(classes)), ("extra", set(classes) - set(expected))):
        if names:
            raise UserError(
                f"{where}: its classes differ from those of train: {what} {shown(min(names))}"
                + (f" and {len(names) - 1:,} more" if len(names) > 1 else "")
                + accents(set(expected) - set(classes), set(classes) - set(expected))
            )
