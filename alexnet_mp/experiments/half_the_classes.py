"""Half of the classes of a data set, as a folder: for pre-training on a larger label set where there is no larger set.

The paper pre-trained on all of ImageNet, of which ILSVRC is a part, and fine-tuned on ILSVRC. In small: pre-trained on
all classes of a set, fine-tuned on every second one of them. The pictures are the stored ones, so no pixel differs."""

import os
from pathlib import Path

from PIL import Image

from ..data.dataset import DataSet
from ..system import durable_files
from ..system.errors import UserError
from ..system.file_lock import held
from ..system.terminal import progress


def every_second_class(dataset: DataSet, folder: str | Path) -> Path:
    """Write classes 0, 2, 4, ... of train and val into `folder`, a PNG file a stored picture, unless that is there
    already.

    Returns the folder, whole: it gets its name when all is written. Another process that writes the same is waited for.
    Raises UserError where fewer than two classes would be left, and with the path where it can't be written; nothing
    half written stays."""
    folder = Path(folder)
    if folder.is_dir():
        return folder
    count = len(range(0, len(dataset.classes), 2))
    if count < 2:
        raise UserError(
            f"{dataset.description}: every second class of {len(dataset.classes)} leaves {count} of the two "
            "that are needed; --larger DIR names a set of more classes to pre-train on"
        )
    notice = f"{folder} is being written by another process, which is waited for"
    with durable_files.writing(folder), held(f"{folder}.lock", notice):
        if not folder.is_dir():  # else the one that was waited for has made it
            with durable_files.new_directory(folder) as staging:
                for split in ("train", "val"):
                    _write(dataset, split, staging)
    return folder


def _write(dataset, split, staging):
    source = dataset.splits[split]
    for label in range(0, len(dataset.classes), 2):
        (staging / split / _name(dataset, label)).mkdir(parents=True)
    with progress(f"writing half of the classes of {split}", len(source)) as advance:
        for index, label in enumerate(source.labels):
            if label % 2 == 0:
                path = staging / split / _name(dataset, int(label)) / f"{index:08}.png"
                Image.fromarray(source.read(index)).save(path, compress_level=1)
                # the time is part of a folder's fingerprint: with one Pillow runs on it have the same name everywhere
                os.utime(path, (0, 0))
            advance(1)


def _name(dataset, label):
    """A class's folder: its number keeps the order, and its name need not be fit for a file system."""
    letters = (letter if letter.isalnum() or letter in "-_" else "_" for letter in dataset.classes[label])
    return f"{label:05}-{''.join(letters)[:50]}"
