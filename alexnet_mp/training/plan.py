"""What a run is asked for, and what follows from it before any image is read: options -> one frozen plan."""

import datetime
import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch

from ..kernels import dispatch
from ..parallel.pieces import Pieces
from ..recipes.named import PRESETS
from ..recipes.recipe import Recipe, every_field, override
from ..runs.checkpoints import ResumePoint
from ..runs.directory import refuse_unusable
from ..runs.lock import RunLock
from ..system import precision
from ..system.command_line import typed
from ..system.devices import check_kernels, here, make_current
from ..system.errors import UserError
from ..system.provenance import package_version, source_commit
from ..system.ranks import ALONE, Ranks
from ..system.terminal import say
from . import graphed_step, length, resume
from .pretrained import read_weights
from .profiler import steps_of

# What all processes of a job have to be asked for alike, besides the recipe.
ALIKE = (
    "precision",
    "graphs",
    "overlap",
    "microbatch",
    "steps",
    "resume_anyway",
    "init_layers",
    "checkpoint_every",
    "keep_every",
    "profile",
)


@dataclass(frozen=True)
class Options:
    """What a run is asked for: all that the command line can say, with its defaults (`train --help` tells each).

    recipe: a `Recipe`, the name of a preset, or None: that of the checkpoint that is gone on from, else mini on a CPU
    and paper on CUDA. settings: `--set` FIELD=VALUE, in order; batch_size, epochs and seed come after them. command:
    what was typed, for run.json.
    """

    recipe: Recipe | str | None = None
    settings: tuple[str, ...] = ()
    batch_size: int | None = None
    epochs: int | None = None
    seed: int | None = None
    data: str | None = None
    out: str | None = None
    gpus: str = "auto"
    towers: str = "together"
    kernels: str = "auto"
    pipeline: str = "auto"
    workers: int | None = None
    precision: str | None = None
    graphs: str = "auto"
    overlap: str | None = None
    microbatch: int | None = None
    self_check: bool = True
    steps: int | None = None
    resume: str | None = None
    resume_anyway: bool = False
    init: str | None = None
    init_layers: str | None = None
    checkpoint_every: str = "10m"
    keep: int = 3
    keep_every: int | None = None
    on_save_error: str = "continue"
    profile: str | None = None
    command: str = ""


@dataclass(frozen=True)
class Plan:
    """What follows from the options before any image is read."""

    options: Options  # complete: what wasn't typed is the checkpoint's, or the default
    recipe: Recipe
    devices: list[torch.device]  # of each tower
    dtype: torch.dtype  # of the images
    graphs: str  # how steps are launched, in words
    overlap: bool | None  # see `Exchange`
    pieces: Pieces  # of each minibatch, what this pair of towers computes
    every: tuple[float, str]  # (number, "steps" | "seconds") between checkpoints
    out: str  # the run directory
    in_place: bool  # whether the run goes on, or begins, in a directory that is there already
    lock: RunLock | None  # of that directory, in the process that writes
    point: ResumePoint | None  # where the run goes on from
    weights: Mapping[str, torch.Tensor] | None  # of `--init`
    ranks: Ranks  # the processes of the job


def resolve(options: Options, resources: ExitStack, ranks: Ranks = ALONE) -> Plan:
    """What the options mean, here and now; says what was chosen for the user. Raises UserError.

    The lock of a run directory that is there already is held from here on, until `resources` ends. Of several processes
    rank 0 alone looks into directories, and tells the others what it has read.
    """
    every = _interval(options.checkpoint_every)
    _refuse_numbers(options)
    point, out, lock = None, options.out, None
    if options.resume is not None and ranks.writes:
        point, out, lock = resume.find(options.resume, options.out)
    if lock:
        resources.callback(lock.release)
    ranks.meet()  # the disk that it was read from may be slow, here and below
    point, in_place = ranks.first((point, lock is not None))
    typed_overlap = options.overlap
    if point:
        options = _as_it_was(options, point)
    options = replace(options, precision=options.precision or "fp32")
    recipe, devices = _recipe_and_devices(options, point, ranks)
    make_current(devices)
    overlap = None if options.overlap is None else options.overlap == "on"
    dtype = precision.use(options.precision, devices)
    pieces = Pieces(ranks.pair, ranks.pairs, options.microbatch or None)
    _refuse_pieces(pieces, recipe, options)
    if typed_overlap is None and options.overlap == "off" and (len(set(devices)) == 2 or ranks.apart):
        say("overlap stays off, as the run had it: no CUDA graphs; --overlap on changes that, and the last bits")
    reason = _why_no_graphs(ranks, pieces, recipe)
    _, graphs = graphed_step.resolve(options.graphs, devices, overlap, reason, ranks.apart)
    weights = read_weights(options.init) if options.init is not None and ranks.writes else None
    ranks.meet()
    weights = ranks.first(weights)
    if ranks.writes and lock is None:
        out = out or _fresh_name(recipe)
        refuse_unusable(out)
    ranks.refuse_difference(lambda: _facts(options, recipe, devices))
    return Plan(
        options=options,
        recipe=recipe,
        devices=devices,
        dtype=dtype,
        graphs=graphs,
        overlap=overlap,
        pieces=pieces,
        every=every,
        out=out,
        in_place=in_place,
        lock=lock,
        point=point,
        weights=weights,
        ranks=ranks,
    )


