"""Half of the classes of a data set, as a folder: for pre-training on a larger label set where there is no larger set.

The paper pre-trained on all of ImageNet, of which ILSVRC is a part, and fine-tuned on ILSVRC. In small: pre-trained on all classes
of a set, fine-tuned on every second one of them. The pictures are the stored ones, so no pixel differs.
"""
import shutil
from pathlib import Path

from PIL import Image

from .console import progress
from .errors import UserError


def every_second_class(dataset, stored_size, folder):
    """Write classes 0, 2, 4, ... of train and val as PNG files of `stored_size` pixels into `folder`, unless that is there already.

    Returns the folder. Raises UserError where fewer than two classes would be left.
    """
    folder, kept = Path(folder), range(0, len(dataset.classes), 2)
    if folder.is_dir():
        return folder
    if len(kept) < 2:
        raise UserError(f"{dataset.description}: every second class of {len(dataset.classes)} leaves {len(kept)} of the two "
                        "that are needed; --larger DIR names a set of more classes to pre-train on")
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for split in ("train", "val"):
        source = dataset.splits[split]
        for label in kept:
            (partial / split / _name(dataset, label)).mkdir(parents=True)
        with progress(f"writing half of the classes of {split}", len(source)) as advance:
            for index, label in enumerate(source.labels):
                if label in kept:
                    path = partial / split / _name(dataset, int(label)) / f"{index:08}.png"
                    Image.fromarray(source.read(index)).save(path, compress_level=1)
                advance(1)
    partial.rename(folder)
    return folder


def _name(dataset, label):
    """A class's folder: its number keeps the order, and its name need not be fit for a file system."""
    letters = (letter if letter.isalnum() or letter in "-_" else "_" for letter in dataset.classes[label])
    return f"{label:05}-{''.join(letters)[:50]}"
