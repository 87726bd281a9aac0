"""Train AlexNet on two towers, then test it on one and on ten views.

examples
  python -m alexnet_mp.train                                            a first run: embedded pictures, best device found
  python -m alexnet_mp.train --gpus 0,1 --data DIR                      the paper's network; DIR/train/<class>/*, DIR/val/<class>/*
  python -m alexnet_mp.train --gpus 0,1 --data DIR --recipe source2012  as the 2012 code ran it
  python -m alexnet_mp.train --gpus cpu --data DIR --steps 80           eighty steps without a GPU
  python -m alexnet_mp.train --data DIR --set learning_rate=0.005 --set conv3.init_std=0.03
  python -m alexnet_mp.train --data DIR --out RUN --resume auto         begins, or goes on where RUN stopped, bit for bit
  python -m alexnet_mp.train --data DIR --init RUN2                     fine-tuning: begins with the weights of RUN2, fc8 new
  python -m alexnet_mp.train --data DIR --profile                       prints where a step's time went, layer by layer

The run directory (--out) gets run.json, metrics.jsonl, TensorBoard events, checkpoints/, curves.png and conv1_kernels.png. Ctrl-C and
SIGTERM finish the step, save and end with status 0; a second one stops at once, without saving.
"""
import argparse
import datetime
import os
import re
from contextlib import ExitStack

import torch

from .command_options import add_machine_options
from .data.batches import read_through, survey
from .data.dataset import cached, open_dataset
from .data.pipeline import make_pipeline
from .network.network import TwoTowerAlexNet
from .recipes import recipe as recipes
from .recipes import shapes
from .recipes.named import PRESETS
from .runs.checkpoint_format import Data
from .runs.checkpoint_writer import PATIENCE
from .runs.directory import RunDirectory, refuse_unusable
from .system import precision
from .system.devices import check_kernels, make_current, resolve
from .system.errors import UserError, run_command
from .system.interrupts import interruptible
from .system.memory import free_memory, keep_freed_memory
from .system.terminal import progress, python_command, say
from .training import graphed_step, resume, self_check
from .training.pretrained import begin_with, read_weights
from .training.profiler import STEPS, Profiler, steps_of
from .training.trainer import Trainer

CHECKPOINT_EVERY = "10m"


def main(arguments=None):
    train(arguments)
    return 0


def train(arguments=None):
    """What the command does. Returns whether a signal stopped it before its end."""
    options = _parser().parse_args(arguments)
    keep_freed_memory()
    torch.backends.cudnn.deterministic = True  # else a run that goes on would not be the one that never stopped
    with interruptible() as interrupts:
        try:
            with ExitStack() as held:
                _run(options, interrupts, held)
        except KeyboardInterrupt:
            if interrupts.wait_for_step or interrupts.count > 1:
                raise
            say("stopped before the first step: there is nothing to save")
        return bool(interrupts)


def _run(options, interrupts, held):
    """held: an ExitStack; what has to be let go of at the end, whatever it is."""
    every = _interval(options.checkpoint_every)
    _refuse_numbers(options)
    found, out, lock = resume.find(options.resume, options.out) if options.resume is not None else (None, options.out, None)
    if lock:
        held.callback(lock.release)
    _refuse_numbers(options, found)
    recipe, devices = _resolve(options, found)
    make_current(devices)
    dtype, graphs = precision.use(options.precision, devices), graphed_step.resolve(options.graphs, devices)
    weights = read_weights(options.init) if options.init is not None and not found else None
    if lock is None:
        out = out or _fresh_name(recipe)
        refuse_unusable(out)
    data = options.data or (found.checkpoint.state.data.source if found else "builtin")
    dataset = open_dataset(data, recipe.stored_size)
    pipeline = make_pipeline(options.pipeline, dataset, recipe, devices, options.workers, dtype)
    say(f"data: {dataset.description}")
    say(recipes.describe(recipe))
    if found:  # before all images are read
        resume.refuse_changes(found, resume.changes(found.checkpoint, recipe, dataset), recipe, dataset, options.resume_anyway)
    name, checked = self_check.before_run(pipeline, options.kernels, pipeline_is_chosen=options.pipeline != "auto",
                                          wanted=not options.no_self_check)
    if name != pipeline.name:
        pipeline = make_pipeline(name, dataset, recipe, devices, options.workers, dtype)

    in_memory = cached(dataset, recipe.stored_size)
    statistics = prepared_statistics(dataset, pipeline.workers) or fit_statistics(dataset, recipe, pipeline.workers)
    changed = {}
    if found:
        changed = resume.changes(found.checkpoint, recipe, dataset, statistics)
        resume.refuse_changes(found, changed, recipe, dataset, options.resume_anyway)
        if "data.statistics" not in changed:
            statistics = found.checkpoint.statistics  # to the last bit
    pipeline.use(statistics)
    network = TwoTowerAlexNet(recipe, devices, len(dataset.classes), options.kernels)
    if weights is not None:
        taken, new, foreign = begin_with(network, weights, options.init,
                                         None if options.init_layers is None else options.init_layers.split(","))
        say(f"begins with {', '.join(taken)} of {options.init}; new: {', '.join(new)}"
            + (f"; left out: {', '.join(foreign)}" if foreign else ""))
        del weights
    environment = resume.environment(network, pipeline, options.precision)
    interrupts.wait_for_step = True  # from here on there is something on the disk
    run = RunDirectory(out, recipe, dataset, network, pipeline, options.precision, found, changed, lock, checked)
    held.callback(run.close)
    data = Data(dataset.source, dataset.description, dataset.fingerprint, tuple(dataset.classes))
    trainer = Trainer(network, pipeline, run, {"recipe": recipe, "data": data, "made_by": environment}, options.steps, every, options.keep,
                      options.on_save_error, options.graphs)
    if options.profile is not None:
        trainer.profiler = Profiler(trainer, steps_of(options.profile), options.precision)
    held.push(lambda kind, error, trace: _let_saver_end(trainer.saver, kind))
    if remark := precision.remark(options.precision, devices):
        say(f"precision {options.precision}: {remark}")
    say(f"run directory {out}; kernels {network.kernels_used()}, precision {options.precision}, pipeline {pipeline.name}, "
        f"graphs: {graphs}; {_what_reading_takes(dataset, in_memory)}; a checkpoint every {options.checkpoint_every}")
    counts = shapes.parameter_counts(recipe, len(dataset.classes))
    say(f"{sum(counts):,} parameters, by tower: {', '.join(f'{count:,}' for count in counts)}")
    if found:
        trainer.restore(found.checkpoint, same_run=lock is not None)
        _say_resumed(found, changed, environment, trainer)
        del found
    trainer.train(interrupts)


