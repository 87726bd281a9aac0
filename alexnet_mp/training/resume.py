"""`--resume`: which checkpoint a run goes on from, whether it may, and what is no longer bit-exact then."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from ..data.batches import steps_of_recipe
from ..data.class_names import accents
from ..data.dataset import ELSEWHERE, DataSet, difference
from ..data.pipeline import Pipeline
from ..data.pixel_statistics import Statistics
from ..network.network import TwoTowerAlexNet
from ..recipes import shapes
from ..recipes.recipe import Recipe, every_field
from ..runs import checkpoint_format, checkpoints
from ..runs.checkpoint_format import Checkpoint, NewerFormat, Unreadable
from ..runs.checkpoint_state import Environment
from ..runs.checkpoints import CHECKPOINTS, ResumePoint
from ..runs.directory import RUN, on_or_off, refuse_branch, refuse_foreign, refuse_remains, refuse_unusable
from ..runs.lock import RunLock
from ..system.command_line import typed
from ..system.devices import device_name
from ..system.errors import UserError
from ..system.provenance import PACKAGES, package_version
from ..system.ranks import ALONE, Ranks
from ..system.terminal import say
from .schedule import make_schedule

SHOWN = 8  # differing fields in a message


class Converted(UserError):
    """Nothing is wrong with the checkpoint, but no training came before it."""


def find(choice: str, out: str | None) -> tuple[ResumePoint | None, str, RunLock | None]:
    """What `--resume` and `--out` ask for: (`ResumePoint` or None, the directory to write to, its `RunLock`).

    The lock is None for a directory that is not there yet. choice: "auto", or the path of a run or of one of its
    checkpoints. out: None if it is not given. Raises UserError.
    """
    if choice == "auto":
        if not out:
            raise UserError("--resume auto looks into --out DIR: name the run's directory")
        if not os.path.lexists(out):
            refuse_unusable(out)
            say(f"--resume auto: {out} is not there yet; starting from the beginning")
            return None, out, None
        return _in_place(out, out, auto=True)
    path = Path(choice)
    if not choice or not path.is_dir():
        raise UserError(
            f"--resume {choice!r}: no such directory; it takes the word auto, a run, or one of its checkpoints"
        )
    is_run = (path / CHECKPOINTS).exists() or (path / RUN).exists()
    if not is_run and not any(
        (path / name).exists() for name in (checkpoint_format.MANIFEST, checkpoint_format.WEIGHTS)
    ):
        raise UserError(f"--resume {choice}: it is neither a run nor a checkpoint")
    run = path if is_run else path.absolute().parent.parent
    if out is not None and not _same_path(out, run):
        refuse_unusable(out)
        point = _newest_whole_checkpoint(path) if is_run else ResumePoint(path, load(path))
        if point is None:
            raise UserError(f"--resume {path}: there is no checkpoint in it")
        return point, out, None
    if not is_run and path.absolute().parent.name != CHECKPOINTS:
        raise UserError(f"--resume {choice}: it lies in no run's {CHECKPOINTS}/; name a new directory with --out")
    return _in_place(path, out or os.path.relpath(run) if not is_run else out or choice, auto=False)


def _in_place(path, out, auto):
    """`find` for a run that goes on in its own directory, whose lock is taken first."""
    if not os.path.isdir(out):
        raise UserError(f"--out {out} is not a directory; --resume goes on in the directory of a run")
    if not checkpoints.listing(out):  # before the lock: nothing is written into what is no run
        refuse_foreign(out)
        refuse_remains(out)
    lock = RunLock(out)
    try:
        try:
            checkpoints.recover(out)
        except OSError as error:
            raise UserError(f"cannot clear away an unfinished checkpoint: {error.filename}: {error.strerror}") from None
        if not _same_path(path, out):
            point = ResumePoint(Path(path), load(path))
            newer_steps = [step for step in checkpoints.listing(out) if step > point.checkpoint.state.step]
            if newer_steps:
                raise UserError(
                    f"--resume {path}: {out} has newer checkpoints (of step {', '.join(map(str, newer_steps))}), and a "
                    "run can't have "
                    "two histories; choose a new --out, or remove them first"
                )
            return point, out, lock
        point = _newest_whole_checkpoint(out, set_aside=True)
        if point is None and not auto:
            raise UserError(f"--resume {path}: there is no checkpoint in it")
        if point is None:
            refuse_branch(out)
            say(f"--resume auto: {out} has no checkpoint yet; starting from the beginning")
        return point, out, lock
    except BaseException:
        lock.release()
        raise


def _newest_whole_checkpoint(run, set_aside=False):
    """The newest checkpoint that is whole; says which newer ones are not. None where there is none at all. Raises
    UserError where none is whole: a run must not begin anew over what somebody may still want to rescue."""
    damaged_paths, error = [], None
    for directory in reversed(checkpoints.listing(run).values()):
        try:
            point = ResumePoint(directory, load(directory))
            break
        except (checkpoint_format.OldFormat, Converted):
            raise
        except (NewerFormat, Unreadable) as reason:
            raise UserError(f"{reason}; an older checkpoint is gone on from with --resume PATH --out NEW") from None
        except UserError as reason:
            say(f"WARNING: {reason}; trying the checkpoint before it")
            damaged_paths, error = [*damaged_paths, directory], reason
    else:
        if damaged_paths:
            raise UserError(f"none of the checkpoints of {run} can be gone on from; the last reason: {error}")
        return None
    if set_aside:
        for directory in damaged_paths:
            try:
                say(f"{directory} is kept as {checkpoints.set_aside(directory).name}")
            except OSError as reason:
                raise UserError(f"cannot rename the damaged checkpoint {directory}: {reason.strerror}") from None
    return point


def load(directory: str | Path) -> Checkpoint:
    """A whole checkpoint whose state makes sense for its recipe. Raises UserError."""
    content = checkpoint_format.load(directory)
    if content.state.data.source == ELSEWHERE:
        recipe = content.state.recipe
        border = ("--set", "lrn_crosses=false") if recipe.lrn_crosses else ()
        raise Converted(
            f"{directory}: a network that was converted, without a training to go on with; "
            f"{typed('train', '--init', directory, '--recipe', recipe.name, *border)} begins one with its weights"
        )
    try:
        make_schedule(content.state.recipe).restore(content.state.schedule)
    except ValueError as error:
        raise UserError(f"{directory}: {error}") from None
    if checkpoints.step_of(directory) not in (None, content.state.step):
        raise UserError(f"{directory} is named like another step than its own, {content.state.step}")
    return content


def changes(
    content: Checkpoint, recipe: Recipe, dataset: DataSet, statistics: Statistics | None = None
) -> dict[str, list]:
    """What is not as it was when a checkpoint was saved, without epochs: {"conv1.init_std": [before, now],
    "data.fingerprint": ...}."""
    state, alterations = content.state, {}
    old_fields, new_fields = flat(every_field(state.recipe)), flat(every_field(recipe))
    for name in sorted(old_fields.keys() | new_fields.keys()):
        if name not in ("epochs", "name") and old_fields.get(name) != new_fields.get(name):
            alterations[name] = [old_fields.get(name), new_fields.get(name)]
    if difference(state.data.fingerprint, dataset):
        alterations["data.fingerprint"] = [state.data.fingerprint, dataset.fingerprint]
    if list(state.data.classes) != list(dataset.classes):
        mismatch = next(([a, b] for a, b in zip(state.data.classes, dataset.classes) if a != b), None)
        same_count = len(state.data.classes) == len(dataset.classes)
        alterations["data.classes"] = mismatch if same_count else [len(state.data.classes), len(dataset.classes)]
    # They are fitted again from the images; the last bits may differ from one machine to another.
    if statistics and not all(
        np.shape(a) == np.shape(b) and np.allclose(a, b, rtol=1e-6, atol=1e-6)
        for a, b in zip(asdict(content.statistics).values(), asdict(statistics).values(), strict=True)
    ):
        alterations["data.statistics"] = ["those of the checkpoint", "those of these images"]
    return alterations


def refuse_changes(
    point: ResumePoint,
    alterations: Mapping[str, list],
    recipe: Recipe,
    dataset: DataSet,
    anyway: bool,
    steps: int | None = None,
) -> None:
    """Raise UserError if a run may not go on with what changed; `anyway`: if it can't. steps: of `--steps`, or None.

    What changed comes before the count of steps: another batch size makes another count.
    """
    state = point.checkpoint.state
    checkpoint_shapes = shapes.merged_shapes(state.recipe, len(state.data.classes))
    network_shapes = shapes.merged_shapes(recipe, len(dataset.classes))
    mismatches = [
        name
        for name in checkpoint_shapes.keys() | network_shapes.keys()
        if checkpoint_shapes.get(name) != network_shapes.get(name)
    ]
    if mismatches:
        name = min(mismatches)
        raise UserError(
            f"--resume: {point.path} has {name} {checkpoint_shapes.get(name)}, but this network "
            f"{network_shapes.get(name)}; its weights don't fit{listed(alterations)}"
        )
    if alterations and not anyway:
        data = difference(state.data.fingerprint, dataset)
        old_class, new_class = alterations.get("data.classes", ("", None))
        raise UserError(
            f"--resume: this is not the run of {point.path}{listed(alterations)}{f'; data: {data}' if data else ''}"
            f"{accents([old_class], [new_class])}; "
            "--resume-anyway goes on all the same"
        )
    if steps is not None and steps < state.step:
        raise UserError(f"--steps {steps}: {point.path} has taken {state.step} steps already")
    total = steps_of_recipe(recipe, dataset)
    if state.step > total:
        raise UserError(
            f"--resume: {point.path} has taken {state.step} steps already; {recipe.epochs} epochs are only "
            f"{total}{listed(alterations)}"
        )


def no_longer_exact(before: Environment, now: Environment) -> list[str]:
    """What decides about rounding and differs: ["threads: 2 -> 4", ...]. before, now: `Environment`."""
    before, now = asdict(before), asdict(now)
    if not any("cuda" in device for record in (before, now) for device in record["devices"]):
        before["pipeline"] = now["pipeline"]  # on a CPU all give the same bits
    if before["overlap"] is None:  # not recorded
        before["overlap"] = now["overlap"]
    before["packages"].setdefault("numpy", now["packages"].get("numpy"))  # not recorded
    before |= {f"package {name}": version for name, version in before.pop("packages").items()}
    now |= {f"package {name}": version for name, version in now.pop("packages").items()}
    return [
        f"{name}: {_clip(before.get(name))} -> {_clip(now.get(name))}"
        for name in sorted(now.keys() | before.keys())
        if before.get(name) != now.get(name)
    ]


def environment(network: TwoTowerAlexNet, pipeline: Pipeline, precision: str, ranks: Ranks = ALONE) -> Environment:
    """The `Environment` of a job, which all its processes have to ask for."""
    devices = tuple(
        f"cuda: {device_name(device)}" if device.type == "cuda" else f"cpu: {torch.backends.cpu.get_cpu_capability()}"
        for device in network.exchange.devices
    )
    devices = sum(ranks.gather(devices)[: ranks.towers], ())
    packages = {name: package_version(name) for name in PACKAGES}
    if any(device.type == "cuda" for device in network.exchange.devices):
        packages |= {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}
    return Environment(
        devices,
        network.kernels_used(),
        precision,
        pipeline.name,
        on_or_off(network.exchange.overlap),
        torch.get_num_threads(),
        packages,
        pipeline.pieces.microbatch,
        1 if pipeline.pieces.microbatch else ranks.pairs,
    )


def flat(fields: Mapping) -> dict:
    """A recipe's fields with those of its layers beside them: {"batch_size": 128, "layers": [names], "conv1.kernel":
    11, ...}."""
    layers = {
        f"{layer['name']}.{field}": value
        for layer in fields["layers"]
        for field, value in layer.items()
        if field != "name"
    }
    return {**fields, "layers": [layer["name"] for layer in fields["layers"]]} | layers


def listed(alterations: Mapping[str, list]) -> str:
    """What changed, in a line: ": seed 0 -> 1, ..."."""
    entries = [f"{name} {_clip(before)} -> {_clip(now)}" for name, (before, now) in list(alterations.items())[:SHOWN]]
    rest = f" and {len(alterations) - SHOWN} more" if len(alterations) > SHOWN else ""
    return f": {', '.join(entries)}{rest}" if alterations else ""


def _clip(value):
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _same_path(a, b):
    return os.path.realpath(a) == os.path.realpath(b)
