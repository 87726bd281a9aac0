"""The augmentation's random numbers: what they depend on, the ranges they cover, how they are distributed."""

import dataclasses
import math

import numpy as np
import pytest
from inner_cases import every

from alexnet_mp.data.augmentation import colour_shift, draws, order
from alexnet_mp.data.pixel_statistics import Statistics
from alexnet_mp.recipes.architectures import mini, paper, source2012

COUNT = 30_000  # some 14 a cell of the 2048: with uniform draws no cell stays empty
PRESETS = every("recipe", [paper(), source2012(), mini()], ids=["paper", "source2012", "mini"])


def arrays(draw):
    return draw.top, draw.left, draw.flip, draw.colour


def independent_crops(recipe, epoch=1):
    """COUNT draws of which each has its own crop: for the 2012 recipe, images 32 places apart."""
    return draws(recipe, epoch, np.arange(COUNT), np.arange(COUNT) * recipe.crop_share)


def positions_of(places):
    positions = np.empty_like(places)
    positions[places] = np.arange(len(places))
    return positions


def agreement(a, b):
    """The share of images that got the same top, left and flip."""
    return np.mean((a.top == b.top) & (a.left == b.left) & (a.flip == b.flip))


@pytest.mark.run
@PRESETS
@every("size", [1, 5, 32, 47])
def test_the_batch_size_decides_nothing(recipe, size):
    images = order(recipe, 2, 100)
    draw = draws(recipe, 2, images, np.arange(100))
    parts = [draws(recipe, 2, images[i : i + size], np.arange(i, min(i + size, 100))) for i in range(0, 100, size)]
    for array, pieces in zip(arrays(draw), zip(*map(arrays, parts), strict=True), strict=True):
        assert np.array_equal(array, np.concatenate(pieces))


def test_types_and_shapes():
    draw = draws(paper(), 1, np.arange(7), np.arange(7))
    assert [(array.dtype.name, array.shape) for array in arrays(draw)] == [
        ("int64", (7,)),
        ("int64", (7,)),
        ("bool", (7,)),
        ("float64", (7, 3)),
    ]


def test_an_image_keeps_its_draw_wherever_it_stands():
    """Without sharing, position does not matter."""
    images = np.arange(500)
    other = draws(paper(), 3, images[::-1].copy(), images)
    for a, b in zip(arrays(draws(paper(), 3, images, images)), arrays(other), strict=True):
        assert np.array_equal(a, b[::-1])


@every("recipe, side", [(paper(), 32), (source2012(), 33), (mini(), 16)], ids=["paper", "source2012", "mini"])
def test_every_crop_and_flip_is_equally_likely(recipe, side):
    """Paper 4.1: 32 x 32 x 2 = 2048. 2012 source: 33 x 33 x 2 = 2178. All of them occur, and no others."""
    draw = independent_crops(recipe)
    for offset in (draw.top, draw.left):
        assert offset.min() == 0 and offset.max() == side - 1
    cells = np.bincount((draw.top * side + draw.left) * 2 + draw.flip, minlength=side * side * 2)
    assert len(cells) == side * side * 2 and cells.min() > 0
    expected, freedom = COUNT / len(cells), len(cells) - 1
    chi_square = ((cells - expected) ** 2 / expected).sum()
    assert abs(chi_square - freedom) < 5 * math.sqrt(2 * freedom)  # too even would be as wrong as too uneven
    assert abs(draw.flip.sum() - COUNT / 2) < 5 * math.sqrt(COUNT) / 2


def test_fewer_positions_lie_around_the_centre():
    for positions, low, high in ((1, 16, 16), (9, 12, 20), (33, 0, 32)):
        draw = independent_crops(dataclasses.replace(paper(), crop_positions=positions))
        assert {draw.top.min(), draw.left.min()} == {low} and {draw.top.max(), draw.left.max()} == {high}


def test_2012_shares_crop_and_flip_among_32_places_and_colour_never():
    places = order(source2012(), 1, 3200)
    draw = draws(source2012(), 1, places, np.arange(3200))
    groups = [array.reshape(100, 32) for array in (draw.top, draw.left, draw.flip)]
    assert all((group == group[:, :1]).all() for group in groups)
    assert len({tuple(group[i, 0] for group in groups) for i in range(100)}) > 90  # of 2178: about 2 repetitions in 100
    assert len(np.unique(draw.colour, axis=0)) == 3200


def test_2012_shares_by_place_in_the_order():
    """A share is the same images every epoch, as the order is; what they share is new every epoch."""
    recipe, images = source2012(), np.arange(64)
    a, b = draws(recipe, 1, images, images), draws(recipe, 1, images + 1000, images)
    assert agreement(a, b) == 1
    assert not np.isclose(a.colour, b.colour).any()
    assert agreement(a, draws(recipe, 2, images, images)) == 0


