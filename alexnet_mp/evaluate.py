"""The paper's test protocol: top-1 and top-5 error on the centre view and on ten views; of a run or several averaged.

examples
  python -m alexnet_mp.evaluate RUN
  python -m alexnet_mp.evaluate runs/2026-11-23-101500-paper --data /data/ilsvrc2012 --split val --gpus 0,1
  python -m alexnet_mp.evaluate RUN RUN RUN                          their probabilities averaged
  python -m alexnet_mp.evaluate RUN RUN --weights 2 1                the first counts twice
  python -m alexnet_mp.evaluate RUN RUN --weights validation --split test --submission FILE
  python -m alexnet_mp.evaluate RUN --per-class FILE.csv --confusion FILE.csv

A submission has a line for each image: its five most probable classes, most probable first, as ILSVRC numbers them (ILSVRC2012_ID)
where the data set knows these numbers, else numbered from 1. Files are about --views. Of classes that tie, the first one counts as
more probable there; in errors such an image counts in part.
"""
import argparse
import math
import os
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from . import averaging, checkpoint, checkpoint_format, files, per_class, submission
from .allocator import keep_freed_memory
from .answers import Errors, answers, credits, joined
from .console import progress, say
from .dataset import open_dataset
from .devices import make_current, resolve
from .errors import UserError, run_command
from .loader import centre_view, nine_views, ten_views
from .network import TwoTowerAlexNet
from .options import add_machine_options, check_kernels
from .pipelines import make_pipeline
from .run_directory import read_run
from .statistics import Statistics


@torch.inference_mode()
def log_probabilities(network, pipeline, split, protocols, batch_size):
    """Test a network on every image of a split, once each, in order: yields ({name: (N, classes) float64}, labels (N,)) a batch.

    protocols: {name: list of views}; a view that several protocols share is computed once. Probabilities are averaged over a
    protocol's views (paper 4.1); what is yielded are their logarithms, on the first tower's device.
    """
    views = list(dict.fromkeys(view for protocol in protocols.values() for view in protocol))
    was_training = network.training
    network.eval()
    try:
        with closing(pipeline.views(split, batch_size, views)) as batches_of_views:
            for batches, labels in batches_of_views:
                # In logarithms: a probability of 1e-50 is 0 in float32, and its loss would be infinite.
                logs = {view: network(*towers).double().log_softmax(1) for view, towers in zip(views, batches, strict=True)}
                yield {name: torch.stack([logs[view] for view in protocol]).logsumexp(0) - math.log(len(protocol))
                       for name, protocol in protocols.items()}, labels
    finally:
        network.train(was_training)


def evaluate(network, pipeline, split, protocols, batch_size, advance, take=lambda name, logs, labels: None):
    """Test a network on every image of a split, once each: {name: `Errors`} of the protocols, {name: list of views}.

    advance(n) is called for every n images; take(name of the protocol, (n, classes) logarithms of probabilities, labels) before.
    """
    sums, images = {name: torch.zeros(3, dtype=torch.float64) for name in protocols}, 0
    with closing(log_probabilities(network, pipeline, split, protocols, batch_size)) as batches:
        for means, labels in batches:
            for name, mean in means.items():
                loss = -mean.gather(1, labels[:, None]).sum(0)
                sums[name] = sums[name].to(labels.device) + torch.cat((credits(mean, labels), loss))
                take(name, mean, labels)
            images += len(labels)
            advance(len(labels))
    means = {name: (total / images).tolist() for name, total in sums.items()}
    return {name: Errors(100 - 100 * top1, 100 - 100 * top5, loss, images) for name, (top1, top5, loss) in means.items()}


def both_protocols(recipe):
    """{"centre view": one view, "ten views": ten}, or "nine views"; the centre view alone if the recipe tests one."""
    protocols = {"centre view": centre_view(recipe)}
    if recipe.test_views == "one":
        return protocols
    views = {"ten": ten_views, "nine": nine_views}[recipe.test_views](recipe)
    return protocols | {f"{recipe.test_views} views": views}


def print_errors(errors, split):
    """The table of a test's protocols."""
    for name, error in errors.items():
        say(f"{split}, {name:11}  top-1 error {error.top1_error:6.2f} %   top-5 error {error.top5_error:6.2f} %   "
            f"({error.images:,} images)")


@dataclass(frozen=True)
class Trained:
    """What the newest weights of a run were trained with, which is not always what the run does now (`--resume-anyway`)."""

    recipe: object
    source: str  # of the data
    classes: list
    statistics: Statistics
    weights: dict | None
    checkpoint: Path  # its directory


