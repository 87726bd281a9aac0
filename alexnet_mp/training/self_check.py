"""The self-check at the start of a run on a GPU: do kernels, crossings and pipeline compute what they should here?

The checks themselves are in `device_checks.py`, and run in a process of their own (`isolated.py`). A kernel or a
pipeline that fails is left out, and the next best one is checked in its place; one that was chosen by name ends the
run, and so does a crossing. What has passed is remembered in the user's cache directory, by device, driver, versions
and build.
"""

import functools
import hashlib
import json
import math
import os
import secrets
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..data import pipeline_dali
from ..data.pipeline import Pipeline
from ..kernels import dispatch, linear_op
from ..network.layer import FUSED, plan
from ..recipes import shapes as geometry
from ..recipes.recipe import Layer, Recipe
from ..system import durable_files, isolated, machine
from ..system.devices import device_name
from ..system.errors import UserError
from ..system.isolated import PASSED, UNCHECKED
from ..system.provenance import PACKAGES, package_version
from ..system.terminal import progress, say
from . import device_checks

BEFORE = "passed before"
KINDS = ("cuda",)  # of devices: a run that has one is checked
FOLDER = Path("alexnet_mp", "self_check")  # in the cache directory
MOST_BYTES = 1 << 20  # of what is remembered of a device
CROSSING_IMAGES = 32
VALUES = 20_000  # of a parameter that an update is checked with
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
)  # fields of a recipe that kernels depend on
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
)  # and those that pipelines depend on


@dataclass(frozen=True)
class Asked:
    """What a run is going to compute with."""

    recipe: Recipe
    classes: int
    devices: tuple  # of each tower
    dtype: torch.dtype  # of images
    kernels: str  # as in --kernels
    pipeline: str  # its name
    storage: str  # what the data's splits hold, see `dataset.py`


@dataclass(frozen=True)
class Check:
    kind: str  # "kernel", "augment", "crossing" or "pipeline"
    what: str  # is checked, in words: "lrn_max_pool after conv1 by cuda on cuda:0"
    devices: tuple
    function: object  # of `device_checks`: called with the devices, then the arguments
    arguments: tuple
    operation: str = ""  # of a kernel
    implementation: str = ""  # of a kernel, or the pipeline's name

    @property
    def identity(self) -> str:
        """Stands for all that decides about the outcome, but for device and installation."""
        words = f"{self.function.__name__}{self.arguments!r} by {self.implementation}"
        return hashlib.sha256(words.encode()).hexdigest()[:32]


def before_run(
    pipeline: Pipeline, kernels: str, pipeline_is_chosen: bool, wanted: bool = True
) -> tuple[str, str | dict[str, str]]:
    """Check what a run needs: (name of the pipeline that it is to use, what run.json records of the checks).

    pipeline: the run's, not yet used. Says what was found; from now on `--kernels auto` leaves out what has failed.
    Raises UserError where the run can't go on.
    """
    dispatch.leave_out(())
    if not wanted:
        return pipeline.name, "off (--no-self-check)"
    if not any(device.type in KINDS for device in pipeline.devices):
        return pipeline.name, "none: no CUDA device"
    dataset = pipeline.dataset
    asked = Asked(
        pipeline.recipe,
        len(dataset.classes),
        tuple(pipeline.devices),
        pipeline.dtype,
        kernels,
        pipeline.name,
        dataset.splits["train"].storage,
    )
    name, found = examine(asked, pipeline_is_chosen)
    outcomes = list(found.values())
    before = f", {outcomes.count(BEFORE)} of them before" if BEFORE in outcomes else ""
    say(f"self-check: {outcomes.count(PASSED) + outcomes.count(BEFORE)} of {len(outcomes)} checks passed{before}")
    return name, found


