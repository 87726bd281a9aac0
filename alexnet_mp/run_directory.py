"""What a run leaves behind: `run.json` first, `metrics.jsonl` line by line, TensorBoard events beside them."""
import datetime
import json
import math
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from . import recipe as recipes
from .devices import device_name
from .errors import UserError

PACKAGES = ("alexnet_mp", "torch", "numpy", "pillow", "triton", "nvidia-dali-cuda130")


class RunDirectory:
    """A new directory for one run. Raises UserError where it can't be made or is there already."""

    def __init__(self, path, recipe, dataset, network, pipeline):
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True)
        except FileExistsError:
            raise UserError(_taken(path)) from None
        except OSError as error:
            raise UserError(f"--out {path}: {error.strerror}") from None
        self.write_json("run.json", {
            "command": shlex.join(["python", "-m", "alexnet_mp.train", *sys.argv[1:]]),
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "recipe": recipes.to_dict(recipe),
            "data": {"source": dataset.source, "description": dataset.description, "fingerprint": dataset.fingerprint,
                     "classes": dataset.classes},
            "devices": [{"tower": name, "device": str(device), "name": device_name(device)}
                        for name, device in zip("ab", network.exchange.devices)],
            "kernels": network.kernels_used(),
            "pipeline": pipeline.name,
            "commit": source_commit(),
            "python": platform.python_version(),
            "packages": {name: _version(name) for name in PACKAGES},
        })
        pipeline.statistics.save(self.path)
        # Imported late: it takes seconds and only training needs it.
        from torch.utils.tensorboard import SummaryWriter
        self.board = SummaryWriter(self.path / "tensorboard")
        self.metrics = open(self.path / "metrics.jsonl", "a", buffering=1)

    def write_json(self, name, content):
        (self.path / name).write_text(json.dumps(content, indent=1) + "\n")

    def log(self, kind, **values):
        """One line of `metrics.jsonl`, and its numbers as TensorBoard scalars `kind/name`. Numbers must be finite."""
        self.metrics.write(json.dumps({"kind": kind, **values}, allow_nan=False) + "\n")
        for name, value in values.items():
            if isinstance(value, (int, float)) and name not in ("step", "epoch") and math.isfinite(value):
                self.board.add_scalar(f"{kind}/{name}", value, values["step"])

    def close(self):
        self.metrics.close()
        self.board.close()


def refuse_unusable(path):
    """Raise UserError early if a run directory is there already or can't be made."""
    if os.path.lexists(path):
        raise UserError(_taken(path))
    parent = next(parent for parent in Path(path).absolute().parents if os.path.lexists(parent))
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"--out {path}: {parent} is not a directory that can be written to")


def read_run(path):
    """`run.json` of a run directory, with its recipe as a `Recipe`. Raises UserError where it is no run."""
    file = Path(path) / "run.json"
    try:
        run = json.loads(file.read_text())
        recipe = recipes.from_dict(run["recipe"])
        if recipes.to_dict(recipe) != run["recipe"]:  # a default must not fill in for a number that the run didn't record
            raise UserError("the recipe is not complete")
        return {**run, "recipe": recipe}
    except UserError as error:
        raise UserError(f"{path} is not a run directory of this version: {file}: {error}") from None
    except OSError as error:
        raise UserError(f"{path} is not a run directory: cannot read {file}: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a run directory: {file} is damaged ({error!r})") from None


def read_metrics(path):
    """The lines of a run's `metrics.jsonl` as dicts, in order; a last line that was cut off is left out."""
    lines = (Path(path) / "metrics.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _taken(path):
    return f"--out {path} is there already; choose another --out, or remove it"


def _version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def source_commit():
    """The commit of the source tree this runs from, "+changes" if files differ from it; None outside a git checkout."""
    def git(*words):
        return subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != Path(__file__).resolve().parent.parent:
            return None  # installed inside somebody else's repository
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
