"""Sizes, parameters and crossings of the presets, against the tables of the paper and the 2012 source."""

import dataclasses

import pytest

from alexnet_mp import TwoTowerAlexNet
from alexnet_mp.recipes.architectures import mini, paper, source2012
from alexnet_mp.recipes.recipe import change_layers
from alexnet_mp.recipes.shapes import (
    ceil_mode_padding,
    conv_size,
    crossings,
    merged_shapes,
    parameter_counts,
    pooled_size,
    sizes,
)


@pytest.mark.parametrize("preset", [paper, source2012])
def test_outputs_of_one_tower(preset):
    table = {size.layer.name: (size.computed, size.output) for size in sizes(preset())}
    assert table == {  # paper, section 3; per GPU
        "conv1": ((48, 55, 55), (48, 27, 27)),
        "conv2": ((128, 27, 27), (128, 13, 13)),
        "conv3": ((192, 13, 13),) * 2,
        "conv4": ((192, 13, 13),) * 2,
        "conv5": ((128, 13, 13), (128, 6, 6)),
        "fc6": ((2048, 1, 1),) * 2,
        "fc7": ((2048, 1, 1),) * 2,
        "fc8": ((1000, 1, 1),) * 2,
    }


@pytest.mark.parametrize("preset", [paper, source2012])
def test_parameters_of_each_tower(preset):
    assert parameter_counts(preset()) == (32_531_112, 28_434_112)
    assert sum(parameter_counts(preset())) == 60_965_224


def test_224_gives_55_by_three_zeros():
    assert conv_size(224, 11, 4, 0) == 55 and ceil_mode_padding(224, 11, 4, 0) == 3
    assert ceil_mode_padding(27, 5, 1, 2) == 0
    assert [pooled_size(side, 3, 2) for side in (55, 27, 13, 6)] == [27, 13, 6, 3]  # 6 -> 3: the last window hangs over


def test_crossings_of_the_papers_network():
    """The table of the 2012 source: 60,030,976 bytes at batch 128 in float32, and nothing but four edges."""
    rows = crossings(paper(), batch_size=128)
    assert sum(row[3] for row in rows) == 60_030_976
    for direction in ("a->b", "b->a"):
        assert sum(row[3] for row in rows if row[1] == direction) == 30_015_488
    assert {edge: count for edge, *_, count in rows} == {
        "conv3": 11_075_584,
        "fc6": 2_359_296,
        "fc7": 1_048_576,
        "fc8": 1_048_576,
    }
    assert [row[:3] for row in rows if row[0] == "fc8"] == [("fc8", "b->a", "forward"), ("fc8", "a->b", "backward")]
    assert len(rows) == 14


def one_tower():
    """The one-GPU network of the 2012 source, net 145-half: conv 48/128/192/192/256, fc 4096."""
    recipe = dataclasses.replace(paper(), towers=1)
    for name, maps in (("conv5", 256), ("fc6", 4096), ("fc7", 4096)):
        recipe = change_layers(recipe, name, maps=maps)
    return recipe


def test_variants_need_no_network_code():
    """One tower, a sixth layer that reads both, and no links: parameters as recorded in the 2012 source, crossings that
    follow."""
    assert parameter_counts(one_tower()) == (59_798_312,)
    assert crossings(one_tower(), 128) == []

    recipe = paper()
    conv6 = dataclasses.replace(recipe.layers[4], name="conv6", reads="both", then=("relu",))
    variant = dataclasses.replace(recipe, layers=(*recipe.layers[:5], conv6, *recipe.layers[5:]))
    assert sum(parameter_counts(variant)) == 61_555_304
    assert list(dict.fromkeys(row[0] for row in crossings(variant, 128)))[:2] == ["conv3", "conv6"]

    without_links = change_layers(recipe, "conv3", "fc6", "fc7", reads="own")
    assert {row[0] for row in crossings(without_links, 128)} == {"fc8"}


def test_mini_fits():
    assert [size.output[1] for size in sizes(mini(), 16)] == [11, 5, 5, 5, 2, 1, 1, 1]


@pytest.mark.run
@pytest.mark.parametrize("make", [paper, source2012, mini, pytest.param(one_tower, marks=pytest.mark.slow)])
def test_merged_shapes_are_those_of_the_network(make):
    recipe = make()
    state = TwoTowerAlexNet(recipe, ("cpu",) * recipe.towers, 7).merged_state()
    assert list(merged_shapes(recipe, 7).items()) == [(name, tuple(tensor.shape)) for name, tensor in state.items()]
