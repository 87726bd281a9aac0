"""Probes of what commands say and leave."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

from alexnet_mp import mini, paper, source2012

from .digests import command, digest, lasting, of_files, of_findings, of_json, of_lines, timeless
from .operations import CLASSES, CROP, STORED, WIDTHS

BATCH = 9  # images: odd, and the last batch of an epoch is a smaller one
CPU = ("--gpus", "cpu", "--workers", "0")
SIZES = {"stored_size": STORED, "crop_size": CROP, "crop_positions": 8, "batch_size": BATCH, "epochs": 3}
DATES = [
    {"epoch": 2, "weights": 0.1, "colour_noise": 0.3},
    {"epoch": 3, "layers": ["conv1"], "weights": 0, "biases": 0},
]
DATED = {"schedule": "dated", "dates": json.dumps(DATES)}
# Small gradients of a narrow network: larger initial weights let every layer matter.
NARROW = {
    **SIZES,
    **{f"{layer}.maps": maps for layer, maps in WIDTHS.items()},
    **{f"{layer}.init_std": 0.1 for layer in ("conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")},
}
RUNS = {  # of three epochs of four steps each
    "mini": ("mini", "folder", ["--pipeline", "torch"], {**NARROW, **DATED}),
    "source2012": (
        "source2012",
        "raw",
        ["--pipeline", "raw"],
        {**NARROW, **DATED, "crop_share": 4, "crop_positions": 10},
    ),
    "paper": (
        "paper",
        "jpeg",
        ["--pipeline", "torch", "--workers", "1"],
        {**NARROW, "plateau_patience": 1, "learning_rate": 1e-6, "bias_learning_rate": 1e-6},
    ),
    "bf16": ("mini", "raw", ["--pipeline", "raw", "--precision", "bf16"], {**NARROW, "seed": 5}),
    "reference": (
        "source2012",
        "raw",
        ["--pipeline", "torch", "--kernels", "reference"],
        {**NARROW, **DATED, "crop_share": 4},
    ),
    "cifar18": ("cifar18", "small", ["--pipeline", "raw"], {"batch_size": BATCH, "batch_file_size": 20, "epochs": 3}),
    "local": (
        "cifar13_local",
        "small",
        ["--pipeline", "torch"],
        {"batch_size": BATCH, "epochs": 1, "local3.maps": 8, "conv1.maps": 12},
    ),
}


def recipes():
    return {preset.__name__: digest(dataclasses.asdict(preset())) for preset in (paper, source2012, mini)} | {
        "claims, list": digest(command("claims", "list", "--records", "none"))
    }


def prepared():
    """A folder of pictures, whose sides are odd and differ, and the sets that `prepare` makes of it, byte for byte."""
    random = np.random.default_rng(12)
    for split, count in (("train", 5), ("val", 2)):
        for label, name in enumerate(CLASSES):
            (Path("folder") / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 160, (83 + 4 * number, 97 - 6 * number, 3))
                pixels[:, :, label % 3] += 12 * label
                picture = Image.fromarray(pixels.astype(np.uint8))
                kind = ("jpg", "png", "jpg")[number % 3]
                picture = picture.convert("L") if number == 1 else picture
                path = Path("folder", split, name, f"{number}.{kind}")
                picture.save(path)
                os.utime(path, (0, 0))  # times are in the fingerprint of a folder
    outputs = [
        command("prepare", "folder", "raw", "--size", STORED, "--raw", "--workers", 0),
        command("prepare", "folder", "jpeg", "--size", STORED, "--workers", 2),
        command("prepare", "folder", "small", "--recipe", "cifar18", "--raw", "--workers", 0),
        command("prepare", "folder/train", "split", "--size", 33, "--val-fraction", 0.4, "--workers", 0),
        command("prepare", "--check", "jpeg"),
    ]
    return {f"said {number}": digest(timeless(text)) for number, text in enumerate(outputs)} | {
        name: value for folder in ("raw", "jpeg", "small", "split") for name, value in of_files(folder, "*").items()
    }


def _train(out, recipe, data, options, settings, *more):
    return command(
        "train",
        *CPU,
        "--kernels",
        "cpu",
        "--recipe",
        recipe,
        "--data",
        data,
        "--out",
        out,
        *options,
        *_sets(settings),
        *more,
    )


def _sets(settings):
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


def _of_run(out, last=True):
    """Metrics, the newest checkpoint and what is beside it."""
    out = Path(out)
    folder = max((out / "checkpoints").glob("step_*"))
    files = of_files(folder, "*.safetensors") | of_files(out, "*.safetensors", *(["conv1_kernels.png"] if last else []))
    return {str(Path(name).relative_to(out)): value for name, value in files.items()} | {
        "metrics": of_lines(out / "metrics.jsonl"),
        "state": of_json(folder / "state.json"),
        "run.json": of_json(out / "run.json"),
    }


def runs():
    digests = {}
    for name, (recipe, data, options, settings) in RUNS.items():
        output = _train(f"runs/{name}", recipe, data, options, settings)
        digests |= {f"{name}, {part}": value for part, value in _of_run(f"runs/{name}").items()}
        digests[f"{name}, said"] = of_findings(output)
    return digests


def resumed():
    """A run that stops and goes on has what the one that didn't stop has; another begins with its weights."""
    recipe, data, options, settings = RUNS["mini"]
    _train("runs/resumed", recipe, data, options, settings, "--steps", 5)
    digests = {f"stopped, {part}": value for part, value in _of_run("runs/resumed", last=False).items()}
    _train("runs/resumed", recipe, data, options, settings, "--resume", "auto")
    reference, continuation = _of_run("runs/mini"), _of_run("runs/resumed")
    own_names = {"run.json", "conv1_kernels.png"}  # bear the run's name
    if differences := [name for name in reference if name not in own_names and reference[name] != continuation[name]]:
        raise AssertionError(f"resumed, these differ from the run that did not stop: {', '.join(differences)}")
    digests |= {f"resumed, {part}": value for part, value in continuation.items()}
    init = ["--init", "runs/mini", "--init-layers", "conv1,conv2", "--steps", 2]
    _train("runs/tuned", recipe, "jpeg", ["--pipeline", "auto"], settings, *init)  # with DALI, where it is installed
    return digests | {f"tuned, {part}": value for part, value in _of_run("runs/tuned", last=False).items()}


