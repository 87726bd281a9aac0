"""The numbers that `same_numbers.py` compares: a digest of each, made by the code that is imported here.

    python tools/same_numbers_probe.py FILE [PROBE ...]     in an empty directory, which it fills

It writes {name: digest} as JSON into FILE.

Only public names and commands are used, so that it runs with older and newer code alike. The order of `PROBES` counts:
later ones read what earlier ones left. Pictures are made here. If a probe fails, standard error says why, its values
are missing, and the status is 1.
"""

import dataclasses
import hashlib
import inspect
import json
import os
import re
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import alexnet_mp
from alexnet_mp import TwoTowerAlexNet, kernels, mini, paper, source2012

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")  # more than five, or no top-5 error is above 0
STORED, CROP, BATCH = 88, 79, 9  # pixels; images: odd, and the last batch of an epoch is a smaller one
CPU = ("--gpus", "cpu", "--workers", "0")
WIDTHS = {"conv1": 6, "conv2": 10, "conv3": 12, "conv4": 8, "conv5": 6, "fc6": 24, "fc7": 20}
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
# What is another one every time, or of the code and not of its numbers. The length of metrics.jsonl follows the digits
# of images/s.
PASSING = {
    "saved",
    "metrics_bytes",
    "images_per_second",
    "started",
    "date",
    "seconds",
    "commit",
    "commits",
    "commit_before",
}
TIMES = re.compile(r"\b[0-9][0-9.,]*( ms| s| min| h| images/s)(?=\W|$)|\d{4}-\d\d-\d\d[T -]?[\d:]*(\+00:00)?")


def main(file, *only):
    found = {"imported": [os.path.dirname(module.__file__) for module in (alexnet_mp, kernels)]}
    failed = sorted(set(only) - {probe.__name__ for probe in PROBES})
    for probe in PROBES:
        if only and probe.__name__ not in only:
            continue
        try:
            found |= {f"{probe.__name__}: {name}": value for name, value in probe().items()}
        except Exception:
            traceback.print_exc()
            failed.append(probe.__name__)
    Path(file).write_text(json.dumps(found, indent=1), encoding="utf-8")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


# --- digests


def digest(value):
    """sha256 of bytes, of a tensor with its shape, dtype and strides, or of anything else as JSON."""
    if isinstance(value, torch.Tensor):
        value = value.detach()
        about = f"{tuple(value.shape)} {value.dtype} {value.stride()}".encode()
        bits = value.contiguous().view(torch.uint8) if value.dim() else value.reshape(1).view(torch.uint8)
        value = about + bits.numpy().tobytes()
    elif not isinstance(value, bytes):
        value = json.dumps(value, sort_keys=True).encode()
    return hashlib.sha256(value).hexdigest()


def lasting(content, but=frozenset()):
    """JSON without what is another one every time, and without the fields `but`."""
    if isinstance(content, dict):
        return {name: lasting(value, but) for name, value in content.items() if name not in PASSING | but}
    return [lasting(value, but) for value in content] if isinstance(content, list) else content


def timeless(text):
    """A text without dates, durations and commits."""
    return re.sub(r"\b[0-9a-f]{40}\b(\+changes)?", "COMMIT", TIMES.sub("TIME", text))


def of_findings(text):
    """What a long command says of errors and losses, and what it indents: recipes and findings."""
    return digest([line for line in timeless(text).splitlines() if re.search("error|loss|^  ", line)])


def of_json(path, but=frozenset()):
    return digest(lasting(json.loads(Path(path).read_text(encoding="utf-8")), but))


def of_lines(path):
    """A file of one JSON value a line."""
    return digest([lasting(json.loads(line)) for line in Path(path).read_text(encoding="utf-8").splitlines()])


def of_files(folder, *patterns):
    """{name: digest} of a folder's files."""
    paths = sorted({path for pattern in patterns for path in Path(folder).glob(pattern) if path.is_file()})
    if not paths:
        raise FileNotFoundError(f"{folder}: no {', '.join(patterns)}")
    return {str(path): digest(path.read_bytes()) for path in paths}


