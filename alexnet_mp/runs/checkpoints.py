"""The checkpoints of a run: `RUN/checkpoints/step_XXXXXXXX/`, whole or not at all. `checkpoint_format.py` says what is
in one."""

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from ..data.dataset import SAME_FILES
from ..system import durable_files
from ..system.errors import UserError
from . import checkpoint_format
from .checkpoint_format import Checkpoint
from .checkpoint_state import State

_Content = TypeVar("_Content")
CHECKPOINTS = "checkpoints"
# a directory that is not, no longer, or never again a checkpoint
PARTIAL, REPLACED, DAMAGED = ".partial_", ".replaced_", "damaged_"


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint that a run goes on from, read whole and checked."""

    path: Path
    checkpoint: Checkpoint

    @property
    def run(self) -> Path | None:
        """The directory of the run that wrote it; None where it was copied out of one."""
        directory = self.path.absolute().parent
        return directory.parent if directory.name == CHECKPOINTS else None


# Why no crash loses a checkpoint, whatever its moment:
# 1. Everything is written into .partial_N, a name that no reader takes for a checkpoint, and synced file by file, the
#    manifest last, then the directory. Until here the old checkpoints are untouched; what a crash leaves is removed by
#    the next start.
# 2. One rename makes it step_N, and the parent directory is synced. A rename is atomic: a reader sees all of it or
#    nothing.
# 3. Only then are older ones removed, and never the newest or the best; each is first renamed to .partial_M, so that
#    one that is half removed is no checkpoint either.
# 4. Where step_N is there already (a run that was stopped within a validation, and saves again after it), it first
#    becomes .replaced_N. A crash between the two renames leaves .replaced_N alone: readers take it for step_N, and the
#    next start renames it back (`recover`).
# 5. Should a disk lie about a sync, the sha256 of every file in the manifest tells, and the one before is taken.
def put(run: str | Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint of a run and return its directory.

    Raises OSError, with nothing half written left and the old ones untouched. Where only the last sync fails, the new
    one stays if there was none of its step: it is whole, but may not outlive a power cut."""
    parent = Path(run) / CHECKPOINTS
    with suppress(FileExistsError):
        durable_files.make_directory(parent)
    durable_files.sync(run)
    number = f"{checkpoint.state.step:08d}"
    target, draft, predecessor = parent / f"step_{number}", parent / (PARTIAL + number), parent / (REPLACED + number)
    durable_files.remove(draft)
    _clear(predecessor, target)  # a removal that failed before
    try:
        checkpoint_format.write(draft, checkpoint)
        if os.path.lexists(target):
            durable_files.rename(target, predecessor)
        durable_files.rename(draft, target)
    except BaseException:
        with suppress(OSError):
            # the new one got its name; the old one is surely on the disk
            if os.path.lexists(predecessor) and os.path.lexists(target):
                durable_files.rename(target, draft)
        with suppress(OSError):
            _clear(predecessor, target)
        with suppress(OSError):
            durable_files.remove(draft)
        raise
    with suppress(OSError):  # the next start removes it
        durable_files.remove(predecessor)
    return target


def recover(run: str | Path) -> None:
    """Clear away what a crash left of a save. To be called with the run's lock held. Raises OSError."""
    parent = Path(run) / CHECKPOINTS
    if parent.is_dir():
        for name in sorted(os.listdir(parent)):
            if name.startswith(PARTIAL):
                durable_files.remove(parent / name)
            elif name.startswith(REPLACED):
                _clear(parent / name, parent / f"step_{name.removeprefix(REPLACED)}")


def _clear(predecessor, target):
    """Give a checkpoint its name back, or remove it where a new one has the name."""
    if os.path.lexists(predecessor) and not os.path.lexists(target):
        durable_files.rename(predecessor, target)
    durable_files.remove(predecessor)


def listing(run: str | Path) -> dict[int, Path]:
    """{step: directory} of a run's checkpoints, oldest first, damaged ones among them. Raises UserError where they
    can't be listed."""
    parent = Path(run) / CHECKPOINTS
    try:
        names = os.listdir(parent)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"cannot list {parent}: {error.strerror}") from None
    directories = {step_of(name): parent / name for name in names}
    # A crash, or this moment, lies between the two renames: what is to be replaced is the newest whole one.
    for name in names:
        if name.startswith(REPLACED):
            directories.setdefault(step_of(f"step_{name.removeprefix(REPLACED)}"), parent / name)
    directories.pop(None, None)
    return dict(sorted(directories.items()))


def step_of(directory: str | Path) -> int | None:
    """500 for .../step_00000500, None for what is named otherwise."""
    match = re.fullmatch("step_([0-9]{8}|[1-9][0-9]{8,11})", Path(directory).name)
    return int(match[1]) if match else None


def newest(run: str | Path) -> Path:
    """The directory of a run's newest checkpoint. Raises UserError where there is none."""
    directories = listing(run)
    if not directories:
        raise UserError(f"{run}: no checkpoint in it (expected {run}/{CHECKPOINTS}/step_XXXXXXXX/)")
    return directories[max(directories)]


def newest_weights(run: str | Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """(directory, weights) of a run's newest checkpoint."""
    return from_newest(run, checkpoint_format.load_weights)


def from_newest(run: str | Path, read: Callable[[Path], _Content]) -> tuple[Path, _Content]:
    """(directory, read(directory)) of a run's newest checkpoint; where the run removes or replaces it meanwhile, of the
    one after it."""
    while True:
        directory = newest(run)
        identity = _identity(directory)
        try:
            return directory, read(directory)
        except UserError:
            if identity == _identity(newest(run)):
                raise


def _identity(directory):
    with suppress(OSError):
        return directory, os.stat(directory).st_ino
    return None  # it is gone already


def best(run: str | Path) -> tuple[int, State] | None:
    """(step, `State`) of the checkpoint with the lowest top-1 validation error, the earliest of equals; None if none
    was validated."""
    return _best(_states(run))


def _best(states):
    # errors on other data, with --resume-anyway, compare with nothing
    subject = _what_was_trained(states[max(states)]) if states else None
    candidates = [
        (state.validation.top1_error, step, state)
        for step, state in states.items()
        if state.validation and _what_was_trained(state) == subject
    ]
    return min(candidates, key=lambda entry: entry[:2])[1:] if candidates else None


def _what_was_trained(state):
    return replace(state.recipe, epochs=1), state.data.fingerprint[:SAME_FILES]


def prune(run: str | Path, keep: int) -> list[int]:
    """Remove all but the newest `keep` checkpoints and the best one; what can't be read is left alone. Returns the
    steps removed.

    What an earlier removal left is removed first. Raises OSError where one can't be removed.
    """
    recover(run)
    states = _states(run)
    best_checkpoint = _best(states)
    survivors = {*list(states)[-keep:], *([best_checkpoint[0]] if best_checkpoint else [])}
    surplus = [step for step in states if step not in survivors]
    for step in surplus:
        directory = listing(run)[step]
        remains = directory.with_name(f"{PARTIAL}{step:08d}")
        durable_files.rename(directory, remains)
        durable_files.remove(remains)
    return surplus


def set_aside(directory: Path) -> Path:
    """Rename a damaged checkpoint, so that the run that goes on from an older one can come to its step again. Raises
    OSError."""
    target = directory.with_name(DAMAGED + directory.name)
    durable_files.remove(target)
    durable_files.rename(directory, target)
    return target


def _states(run):
    """{step: `State`} of the checkpoints whose state can be read, oldest first."""
    states = {}
    for step, directory in listing(run).items():
        with suppress(UserError):
            states[step] = checkpoint_format.read_state(directory)
    return states
