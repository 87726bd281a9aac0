"""One training run, from what is asked for to its end: resolve, open the data, build the network, train.

The command `train` and the claims call `train` with `Options`. Every message and check has its place in this order:
what a person typed wrong is said before an image is read, and nothing is written before all images have been.
"""

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch

from ..data.dataset import SAME_FILES, DataSet, cache_splits, cost_of_reading, open_data_of_run, open_dataset
from ..data.limits import refuse_batch
from ..data.pipeline import Pipeline, make_pipeline
from ..data.survey import statistics_of
from ..kernels import dispatch
from ..network.network import TwoTowerAlexNet
from ..network.worker_network import WorkerAlexNet
from ..parallel.workers import Workers
from ..recipes import shapes
from ..recipes.recipe import summary
from ..recipes.shapes import fewest_units
from ..runs.checkpoint_state import Data
from ..runs.checkpoint_writer import PATIENCE
from ..runs.directory import RunDirectory, devices_of, on_or_off
from ..runs.elsewhere import RunElsewhere
from ..system import precision
from ..system.errors import UserError
from ..system.interrupts import Agreed, Interrupts, interruptible
from ..system.job import joined
from ..system.memory import keep_freed_memory
from ..system.terminal import say
from . import length, resume, self_check
from .plan import Options, Plan, resolve
from .pretrained import begin_with
from .profiler import Profiler, steps_of
from .trainer import Trainer


@dataclass(frozen=True)
class TrainingData:
    """The data of a run, all images read once."""

    dataset: DataSet
    pipeline: Pipeline  # has its statistics
    in_memory: list[str]  # splits whose pictures stay there
    checked: str | dict[str, str]  # what the self-check found, as run.json records it
    changed: Mapping[str, list]  # what is no longer as the checkpoint has it


def train(options: Options) -> bool:
    """Train to the end, or until a signal. Returns whether a signal stopped it. Raises UserError."""
    keep_freed_memory()
    torch.backends.cudnn.deterministic = True  # otherwise a resumed run would differ from one that never stopped
    with interruptible() as interrupts:
        try:
            with joined(options.towers == "apart") as ranks, ExitStack() as resources:
                interrupts.silent = ranks.count > 1  # `Agreed` tells for all
                _run(options, ranks, interrupts, resources)
        except KeyboardInterrupt:
            if interrupts.wait_for_step or interrupts.count > 1:
                raise
            say("stopped before the first step: there is nothing to save")
        return bool(interrupts)


def _run(options, ranks, interrupts, resources):
    """resources: an ExitStack; what has to be let go of at the end, whatever it is."""
    plan = resolve(options, resources, ranks)
    data = open_data(plan)
    network = build_network(plan, data)
    trainer = make_trainer(plan, data, network, interrupts, resources)
    del plan  # the trainer has copied what it had of a checkpoint, and the network what it had of --init
    trainer.train(interrupts if ranks.count == 1 else Agreed(interrupts, ranks))


# --- open the data


def open_data(plan: Plan) -> TrainingData:
    """Open the data set, choose the pipeline, read every image once. Raises UserError.

    Of a run that goes on, what changed is refused as early as it can be seen: before all images are read, and after.
    """
    options, recipe = plan.options, plan.recipe
    dataset, pipeline, findings = choose_pipeline(plan)
    in_memory = cache_splits(dataset, recipe.stored_size, plan.ranks.local_count)
    statistics = statistics_of(dataset, recipe, pipeline.workers)
    plan.ranks.meet()
    plan.ranks.refuse_difference(lambda: _facts_of_data(dataset, statistics, pipeline, options.kernels))
    changes = _changes(plan, dataset, statistics)
    if plan.point and "data.statistics" not in changes:
        statistics = plan.point.checkpoint.statistics  # to the last bit
    pipeline.use(statistics)
    pipeline.pieces = plan.pieces
    return TrainingData(dataset, pipeline, in_memory, findings, changes)


def choose_pipeline(plan: Plan) -> tuple[DataSet, Pipeline, str | dict[str, str]]:
    """(the data set, its pipeline, what the self-check found); no image is read yet. Raises UserError."""
    options, recipe = plan.options, plan.recipe
    if plan.point and options.data == plan.point.checkpoint.state.data.source:
        dataset = open_data_of_run(plan.point.path, options.data, recipe.stored_size)
    else:
        dataset = open_dataset("builtin" if options.data is None else options.data, recipe.stored_size)
    arguments = dataset, recipe, plan.devices, options.workers, plan.dtype, plan.ranks.local_count
    pipeline = make_pipeline(options.pipeline, *arguments)
    say(f"data: {dataset.description}")
    for line in dataset.passed_over:
        say(line)
    say(summary(recipe))
    length.say_steps(recipe, dataset, from_random_weights=plan.point is None and plan.weights is None)
    refuse_batch(pipeline, recipe.batch_size, True, plan.pieces, plan.ranks.local_count)
    _changes(plan, dataset)
    name, findings = self_check.before_run(
        pipeline, options.kernels, plan.overlap, options.pipeline != "auto", wanted=options.self_check
    )
    if name != pipeline.name:
        pipeline = make_pipeline(name, *arguments)
    return dataset, pipeline, findings


