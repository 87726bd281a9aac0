"""Each variant changes the fields that it names and no other; parameters as recorded in 2012; every one of them
trains."""

import dataclasses
import functools
import inspect

import pytest
import torch
import torch.nn.functional as F
from inner_cases import every
from recipe_differences import differing

from alexnet_mp import TwoTowerAlexNet, mini, paper, source2012
from alexnet_mp.recipes import ablations
from alexnet_mp.recipes.architectures import dates_of_145
from alexnet_mp.recipes.cifar import cifar18
from alexnet_mp.recipes.named import PRESETS
from alexnet_mp.recipes.recipe import Date, change_layers, from_dict, to_dict
from alexnet_mp.recipes.shapes import crossings, parameter_counts, sizes
from alexnet_mp.system.errors import UserError
from alexnet_mp.training.schedule import make_schedule
from alexnet_mp.training.update_rule import PaperSGD

PARENTS = {"paper": paper, "source2012": source2012, "mini": mini}
LAYERS = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]
HIDDEN = LAYERS[:-1]


def each(names, *fields):
    return {f"{name}.{field}" for name in names for field in fields}


def without(name):
    return functools.partial(ablations.without_layer, name=name)


EVERYWHERE = {  # (variant, the fields that differ from each of the three parents), where these are the same
    "non_overlapping": (ablations.non_overlapping, {"conv2.pad", "conv5.pad", "pool_size"}),  # the stride is 2 already
    "one_gpu": (ablations.one_gpu, {"towers", "conv5.maps", "fc6.maps", "fc7.maps"}),
    "no_links": (ablations.no_links, {"conv2.maps", "fc6.maps"} | each(("conv3", "fc6", "fc7"), "reads")),
    "no_links_same_width": (ablations.no_links_same_width, each(("conv3", "fc6", "fc7"), "reads")),
    "one_tower": (ablations.one_tower, {"towers"} | each(HIDDEN, "maps")),
    "tanh": (ablations.tanh, each(HIDDEN, "then")),
    "sigmoid": (ablations.sigmoid, each(HIDDEN, "then")),
    "half as wide": (ablations.half_as_wide, each(HIDDEN, "maps") | each(LAYERS[1:], "init_std")),
    "twice as wide": (ablations.twice_as_wide, each(HIDDEN, "maps") | each(LAYERS[1:], "init_std")),
    "zero_biases": (ablations.zero_biases, each(("conv2", "conv4", "conv5", "fc6", "fc7"), "init_bias")),
    "no_colour": (ablations.no_colour, {"colour_noise"}),
    "no_crops": (ablations.no_crops, {"crop_positions"}),
    "no_flips": (ablations.no_flips, {"flip"}),
    "no_augmentation": (ablations.no_augmentation, {"colour_noise", "crop_positions", "flip"}),
    "no_dropout": (ablations.no_dropout, {"dropout"}),
}
BY_PARENT = {  # where they are not: paper, source2012, mini
    "no_lrn": (ablations.no_lrn, [each(["conv1", "conv2"], "then")] * 3),
    "without conv2": (
        without("conv2"),
        [{"layers", "conv1.then"}, {"layers", "conv1.then", "dates"}, {"layers", "conv1.then"}],
    ),
    "without conv3": (
        without("conv3"),
        [{"layers", "conv4.reads"}, {"layers", "conv4.reads", "dates"}, {"layers", "conv4.reads"}],
    ),
    "without conv4": (without("conv4"), [{"layers"}, {"layers", "dates"}, {"layers"}]),
    "without conv5": (
        without("conv5"),
        [{"layers", "conv4.then"}, {"layers", "conv4.then", "dates"}, {"layers", "conv4.then"}],
    ),
    "sixth_conv": (ablations.sixth_conv, [{"layers"}, {"layers", "dates"}, {"layers"}]),
    "bottleneck": (ablations.bottleneck, [{"layers"}, {"layers", "dates"}, {"layers"}]),
    "no_weight_decay": (
        ablations.no_weight_decay,
        [{"weight_decay", "bias_weight_decay"}, {"weight_decay"}, {"weight_decay", "bias_weight_decay"}],
    ),
    "paper_order": (ablations.paper_order, [set(), {"conv1.then"}, set()]),
    "source_order": (ablations.source_order, [{"conv1.then"}, set(), {"conv1.then"}]),
    "literal_init": (ablations.literal_init, [set(), each(LAYERS[2:5], "init_std"), set()]),
    "source_init": (ablations.source_init, [each(LAYERS[2:5], "init_std"), set(), each(LAYERS[2:5], "init_std")]),
    "plateau_schedule": (ablations.plateau_schedule, [set(), {"schedule"}, {"schedule", "plateau_patience"}]),
    "dated_drops": (ablations.dated_drops, [{"schedule", "dates"}, {"dates"}, {"dates"}]),
    "without_plateaus": (ablations.without_plateaus, [{"schedule", "dates"}, set(), set()]),
    "twice_as_long": (
        ablations.twice_as_long,
        [{"schedule", "epochs", "dates"}, {"epochs", "dates"}, {"epochs", "dates"}],
    ),
    "shortened": (
        functools.partial(ablations.shortened, epochs=6),
        [{"epochs"}, {"epochs", "dates"}, {"epochs", "dates"}],
    ),
    "fine_tuned": (
        ablations.fine_tuned,
        [each(HIDDEN, "rate") | {"schedule", "epochs", "dates"}] + [each(HIDDEN, "rate") | {"epochs", "dates"}] * 2,
    ),
}
CASES = {name: (variant, [fields] * 3) for name, (variant, fields) in EVERYWHERE.items()} | BY_PARENT
every_variant = every("name", CASES)
every_parent = pytest.mark.parametrize("parent", PARENTS)


