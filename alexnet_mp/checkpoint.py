"""The checkpoints of a run: `RUN/checkpoints/step_XXXXXXXX/`, whole or not at all. `checkpoint_format.py` says what is in one.

examples
  python -m alexnet_mp.checkpoint RUN                               list them and compare every file with its checksum
  python -m alexnet_mp.checkpoint RUN --weights FILE.safetensors    export the newest weights; --step N or --best chooses others
  python -m alexnet_mp.checkpoint RUN --prune 1                     keep the newest one and the best
"""
import argparse
import os
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save

from . import checkpoint_format, files
from .console import say
from .errors import UserError, run_command
from .run_lock import RunLock

CHECKPOINTS = "checkpoints"
PARTIAL, REPLACED, DAMAGED = ".partial_", ".replaced_", "damaged_"  # a directory that is not, no longer, or never again a checkpoint


# Why no crash loses a checkpoint, whatever its moment:
# 1. Everything is written into .partial_N, a name that no reader takes for a checkpoint, and synced file by file, the manifest last,
#    then the directory. Until here the old checkpoints are untouched; what a crash leaves is removed by the next start.
# 2. One rename makes it step_N, and the parent directory is synced. A rename is atomic: a reader sees all of it or nothing.
# 3. Only then are older ones removed, and never the newest or the best; each is first renamed to .partial_M, so that one that is
#    half removed is no checkpoint either.
# 4. Where step_N is there already (a run that was stopped within a validation, and saves again after it), it first becomes .replaced_N.
#    A crash between the two renames leaves .replaced_N alone: readers take it for step_N, and the next start renames it back
#    (`recover`).
# 5. Should a disk lie about a sync, the sha256 of every file in the manifest tells, and the one before is taken.
def put(run, checkpoint):
    """Write a checkpoint of a run and return its directory.

    Raises OSError, with nothing half written left and the old ones untouched. Where only the last sync fails, the new one stays if
    there was none of its step: it is whole, but may not outlive a power cut.
    """
    parent = Path(run) / CHECKPOINTS
    with suppress(FileExistsError):
        files.make_directory(parent)
    files.sync(run)
    number = f"{checkpoint.state.step:08d}"
    final, partial, replaced = parent / f"step_{number}", parent / (PARTIAL + number), parent / (REPLACED + number)
    files.remove(partial)
    _clear(replaced, final)  # a removal that failed before
    try:
        checkpoint_format.write(partial, checkpoint)
        if os.path.lexists(final):
            files.rename(final, replaced)
        files.rename(partial, final)
    except BaseException:
        with suppress(OSError):
            if os.path.lexists(replaced) and os.path.lexists(final):  # the new one got its name; the old one is surely on the disk
                files.rename(final, partial)
        with suppress(OSError):
            _clear(replaced, final)
        with suppress(OSError):
            files.remove(partial)
        raise
    with suppress(OSError):  # the next start removes it
        files.remove(replaced)
    return final


def recover(run):
    """Clear away what a crash left of a save. To be called with the run's lock held. Raises OSError."""
    parent = Path(run) / CHECKPOINTS
    if parent.is_dir():
        for name in sorted(os.listdir(parent)):
            if name.startswith(PARTIAL):
                files.remove(parent / name)
            elif name.startswith(REPLACED):
                _clear(parent / name, parent / f"step_{name.removeprefix(REPLACED)}")


def _clear(replaced, final):
    """Give a checkpoint its name back, or remove it where a new one has the name."""
    if os.path.lexists(replaced) and not os.path.lexists(final):
        files.rename(replaced, final)
    files.remove(replaced)


def listing(run):
    """{step: directory} of a run's checkpoints, oldest first, damaged ones among them. Raises UserError where they can't be listed."""
    parent = Path(run) / CHECKPOINTS
    try:
        names = os.listdir(parent)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"cannot list {parent}: {error.strerror}") from None
    found = {step_of(name): parent / name for name in names}
    # A crash, or this moment, lies between the two renames: what is to be replaced is the newest whole one.
    for name in names:
        if name.startswith(REPLACED):
            found.setdefault(step_of(f"step_{name.removeprefix(REPLACED)}"), parent / name)
    found.pop(None, None)
    return dict(sorted(found.items()))


def step_of(directory):
    """500 for .../step_00000500, None for what is named otherwise."""
    match = re.fullmatch("step_([0-9]{8}|[1-9][0-9]{8,11})", Path(directory).name)
    return int(match[1]) if match else None


def newest(run):
    """The directory of a run's newest checkpoint. Raises UserError where there is none."""
    found = listing(run)
    if not found:
        raise UserError(f"{run}: no checkpoint in it (expected {run}/{CHECKPOINTS}/step_XXXXXXXX/)")
    return found[max(found)]


def newest_weights(run):
    """(directory, weights) of a run's newest checkpoint."""
    return from_newest(run, checkpoint_format.load_weights)


def from_newest(run, read):
    """(directory, read(directory)) of a run's newest checkpoint; where the run removes or replaces it meanwhile, of the one after it."""
    while True:
        directory = newest(run)
        before = _identity(directory)
        try:
            return directory, read(directory)
        except UserError:
            if before == _identity(newest(run)):
                raise


def _identity(directory):
    with suppress(OSError):
        return directory, os.stat(directory).st_ino
    return None  # it is gone already


