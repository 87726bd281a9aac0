"""A data set of 21 + 11 small pictures for the tests of the input pipelines, and what the network should see of
each."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet_mp.data.pixel_statistics import Statistics
from alexnet_mp.recipes.architectures import paper, source2012
from alexnet_mp.recipes.recipe import Layer

STORED, CROP, BATCH = 40, 32, 8
TRAIN, VAL = 21, 11  # neither divisible by the batch size: two full training batches and one of 5
PRESETS = pytest.mark.parametrize("preset", [paper, source2012])


def noise(height, width, channels=3, seed=1):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(picture, kind="PNG", **options):
    """A file's bytes, from an array or a Pillow image."""
    buffer = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(buffer, kind, **options)
    return buffer.getvalue()


def write(root, files):
    """Write {"train/cat/1.png": bytes, ...} and return the folder."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def tiny(preset, **changes):
    """The preset's data path with small pictures; the network has one layer, since no test here runs it."""
    data = {"stored_size": STORED, "crop_size": CROP, "crop_positions": 8, "batch_size": BATCH}
    if preset is source2012:
        data |= {"crop_positions": 9, "crop_share": 4}
    layer = Layer("fc8", "fc", None, "image", (), towers="first")
    return dataclasses.replace(preset(), layers=(layer,), towers=1, dates=(), **data | changes)


def picture(split, index):
    """Noise, whose blue channel tells which image it is."""
    pixels = np.random.default_rng([index, split == "val"]).integers(0, 256, (STORED, STORED, 3), dtype=np.uint8)
    pixels[:, :, 2] = 10 * index
    return pixels


def label(split, index):
    return int(index >= (13 if split == "train" else 4))


def write_set(root):
    """The pictures as PNG files in class folders under `root`."""
    for split, count in (("train", TRAIN), ("val", VAL)):
        for index in range(count):
            path = root / split / ("ant", "bee")[label(split, index)] / f"{index:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(split, index)).save(path)
    return root


def fitted():
    """Statistics of no particular set: a mean that varies from pixel to pixel, and components askew to every axis."""
    random = np.random.default_rng(8)
    vectors = np.linalg.qr(random.normal(size=(3, 3)))[0]
    mean = (255 * random.random((STORED, STORED, 3))).astype(np.float32)
    return Statistics(mean, np.array([0.005, 0.02, 0.2]), vectors)


NOTHING = Statistics(np.zeros((STORED, STORED, 3), np.float32), np.zeros(3), np.eye(3))


def tenth(_epoch):
    return 0.1


def expected_image(recipe, pixels, top, left, flip, factors=(0, 0, 0), noise=0.0):
    """What the network should see of one picture, (3, crop, crop) float64: sections 2 and 4.1, or the 2012 source."""
    statistics, pixels = fitted(), pixels.astype(np.float64)
    mean = statistics.mean.astype(np.float64)
    crop = np.empty((3, CROP, CROP))
    for y in range(CROP):
        for x in range(CROP):
            column = left + (CROP - 1 - x if flip else x)
            # 2012: the centre of the mean image for every crop, and never flipped.
            under = mean[top + y, column] if recipe.name == "paper" else mean[4 + y, 4 + x]
            crop[:, y, x] = pixels[top + y, column] - under
    if noise:
        scale = statistics.eigenvalues if recipe.name == "paper" else np.sqrt(statistics.eigenvalues)
        for a, eigenvalue, component in zip(factors, scale, statistics.eigenvectors.T, strict=True):
            crop += (255 * noise * a * eigenvalue * component)[:, None, None]
        if recipe.name == "source2012":
            crop /= 1 + noise
    return crop


def same(batches, others):
    return len(batches) == len(others) and all(
        a.epoch == b.epoch
        and np.array_equal(a.numbers, b.numbers)
        and torch.equal(a.labels, b.labels)
        and len(a.images) == len(b.images)
        and all(torch.equal(x, y) for x, y in zip(a.images, b.images))
        for a, b in zip(batches, others)
    )
