"""One training run, from what is asked for to its end: resolve, open the data, build the network, train.

The command `train` and the claims call `train` with `Options`. Every message and check has its place in this order:
what a person typed wrong is said before an image is read, and nothing is written before all images have been.
"""

import datetime
import hashlib
import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..data.dataset import SAME_FILES, DataSet, cached, cost_of_reading, open_data_of_run, open_dataset
from ..data.limits import refuse_batch
from ..data.pipeline import Pipeline, make_pipeline
from ..data.survey import statistics_of
from ..kernels import dispatch
from ..network.network import TwoTowerAlexNet
from ..recipes import recipe as recipes
from ..recipes import shapes
from ..recipes.named import PRESETS
from ..recipes.recipe import Recipe
from ..runs.checkpoint_format import Data
from ..runs.checkpoint_writer import PATIENCE
from ..runs.directory import RunDirectory, devices_of, refuse_unusable
from ..runs.elsewhere import RunElsewhere
from ..runs.lock import RunLock
from ..system import precision
from ..system.command_line import typed
from ..system.devices import check_kernels, make_current, of_process
from ..system.devices import resolve as resolve_devices
from ..system.errors import UserError
from ..system.interrupts import Agreed, Interrupts, interruptible
from ..system.memory import keep_freed_memory
from ..system.provenance import package_version, source_commit
from ..system.ranks import ALONE, Ranks, joined
from ..system.terminal import say
from . import graphed_step, length, resume, self_check
from .pretrained import begin_with, read_weights
from .profiler import Profiler, steps_of
from .resume import ResumePoint, in_words
from .trainer import Trainer

# What all processes of a job have to be asked for alike, besides the recipe.
ALIKE = ("precision", "graphs", "overlap", "steps", "resume_anyway", "init_layers", "checkpoint_every", "profile")


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
    precision: str = "fp32"
    graphs: str = "auto"
    overlap: str | None = None
    self_check: bool = True
    steps: int | None = None
    resume: str | None = None
    resume_anyway: bool = False
    init: str | None = None
    init_layers: str | None = None
    checkpoint_every: str = "10m"
    keep: int = 3
    on_save_error: str = "continue"
    profile: str | None = None
    command: str = ""


@dataclass(frozen=True)
class Plan:
    """What follows from the options before any image is read."""

    options: Options  # of a run that goes on: with what wasn't said as it was
    recipe: Recipe
    devices: list[torch.device]  # of each tower
    dtype: torch.dtype  # of the images
    graphs: str  # how steps are launched, in words
    overlap: bool | None  # see `Exchange`
    every: tuple[float, str]  # (number, "steps" | "seconds") between checkpoints
    out: str  # the run directory
    in_place: bool  # whether the run goes on, or begins, in a directory that is there already
    lock: RunLock | None  # of that directory, in the process that writes
    point: ResumePoint | None  # where the run goes on from
    weights: Mapping[str, torch.Tensor] | None  # of `--init`
    ranks: Ranks  # the processes of the job


@dataclass(frozen=True)
class TrainingData:
    """The data of a run, all images read once."""

    dataset: DataSet
    pipeline: Pipeline  # has its statistics
    in_memory: list[str]  # splits whose pictures stay there
    checked: object  # what the self-check found, as run.json records it
    changed: Mapping[str, list]  # what is no longer as the checkpoint has it


def train(options: Options) -> bool:
    """Train to the end, or until a signal. Returns whether a signal stopped it. Raises UserError."""
    keep_freed_memory()
    torch.backends.cudnn.deterministic = True  # else a run that goes on would not be the one that never stopped
    with interruptible() as interrupts:
        try:
            with joined(options.towers == "apart") as ranks, ExitStack() as held:
                _run(options, ranks, interrupts, held)
        except KeyboardInterrupt:
            if interrupts.wait_for_step or interrupts.count > 1:
                raise
            say("stopped before the first step: there is nothing to save")
        return bool(interrupts)