def examine(
    asked: Asked,
    pipeline_is_chosen: bool = False,
    fresh: bool = False,
    tell: Callable[[str], object] = say,
    needed: Callable[[Asked], list[Check]] | None = None,
) -> tuple[str, dict[str, str]]:
    """(name of the pipeline to be used, {what was checked: "passed", "passed before", or what is wrong}).

    fresh: what has passed before is checked again. tell: is called with each line for the user. needed(asked): the
    checks, by default all `checks`. See `before_run`.
    """
    left_out, found, memory = set(), {}, Memory(tell)
    while True:
        dispatch.leave_out(left_out)
        todo = []
        for check in (needed or checks)(asked):
            if check.what not in found and not fresh and memory.has(check):
                found[check.what] = BEFORE
            elif check.what not in found:
                todo.append(check)
        if not todo:
            return asked.pipeline, found
        tell(f"self-check: {len(todo)} to be checked on {' and '.join(map(str, dict.fromkeys(asked.devices)))}")
        check, outcome = _first_not_passed(todo, left_out, found, memory)
        if outcome is None:
            return asked.pipeline, found
        if outcome.state == UNCHECKED:
            tell(f"WARNING: self-check: nothing more can be checked: {outcome.why}")
            rest = {other.what: f"not checked: {outcome.why}" for other in todo if other.what not in found}
            return asked.pipeline, found | rest
        found[check.what] = f"left out: {outcome.why}"
        wrong, unseen = f"self-check: {check.what} {outcome.why}", "--no-self-check doesn't look"
        if check.kind == "crossing":
            alone = next((str(device.index) for device in check.devices if device.type == "cuda"), "cpu")
            raise UserError(f"{wrong}; no network can be split between these devices; --gpus {alone} does without")
        if check.kind == "kernel" and asked.kernels != "auto":
            raise UserError(f"--kernels {asked.kernels}: {wrong}; --kernels auto leaves it out, {unseen}")
        if check.kind == "pipeline":
            after = next_pipeline(asked.pipeline)
            if after is None:
                raise UserError(f"{wrong}; it is the last that there is, and {unseen}")
            if pipeline_is_chosen:
                raise UserError(f"--pipeline {asked.pipeline}: {wrong}; --pipeline auto leaves it out, {unseen}")
            asked, after = replace(asked, pipeline=after), f"pipeline {after}"
        else:
            left_out.add((check.operation, check.implementation, str(check.devices[0])))
            dispatch.leave_out(left_out)
            after = dispatch.resolve("auto", check.devices[0], check.operation)
        tell(f"WARNING: {wrong}; it is left out, and {after} takes its place")


def _first_not_passed(todo, left_out, found, memory):
    """(check, outcome) of the first that hasn't passed, or (None, None); those before are noted as passed."""
    devices, passed = tuple(dict.fromkeys(device for check in todo for device in check.devices)), []
    calls = [(check.function, (check.devices, *check.arguments)) for check in todo]
    try:
        with (
            progress("self-check", len(todo), "checks") as advance,
            closing(isolated.outcomes(calls, (device_checks.prepare, (devices, frozenset(left_out))))) as outcomes,
        ):
            for check, outcome in zip(todo, outcomes):
                if outcome.state != PASSED:
                    return check, outcome
                advance(1)
                passed.append(check)
                found[check.what] = PASSED
        return None, None
    finally:
        memory.keep(passed)


def next_pipeline(name: str) -> str | None:
    """The next best one; None after `torch`, which defines what a batch is."""
    if name == "torch":
        return None
    return "dali" if name == "raw" and pipeline_dali.available() else "torch"


# --- what has to be checked


def checks(asked: Asked) -> list[Check]:
    """The `Check`s of what a run would use now, with the kernels that are left out."""
    distinct = tuple(dict.fromkeys(asked.devices))
    found = crossings(asked) if len(distinct) == 2 else []
    for device in distinct:
        towers = [tower for tower, other in enumerate(asked.devices) if other == device]
        found += _kernels(
            asked,
            device,
            [
                size
                for size in geometry.sizes(asked.recipe, asked.classes)
                if 0 in towers or size.layer.towers == "each"
            ],
        )
        if asked.pipeline == "raw":
            arguments = asked.recipe.stored_size, asked.recipe.crop_size, asked.recipe.mean_follows_crop, asked.dtype
            found += _by("augment", "augment", ("auto", device), device_checks.augmentation, arguments)
    of_images = {field: getattr(asked.recipe, field) for field in IMAGES}
    pictures = Recipe(
        "self_check",
        (Layer("fc8", "fc", None, "image", (), towers="first"),),
        towers=1,
        batch_size=device_checks.BATCH,
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
            device_checks.pipeline,
            arguments,
            implementation=asked.pipeline,
        ),
    ]


