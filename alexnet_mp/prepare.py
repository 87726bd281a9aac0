"""Make the training set once: every image as a small square picture, packed into tar shards with an index.

examples
  python -m alexnet_mp.prepare /data/ilsvrc2012 /data/prepared  a folder of class folders or of archives
  python -m alexnet_mp.prepare PHOTOS DEST --val-fraction 0.1   a tenth of each class kept for validation
  python -m alexnet_mp.prepare SRC DEST --raw                   pixels, not JPEG: seven times the space
  python -m alexnet_mp.prepare SRC DEST --recipe mini           in the size of that recipe, 112
  python -m alexnet_mp.prepare --check /data/prepared           verify every image and checksum

The shorter side is rescaled to --size and the central square kept; --warp squeezes all of an image into the square. The
same command goes on where it was interrupted.
Train from the set with `python -m alexnet_mp.train --data DEST`; WebDataset tools read its shards."""

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from .data.limits import refuse_workers
from .data.prepared_format import MOST_PIXELS
from .preparation import sources
from .preparation.build import make_plan, prepare, refuse_unusable
from .preparation.check import check
from .recipes.named import PRESETS
from .system.command_line import command_parser, typed
from .system.errors import UserError, run_command
from .system.terminal import say


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    workers = len(os.sched_getaffinity(0)) if options.workers is None else options.workers
    refuse_workers(workers, "work in the main process")
    if options.check is not None:
        if options.src is not None:
            raise UserError("--check DIR takes no SRC and no DEST")
        return check(options.check, workers)
    for what, path in (("SRC", options.src), ("DEST", options.dest)):
        if path == "":
            raise UserError(f"{what} is empty; write a path")
    if options.dest is None:
        raise UserError("prepare needs SRC and DEST, or --check DIR; --help shows examples")
    size, quality = _settings(options)
    dest = Path(options.dest)
    refuse_unusable(options.src, dest)
    src = Path(options.src).absolute()
    source = sources.find(src, options.val_fraction, say, options.unlabelled_test)
    say(f"source: {source.kind}")
    plan, kind = make_plan(source, size, quality, options.warp), source.kind.replace(str(src), src.name)
    try:
        with _terminations_as_ctrl_c():
            status = prepare(source, kind, plan, dest, options.bad_images == "skip", workers)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    if {"train", "val"} <= source.splits.keys() and (recipe := _recipe_options(options.recipe, size)) is not None:
        say(f"train from it: {typed('train', '--data', options.dest, *recipe)}")
    return status


def _recipe_options(recipe_name, size):
    """What `train` has to be told of the recipe to take pictures of this size: the one that was asked for, if they are
    in its size, else the smallest change. None where no recipe takes them."""
    sizes = {name: preset().stored_size for name, preset in PRESETS.items()}
    default = "paper" if torch.cuda.device_count() else "mini"
    if recipe_name != "paper" and sizes[recipe_name] == size:
        return () if recipe_name == default else ("--recipe", recipe_name)
    if sizes[default] <= size:  # larger ones are reduced
        return ()
    candidates = [name for name in PRESETS if sizes[name] <= size]
    return ("--recipe", max(candidates, key=sizes.get)) if candidates else None


@contextmanager
def _terminations_as_ctrl_c():
    """A scheduler's SIGTERM and a closed terminal end the work as Ctrl-C does: without debris."""
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    handlers = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _settings(options):
    """(size, quality) that the command line asks for; quality is None for raw pixels."""
    recipe = PRESETS[options.recipe]()
    size = recipe.stored_size if options.size is None else options.size
    quality = recipe.jpeg_quality if options.quality is None else options.quality
    if options.raw and options.quality is not None:
        raise UserError(f"--quality {options.quality}: raw pixels have none; leave out --raw or --quality")
    if not 1 <= size <= MOST_PIXELS:
        raise UserError(f"--size {size}: it must be 1 to {MOST_PIXELS} pixels")
    if not 1 <= quality <= 100:
        raise UserError(f"--quality {quality}: it must be 1 to 100")
    return size, None if options.raw else quality


def _parser():
    parser = command_parser("prepare", __doc__)
    parser.add_argument(
        "src", metavar="SRC", nargs="?", help="a folder of class folders, ImageNet's archives, CIFAR-10"
    )
    parser.add_argument("dest", metavar="DEST", nargs="?", help="a new directory, or one to go on with")
    parser.add_argument("--check", metavar="DIR", help="verify a prepared set instead of making one")
    parser.add_argument(
        "--warp",
        action="store_true",
        help="squeeze all of an image into the square, as for Caffe's networks; default: the central square",
    )
    parser.add_argument("--raw", action="store_true", help="store pixels; default: JPEG")
    parser.add_argument("--size", type=int, help="pixels a side; default: the recipe's stored_size")
    parser.add_argument("--quality", type=int, help="of the JPEGs, 1 to 100; default: the recipe's jpeg_quality")
    parser.add_argument(
        "--recipe", choices=tuple(PRESETS), default="paper", help="where the defaults come from; default: paper"
    )
    parser.add_argument(
        "--val-fraction",
        type=float,
        metavar="F",
        help="of each class, for validation, where SRC isn't split; default: 0.1; 0: none",
    )
    parser.add_argument(
        "--unlabelled-test",
        action="store_true",
        help="test images without labels too, ILSVRC-2012's or those in test/ itself: for `evaluate --submission`",
    )
    parser.add_argument(
        "--bad-images",
        choices=("stop", "skip"),
        default="stop",
        help="default: stop at the first unreadable image; skip: leave such images out and list them in the index",
    )
    parser.add_argument("--workers", type=int, help="processes; default: one for each core")
    return parser


if __name__ == "__main__":
    run_command(main)