def _facts(options, recipe, devices):
    """{what has to be alike in all processes of a job: it}"""
    flat, device = resume.flat(every_field(recipe)), devices[0]
    flags = {f"--{name.replace('_', '-')}": getattr(options, name) for name in ALIKE}
    return {
        "the code": f"{package_version('alexnet_mp')}, commit {source_commit()}",
        "torch": torch.__version__,
        "the kind of device": ", ".join(f"{entry.type} {devices.index(entry)}" for entry in devices),
        "the kernels": dispatch.used(options.kernels, device),
        **{name: str(value) for name, value in (flags | flat).items()},
    }


def _as_it_was(options, point):
    """The options of a run that goes on: recipe, data, precision, overlap and microbatch stay as they were where
    nothing is said of them; who computes is chosen anew. `--init` was for its beginning."""
    state = point.checkpoint.state
    kept = {
        "recipe": state.recipe,
        "data": state.data.source,
        "precision": state.made_by.precision,
        "overlap": state.made_by.overlap,
        "microbatch": state.made_by.microbatch,
    }
    unsaid = {name: value for name, value in kept.items() if getattr(options, name) is None}
    return replace(options, **unsaid, init=None)


def _recipe_and_devices(options, point, ranks=ALONE):
    on_cpu, checkpoint_recipe = _on_cpu_alone(options.gpus), point and point.checkpoint.state.recipe
    base, settings = _base_recipe(options, on_cpu)
    recipe = override(base, settings)
    _refuse_untrainable(recipe, ranks)
    devices = here(options.gpus, recipe.towers, ranks)
    check_kernels(options.kernels, devices)
    _say_devices(options, recipe, devices, ranks, on_cpu)
    _say_recipe(options, recipe, "of the checkpoint" if base is checkpoint_recipe else base.name, settings)
    _say_of_two_gpus(options, devices)
    if not any(setting.startswith("dates=") for setting in options.settings):
        recipe = length.with_dates(recipe, base, checkpoint_recipe)
    return recipe, devices


def _base_recipe(options, on_cpu):
    """(the recipe that is meant, what is set in it: [FIELD=VALUE])"""
    choice = options.recipe or ("mini" if on_cpu else "paper")
    flags = {"batch_size": options.batch_size, "epochs": options.epochs, "seed": options.seed}
    settings = [*options.settings, *(f"{field}={value}" for field, value in flags.items() if value is not None)]
    return choice if isinstance(choice, Recipe) else PRESETS[choice](), settings


def _refuse_untrainable(recipe, ranks):
    """Raise UserError for a network that can be made, and not be trained, or not by these processes."""
    first_layer = recipe.layers[0]
    if recipe.lrn_crosses and recipe.towers == 2:
        raise UserError(
            f"recipe field lrn_crosses is true: in recipe {recipe.name} normalisation reads across the towers' border, "
            "and towers that are trained never see each other's maps there; --set lrn_crosses=false trains them"
        )
    if ranks.apart and recipe.towers == 1:
        raise UserError(
            f"--towers apart: the recipe {recipe.name} has {recipe.towers} tower; without --towers apart one process "
            "trains it"
        )
    if first_layer.kind == "fc":
        raise UserError(
            f"recipe field {first_layer.name}.kind is 'fc': a trained network's first kernels are drawn, so its first "
            "layer is a convolution"
        )


def _say_devices(options, recipe, devices, ranks, on_cpu):
    names = sum(ranks.gather([str(device) for device in devices]), [])
    remark = "; no CUDA device was found" if on_cpu and options.gpus == "auto" else ""
    say(f"devices: {_devices_in_words(names, recipe, ranks)}{remark}")


def _say_recipe(options, recipe, origin, settings):
    """origin: "of the checkpoint", or a preset's name."""
    scope = ", the whole network"
    what = {
        "of the checkpoint": ", as the checkpoint has it",
        "mini": ", the small network",
        "paper": scope,
        "source2012": scope,
    }.get(origin, "")
    changes = f", with {', '.join(settings)}" if settings else ""
    say(f"recipe: {recipe.name}{what}{changes}" + ("; --recipe chooses another" if options.recipe is None else ""))


