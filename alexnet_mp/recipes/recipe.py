"""Every number of an experiment, with its unit and its source.

The presets `paper`, `source2012` and `mini` are in `architectures.py`. `ablations.py` derives the paper's experiments
from them, `cifar.py` has those for CIFAR-10, `named.py` lists all by name.

Sources: "3.3" is a section of the paper (Krizhevsky, Sutskever, Hinton 2012); "source" is the original code and its
configuration files for net 145, the network of the paper's headline figures (Computer History Museum,
AlexNet-Source-Code)."""

import difflib
import json
import operator
import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, create_model

from ..system.errors import UserError
from . import shapes

# An unknown field, or True for a number, is an error, also in a layer of a recipe that `replace` makes.
_STRICT = ConfigDict(extra="forbid", strict=True, revalidate_instances="always")
# Integers that every reader of JSON holds exactly, as checkpoints ask. Numbers that float32 holds with all its digits,
# since kernels compute in it.
LARGEST, LEAST = 3e38, 1.2e-38
Count = Annotated[int, Field(ge=1, lt=2**53)]
NotNegativeCount = Annotated[int, Field(ge=0, lt=2**53)]
Window = Annotated[int, Field(ge=1, lt=2**10)]  # `reference.py` pads maps by it, so memory grows with it
Finite = Annotated[float, Field(ge=-LARGEST, le=LARGEST, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, le=LARGEST, allow_inf_nan=False)]
Positive = Annotated[float, Field(ge=LEAST, le=LARGEST, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Operation = Literal["relu", "tanh", "sigmoid", "lrn", "spatial_norm", "max_pool", "avg_pool", "dropout"]


@dataclass(frozen=True)
class Layer:
    """One layer of each tower: a convolution or a fully connected product, then the operations that follow it."""

    __pydantic_config__ = _STRICT

    name: str
    # "local" = a convolution with kernels and biases of its own at every position (source)
    kind: Literal["conv", "local", "fc"]
    maps: Annotated[int, Field(ge=1, lt=2**31)] | None  # feature maps, or units, of one tower; None = one a class
    reads: Literal["image", "own", "both"]  # "both" = both towers' maps cross (3.2, figure 2)
    then: tuple[Operation, ...]  # in this order
    kernel: Count = 1  # pixels
    stride: Count = 1  # pixels
    # zero pixels on every side; a last window over the edge gets more at the right and bottom
    pad: NotNegativeCount = 0
    init_std: NotNegative = 0.01  # weights ~ N(0, init_std) (5)
    init_bias: Finite = 0.0
    towers: Literal["each", "first"] = "each"  # "first" = on tower a alone: fc8 and the softmax (source: gpu=0)
    weight_decay: NotNegative | None = None  # of this layer's weights; None = the recipe's (source: wc, one a layer)
    # factor on `learning_rate`, of this layer's weights; biases keep theirs (source: epsW, one a layer)
    rate: NotNegative = 1.0


@dataclass(frozen=True)
class Date:
    """What changes from the start of `epoch` on (the first epoch is 1). None leaves a value as it was."""

    __pydantic_config__ = _STRICT

    epoch: Count
    layers: tuple[str, ...] = ()  # the layers whose rates change; () = all
    weights: NotNegative | None = None  # factor on `learning_rate` times the layer's `rate`
    biases: NotNegative | None = None  # factor on `bias_learning_rate`
    colour_noise: NotNegative | None = None  # replaces the recipe's


@dataclass(frozen=True)
class Recipe:
    """A whole experiment. Raises UserError, with the field's name, for a value that no run could use."""

    __pydantic_config__ = _STRICT

    name: str
    layers: tuple[Layer, ...]
    towers: Literal[1, 2] = 2  # 3.2

    # Normalisation, pooling, dropout: one setting for all layers that use the operation
    lrn_size: Window = 5  # maps, n (3.3)
    lrn_alpha: NotNegative = 1e-4  # times the sum of squared activations (3.3); torch's alpha is lrn_size times this
    lrn_beta: NotNegative = 0.75  # 3.3
    lrn_k: Positive = 2.0  # 3.3
    # whether it sees across the towers' border, as in Caffe's networks of one device; False isn't stored, so that what
    # runs, checkpoints and records of before there was this field say is what they would say now
    lrn_crosses: Annotated[bool, Field(exclude_if=operator.not_)] = False
    spatial_size: Window = 5  # pixels (source: cnorm2, the second normalisation of layer 2; not in the paper)
    spatial_alpha: NotNegative = 4e-5  # multiplies the sum of squares (source: scale 1e-3 over 5 * 5)
    spatial_beta: NotNegative = 0.75  # source
    spatial_k: Positive = 1.0  # source: minDiv is not read for this layer type, its kernel's constant is 1
    pool_size: Count = 3  # pixels, z (3.4)
    pool_stride: Count = 2  # pixels, s (3.4)
    pool_ties: Literal["first", "all"] = "first"  # who gets the gradient of tied maxima
    dropout: Fraction = 0.5  # probability of zero in training; in test outputs are multiplied by 1 - dropout (4.2)

    # Images
    # pixels, of a JPEG file at most: the shorter side is rescaled to this, then the central square kept (2)
    stored_size: Annotated[int, Field(ge=1, lt=2**16)] = 256
    # `prepare`'s (cuda-convnet2, `make-data/pyext/include/pyext.h:26`)
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 95
    crop_size: Count = 224  # pixels (4.1)
    crop_positions: Count = 32  # offsets a side in training: 32 x 32 x 2 flips = the paper's factor of 2048 (4.1)
    crop_share: Count = 1  # consecutive images that share one crop position and flip
    flip: bool = True  # horizontal, with probability 1/2 (4.1)
    # the mean image is cropped and flipped with its picture; False: its centre window, always
    mean_follows_crop: bool = True
    colour_noise: NotNegative = 0.1  # standard deviation of the random factor on each principal component (4.1)
    colour_scale: Literal["eigenvalue", "root"] = "eigenvalue"  # what the factor multiplies, in 0..1 pixel units (4.1)
    colour_shrink: bool = False  # divide the training image by 1 + colour_noise after the shift
    reshuffle: bool = True  # a new order every epoch; False: shuffled once, then the same order every epoch
    test_views: Literal["ten", "nine", "one"] = "ten"  # corners, centre, mirrors (4.1); 3 x 3 places; the centre alone

    # Optimiser (5)
    batch_size: Count = 128  # images
    batch_file_size: Count | None = None  # images cut into minibatches by themselves (source, CIFAR-10); None = all
    # images after which the fully connected layers are updated, in one tower whose units many processes may divide
    # (2014, cuda-convnet2: updatePeriod); None = all layers once a minibatch, and isn't stored, as `lrn_crosses`
    fc_batch_size: Annotated[Count | None, Field(exclude_if=operator.not_)] = None
    learning_rate: NotNegative = 0.01  # of weights, at the start
    bias_learning_rate: NotNegative = 0.01  # of biases, at the start
    momentum: Fraction = 0.9
    weight_decay: NotNegative = 0.0005  # of weights
    bias_weight_decay: NotNegative = 0.0005  # of biases

    # Schedule (5)
    epochs: Count = 90  # at most
    schedule: Literal["plateau", "dated"] = "plateau"
    plateau_patience: Count = 5  # validations without a new best top-1 error before a drop; the paper gives none
    plateau_drops: NotNegativeCount = 3  # then stop at the next plateau
    plateau_factor: Fraction = 0.1  # the rate is multiplied by this
    dates: tuple[Date, ...] = ()  # of the dated schedule
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0  # of weights, order, crops, colours and dropout masks

    def __post_init__(self):
        check(self)


def change_layers(recipe: Recipe, *names: str, **changes: object) -> Recipe:
    """The recipe with the named layers changed in the named fields."""
    unknown_names = set(names) - {layer.name for layer in recipe.layers}
    if unknown_names:
        raise UserError(f"the recipe has no layer {', '.join(sorted(unknown_names))}")
    return replace(
        recipe, layers=tuple(replace(layer, **changes) if layer.name in names else layer for layer in recipe.layers)
    )


def override(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    """The recipe with `field=value` settings applied: `batch_size=64`, `conv3.init_std=0.03`,
    `conv1.then=relu,max_pool`.

    Values are JSON where that parses, else text; a comma-separated text fills a list. Raises UserError with the field's
    name."""
    fields = every_field(recipe)
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: write it as field=value")
        owner, field = fields, path
        if "." in path:
            layer, field = path.split(".", 1)
            owner = next((entry for entry in fields["layers"] if entry["name"] == layer), None)
            if layer in fields:
                raise UserError(f"--set {path}: {layer} is set whole, as JSON")
            if owner is None:
                raise UserError(
                    f"--set {path}: the recipe has no layer {layer!r}; its layers are "
                    f"{', '.join(entry['name'] for entry in fields['layers'])}"
                )
        if field not in owner:
            matches = difflib.get_close_matches(field, owner, n=1)
            raise UserError(f"--set {path}: no such recipe field{f'; did you mean {matches[0]}?' if matches else ''}")
        try:
            value = json.loads(text)
        except ValueError:  # also an integer of thousands of digits
            value = text
        if isinstance(owner[field], list) and isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        owner[field] = value
        if path == "layers":  # checked at once, since the next setting may name one of them
            fields = every_field(from_dict(fields))
    return from_dict(fields)


def to_dict(recipe: Recipe, defaults: bool = True) -> dict:
    """The recipe as plain JSON types, as a run stores it; without the fields that have their default, where these are
    left out."""
    return _ADAPTER.dump_python(recipe, mode="json", exclude_defaults=not defaults)


def every_field(recipe: Recipe) -> dict:
    """`to_dict`, and with it the fields that are not stored where they say nothing new."""
    values = to_dict(recipe)
    return values | {name: getattr(recipe, name) for name in recipe.__dataclass_fields__ if name not in values}


def describe(recipe: Recipe, width: int = 100) -> str:
    """The resolved recipe as text: a line a layer, then every other field."""
    lines = [
        f"  {layer.name:6} {layer.kind:4} maps {layer.maps or 'classes'}, reads {layer.reads}, "
        + (f"{layer.kernel}x{layer.kernel} stride {layer.stride} pad {layer.pad}, " if layer.kind != "fc" else "")
        + f"std {layer.init_std:g}, bias {layer.init_bias:g}"
        + (f", weight decay {layer.weight_decay:g}" if layer.weight_decay is not None else "")
        + (f", weight rate times {layer.rate:g}" if layer.rate != 1 else "")
        + (f", then {' -> '.join(layer.then)}" if layer.then else "")
        + (", on the first tower alone" if layer.towers == "first" else "")
        for layer in recipe.layers
    ]
    rest = ", ".join(
        f"{name}={value}" for name, value in to_dict(recipe).items() if name not in ("name", "layers", "dates")
    )
    lines += textwrap.wrap(rest, width, initial_indent="  ", subsequent_indent="  ", break_long_words=False)
    for date in recipe.dates if recipe.schedule == "dated" else ():
        changes = (
            ("weight rates times", date.weights),
            ("bias rates times", date.biases),
            ("colour_noise", date.colour_noise),
        )
        lines.append(
            f"  from epoch {date.epoch}: {', '.join(date.layers) or 'all layers'}: "
            + ", ".join(f"{what} {value:g}" for what, value in changes if value is not None)
        )
    return "\n".join([f"recipe {recipe.name}, layers of each tower:", *lines])


def summary(recipe: Recipe) -> str:
    """The resolved recipe in two lines, for the start of a run."""
    maps = ", ".join(f"{layer.name} {layer.maps or 'one a class'}" for layer in recipe.layers)
    dates = dict.fromkeys(str(date.epoch) for date in recipe.dates if date.epoch <= recipe.epochs)
    falls = (
        f"plateaus lower it {recipe.plateau_drops} times at most"
        if recipe.schedule == "plateau"
        else f"dated changes at epoch{'s' * (len(dates) > 1)} {', '.join(dates)}"
        if dates
        else "which stays"
    )
    return (
        f"maps {'of each of the 2 towers' if recipe.towers == 2 else 'of the only tower'}: {maps}; "
        f"crops of {recipe.crop_size} pixels from pictures of {recipe.stored_size}\n"
        f"{recipe.epochs} epochs at most in batches of {recipe.batch_size}"
        + (f", of {recipe.fc_batch_size} for the fully connected layers" if recipe.fc_batch_size else "")
        + f", learning rate {recipe.learning_rate:g}, "
        f"{falls}; seed {recipe.seed}; run.json has every other number"
    )


def upgraded(fields: object) -> object:
    """What `to_dict` wrote before there was `batch_file_size` (checkpoint format 3), with what means the same.

    Anything else comes back as it is, for `from_dict` to refuse.
    """
    lacks_field = isinstance(fields, dict) and "batch_file_size" not in fields
    return {**fields, "batch_file_size": None} if lacks_field else fields


def from_dict(fields: object) -> Recipe:
    """The recipe that `to_dict` wrote, every field checked. Raises UserError with the field's name and value."""
    try:
        return _ADAPTER.validate_json(json.dumps(fields))
    except ValidationError as error:
        raise _refusal(error, fields) from None


def _refusal(error, fields):
    """The UserError of the first problem of {field: value}."""
    problem = error.errors()[0]
    if problem["type"] == "value_error":  # raised by `check`, which names the field
        return UserError(str(problem["ctx"]["error"]))
    place = problem["loc"] or ("(all)",)
    if place[0] == "layers" and len(place) > 2:
        layer = fields["layers"][place[1]]
        place = getattr(layer, "name", None) or layer.get("name", f"layers.{place[1]}"), *place[2:]
    what = problem["msg"].replace("Input should", "it must")
    what = re.sub(r"\d[\d.]{20,}", lambda number: f"{float(number[0]):g}", what)  # pydantic writes all zeros
    return UserError(f"recipe field {'.'.join(map(str, place))} is {problem['input']!r:.100}: {what}")


def check(recipe: Recipe) -> None:
    """Refuse values that no run could use. Raises UserError with the field's name."""
    try:
        _VALUES(**vars(recipe))
    except ValidationError as error:
        raise _refusal(error, vars(recipe)) from None

    def need(condition, field, what):
        if not condition:
            raise UserError(f"recipe field {field} is {getattr(recipe, field)!r}: {what}")

    need(recipe.name.isidentifier(), "name", "it must be one word of letters, digits and underscores")
    need(
        recipe.pool_stride <= recipe.pool_size,
        "pool_stride",
        f"it must not be larger than pool_size {recipe.pool_size}",
    )
    need(
        recipe.fc_batch_size is None or recipe.towers == 1,
        "fc_batch_size",
        "the layers of two towers are updated together, once a minibatch (null)",
    )
    kinds = [layer.kind for layer in recipe.layers]
    need(
        recipe.fc_batch_size is None or kinds[:1] != ["fc"] and "fc" in kinds,
        "fc_batch_size",
        "it is for fully connected layers behind convolutions; without one of them it is null",
    )
    need(
        recipe.crop_size <= recipe.stored_size,
        "crop_size",
        f"the crop must not be larger than the stored image, stored_size {recipe.stored_size}",
    )
    need(
        recipe.crop_positions <= recipe.stored_size - recipe.crop_size + 1,
        "crop_positions",
        f"a crop of {recipe.crop_size} fits at {recipe.stored_size - recipe.crop_size + 1} offsets in "
        f"{recipe.stored_size}",
    )
    _check_layers(recipe)
    shapes.sizes(recipe)


def _check_layers(recipe):
    names = [layer.name for layer in recipe.layers]
    if not names or len(set(names)) < len(names) or not all(re.fullmatch("[a-z]+[0-9]+", name) for name in names):
        raise UserError(f"recipe field layers: the names must differ and be like conv1 or fc6, but are {names}")
    for index, layer in enumerate(recipe.layers):
        first, last = index == 0, index == len(names) - 1

        def need(condition, field, what, layer=layer):
            if not condition:
                raise UserError(f"recipe field {layer.name}.{field} is {getattr(layer, field)!r}: {what}")

        need((layer.reads == "image") == first, "reads", "the first layer reads the image, and no other does")
        need((layer.maps is None) == last, "maps", "the last layer, and no other, has one unit a class (null)")
        need(layer.towers == "each" or last, "towers", "only the last layer can be on the first tower alone")
        need(
            layer.kind == "fc" or first or recipe.layers[index - 1].kind != "fc",
            "kind",
            "a convolution cannot follow a fully connected layer",
        )
        need(
            layer.kind != "local" or not first, "kind", "the first layer's kernels are shared, to be drawn as a picture"
        )
        need(
            layer.kind != "fc" or not set(layer.then) - {"relu", "tanh", "sigmoid", "dropout"},
            "then",
            "a fully connected layer has no maps to normalise or pool",
        )
        for field, default in (("kernel", 1), ("stride", 1), ("pad", 0)):
            need(
                layer.kind != "fc" or getattr(layer, field) == default,
                field,
                f"a fully connected layer has none, leave it at {default}",
            )
        need(
            recipe.towers == 1 or not last or layer.towers == "first",
            "towers",
            "the last layer of two towers is on the first alone, with the loss",
        )
        need(
            recipe.towers == 1 or not last or first or layer.reads == "both",
            "reads",
            "the last layer of two towers reads both, else nothing would train the second",
        )
    for date in recipe.dates:
        if set(date.layers) - set(names):
            raise UserError(f"recipe field dates: {date} has a layer that the recipe has not")
    if recipe.schedule == "dated" and list(recipe.dates) != sorted(recipe.dates, key=lambda date: date.epoch):
        raise UserError("recipe field dates: they must be in order of their epochs")


_ADAPTER = TypeAdapter(Recipe)
# Its fields alone: the adapter would make another recipe, to be checked in turn.
_VALUES = create_model(
    "Values", __config__=_STRICT, **{name: (kind, ...) for name, kind in Recipe.__annotations__.items()}
)
