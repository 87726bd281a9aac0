"""The paper's test protocol: top-1 and top-5 error on the centre view and on ten views; of a run or several averaged.

examples
  python -m alexnet_mp.evaluate RUN
  python -m alexnet_mp.evaluate runs/2026-11-23-101500-paper --data /data/ilsvrc2012 --split val --gpus 0,1
  python -m alexnet_mp.evaluate RUN RUN RUN                          their probabilities averaged
  python -m alexnet_mp.evaluate RUN RUN --weights 2 1                the first counts twice
  python -m alexnet_mp.evaluate RUN RUN --weights validation --split test --submission FILE
  python -m alexnet_mp.evaluate RUN --per-class FILE.csv --confusion FILE.csv
  python -m alexnet_mp.evaluate RUN --features fc7 --split train --out FILE.npz   what a layer says of every picture
  torchrun --nproc-per-node 2 -m alexnet_mp.evaluate RUN --gpus 0,1,2,3        two pairs of towers, the same numbers

A submission has a line for each image: its five most probable classes, most probable first, as ILSVRC numbers them
(ILSVRC2012_ID) where the data set knows these numbers, else numbered from 1. Files are about all views, or of --views
centre about that one. Of classes that tie, the first one counts as more probable there; in errors such an image counts
in part. Features are of the centre view, in the order of the split: `features` (N, maps, height, width) or (N, units),
`labels` (N,)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .command_options import add_machine_options, compute_as_in_training
from .data import synsets
from .data.synsets import in_words
from .evaluation import ensemble_weights, layer_features, per_class, submission
from .evaluation.ensembles import evaluate_runs, open_runs, print_answers
from .evaluation.trained import class_words, trained
from .system import durable_files
from .system.command_line import command_parser
from .system.errors import UserError, run_command
from .system.job import joined
from .system.launcher import spoken_by_the_first
from .system.terminal import say


def main(arguments: Sequence[str] | None = None) -> int:
    with spoken_by_the_first():
        options = _parser().parse_args(arguments)
    with joined(apart=False) as ranks:
        _evaluate(options, ranks)
    return 0


def _evaluate(options, ranks):
    weights, outputs = _weights_and_outputs(options, ranks)
    compute_as_in_training()
    runs = _runs(options, weights, ranks)
    if options.features is not None:
        shape = layer_features.write_features(runs[0], options.split, options.features, options.out)
        say(f"{options.out}: features {shape}, labels {shape[:1]}")
        return
    dataset, images = runs[0].dataset, runs[0].dataset.splits[options.split]
    if (images.labels < 0).any() and set(outputs) != {"--submission"}:
        raise UserError(
            f"the {options.split} images of {dataset.source} have no labels: all that can be made is --submission FILE"
        )
    order = submission.order(images.names) if options.submission else None
    class_names = dataset.class_names or class_words(options.runs[0], dataset.classes)
    words = in_words(dataset.classes, class_names, options.synsets)
    test = evaluate_runs(runs, options.split, weights, options.views or "ten", bool(outputs))
    if len(runs) > 1:
        shares = "all equal" if len(set(test.weights)) == 1 else " ".join(f"{weight:.4g}" for weight in test.weights)
        say(f"average of {len(runs)} runs, weights {shares}:")
    print_answers(test.average, options.split, len(dataset.classes))
    if ranks.writes:
        _write_files(options, dataset, list(test.average.values())[-1], order, words)


def _weights_and_outputs(options, ranks):
    """(weights of the RUNs, or "validation"; {flag: the file it names}). Raises UserError for what can't be meant."""
    if options.weights is not None and len(options.runs) == 1:
        raise UserError("--weights: there is a single RUN, and nothing to be averaged")
    weights = ensemble_weights.parse_weights(options.weights, len(options.runs))
    outputs = {"--submission": options.submission, "--per-class": options.per_class, "--confusion": options.confusion}
    outputs = {flag: path for flag, path in outputs.items() if path is not None}
    for flag, path in outputs.items() if ranks.writes else ():
        durable_files.refuse_output(flag, path)
    if len({Path(path).absolute() for path in outputs.values()}) < len(outputs):
        raise UserError(f"{' and '.join(outputs)} name the same file; each needs its own")
    if options.synsets is not None and options.per_class is None:
        raise UserError("--synsets: words are for --per-class FILE.csv")
    if options.features is not None or options.out is not None or options.split == "train":
        _refuse_features(options, outputs, ranks)
    return weights, outputs


