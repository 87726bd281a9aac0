"""Batches against one image at a time in float64; who reads, from where, and how often changes nothing."""
import dataclasses
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet_mp import pipeline_torch
from alexnet_mp.dataset import Folder, cached
from alexnet_mp.draws import draws, order
from alexnet_mp.errors import UserError
from alexnet_mp.pipeline_torch import Augment, TorchPipeline, centre_view, ten_views
from alexnet_mp.recipe import Layer, mini, paper, source2012
from alexnet_mp.statistics import Statistics, Sums

STORED, CROP, BATCH = 40, 32, 8
TRAIN, VAL = 21, 11  # neither divisible by the batch size: two full training batches and one of 5
PRESETS = pytest.mark.parametrize("preset", [paper, source2012])


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


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
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


def pipeline(root, recipe, workers=0, devices=("cpu",), statistics=None):
    result = TorchPipeline(Folder(root, STORED), recipe, devices, workers)
    result.use(statistics or fitted())
    return result


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
        a.epoch == b.epoch and torch.equal(a.labels, b.labels) and len(a.images) == len(b.images)
        and all(torch.equal(x, y) for x, y in zip(a.images, b.images)) for a, b in zip(batches, others))


@PRESETS
def test_a_batch_is_its_images_one_by_one(root, preset):
    recipe, noise = tiny(preset), {1: 0.1, 2: 0.0, 3: 0.3}
    batches = list(pipeline(root, recipe, devices=("cpu", "cpu")).train(0, 3, noise.get))
    assert [(batch.epoch, len(batch.labels)) for batch in batches] == [(e, n) for e in (1, 2, 3) for n in (8, 8, 5)]
    seen = set()
    for number, batch in enumerate(batches):
        assert len(batch.images) == 2 and torch.equal(*batch.images)
        assert batch.images[0].dtype == torch.float32 and batch.labels.dtype == torch.int64
        assert batch.images[0].is_contiguous(memory_format=torch.channels_last)
        for place, image in enumerate(batch.images[0].double().numpy(), start=number % 3 * BATCH):
            index = order(recipe, batch.epoch, TRAIN)[place]
            drawn = draws(recipe, batch.epoch, np.array([index]), np.array([place]))
            seen.add((drawn.top[0], drawn.left[0], drawn.flip[0]))
            expected = expected_image(recipe, picture("train", index), drawn.top[0], drawn.left[0], drawn.flip[0],
                                      drawn.colour[0], noise[batch.epoch])
            assert np.abs(image - expected).max() < 1e-4
            assert batch.labels[place % BATCH] == label("train", index)
    assert {flip for _, _, flip in seen} == {False, True} and len(seen) > 10  # else few crops would have been compared


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


@PRESETS
@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_decides_nothing(root, preset, workers):
    recipe = tiny(preset)
    alone = list(pipeline(root, recipe).train(1, 2, tenth))
    assert len(alone) == 5 and same(list(pipeline(root, recipe, workers).train(1, 2, tenth)), alone)
    views = [list(pipeline(root, recipe, count).views("val", 4, ten_views(recipe))) for count in (0, workers)]
    for (a, labels), (b, other_labels) in zip(*views, strict=True):
        assert torch.equal(labels, other_labels)
        assert all(torch.equal(x[0], y[0]) for x, y in zip(a, b, strict=True))


@PRESETS
def test_a_start_at_step_k_skips_k_batches(root, preset):
    whole = list(pipeline(root, tiny(preset)).train(0, 2, tenth))
    assert len(whole) == 6 and not same(whole[:3], whole[3:])
    for step in range(8):
        assert same(list(pipeline(root, tiny(preset)).train(step, 2, tenth)), whole[step:])