@PRESETS
def test_epochs_seeds_and_images_get_their_own_draws(recipe):
    own = independent_crops(recipe)
    chance = 1 / (2 * recipe.crop_positions**2)
    bound = chance + 5 * math.sqrt(chance / COUNT)
    for other in (independent_crops(recipe, epoch=2), independent_crops(dataclasses.replace(recipe, seed=1))):
        assert 0 < agreement(own, other) < bound  # as often as independent draws agree
        assert abs(np.corrcoef(own.colour.ravel(), other.colour.ravel())[0, 1]) < 5 / math.sqrt(3 * COUNT)
    # Neighbours in the data set.
    assert abs(np.corrcoef(own.top[1:], own.top[:-1])[0, 1]) < 5 / math.sqrt(COUNT)
    assert abs(np.corrcoef(own.colour[1:, 0], own.colour[:-1, 0])[0, 1]) < 5 / math.sqrt(COUNT)


@PRESETS
def test_flip_false_never_flips_and_moves_no_crop(recipe):
    with_flips, without = (independent_crops(dataclasses.replace(recipe, flip=flip)) for flip in (True, False))
    assert with_flips.flip.any() and not without.flip.any()
    assert np.array_equal(with_flips.top, without.top) and np.array_equal(with_flips.left, without.left)


def test_colour_factors_are_independent_standard_normals():
    draw = independent_crops(paper())
    a, five = draw.colour, 5 / math.sqrt(COUNT)
    assert (np.abs(a.mean(0)) < five).all()
    assert (np.abs((a**2).mean(0) - 1) < five * math.sqrt(2)).all()
    assert (np.abs((a**4).mean(0) - 3) < five * math.sqrt(96)).all()
    # The squares as well: two numbers of one Box-Muller pair could be uncorrelated and still depend on each other.
    columns = [*a.T, *(a**2).T, draw.top, draw.left, draw.flip]
    correlations = np.corrcoef(columns)
    for i in range(3):
        correlations[i, i + 3] = correlations[i + 3, i] = 0  # a factor and its own square
    assert (np.abs(correlations - np.eye(9)) < five).all()


@PRESETS
@every("count", [1, 2, 1000])
def test_order_is_a_permutation(recipe, count):
    places = order(recipe, 1, count)
    assert places.dtype == np.int64 and np.array_equal(np.sort(places), np.arange(count))


def test_the_paper_reshuffles_and_2012_does_not():
    orders = {recipe.name: [order(recipe, epoch, 1000) for epoch in (1, 2, 3)] for recipe in (paper(), source2012())}
    assert all(np.array_equal(orders["source2012"][0], other) for other in orders["source2012"][1:])
    assert not np.array_equal(orders["source2012"][0], np.arange(1000))  # shuffled once
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (orders["paper"][a] == orders["paper"][b]).sum() < 10  # two random orders share one place on average
    other_seed = order(dataclasses.replace(source2012(), seed=1), 1, 1000)
    assert (orders["source2012"][0] == other_seed).sum() < 10


@pytest.mark.run
def test_every_place_in_the_order_is_equally_likely():
    """Where 8 images land over 2000 epochs, and whether neighbours in the data set stay neighbours."""
    positions = np.stack([positions_of(order(paper(), epoch, 8)) for epoch in range(1, 2001)])
    for image in range(8):
        chi_square = ((np.bincount(positions[:, image], minlength=8) - 250) ** 2 / 250).sum()
        assert chi_square < 7 + 5 * math.sqrt(14)
    beside = np.abs(np.diff(positions, axis=1)) == 1
    assert abs(beside.mean() - 1 / 4) < 5 * math.sqrt(3 / 16 / beside.size)  # 7 adjacent pairs of places of 28


@pytest.mark.parametrize(
    "preset, shift, scale",
    [
        (
            paper,
            (0.1 * 2 * 0.04 * 255, 0.1 * -1 * 0.01 * 255, 0),
            1,
        ),  # 4.1: P (a_1 l_1, a_2 l_2, a_3 l_3) of 0..1 pixels
        (source2012, (0.1 * 2 * 0.2 * 255, 0.1 * -1 * 0.1 * 255, 0), 1 / 1.1),
    ],
)  # `convdata_jpeg.py:154-179`
def test_the_colour_shift_by_hand(preset, shift, scale):
    """Components along R and G: what the factors 2 and -1 add to them, in grey levels, and what the picture is divided
    by."""
    statistics = Statistics(np.zeros((2, 2, 3)), np.array([0.04, 0.01, 0]), np.eye(3))
    shifts, divisor = colour_shift(preset(), statistics, np.array([[2.0, -1.0, 7.0], [0.0, 0.0, 0.0]]), 0.1)
    assert shifts.dtype == np.float32 and shifts == pytest.approx(np.array([shift, (0, 0, 0)]), rel=1e-6)
    assert divisor == pytest.approx(scale, rel=1e-6)