def tiny(recipe):
    """The recipe with few maps on 64x64 pictures of 72x72, which leave 3x3 and more to every layer."""
    layers = tuple(
        layer
        if layer.maps is None
        else dataclasses.replace(layer, maps=max(2, layer.maps // 16), init_std=0.1)
        if layer.kind != "fc"
        else dataclasses.replace(layer, maps=8, init_std=0.1)
        for layer in recipe.layers
    )
    positions = min(recipe.crop_positions, 9)
    layers = (dataclasses.replace(layers[0], kernel=5, stride=2), *layers[1:])
    return dataclasses.replace(
        recipe, layers=layers, stored_size=72, crop_size=64, crop_positions=positions, batch_size=4
    )


@every_parent
@every_variant
def test_a_variant_differs_in_exactly_these_fields(name, parent):
    variant, fields = CASES[name]
    recipe = PARENTS[parent]()
    ablation = variant(recipe)
    assert differing(recipe, ablation) == fields[list(PARENTS).index(parent)]
    assert from_dict(to_dict(ablation)) == ablation
    assert ablation.name == recipe.name


def test_every_public_function_is_a_case():
    public = {
        name
        for name, function in inspect.getmembers(ablations, inspect.isfunction)
        if function.__module__ == ablations.__name__ and not name.startswith("_")
    }
    cases = {getattr(variant, "func", variant).__name__ for variant, _ in CASES.values()}
    assert cases == public


@pytest.mark.run
@every_parent
@every_variant
def test_every_variant_makes_a_step(name, parent):
    """Forward, backward, update: the loss is finite, every layer gets a gradient and moves."""
    recipe = tiny(CASES[name][0](PARENTS[parent]()))
    # In float64: the first layers hardly move a bias of 1 where sigmoids saturate.
    network = TwoTowerAlexNet(recipe, ("cpu",) * recipe.towers, 5).double()
    optimizer, before = PaperSGD(network), network.merged_state()
    optimizer.set_rates(make_schedule(recipe).rates(1))
    images = 60 * torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)).double()
    loss = F.cross_entropy(network(*[images] * recipe.towers), torch.tensor([0, 1, 2, 4]))
    loss.backward()
    assert all(part.grad.any() for parts in network.layer_parameters().values() for part in parts)
    optimizer.step()
    assert loss.isfinite()
    after = network.merged_state()
    assert all(torch.isfinite(after[name]).all() and not torch.equal(before[name], after[name]) for name in before)


def test_parameters_as_recorded_in_2012():
    assert parameter_counts(ablations.one_gpu(paper())) == (59_798_312,)
    assert sum(parameter_counts(source2012())) == 60_965_224
    for parent in (paper, source2012):
        assert sum(parameter_counts(ablations.no_links(parent()), 1000)) == 60_714_408
    assert sum(parameter_counts(ablations.sixth_conv(source2012()))) == 61_555_304
    bottleneck = ablations.bottleneck(ablations.sixth_conv(paper()))
    assert round(sum(parameter_counts(bottleneck, 10_921 + 10_922)) / 1e6, 1) == 110.6
    assert [layer.maps for layer in ablations.one_gpu(paper()).layers] == [48, 128, 192, 192, 256, 4096, 4096, None]


