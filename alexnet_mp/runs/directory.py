"""What a run leaves behind: `run.json` says what it is; beside it metrics, statistics, checkpoints and pictures."""

import datetime
import json
import os
import platform
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Protocol

import torch

from ..data.dataset import DataSet
from ..data.pipeline import Pipeline
from ..data.pixel_statistics import STATISTICS
from ..recipes.recipe import Recipe, from_dict, to_dict, upgraded
from ..system import durable_files
from ..system.devices import device_name
from ..system.errors import UserError
from ..system.provenance import PACKAGES, package_version, source_commit
from ..system.terminal import say
from . import first_layers
from .checkpoint_state import Data
from .checkpoints import CHECKPOINTS, PARTIAL, REPLACED, ResumePoint, listing
from .first_layers import FIRST_LAYER
from .lock import LOCK, RunLock
from .metrics import EVENTS, METRICS, Metrics, take_over
from .mistaken import meant

RUN = "run.json"
RIGHT = "validation_right.npz"  # which validation images the final test got right
NON_FINITE = "non_finite.json"  # of a run that diverged: tensor, step, images
TEXTS = ("command", "started", "kernels", "precision", "pipeline", "overlap", "commit", "python")
MOST_BYTES = 16 << 20  # of run.json: 22,000 class names are less than one of them


class Taken(UserError):
    """A directory that a new run was to make is there already."""


class Placement(Protocol):
    """What run.json says of the crossings of a network; a `network.exchange.Exchange` has it."""

    devices: Sequence[torch.device]
    towers: Sequence[int]  # of these devices, in their order
    overlap: bool


class PlacedNetwork(Protocol):
    """What run.json says of a network; a `TwoTowerAlexNet` has it."""

    exchange: Placement

    def kernels_used(self) -> str: ...


class RunDirectory:
    """A run's directory, held by its lock until `close`.

    point: what the run goes on from, or None. lock: the `RunLock` that is held on the
    directory if it is there already. checked: what the self-check found. command: as it was typed. devices: of all
    towers, as `devices_of` has them; None: those of the network. Raises UserError if the directory can't be made or is
    another's, `Taken` if it came to be there meanwhile."""

    def __init__(
        self,
        path: str | Path,
        recipe: Recipe,
        dataset: DataSet,
        network: PlacedNetwork,
        pipeline: Pipeline,
        *,
        precision: str = "fp32",
        point: ResumePoint | None = None,
        changed: Mapping[str, list] | tuple[()] = (),
        lock: RunLock | None = None,
        checked: str | dict[str, str] | None = None,
        command: str = "",
        devices: list[dict] | None = None,
    ):
        self.path, self.lock = Path(path), lock
        try:
            if lock is None:
                self._make()
            self._describe(recipe, dataset, network, pipeline, precision, point, changed, checked, command, devices)
            if point is None and lock is not None:
                self._set_aside()
            pipeline.statistics.save(self.path)
            keep, step = (point.checkpoint.state.metrics_bytes, point.checkpoint.state.step) if point else (0, None)
            if point and lock is None and point.run:
                take_over(point.run, self.path, keep)
                first_layers.take_over(point.run, self.path, step)
            elif point:
                first_layers.forget_after(self.path, step)
            self.metrics = Metrics(self.path, keep, step)
        except BaseException as error:
            # it was made here: nothing half-written may stand in the way of the next attempt
            if lock is None and self.lock:
                shutil.rmtree(self.path, ignore_errors=True)
            if self.lock:
                self.lock.release()
            if isinstance(error, OSError):
                raise UserError(f"--out {path}: {error.filename or path}: {error.strerror}") from None
            raise
        if self.metrics.missing > 0:
            say(
                f"{self.path / METRICS} ends early, {self.metrics.missing:,} bytes before the checkpoint; those "
                "lines are lost"
            )

    def _make(self):
        directories = [self.path, *(parent for parent in self.path.parents if not parent.exists())]
        try:
            self.path.mkdir(parents=True)
        except FileExistsError:
            raise _refusal(self.path) from None
        try:
            self.lock = RunLock(self.path)
        except BaseException:
            with suppress(OSError):  # not empty: another run was quicker
                self.path.rmdir()
            raise
        for directory in directories:
            durable_files.sync(directory.parent)  # else a power cut could take the run with its name

    def _set_aside(self):
        """Rename what a run left that ended before its first checkpoint, or whose checkpoints were taken away: nothing
        is lost."""
        for name in (METRICS, EVENTS, FIRST_LAYER):
            if os.path.lexists(self.path / name):
                stem, dot, suffix = name.partition(".")
                new_name = next(
                    name
                    for name in (f"{stem}-{number}{dot}{suffix}" for number in count(1))
                    if not os.path.lexists(self.path / name)
                )
                durable_files.rename(self.path / name, self.path / new_name)
                say(f"{self.path / name} is of a run without a checkpoint: kept as {new_name}")

    def _describe(self, recipe, dataset, network, pipeline, precision, point, changed, checked, command, devices):
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        content = fields_of_run(
            command,
            now,
            recipe,
            dataset,
            dataset.class_names,
            devices=devices or devices_of(network),
            kernels=network.kernels_used(),
            precision=precision,
            pipeline=pipeline.name,
            overlap=on_or_off(network.exchange.overlap),
            pairs=pipeline.pieces.pairs,
            microbatch=pipeline.pieces.microbatch,
            self_check=checked,
        )
        if point is not None:  # the file says what runs now, and keeps how it came to it
            old_fields = _earlier_fields(point.run) if point.run else {}
            content |= {name: old_fields[name] for name in ("command", "started") if name in old_fields}
            entry = {
                "command": command,
                "started": now,
                "step": point.checkpoint.state.step,
                "from": str(point.path),
                "changed": changed,
                "commit_before": old_fields.get("commit"),
            }
            content["resumed"] = [*old_fields.get("resumed", []), entry]
        write_run(self.path, content)

    def log(self, kind: str, **values: object) -> None:
        """See `Metrics.log`."""
        self.metrics.log(kind, **values)

    def keep_first_layer(self, step: int, weights: Mapping[str, torch.Tensor]) -> None:
        """See `first_layers.write`."""
        first_layers.write(self.path, step, {name: tensor.float().numpy() for name, tensor in weights.items()})

    def close(self) -> None:
        """Let go of everything; says so where the last lines of the metrics can't be written."""
        try:
            self.metrics.close()
        except OSError as error:
            say(f"WARNING: the last lines of {self.path / METRICS} are lost: {error.strerror}")
        finally:
            self.lock.release()