def trained(directory, with_weights=False):
    """(checkpoint's directory, `Trained`) of a run's newest checkpoint; in format 0 the run's directory has all but the weights.

    Raises UserError where it is no run, or the checkpoint can't be used.
    """
    run = read_run(directory)

    def read(path):
        if checkpoint_format.version(path) == 0:
            recipe, source, classes, place = run["recipe"], run["data"]["source"], run["data"]["classes"], directory
        else:
            state = checkpoint_format.read_state(path)
            recipe, source, classes, place = state.recipe, state.data.source, list(state.data.classes), path
        weights = checkpoint_format.load_weights(path) if with_weights else None
        return Trained(recipe, source, classes, Statistics.load(place), weights, Path(path))

    return checkpoint.from_newest(directory, read)


def load_run(directory, gpus="auto", kernels="auto"):
    """(network in test mode, its `Trained`) of a run directory's newest weights. Raises UserError where it can't be used."""
    path, found = trained(directory, with_weights=True)
    devices = resolve(gpus, found.recipe.towers)
    check_kernels(kernels, devices)
    make_current(devices)
    network = TwoTowerAlexNet(found.recipe, devices, len(found.classes), kernels)
    try:
        network.load_merged(found.weights)
    except ValueError as error:
        raise UserError(f"{path} doesn't fit {directory}/run.json: {error}") from None
    say(f"{path} on {', '.join(map(str, devices))}, kernels {network.kernels_used()}")
    return network.eval(), replace(found, weights=None)


@dataclass(frozen=True)
class Run:
    """A run directory that is ready to be tested: all but its weights has been read and found to fit the others."""

    directory: str
    dataset: object
    pipeline: object
    protocols: dict  # {name: list of views}: the centre view, then all views where there are more
    batch_size: int
    gpus: str
    kernels: str


def open_runs(directories, data=None, splits=("val",), gpus="auto", kernels="auto", pipeline="auto", workers=None,
              batch_size=None):
    """The `Run`s of run directories on one data set: what they were trained on, if `data` is None.

    Raises UserError where a run has no checkpoint, where their classes differ from each other or from the data's, and for whatever
    else would end a test of theirs later.
    """
    described, opened, sources = [], {}, {}
    for directory in directories:
        _, run = trained(directory)
        check_kernels(kernels, resolve(gpus, run.recipe.towers))
        if run.classes != (described or [run])[0].classes:
            difference = _difference(described[0].classes, run.classes)
            raise UserError(f"{directory}: {difference} {directories[0]}; "
                            "only networks with the same classes can be averaged")
        described.append(run)
        sources.setdefault(run.source, directory)
    if data is None:
        if len(sources) > 1:
            where = ", ".join(f"{source} ({directory})" for source, directory in sources.items())
            raise UserError(f"the runs were trained on different data, {where}; say with --data what to test them on")
        data = next(iter(sources))
    runs = []
    for directory, run in zip(directories, described):
        recipe, classes = run.recipe, run.classes
        if recipe.stored_size not in opened:
            opened[recipe.stored_size] = open_dataset(data, recipe.stored_size, splits)
            say(f"data: {opened[recipe.stored_size].description}")
        dataset = opened[recipe.stored_size]
        if dataset.classes != classes:
            raise UserError(f"--data {data}: its {len(dataset.classes)} classes are not the {len(classes)} that "
                            f"{directory} was trained on")
        made = make_pipeline(pipeline, dataset, recipe, resolve(gpus, recipe.towers), workers)
        made.use(run.statistics)
        runs.append(Run(str(directory), dataset, made, both_protocols(recipe), batch_size or recipe.batch_size, gpus, kernels))
    return runs


def _difference(expected, classes):
    """In words, the first class that is another; the directory that has the expected ones is to follow."""
    differ = (place for place, (one, other) in enumerate(zip(expected, classes)) if one != other)
    place = next(differ, min(len(expected), len(classes)))
    names = [f"'{names[place]}'" if place < len(names) else "missing" for names in (classes, expected)]
    return f"its class {place + 1} is {names[0]}, and {names[1]} in"


@dataclass(frozen=True)
class Tested:
    """What `evaluate_runs` found."""

    runs: list  # of each run, {protocol: `Answers`}
    average: dict  # the same of the average; of a single run its own
    weights: tuple  # of each run, adding up to 1


