"""The checkpoints of a run: `RUN/checkpoints/step_XXXXXXXX/`, whole or not at all. `checkpoint_format.py` says what is
in one.

examples
  python -m alexnet_mp.checkpoint RUN                             list them and compare every file with its checksum
  python -m alexnet_mp.checkpoint RUN --weights FILE.safetensors  export the newest weights; or --step N, --best
  python -m alexnet_mp.checkpoint RUN --prune 1                   keep the newest one and the best
"""

import os
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save

from .evaluation.accuracy import FEW, percent, top5_tells
from .runs import checkpoint_format
from .runs.checkpoints import CHECKPOINTS, best, listing, newest, newest_weights, prune, recover
from .runs.lock import RunLock
from .system import durable_files
from .system.command_line import command_parser
from .system.errors import UserError, run_command
from .system.terminal import say


def main(arguments: Sequence[str] | None = None) -> int:
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
    directories, best_checkpoint, damaged_count, old_count = listing(run), best(run), 0, 0
    if not directories:
        newest(run)  # says what is missing
    for step, directory in directories.items():
        try:
            state = checkpoint_format.verify(directory)
            size = sum(os.lstat(directory / name).st_size for name in os.listdir(directory)) / 1e6
        except checkpoint_format.OldFormat as error:
            old_count += 1
            say(f"step {step:>9,}  {error}")
            continue
        except (UserError, OSError) as error:
            if not os.path.lexists(directory):  # a run at work has removed it meanwhile
                continue
            damaged_count += 1
            say(f"step {step:>9,}  DAMAGED: {error}")
            continue
        validation = (
            _errors(state.validation, len(state.data.classes)) if state.validation else "not validated at this step"
        )
        say(
            f"step {step:>9,}  {size:8,.1f} MB  whole, epoch {state.epoch}, saved {state.saved}, {validation}"
            + (", the best" if best_checkpoint and step == best_checkpoint[0] else "")
            + ("; 95 % intervals" if state.validation and state.validation.images < FEW else "")
        )
    if damaged_count:
        raise UserError(
            f"{damaged_count} of the {len(directories)} checkpoints of {run} are damaged; "
            "--resume auto takes the newest whole one"
        )
    if old_count:
        raise UserError(
            f"{old_count} of the {len(directories)} checkpoints of {run} have a format that is no longer read"
        )


def _errors(validation, classes):
    """In words, as training printed them."""
    top5 = f", top-5 error {percent(validation.top5_error, validation.images, 6)}" if top5_tells(classes) else ""
    return f"top-1 error {percent(validation.top1_error, validation.images, 6)}{top5}"


def _export(options):
    directories, target = listing(options.run), Path(options.weights)
    if options.best:
        best_checkpoint = best(options.run)
        if best_checkpoint is None:
            raise UserError(f"{options.run}: no checkpoint was saved right after a validation, so none is the best")
        directory = directories[best_checkpoint[0]]
    elif options.step is not None:
        if options.step not in directories:
            raise UserError(
                f"--step {options.step}: the checkpoints of {options.run} are of steps "
                f"{', '.join(map(str, directories)) or '(none)'}"
            )
        directory = directories[options.step]
    else:
        directory = None
    durable_files.refuse_output("--weights", target)
    if Path(os.path.realpath(Path(options.run) / CHECKPOINTS)) in Path(os.path.realpath(target)).parents:
        raise UserError(
            f"--weights {target}: what else lies in a checkpoint makes it count as damaged; choose another place"
        )
    if directory:
        weights = checkpoint_format.load_weights(directory)
    else:
        directory, weights = newest_weights(options.run)
    durable_files.write_output(target, save(weights))
    say(f"{len(weights)} tensors of {directory} in {target}")


def _prune(options):
    if options.prune < 1:
        raise UserError(f"--prune {options.prune}: at least 1 must be kept")
    newest(options.run)
    lock = RunLock(options.run)
    try:
        recover(options.run)
        steps = prune(options.run, options.prune)
    except OSError as error:
        raise UserError(f"cannot remove {error.filename}: {error.strerror}") from None
    finally:
        lock.release()
    say(f"removed {len(steps)}: steps {', '.join(map(str, steps))}" if steps else "nothing to remove")


def _parser():
    parser = command_parser("checkpoint", __doc__)
    parser.add_argument("run", metavar="RUN", help="the directory of a run")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--weights", metavar="FILE", help="write the merged network's weights there, as safetensors")
    action.add_argument("--prune", type=int, metavar="K", help="keep the newest K and the best, remove the others")
    selection = parser.add_mutually_exclusive_group()
    selection.add_argument("--step", type=int, metavar="N", help="with --weights: those of this step")
    selection.add_argument(
        "--best", action="store_true", help="with --weights: those with the lowest top-1 validation error"
    )
    return parser


if __name__ == "__main__":
    run_command(main)
