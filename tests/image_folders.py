"""Folders of noisy pictures, one tint a class."""

import numpy as np
import pytest
from PIL import Image

CLASSES = ("apple", "leaf", "sky")


def make_folder(root, train=8, val=5, size=(140, 120), classes=CLASSES):
    """A folder data set of noisy pictures, one tint a class: root/{train,val}/<class>/<n>.jpg."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 120, (size[1], size[0], 3))
                pixels[:, :, label % 3] += 100
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{index}.jpg")
    return root


def needs_faiss():
    """Of a test that searches: skip it where faiss isn't installed, as beside a torch that a machine brings along."""
    pytest.importorskip("faiss", reason="faiss is not installed")