def crossings(asked: Asked) -> list[Check]:
    """Both ways, of each shape that crosses."""
    found, before = {}, None
    for size in geometry.sizes(asked.recipe, asked.classes):
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
                maps = maps[0], *(geometry.pool_size(side, recipe.pool_size, recipe.pool_stride) for side in maps[1:])
        if layer.kind == "fc" and math.prod(size.weight_shape) >= linear_op.LARGE:
            inputs = size.weight_shape[1]
            products.setdefault((-(-linear_op.LARGE // inputs), inputs), []).append(size.layer.name)
    found = []
    for (layer, fused, maps), names in operations.items():
        arguments = layer, fused, maps, constants, asked.dtype, asked.kernels
        found += _by("kernel", _operation(fused), who, device_checks.fused_operation, arguments, names)
    for shape, names in products.items() if device.type == "cpu" and asked.dtype == torch.float32 else ():
        found += _by("kernel", "linear", who, device_checks.product, (shape, asked.kernels), names)
    shapes = tuple(dict.fromkeys(_shortened(shape) for size in sizes for shape in (size.weight_shape, size.bias_shape)))
    return found + _by("kernel", "paper_sgd_", who, device_checks.update, (shapes, recipe.momentum, asked.kernels))


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


# --- what has passed before


class Memory:
    """A file for each device, or pair of them, of this installation, in FOLDER of the user's cache directory.

    What can't be read counts as nothing; it is said once where nothing can be kept.
    """

    def __init__(self, tell: Callable[[str], object]):
        self.tell, self.known, self.said = tell, {}, False

    def has(self, check: Check) -> bool:
        if check.devices not in self.known:
            self.known[check.devices] = self._read(check.devices)
        return check.identity in self.known[check.devices]

    def keep(self, passed: Sequence[Check]) -> None:
        """Remember these checks, beside those that another run may have added meanwhile."""
        for devices in dict.fromkeys(check.devices for check in passed):
            facts, path = self._place(devices)
            new = {check.identity: check.what for check in passed if check.devices == devices}
            self.known[devices] = known = self._read(devices) | new
            try:
                if path is None:
                    raise OSError(0, "there is no home directory")
                os.makedirs(path.parent, mode=0o700, exist_ok=True)
                self._write(path, {"facts": facts, "passed": known})
            except OSError as error:
                if not self.said:
                    where = path.parent if path else "the cache"
                    self.tell(f"self-check: what has passed can't be remembered: {where}: {error.strerror}")
                self.said = True

    @staticmethod
    def _write(path, content):
        """A name of its own for each writer: `files.replace` is for files that one process writes."""
        partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}{durable_files.PARTIAL}")
        try:
            durable_files.write(partial, [(json.dumps(content, indent=1) + "\n").encode()])
            durable_files.rename(partial, path)
        except BaseException:
            with suppress(OSError):
                durable_files.remove(partial)
            raise

    def _read(self, devices):
        """{identity of a check: what it was, for a person}."""
        facts, path = self._place(devices)
        try:
            content = json.loads(durable_files.read(path, MOST_BYTES)) if path else None
        except (OSError, ValueError, RecursionError):
            return {}
        whole = isinstance(content, dict) and content.get("facts") == facts and isinstance(content.get("passed"), dict)
        return content["passed"] if whole else {}

    @staticmethod
    def _place(devices):
        facts = {"devices": [_identity_of(device) for device in devices], **_installation()}
        digest, directory = hashlib.sha256(json.dumps(facts).encode()).hexdigest(), machine.cache_directory()
        return facts, directory / FOLDER / f"{digest[:32]}.json" if directory else None


def _identity_of(device):
    if device.type != "cuda":
        return [device_name(device), torch.backends.cpu.get_cpu_capability()]
    properties = torch.cuda.get_device_properties(device)
    return [properties.name, str(getattr(properties, "uuid", "")), f"{properties.major}.{properties.minor}"]


@functools.cache
def _installation():
    """Driver, versions, and a digest of all that was built or is read."""
    digest = hashlib.sha256()
    roots = Path(__file__).parents[1], Path(dispatch.__file__).parent
    sources = [path for root in roots for path in sorted(root.rglob("*.py"))]
    for path in [*sources, dispatch.LIBRARY]:
        if path.exists():
            content = path.read_bytes()
            digest.update(f"{path.name}\0{len(content)}\0".encode() + content)
    return {
        "driver": machine.driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "build": digest.hexdigest(),
    }