def fields_of_run(
    command: str,
    started: str,
    recipe: Recipe,
    data: DataSet | Data,
    class_names: Sequence[str] | None,
    converted: dict[str, str] | None = None,
    *,
    devices: Sequence[dict] = (),
    kernels: str = "none",
    precision: str = "fp32",
    pipeline: str = "none",
    overlap: str | None = None,
    pairs: int = 1,
    microbatch: int | None = None,
    self_check: str | dict[str, str] | None = None,
) -> dict:
    """What run.json says of any run. Of a network from elsewhere nobody knows more than the defaults.

    started: ISO time. class_names: in words, in the order of the classes. converted: what the network was made of."""
    splits = getattr(data, "splits", None)  # a `Data` has none
    return {
        "command": command,
        "started": started,
        "recipe": to_dict(recipe),
        "data": {
            "source": data.source,
            "description": data.description,
            "fingerprint": data.fingerprint,
            "classes": list(data.classes),
            **({"images": {name: len(split) for name, split in splits.items()}} if splits else {}),
            **({"class_names": list(class_names)} if class_names else {}),
        },
        **({"converted": converted} if converted else {}),
        "devices": list(devices),
        "kernels": kernels,
        "precision": precision,
        "pipeline": pipeline,
        "overlap": overlap,
        "pairs": pairs,
        "microbatch": microbatch,
        "self_check": self_check,
        "commit": source_commit(),
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in PACKAGES},
    }


def write_run(directory: Path, fields: dict) -> None:
    """Write run.json, whole or not at all. Raises OSError."""
    durable_files.replace(directory / RUN, (json.dumps(fields, indent=1) + "\n").encode())


def on_or_off(overlap: bool) -> str:
    """As `--overlap` has it."""
    return "on" if overlap else "off"


def devices_of(network: PlacedNetwork) -> list[dict]:
    """What run.json says of the devices of the towers that are in this process."""
    return [
        {"tower": "ab"[tower], "device": str(device), "name": device_name(device)}
        for tower, device in zip(network.exchange.towers, network.exchange.devices)
    ]


def refuse_unusable(path: str | Path) -> None:
    """Raise an error early if a new run directory is there already, `Taken`, or can't be made, UserError."""
    if os.path.lexists(path):
        raise _refusal(path)
    durable_files.refuse_unwritable("--out", path)


def refuse_foreign(path: str | Path) -> None:
    """Raise UserError if a directory holds anything that no run wrote: a run may only begin anew in what is one, or is
    empty."""
    own_names = {
        RUN,
        METRICS,
        EVENTS,
        FIRST_LAYER,
        STATISTICS,
        LOCK,
        CHECKPOINTS,
        RIGHT,
        "curves.png",
        "conv1_kernels.png",
        NON_FINITE,
        "trace.json.gz",
        "profile.json",
        "retrieval",
        "retrieval.lock",
        "report",
    }
    foreign_names = [
        name
        for name in sorted(os.listdir(path))
        if name.removesuffix(durable_files.PARTIAL) not in own_names
        and not re.fullmatch(r"(metrics|tensorboard|first_layer)-\d+(\.jsonl)?|lost\+found|.*\.(log|out|err)", name)
    ]
    if foreign_names:
        raise UserError(f"--out {path}: it is no run directory, {foreign_names[0]} is in it; choose another --out")