def evaluated():
    files = ("--per-class", "classes.csv", "--confusion", "confusion.csv", "--submission", "submission.txt")
    outputs = {
        "all views": command("evaluate", "runs/mini", *CPU, "--kernels", "cpu", *files),
        "average": command(
            "evaluate", "runs/mini", "runs/source2012", *CPU, "--data", "raw", "--weights", "validation"
        ),
        "centre": command(
            "evaluate",
            "runs/paper",
            "runs/bf16",
            *CPU,
            "--data",
            "raw",
            "--weights",
            2,
            1,
            "--views",
            "centre",
            "--per-class",
            "centre.csv",
        ),
    }
    return {name: digest(timeless(text)) for name, text in outputs.items()} | of_files(".", "*.csv", "submission.txt")


def predicted():
    pictures = sorted(Path("folder/val").glob("*/*"))
    output = command("predict", "runs/source2012", *pictures, "--gpus", "cpu", "--views", "ten", "--json")
    return {"ten views": digest(output)}


def retrieved():
    command("retrieve", "index", "runs/mini", *CPU, "--bits", 8)
    index = Path("runs/mini/retrieval")
    query = ["query", index, *sorted(Path("folder/val").glob("*/0.jpg")), "--gpus", "cpu", "--json"]
    outputs = {
        "by fc7": command("retrieve", *query, "--sheet", "sheet.png"),
        "by codes": command("retrieve", *query, "--by", "codes"),
        "measured": command("retrieve", "measure", index, "--json"),
    }
    digests = {name: digest(lasting(json.loads(text))) for name, text in outputs.items()}
    digests |= of_files(index, "*.safetensors", "names.json") | of_files(".", "sheet.png")
    return digests | {"index.json": of_json(index / "index.json")}


def checkpoints():
    command("checkpoint", "runs/mini", "--weights", "best.safetensors", "--best")
    # which ones there are, but for the newest and the best, is the disk's affair
    return of_files(".", "best.safetensors")


def reported():
    command("report", "runs/mini", "runs/bf16", *CPU, "--no-speed", "--sort", "--out", "report")
    page = Path("report/index.html").read_text(encoding="utf-8")
    return {"page": digest(timeless(page))} | of_files("report", "*.png")


def claimed():
    """Every claim that the pictures allow, of one step; one with more seeds, one that looks for learning rates.

    Of the records all but the commands.
    """
    run_options = ["--epochs", 1, *CPU, "--pipeline", "torch", "--out", "claimed", "--records", "records"]
    base = ["--data", "raw", "--base", "mini", *_sets(NARROW | {"epochs": 1}), "--steps", 1, *run_options]
    rates = ["--data", "small", *_sets({"batch_size": BATCH}), "--search-epochs", 1, *run_options]
    outputs = {
        "all": command("claims", "run", "all", *base, "--seeds", 1),
        "lrn": command("claims", "run", "lrn", *base, "--seeds", 3),
        "cifar-relu": command("claims", "run", "cifar-relu", *rates, "--seeds", 1),
    }
    digests = {f"said of {name}": of_findings(text) for name, text in outputs.items()}
    digests |= of_files("records", "**/*.npz", "*.png")
    return digests | {str(path): of_json(path, but={"command"}) for path in sorted(Path("records").rglob("*.json"))}
