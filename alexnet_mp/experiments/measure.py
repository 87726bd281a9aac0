"""What is measured of a claim's runs: tests, curve, what the claim asks for; and the average of several networks."""

import json
import time
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial

import numpy as np
import torch

from ..analysis import learning_curves, specialisation
from ..analysis.specialisation import division, division_by_chance
from ..data.dataset import open_dataset
from ..data.pipeline import make_pipeline
from ..evaluation import ensemble_weights
from ..evaluation.accuracy import answers
from ..evaluation.protocol import both_protocols, centre_view, evaluate, log_probabilities
from ..evaluation.trained import load_run
from ..network.network import TwoTowerAlexNet
from ..runs import checkpoints
from ..runs.directory import NON_FINITE, read_run
from ..runs.metrics import read_metrics
from ..system.terminal import progress
from . import kept_answers
from .arm_runs import first_gpu, note, reached, read_notes, status, tested_by_run
from .entries import averaged
from .plan import Run, data_of, more_tests, opened, steps_per_epoch, work_of_test


def entry_of(run: Run, options: Namespace) -> dict | None:
    """What is kept of a run that ended, as the record has it; None where nothing is, or not all that its claim asks
    for."""
    if run.kind.on_test_images:  # which are those that are there now
        return None
    entry = kept_answers.kept(run, options.records)
    if entry and (run.kind.asks_for in entry or "diverged" in entry):
        # another claim or machine may have called it otherwise
        return entry | {"arm": run.arm, "directory": str(run.directory)}
    return None


def measure_and_keep(run: Run, options: Namespace) -> dict:
    """`measure`, and what it finds is kept beside the records."""
    entry, kernels = measure(run, options), None
    if "diverged" not in entry:
        kernels = checkpoints.newest_weights(run.directory)[1][f"{run.recipe.layers[0].name}.weight"].numpy()
    kept_answers.keep(run, entry, kernels, options.records)
    return entry


def measure(run: Run, options: Namespace, tested: bool = True) -> dict:
    """What the record says of a run that is done or diverged. tested: with its errors on validation images, and on
    others."""
    facts, end = read_run(run.directory), reached(run)
    per_epoch, diverged = steps_per_epoch(run), status(run) == "diverged"
    # Lines behind the last checkpoint are of a process that was killed.
    lines = [
        line for line in read_metrics(run.directory) if line["kind"] == "train" and (diverged or line["step"] <= end)
    ]
    losses, errors = [line["loss"] for line in lines], [line["top1_error"] for line in lines]
    entry = {
        "arm": run.arm,
        "seed": run.seed,
        "directory": str(run.directory),
        "steps": len(lines),
        "steps_per_epoch": per_epoch,
        "seconds": round(read_notes(run)["seconds"], 1),
        "images_per_second": _rate(lines),
        "commits": [*dict.fromkeys([*(entry["commit_before"] for entry in facts.get("resumed", [])), facts["commit"]])],
        "devices": [device["name"] for device in facts["devices"]],
        "kernels": facts["kernels"],
        "pipeline": facts["pipeline"],
        "command": facts["command"],
    }
    if lines:
        last_epoch = slice(-min(per_epoch, len(lines)), None)
        # with dropout and augmentation
        entry["train"] = {"loss": _mean(losses[last_epoch]), "top1_error": _mean(errors[last_epoch])}
        points = learning_curves.thinned(losses)
        entry["curve"] = {
            "steps": [step for step, _ in points],
            "loss": [round(loss, 4) for _, loss in points],
            "top1_error": [round(error, 3) for _, error in learning_curves.thinned(errors)],
        }
    if run.level is not None:
        entry["epochs_to_level"] = learning_curves.epochs_to(errors, per_epoch, run.level)
    entry["moved"] = learning_curves.moved_at(losses, len(data_of(run).classes))
    entry["drops"] = learning_curves.drops(read_metrics(run.directory))
    if diverged:
        return entry | {"diverged": json.loads((run.directory / NON_FINITE).read_text(encoding="utf-8"))["step"]}
    if not tested:
        return entry
    entry["signal"] = signal_at_start(run, options)
    entry["errors"] = tested_by_run(run) or test_run(run, options, "val", both_protocols(run.recipe))
    for split, protocols in more_tests(run):
        errors = test_run(run, options, split, protocols)
        if split == "train":
            entry["on_training_images"] = errors["centre view"]
        else:
            entry["on_test_images"] = errors
    entry |= run.kind.measure(run, partial(_network_of, run, options, "val"))
    return entry | of_towers(
        checkpoints.newest_weights(run.directory)[1][f"{run.recipe.layers[0].name}.weight"].numpy(), run.recipe.towers
    )


def of_towers(kernels: np.ndarray, towers: int) -> dict:
    """What the first layer's kernels (maps of all towers, 3, k, k) say of a division between the towers, as JSON types.

    Of two towers "chroma", "random_split_p" and "division"; of one tower "halves", [random halves that meet the
    criterion, of how many]. Nothing where the layer is too small for it."""
    if towers == 1:
        test = division_by_chance(kernels)
        return {"halves": list(test)} if test else {}
    test = division(kernels)
    return {
        "chroma": specialisation.chroma_shares(kernels, 2),
        "random_split_p": specialisation.random_split_p(kernels),
        "division": {
            "learned": list(test.learned),
            "distance": test.distance,
            "p": test.p,
            "measures": {
                name: {"effect": each.effect, "p": each.p, "holm_p": each.holm_p}
                for name, each in test.differences.items()
            },
        },
    }