def command(name, *arguments):
    """Standard output of `python -m alexnet_mp.NAME ARGUMENTS`; kept in said.txt, to look for a difference."""
    words = [f"alexnet_mp.{name}", *map(str, arguments)]
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: status {done.returncode}\n{done.stdout}\n{done.stderr}")
    with open("said.txt", "a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(words)}\n{done.stdout}\n")
    return done.stdout


# --- probes


def recipes():
    return {preset.__name__: digest(dataclasses.asdict(preset())) for preset in (paper, source2012, mini)} | {
        "claims, list": digest(command("claims", "list", "--records", "none"))
    }


def operations():
    """Every public operation, forward and backward, with the compiled and the reference kernels."""
    found = {}
    for which in ("cpu", "reference"):
        for dtype in (torch.float32, torch.bfloat16):
            values = _augmented(which, dtype) | _linear(which, dtype) | _updated(which, dtype)
            for order in (torch.contiguous_format, torch.channels_last):
                for name, (function, shape, bias, options) in _maps().items():
                    values |= {
                        f"{name}, {str(order)[6:]}, {what}": value
                        for what, value in _gradients(function, shape, bias, options, which, dtype, order).items()
                    }
            found |= {f"{which}, {str(dtype)[6:]}: {name}": digest(value) for name, value in values.items()}
    return found


def _gradients(function, shape, bias, options, which, dtype, order):
    random = torch.Generator().manual_seed(7)
    x = (20 * torch.randn(shape, generator=random)).round().div(4).to(dtype)  # with ties
    leaves = [x.contiguous(memory_format=order) if len(shape) == 4 else x]
    leaves += [torch.randn(shape[1], generator=random).to(dtype)] if bias else []
    if "kernels" in inspect.signature(function).parameters:
        options = options | {"kernels": which}
    y = function(*(leaf.requires_grad_() for leaf in leaves), **options)
    y.backward(torch.randn(y.shape, generator=random).to(dtype))
    return {"y": y, **dict(zip(("dx", "dbias"), (leaf.grad for leaf in leaves)))}


def _maps():
    """{name: (operation, shape of x, whether it has a bias, options)}."""
    maps, cells = (3, 7, 13, 11), {"probability": 0.4, "seed": 3, "step": 5, "layer": 2, "tower": 1}
    norm, all_ties = {"alpha": 0.02}, {"ties": "all"}
    return {
        "lrn": (kernels.lrn, maps, True, norm),
        "lrn, even size": (kernels.lrn, maps, False, norm | {"size": 4, "beta": 0.6, "k": 1.5, "relu": "none"}),
        "lrn_max_pool": (kernels.lrn_max_pool, maps, True, norm),
        "lrn_max_pool, all ties": (kernels.lrn_max_pool, maps, True, norm | all_ties | {"relu": "after"}),
        "max_pool": (kernels.max_pool, maps, True, {}),
        "max_pool, all ties": (kernels.max_pool, maps, False, all_ties | {"relu": False, "pool": 2}),
        "avg_pool": (kernels.avg_pool, maps, False, {}),
        "spatial_norm": (kernels.spatial_norm, maps, False, norm),
        "spatial_norm_max_pool": (kernels.spatial_norm_max_pool, maps, False, norm | {"size": 3}),
        "spatial_norm_max_pool, all ties": (kernels.spatial_norm_max_pool, maps, False, norm | all_ties),
        "dropout": (kernels.dropout, maps, False, cells),
        "relu_dropout": (kernels.relu_dropout, (5, 33), False, cells),
        "relu_dropout of maps": (kernels.relu_dropout, maps, True, cells),
        "relu_dropout of nothing": (kernels.relu_dropout, maps, True, {}),
    }


