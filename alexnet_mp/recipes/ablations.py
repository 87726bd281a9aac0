"""What each experiment of the paper changes: a function Recipe -> Recipe each. Whatever it doesn't name stays as it
was.

They take `paper`, `source2012`, `mini` and what these functions make of them, and raise UserError where a layer that
they would change is missing. Numbers like 147 are networks of the 2012 source, `layers-147.cfg`; "3.3" is a section of
the paper."""

import math
from dataclasses import replace

from ..system.errors import UserError
from .architectures import paper
from .recipe import Date, Layer, Recipe, change_layers
from .shapes import sizes

NORMS, POOLS = {"lrn", "spatial_norm"}, {"max_pool", "avg_pool"}
COUNTERPARTS = {"conv6": "conv3", "bottleneck1": "fc8"}  # the layer of `paper` that reads as many inputs a unit


# Layers


def no_lrn(recipe: Recipe) -> Recipe:
    """Without response normalisation (3.3: 1.4 and 1.2 points). 148 has none of the three norms of 145, so none stays
    here."""
    return _change_epilogues(
        recipe, lambda epilogue: tuple(operation for operation in epilogue if operation not in NORMS)
    )


def non_overlapping(recipe: Recipe) -> Recipe:
    """Pooling windows that touch, 2x2 at stride 2 (3.4: 0.4 and 0.3 points); 147, maps of 55-28-26-13-13-13-11-6.

    conv2 and conv5 have the largest pad, at most their own, with which their pooled maps are as large as before: in the
    paper's network 1 instead of 2 and 0 instead of 1, those of 147. Where no pad gives that size, their own stays."""
    layer_outputs = {size.layer.name: size.output for size in sizes(recipe)}
    recipe = replace(recipe, pool_size=2, pool_stride=2)
    for name in ("conv2", "conv5"):
        candidates = (change_layers(recipe, name, pad=pad) for pad in range(_layer(recipe, name).pad, -1, -1))
        recipe = next(
            (
                candidate
                for candidate in candidates
                if {size.layer.name: size.output for size in sizes(candidate)}[name] == layer_outputs[name]
            ),
            recipe,
        )
    return recipe


def without_layer(recipe: Recipe, name: str) -> Recipe:
    """Without one of the convolutions conv2 to conv5 (section 7: about 2 points each of the middle ones).

    Where it read both towers, the layer behind it does; where it pooled, the layer before it does, so that all others
    keep the sizes of their maps; its norms go with it. So without conv2 its pool follows that of conv1, and conv3 still
    has 13x13 maps. conv1 can't be taken out alone: at stride 1 the others' maps would be as large as the picture. The
    source has no such network."""
    names = [layer.name for layer in recipe.layers]
    if name not in ("conv2", "conv3", "conv4", "conv5") or name not in names:
        raise UserError(
            f"without_layer: {name} is none of conv2 to conv5, or not in the recipe, which has {', '.join(names)}"
        )
    index = names.index(name)
    source, middle, reader = recipe.layers[index - 1 : index + 2]
    source = replace(source, then=source.then + tuple(operation for operation in middle.then if operation in POOLS))
    reader = replace(reader, reads="both" if middle.reads == "both" else reader.reads)
    dates = tuple(
        replace(date, layers=tuple(layer for layer in date.layers if layer != name))
        for date in recipe.dates
        if date.layers != (name,)
    )
    return replace(
        recipe, layers=recipe.layers[: index - 1] + (source, reader) + recipe.layers[index + 2 :], dates=dates
    )


def sixth_conv(recipe: Recipe) -> Recipe:
    """146: a sixth convolution over the last pooling layer, reading both towers, as wide as the fifth (6; 61,555,304
    parameters).

    Its initial deviation is the fifth's, times the root of the fan-ins' ratio in a narrower network: 0.03 in 146, and
    0.01 where every layer has that (5).
    """
    conv5 = _layer(recipe, "conv5")
    conv6 = Layer("conv6", "conv", conv5.maps, "both", ("relu",), kernel=3, pad=1, init_bias=1.0)
    recipe = _insert(recipe, "fc6", conv6)
    std = conv5.init_std * (_fan_in_factor(recipe, "conv6") / _fan_in_factor(recipe, "conv5"))
    return change_layers(recipe, "conv6", init_std=float(f"{std:.3g}"))