def _run(options, ranks, interrupts, held):
    """held: an ExitStack; what has to be let go of at the end, whatever it is."""
    plan = resolve(options, held, ranks)
    data = open_data(plan)
    network = build_network(plan, data)
    trainer = make_trainer(plan, data, network, interrupts, held)
    del plan  # the trainer has copied what it had of a checkpoint, and the network what it had of --init
    trainer.train(interrupts if ranks.count == 1 else Agreed(interrupts, ranks))


# --- resolve


def resolve(options: Options, held: ExitStack, ranks: Ranks = ALONE) -> Plan:
    """What the options mean, here and now; says what was chosen for the user. Raises UserError.

    The lock of a run directory that is there already is held from here on, until `held` ends. Of several processes
    rank 0 alone looks into directories, and tells the others what it has read.
    """
    every = _interval(options.checkpoint_every)
    _refuse_numbers(options)
    point, out, lock = None, options.out, None
    if options.resume is not None and ranks.writes:
        point, out, lock = resume.find(options.resume, options.out)
    if lock:
        held.callback(lock.release)
    point, in_place = ranks.first((point, lock is not None))
    if point:
        options = _as_it_was(options, point)
    recipe, devices = _recipe_and_devices(options, point, ranks)
    make_current(devices)
    overlap = None if options.overlap is None else options.overlap == "on"
    dtype = precision.use(options.precision, devices)
    graphs = graphed_step.resolve(options.graphs, devices, overlap, ranks.count > 1)
    weights = ranks.first(read_weights(options.init) if options.init is not None and ranks.writes else None)
    if ranks.writes and lock is None:
        out = out or _fresh_name(recipe)
        refuse_unusable(out)
    ranks.refuse_difference(lambda: _facts(options, recipe, devices))
    return Plan(options, recipe, devices, dtype, graphs, overlap, every, out, in_place, lock, point, weights, ranks)


def _facts(options, recipe, devices):
    """{what has to be alike in all processes of a job: it}"""
    flat, device = resume.flat(recipes.to_dict(recipe)), devices[0]
    asked = {f"--{name.replace('_', '-')}": getattr(options, name) for name in ALIKE}
    return {
        "the code": f"{package_version('alexnet_mp')}, commit {source_commit()}",
        "torch": torch.__version__,
        "the kind of device": device.type,
        "the kernels": dispatch.used(options.kernels, device),
        **{name: str(value) for name, value in (asked | flat).items()},
    }


def _as_it_was(options, point):
    """The options of a run that goes on: what isn't said stays as it was, and `--init` was for its beginning."""
    state = point.checkpoint.state
    return replace(
        options,
        recipe=state.recipe if options.recipe is None else options.recipe,
        data=options.data or state.data.source,
        init=None,
    )


def _recipe_and_devices(options, point, ranks=ALONE):
    on_cpu = _on_cpu_alone(options.gpus)
    chosen = options.recipe or ("mini" if on_cpu else "paper")
    chosen = chosen if isinstance(chosen, Recipe) else PRESETS[chosen]()
    flags = {"batch_size": options.batch_size, "epochs": options.epochs, "seed": options.seed}
    settings = [*options.settings, *(f"{field}={value}" for field, value in flags.items() if value is not None)]
    recipe = recipes.override(chosen, settings)
    if ranks.count > recipe.towers:
        raise UserError(
            f"--towers apart: the recipe {recipe.name} has {recipe.towers} tower; without --towers apart one process "
            "trains it"
        )
    devices = (
        resolve_devices(options.gpus, recipe.towers)
        if ranks.count == 1
        else [of_process(options.gpus, ranks.local_rank, ranks.local_count)]
    )
    check_kernels(options.kernels, devices)
    everywhere = sum(ranks.gather([str(device) for device in devices]), [])
    say(
        f"devices: {', '.join(f'tower {letter} on {device}' for letter, device in zip('ab', everywhere))}"
        + (", in a process each" if ranks.count > 1 else "")
        + ("; no CUDA device was found" if on_cpu and options.gpus == "auto" else "")
    )
    if point and chosen is point.checkpoint.state.recipe:
        what = ", as the checkpoint has it"
    else:
        whole = ", the whole network"
        what = {"mini": ", the small network", "paper": whole, "source2012": whole}.get(chosen.name, "")
    changed = f", with {', '.join(settings)}" if settings else ""
    say(f"recipe: {recipe.name}{what}{changed}" + ("; --recipe chooses another" if options.recipe is None else ""))
    if options.recipe is None and options.gpus == "auto" and len({each for each in devices if each.type == "cuda"}) < 2:
        data = () if options.data is None else ("--data", options.data)
        say(f"on two GPUs, type: {typed('train', '--gpus', '0,1', *data)}")
    if not any(setting.startswith("dates=") for setting in options.settings):
        recipe = length.with_dates(recipe, chosen, point and point.checkpoint.state.recipe)
    return recipe, devices


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
    if options.profile is not None:
        steps_of(options.profile)
        if options.towers == "apart":
            raise UserError("--profile: not yet with --towers apart; one process with --gpus A,B can be recorded")