def _runs(options, weights, ranks):
    """The `Run`s, with the protocols that are asked for."""
    splits = dict.fromkeys((options.split, "val")) if weights == "validation" else (options.split,)
    runs = open_runs(
        options.runs,
        options.data,
        tuple(splits),
        options.gpus,
        options.kernels,
        options.pipeline,
        options.workers,
        options.batch_size,
        ranks,
    )
    if options.views == "centre":
        return [replace(run, protocols=dict([*run.protocols.items()][:1])) for run in runs]
    return runs


def _write_files(options, dataset, answers, order, words):
    """answers: the `Answers` that files are about. order: of the submission. words: the classes' names for a person."""
    if options.submission:
        _write(options.submission, submission.text(order, dataset.ids, answers.top))
        say(f"{options.submission}: {submission.describe(order, dataset.ids)}")
    if options.per_class or options.confusion:
        counts = per_class.confusion(answers.labels, answers.top[:, 0], len(dataset.classes))
    if options.per_class:
        _write(options.per_class, per_class.table(dataset.classes, answers, counts, words))
    if options.confusion:
        _write(options.confusion, per_class.confusion_table(dataset.classes, counts))


def _refuse_features(options, outputs, ranks):
    """Raise UserError for what does not go with --features, or does not go without."""
    if options.features is None and options.out is None:
        raise UserError("--split train is for --features LAYER --out FILE; tests are of val or test")
    if options.features is None or options.out is None:
        raise UserError("--features LAYER and --out FILE go together")
    conflicts = [*outputs, *(["--weights"] if options.weights is not None else [])]
    if options.views == "ten":
        raise UserError("--features are of the centre view, and --views ten is for tests")
    if len(options.runs) > 1 or ranks.count > 1 or conflicts:
        raise UserError(
            f"--features is of one RUN, in one process, alone{''.join(f', without {flag}' for flag in conflicts)}"
        )
    layer_features.refuse_out(options.out)
    layer_features.refuse_layer(trained(options.runs[0]).recipe, options.features)


def _write(path, text):
    durable_files.write_output(path, text.encode(errors="surrogateescape"))  # the name of a class may be no UTF-8


def _parser():
    parser = command_parser("evaluate", __doc__)
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="the directory of a run; of several, the average is tested too"
    )
    parser.add_argument(
        "--data", help="DIR with val/<class>/* or test/<class>/*, or builtin; default: what it was trained on"
    )
    parser.add_argument(
        "--split", choices=("val", "test", "train"), default="val", help="default: val; train for --features alone"
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        metavar="W",
        help="of the average, one for each RUN, or the word validation: those with the least top-5 error on the "
        "validation images, or top-1 error of five classes or fewer, searched for as in 2012; default: all equal",
    )
    parser.add_argument(
        "--views",
        choices=("ten", "centre"),
        help="centre: test the centre view alone; default: ten, the centre view and then all views of the recipe's "
        "test, be they ten, nine or one, which files and chosen weights are about",
    )
    parser.add_argument(
        "--submission",
        metavar="FILE",
        help="write each image's five most probable classes in the format of ILSVRC-2012's test",
    )
    parser.add_argument(
        "--per-class", metavar="FILE.csv", help="write each class's errors, and what it is most often taken for"
    )
    parser.add_argument("--synsets", metavar="FILE|SET", help=synsets.HELP)
    parser.add_argument(
        "--confusion",
        metavar="FILE.csv",
        help="write how many images of each class (rows) are taken for which class (columns)",
    )
    parser.add_argument(
        "--features", metavar="LAYER", help="write the layer's output, as of conv5, fc6, fc7, and no test"
    )
    parser.add_argument("--out", metavar="FILE", help="of --features: a new .npz or .safetensors")
    add_machine_options(parser)
    parser.add_argument("--batch-size", type=int, help="images at a time; default: the recipe's")
    return parser


if __name__ == "__main__":
    run_command(main, several=True)
