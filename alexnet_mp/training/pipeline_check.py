"""What the self-check calls for the data pipeline, in a process of its own: training batches and views of a test, from
pictures that are made here, against `pipeline_torch.py` on a CPU."""

import io
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from ..data.augmentation import colour_shift, draws, of_view
from ..data.batches import EpochKeys
from ..data.pipeline import make_pipeline
from ..data.pipeline_torch import TorchPipeline
from ..data.pixel_statistics import Sums
from ..data.resize import decoded
from ..evaluation.protocol import ten_views
from ..kernels import reference
from ..recipes.recipe import Recipe
from ..system.isolated import Wrong
from .device_checks import compare, rounding, synchronize

BATCH, PICTURES = 16, 24  # a whole batch, and one that is not
DECODER = {"mean": 1.0, "99.9 %": 4.0}  # grey levels that a GPU's JPEG decoder may differ by, on average and mostly


def pipeline(
    devices: Sequence[torch.device],
    name: str,
    storage: str,
    recipe: Recipe,
    dtype: torch.dtype,
    augmented_by: Sequence[str],
) -> None:
    """An epoch of two batches, and two views of a test, from pictures that are made here.

    storage: what the splits of the data hold, see `dataset.py`. augmented_by: who computes `augment` here; only so that
    what is remembered of one is not taken for the other.
    """
    random = np.random.default_rng(7)
    pictures = [_photograph(random, recipe.stored_size) for _ in range(PICTURES)]
    kinds = ("jpeg", "pixels") if storage == "jpeg" and any(device.type == "cuda" for device in devices) else (storage,)
    for kind in kinds:  # what comes after a GPU's decoder is exact, and compared as such
        split, total = _Pictures(pictures, kind), Sums(recipe.stored_size)
        read = [split.read(index) for index in range(PICTURES)]
        for picture in read:
            total.add(picture)
        data = SimpleNamespace(splits={"train": split, "val": split}, description="made for the self-check")
        ours = make_pipeline(name, data, recipe, devices, 2, dtype)
        plain = TorchPipeline(data, recipe, ["cpu"], 0, dtype)
        for reader in (ours, plain):
            reader.use(total.statistics())
        _compare_training(ours, plain, np.stack(read), kind)
        _compare_views(ours, plain, np.stack(read), kind)
    synchronize(devices)


def _photograph(random, size):
    """Smooth with a little noise."""
    coarse = Image.fromarray(random.integers(0, 256, (17, 17, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
    return (smooth + random.normal(0, 4, smooth.shape)).clip(0, 255).astype(np.uint8)


class _Pictures:
    """A split in memory, of pictures or of their JPEG files."""

    def __init__(self, pictures, storage):
        self.pictures, self.storage, self.size = pictures, storage, len(pictures[0])
        self.labels = np.arange(len(pictures))
        self.names = [f"made picture {number}" for number in self.labels]
        self.files = [_jpeg(picture) for picture in pictures] if storage == "jpeg" else []

    def __len__(self):
        return len(self.pictures)

    def jpeg(self, index):
        return np.frombuffer(self.files[index], np.uint8)

    def read(self, index):
        if not self.files:
            return self.pictures[index]
        return decoded(io.BytesIO(self.files[index]), self.size, self.names[index])


def _jpeg(picture):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=95)
    return file.getvalue()


def _compare_training(ours, plain, pictures, storage):
    recipe = ours.recipe

    def noise(epoch):
        return recipe.colour_noise

    found, expected = (list(reader.train(0, 1, noise)) for reader in (ours, plain))
    numbers, others = (
        [(batch.numbers.tolist(), batch.labels.tolist()) for batch in made] for made in (found, expected)
    )
    if numbers != others:
        raise Wrong("makes batches of other images, or with other labels, than pipeline torch")
    keys = EpochKeys(recipe, len(pictures), 0, 1)
    for (epoch, positions, images), batch, torchs in zip(keys, found, expected, strict=True):
        drawn = draws(recipe, epoch, images, positions)
        shift = colour_shift(recipe, plain.statistics, drawn.colour, noise(epoch))
        exact = _exact(plain, pictures[images], drawn, *shift)
        _compare_images("batch", batch.images, torchs.images[0], exact, storage, ours)


def _compare_views(ours, plain, pictures, storage):
    which, start = [ten_views(ours.recipe)[2], ten_views(ours.recipe)[-1]], 0
    found, expected = (
        [(list(views), labels.tolist()) for views, labels in reader.views("val", BATCH, which)]
        for reader in (ours, plain)
    )
    if [labels for _, labels in found] != [labels for _, labels in expected]:
        raise Wrong("gives other labels to the images of a test, or other images, than pipeline torch")
    for (of_ours, labels), (of_torch, _) in zip(found, expected, strict=True):
        part = pictures[start : start + len(labels)]
        for view, images, torchs in zip(which, of_ours, of_torch, strict=True):
            exact = _exact(plain, part, of_view(view, len(part)), np.zeros((len(part), 3), np.float32), 1.0)
            _compare_images("view of a test", images, torchs[0], exact, storage, ours)
        start += len(labels)


def _exact(reader, pictures, drawn, shift, scale):
    """What a batch has to be, in float64."""
    places = (torch.from_numpy(values) for values in (drawn.top, drawn.left, drawn.flip))
    mean, recipe = torch.from_numpy(reader.statistics.mean).float().double(), reader.recipe
    return reference.augment(
        torch.from_numpy(pictures),
        *places,
        mean,
        torch.from_numpy(shift).double(),
        scale,
        crop=recipe.crop_size,
        mean_follows_crop=recipe.mean_follows_crop,
        dtype=torch.float64,
    )


def _compare_images(what, images, torchs, exact, storage, reader):
    for device, found in zip(reader.devices, images, strict=True):
        if found.device != device and not found.device.type == device.type == "cpu":
            raise Wrong(f"makes a {what} for {device} on {found.device}")
        if storage == "jpeg" and reader.name == "dali" and device.type == "cuda":
            levels = (found.cpu().double() - torchs.double()).abs().flatten()
            off = {"mean": float(levels.mean()), "99.9 %": float(np.quantile(levels.numpy(), 0.999))}
            if not all(off[measure] <= most for measure, most in DECODER.items()):
                raise Wrong(
                    f"decodes JPEGs for {device} unlike pipeline torch: grey levels off by {off['mean']:.2g} "
                    f"on average, by up to {off['99.9 %']:.2g} in 99.9 % of all values"
                )
            continue
        compare(f"pixels of a {what}", found.cpu(), torchs, exact, rounding(exact))
