"""A network that was trained here, for use elsewhere: plain PyTorch, ONNX, a folder for the Hugging Face hub, or a
program of torch.export.

examples
  python -m alexnet_mp.export RUN --to torch FOLDER           a file of torch.nn to read, and its weights
  python -m alexnet_mp.export RUN --to onnx FILE.onnx         opset 20, any number of pictures
  python -m alexnet_mp.export RUN --to hub FOLDER             alexnet_mp.from_pretrained(FOLDER) reads it
  python -m alexnet_mp.export RUN --to hub FOLDER --half --synsets synset_words.txt
  python -m alexnet_mp.export RUN --to hub FOLDER --data SET  with means, so that predict --page can show a tower off
  python -m alexnet_mp.export RUN --to hub FOLDER --push OWNER/NAME
  python -m alexnet_mp.export RUN --to torch.export FILE.pt2

Each takes stored pictures, (N, 256, 256, 3) uint8 in RGB for the paper's network, and gives logits: crop and mean image
are inside, and what a test halves is in the weights. Each is read back and compared with our own logits on ten
pictures; what differs by more than 1e-4 of the largest logit is not kept. docs/interchange.md tells more."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from .analysis.layer_outputs import unit_means_of
from .command_options import add_run_options, compute_as_in_training
from .data import synsets
from .data.dataset import open_dataset
from .interchange import hub
from .interchange.export import FORMATS, export
from .runs.directory import read_run
from .runs.unit_means import UNIT_MEANS
from .system.command_line import command_parser
from .system.errors import UserError, run_command
from .system.terminal import say


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.push is not None:
        if options.to != "hub":
            raise UserError(f"--push is for --to hub, not for --to {options.to}")
        hub.need_hub()
    means = None
    if options.data is not None:
        if options.to != "hub":
            raise UserError(f"--data is for --to hub, not for --to {options.to}")
        dataset = open_dataset(options.data, read_run(options.run)["recipe"].stored_size, ("val",))
        means = partial(unit_means_of, dataset=dataset)
    compute_as_in_training()
    difference = export(
        options.run,
        options.to,
        options.out,
        options.gpus,
        options.kernels,
        fused=options.fused,
        half=options.half,
        synsets=options.synsets,
        means=means,
    )
    say(f"wrote {options.out}: {difference}")
    if options.half and means is None and (Path(options.run) / UNIT_MEANS).exists():
        say("without the run's unit means, which are of weights that were not rounded; --data SET computes others")
    if options.push is not None:
        say(f"pushed: {hub.push(Path(options.out), options.push)}")
    return 0


def _parser():
    parser = command_parser("export", __doc__)
    parser.add_argument("run", metavar="RUN", help="the directory of a run; its newest weights are exported")
    parser.add_argument("out", metavar="OUT", help="a new file or folder; a folder of the same kind is replaced")
    parser.add_argument("--to", choices=FORMATS, required=True, help="what to write")
    parser.add_argument(
        "--push", metavar="OWNER/NAME", help="of hub: upload the folder, by the package huggingface_hub"
    )
    parser.add_argument(
        "--fused",
        action="store_true",
        help="of torch.export: with the compiled operators of alexnet_mp.kernels, which has to be imported before the "
        "program is loaded; default: PyTorch's operations alone",
    )
    parser.add_argument(
        "--half", action="store_true", help="of hub: weights rounded to float16, half as large; default: as they are"
    )
    parser.add_argument(
        "--data",
        metavar="DIR|builtin",
        help="of hub: keep the mean of each unit over val pictures of these, which stands for a tower that is off; "
        "default: those that the run came with, if any",
    )
    parser.add_argument("--synsets", metavar="FILE|SET", help=synsets.HELP)
    add_run_options(parser)
    return parser


if __name__ == "__main__":
    run_command(main)