def test_the_geometry_of_147():
    """55-28-26-13-13-13-11-6, and fc6 keeps its size."""
    layer_sizes = sizes(ablations.non_overlapping(paper()))
    sides = [side for size in layer_sizes[:5] for side in dict.fromkeys((size.computed[1], size.output[1]))]
    assert sides == [55, 28, 26, 13, 13, 13, 11, 6]
    assert [size.output for size in sizes(ablations.non_overlapping(mini()))[4:6]] == [(64, 2, 2), (256, 1, 1)]


@every("preset", ["paper", "source2012", "mini", "desk"])
def test_touching_pools_leave_the_later_layers_as_large(preset):
    """Of every base; with the pads of 147 as numbers, conv3 of `desk` would have 4x4 maps instead of 5x5, and fc6 a
    quarter."""
    base = PRESETS[preset]()
    after, before = sizes(ablations.non_overlapping(base)), sizes(base)
    assert [size.output for size in after[1:]] == [size.output for size in before[1:]]
    pads = {
        name: layer.pad
        for layer in ablations.non_overlapping(base).layers
        for name in [layer.name]
        if name in ("conv2", "conv5")
    }
    assert pads == {"conv2": 2 if preset == "desk" else 1, "conv5": 0}


def test_what_crosses():
    edges = {
        name: list(dict.fromkeys(row[0] for row in crossings(CASES[name][0](paper()), 1)))
        for name in ("one_gpu", "no_links", "sixth_conv", "without conv2", "without conv3", "bottleneck")
    }
    assert edges == {
        "one_gpu": [],
        "no_links": ["fc8"],
        "sixth_conv": ["conv3", "conv6", "fc6", "fc7", "fc8"],
        "without conv2": ["conv3", "fc6", "fc7", "fc8"],
        "without conv3": ["conv4", "fc6", "fc7", "fc8"],
        "bottleneck": ["conv3", "fc6", "fc7", "bottleneck1", "fc8"],
    }


def test_without_conv5_the_maps_are_pooled_all_the_same():
    for parent, then in ((paper, ("relu", "max_pool")), (source2012, ("relu", "max_pool"))):
        recipe = ablations.without_layer(parent(), "conv5")
        assert recipe.layers[3].then == then and sizes(recipe)[3].output == (192, 6, 6)


def test_without_conv2_conv3_has_the_same_maps():
    """conv1's 27x27 maps are pooled to 13x13 in its place; its norms are gone, those of conv1 are not."""
    for parent, then in (
        (paper, ("relu", "lrn", "max_pool", "max_pool")),
        (source2012, ("lrn", "max_pool", "relu", "max_pool")),
    ):
        recipe = ablations.without_layer(parent(), "conv2")
        assert recipe.layers[0].then == then
        assert [size.output for size in sizes(recipe)[:2]] == [(48, 13, 13), (192, 13, 13)]
        assert [size.output for size in sizes(recipe)[1:]] == [size.output for size in sizes(parent())[2:]]


@every("name", ["conv1", "conv6", "fc6", "fc8", "nonsense"])
def test_no_other_layer_can_be_taken_out(name):
    with pytest.raises(UserError, match=name):
        ablations.without_layer(paper(), name)
    with pytest.raises(UserError, match="conv4"):
        ablations.without_layer(ablations.without_layer(paper(), "conv4"), "conv4")


@every("variant", [ablations.non_overlapping, ablations.sixth_conv, ablations.no_links, ablations.one_gpu])
def test_a_missing_layer_is_named(variant):
    with pytest.raises(UserError, match="the recipe has no layer (conv|fc)[2-7]"):
        variant(dataclasses.replace(paper(), layers=(paper().layers[0], paper().layers[-1])))


def deviations(recipe):
    return {layer.name: layer.init_std for layer in recipe.layers}


def test_initial_deviations_of_the_papers_own_network_are_the_absolute_ones():
    assert ablations.literal_init(source2012()) == change_layers(source2012(), *LAYERS, init_std=0.01)
    assert ablations.literal_init(paper()) == paper() and ablations.source_init(source2012()) == source2012()
    for parent, std in ((paper, 0.01), (source2012, 0.03)):
        stds = deviations(ablations.bottleneck(ablations.sixth_conv(parent())))
        assert (stds["conv6"], stds["bottleneck1"]) == (std, 0.01)


