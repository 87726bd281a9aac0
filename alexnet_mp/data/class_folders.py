"""Folders of class folders, on a disk or in a tar: which files are pictures of which class, and what is passed over.

One reading for all who take such folders, so that `prepare`, `train` and a tar of the same files agree. Nothing is
passed over in silence: `PassedOver` counts it and names it."""

import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Protocol, TypeVar

from ..system.errors import UserError
from ..system.terminal import printable
from .class_names import nearly_same
from .file_ranges import Descriptor
from .image_formats import READ, is_picture

# A folder of such a name, in any case, is the split. Without train beside it, it must have folders: it may be a class.
OTHER_NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
SPLITS = tuple(OTHER_NAMES)
WANTED = "train/, val/ (or valid/, validation/) and test/"

MOST_NAMED = 5

# Folders that a system puts among a person's own: of macOS's archives, of a Synology disk, of ext4 and of Windows.
SYSTEMS_OWN = frozenset(("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"))

# Why something is passed over, and what is said behind the names.
HIDDEN = "hidden", ""
NO_PICTURE = "no picture", f"; pictures are {READ}"
UNOPENED = "can't be looked at", ""
BELOW = "in a folder within a class", "; pictures belong in <class>/ itself"
OUTSIDE = "outside the class folders", ""
NO_SPLIT = "no split", f"; read are {WANTED}"
UNLABELLED_TEST = (
    "without a class folder, so without a label",
    "; prepare --unlabelled-test takes pictures in test/ itself",
)
BESIDE = "beside the archives", ""
File = TypeVar("File", covariant=True)


class Tree(Protocol[File]):
    """A folder on a disk, `DiskFolder`, or in a tar, `preparation.tar_archives.TarFolder`."""

    where: str  # as messages give it
    name: str
    files: Mapping[str, File]  # by name: what opens one, a path or a `Member`
    folders: Mapping[str, "Tree[File]"]
    hidden: Sequence[str]  # names

    @property
    def identity(self) -> Hashable: ...  # the same of two folders that are one, by a link

    def is_picture(self, name: str) -> bool: ...

    def is_lost(self, name: str) -> bool: ...  # whether a file is a link to nothing

    def below(self) -> Iterator[str]: ...


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name in SYSTEMS_OWN


class PassedOver:
    """What is not read of a source: how many of a kind, and the first names of it. And what is odd about the rest."""

    def __init__(self):
        self.entries = {}  # reason: [count, first names]
        self.odd = {}  # lines, each once

    def add(self, reason: tuple[str, str], name: str) -> None:
        entry = self.entries.setdefault(reason, [0, []])
        entry[0] += 1
        if len(entry[1]) < MOST_NAMED:
            entry[1].append(printable(name if len(name) <= 200 else name[:200] + "..."))

    def add_outside(self, folder: "Tree", place: str) -> None:
        """The files of a folder that should hold nothing but folders."""
        for name in folder.files:
            if folder.is_lost(name):
                self.add(UNOPENED, f"{place}{name}: a link to nothing")
            else:
                self.add(OUTSIDE, place + name)

    def remark(self, line: str) -> None:
        self.odd[line] = None

    def lines(self) -> list[str]:
        """A line for each oddity, and for each reason."""
        return [*self.odd] + [
            f"passed over, {reason}: {count:,} ({', '.join(names)}"
            + (f" and {count - len(names):,} more" if count > len(names) else "")
            + f"){end}"
            for (reason, end), (count, names) in self.entries.items()
        ]

    def tell(self, note: Callable[[str], None] | None) -> None:
        """Hand the lines to `note`, a function, or None."""
        for line in self.lines() if note else ():
            note(line)


