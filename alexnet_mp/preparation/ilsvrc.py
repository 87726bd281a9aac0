"""The archives of ILSVRC-2012 and ILSVRC-2010 as distributed, and ImageNet's tars by wnid (Fall 2009, Fall 2011).

Labels number the wnids in sorted order, whatever the competition's own numbers are; those are kept beside them. A
validation image has a number in its name, which is the line of the ground truth with the competition's number of its
class."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..data.class_folders import BESIDE, HIDDEN, NO_PICTURE, PassedOver, is_hidden
from ..data.image_formats import is_picture
from ..data.prepared_format import UNLABELLED
from ..system.errors import UserError
from .devkit import struct_array
from .items import Item, Progress, Source, whole_file
from .tar_archives import Member, beginning, gzip_members, members, shown

LARGEST_FILE = 64 << 20  # of meta.mat or a ground truth
LARGEST_DEVKIT = 256 << 20  # unpacked
SYNSET_TAR = re.compile(r"n\d{8}\.tar")


class Competition(NamedTuple):
    key: str
    train: str
    val: str
    test: str | None  # None: its labels were never published
    devkits: tuple  # archives and folders, any of which will do


COMPETITIONS = (
    Competition(
        "ILSVRC2012",
        "ILSVRC2012_img_train.tar",
        "ILSVRC2012_img_val.tar",
        None,
        ("ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_devkit_t12"),
    ),
    Competition(
        "ILSVRC2010",
        "ILSVRC2010_images_train.tar",
        "ILSVRC2010_images_val.tar",
        "ILSVRC2010_images_test.tar",
        ("ILSVRC2010_devkit-1.0.tar.gz", "ILSVRC2010_devkit-1.0", "devkit-1.0.tar.gz", "devkit-1.0"),
    ),
)


class Synset(NamedTuple):
    number: int  # in the competition
    wnid: str
    words: str
    leaf: bool


def competitions(directory: str | Path) -> list[Competition]:
    """Those of which `directory` has an archive of images."""
    return [
        entry for entry in COMPETITIONS if any((Path(directory) / name).exists() for name in (entry.train, entry.val))
    ]


def find_competition(
    directory: str | Path,
    competition: Competition,
    note: Callable[[str], None] | None = None,
    unlabelled_test: bool = False,
) -> Source:
    """The `Source` that a competition's archives in `directory` are: train, val, and test for ILSVRC-2010 where it is
    there.

    unlabelled_test: test for ILSVRC-2012 too, where it is there, all its labels `UNLABELLED`, in the order of its
    numbers. Raises UserError where an archive is missing, damaged, or does not go with the others."""
    directory, progress, omissions = Path(directory), Progress(note), PassedOver()
    name = competition.key.replace("ILSVRC", "ILSVRC-")
    train = _required_path(directory, competition.train, f"{name}'s training images")
    val = _required_path(directory, competition.val, f"{name}'s validation images")
    synsets, truth = _devkit(directory, competition)
    patches = _patches(directory, omissions) if competition.test else {}
    leaves = {synset.wnid: synset for synset in synsets if synset.leaf}
    tars = synset_tars(train, members(train))
    if len(tars) < 2:
        raise UserError(f"{train}: {len(tars)} n########.tar in it; there should be one for each class")
    for wnid, _, _ in tars:
        if wnid not in leaves:
            raise UserError(f"{train}: {wnid}.tar: {wnid} is not one of the low-level synsets of {name}'s devkit")
    classes = [wnid for wnid, _, _ in tars]
    labels = {leaves[wnid].number: label for label, wnid in enumerate(classes)}
    wnids = {synset.number: synset.wnid for synset in synsets}
    splits = {
        "train": _class_items(tars, progress, patches, omissions),
        "val": _numbered_items(val, truth, labels, wnids, progress, patches, omissions),
    }
    if competition.test and (directory / competition.test).exists():
        answers = _required_path(
            directory, f"{competition.key}_test_ground_truth.txt", f"the labels of {competition.test}"
        )
        truth = _numbers(whole_file(answers, LARGEST_FILE), answers)
        splits["test"] = _numbered_items(
            directory / competition.test, truth, labels, wnids, progress, patches, omissions
        )
    tests = [] if competition.test else sorted(directory.glob(f"{competition.key}_im*_test*.tar"))
    if tests and unlabelled_test:
        # the newest: a later name ends with its date
        splits["test"] = _unlabelled_items(tests.pop(), progress, omissions)
    for path in tests if note else ():
        note(
            f"{path.name} is not used: "
            + (
                "a newer one is"
                if "test" in splits
                else "its labels were never published; --unlabelled-test takes it, for a submission"
            )
        )
    used = {*competition.devkits, competition.train, competition.val, competition.test, "patch_images.tar"}
    for file in sorted(directory.iterdir()):
        ours = file.name in used or file.match(f"{competition.key}_im*_test*.tar")
        if not ours and not file.name.endswith("_ground_truth.txt"):
            omissions.add(BESIDE, file.name)
    omissions.tell(note)
    if note and patches:
        used = sum(item.path.endswith("patch_images.tar") for items in splits.values() for item in items)
        note(f"patch_images.tar: {used:,} of its {len(patches):,} images replace another")
    if note and len(classes) < len(leaves):
        note(f"{competition.train} has {len(classes):,} of the {len(leaves):,} classes of the devkit")
    return Source(
        f"{name} archives in {directory}",
        classes,
        [leaves[wnid].words for wnid in classes],
        splits,
        [leaves[wnid].number for wnid in classes],
    )


def find_synset_tars(
    path: str | Path, files: Sequence[Member], note: Callable[[str], None] | None = None
) -> Source | None:
    """The `Source` of a directory of n########.tar, or of a tar that holds `files`; all its images are in train.

    None where there are none of them.
    """
    tars = synset_tars(path, files)
    if not tars:
        return None
    if len(tars) < 2:
        raise UserError(f"{path}: a single class, {tars[0][0]}; training needs at least two")
    classes = [wnid for wnid, _, _ in tars]
    kind = f"tars by wnid in {path}" if Path(path).is_dir() else f"tar of tars by wnid {path}"
    tar_names, omissions = {member.name if member else tar.name for _, tar, member in tars}, PassedOver()
    for name in sorted(file.name for file in (Path(path).iterdir() if Path(path).is_dir() else files)):
        if name not in tar_names:
            omissions.add(BESIDE, name)
    items = _class_items(tars, Progress(note), {}, omissions)
    omissions.tell(note)
    return Source(kind, classes, classes, {"train": items})


def synset_tars(path: str | Path, files: Iterable[Member] = ()) -> list[tuple[str, Path, Member | None]]:
    """[(wnid, path, Member or None)], sorted, of the n########.tar in a directory, or among the `files` of a
    tar."""
    path = Path(path)
    if path.is_dir():
        tars = [(file.stem, file, None) for file in path.iterdir() if SYNSET_TAR.fullmatch(file.name)]
    else:
        tars = [(_base(member.name)[:-4], path, member) for member in files if SYNSET_TAR.fullmatch(_base(member.name))]
    tars.sort(key=lambda tar: tar[0])
    for (first, _, _), (second, _, _) in zip(tars, tars[1:]):
        if first == second:
            raise UserError(f"{path}: {first}.tar: it is there twice, in two folders")
    return tars


def images(where: str | Path, path: str | Path, files: Iterable[Member], omissions: PassedOver) -> Iterator[Member]:
    """Those files of an archive that are pictures. `omissions` hears of the others. path: of the file on disk.

    Raises UserError for an archive among them."""
    for member in files:
        parts = member.name.split("/")
        if any(map(is_hidden, parts)):
            omissions.add(HIDDEN, f"{where}: {member.name}")
        elif parts[-1].lower().endswith(".tar"):
            raise UserError(f"{where}: {shown(member.name)}: an archive where images belong")
        elif is_picture(parts[-1], beginning(path, member)):
            yield member
        else:
            omissions.add(NO_PICTURE, f"{where}: {member.name}")


def _class_items(tars, progress, patches, omissions):
    """The images of tars by wnid: label = place of the tar in the list."""
    items = []
    for label, (wnid, path, member) in enumerate(tars):
        place, where = str(path), path if member is None else f"{path}: {member.name}"
        files = _by_name(where, path, members(path, member), omissions)
        if not files:
            raise UserError(f"{where}: the class is empty, no picture in it")
        items += [_item(f"{wnid}/{name}", name, label, place, files[name], patches) for name in sorted(files)]
        progress(lambda: f"{path.name}: {len(items):,} images, {label + 1:,} of {len(tars):,} classes")
    return items


def _numbered_items(path, truth, labels, wnids, progress, patches, omissions):
    """The images of an archive, each with a number before its suffix: its line of `truth`, counted from 1."""
    files, place, items, numbers = _by_name(path, path, members(path), omissions), str(path), [], set()
    for name, member in files.items():
        number = re.search(r"_(\d{1,9})\.", name)
        number = int(number[1]) if number else 0
        if not 1 <= number <= len(truth) or number in numbers:
            raise UserError(
                f"{path}: {shown(name)}: its number is not one of the ground truth's 1 to {len(truth):,}, once each"
            )
        numbers.add(number)
        if truth[number - 1] not in labels:
            wnid = wnids.get(truth[number - 1])
            raise UserError(
                f"{path}: {name}: its class, {truth[number - 1]}, "
                + (f"is {wnid}, which has no training images" if wnid else "is none of the devkit's")
            )
        items.append(_item(name, name, labels[truth[number - 1]], place, member, patches))
        progress(lambda: f"{path.name}: {len(items):,} images")
    if len(items) < len(truth):
        gap = next(number for number in range(1, len(truth) + 1) if number not in numbers)
        raise UserError(
            f"{path}: {len(items):,} images for the {len(truth):,} lines of the ground truth; number {gap} is missing"
        )
    return sorted(items, key=lambda item: (item.label, item.name))


def _unlabelled_items(path, progress, omissions):
    """The images of an archive of test images, numbered from 1 without a gap, in that order."""
    files, items = _by_name(path, path, members(path), omissions), []
    for number, name in enumerate(sorted(files), start=1):
        if not re.fullmatch(rf"ILSVRC2012_test_{number:08}\.\w+", name):
            raise UserError(
                f"{path}: {shown(name)}: expected is ILSVRC2012_test_{number:08}.JPEG; numbers begin with 1, and "
                "none is left out"
            )
        items.append(_item(name, name, UNLABELLED, str(path), files[name], {}))
        progress(lambda: f"{path.name}: {len(items):,} images")
    if not items:
        raise UserError(f"{path}: no images in it")
    return items


def _item(name, base, label, place, member, patches):
    place, member = patches.get(base, (place, member))
    return Item(name, label, place, member.offset, member.size)


def _by_name(where, path, files, omissions):
    """{name without folders: Member} of an archive's images; they may all lie in one folder, but no deeper."""
    by_name = {}
    for member in images(where, path, files, omissions):
        name = _base(member.name)
        if name in by_name:
            raise UserError(f"{where}: {shown(name)}: it is there twice, in two folders")
        if member.name.count("/") > 1:
            raise UserError(f"{where}: {shown(member.name)}: more folders around it than expected")
        by_name[name] = member
    return by_name