def _let_saver_end(saver, error):
    """Let what is being written be written, for a while; not where a second Ctrl-C wants the end at once."""
    saver.wait(0 if error is KeyboardInterrupt else PATIENCE)
    return False


def _say_resumed(found, changed, environment, trainer):
    """What a person has to know of a run that goes on."""
    state = found.checkpoint.state
    say(f"resumed from {found.path}: step {state.step} of {trainer.last_step}"
        + (", in the middle of its validation" if not state.validated else ""))
    if state.recipe.epochs != trainer.recipe.epochs:
        say(f"epochs {state.recipe.epochs} -> {trainer.recipe.epochs}")
    if changed:
        say(f"WARNING: another run from here on, as --resume-anyway allows{resume.listed(changed)}")
    if differences := resume.no_longer_exact(state.made_by, environment):
        say(f"no longer bit for bit as without the stop, since something else computes: {', '.join(differences)}")


def _what_reading_takes(dataset, held):
    """How pictures come to the pipeline, for the line that says how a run computes."""
    if held:
        return f"pictures held in memory: {', '.join(held)}"
    return {"files": "pictures are decoded and rescaled in every epoch", "jpeg": "JPEGs of the stored size are decoded in every epoch",
            "pixels": "raw pixels, nothing to decode"}[dataset.splits["train"].holds]


def prepared_statistics(dataset, workers):
    """What a prepared set brings, or None for other data.

    A set that half of the free memory holds is read through first, so that no damage shows up in the middle of an epoch; in a
    larger one an image is checked when it is read for the first time.
    """
    splits = [(name, dataset.splits[name]) for name in ("train", "val")]
    if dataset.statistics and sum(split.bytes for _, split in splits) <= free_memory() // 2:
        for name, split in splits:
            with progress(f"checking {name}", len(split)) as advance:
                read_through(split, workers, advance)
    return dataset.statistics


def fit_statistics(dataset, recipe, workers):
    """Mean image and colour components of the training set.

    Every image of train and val is read for it, before anything is written: a damaged one is named now, not in the middle of an
    epoch.
    """
    sums = {}
    for split in ("train", "val"):
        with progress(f"reading {split}", len(dataset.splits[split])) as advance:
            sums[split] = survey(dataset.splits[split], recipe.stored_size, workers, advance)
    return sums["train"].statistics()


def _fresh_name(recipe):
    """runs/<date-time>-<recipe>, or one beside it where that is taken: two runs in one second, a clock that was set back."""
    name = f"runs/{datetime.datetime.now():%Y-%m-%d-%H%M%S}-{recipe.name}"
    return next(path for path in (name, *(f"{name}-{number}" for number in range(2, 1000))) if not os.path.lexists(path))


def _interval(text):
    """What `--checkpoint-every` means: "500" -> (500, "steps"), "10m" -> (600.0, "seconds"). Raises UserError."""
    match = re.fullmatch(r"([0-9]{1,9})|([0-9]{1,9}(?:\.[0-9]{1,9})?)m", text, re.ASCII)
    if not match or float(match[1] or match[2]) <= 0:
        raise UserError(f"--checkpoint-every {text}: write a number of steps, as in 500, or of minutes, as in 10m")
    return (int(match[1]), "steps") if match[1] else (60 * float(match[2]), "seconds")


