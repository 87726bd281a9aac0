"""A network that was made elsewhere, as a directory that evaluate, predict, report, retrieve and train --init take.

examples
  python -m alexnet_mp.convert bvlc_alexnet.caffemodel OUT --mean mean.binaryproto --classes synset_words.txt
  python -m alexnet_mp.convert bvlc_reference_caffenet.caffemodel OUT   mean and classes from the folder it lies in
  python -m alexnet_mp.convert TENSORS OUT --recipe paper --mean 123.7,116.8,103.9 --classes names.txt
  python -m alexnet_mp.convert ARRAYS OUT --mean mean.npy               arrays named by layer, as of cuda-convnet
  python -m alexnet_mp.convert HUB OUT                                  a folder that export --to hub wrote
  python -m alexnet_mp.convert --border OUT --data DIR                  what the towers' border would change in it

What a file is, its name's ending says: .caffemodel, .safetensors, .npz; or a folder of tensors or arrays. The layout
of arrays is in docs/interchange.md. Nothing in a file is run, and what doesn't fit is refused in one line. Caffe's
networks were trained and tested on pictures squeezed into a square: prepare --warp makes such a set."""

import os
import shlex
import sys
from collections.abc import Sequence

from .command_options import add_run_options, compute_as_in_training
from .data.dataset import open_dataset
from .evaluation.predict_images import centre_images
from .evaluation.trained import load_run
from .interchange.convert import convert
from .interchange.converted_run import write_run
from .interchange.lrn_border import border_difference
from .recipes.named import PRESETS
from .system import durable_files
from .system.command_line import command_parser, typed
from .system.errors import UserError, run_command
from .system.terminal import say

MOST_PICTURES = 64  # that --border looks at


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    if options.border is not None:
        if options.source is not None:
            raise UserError("--border RUN takes no FILE and no OUT")
        _refuse_given(options, ("recipe", "set", "mean", "classes"), "for FILE and OUT, not for --border")
        return _border(options)
    _refuse_given(options, ("data", "gpus", "kernels"), "for --border RUN alone")
    for what, path in (("FILE", options.source), ("OUT", options.out)):
        if not path:
            raise UserError(f"convert needs FILE and OUT, and {what} is missing; --help shows examples")
    if os.path.lexists(options.out):
        raise UserError(f"OUT {options.out}: it is there already; choose another name")
    durable_files.refuse_unwritable("OUT", options.out)
    network = convert(options.source, options.recipe, options.set, options.mean, options.classes, say)
    write_run(options.out, network, shlex.join(["python", "-m", "alexnet_mp.convert", *arguments]))
    say(f"wrote {options.out}; try it: {typed('predict', options.out, 'PICTURE')}")
    return 0


def _refuse_given(options, names, what):
    """Raise UserError for an option that says nothing of what is asked for."""
    for name in names:
        if getattr(options, name) != _parser().get_default(name):
            raise UserError(f"--{name} is {what}")


def _border(options):
    compute_as_in_training()
    network, training = load_run(options.border, options.gpus, options.kernels)
    split = open_dataset(options.data, network.recipe.stored_size, ("val",)).splits["val"]
    pictures = [split.read(number) for number in range(min(len(split), MOST_PICTURES))]
    difference = border_difference(network, centre_images(network, training.statistics, pictures))
    for layer in difference.layers:
        maps = f"maps {', '.join(map(str, layer.maps))} of {layer.of}" if layer.maps else f"none of {layer.of} maps"
        say(f"{layer.layer}: the border changes {maps}, by {layer.mean:.2%} in the mean, {layer.largest:.2%} at most")
    say(
        f"{difference.pictures} pictures: logits differ by {difference.logits:.3g} at most, probabilities by "
        f"{difference.probability:.2e}; {difference.other_answers} have another most probable class"
    )
    return 0


def _parser():
    parser = command_parser("convert", __doc__)
    parser.add_argument("source", metavar="FILE", nargs="?", help="a network: a file, or a folder")
    parser.add_argument("out", metavar="OUT", nargs="?", help="a new directory, made with the ones above it")
    parser.add_argument(
        "--recipe",
        choices=tuple(PRESETS),
        help="the network it is of; default: Caffe's by the order of norm1 and pool1, source2012 of arrays",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="change a field of the recipe"
    )
    parser.add_argument(
        "--mean",
        metavar="FILE|R,G,B",
        help="the mean image: Caffe's .binaryproto, .npy (height, width, 3), statistics.safetensors of a run, or grey "
        "levels; default: one that lies beside the weights",
    )
    parser.add_argument(
        "--classes",
        metavar="FILE",
        help="a line a class, in the order of the outputs, as in synset_words.txt; default: synset_words.txt or "
        "classes.txt beside the weights",
    )
    parser.add_argument(
        "--border", metavar="RUN", help="measure what the towers' border would change in a converted run"
    )
    parser.add_argument("--data", metavar="DIR", default="builtin", help="of --border: pictures; default: builtin")
    add_run_options(parser)
    return parser


if __name__ == "__main__":
    run_command(main)