def _patches(directory, omissions):
    """{name: (archive, Member)} of `patch_images.tar`: what replaces images of ILSVRC-2010 that were blank."""
    path = directory / "patch_images.tar"
    if not path.exists():
        return {}
    return {_base(member.name): (str(path), member) for member in images(path, path, members(path), omissions)}


def _devkit(directory, competition):
    """The synsets of `meta.mat` and the validation ground truth, from the devkit's archive or its folder."""
    answers = f"{competition.key}_validation_ground_truth.txt"
    devkit = next((directory / name for name in competition.devkits if (directory / name).exists()), None)
    if devkit is None:
        raise UserError(
            f"{directory}: no {competition.devkits[0]}; it has the classes and the labels of the validation images"
        )
    contents = {}
    if devkit.is_dir():
        for name in ("meta.mat", answers):
            contents[name] = whole_file(_required_path(devkit, f"data/{name}", "classes and labels"), LARGEST_FILE)
    else:
        for name, content in gzip_members(
            devkit, lambda name: re.fullmatch(rf"(.*/)?data/(meta\.mat|{answers})", name), LARGEST_FILE, LARGEST_DEVKIT
        ):
            if _base(name) in contents:
                raise UserError(f"{devkit}: {shown(name)}: it is there twice, in two folders")
            contents[_base(name)] = content
        for name in ("meta.mat", answers):
            if name not in contents:
                raise UserError(f"{devkit}: no data/{name} in it; is it the development kit?")
    synsets = read_meta(contents["meta.mat"], competition.key, f"{devkit}: meta.mat")
    return synsets, _numbers(contents[answers], f"{devkit}: {answers}")