def evaluate_runs(runs, split, weights=None, views="ten", finite=False):
    """Test `Run`s on a split, one after the other, and their average: `Tested`.

    weights: one a run; None: all equal; "validation": those with the least top-5 error on the validation images under `views`,
    "ten" (all views that the recipe has) or "centre". The average of both protocols has the same ones. finite: answers that are NaN
    are refused also of a single run; of several they always are. Raises UserError.
    """
    finite, place = finite or len(runs) > 1, {"centre": 0, "ten": -1}[views]
    if len({len(run.protocols) for run in runs}) > 1:  # beside others that have more, a run's only view is all of its
        runs = [replace(run, protocols={**run.protocols, "one view": run.protocols["centre view"]})
                if len(run.protocols) == 1 else run for run in runs]
    labels = torch.from_numpy(runs[0].dataset.splits[split].labels)
    size, kept = (len(labels), len(runs[0].dataset.classes)), []
    if len(runs) == 1:
        found = _test(runs[0], split, runs[0].protocols, finite)
        return Tested([found], found, (1.0,))
    if weights == "validation" and split != "val":
        weights = _weights_of_validation(runs, place)
    choose, tested = weights == "validation", []
    weights = (1 / len(runs),) * len(runs) if weights is None else weights
    totals = [averaging.nothing(*size) for _ in runs[0].protocols]
    for number, run in enumerate(runs):
        if choose:
            kept.append([averaging.nothing(*size) for _ in totals])

        def take(protocol, rows, logs):
            if choose:
                kept[-1][protocol][rows] = logs
            else:
                averaging.fold(totals[protocol][rows], logs, weights[number])

        tested.append(_test(run, split, run.protocols, finite, take))
        print_answers(tested[-1], split)
    if choose:
        weights = averaging.normalised(_choose([own[place] for own in kept], labels))
        say("WARNING: the weights were chosen on the images that they are tested on")
        for own, weight in zip(kept, weights):
            for total, logs in zip(totals, own, strict=True):
                averaging.fold(total, logs, weight)
        kept.clear()
    names = [" / ".join(dict.fromkeys(names)) for names in zip(*(run.protocols for run in runs))]
    rows = range(0, len(labels), averaging.ROWS)
    average = {name: joined([answers(total[start:start + averaging.ROWS], labels[start:start + averaging.ROWS]) for start in rows])
               for name, total in zip(names, totals)}
    return Tested(tested, average, weights)


def _weights_of_validation(runs, place):
    """Weights that add up to 1, from a test of every run on the validation images under one of its protocols."""
    kept, labels = [], torch.from_numpy(runs[0].dataset.splits["val"].labels)
    for run in runs:
        kept.append(averaging.nothing(len(labels), len(run.dataset.classes)))
        name, views = list(run.protocols.items())[place]
        print_answers(_test(run, "val", {name: views}, True, lambda _, rows, logs: kept[-1][rows].copy_(logs)), "val")
    return averaging.normalised(_choose(kept, labels))


def _choose(logs, labels):
    with progress("choosing weights", averaging.PASSES * (averaging.STEPS + 1) * len(logs), "averages") as advance:
        weights = averaging.choose_weights(logs, labels, advance)
    say(f"weights chosen on the validation images: {' '.join(f'{weight:g}' for weight in weights)}")
    return weights


def _test(run, split, protocols, finite, take=lambda protocol, rows, logs: None):
    """{protocol: `Answers`} of a run. take(number of the protocol, rows, their (n, classes) float32) is called for every batch."""
    network, _ = load_run(run.directory, run.gpus, run.kernels)
    parts, done, last = {name: [] for name in protocols}, 0, list(protocols)[-1]
    with progress(f"{split}, {last}", len(run.dataset.splits[split])) as advance, \
            closing(log_probabilities(network, run.pipeline, split, protocols, run.batch_size)) as batches:
        for means, labels in batches:
            rows = slice(done, done + len(labels))
            for number, (name, mean) in enumerate(means.items()):
                if finite and mean.isnan().any():
                    raise UserError(f"{run.directory}: its network answers with NaN; such a run can only be tested alone")
                parts[name].append(answers(mean, labels))
                take(number, rows, mean.float().cpu())
            done = rows.stop
            advance(len(labels))
    return {name: joined(of_protocol) for name, of_protocol in parts.items()}


def print_answers(found, split):
    """The table of {protocol: `Answers`}."""
    errors = {name: of_protocol.errors() for name, of_protocol in found.items()}
    if None in errors.values():
        say(f"{split}: {len(next(iter(found.values())).labels):,} images without labels, so without errors")
    else:
        print_errors(errors, split)