def test_initial_deviations_of_a_narrow_network_grow_with_the_root_of_the_fan_in():
    """mini's own are the paper's 0.01. conv6 reads 128 maps there instead of 256, the bottleneck 512 units instead of
    4,096."""
    assert ablations.literal_init(mini()) == mini()
    assert deviations(ablations.source_init(mini())) == deviations(mini()) | dict.fromkeys(LAYERS[2:5], 0.042)
    stds = deviations(ablations.bottleneck(ablations.sixth_conv(mini())))
    assert (stds["conv6"], stds["bottleneck1"]) == (round(0.01 * 2**0.5, 3), round(0.01 * 8**0.5, 3)) == (0.014, 0.028)
    assert deviations(ablations.sixth_conv(ablations.source_init(mini())))["conv6"] == round(0.03 * 2**0.5, 3) == 0.042
    wide_recipe = change_layers(paper(), "conv5", maps=512)  # conv6 reads 1,024 maps, conv5 still 192
    assert deviations(ablations.sixth_conv(wide_recipe))["conv6"] == 0.005
    assert stds["fc6"] == 0.042 and stds["fc8"] == 0.028  # as they were
    # 128 units instead of 4,096
    assert ablations.literal_init(change_layers(mini(), "fc7", maps=64)).layers[-1].init_std == 0.057
    wide_recipe = ablations.sixth_conv(ablations.bottleneck(mini()))
    assert (
        deviations(ablations.literal_init(wide_recipe))["conv6"] == 0.014
        and deviations(ablations.source_init(wide_recipe))["conv6"] == 0.042
    )


def test_initial_deviations_of_a_layer_that_the_paper_has_not():
    for variant in (ablations.literal_init, ablations.source_init):
        with pytest.raises(UserError, match="no initial deviation of fc10 is known"):
            variant(cifar18())


def test_a_date_that_was_the_removed_layers_alone_goes_with_it():
    """With no layers left it would be a date for all of them."""
    recipe = dataclasses.replace(paper(), dates=(Date(3, layers=("conv4",), weights=0.0), Date(4, weights=0.1)))
    assert ablations.without_layer(recipe, "conv4").dates == (Date(4, weights=0.1),)


def test_a_new_layer_follows_the_dates_of_those_around_it():
    """145's last drop is for all layers but conv1, so for conv6 and the bottleneck, too."""
    for recipe, name in (
        (ablations.sixth_conv(source2012()), "conv6"),
        (ablations.bottleneck(source2012()), "bottleneck1"),
    ):
        rates = make_schedule(recipe).rates(79)
        assert rates[f"{name}.weight"] == rates["fc7.weight"] == pytest.approx(1e-5) and rates["conv1.weight"] == 0


def test_no_noise_comes_back_with_a_date():
    recipe = dataclasses.replace(mini(), dates=(Date(2, colour_noise=0.3), Date(3, weights=0.1)))
    ablation = ablations.no_colour(recipe)
    assert [make_schedule(ablation).colour_noise(epoch) for epoch in (1, 2, 3)] == [0, 0, 0]
    assert make_schedule(ablation).rates(3) == make_schedule(recipe).rates(3)


def test_widths_keep_the_sums_of_their_layers():
    """Half the inputs of a layer have root two times its deviation; the first, which reads pixels, keeps its own."""
    recipe = ablations.half_as_wide(paper())
    assert [layer.maps for layer in recipe.layers] == [24, 64, 96, 96, 64, 1024, 1024, None]
    assert [layer.init_std for layer in recipe.layers] == pytest.approx([0.01] + 7 * [0.0141])
    wide_recipe = ablations.twice_as_wide(paper())
    assert [layer.maps for layer in wide_recipe.layers][:2] == [96, 256] and wide_recipe.layers[
        7
    ].init_std == pytest.approx(0.00707)
    one = ablations.half_as_wide(ablations.half_as_wide(change_layers(paper(), "conv1", maps=2)))
    assert one.layers[0].maps == 1 and sum(parameter_counts(one)) < sum(parameter_counts(recipe))


def test_no_weight_decay_of_a_single_layer_is_left():
    recipe = ablations.no_weight_decay(change_layers(paper(), "fc8", weight_decay=1.0))
    assert {
        group["weight_decay"] for group in PaperSGD(TwoTowerAlexNet(tiny(recipe), ("cpu", "cpu"), 3)).param_groups
    } == {0.0}


@every(
    "epochs, expected",
    [
        (93, [24, 52, 69, 73, 79]),
        (186, [47, 103, 137, 145, 157]),
        (12, [4, 8, 10, 11, 12]),
        (3, [2, 3, 4, 4, 4]),
        (1, [2] * 5),
    ],
)
def test_dates_come_at_their_share_of_the_epochs(epochs, expected):
    """23/93 of 12 epochs are 2.97: the drop comes with the fourth. A date behind the end never comes."""
    recipe = ablations.shortened(source2012(), epochs)
    assert [date.epoch for date in recipe.dates] == expected and recipe.epochs == epochs
    assert make_schedule(recipe).rates(1) == make_schedule(source2012()).rates(1)


