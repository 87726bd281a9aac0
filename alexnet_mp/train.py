"""Train AlexNet on two towers, then test it on one and on ten views.

examples
  python -m alexnet_mp.train                                            a first run: embedded pictures, best device
  python -m alexnet_mp.train --gpus 0,1 --data DIR                      the paper's network; DIR/{train,val}/<class>/*
  python -m alexnet_mp.train --gpus 0,1 --data DIR --recipe source2012  as the 2012 code ran it
  python -m alexnet_mp.train --gpus cpu --data DIR --steps 80           eighty steps without a GPU
  python -m alexnet_mp.train --data DIR --set learning_rate=0.005 --set conv3.init_std=0.03
  python -m alexnet_mp.train --data DIR --out RUN --resume auto    begins, or goes on where RUN stopped, bit for bit
  python -m alexnet_mp.train --data DIR --init RUN2                fine-tuning: begins with the weights of RUN2, fc8 new
  torchrun --nproc-per-node 2 -m alexnet_mp.train --towers apart --gpus 0,1 --data DIR     a process a tower
  torchrun --nproc-per-node 2 -m alexnet_mp.train --gpus 0,1,2,3 --data DIR                two pairs of towers, a batch
  python -m alexnet_mp.train --data DIR --dry-run                  what it would do, need and take; writes nothing
  torchrun --nproc-per-node 2 -m alexnet_mp.train --recipe owt2014 --gpus 0,1 --data DIR   images and units divided
  python -m alexnet_mp.train --data DIR --profile                  prints where a step's time went, layer by layer

The run directory (--out) gets run.json, metrics.jsonl, TensorBoard events, checkpoints/, curves.png and
conv1_kernels.png. Ctrl-C and SIGTERM finish the step, save and end with status 0; a second one stops at once, without
saving."""

import shlex
import sys
from collections.abc import Sequence

from .command_options import add_machine_options
from .recipes.named import PRESETS
from .system import precision
from .system.command_line import command_parser
from .system.errors import run_command
from .system.launcher import spoken_by_the_first
from .training import dry_run, graphed_step, run
from .training.plan import Options
from .training.profiler import STEPS


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    with spoken_by_the_first():
        options = vars(_parser().parse_args(arguments))
    options["settings"] = tuple(options["settings"])
    action = dry_run.dry_run if options.pop("dry_run") else run.train
    action(Options(**options, command=shlex.join(["python", "-m", "alexnet_mp.train", *arguments])))
    return 0


def _parser():
    parser = command_parser("train", __doc__)
    add_machine_options(parser)
    parser.add_argument(
        "--precision",
        choices=precision.CHOICES,
        help="bf16: activations and their gradients in bfloat16, weights and velocity in float32; "
        "default: fp32, TF32 off; resumed, what the run had",
    )
    parser.add_argument(
        "--graphs",
        choices=graphed_step.CHOICES,
        default=Options.graphs,
        help="the step as CUDA graphs, with the same bits; on: an error where they can't be; default: "
        "auto, where both towers are on CUDA devices",
    )
    parser.add_argument(
        "--towers",
        choices=("together", "apart"),
        default=Options.towers,
        help="apart: each tower in a process of its own, as `torchrun --nproc-per-node 2` starts them; --gpus lists "
        "this machine's device for each process; default: both in one process, of which torchrun may start several, "
        "each with a part of every minibatch",
    )
    parser.add_argument(
        "--overlap",
        choices=("on", "off"),
        help="on: at a layer that reads both towers, each multiplies its own half while the other half travels, and "
        "adds the two products; off: it waits and makes one product, which rounds differently; default: on where the "
        "towers have two devices or processes; resumed, what the run had",
    )
    parser.add_argument(
        "--microbatch",
        type=int,
        metavar="M",
        help="compute a minibatch in pieces of M images, whose gradients are added in an order that depends on no "
        "number of processes: the same bits on 1, 2 and 4 pairs of towers, and less memory; 0: none; default: none; "
        "resumed, what the run had",
    )
    parser.add_argument(
        "--no-self-check",
        dest="self_check",
        action="store_false",
        help="on a GPU, don't compare kernels, crossings and the pipeline with the reference first",
    )
    parser.add_argument(
        "--data", metavar="DIR|builtin", help="default: builtin, drawn by the program; resumed, what the run had"
    )
    parser.add_argument(
        "--recipe",
        choices=tuple(PRESETS),
        help="default: paper on CUDA, mini on a CPU; resumed, that of the checkpoint",
    )
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a recipe field, LAYER.FIELD for one layer; repeatable; run.json has them all",
    )
    parser.add_argument("--out", metavar="DIR", help="the run directory; default: runs/<date-time>-<recipe>")
    parser.add_argument("--batch-size", type=int, help="images; default: the recipe's, 128")
    parser.add_argument("--epochs", type=int, help="default: the recipe's; its dates move with them")
    parser.add_argument(
        "--steps",
        type=int,
        help="stop after this step, counted from the run's beginning; before the recipe's end, no final test",
    )
    parser.add_argument("--seed", type=int, help="of weights, order, crops, colours, dropout; default: the recipe's, 0")
    parser.add_argument(
        "--resume",
        metavar="auto|PATH",
        help="auto: go on from the newest whole checkpoint in --out, from the beginning if there is "
        "none; PATH: from that run or checkpoint, in its run's directory or in a new --out",
    )
    parser.add_argument(
        "--init",
        metavar="RUN|CHECKPOINT|FILE",
        help="begin with the weights of a run, a checkpoint or a .safetensors file, in all layers of the same name "
        "but the last; a run that is resumed has begun already",
    )
    parser.add_argument(
        "--init-layers",
        metavar="LAYER,...",
        help="take these layers alone from --init, as in conv1,conv2; default: all of the same name but the last",
    )
    parser.add_argument(
        "--resume-anyway", action="store_true", help="go on although recipe, data or seed are no longer the same"
    )
    parser.add_argument(
        "--checkpoint-every",
        default=Options.checkpoint_every,
        metavar="STEPS|MINUTESm",
        help="as in 500 or 10m; and at every best validation, at the end and when stopped; default: "
        f"{Options.checkpoint_every}",
    )
    parser.add_argument(
        "--keep",
        type=int,
        default=Options.keep,
        metavar="K",
        help=f"the newest K checkpoints stay, and the best; default: {Options.keep}",
    )
    parser.add_argument(
        "--keep-every",
        type=int,
        metavar="STEPS",
        help="keep the first layer's weights before the first step and after every STEPS, for the report to show how "
        "figure 3 grows; default: none are kept",
    )
    parser.add_argument(
        "--on-save-error",
        choices=("continue", "stop"),
        default=Options.on_save_error,
        help="what happens where a checkpoint can't be written; default: continue, loudly, and try again",
    )
    parser.add_argument(
        "--profile",
        nargs="?",
        const=str(STEPS),
        metavar="STEPS",
        help="record STEPS steps after the first three, and print where their time went, layer by layer, against the "
        f"roofline; the trace goes into --out; default: {STEPS} steps",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say what the run would do, the memory of a tower, the bytes of a step, and about how long it would take, "
        "from three steps; write nothing",
    )
    return parser


if __name__ == "__main__":
    run_command(main, several=True)