@PRESETS
def test_the_colour_shift_has_the_covariance_of_its_source(preset):
    """Of 255 x 0.1 x the factors: paper, E diag(eigenvalue^2) E^T; 2012, E diag(eigenvalue) E^T over 1.1^2."""
    count, statistics = 30_000, dataclasses.replace(fitted(), mean=np.zeros((2, 2, 3), np.float32))
    recipe = tiny(preset, stored_size=2, crop_size=1, crop_positions=2)
    drawn = draws(recipe, 1, np.arange(count), np.arange(count))
    shifts = Augment(recipe, statistics, "cpu")(torch.zeros(count, 1, 1, 3, dtype=torch.uint8), drawn, 0.1)
    shifts = shifts.double().numpy().reshape(count, 3)
    values, vectors = statistics.eigenvalues, statistics.eigenvectors
    diagonal = values**2 if preset is paper else values / 1.21
    expected = 0.01 * 255**2 * vectors @ np.diag(diagonal) @ vectors.T
    variances = np.diag(expected)
    bound = 5 * np.sqrt((np.outer(variances, variances) + expected**2) / count)  # of normals: five deviations
    assert (np.abs(shifts.T @ shifts / count - expected) < bound).all()
    assert (np.abs(shifts.mean(0)) < 5 * np.sqrt(variances / count)).all()


def test_views_are_the_corners_the_centre_and_their_mirrors():
    places = [(0, 0), (0, 32), (16, 16), (32, 0), (32, 32)]
    for recipe in (paper(), source2012()):
        assert ten_views(recipe) == [(*place, False) for place in places] + [(*place, True) for place in places]
        assert centre_view(recipe) == [(16, 16, False)]
    assert [view[:2] for view in ten_views(mini())[:5]] == [(0, 0), (0, 16), (8, 8), (16, 0), (16, 16)]


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
        for place, found in enumerate(labels.tolist()):
            assert found == label("val", index)
            for (top, left, flip), images in zip(which, views, strict=True):
                expected = expected_image(recipe, picture("val", index), top, left, flip)
                assert np.abs(images[0][place].double().numpy() - expected).max() < 1e-4
            index += 1
    assert index == VAL


@pytest.mark.parametrize("workers", [0, 2])
def test_the_survey_adds_up_every_image(root, monkeypatch, workers):
    monkeypatch.setattr(pipeline_torch, "CHUNK", 4)  # 21 images: five full chunks and a single image
    counts, direct = [], Sums(STORED)
    total = pipeline(root, tiny(paper), workers).survey("train", counts.append)
    for index in range(TRAIN):
        direct.add(picture("train", index))
    assert counts == [4, 4, 4, 4, 4, 1] and total.count == TRAIN
    assert np.array_equal(total.pixels, direct.pixels) and np.array_equal(total.products, direct.products)


@pytest.mark.parametrize("workers", [0, 2])
def test_after_the_survey_the_cache_holds_every_picture(root, tmp_path, workers):
    copy = shutil.copytree(root, tmp_path / "copy")
    reader = pipeline(copy, tiny(paper), workers)
    assert cached(reader.dataset, STORED) == ["train", "val"]
    reader.survey("train", lambda count: None)
    shutil.rmtree(copy / "train")
    assert same(list(reader.train(0, 1, tenth)), list(pipeline(root, tiny(paper)).train(0, 1, tenth)))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("split, read", [
    ("train", lambda reader: reader.train(0, 1, tenth)),
    ("val", lambda reader: reader.views("val", 4, centre_view(reader.recipe))),
    ("val", lambda reader: [reader.survey("val", lambda count: None)]),
], ids=["train", "views", "survey"])
def test_an_unreadable_image_is_named_in_one_line(root, tmp_path, split, read, workers):
    copy = shutil.copytree(root, tmp_path / "copy")
    broken = copy / split / "bee" / f"{TRAIN - 1 if split == 'train' else VAL - 1}.png"
    assert broken.exists()
    broken.write_bytes(b"not an image")
    with pytest.raises(UserError) as raised:
        list(read(pipeline(copy, tiny(paper), workers)))
    message = str(raised.value)
    assert message.startswith(f"cannot read image {broken}: ") and "\n" not in message and "Traceback" not in message


def test_no_signal_ends_a_worker_from_its_first_moment_on(root, monkeypatch):
    """A scheduler's SIGTERM may come just when validation forks its workers: it must find the signal blocked already."""
    def signalled(_):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)

    monkeypatch.setattr(pipeline_torch, "_die_with_parent", signalled)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert pipeline(root, tiny(paper), 2).survey("train", lambda n: None).count == TRAIN
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before  # the parent hears them again