# --- open the data


def open_data(plan: Plan) -> TrainingData:
    """Open the data set, choose the pipeline, read every image once. Raises UserError.

    Of a run that goes on, what changed is refused as early as it can be seen: before all images are read, and after.
    """
    options, recipe = plan.options, plan.recipe
    if plan.point and options.data == plan.point.checkpoint.state.data.source:
        dataset = open_data_of_run(plan.point.path, options.data, recipe.stored_size)
    else:
        dataset = open_dataset(options.data or "builtin", recipe.stored_size)
    pipeline = make_pipeline(options.pipeline, dataset, recipe, plan.devices, options.workers, plan.dtype)
    say(f"data: {dataset.description}")
    for line in dataset.passed_over:
        say(line)
    say(recipes.summary(recipe))
    length.say_steps(recipe, dataset, from_random_weights=plan.point is None and plan.weights is None)
    refuse_batch(pipeline, recipe.batch_size, training=True)
    _changes(plan, dataset)
    name, checked = self_check.before_run(
        pipeline, options.kernels, pipeline_is_chosen=options.pipeline != "auto", wanted=options.self_check
    )
    if name != pipeline.name:
        pipeline = make_pipeline(name, dataset, recipe, plan.devices, options.workers, plan.dtype)

    in_memory = cached(dataset, recipe.stored_size)
    statistics = statistics_of(dataset, recipe, pipeline.workers)
    plan.ranks.meet()
    plan.ranks.refuse_difference(lambda: _facts_of_data(dataset, statistics))
    changed = _changes(plan, dataset, statistics)
    if plan.point and "data.statistics" not in changed:
        statistics = plan.point.checkpoint.statistics  # to the last bit
    pipeline.use(statistics)
    return TrainingData(dataset, pipeline, in_memory, checked, changed)


def _facts_of_data(dataset, statistics):
    """{what of the data has to be alike in all processes of a job: it}"""
    numbers = b"".join(np.ascontiguousarray(each).tobytes() for each in vars(statistics).values())
    return {
        "the data's fingerprint": dataset.fingerprint[:SAME_FILES],  # machines may have copies
        "the data's classes": repr(list(dataset.classes)),
        "the data's statistics": hashlib.sha256(numbers).hexdigest(),
    }


def _changes(plan, dataset, statistics=None):
    """What is no longer as the checkpoint has it, see `resume.changes`. Raises UserError if that may not be."""
    if not plan.point:
        return {}
    changed = resume.changes(plan.point.checkpoint, plan.recipe, dataset, statistics)
    options = plan.options
    resume.refuse_changes(plan.point, changed, plan.recipe, dataset, options.resume_anyway, options.steps)
    return changed


# --- build the network


def build_network(plan: Plan, data: TrainingData) -> TwoTowerAlexNet:
    """The network as it is drawn, with the weights of `--init`. Raises UserError if these don't fit."""
    options = plan.options
    network = TwoTowerAlexNet(
        plan.recipe,
        plan.devices,
        len(data.dataset.classes),
        options.kernels,
        plan.overlap,
        plan.ranks if plan.ranks.count > 1 else None,
    )
    if plan.weights is not None:
        layers = None if options.init_layers is None else options.init_layers.split(",")
        copied, new, foreign = begin_with(network, plan.weights, options.init, layers)
        say(
            f"begins with {', '.join(copied)} of {options.init}; new: {', '.join(new)}"
            + (f"; left out: {', '.join(foreign)}" if foreign else "")
        )
    return network