class DiskFolder:
    """A folder on a disk. files: {name: path}, folders: {name: `DiskFolder`}, by name; `hidden` names are apart.

    Raises UserError where it can't be listed."""

    def __init__(self, path: str | Path):
        self.path, self.where, self.name = str(path), str(path), os.path.basename(path)
        self._listed = None

    @property
    def files(self) -> dict[str, str]:
        return self._list()[0]

    @property
    def folders(self) -> dict[str, "DiskFolder"]:
        return self._list()[1]

    @property
    def hidden(self) -> list[str]:
        return self._list()[2]

    def _list(self):
        if self._listed is None:
            files, folders, hidden = {}, {}, []
            try:
                with os.scandir(self.path) as entries:
                    for entry in sorted(entries, key=lambda entry: entry.name):
                        if is_hidden(entry.name):
                            hidden.append(entry.name)
                        elif _is_folder(entry):
                            folders[entry.name] = DiskFolder(entry.path)
                        else:
                            files[entry.name] = entry.path
            except OSError as error:
                raise UserError(f"cannot read folder {self.path}: {error.strerror}") from None
            self._listed = files, folders, hidden
        return self._listed

    @property
    def identity(self) -> str:
        return os.path.realpath(self.path)

    def is_lost(self, name: str) -> bool:
        return not os.path.exists(self.files[name])

    def is_picture(self, name: str) -> bool:
        """Raises UserError where the file has to be looked at for that, and can't be."""
        return is_picture(name, _Beginning(self.files[name]))

    def below(self) -> Iterator[str]:
        """The names of all files, relative; a link to a folder counts as one, since it may lead round in a circle."""
        if os.path.islink(self.path):
            yield ""
            return
        for place, folders, files in os.walk(self.path):
            folders.sort()
            links = [name for name in folders if os.path.islink(os.path.join(place, name))]
            for name in sorted(files + links):
                yield os.path.relpath(os.path.join(place, name), self.path)


def _is_folder(entry):
    try:
        return entry.is_dir()  # no look at the disk, but for links
    except OSError:  # a link to itself
        return False


class _Beginning:
    """read(start, count) of a file that is opened for each, and never waited for."""

    def __init__(self, path):
        self.path = path

    def __call__(self, start, count):
        with Descriptor(self.path, self.path) as file:
            return file.read(start, count)


def split_folders(root: Tree, omissions: PassedOver) -> dict[str, Tree]:
    """{split: folder} of the splits that `root` has, as they are or by other names. All else in it is passed over.

    Raises UserError where two folders may be meant."""
    folders = {}
    has_train = "train" in root.folders or any(
        name.lower() in OTHER_NAMES["train"] and folder.folders for name, folder in root.folders.items()
    )
    for split, names in OTHER_NAMES.items():
        candidates = [
            name for name, folder in root.folders.items() if name.lower() in names and (has_train or folder.folders)
        ]
        if split in root.folders:
            candidates = [split]
        if len(candidates) > 1:
            raise UserError(
                f"{root.where}: {candidates[0]}/ and {candidates[1]}/ both mean {split}; rename one to {split}/"
            )
        if candidates:
            folders[split] = root.folders[candidates[0]]
    ids = {id(folder) for folder in folders.values()}
    for name in root.hidden:
        omissions.add(HIDDEN, name)
    omissions.add_outside(root, "")
    for name, folder in root.folders.items():
        if id(folder) not in ids:
            omissions.add(NO_SPLIT, f"{name}/")
    for first, second in combinations(folders, 2):
        if folders[first].identity == folders[second].identity:
            omissions.remark(f"{first}/ and {second}/ are one folder: what is measured on {second} was seen in {first}")
    return folders


def has_no_train(root: Tree) -> bool:
    """Whether `root` has val or test, with folders in them, but no train."""
    folders = split_folders(root, PassedOver())
    return "train" not in folders and any(folder.folders for folder in folders.values())