def _say_of_two_gpus(options, devices):
    """How both towers would have one each, if nothing was chosen and one is used."""
    single_gpu = len({device for device in devices if device.type == "cuda"}) == 1
    if options.recipe is None and options.gpus == "auto" and single_gpu:
        data = () if options.data is None else ("--data", options.data)
        say(f"on two GPUs, type: {typed('train', '--gpus', '0,1', *data)}")


def _devices_in_words(devices, recipe, ranks):
    """devices: of all towers of all pairs."""
    towers = recipe.towers
    if recipe.fc_batch_size and ranks.count > 1:
        where = ", ".join(dict.fromkeys(devices))
        return f"{ranks.count} workers on {where}, each with every convolution and a slice of the units"
    device_pairs = [devices[start : start + towers] for start in range(0, len(devices), towers)]
    if set(devices) == {"cpu"} and ranks.pairs > 1:
        where = "all towers on cpu"
    else:
        where = "; ".join(
            (f"pair {number}: " if ranks.pairs > 1 else "")
            + ", ".join(f"tower {letter} on {device}" for letter, device in zip("ab", pair))
            for number, pair in enumerate(device_pairs)
        )
    pairs = f"{ranks.pairs} pairs of towers, " if ranks.pairs > 1 else ""
    return pairs + where + (", in a process each" if ranks.apart else ", a process a pair" if pairs else "")


def _refuse_pieces(pieces, recipe, options):
    """Raise UserError where a pair would never have an image, and for what can't be done in pieces."""
    if pieces.number(recipe.batch_size) < pieces.pairs:
        raise UserError(
            (f"--microbatch {options.microbatch}: " if pieces.microbatch else "")
            + f"a minibatch of {recipe.batch_size} is {pieces.number(recipe.batch_size)} piece(s), and there are "
            f"{pieces.pairs} pairs of towers; "
            + (
                f"--microbatch {recipe.batch_size // pieces.pairs} would do"
                if pieces.microbatch and recipe.batch_size >= pieces.pairs
                else f"{recipe.batch_size} at most"
            )
        )
    if recipe.fc_batch_size and pieces.microbatch:
        raise UserError(
            f"--microbatch {options.microbatch}: the recipe {recipe.name} has fc_batch_size, whose steps have no other "
            "pieces; without --microbatch any number of processes gives the same numbers within rounding"
        )
    if options.profile is not None and (pieces.microbatch or pieces.pairs > 1 or recipe.fc_batch_size):
        raise UserError("--profile: not yet of a minibatch in pieces; one process without --microbatch can be recorded")


def _why_no_graphs(ranks, pieces, recipe):
    """In words; "" where they may be."""
    if recipe.fc_batch_size:
        return "fully connected layers that are updated within the step"
    return "a minibatch in pieces" if pieces.microbatch or ranks.pairs > 1 else ""


def _on_cpu_alone(gpus):
    """Whether `--gpus` means that no tower is on a CUDA device."""
    return set(gpus.replace(" ", "").split(",")) == {"cpu"} or (gpus == "auto" and torch.cuda.device_count() == 0)


def _fresh_name(recipe):
    """runs/<date-time>-<recipe>, or one beside it: of two runs in one second, after a clock that was set back."""
    name = f"runs/{datetime.datetime.now():%Y-%m-%d-%H%M%S}-{recipe.name}"
    names = (name, *(f"{name}-{number}" for number in range(2, 1000)))
    return next(path for path in names if not os.path.lexists(path))


def _interval(text):
    """What `--checkpoint-every` means: "500" -> (500, "steps"), "10m" -> (600.0, "seconds"). Raises UserError."""
    match = re.fullmatch(r"([0-9]{1,9})|([0-9]{1,9}(?:\.[0-9]{1,9})?)m", text, re.ASCII)
    if not match or float(match[1] or match[2]) <= 0:
        raise UserError(f"--checkpoint-every {text}: write a number of steps, as in 500, or of minutes, as in 10m")
    return (int(match[1]), "steps") if match[1] else (60 * float(match[2]), "seconds")


def _refuse_numbers(options):
    if options.steps is not None and options.steps < 1:
        raise UserError(f"--steps {options.steps}: it must be at least 1")
    if options.out == "":
        raise UserError("--out '': name a directory, or leave it out")
    if options.init_layers is not None and options.init is None:
        raise UserError(f"--init-layers {options.init_layers}: of what --init names, and there is no --init")
    if options.keep < 1:
        raise UserError(f"--keep {options.keep}: at least the newest checkpoint must be kept")
    if options.keep_every is not None and options.keep_every < 1:
        raise UserError(f"--keep-every {options.keep_every}: a number of steps, 1 at least")
    if options.microbatch is not None and not 0 <= options.microbatch < 2**53:
        raise UserError(f"--microbatch {options.microbatch}: a number of images below 2^53, or 0 for none")
    if options.profile is not None:
        steps_of(options.profile)
        if options.towers == "apart":
            raise UserError("--profile: not yet with --towers apart; one process with --gpus A,B can be recorded")