def _facts_of_data(dataset, statistics, pipeline, kernels):
    """{what has to be alike in all processes of a job, and is known when all images are read: it}"""
    numbers = b"".join(np.ascontiguousarray(array).tobytes() for array in vars(statistics).values())
    return {
        "the pipeline": pipeline.name,
        # The self-check may have left some out.
        "the kernels": ", ".join(dispatch.used(kernels, device) for device in pipeline.devices),
        "the data's fingerprint": dataset.fingerprint[:SAME_FILES],  # machines may have copies
        "the data's classes": repr(list(dataset.classes)),
        "the data's statistics": hashlib.sha256(numbers).hexdigest(),
    }


def _changes(plan, dataset, statistics=None):
    """What is no longer as the checkpoint has it, see `resume.changes`. Raises UserError if that may not be."""
    if not plan.point:
        return {}
    changes = resume.changes(plan.point.checkpoint, plan.recipe, dataset, statistics)
    options = plan.options
    resume.refuse_changes(plan.point, changes, plan.recipe, dataset, options.resume_anyway, options.steps)
    return changes


# --- build the network


def build_network(plan: Plan, data: TrainingData) -> TwoTowerAlexNet:
    """The network as it is drawn, with the weights of `--init`. Raises UserError if these don't fit."""
    options = plan.options
    classes = len(data.dataset.classes)
    if plan.recipe.fc_batch_size:
        network = _worker_network(plan, classes)
    else:
        network = TwoTowerAlexNet(
            plan.recipe, plan.devices, classes, options.kernels, plan.overlap, plan.ranks if plan.ranks.apart else None
        )
    if plan.weights is not None:
        layers = None if options.init_layers is None else options.init_layers.split(",")
        copied_layers, new_layers, foreign_layers = begin_with(network, plan.weights, options.init, layers)
        say(
            f"begins with {', '.join(copied_layers)} of {options.init}; new: {', '.join(new_layers)}"
            + (f"; left out: {', '.join(foreign_layers)}" if foreign_layers else "")
        )
    return network


def _worker_network(plan, classes):
    if (units := fewest_units(plan.recipe, classes)) < plan.ranks.count:
        raise UserError(
            f"{plan.ranks.count} processes: a fully connected layer of {plan.recipe.name} has {units} units, of which "
            "each takes a slice; so many processes at most"
        )
    (device,) = plan.devices
    return WorkerAlexNet(plan.recipe, device, classes, plan.options.kernels, Workers(plan.ranks, device))


# --- train


def make_trainer(
    plan: Plan, data: TrainingData, network: TwoTowerAlexNet, interrupts: Interrupts, resources: ExitStack
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
            precision=options.precision,
            point=plan.point,
            changed=data.changed,
            lock=plan.lock,
            checked=data.checked,
            command=options.command,
            devices=devices,
        )
    )
    resources.callback(directory.close)
    plan.ranks.meet()  # a disk may be slow
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
        steps=options.steps,
        every=plan.every,
        keep=options.keep,
        on_save_error=options.on_save_error,
        keep_every=options.keep_every,
        graphs=options.graphs,
        ranks=plan.ranks,
    )
    if options.profile is not None:
        trainer.profiler = Profiler(trainer, steps_of(options.profile), options.precision)
    resources.push(lambda kind, error, trace: _let_saver_end(trainer.checkpoints.saver, kind))
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
        f"pipeline {data.pipeline.name}, graphs: {plan.graphs}, overlap {on_or_off(network.exchange.overlap)}; "
        f"{cost_of_reading(data.dataset, data.in_memory)}; a checkpoint every {options.checkpoint_every}"
    )
    counts = shapes.parameter_counts(plan.recipe, len(data.dataset.classes))
    say(f"{sum(counts):,} parameters, by tower: {', '.join(f'{count:,}' for count in counts)}")


def _say_resumed(point, changes, environment, trainer):
    """What a person has to know of a run that goes on."""
    state = point.checkpoint.state
    say(
        f"resumed from {point.path}: step {state.step} of {trainer.last_step}"
        + (", in the middle of its validation" if not state.validated else "")
    )
    if state.recipe.epochs != trainer.recipe.epochs:
        same_dates = trainer.recipe.schedule == "dated" and trainer.recipe.dates == state.recipe.dates
        dates = ", ".join(str(date.epoch) for date in state.recipe.dates) if same_dates else ""
        say(
            f"epochs {state.recipe.epochs} -> {trainer.recipe.epochs}"
            + (f"; the rates change when they did, at epoch {dates}; --set dates=... sets others" if dates else "")
        )
    if changes:
        say(f"WARNING: another run from here on, as --resume-anyway allows{resume.listed(changes)}")
    if differences := resume.no_longer_exact(state.made_by, environment):
        say(f"no longer bit for bit as without the stop, since something else computes: {', '.join(differences)}")
