"""Train AlexNet on two towers, then test it on one and on ten views.

examples
  python -m alexnet_mp.train                                            a first run: embedded pictures, best device found
  python -m alexnet_mp.train --gpus 0,1 --data DIR                      the paper's network; DIR/train/<class>/*, DIR/val/<class>/*
  python -m alexnet_mp.train --gpus 0,1 --data DIR --recipe source2012  as the 2012 code ran it
  python -m alexnet_mp.train --gpus cpu --data DIR --steps 80           eighty steps without a GPU
  python -m alexnet_mp.train --data DIR --set learning_rate=0.005 --set conv3.init_std=0.03

The run directory (--out) gets run.json, metrics.jsonl, TensorBoard events, the weights in checkpoints/, curves.png and
conv1_kernels.png. Ctrl-C finishes the step, saves the weights and ends; a second Ctrl-C stops without saving.
"""
import argparse
import datetime
import math
import os
import signal
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict

import torch
import torch.nn.functional as F

from . import checkpoint, geometry
from . import recipe as recipes
from .allocator import keep_freed_memory
from .console import progress, python_command, say
from .dataset import cached, free_memory, open_dataset
from .devices import resolve
from .errors import UserError, run_command
from .evaluate import both_protocols, credits, evaluate, print_errors
from .loader import centre_view, read_through, survey
from .network import TwoTowerAlexNet
from .optimizer import PaperSGD
from .options import add_machine_options, check_kernels
from .pictures import draw_curves, draw_kernels
from .pipelines import make_pipeline
from .run_directory import RunDirectory, refuse_unusable
from .schedule import make_schedule

STEPS_BETWEEN_READS = 50  # on a GPU losses are read in batches: a read waits for the device


def main(arguments=None):
    options = _parser().parse_args(arguments)
    keep_freed_memory()
    torch.backends.cudnn.allow_tf32 = False  # on by default for convolutions; 2012 computed in float32
    recipe, devices = _resolve(options)
    out = options.out or f"runs/{datetime.datetime.now():%Y-%m-%d-%H%M%S}-{recipe.name}"
    refuse_unusable(out)
    dataset = open_dataset(options.data, recipe.stored_size)
    pipeline = make_pipeline(options.pipeline, dataset, recipe, devices, options.workers)
    say(f"data: {dataset.description}")
    say(recipes.describe(recipe))

    held = cached(dataset, recipe.stored_size)
    pipeline.use(prepared_statistics(dataset, pipeline.workers) or fit_statistics(dataset, recipe, pipeline.workers))
    with _interruptible() as interrupted:
        network = TwoTowerAlexNet(recipe, devices, len(dataset.classes), options.kernels)
        run = RunDirectory(out, recipe, dataset, network, pipeline)
        say(f"run directory {out}; kernels {network.kernels_used()}, pipeline {pipeline.name}; "
            f"{_what_reading_takes(dataset, held)}")
        counts = geometry.parameter_counts(recipe, len(dataset.classes))
        say(f"{sum(counts):,} parameters, by tower: {', '.join(f'{count:,}' for count in counts)}")
        try:
            Trainer(network, pipeline, run, options.steps).train(interrupted)
        finally:
            run.close()
    return 0


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


