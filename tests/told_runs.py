"""Run directories that were written, not trained: what run.json, metrics.jsonl, a checkpoint and the final test say."""

import dataclasses
import json

import torch
from tiny_checkpoint import CLASSES, tiny, tiny_recipe

from alexnet_mp.evaluation.accuracy import Answers, write_right
from alexnet_mp.runs import checkpoints, directory
from alexnet_mp.runs.checkpoint_state import Data

DEVICE = {"tower": "a", "device": "cpu", "name": "a processor"}


def step(number, per_epoch=2, **values):
    """A line of a training step."""
    epoch = -(-number // per_epoch)
    line = {"kind": "train", "step": number, "epoch": epoch, "loss": 1.5, "top1_error": 50.0, "learning_rate": 0.01}
    return line | {"bias_learning_rate": 0.01, "images_per_second": 40.0, "bytes_exchanged": 0} | values


def judged(number, kind="val", per_epoch=2, **values):
    """A line of a validation, or of a test."""
    line = {"kind": kind, "step": number, "epoch": number // per_epoch, "top1_error": 40.0, "top5_error": 0.0}
    return line | {"loss": 1.25, "images": 2000} | values


def told_run(
    place, lines=(), recipe=None, classes=CLASSES, right=None, checkpoint=False, fingerprint="5f" * 32, **more
):
    """The directory of a run that says this. right: {protocol: [(image is right under top-1), ...]}."""
    place.mkdir()
    recipe, data = recipe or tiny_recipe(), Data("pictures", "20 val pictures", fingerprint, tuple(classes))
    fields = directory.fields_of_run(
        "train", "2026-01-31T12:00:00+00:00", recipe, data, None, devices=[DEVICE], kernels="cpu", pipeline="raw"
    )
    directory.write_run(place, fields | more)
    (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if right:
        answers = {name: torch.tensor(values, dtype=torch.float64) for name, values in right.items()}
        labels = {name: torch.zeros(len(values), dtype=torch.int64) for name, values in answers.items()}
        write_right(place, {name: Answers(labels[name], None, of, of, None, None) for name, of in answers.items()})
    if checkpoint:
        save(place, 3)
    return place


def save(place, number):
    content = tiny()
    checkpoints.put(place, dataclasses.replace(content, state=dataclasses.replace(content.state, step=number)))