def _augmented(which, dtype):
    random = torch.Generator().manual_seed(8)
    pictures = torch.randint(0, 256, (5, 19, 19, 3), generator=random, dtype=torch.uint8)
    top, left = (torch.randint(0, 9, (5,), generator=random) for _ in range(2))
    flip, mean = torch.tensor([True, False, True, False, True]), 255 * torch.rand((19, 19, 3), generator=random)
    shift = torch.randn((5, 3), generator=random)
    return {
        f"augment, mean_follows_crop={follows}": kernels.augment(
            pictures, top, left, flip, mean, shift, 0.9, crop=11, mean_follows_crop=follows, dtype=dtype, kernels=which
        )
        for follows in (True, False)
    }


def _linear(which, dtype):
    found = {}
    for rows, inputs, units in ((5, 33, 17), (5, 1031, 1033)):  # the second is large enough for oneDNN's product
        random = torch.Generator().manual_seed(9)
        leaves = [
            torch.randn(shape, generator=random).to(dtype).requires_grad_()
            for shape in ((rows, inputs), (units, inputs), (units,))
        ]
        y = kernels.linear(*leaves, kernels=which)
        y.backward(torch.randn(y.shape, generator=random).to(dtype))
        values = zip(("y", "dx", "dweight", "dbias"), (y, *(leaf.grad for leaf in leaves)))
        found |= {f"linear of {inputs}, {what}": value for what, value in values}
    return found


def _updated(which, dtype):
    random, shapes = torch.Generator().manual_seed(10), ((7, 5, 3, 3), (33,), (11, 13))
    w, g, v = ([torch.randn(shape, generator=random).to(dtype) for shape in shapes] for _ in range(3))
    copies, sums = [torch.zeros_like(each, dtype=torch.bfloat16) for each in w], torch.zeros(3)
    kernels.paper_sgd_(
        w,
        g,
        v,
        learning_rates=[0.01, 0.02, 0.0],
        momentum=0.9,
        weight_decays=[5e-4, 0.0, 1e-3],
        copies=copies,
        sums=sums,
        kernels=which,
    )
    held = {"w": w, "v": v, "copy": copies, "sums": [sums]}
    return {f"paper_sgd_, {what} {number}": each for what, some in held.items() for number, each in enumerate(some)}