def _refuse_numbers(options, found=None):
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
    if found and options.steps is not None and options.steps < found.checkpoint.state.step:
        raise UserError(f"--steps {options.steps}: {found.path} has taken {found.checkpoint.state.step} steps already")


def _resolve(options, found):
    """The recipe and the devices that the command line asks for. Says what was chosen for the user."""
    on_cpu = set(options.gpus.replace(" ", "").split(",")) == {"cpu"} or (options.gpus == "auto" and torch.cuda.device_count() == 0)
    name = options.recipe or ("mini" if on_cpu else "paper")
    flags = {"batch_size": options.batch_size, "epochs": options.epochs, "seed": options.seed}
    settings = options.set + [f"{field}={value}" for field, value in flags.items() if value is not None]
    as_before = found is not None and options.recipe is None  # what isn't said stays as it was
    recipe = recipes.override(found.checkpoint.state.recipe if as_before else PRESETS[name](), settings)
    devices = resolve(options.gpus, recipe.towers)
    check_kernels(options.kernels, devices)
    say(f"devices: {', '.join(f'tower {letter} on {device}' for letter, device in zip('ab', devices))}"
        + ("; no CUDA device was found" if on_cpu and options.gpus == "auto" else ""))
    if as_before:
        say(f"recipe: {recipe.name}, as the checkpoint has it")
    else:
        what = {"mini": ", the small network", "paper": ", the whole network", "source2012": ", the whole network"}.get(name, "")
        say(f"recipe: {name}{what}; --recipe chooses another")
    if len({device for device in devices if device.type == "cuda"}) < 2:
        say(f"on two GPUs, type: {python_command()} -m alexnet_mp.train --gpus 0,1 --recipe paper --data DIR")
    return recipe, devices


def _parser():
    parser = argparse.ArgumentParser(prog="python -m alexnet_mp.train", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_machine_options(parser)
    parser.add_argument("--precision", choices=precision.CHOICES, default="fp32",
                        help="bf16: activations and their gradients in bfloat16, weights and velocity in float32; default: fp32, TF32 off")
    parser.add_argument("--graphs", choices=graphed_step.CHOICES, default="auto",
                        help="the step as CUDA graphs, with the same bits; on: an error where they can't be; default: auto, where both "
                             "towers are on CUDA devices")
    parser.add_argument("--no-self-check", action="store_true",
                        help="on a GPU, don't compare kernels, crossings and the pipeline with the reference first")
    parser.add_argument("--data", metavar="DIR|builtin", help="default: builtin, drawn by the program; resumed, what the run had")
    parser.add_argument("--recipe", choices=tuple(PRESETS),
                        help="default: paper on CUDA, mini on a CPU; resumed, that of the checkpoint")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE",
                        help="change a recipe field, LAYER.FIELD for one layer; repeatable; the start of a run prints them all")
    parser.add_argument("--out", metavar="DIR", help="the run directory; default: runs/<date-time>-<recipe>")
    parser.add_argument("--batch-size", type=int, help="images; default: the recipe's, 128")
    parser.add_argument("--epochs", type=int, help="default: the recipe's")
    parser.add_argument("--steps", type=int,
                        help="stop after this step, counted from the run's beginning; before the recipe's end, no final test")
    parser.add_argument("--seed", type=int, help="of weights, order, crops, colours, dropout; default: the recipe's, 0")
    parser.add_argument("--resume", metavar="auto|PATH",
                        help="auto: go on from the newest whole checkpoint in --out, from the beginning if there is none; PATH: from that "
                             "run or checkpoint, in its run's directory or in a new --out")
    parser.add_argument("--init", metavar="RUN|CHECKPOINT|FILE",
                        help="begin with the weights of a run, a checkpoint or a .safetensors file, in all layers of the same name "
                             "but the last; a run that is resumed has begun already")
    parser.add_argument("--init-layers", metavar="LAYER,...",
                        help="take these layers alone from --init, as in conv1,conv2; default: all of the same name "
                             "but the last")
    parser.add_argument("--resume-anyway", action="store_true", help="go on although recipe, data or seed are no longer the same")
    parser.add_argument("--checkpoint-every", default=CHECKPOINT_EVERY, metavar="STEPS|MINUTESm",
                        help=f"as in 500 or 10m; and at every best validation, at the end and when stopped; default: {CHECKPOINT_EVERY}")
    parser.add_argument("--keep", type=int, default=3, metavar="K", help="the newest K checkpoints stay, and the best; default: 3")
    parser.add_argument("--on-save-error", choices=("continue", "stop"), default="continue",
                        help="what happens where a checkpoint can't be written; default: continue, loudly, and try again")
    parser.add_argument("--profile", nargs="?", const=str(STEPS), metavar="STEPS",
                        help="record STEPS steps after the first three, and print where their time went, layer by layer, against the "
                             f"roofline; the trace goes into --out; default: {STEPS} steps")
    return parser


if __name__ == "__main__":
    run_command(main)