def test_run(
    run: Run, options: Namespace, split: str, protocols: Mapping[str, Sequence[tuple[int, int, bool]]]
) -> dict[str, dict[str, float]]:
    """{protocol: errors} of a finished run on one of its splits; kept beside the run, with what they are of."""
    notes, key = read_notes(run), key_of_test(run, split, protocols)
    if key not in notes["tests"]:
        start = time.monotonic()
        network, pipeline = _network_of(run, options, split)
        with progress(f"testing {run.directory.name} on {split}", len(pipeline.dataset.splits[split])) as advance:
            by_protocol = evaluate(network, pipeline, split, protocols, run.recipe.batch_size, advance)
        notes["tests"][key] = {name: asdict(of_protocol.errors()) for name, of_protocol in by_protocol.items()}
        note(
            run,
            tests=notes["tests"],
            seconds=notes["seconds"] + time.monotonic() - start,
            work=notes["work"] + work_of_test(run, split, protocols),
        )
    return notes["tests"][key]


def key_of_test(run: Run, split: str, protocols: Iterable[str]) -> str:
    """What a test is of: other images or another checkpoint make it another one."""
    images = opened(run.data, run.recipe.stored_size, split).fingerprint
    return f"{split} {images[:16]}, {', '.join(protocols)}, step {reached(run)}"


def signal_at_start(run: Run, options: Namespace) -> dict[str, float]:
    """How much each layer's outputs differ from picture to picture before any training, which is all that can be learnt
    from.

    {layer: standard deviation between the pictures of a batch, root mean square over tower a's outputs}; validation
    images, centre view."""
    trained_network, pipeline = _network_of(run, options, "val")
    # as it began
    network = TwoTowerAlexNet(
        run.recipe, trained_network.exchange.devices, trained_network.classes, trained_network.kernels
    ).eval()
    signals = {}
    for layer, module in network.towers[0].named_children():
        module.register_forward_hook(
            lambda module, inputs, output, layer=layer: signals.update(
                {layer: output.float().var(0).mean().sqrt().item()}
            )
        )
    with (
        closing(pipeline.views("val", run.recipe.batch_size, centre_view(run.recipe))) as batches,
        torch.inference_mode(),
    ):
        (towers,), _ = next(iter(batches))
        network(*towers)
    return signals


def average(members: Sequence[Run], options: Namespace) -> dict:
    """Errors of several networks averaged plainly, and with the weights that are best on the validation images, as 2012
    chose them.

    Both are errors on the validation images, so the second are those of a choice on the very images it is tested on. Of
    more than five networks "five" says the same of the first five, which the paper compares its seven with."""
    logs, labels = [], None  # of each network {protocol: (images, classes) float32}
    for member in members:
        of_member, labels = _answers_of(member, options)
        logs.append(of_member)
    content = _average(members, logs, labels)
    return content | {"five": _average(members[:5], logs[:5], labels)} if len(members) > 5 else content


def _average(members, logs, labels):
    plain_logs, choice = (
        {name: ensemble_weights.nothing(*values.shape) for name, values in logs[0].items()},
        averaged(logs[0]),
    )
    weighted_logs, weights = (
        ensemble_weights.nothing(*logs[0][choice].shape),
        ensemble_weights.choose_weights([of[choice] for of in logs], labels),
    )
    for of_member, weight in zip(logs, ensemble_weights.normalised(weights), strict=True):
        for name, values in of_member.items():
            ensemble_weights.fold(plain_logs[name], values, 1 / len(logs))
        ensemble_weights.fold(weighted_logs, of_member[choice], weight)
    return {
        "members": [str(member.directory) for member in members],
        "weights": list(weights),
        "errors": {name: asdict(answers(values, labels).errors()) for name, values in plain_logs.items()},
        "weighted": {choice: asdict(answers(weighted_logs, labels).errors())},
    }


def _answers_of(member, options):
    """({protocol: log probabilities}, labels) of a finished run on the validation images."""
    network, pipeline = _network_of(member, options, "val")
    parts, labels = {}, []
    for batch, of_batch in log_probabilities(
        network, pipeline, "val", both_protocols(member.recipe), member.recipe.batch_size
    ):
        for name, values in batch.items():
            parts.setdefault(name, []).append(values.float().cpu())
        labels.append(of_batch.cpu())
    return {name: torch.cat(values) for name, values in parts.items()}, torch.cat(labels)


def _network_of(run, options, split):
    """(network, pipeline) of a finished run, to be tested on a split of its data."""
    network, training = load_run(str(run.directory), first_gpu(options.gpus, run.recipe.towers), options.kernels)
    dataset = open_dataset(run.data, run.recipe.stored_size, (split,))
    pipeline = make_pipeline(options.pipeline, dataset, run.recipe, network.exchange.devices, options.workers)
    pipeline.use(training.statistics)
    return network, pipeline


def _rate(lines):
    """The median of images a second; the first step warms up."""
    rates = sorted(line["images_per_second"] for line in lines[1:] or lines)
    return round(rates[len(rates) // 2], 1) if rates else None


def _mean(values):
    return sum(values) / len(values)
