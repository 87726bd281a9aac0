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
    overlap: bool | None = None  # see `Exchange`


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


def checks(setup: Asked) -> list[Check]:
    """The `Check`s of what a run would use now, with the kernels that are left out."""
    devices = tuple(dict.fromkeys(setup.devices))
    checklist = crossings(setup) if len(devices) == 2 else []
    for device in devices:
        towers = [tower for tower, home in enumerate(setup.devices) if home == device]
        checklist += _kernels(
            setup,
            device,
            [size for size in shapes.sizes(setup.recipe, setup.classes) if 0 in towers or size.layer.towers == "each"],
        )
        if setup.pipeline == "raw":
            arguments = setup.recipe.stored_size, setup.recipe.crop_size, setup.recipe.mean_follows_crop, setup.dtype
            checklist += _checks_of("augment", "augment", ("auto", device), device_checks.augmentation, arguments)
    image_fields = {field: getattr(setup.recipe, field) for field in IMAGES}
    pictures = Recipe(
        "self_check",
        (Layer("fc8", "fc", None, "image", (), towers="first"),),
        towers=1,
        batch_size=pipeline_check.BATCH,
        **image_fields,
    )
    augmenters = {dispatch.resolve("auto", device, "augment") for device in devices} if setup.pipeline == "raw" else ()
    arguments = setup.pipeline, setup.storage, pictures, setup.dtype, tuple(sorted(augmenters))
    return [
        *checklist,
        Check(
            "pipeline",
            f"pipeline {setup.pipeline} on {' and '.join(map(str, devices))}",
            devices,
            pipeline_check.pipeline,
            arguments,
            implementation=setup.pipeline,
        ),
    ]


def crossings(setup: Asked) -> list[Check]:
    """Both ways, of each shape that crosses."""
    readers, source = {}, None
    for size in shapes.sizes(setup.recipe, setup.classes):
        if size.layer.reads == "both":
            readers.setdefault(source.output, []).append(size.layer.name)
        source = size
    where = " and ".join(map(str, setup.devices))
    return [
        Check(
            "crossing",
            f"the exchange for {', '.join(names)} between {where}",
            setup.devices,
            device_checks.crossing,
            ((CROSSING_IMAGES, *shape), setup.dtype, setup.overlap is not False),
        )
        for shape, names in readers.items()
    ]


def _kernels(setup, device, sizes):
    target, recipe = (setup.kernels, device), setup.recipe
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
    checklist = []
    for (layer, fused, maps), names in operations.items():
        operation = _operation(fused)
        implementation = dispatch.resolve(*target, operation)
        arguments = layer, fused, maps, constants, setup.dtype, setup.kernels, implementation
        checklist += _checks_of("kernel", operation, target, device_checks.fused_operation, arguments, names)
    for shape, names in products.items() if device.type == "cpu" and setup.dtype == torch.float32 else ():
        checklist += _checks_of("kernel", "linear", target, device_checks.product, (shape, setup.kernels), names)
    parameters = tuple(
        dict.fromkeys(_shorten(shape) for size in sizes for shape in (size.weight_shape, size.bias_shape))
    )
    arguments = parameters, recipe.momentum, setup.dtype, setup.kernels
    checklist += _checks_of("kernel", "paper_sgd_", target, device_checks.update, arguments)
    if device.type == "cuda":  # on a CPU PyTorch computes it
        arguments = setup.classes, setup.kernels
        checklist += _checks_of("kernel", "topk_credit", target, device_checks.credit, arguments)
    return checklist


def _checks_of(kind, operation, target, function, arguments, layers=()):
    """[the check of an operation by whatever computes it]; [] where that is the reference."""
    kernels, device = target
    name = dispatch.resolve(kernels, device, operation)
    what = f"{operation}{' after ' if layers else ''}{', '.join(layers)} by {name} on {device}"
    return [] if name == "reference" else [Check(kind, what, (device,), function, arguments, operation, name)]


def _operation(fused):
    """The public function that computes a run of operations."""
    operations = [operation for operation in fused if operation != "relu"]
    return "relu_dropout" if operations in ([], ["dropout"]) else "_".join(operations)


def _shorten(shape):
    return (max(1, min(shape[0], VALUES // math.prod(shape[1:]))), *shape[1:])