# --- train


def make_trainer(
    plan: Plan, data: TrainingData, network: TwoTowerAlexNet, interrupts: Interrupts, held: ExitStack
) -> Trainer:
    """The trainer, with its run directory, where the checkpoint was if there is one; says how it computes."""
    options, dataset, pipeline = plan.options, data.dataset, data.pipeline
    environment = resume.environment(network, pipeline, options.precision, plan.ranks)
    devices = sum(plan.ranks.gather(devices_of(network)), [])
    plan.ranks.begun = interrupts.wait_for_step = True  # from here on there is something on the disk
    directory = (
        RunElsewhere()
        if not plan.ranks.writes
        else RunDirectory(
            plan.out,
            plan.recipe,
            dataset,
            network,
            pipeline,
            options.precision,
            plan.point,
            data.changed,
            plan.lock,
            data.checked,
            options.command,
            devices,
        )
    )
    held.callback(directory.close)
    constants = {
        "recipe": plan.recipe,
        "made_by": environment,
        "data": Data(dataset.source, dataset.description, dataset.fingerprint, tuple(dataset.classes)),
    }
    trainer = Trainer(
        network,
        pipeline,
        directory,
        constants,
        options.steps,
        plan.every,
        options.keep,
        options.on_save_error,
        options.graphs,
        plan.ranks,
    )
    if options.profile is not None:
        trainer.profiler = Profiler(trainer, steps_of(options.profile), options.precision)
    held.push(lambda kind, error, trace: _let_saver_end(trainer.checkpoints.saver, kind))
    _say_how(plan, data, network)
    if plan.point:
        trainer.restore(plan.point.checkpoint, same_run=plan.in_place)
        _say_resumed(plan.point, data.changed, environment, trainer)
    return trainer


def _let_saver_end(saver, error):
    """Let what is being written be written, for a while; not if a second Ctrl-C wants the end at once."""
    saver.wait(0 if error is KeyboardInterrupt else PATIENCE)
    return False


def _say_how(plan, data, network):
    options = plan.options
    if remark := precision.remark(options.precision, plan.devices):
        say(f"precision {options.precision}: {remark}")
    say(
        f"run directory {plan.out}; kernels {network.kernels_used()}, precision {options.precision}, "
        f"pipeline {data.pipeline.name}, graphs: {plan.graphs}, overlap {in_words(network.exchange.overlap)}; "
        f"{cost_of_reading(data.dataset, data.in_memory)}; a checkpoint every {options.checkpoint_every}"
    )
    counts = shapes.parameter_counts(plan.recipe, len(data.dataset.classes))
    say(f"{sum(counts):,} parameters, by tower: {', '.join(f'{count:,}' for count in counts)}")


def _say_resumed(point, changed, environment, trainer):
    """What a person has to know of a run that goes on."""
    state = point.checkpoint.state
    say(
        f"resumed from {point.path}: step {state.step} of {trainer.last_step}"
        + (", in the middle of its validation" if not state.validated else "")
    )
    if state.recipe.epochs != trainer.recipe.epochs:
        kept = trainer.recipe.schedule == "dated" and trainer.recipe.dates == state.recipe.dates
        dates = ", ".join(str(date.epoch) for date in state.recipe.dates) if kept else ""
        say(
            f"epochs {state.recipe.epochs} -> {trainer.recipe.epochs}"
            + (f"; the rates change when they did, at epoch {dates}; --set dates=... sets others" if dates else "")
        )
    if changed:
        say(f"WARNING: another run from here on, as --resume-anyway allows{resume.listed(changed)}")
    if differences := resume.no_longer_exact(state.made_by, environment):
        say(f"no longer bit for bit as without the stop, since something else computes: {', '.join(differences)}")