def best(run):
    """(step, `State`) of the checkpoint with the lowest top-1 validation error, the earliest of equals; None if none was validated."""
    return _best(_states(run))


def _best(states):
    now = _what_was_trained(states[max(states)]) if states else None  # errors on other data, with --resume-anyway, compare with nothing
    validated = [(state.validation.top1_error, step, state) for step, state in states.items()
                 if state.validation and _what_was_trained(state) == now]
    return min(validated, key=lambda entry: entry[:2])[1:] if validated else None


def _what_was_trained(state):
    return replace(state.recipe, epochs=1), state.data.fingerprint


def prune(run, keep):
    """Remove all but the newest `keep` checkpoints and the best one; what can't be read is left alone. Returns the steps removed.

    What an earlier removal left is removed first. Raises OSError where one can't be removed.
    """
    recover(run)
    states = _states(run)
    first = _best(states)
    stay = {*list(states)[-keep:], *([first[0]] if first else [])}
    removed = [step for step in states if step not in stay]
    for step in removed:
        directory = listing(run)[step]
        partial = directory.with_name(f"{PARTIAL}{step:08d}")
        files.rename(directory, partial)
        files.remove(partial)
    return removed


def set_aside(directory):
    """Rename a damaged checkpoint, so that the run that goes on from an older one can come to its step again. Raises OSError."""
    aside = directory.with_name(DAMAGED + directory.name)
    files.remove(aside)
    files.rename(directory, aside)
    return aside


def _states(run):
    """{step: `State`} of the checkpoints whose state can be read, oldest first."""
    states = {}
    for step, directory in listing(run).items():
        with suppress(UserError):
            states[step] = checkpoint_format.read_state(directory)
    return states


def main(arguments=None):
    options = _parser().parse_args(arguments)
    if not options.run or not Path(options.run).is_dir():
        raise UserError(f"{options.run or repr('')} is not a directory; give the directory of a run")
    if options.weights is None and (options.best or options.step is not None):
        raise UserError("--step and --best say which weights --weights FILE exports; without it they mean nothing")
    if options.weights is not None:
        _export(options)
    elif options.prune is not None:
        _prune(options)
    else:
        _list(options.run)
    return 0


def _list(run):
    found, first, damaged = listing(run), best(run), 0
    if not found:
        newest(run)  # says what is missing
    for step, directory in found.items():
        try:
            state = checkpoint_format.verify(directory)
            size = sum(os.lstat(directory / name).st_size for name in os.listdir(directory)) / 1e6
        except (UserError, OSError) as error:
            if not os.path.lexists(directory):  # a run at work has removed it meanwhile
                continue
            damaged += 1
            say(f"step {step:>9,}  DAMAGED: {error}")
            continue
        if state is None:
            say(f"step {step:>9,}  {size:8,.1f} MB  whole, weights alone (format 0): to be evaluated, not resumed")
            continue
        validation = (f"top-1 error {state.validation.top1_error:6.2f} %, top-5 error {state.validation.top5_error:6.2f} %"
                      if state.validation else "not validated at this step")
        say(f"step {step:>9,}  {size:8,.1f} MB  whole, epoch {state.epoch}, saved {state.saved}, {validation}"
            + (", the best" if first and step == first[0] else ""))
    if damaged:
        raise UserError(f"{damaged} of the {len(found)} checkpoints of {run} are damaged; --resume auto takes the newest whole one")


def _export(options):
    found, target = listing(options.run), Path(options.weights)
    if options.best:
        first = best(options.run)
        if first is None:
            raise UserError(f"{options.run}: no checkpoint was saved right after a validation, so none is the best")
        directory = found[first[0]]
    elif options.step is not None:
        if options.step not in found:
            raise UserError(f"--step {options.step}: the checkpoints of {options.run} are of steps {', '.join(map(str, found)) or '(none)'}")
        directory = found[options.step]
    else:
        directory = None
    if os.path.lexists(target):
        raise UserError(f"--weights {target} is there already; choose another name")
    if (Path(options.run) / CHECKPOINTS).resolve() in target.resolve().parents:
        raise UserError(f"--weights {target}: what else lies in a checkpoint makes it count as damaged; choose another place")
    if directory:
        weights = checkpoint_format.load_weights(directory)
    else:
        directory, weights = newest_weights(options.run)
    try:
        files.replace(target, save(weights))
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}") from None
    say(f"{len(weights)} tensors of {directory} in {target}")


def _prune(options):
    if options.prune < 1:
        raise UserError(f"--prune {options.prune}: at least 1 must be kept")
    newest(options.run)
    lock = RunLock(options.run)
    try:
        recover(options.run)
        removed = prune(options.run, options.prune)
    except OSError as error:
        raise UserError(f"cannot remove {error.filename}: {error.strerror}") from None
    finally:
        lock.release()
    say(f"removed {len(removed)}: steps {', '.join(map(str, removed))}" if removed else "nothing to remove")


def _parser():
    parser = argparse.ArgumentParser(prog="python -m alexnet_mp.checkpoint", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="the directory of a run")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--weights", metavar="FILE", help="write the merged network's weights there, as safetensors")
    action.add_argument("--prune", type=int, metavar="K", help="keep the newest K and the best, remove the others")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, metavar="N", help="with --weights: those of this step")
    which.add_argument("--best", action="store_true", help="with --weights: those with the lowest top-1 validation error")
    return parser


if __name__ == "__main__":
    run_command(main)