@every_parent
def test_a_run_that_is_twice_as_long_has_each_rate_for_twice_as_long(parent):
    """Of a plateau schedule both would end at the same plateau."""
    recipe = ablations.without_plateaus(PARENTS[parent]())
    longer_recipe = ablations.twice_as_long(PARENTS[parent]())
    assert longer_recipe.epochs == 2 * recipe.epochs and longer_recipe == ablations.twice_as_long(recipe)
    schedule, longer_schedule = make_schedule(recipe), make_schedule(longer_recipe)
    for epoch in range(1, recipe.epochs + 1):
        for longer_epoch in (2 * epoch - 1, 2 * epoch):
            assert longer_schedule.rates(longer_epoch) == schedule.rates(epoch)


@every("epochs, patience", [(90, 5), (93, 5), (45, 2), (20, 1), (12, 1), (1, 1), (900, 50)])
def test_patience_is_scaled_to_the_epochs(epochs, patience):
    assert ablations.plateau_schedule(ablations.shortened(mini(), epochs)).plateau_patience == patience


@every_parent
def test_a_plateau_and_the_three_dates_differ_in_when_all_rates_fall(parent):
    plateau, calendar = (change(PARENTS[parent]()) for change in (ablations.plateau_schedule, ablations.dated_drops))
    assert (
        differing(plateau, calendar) <= {"schedule", "dates", "plateau_patience"} and plateau.epochs == calendar.epochs
    )
    plateau_schedule, calendar_schedule = make_schedule(plateau), make_schedule(calendar)
    first, *falls = [1] + [date.epoch for date in calendar.dates]
    assert calendar_schedule.rates(first) == plateau_schedule.rates(first)
    for epoch in falls:
        before = calendar_schedule.rates(epoch - 1)
        while plateau_schedule.rates(1) == pytest.approx(before):
            plateau_schedule.observe(50.0)
        assert calendar_schedule.rates(epoch) == pytest.approx(plateau_schedule.rates(1))
        assert calendar_schedule.colour_noise(epoch) == plateau_schedule.colour_noise(epoch) == plateau.colour_noise
    assert calendar_schedule.rates(calendar.epochs) == calendar_schedule.rates(falls[-1])


def test_dates_of_145_on_another_list_of_layers():
    recipe = ablations.sixth_conv(source2012())
    assert recipe.dates == dates_of_145([layer.name for layer in recipe.layers])


def test_rates_of_fine_tuning():
    """The table of the 2012 runs, 146-2012-2011: rates of conv1, the other old layers, and fc8, with learning_rate
    0.01."""
    recipe = ablations.fine_tuned(ablations.sixth_conv(source2012()))
    schedule = make_schedule(recipe)

    def rates(epoch):
        return [schedule.rates(epoch)[f"{name}.weight"] for name in ("conv1", "conv6", "fc8")]

    for epoch, expected in (
        (1, [1e-4, 1e-3, 1e-2]),
        (5, [1e-4, 1e-3, 1e-2]),
        (6, [1e-5, 1e-3, 1e-2]),
        (8, [0, 1e-3, 1e-2]),
        (9, [0, 1e-3, 1e-2]),
        (10, [0, 1e-3, 1e-3]),
        (22, [0, 1e-3, 1e-3]),
        (23, [0, 1e-4, 1e-4]),
        (43, [0, 1e-5, 1e-5]),
        (54, [0, 1e-5, 1e-5]),
    ):
        assert rates(epoch) == pytest.approx(expected), epoch
    assert [schedule.colour_noise(epoch) for epoch in (38, 39)] == [0.1, 0.0]
    assert [schedule.rates(epoch)["conv1.bias"] for epoch in (7, 8)] == [0.02, 0]
    assert {
        schedule.rates(epoch)[f"{name}.bias"] for epoch in (1, 23, 54) for name in ("conv2", "conv6", "fc7", "fc8")
    } == {0.02}
    assert ablations.fine_tuned(mini(), 27).dates[-1].epoch == 22


def test_variants_can_be_combined():
    """A cumulative ablation takes one thing more away at a time."""
    recipe, counts = source2012(), []
    for change in (
        ablations.no_colour,
        ablations.no_crops,
        ablations.no_flips,
        ablations.no_lrn,
        ablations.non_overlapping,
        ablations.one_gpu,
        ablations.no_dropout,
        ablations.no_weight_decay,
    ):
        recipe = change(recipe)
        counts.append(len(differing(source2012(), recipe)))
    assert counts == sorted(set(counts)) and sum(parameter_counts(recipe)) == 59_798_312
