"""Several runs on one data set, tested one after the other, and the average of their probabilities."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from ..data.class_names import first_difference
from ..data.dataset import SAME_FILES, DataSet, open_data_of_run, open_dataset
from ..data.limits import refuse_batch
from ..data.pipeline import Pipeline, make_pipeline
from ..runs import checkpoint_format
from ..system.devices import check_kernels, here
from ..system.errors import UserError
from ..system.provenance import package_version, source_commit
from ..system.ranks import ALONE, Ranks
from ..system.terminal import progress, say
from . import ensemble_weights
from .accuracy import Answers, joined, judged
from .protocol import both_protocols, evaluate, print_errors
from .trained import load_run, trained


@dataclass(frozen=True)
class Run:
    """A run directory that is ready to be tested: all but its weights has been read and found to fit the others."""

    directory: str
    dataset: DataSet
    pipeline: Pipeline
    protocols: dict  # {name: list of views}: the centre view, then all views where there are more
    batch_size: int
    gpus: str
    kernels: str
    ranks: Ranks = ALONE  # the processes of the job, to which whole batches are dealt


def open_runs(
    directories: Sequence[str | Path],
    data: str | Path | None = None,
    splits: Sequence[str] = ("val",),
    gpus: str = "auto",
    kernels: str = "auto",
    pipeline: str = "auto",
    workers: int | None = None,
    batch_size: int | None = None,
    ranks: Ranks = ALONE,
) -> list[Run]:
    """The `Run`s of run directories on one data set: what they were trained on, if `data` is None. ranks: of a job
    that tests one run, each process with a pair of towers.

    Raises UserError where a run has no checkpoint, where their classes differ from each other or from the data's, and
    for whatever else would end a test of theirs later."""
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch-size {batch_size}: it must be at least 1")
    if ranks.count > 1 and len(directories) > 1:
        raise UserError(f"{len(directories)} runs are averaged in one process; torchrun's {ranks.count} can test one")
    trainings, datasets, sources = [], {}, {}
    for directory in directories:
        training = trained(directory)
        check_kernels(kernels, here(gpus, training.recipe.towers, ranks, training.recipe.lrn_crosses))
        if training.classes != (trainings or [training])[0].classes:
            difference = first_difference(trainings[0].classes, training.classes, directories[0])
            raise UserError(f"{directory}: {difference}; only networks with the same classes can be averaged")
        trainings.append(training)
        sources.setdefault(training.source, directory)
    named = data is not None
    if not named:
        if len(sources) > 1:
            where = ", ".join(f"{source} ({directory})" for source, directory in sources.items())
            raise UserError(f"the runs were trained on different data, {where}; say with --data what to test them on")
        data = next(iter(sources))
    runs = []
    for directory, training in zip(directories, trainings):
        recipe, classes = training.recipe, training.classes
        if recipe.stored_size not in datasets:
            datasets[recipe.stored_size] = (
                open_dataset(data, recipe.stored_size, splits)
                if named
                else open_data_of_run(directory, data, recipe.stored_size, splits)
            )
            say(f"data: {datasets[recipe.stored_size].description}")
            for line in datasets[recipe.stored_size].passed_over:
                say(line)
        dataset = datasets[recipe.stored_size]
        if dataset.classes != classes:
            origin = f"--data {data}" if named else f"{data}, where the data of {directory} were"
            raise UserError(
                f"{origin}: its {len(dataset.classes)} classes are not the {len(classes)} that "
                f"{directory} was trained on; {first_difference(classes, dataset.classes, directory)}"
            )
        devices = here(gpus, recipe.towers, ranks, recipe.lrn_crosses)
        size = batch_size or recipe.batch_size
        run_pipeline = make_pipeline(pipeline, dataset, recipe, devices, workers, processes=ranks.local_count)
        refuse_batch(run_pipeline, size, processes=ranks.local_count)
        run_pipeline.use(training.statistics)
        run_pipeline.pieces = replace(run_pipeline.pieces, pair=ranks.pair, pairs=ranks.pairs)
        runs.append(Run(str(directory), dataset, run_pipeline, both_protocols(recipe), size, gpus, kernels, ranks))
    return runs


@dataclass(frozen=True)
class Tested:
    """What `evaluate_runs` found."""

    runs: list  # of each run, {protocol: `Answers`}
    average: dict  # the same of the average; of a single run its own
    weights: tuple  # of each run, adding up to 1


def evaluate_runs(
    runs: Sequence[Run],
    split: str,
    weights: Sequence[float] | Literal["validation"] | None = None,
    views: Literal["ten", "centre"] = "ten",
    finite: bool = False,
) -> Tested:
    """Test `Run`s on a split, one after the other, and their average: `Tested`.

    weights: one a run; None: all equal; "validation": those that `choose_weights` finds on the validation images under
    `views`, "ten" (all views that the recipe has) or "centre". The average of both protocols has the same ones. finite:
    answers that are NaN are refused also of a single run; of several they always are. Raises UserError."""
    if len(runs) == 1:
        answers = _test(runs[0], split, runs[0].protocols, finite)
        return Tested([answers], answers, (1.0,))
    runs, place = _with_equal_protocols(runs), {"centre": 0, "ten": -1}[views]
    if weights == "validation" and split == "val":
        tests, totals, weights = _best_average(runs, split, place)
    else:
        if weights == "validation":
            weights = _weights_of_validation(runs, place)
        elif weights is None:
            weights = (1 / len(runs),) * len(runs)
        tests, totals = _weighted_average(runs, split, weights)
    labels = torch.from_numpy(runs[0].dataset.splits[split].labels).split(ensemble_weights.ROWS)
    names = [" / ".join(dict.fromkeys(names)) for names in zip(*(run.protocols for run in runs))]
    average = {
        name: joined([judged(*rows) for rows in zip(total.split(ensemble_weights.ROWS), labels)])
        for name, total in zip(names, totals)
    }
    return Tested(tests, average, weights)


def _with_equal_protocols(runs):
    """The runs with equally many protocols: beside others that have more, a run's only view is all of its."""
    if len({len(run.protocols) for run in runs}) == 1:
        return runs
    return [
        replace(run, protocols={**run.protocols, "one view": run.protocols["centre view"]})
        if len(run.protocols) == 1
        else run
        for run in runs
    ]


