"""What the self-check has to check for a run: the kernels that its layers use, the crossings, the pipeline."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..kernels import dispatch, linear_op
from ..network.layer import FUSED, plan
from ..recipes import shapes
from ..recipes.recipe import Layer, Recipe
from . import device_checks, pipeline_check

CROSSING_IMAGES = 32
VALUES = 20_000  # of a parameter that an update is checked with
# fields of a recipe that kernels depend on
CONSTANTS = (
    "lrn_size",
    "lrn_alpha",
    "lrn_beta",
    "lrn_k",
    "spatial_size",
    "spatial_alpha",
    "spatial_beta",
    "spatial_k",
    "pool_size",
    "pool_stride",
    "pool_ties",
    "dropout",
)
# and those that pipelines depend on
IMAGES = (
    "stored_size",
    "crop_size",
    "crop_positions",
    "crop_share",
    "flip",
    "mean_follows_crop",
    "colour_noise",
    "colour_scale",
    "colour_shrink",
)


@dataclass(frozen=True)
class Asked:
    """What a run is going to compute with."""

    recipe: Recipe
    classes: int
    devices: tuple[torch.device, ...]  # of each tower
    dtype: torch.dtype  # of images
    kernels: str  # as in --kernels
    pipeline: str  # its name
    storage: str  # what the data's splits hold, see `dataset.py`


@dataclass(frozen=True)
class Check:
    kind: str  # "kernel", "augment", "crossing" or "pipeline"
    what: str  # is checked, in words: "lrn_max_pool after conv1 by cuda on cuda:0"
    devices: tuple[torch.device, ...]
    function: Callable[..., None]  # of `device_checks` or `pipeline_check`: called with the devices, then the arguments
    arguments: tuple
    operation: str = ""  # of a kernel
    implementation: str = ""  # of a kernel, or the pipeline's name

    @property
    def identity(self) -> str:
        """Stands for all that decides about the outcome, but for device and installation."""
        words = f"{self.function.__name__}{self.arguments!r} by {self.implementation}"
        return hashlib.sha256(words.encode()).hexdigest()[:32]


def checks(asked: Asked) -> list[Check]:
    """The `Check`s of what a run would use now, with the kernels that are left out."""
    distinct = tuple(dict.fromkeys(asked.devices))
    found = crossings(asked) if len(distinct) == 2 else []
    for device in distinct:
        towers = [tower for tower, other in enumerate(asked.devices) if other == device]
        found += _kernels(
            asked,
            device,
            [size for size in shapes.sizes(asked.recipe, asked.classes) if 0 in towers or size.layer.towers == "each"],
        )
        if asked.pipeline == "raw":
            arguments = asked.recipe.stored_size, asked.recipe.crop_size, asked.recipe.mean_follows_crop, asked.dtype
            found += _by("augment", "augment", ("auto", device), device_checks.augmentation, arguments)
    of_images = {field: getattr(asked.recipe, field) for field in IMAGES}
    pictures = Recipe(
        "self_check",
        (Layer("fc8", "fc", None, "image", (), towers="first"),),
        towers=1,
        batch_size=pipeline_check.BATCH,
        **of_images,
    )
    augmented_by = (
        {dispatch.resolve("auto", device, "augment") for device in distinct} if asked.pipeline == "raw" else ()
    )
    arguments = asked.pipeline, asked.storage, pictures, asked.dtype, tuple(sorted(augmented_by))
    return [
        *found,
        Check(
            "pipeline",
            f"pipeline {asked.pipeline} on {' and '.join(map(str, distinct))}",
            distinct,
            pipeline_check.pipeline,
            arguments,
            implementation=asked.pipeline,
        ),
    ]


def crossings(asked: Asked) -> list[Check]:
    """Both ways, of each shape that crosses."""
    found, before = {}, None
    for size in shapes.sizes(asked.recipe, asked.classes):
        if size.layer.reads == "both":
            found.setdefault(before.output, []).append(size.layer.name)
        before = size
    where = " and ".join(map(str, asked.devices))
    return [
        Check(
            "crossing",
            f"the exchange for {', '.join(names)} between {where}",
            asked.devices,
            device_checks.crossing,
            ((CROSSING_IMAGES, *shape), asked.dtype),
        )
        for shape, names in found.items()
    ]


def _kernels(asked, device, sizes):
    who, recipe = (asked.kernels, device), asked.recipe
    constants = {field: getattr(recipe, field) for field in CONSTANTS}
    operations, products = {}, {}
    for size in sizes:
        maps = size.computed
        layer = Layer("any", size.layer.kind, None, "own", size.layer.then)  # what kernels know of one
        for fused in plan(size.layer.then):
            if fused in FUSED:
                operations.setdefault((layer, fused, maps), []).append(size.layer.name)
            if {"max_pool", "avg_pool"} & set(fused):
                maps = maps[0], *(shapes.pooled_size(side, recipe.pool_size, recipe.pool_stride) for side in maps[1:])
        if layer.kind == "fc" and math.prod(size.weight_shape) >= linear_op.LARGE:
            inputs = size.weight_shape[1]
            products.setdefault((-(-linear_op.LARGE // inputs), inputs), []).append(size.layer.name)
    found = []
    for (layer, fused, maps), names in operations.items():
        operation = _operation(fused)
        implementation = dispatch.resolve(*who, operation)
        arguments = layer, fused, maps, constants, asked.dtype, asked.kernels, implementation
        found += _by("kernel", operation, who, device_checks.fused_operation, arguments, names)
    for shape, names in products.items() if device.type == "cpu" and asked.dtype == torch.float32 else ():
        found += _by("kernel", "linear", who, device_checks.product, (shape, asked.kernels), names)
    parameters = tuple(
        dict.fromkeys(_shortened(shape) for size in sizes for shape in (size.weight_shape, size.bias_shape))
    )
    return found + _by("kernel", "paper_sgd_", who, device_checks.update, (parameters, recipe.momentum, asked.kernels))


def _by(kind, operation, who, function, arguments, layers=()):
    """[the check of an operation by whatever computes it]; [] where that is the reference."""
    kernels, device = who
    name = dispatch.resolve(kernels, device, operation)
    what = f"{operation}{' after ' if layers else ''}{', '.join(layers)} by {name} on {device}"
    return [] if name == "reference" else [Check(kind, what, (device,), function, arguments, operation, name)]


def _operation(fused):
    """The public function that computes a run of operations."""
    others = [operation for operation in fused if operation != "relu"]
    return "relu_dropout" if others in ([], ["dropout"]) else "_".join(others)


def _shortened(shape):
    return (max(1, min(shape[0], VALUES // math.prod(shape[1:]))), *shape[1:])