def refuse_lost_val(root: Tree, splits: Mapping[str, Tree], otherwise: str = "") -> None:
    """Raise UserError where a `root` with train has no val, but a file, or a link to nothing, of such a name."""
    for name in root.files if "train" in splits and "val" not in splits else ():
        if name.lower() in OTHER_NAMES["val"]:
            what = "a link to nothing" if root.is_lost(name) else "no folder"
            raise UserError(f"{root.where}: {printable(name)} is {what}; mend it, or remove it{otherwise}")


def inner_source(root: Tree) -> str | None:
    """The name of the only folder in `root` that has train/, or class folders with pictures; None where none has, or
    several."""
    candidates = [
        name
        for name, folder in root.folders.items()
        if "train" in split_folders(folder, PassedOver()) or any(map(has_picture, folder.folders.values()))
    ]
    return candidates[0] if len(candidates) == 1 else None


def val_by_another_name(root: Tree, splits: Mapping[str, Tree]) -> str | None:
    """Of a `root` with train but without val: the name of another folder with pictures of some of train's classes.

    None where there is no such folder."""
    if "val" in splits or "train" not in splits:
        return None
    ids, classes = {id(folder) for folder in splits.values()}, splits["train"].folders.keys()
    for name, folder in root.folders.items():
        if id(folder) not in ids and any(has_picture(folder.folders[key]) for key in classes & folder.folders.keys()):
            return name
    return None


def has_picture(folder: Tree) -> bool:
    """Whether a picture lies in a folder itself."""
    omissions = PassedOver()
    return any(_is_picture(folder, name, "", omissions) for name in folder.files)


def classes_of(folder: Tree, fewest: int = 2) -> list[str]:
    """The names of the class folders, sorted. Raises UserError where there are fewer than `fewest`, 1 or 2."""
    names = list(folder.folders)
    if len(names) < fewest:
        content = f"a single class, {printable(names[0])}" if names else "no class folders"
        raise UserError(f"{folder.where}: {content}; training needs at least two, as folders of pictures in it")
    return names


def pictures_of(folder: Tree[File], omissions: PassedOver, place: str = "") -> dict[str, dict[str, File]]:
    """{class: {name: file}} of a folder of class folders, by name. place: of the folder, "train/", for what is named.

    Raises UserError for a class without a picture."""
    for name in folder.hidden:
        omissions.add(HIDDEN, place + name)
    omissions.add_outside(folder, place)
    for line in nearly_same(folder.folders):
        omissions.remark(line)
    pictures, first_names = {}, {}
    for name, class_folder in folder.folders.items():
        if (first_name := first_names.setdefault(class_folder.identity, name)) != name:
            one, other = (printable(f"{place}{each}/") for each in (first_name, name))
            omissions.remark(f"{one} and {other} are one folder: two classes of the same pictures")
        pictures[name] = pictures_in(class_folder, omissions, f"{place}{name}/")
        if not pictures[name]:
            subfolder = next((f"{sub}/" for sub, inner in class_folder.folders.items() for _ in inner.below()), None)
            raise UserError(
                f"{class_folder.where}: the class is empty, no picture in it ({READ})"
                + (f"; pictures belong in {name}/ itself, not in {name}/{subfolder}" if subfolder else "")
            )
    return pictures


def pictures_in(folder: Tree[File], omissions: PassedOver, place: str) -> dict[str, File]:
    """{name: file} of the pictures that lie in a folder itself, by name."""
    for name in folder.hidden:
        omissions.add(HIDDEN, place + name)
    for name, inner in folder.folders.items():
        for file in inner.below():
            omissions.add(BELOW, f"{place}{name}/{file}".rstrip("/"))
    return {name: file for name, file in folder.files.items() if _is_picture(folder, name, place, omissions)}


def _is_picture(folder, name, place, omissions):
    try:
        if folder.is_picture(name):
            return True
        omissions.add(NO_PICTURE, place + name)
    except UserError as error:
        omissions.add(UNOPENED, f"{place}{name}: {str(error).rsplit(': ', 1)[-1]}")
    return False