def _weighted_average(runs, split, weights):
    """([{protocol: `Answers`} of each run], [logarithms of the average under each protocol, (N, classes) float32])."""
    tests, totals = [], _nothing_of_each(runs[0], split)
    for run, weight in zip(runs, weights, strict=True):

        def take(protocol, rows, logs, weight=weight):
            ensemble_weights.fold(totals[protocol][rows], logs, weight)

        tests.append(_test(run, split, run.protocols, True, take))
        print_answers(tests[-1], split, len(run.dataset.classes))
    return tests, totals


def _best_average(runs, split, place):
    """What `_weighted_average` returns, and the weights, chosen on the images that are tested. They are known when
    every run has been tested; until then all probabilities are kept."""
    tests, logs_of_runs = [], []
    for run in runs:
        logs_of_runs.append(_nothing_of_each(run, split))

        def take(protocol, rows, logs):
            logs_of_runs[-1][protocol][rows] = logs

        tests.append(_test(run, split, run.protocols, True, take))
        print_answers(tests[-1], split, len(run.dataset.classes))
    labels = torch.from_numpy(runs[0].dataset.splits[split].labels)
    weights = ensemble_weights.normalised(_choose([of_run[place] for of_run in logs_of_runs], labels))
    say("WARNING: the weights were chosen on the images that they are tested on")
    totals = _nothing_of_each(runs[0], split)
    for of_run, weight in zip(logs_of_runs, weights):
        for total, logs in zip(totals, of_run, strict=True):
            ensemble_weights.fold(total, logs, weight)
    return tests, totals, weights


def _nothing_of_each(run, split):
    """`ensemble_weights.nothing`, for each protocol of a run."""
    size = len(run.dataset.splits[split]), len(run.dataset.classes)
    return [ensemble_weights.nothing(*size) for _ in run.protocols]


def _weights_of_validation(runs, place):
    """Weights that add up to 1, from a test of every run on the validation images under one of its protocols."""
    logs_of_runs, labels = [], torch.from_numpy(runs[0].dataset.splits["val"].labels)
    for run in runs:
        logs_of_runs.append(ensemble_weights.nothing(len(labels), len(run.dataset.classes)))
        name, views = list(run.protocols.items())[place]
        answers = _test(run, "val", {name: views}, True, lambda _, rows, logs: logs_of_runs[-1][rows].copy_(logs))
        print_answers(answers, "val", len(run.dataset.classes))
    return ensemble_weights.normalised(_choose(logs_of_runs, labels))


def _choose(logs, labels):
    with progress(
        "choosing weights", ensemble_weights.PASSES * (ensemble_weights.STEPS + 1) * len(logs), "averages"
    ) as advance:
        weights = ensemble_weights.choose_weights(logs, labels, advance)
    say(f"weights chosen on the validation images: {' '.join(f'{weight:g}' for weight in weights)}")
    return weights


def _test(run, split, protocols, finite, take=lambda protocol, rows, logs: None):
    """{protocol: `Answers`} of a run. take(number of the protocol, rows, their (n, classes) float32) is called for
    every batch."""
    network, training = load_run(run.directory, run.gpus, run.kernels, run.ranks)
    run.ranks.meet()  # a disk may be slow
    run.ranks.refuse_difference(lambda: _facts(run, split, network, training))

    def pass_on(rows, means):
        for number, mean in enumerate(means.values()):
            if finite and mean.isnan().any():
                raise UserError(f"{run.directory}: its network answers with NaN; such a run can only be tested alone")
            take(number, rows, mean.float().cpu())

    with progress(f"{split}, {list(protocols)[-1]}", len(run.dataset.splits[split])) as advance:
        return evaluate(network, run.pipeline, split, protocols, run.batch_size, advance, pass_on, run.ranks)


def _facts(run, split, network, training):
    """{what has to be alike in all processes of a job: it}"""
    manifest = training.checkpoint / checkpoint_format.MANIFEST  # has the digests of what was read
    return {
        "the code": f"{package_version('alexnet_mp')}, commit {source_commit()}",
        "torch": torch.__version__,
        "the kernels": network.kernels_used(),
        "the kind of device": ", ".join(device.type for device in network.exchange.devices),
        "the pipeline": run.pipeline.name,
        "the checkpoint": hashlib.sha256(manifest.read_bytes()).hexdigest(),
        "the data's fingerprint": run.dataset.fingerprint[:SAME_FILES],  # machines may have copies
        "--split": split,
        "--views": ", ".join(run.protocols),
        "--batch-size": str(run.batch_size),
    }


def print_answers(answers: Mapping[str, Answers], split: str, classes: int) -> None:
    """The table of {protocol: `Answers`}, on images of so many classes."""
    errors = {name: of_protocol.errors() for name, of_protocol in answers.items()}
    if None in errors.values():
        say(f"{split}: {len(next(iter(answers.values())).labels):,} images without labels, so without errors")
    else:
        print_errors(errors, split, classes)
