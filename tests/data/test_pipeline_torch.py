"""Batches against one image at a time in float64; who reads, from where, and how often changes nothing."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from inner_cases import every
from small_set import (
    BATCH,
    NOTHING,
    PRESETS,
    STORED,
    TRAIN,
    VAL,
    expected_image,
    fitted,
    label,
    picture,
    same,
    tenth,
    tiny,
    write_set,
)

from alexnet_mp.data.augmentation import Augment, draws, order
from alexnet_mp.data.dataset import Folder
from alexnet_mp.data.pipeline_torch import TorchPipeline
from alexnet_mp.data.survey import survey
from alexnet_mp.evaluation.protocol import centre_view, ten_views
from alexnet_mp.recipes.architectures import paper
from alexnet_mp.system.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("images"))


def pipeline(root, recipe, workers=0, devices=("cpu",), statistics=None):
    result = TorchPipeline(Folder(root, STORED), recipe, devices, workers)
    result.use(statistics or fitted())
    return result


@PRESETS
def test_a_batch_is_its_images_one_by_one(root, preset):
    recipe, noise = tiny(preset), {1: 0.1, 2: 0.0, 3: 0.3}
    batches = list(pipeline(root, recipe, devices=("cpu", "cpu")).train(0, 3, noise.get))
    assert [(batch.epoch, len(batch.labels)) for batch in batches] == [(e, n) for e in (1, 2, 3) for n in (8, 8, 5)]
    crops = set()
    for number, batch in enumerate(batches):
        assert len(batch.images) == 2 and torch.equal(*batch.images)
        assert batch.images[0].dtype == torch.float32 and batch.labels.dtype == torch.int64
        assert batch.images[0].is_contiguous(memory_format=torch.channels_last)
        for place, image in enumerate(batch.images[0].double().numpy(), start=number % 3 * BATCH):
            index = order(recipe, batch.epoch, TRAIN)[place]
            draw = draws(recipe, batch.epoch, np.array([index]), np.array([place]))
            crops.add((draw.top[0], draw.left[0], draw.flip[0]))
            expected = expected_image(
                recipe,
                picture("train", index),
                draw.top[0],
                draw.left[0],
                draw.flip[0],
                draw.colour[0],
                noise[batch.epoch],
            )
            assert np.abs(image - expected).max() < 1e-4
            assert batch.labels[place % BATCH] == label("train", index)
    assert {flip for _, _, flip in crops} == {False, True} and len(crops) > 10  # else few would have been compared


@PRESETS
def test_every_image_once_an_epoch(root, preset):
    batches = list(pipeline(root, tiny(preset), statistics=NOTHING).train(0, 2, lambda epoch: 0.0))
    for epoch in (1, 2):
        images = torch.cat([batch.images[0][:, 2] for batch in batches if batch.epoch == epoch])
        labels = torch.cat([batch.labels for batch in batches if batch.epoch == epoch])
        assert (images == images[:, :1, :1]).all()  # the blue channel of a picture is one number
        indices = (images[:, 0, 0] / 10).long().tolist()
        assert sorted(indices) == list(range(TRAIN)) and indices != sorted(indices)
        assert labels.tolist() == [label("train", index) for index in indices]


@pytest.mark.process
@PRESETS
@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_decides_nothing(root, preset, workers):
    recipe = tiny(preset)
    batches = list(pipeline(root, recipe).train(1, 2, tenth))
    assert len(batches) == 5 and same(list(pipeline(root, recipe, workers).train(1, 2, tenth)), batches)
    views = [list(pipeline(root, recipe, count).views("val", 4, ten_views(recipe))) for count in (0, workers)]
    for (a, labels), (b, other_labels) in zip(*views, strict=True):
        assert torch.equal(labels, other_labels)
        assert all(torch.equal(x[0], y[0]) for x, y in zip(a, b, strict=True))


@PRESETS
def test_a_start_at_step_k_skips_k_batches(root, preset):
    batches = list(pipeline(root, tiny(preset)).train(0, 2, tenth))
    assert len(batches) == 6 and not same(batches[:3], batches[3:])
    for step in range(8):
        assert same(list(pipeline(root, tiny(preset)).train(step, 2, tenth)), batches[step:])


@pytest.mark.run
@PRESETS
def test_the_colour_shift_has_the_covariance_of_its_source(preset):
    """Of 255 x 0.1 x the factors: paper, E diag(eigenvalue^2) E^T; 2012, E diag(eigenvalue) E^T over 1.1^2."""
    count, statistics = 30_000, dataclasses.replace(fitted(), mean=np.zeros((2, 2, 3), np.float32))
    recipe = tiny(preset, stored_size=2, crop_size=1, crop_positions=2)
    draw = draws(recipe, 1, np.arange(count), np.arange(count))
    shifts = Augment(recipe, statistics, "cpu")(torch.zeros(count, 1, 1, 3, dtype=torch.uint8), draw, 0.1)
    shifts = shifts.double().numpy().reshape(count, 3)
    values, vectors = statistics.eigenvalues, statistics.eigenvectors
    diagonal = values**2 if preset is paper else values / 1.21
    expected = 0.01 * 255**2 * vectors @ np.diag(diagonal) @ vectors.T
    variances = np.diag(expected)
    bound = 5 * np.sqrt((np.outer(variances, variances) + expected**2) / count)  # of normals: five deviations
    assert (np.abs(shifts.T @ shifts / count - expected) < bound).all()
    assert (np.abs(shifts.mean(0)) < 5 * np.sqrt(variances / count)).all()


@pytest.mark.run
@PRESETS
def test_views_are_plain_crops_minus_the_mean(root, preset):
    """Every image of the split once, in order, without colour noise; the last batch has what is left."""
    recipe, index = tiny(preset), 0
    which = ten_views(recipe)
    batches = list(pipeline(root, recipe, devices=("cpu", "cpu")).views("val", 4, which))
    assert [len(labels) for _, labels in batches] == [4, 4, 3]
    for views, labels in batches:
        views = list(views)
        assert len(views) == 10 and all(len(images) == 2 and torch.equal(*images) for images in views)
        for place, class_index in enumerate(labels.tolist()):
            assert class_index == label("val", index)
            for (top, left, flip), images in zip(which, views, strict=True):
                expected = expected_image(recipe, picture("val", index), top, left, flip)
                assert np.abs(images[0][place].double().numpy() - expected).max() < 1e-4
            index += 1
    assert index == VAL


@pytest.mark.process
@every("workers", [0, 2])
@every(
    "split, read",
    [
        ("train", lambda reader: reader.train(0, 1, tenth)),
        ("val", lambda reader: reader.views("val", 4, centre_view(reader.recipe))),
        ("val", lambda reader: [survey(reader.dataset.splits["val"], STORED, reader.workers, lambda count: None)]),
    ],
    ids=["train", "views", "survey"],
)
def test_an_unreadable_image_is_named_in_one_line(root, tmp_path, split, read, workers):
    copy = shutil.copytree(root, tmp_path / "copy")
    path = copy / split / "bee" / f"{TRAIN - 1 if split == 'train' else VAL - 1}.png"
    assert path.exists()
    path.write_bytes(b"not an image")
    with pytest.raises(UserError) as refusal:
        list(read(pipeline(copy, tiny(paper), workers)))
    message = str(refusal.value)
    assert message.startswith(f"cannot read image {path}: ") and "\n" not in message and "Traceback" not in message