def main(arguments=None):
    options = _parser().parse_args(arguments)
    if options.batch_size is not None and options.batch_size < 1:
        raise UserError(f"--batch-size {options.batch_size}: it must be at least 1")
    if options.weights is not None and len(options.runs) == 1:
        raise UserError("--weights: there is a single RUN, and nothing to be averaged")
    weights = averaging.parse_weights(options.weights, len(options.runs))
    outputs = {"--submission": options.submission, "--per-class": options.per_class, "--confusion": options.confusion}
    outputs = {flag: path for flag, path in outputs.items() if path is not None}
    _refuse_outputs(outputs)
    keep_freed_memory()
    torch.backends.cudnn.allow_tf32 = False  # as in training
    splits = dict.fromkeys((options.split, "val")) if weights == "validation" else (options.split,)
    runs = open_runs(options.runs, options.data, tuple(splits), options.gpus, options.kernels, options.pipeline, options.workers,
                     options.batch_size)
    dataset, images = runs[0].dataset, runs[0].dataset.splits[options.split]
    if (images.labels < 0).any() and set(outputs) != {"--submission"}:
        raise UserError(f"the {options.split} images of {dataset.source} have no labels: all that can be made is --submission FILE")
    order = submission.order(images.names) if options.submission else None
    tested = evaluate_runs(runs, options.split, weights, options.views, bool(outputs))
    if len(runs) > 1:
        shown = "all equal" if len(set(tested.weights)) == 1 else " ".join(f"{weight:.4g}" for weight in tested.weights)
        say(f"average of {len(runs)} runs, weights {shown}:")
    print_answers(tested.average, options.split)
    found = list(tested.average.values())[{"centre": 0, "ten": -1}[options.views]]
    if options.submission:
        _write(options.submission, submission.text(order, dataset.ids, found.top))
        say(f"{options.submission}: {submission.describe(order, dataset.ids)}")
    counts = None if found.loss is None else per_class.confusion(found.labels, found.top[:, 0], len(dataset.classes))
    if options.per_class:
        _write(options.per_class, per_class.table(dataset.classes, found, counts))
    if options.confusion:
        _write(options.confusion, per_class.confusion_table(dataset.classes, counts))
    return 0


def _refuse_outputs(outputs):
    """Raise UserError early for a file that is there already, can't be written, or is asked for twice."""
    for flag, path in outputs.items():
        folder = Path(path).absolute().parent
        if not Path(path).name:
            raise UserError(f"{flag} {path!r}: write the name of a file")
        if os.path.lexists(path):
            raise UserError(f"{flag} {path}: it is there already; choose another name")
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise UserError(f"{flag} {path}: {folder} is not a directory that can be written to")
    if len({Path(path).absolute() for path in outputs.values()}) < len(outputs):
        raise UserError(f"{' and '.join(outputs)} name the same file; each needs its own")


def _write(path, text):
    try:
        files.replace(path, text.encode(errors="surrogateescape"))  # the name of a class may be no UTF-8
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def _parser():
    parser = argparse.ArgumentParser(prog="python -m alexnet_mp.evaluate", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="the directory of a run; of several, the average is tested too")
    parser.add_argument("--data", help="DIR with val/<class>/* or test/<class>/*, or builtin; default: what it was trained on")
    parser.add_argument("--split", choices=("val", "test"), default="val", help="default: val")
    parser.add_argument("--weights", nargs="+", metavar="W",
                        help="of the average, one for each RUN, or the word validation: those with the least top-5 error on the "
                             "validation images, searched for as in 2012; default: all equal")
    parser.add_argument("--views", choices=("ten", "centre"), default="ten",
                        help="what files and chosen weights are about: all views of the recipe's test, be they ten, "
                             "nine or one, or the centre view; default: ten")
    parser.add_argument("--submission", metavar="FILE",
                        help="write each image's five most probable classes in the format of ILSVRC-2012's test")
    parser.add_argument("--per-class", metavar="FILE.csv", help="write each class's errors, and what it is most often taken for")
    parser.add_argument("--confusion", metavar="FILE.csv",
                        help="write how many images of each class (rows) are taken for which class (columns)")
    add_machine_options(parser)
    parser.add_argument("--batch-size", type=int, help="images at a time; default: the recipe's")
    return parser


if __name__ == "__main__":
    run_command(main)