def network():
    """The two towers called directly: initial weights, logits in training and in a test, every gradient."""
    found = {}
    for preset in (paper, source2012, mini):
        recipe = preset()
        layers = tuple(dataclasses.replace(layer, maps=WIDTHS.get(layer.name), init_std=0.1) for layer in recipe.layers)
        recipe = dataclasses.replace(
            recipe, layers=layers, stored_size=STORED, crop_size=CROP, crop_positions=8, seed=4
        )
        for dtype in (torch.float32, torch.bfloat16):
            net = TwoTowerAlexNet(recipe, ("cpu", "cpu"), len(CLASSES), "cpu").to(dtype)
            images = 60 * torch.randn((5, 3, CROP, CROP), generator=torch.Generator().manual_seed(11))
            logits = net.train()(images.to(dtype), images.to(dtype))
            logits.square().sum().backward()
            values = {"trained": logits, "tested": net.eval()(images.to(dtype), images.to(dtype))}
            values |= {f"gradient of {name}": parameter.grad for name, parameter in net.named_parameters()}
            values |= {f"initial {name}": parameter for name, parameter in net.named_parameters()}
            found |= {f"{recipe.name}, {str(dtype)[6:]}: {name}": digest(value) for name, value in values.items()}
    return found


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
    said = [
        command("prepare", "folder", "raw", "--size", STORED, "--raw", "--workers", 0),
        command("prepare", "folder", "jpeg", "--size", STORED, "--workers", 2),
        command("prepare", "folder", "small", "--recipe", "cifar18", "--raw", "--workers", 0),
        command("prepare", "folder/train", "split", "--size", 33, "--val-fraction", 0.4, "--workers", 0),
        command("prepare", "--check", "jpeg"),
    ]
    return {f"said {number}": digest(timeless(text)) for number, text in enumerate(said)} | {
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
    newest = max((out / "checkpoints").glob("step_*"))
    found = of_files(newest, "*.safetensors") | of_files(out, "*.safetensors", *(["conv1_kernels.png"] if last else []))
    return {str(Path(name).relative_to(out)): value for name, value in found.items()} | {
        "metrics": of_lines(out / "metrics.jsonl"),
        "state": of_json(newest / "state.json"),
        "run.json": of_json(out / "run.json"),
    }


def runs():
    found = {}
    for name, (recipe, data, options, settings) in RUNS.items():
        said = _train(f"runs/{name}", recipe, data, options, settings)
        found |= {f"{name}, {what}": value for what, value in _of_run(f"runs/{name}").items()}
        found[f"{name}, said"] = of_findings(said)
    return found


def resumed():
    """A run that stops and goes on has what the one that didn't stop has; another begins with its weights."""
    recipe, data, options, settings = RUNS["mini"]
    _train("runs/resumed", recipe, data, options, settings, "--steps", 5)
    found = {f"stopped, {what}": value for what, value in _of_run("runs/resumed", last=False).items()}
    _train("runs/resumed", recipe, data, options, settings, "--resume", "auto")
    whole, again = _of_run("runs/mini"), _of_run("runs/resumed")
    own = {"run.json", "conv1_kernels.png"}  # bear the run's name
    if differing := [name for name in whole if name not in own and whole[name] != again[name]]:
        raise AssertionError(f"resumed, these differ from the run that did not stop: {', '.join(differing)}")
    found |= {f"resumed, {what}": value for what, value in again.items()}
    begin = ["--init", "runs/mini", "--init-layers", "conv1,conv2", "--steps", 2]
    _train("runs/tuned", recipe, "jpeg", ["--pipeline", "auto"], settings, *begin)  # with DALI, where it is installed
    return found | {f"tuned, {what}": value for what, value in _of_run("runs/tuned", last=False).items()}


def evaluated():
    files = ("--per-class", "classes.csv", "--confusion", "confusion.csv", "--submission", "submission.txt")
    said = {
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
    return {name: digest(timeless(text)) for name, text in said.items()} | of_files(".", "*.csv", "submission.txt")


def predicted():
    pictures = sorted(Path("folder/val").glob("*/*"))
    said = command("predict", "runs/source2012", *pictures, "--gpus", "cpu", "--views", "ten", "--json")
    return {"ten views": digest(said)}


def retrieved():
    command("retrieve", "index", "runs/mini", *CPU, "--bits", 8)
    index = Path("runs/mini/retrieval")
    asked = ["query", index, *sorted(Path("folder/val").glob("*/0.jpg")), "--gpus", "cpu", "--json"]
    said = {
        "by fc7": command("retrieve", *asked, "--sheet", "sheet.png"),
        "by codes": command("retrieve", *asked, "--by", "codes"),
        "measured": command("retrieve", "measure", index, "--json"),
    }
    found = {name: digest(lasting(json.loads(text))) for name, text in said.items()}
    found |= of_files(index, "*.safetensors", "names.json") | of_files(".", "sheet.png")
    return found | {"index.json": of_json(index / "index.json")}


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
    where = ["--epochs", 1, *CPU, "--pipeline", "torch", "--out", "claimed", "--records", "records"]
    base = ["--data", "raw", "--base", "mini", *_sets(NARROW | {"epochs": 1}), "--steps", 1, *where]
    rates = ["--data", "small", *_sets({"batch_size": BATCH}), "--search-epochs", 1, *where]
    said = {
        "all": command("claims", "run", "all", *base, "--seeds", 1),
        "lrn": command("claims", "run", "lrn", *base, "--seeds", 3),
        "cifar-relu": command("claims", "run", "cifar-relu", *rates, "--seeds", 1),
    }
    found = {f"said of {name}": of_findings(text) for name, text in said.items()}
    found |= of_files("records", "**/*.npz", "*.png")
    return found | {str(path): of_json(path, but={"command"}) for path in sorted(Path("records").rglob("*.json"))}


PROBES = (
    recipes,
    operations,
    network,
    prepared,
    runs,
    resumed,
    evaluated,
    predicted,
    retrieved,
    checkpoints,
    reported,
    claimed,
)

if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