class Trainer:
    """One training run: steps, validations, and what is written of them. steps: stop after this step, None = the recipe's end."""

    def __init__(self, network, pipeline, run, steps=None):
        self.network, self.pipeline, self.run, self.recipe = network, pipeline, run, network.recipe
        self.optimizer, self.schedule = PaperSGD(network), make_schedule(network.recipe)
        self.steps_per_epoch = -(-len(pipeline.dataset.splits["train"]) // self.recipe.batch_size)
        self.whole = self.recipe.epochs * self.steps_per_epoch
        self.last_step = self.whole if steps is None else min(steps, self.whole)
        self.on_gpu = any(device.type == "cuda" for device in network.exchange.devices)
        self.step = self.epoch = 0
        self.scheduled = None
        self.pending, self.read_at = [], time.perf_counter()

    def train(self, interrupted):
        """Train to the end, to `--steps`, or until `interrupted` fills; leave weights and pictures; test where the end was reached."""
        self.network.train()
        batches = self.pipeline.train(self.step, self.recipe.epochs, self.schedule.colour_noise)
        with progress("training", self.last_step, "steps") as advance, closing(batches):
            for batch in batches:
                if batch.epoch != self.epoch:
                    self.start_epoch(batch.epoch)
                self.one_step(batch)
                advance(1, f"epoch {self.epoch} of {self.recipe.epochs}, loss {self.loss:.3f}, {self.rate:,.0f} images/s")
                if self.step == 1:
                    say(self.describe_exchange())
                if self.step % self.steps_per_epoch == 0 and not interrupted:
                    self.validate(interrupted)
                if interrupted or self.step == self.last_step or self.schedule.finished:
                    break
        self.finish(interrupted)

    def start_epoch(self, epoch):
        self.epoch = epoch
        now = {"learning_rates": self.schedule.rates(epoch), "colour_noise": self.schedule.colour_noise(epoch)}
        if now != self.scheduled:
            self.run.log("schedule", step=self.step, epoch=epoch, **now)
            self.optimizer.set_rates(now["learning_rates"])
            self.scheduled = now

    def one_step(self, batch):
        """Forward, loss on the first tower, backward, update (paper 5)."""
        logits = self.network(*batch.images)
        loss = F.cross_entropy(logits, batch.labels)
        self.optimizer.zero_grad(set_to_none=True)
        if loss.requires_grad:  # not where every layer is frozen
            loss.backward()
        self.optimizer.step()
        self.step += 1
        with torch.no_grad():
            right = credits(logits.detach(), batch.labels)[0]
        exchanged = sum(entry.bytes for entry in self.network.ledger())
        self.pending.append((self.step, len(batch.labels), loss.detach(), right, exchanged))
        if not self.on_gpu or len(self.pending) == STEPS_BETWEEN_READS or self.step == 1:
            self.read_losses()

    def read_losses(self):
        """Bring the losses of the last steps to the host and write their lines. Raises UserError at a loss that isn't finite."""
        if not self.pending:
            return
        losses = torch.stack([loss.double() for _, _, loss, _, _ in self.pending]).tolist()
        rights = torch.stack([right for _, _, _, right, _ in self.pending]).tolist()
        now = time.perf_counter()
        self.rate = sum(count for _, count, _, _, _ in self.pending) / (now - self.read_at)
        lr = {what: max(group["lr"] for group in self.optimizer.param_groups if group["name"].endswith(what))
              for what in ("weight", "bias")}
        for (step, count, _, _, exchanged), loss, right in zip(self.pending, losses, rights):
            self.refuse_non_finite(loss, step)
            self.run.log("train", step=step, epoch=self.epoch, loss=loss, top1_error=100 - 100 * right / count,
                         learning_rate=lr["weight"], bias_learning_rate=lr["bias"], images_per_second=self.rate,
                         bytes_exchanged=exchanged)
        self.loss = losses[-1]
        self.pending, self.read_at = [], now

    def refuse_non_finite(self, loss, step):
        """End the run with one line, and with the curves up to here, where a loss is NaN or infinite."""
        if not math.isfinite(loss):
            draw_curves(self.run.path)
            raise UserError(f"the loss is {loss} at step {step}; its last finite values are in {self.run.path}/metrics.jsonl; "
                            "a smaller learning_rate may help")

    def validate(self, interrupted):
        """The centre view of every validation image; dropped without a trace if Ctrl-C comes in between."""
        self.read_losses()
        errors = self.test({"centre view": centre_view(self.recipe)}, interrupted)
        if errors:
            error = errors["centre view"]
            self.run.log("val", step=self.step, epoch=self.epoch, **asdict(error))
            say(f"epoch {self.epoch}, step {self.step}: training loss {self.loss:.3f}, validation loss {error.loss:.3f}, "
                f"top-1 error {error.top1_error:.2f} %, top-5 error {error.top5_error:.2f} %")
            self.schedule.observe(error.top1_error)
        self.read_at = time.perf_counter()

    def test(self, protocols, interrupted):
        """`evaluate` on the validation images, or None if Ctrl-C came."""
        images = len(self.pipeline.dataset.splits["val"])
        with progress("testing " + ", ".join(protocols), images) as advance:
            def watch(count):
                if interrupted:
                    raise _Interrupted
                advance(count)

            try:
                errors = evaluate(self.network, self.pipeline, "val", protocols, self.recipe.batch_size, watch)
            except _Interrupted:
                return None
        for error in errors.values():
            self.refuse_non_finite(error.loss, self.step)
        return errors

    def finish(self, interrupted):
        self.read_losses()
        weights = checkpoint.save(self.run.path, self.network, self.step)
        self.run.board.flush()
        draw_curves(self.run.path)
        draw_kernels(self.network, self.run.path)
        reached_end = not interrupted and (self.step == self.whole or self.schedule.finished)
        errors = self.test(both_protocols(self.recipe), interrupted) if reached_end else None
        if errors:
            for name, error in errors.items():
                self.run.log("test", step=self.step, epoch=self.epoch, split="val", protocol=name, **asdict(error))
            print_errors(errors, "val")
        say(f"{'stopped as asked' if interrupted else 'done'} after step {self.step}: weights in {weights}, "
            f"pictures curves.png and conv1_kernels.png in {self.run.path}")
        if not errors:
            say(f"of {self.whole} steps at most; test it: {python_command()} -m alexnet_mp.evaluate {self.run.path}")

    def describe_exchange(self):
        ledger = self.network.ledger()
        if not ledger:
            return "exchange: the towers have no layer that reads both"
        edges = ", ".join(dict.fromkeys(entry.edge for entry in ledger))
        total = sum(entry.bytes for entry in ledger)
        if not total:
            return f"exchange: both towers are on one device; at {edges} nothing has to be copied"
        return f"exchange: {total / 1e6:,.2f} MB a step cross between the devices, at {edges}"


class _Interrupted(Exception):
    pass


@contextmanager
def _interruptible():
    """Yields a list that the first Ctrl-C, SIGTERM or hang-up fills; a second one raises KeyboardInterrupt."""
    interrupted = []

    def note(number, frame):
        if interrupted:
            raise KeyboardInterrupt
        interrupted.append(number)
        with suppress(OSError):  # the terminal may be gone; and no print here, which may be in the middle of another
            os.write(2, b"\nstopping after this step; once more to stop without saving\n")

    numbers = [number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _resolve(options):
    """The recipe and the devices that the command line asks for. Says what was chosen for the user."""
    on_cpu = set(options.gpus.replace(" ", "").split(",")) == {"cpu"} or (options.gpus == "auto" and torch.cuda.device_count() == 0)
    name = options.recipe or ("mini" if on_cpu else "paper")
    flags = {"batch_size": options.batch_size, "epochs": options.epochs, "seed": options.seed}
    settings = options.set + [f"{field}={value}" for field, value in flags.items() if value is not None]
    recipe = recipes.override(recipes.PRESETS[name](), settings)
    devices = resolve(options.gpus, recipe.towers)
    if options.steps is not None and options.steps < 1:
        raise UserError(f"--steps {options.steps}: it must be at least 1")
    check_kernels(options.kernels, devices)
    say(f"devices: {', '.join(f'tower {letter} on {device}' for letter, device in zip('ab', devices))}"
        + ("; no CUDA device was found" if on_cpu and options.gpus == "auto" else ""))
    say(f"recipe: {name}, the {'small network' if name == 'mini' else 'whole network'}; --recipe chooses another")
    if len({device for device in devices if device.type == "cuda"}) < 2:
        say(f"on two GPUs, type: {python_command()} -m alexnet_mp.train --gpus 0,1 --recipe paper --data DIR")
    return recipe, devices


def _parser():
    parser = argparse.ArgumentParser(prog="python -m alexnet_mp.train", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_machine_options(parser)
    parser.add_argument("--data", default="builtin", metavar="DIR|builtin", help="default: builtin, drawn by the program")
    parser.add_argument("--recipe", choices=tuple(recipes.PRESETS), help="default: paper on CUDA, mini on a CPU")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE",
                        help="change a recipe field, LAYER.FIELD for one layer; repeatable; the start of a run prints them all")
    parser.add_argument("--out", metavar="DIR", help="the run directory; default: runs/<date-time>-<recipe>")
    parser.add_argument("--batch-size", type=int, help="images; default: the recipe's, 128")
    parser.add_argument("--epochs", type=int, help="default: the recipe's")
    parser.add_argument("--steps", type=int,
                        help="stop after this step, counted from the run's beginning; before the recipe's end, no final test")
    parser.add_argument("--seed", type=int, help="of weights, order, crops, colours, dropout; default: the recipe's, 0")
    return parser


if __name__ == "__main__":
    run_command(main)