def read_meta(content: bytes, key: str, where: str | Path) -> list[Synset]:
    """The `Synset`s of a devkit's meta.mat; `key` is "ILSVRC2012" or "ILSVRC2010"."""
    try:
        rows = struct_array(content, "synsets", (f"{key}_ID", "WNID", "words", "num_children"))
    except ValueError as error:
        raise UserError(f"{where}: it can't be read: {shown(str(error))}") from None
    synsets = []
    for number, wnid, words, children in rows:
        texts, numbers = (
            isinstance(wnid, str) and isinstance(words, str),
            isinstance(number, int) and isinstance(children, int),
        )
        if not texts or not numbers or not re.fullmatch(r"n\d{8}", wnid) or not words.isprintable():
            raise UserError(f"{where}: {shown(str(wnid))}, {shown(str(words))}: no synset")
        synsets.append(Synset(number, wnid, words, children == 0))
    for what, values in (
        ("number", [synset.number for synset in synsets]),
        ("wnid", [synset.wnid for synset in synsets]),
    ):
        if len(set(values)) < len(values):
            raise UserError(f"{where}: two synsets have the same {what}")
    return synsets


def _numbers(content, where):
    lines = content.decode(errors="replace").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    for row, line in enumerate(lines, start=1):
        if not re.fullmatch(r"[0-9]{1,9}", line.strip()):
            raise UserError(f"{where}: line {row} is no number of a class: {shown(line)}")
    return [int(line) for line in lines]


def _required_path(directory, name, purpose):
    if not (directory / name).exists():
        raise UserError(f"{directory}: no {name}; it has {purpose}")
    return directory / name


def _base(name):
    return name.rsplit("/", 1)[-1]