def refuse_remains(path: str | Path) -> None:
    """Raise UserError if `checkpoints` holds anything but unfinished saves: what could be a checkpoint may not be begun
    over."""
    directory = Path(path) / CHECKPOINTS
    names = os.listdir(directory) if os.path.lexists(directory) else []
    if any(not name.startswith((PARTIAL, REPLACED)) for name in names):
        raise UserError(f"{directory} has no checkpoint in it, but is not empty; look into it, or choose another --out")


def refuse_branch(path: str | Path) -> None:
    """Raise UserError if a run went on from another's checkpoint and has none of its own: its beginning would be
    another one."""
    if resumptions := _earlier_fields(path).get("resumed"):
        checkpoint = resumptions[-1].get("from") if isinstance(resumptions[-1], dict) else None
        raise UserError(
            f"{path} went on from {checkpoint}, and has no checkpoint of its own; --resume that one, with a new --out"
        )


def read_run(path: str | Path) -> dict:
    """`run.json` of a run directory, with its recipe as a `Recipe`. Raises UserError where it is no run."""
    file = Path(path) / RUN
    try:
        run = json.loads(durable_files.read(file, MOST_BYTES))
        fields = upgraded(run["recipe"])
        recipe = from_dict(fields)
        if to_dict(recipe) != fields:  # a default must not fill in for a number that the run didn't record
            raise UserError("the recipe is not complete")
        data = run["data"]
        classes = data["classes"]
        if not (
            isinstance(data["source"], str)
            and isinstance(classes, list)
            and len(classes) > 1
            and all(isinstance(name, str) for name in classes)
        ):
            raise UserError("it doesn't say what data the run had")
        if (field := _wrong_field(run)) is not None:
            raise UserError(f"{field} is not what a run writes")
        return {**run, "recipe": recipe}
    except UserError as error:
        raise UserError(f"{path} is not a run directory of this version: {file}: {error}") from None
    except OSError as error:
        what = f"cannot read {file}: {error.strerror}"
        raise UserError(f"{path} is not a run directory: {meant(path) or what}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:  # JSON's and UTF-8's errors are ValueErrors
        raise UserError(f"{path} is not a run directory: {file} is damaged ({error!r:.200})") from None


def _wrong_field(run):
    """The name of a field of run.json that is of another type than `fields_of_run` gives it, None where all are right;
    what a run of a former version, or a network from elsewhere, doesn't have is no fault."""

    def are_texts(mapping):
        return isinstance(mapping, dict) and all(isinstance(value, str | None) for value in mapping.values())

    def are_entries(entries, **types):
        return isinstance(entries, list) and all(
            isinstance(entry, dict) and all(isinstance(entry.get(name), type_) for name, type_ in types.items())
            for entry in entries
        )

    data_texts = {name: run["data"].get(name) for name in ("description", "fingerprint")}
    verdicts = {
        **{name: isinstance(run.get(name), str | None) for name in TEXTS},
        **{name: isinstance(run.get(name), int | None) for name in ("pairs", "microbatch")},
        **{f"data.{name}": isinstance(value, str | None) for name, value in data_texts.items()},
        "devices": are_entries(run.get("devices", []), tower=str, name=str),
        "resumed": are_entries(run.get("resumed", []), step=int, command=str),
        "packages": are_texts(run.get("packages", {})),
        "converted": are_texts(run.get("converted", {})),
    }
    return next((name for name, verdict in verdicts.items() if not verdict), None)


def _earlier_fields(path):
    """`run.json` of the run that goes on, as far as it can be read: a checkpoint holds all that is needed."""
    try:
        content = json.loads(durable_files.read(Path(path) / RUN, MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict) or not isinstance(content.get("resumed", []), list):
        return {}
    return content


def _refusal(path):
    """The error of a directory that is there already: it advises `--resume auto` if that would take it."""
    if not os.path.isdir(path):
        return Taken(f"--out {path} is there already, and is no directory; choose another --out")
    try:
        if not listing(path):
            for refuse in (refuse_foreign, refuse_remains, refuse_branch):
                refuse(path)
    except UserError as reason:
        return Taken(f"--out {path} is there already: {str(reason).removeprefix(f'--out {path}: ')}")
    except OSError as error:
        return Taken(f"--out {path} is there already, and can't be read: {error.strerror}; choose another --out")
    return Taken(f"--out {path} is there already; --resume auto goes on with it, or choose another --out")
