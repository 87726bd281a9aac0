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
    generator = np.random.default_rng(7)
    pictures = [_photograph(generator, recipe.stored_size) for _ in range(PICTURES)]
    kinds = ("jpeg", "pixels") if storage == "jpeg" and any(device.type == "cuda" for device in devices) else (storage,)
    for kind in kinds:  # what comes after a GPU's decoder is exact, and compared as such
        split, total = _Pictures(pictures, kind), Sums(recipe.stored_size)
        pixels = [split.read(index) for index in range(PICTURES)]
        for picture in pixels:
            total.add(picture)
        data = SimpleNamespace(splits={"train": split, "val": split}, description="made for the self-check")
        ours = make_pipeline(name, data, recipe, devices, 2, dtype)
        oracle = TorchPipeline(data, recipe, ["cpu"], 0, dtype)
        for reader in (ours, oracle):
            reader.use(total.statistics())
        _compare_training(ours, oracle, np.stack(pixels), kind)
        _compare_views(ours, oracle, np.stack(pixels), kind)
    synchronize(devices)


def _photograph(generator, size):
    """Smooth with a little noise."""
    grid = Image.fromarray(generator.integers(0, 256, (17, 17, 3), dtype=np.uint8))
    image = np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC))
    return (image + generator.normal(0, 4, image.shape)).clip(0, 255).astype(np.uint8)


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


def _compare_training(ours, oracle, pictures, storage):
    recipe = ours.recipe

    def noise(epoch):
        return recipe.colour_noise

    batches, oracle_batches = (list(reader.train(0, 1, noise)) for reader in (ours, oracle))
    numbers, oracle_numbers = (
        [(batch.numbers.tolist(), batch.labels.tolist()) for batch in sequence]
        for sequence in (batches, oracle_batches)
    )
    if numbers != oracle_numbers:
        raise Wrong("makes batches of other images, or with other labels, than pipeline torch")
    keys = EpochKeys(recipe, len(pictures), 0, 1)
    for (epoch, positions, images), batch, torchs in zip(keys, batches, oracle_batches, strict=True):
        draw = draws(recipe, epoch, images, positions)
        shift = colour_shift(recipe, oracle.statistics, draw.colour, noise(epoch))
        exact = _exact_batch(oracle, pictures[images], draw, *shift)
        _compare_images("batch", batch.images, torchs.images[0], exact, storage, ours)


def _compare_views(ours, oracle, pictures, storage):
    protocol, start = [ten_views(ours.recipe)[2], ten_views(ours.recipe)[-1]], 0
    batches, oracle_batches = (
        [(list(views), labels.tolist()) for views, labels in reader.views("val", BATCH, protocol)]
        for reader in (ours, oracle)
    )
    if [labels for _, labels in batches] != [labels for _, labels in oracle_batches]:
        raise Wrong("gives other labels to the images of a test, or other images, than pipeline torch")
    for (tensors, labels), (oracle_tensors, _) in zip(batches, oracle_batches, strict=True):
        part = pictures[start : start + len(labels)]
        for view, images, torchs in zip(protocol, tensors, oracle_tensors, strict=True):
            exact = _exact_batch(oracle, part, of_view(view, len(part)), np.zeros((len(part), 3), np.float32), 1.0)
            _compare_images("view of a test", images, torchs[0], exact, storage, ours)
        start += len(labels)


def _exact_batch(reader, pictures, draw, shift, scale):
    """What a batch has to be, in float64."""
    places = (torch.from_numpy(values) for values in (draw.top, draw.left, draw.flip))
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
    for device, tensor in zip(reader.devices, images, strict=True):
        if tensor.device != device and not tensor.device.type == device.type == "cpu":
            raise Wrong(f"makes a {what} for {device} on {tensor.device}")
        if storage == "jpeg" and reader.name == "dali" and device.type == "cuda":
            levels = (tensor.cpu().double() - torchs.double()).abs().flatten()
            errors = {"mean": float(levels.mean()), "99.9 %": float(np.quantile(levels.numpy(), 0.999))}
            if not all(errors[measure] <= limit for measure, limit in DECODER.items()):
                raise Wrong(
                    f"decodes JPEGs for {device} unlike pipeline torch: grey levels off by {errors['mean']:.2g} "
                    f"on average, by up to {errors['99.9 %']:.2g} in 99.9 % of all values"
                )
            continue
        compare(f"pixels of a {what}", tensor.cpu(), torchs, exact, rounding(exact))