def bottleneck(recipe: Recipe) -> Recipe:
    """146-2011, for 22,000 classes: before fc8 a layer half as wide as fc7, 1,024 units a tower, no ReLU, no dropout.

    It reads both towers, which gives the 110.6 million parameters of the source. There each GPU has half of the
    classes; here fc8 is on tower a. Its weights begin at N(0, 0.01) as those of the other fully connected layers, its
    biases at 0 (`layers-146-2011.cfg:344-390`)."""
    bottleneck1 = Layer("bottleneck1", "fc", _layer(recipe, "fc7").maps // 2, "both", ())
    return _with_std(_insert(recipe, "fc8", bottleneck1), 0.01, "bottleneck1")


def one_gpu(recipe: Recipe) -> Recipe:
    """145-half: the maps of one tower, but of conv5, fc6 and fc7 those of both (3.2: 1.7 and 1.2 points; 59,798,312
    parameters)."""
    for name in ("conv5", "fc6", "fc7"):
        recipe = change_layers(recipe, name, maps=2 * _layer(recipe, name).maps)
    return replace(recipe, towers=1)


def no_links(recipe: Recipe) -> Recipe:
    """150: the towers meet at fc8 alone, and are wider: conv2 160 instead of 128 maps, fc6 4,096 instead of 2,048
    units.

    That makes up for the weights that the links had: 60,714,408 parameters instead of 60,965,224
    (`layers-150.cfg:238-282`).
    """
    recipe = no_links_same_width(change_layers(recipe, "conv2", maps=_layer(recipe, "conv2").maps * 160 // 128))
    return change_layers(recipe, "fc6", maps=2 * _layer(recipe, "fc6").maps)


def no_links_same_width(recipe: Recipe) -> Recipe:
    """The towers meet at fc8 alone, and nothing is wider for it."""
    return change_layers(recipe, "conv3", "fc6", "fc7", reads="own")


def one_tower(recipe: Recipe) -> Recipe:
    """One tower with the maps and units of both: no border runs through any layer (the control of 6.1's two kinds of
    kernels)."""
    for layer in recipe.layers:
        if layer.maps is not None:
            recipe = change_layers(recipe, layer.name, maps=2 * layer.maps)
    return replace(recipe, towers=1)


def tanh(recipe: Recipe) -> Recipe:
    """tanh in place of ReLU everywhere (3.1)."""
    return _replace_relu(recipe, "tanh")


def sigmoid(recipe: Recipe) -> Recipe:
    """The logistic function in place of ReLU everywhere (3.1)."""
    return _replace_relu(recipe, "sigmoid")


def half_as_wide(recipe: Recipe) -> Recipe:
    """Half the maps or units in every hidden layer, at least 1 (7: results improved as the network was made larger)."""
    return _times_as_wide(recipe, 1, 2)


def twice_as_wide(recipe: Recipe) -> Recipe:
    """Twice the maps or units in every hidden layer (7)."""
    return _times_as_wide(recipe, 2, 1)


def _times_as_wide(recipe, numerator, denominator):
    """Initial deviations as elsewhere: times the root of the fan-in before over that after, to three digits."""
    old_fan_ins = _fan_ins(recipe)
    for layer in recipe.layers[:-1]:
        recipe = change_layers(recipe, layer.name, maps=max(1, layer.maps * numerator // denominator))
    new_fan_ins = _fan_ins(recipe)
    for layer in recipe.layers:
        std = layer.init_std * math.sqrt(old_fan_ins[layer.name] / new_fan_ins[layer.name])
        recipe = change_layers(recipe, layer.name, init_std=float(f"{std:.3g}"))
    return recipe


def paper_order(recipe: Recipe) -> Recipe:
    """Layer 1: ReLU, LRN, pool (3.5)."""
    return change_layers(recipe, "conv1", then=("relu", "lrn", "max_pool"))


def source_order(recipe: Recipe) -> Recipe:
    """Layer 1: LRN on the signed sums, pool, ReLU (145)."""
    return change_layers(recipe, "conv1", then=("lrn", "max_pool", "relu"))


# Initial weights


def literal_init(recipe: Recipe) -> Recipe:
    """A deviation of 0.01 in every layer (section 5), in a narrower network as much more as `_with_std` says."""
    return _with_std(recipe, 0.01, *(layer.name for layer in recipe.layers))


def source_init(recipe: Recipe) -> Recipe:
    """0.01, and 0.03 in the third and later convolutions (145), in a narrower network as much more as `_with_std`
    says."""
    deep_layers = [layer.name for layer in recipe.layers if layer.kind == "conv"][2:]
    return _with_std(literal_init(recipe), 0.03, *deep_layers)


def zero_biases(recipe: Recipe) -> Recipe:
    """Every bias begins at 0 (section 5: ones in conv2, conv4, conv5, fc6 and fc7 speed up the beginning)."""
    return change_layers(recipe, *(layer.name for layer in recipe.layers), init_bias=0.0)


def _with_std(recipe, std, *names):
    """The named layers with the deviation `std` of the paper's network, times the root of its fan-in over this
    recipe's.

    The paper's figures are of its own widths. In `mini`, where fc6 reads 512 values instead of 9,216, sums over N(0,
    0.01) are a quarter as large; an absolute figure would compare widths, not initial weights. Three decimals, as
    `mini` has them: its deviations are those of `literal_init`. Raises UserError, with the layer's name, where the
    paper's network has no such layer."""
    for name in names:
        recipe = change_layers(recipe, name, init_std=round(std * _fan_in_factor(recipe, name), 3))
    return recipe


def _fan_in_factor(recipe, name):
    """The root of a layer's fan-in in the paper's network over that in this one. Raises UserError."""
    paper_fan_ins, counterpart = _fan_ins(paper()), COUNTERPARTS.get(name, name)
    if counterpart not in paper_fan_ins:
        raise UserError(
            f"no initial deviation of {name} is known: the paper's network has no such layer, only "
            f"{', '.join(paper_fan_ins)}"
        )
    return math.sqrt(paper_fan_ins[counterpart] / _fan_ins(recipe)[name])


def _fan_ins(recipe):
    """{layer: how many values a unit or a map's position adds up}: 363 for 11x11 pixels of three colours."""
    return {
        size.layer.name: size.reads[0]
        * (size.layer.kernel**2 if size.layer.kind != "fc" else math.prod(size.reads[1:]))
        for size in sizes(recipe)
    }


# Images, regularisation


def no_colour(recipe: Recipe) -> Recipe:
    """Without the colour shift (4.1: over 1 point of top-1 error).

    In `source2012` training images are then not divided by 1 + noise either: `colour_shrink` does nothing where the
    noise is 0, as at the end of net 145's training."""
    dates = tuple(replace(date, colour_noise=0.0) if date.colour_noise else date for date in recipe.dates)
    return replace(recipe, colour_noise=0.0, dates=dates)


def no_crops(recipe: Recipe) -> Recipe:
    """Training on the centre of every picture alone (4.1)."""
    return replace(recipe, crop_positions=1)


def no_flips(recipe: Recipe) -> Recipe:
    """Training without mirror images (4.1)."""
    return replace(recipe, flip=False)


def no_augmentation(recipe: Recipe) -> Recipe:
    """No crops, no flips, no colour shift."""
    return no_crops(no_flips(no_colour(recipe)))


def no_dropout(recipe: Recipe) -> Recipe:
    """Every unit in every step (4.2)."""
    return replace(recipe, dropout=0.0)


def no_weight_decay(recipe: Recipe) -> Recipe:
    """Section 5 says that weight decay lowers the training error too."""
    recipe = change_layers(recipe, *(layer.name for layer in recipe.layers), weight_decay=None)
    return replace(recipe, weight_decay=0.0, bias_weight_decay=0.0)


# Schedules


def plateau_schedule(recipe: Recipe) -> Recipe:
    """Rates fall when the validation error stalls (section 5); the recipe's patience is for 90 epochs, and scaled to
    fewer.

    In a run of twelve epochs that waits for five validations without a new best, no rate would ever fall. At least 1.
    """
    return replace(
        recipe, schedule="plateau", plateau_patience=max(1, round(recipe.plateau_patience * recipe.epochs / 90))
    )


def dated_drops(recipe: Recipe) -> Recipe:
    """All rates fall to a tenth three times, at the shares of the epochs that 145 had: after 23, 51 and 78 of 93.

    Like a plateau schedule but for the dates. The dates of `source2012` differ in more: biases that fall once,
    conv1's own dates, and colour noise that ends."""
    dates = tuple(Date(epoch, weights=factor, biases=factor) for epoch, factor in ((24, 0.1), (52, 0.01), (79, 0.001)))
    return replace(recipe, schedule="dated", dates=_rescale_dates(dates, 93, recipe.epochs))


def without_plateaus(recipe: Recipe) -> Recipe:
    """`dated_drops` in place of plateaus: a run of a plateau schedule ends at a plateau, whatever its epochs.

    A dated recipe stays as it is."""
    return dated_drops(recipe) if recipe.schedule == "plateau" else recipe


def shortened(recipe: Recipe, epochs: int) -> Recipe:
    """The recipe's own schedule in fewer (or more) epochs: each date comes at the same share of them, a plateau as
    before."""
    return replace(recipe, epochs=epochs, dates=_rescale_dates(recipe.dates, recipe.epochs, epochs))


def twice_as_long(recipe: Recipe) -> Recipe:
    """Twice the epochs, without plateaus, each date at the same share of them (1, 7: longer training is better)."""
    return shortened(without_plateaus(recipe), 2 * recipe.epochs)


def fine_tuned(recipe: Recipe, epochs: int = 54) -> Recipe:
    """146-2012-2011: rates and dates for weights trained on other classes and a new fc8. Dates come at their share of
    `epochs`.

    Weights of the old layers begin at a tenth of the rate, conv1's at a hundredth, fc8's at the whole (in the source
    after 300 batch files, a quarter of an epoch). Biases keep the whole rate to the end, 0.02 in the source (conv6's
    0.022 there looks like a typo), but for conv1's, which stop with its weights as in 145-2010. Noted epochs are the
    last before a change, as those of `architectures.dates_of_145`."""
    first_layer, *hidden_layers, last_layer = (layer.name for layer in recipe.layers)
    recipe = change_layers(change_layers(recipe, first_layer, rate=0.01), *hidden_layers, rate=0.1)
    dates = (
        Date(6, (first_layer,), weights=0.1),
        Date(8, (first_layer,), weights=0.0, biases=0.0),
        Date(10, (last_layer,), weights=0.1),
        Date(23, tuple(hidden_layers), weights=0.1),
        Date(23, (last_layer,), weights=0.01),
        Date(39, colour_noise=0.0),
        Date(43, tuple(hidden_layers), weights=0.01),
        Date(43, (last_layer,), weights=0.001),
    )
    return replace(recipe, schedule="dated", epochs=epochs, dates=_rescale_dates(dates, 54, epochs))


def _rescale_dates(dates, epochs, new_epochs):
    """Dates of a run of `epochs` epochs in one of `new_epochs`: not before the same share is over; never in a run too
    short for it."""
    return tuple(replace(date, epoch=1 - (1 - date.epoch) * new_epochs // epochs) for date in dates)


def _replace_relu(recipe, operation):
    return _change_epilogues(recipe, lambda epilogue: tuple(operation if name == "relu" else name for name in epilogue))


def _change_epilogues(recipe, change):
    return replace(recipe, layers=tuple(replace(layer, then=change(layer.then)) for layer in recipe.layers))


def _insert(recipe, follower, layer):
    """The recipe with one more layer; dates that change the layer it is put before change it too."""
    index = recipe.layers.index(_layer(recipe, follower))

    def with_it(names):
        return sum(((layer.name, name) if name == follower else (name,) for name in names), ())

    dates = tuple(replace(date, layers=with_it(date.layers)) for date in recipe.dates)
    return replace(recipe, layers=recipe.layers[:index] + (layer,) + recipe.layers[index:], dates=dates)


def _layer(recipe, name):
    change_layers(recipe, name)  # it is there, or this raises
    return next(layer for layer in recipe.layers if layer.name == name)
