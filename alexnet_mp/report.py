"""One page on what a network learned: both towers' kernels, how they specialised, training, exchange, answers,
neighbours.

examples
  python -m alexnet_mp.report RUN --data DIR                               makes RUN/report/index.html
  python -m alexnet_mp.report RUN0 RUN1 RUN2 --data DIR --out report       the first in full, all for the specialisation
  python -m alexnet_mp.report RUN --data DIR --kernel-scale kernel --sort  kernels brightened by themselves, grey first

The page loads nothing and needs no script; its pictures are in it, and beside it as PNGs. Runs of one tower, and runs
whose towers have no links, are taken as controls. What the retrieval needs is made where it is missing, as by `python
-m alexnet_mp.retrieve index`. A run whose own data can't be read, as of a converted network, gets a page without what
needs pictures. In a directory that has a report already the page and its pictures are replaced."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from .analysis.altered_pictures import ALTERATIONS
from .analysis.figure_4 import MOST_ANSWERED, guesses, some_of, told_apart
from .analysis.growth import growth
from .analysis.layer_outputs import links
from .analysis.lesions import kernel_lesions, lesions
from .analysis.sight import class_leanings, colour_division, sight
from .analysis.similarity import most_pictures
from .analysis.specialisation import first_layer
from .command_options import add_machine_options, compute_as_in_training
from .data import synsets
from .data.dataset import DataOfRunMissing, evenly
from .data.synsets import in_words
from .evaluation.ensembles import open_runs
from .evaluation.trained import class_words, load_run
from .reporting import page
from .reporting.answers import ANSWERS, NEAREST, figure_4_left, figure_4_right
from .reporting.code_lengths import BITS, short_codes
from .reporting.code_lengths import PART as CODES
from .reporting.exchange import exchange
from .reporting.first_layer import SCALES, figure_3, specialisation
from .reporting.growth import growing
from .reporting.headline import headline
from .reporting.lesions import PART as LESIONS
from .reporting.lesions import lesions as lesions_part
from .reporting.memory import memory
from .reporting.pages_of_runs import named, page_directory
from .reporting.provenance import devices_of, provenance
from .reporting.sight import PART as SIGHT
from .reporting.sight import sight as sight_part
from .reporting.similarity import PART as SIMILARITY
from .reporting.similarity import Pictures, similarity
from .reporting.training import training
from .retrieval.build import build_index
from .retrieval.index import SPLITS
from .runs.checkpoint_format import read_state
from .runs.checkpoints import from_newest
from .runs.directory import read_run
from .runs.metrics import sound_metrics
from .system.command_line import command_parser
from .system.errors import UserError, run_command
from .system.terminal import progress, say


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    compute_as_in_training()
    if options.pictures < 1:
        raise UserError(f"--pictures {options.pictures}: it must be at least 1")
    shown, runs = options.runs[0], named(options.runs)
    described, lines = read_run(shown), sound_metrics(shown)
    layers = {
        name: (*first_layer(directory), bool(links(read_run(directory)["recipe"]))) for name, directory in runs.items()
    }
    _refuse_equals(layers)
    out = Path(shown) / "report" if options.out is None else Path(options.out)
    before = page_directory(out)
    with suppress(OSError):
        out.rmdir()  # empty: made to see whether it can be, and not left behind by what is refused now
    opened, missing = _data(options)
    if opened is not None:
        in_words(opened.dataset.classes, opened.dataset.classes, options.synsets)  # refused before the index is made
    pictures = opened if opened is None or options.split in SPLITS else _opened(options, (options.split,))
    index = None if opened is None else _index(options)
    network, found = load_run(shown, options.gpus, options.kernels)
    recipe = found.recipe
    own_words = class_words(shown, found.classes) if index is None else index.described.source.class_names
    words = in_words(found.classes, own_words, options.synsets)
    names = told_apart(found.classes, words)
    said = None if pictures is None else _answers(options, network, found.statistics, pictures)
    out.mkdir(parents=True, exist_ok=True)
    page.begin(out / page.NAME)
    name, (kernels, towers, _) = next(iter(layers.items()))
    step = int(found.checkpoint.name.rpartition("_")[2])
    if pictures is None:
        say(f"{missing}; the parts that need pictures are left out")
        likeness, *of_towers = (_left_out(part, missing) for part in (SIMILARITY, LESIONS, SIGHT))
        of_pictures = [_left_out(part, missing) for part in (ANSWERS, NEAREST, CODES)]
    else:
        split, (numbers, guessed) = pictures.dataset.splits[options.split], said
        compared = [split.read(numbers[place]) for place in evenly(len(numbers), most_pictures(recipe))]
        likeness = similarity(
            out,
            shown,
            step,
            network,
            found.statistics,
            dict(list(runs.items())[1:]),
            Pictures(compared, options.split, pictures.batch_size),
            options.gpus,
            options.kernels,
        )
        of_towers = _of_towers(out, network, found.statistics, split, options, kernels, names)
        of_pictures = [
            figure_4_left(out, guessed, numbers, split, options.split, names),
            figure_4_right(out, index, opened.dataset, words),
            short_codes(out, index, options.speed),
        ]
    parts = [
        figure_3(out, kernels, towers, options.kernel_scale, options.sort),
        specialisation(out, kernels, towers, layers, {name: _described(directory) for name, directory in runs.items()}),
        growing(out, {name: growth(directory) for name, directory in runs.items()}),
        likeness,
        *of_towers,
        training(out, lines, recipe, len(names)),
        exchange(recipe, len(names), network.exchange.devices, lines, devices_of(described)),
        memory(out, recipe, len(names)),
        *of_pictures,
        provenance(described, recipe, step, opened.dataset if opened else None),
    ]
    others = f", with {len(runs) - 1} other run{'s' * (len(runs) > 2)} for comparison" if len(runs) > 1 else ""
    at = "converted, not trained here" if described.get("converted") else f"step {step:,} of its training"
    page.write(
        out / page.NAME,
        f"What each GPU learned: {recipe.name} on {len(names):,} classes",
        f"Run {name}, {at}{others}.",
        parts,
        headline(kernels, lines, recipe, len(names)),
    )
    for name in before - page.pictures_of(out / page.NAME):
        (out / name).unlink(missing_ok=True)
    say(f"wrote {out / page.NAME}")
    return 0


def _data(options):
    """(the `ensembles.Run` on the splits of the index, None); (None, why) where the run's own data can't be read and
    nobody named others."""
    try:
        return _opened(options, SPLITS), None
    except DataOfRunMissing as error:
        return None, str(error)


def _index(options):
    return build_index(
        options.runs[0],
        options.data,
        options.index,
        BITS,
        gpus=options.gpus,
        kernels=options.kernels,
        pipeline=options.pipeline,
        workers=options.workers,
    )


def _answers(options, network, statistics, pictures):
    """(numbers of pictures of --split, the `Guesses` about them)"""
    split = pictures.dataset.splits[options.split]
    numbers = evenly(len(split), MOST_ANSWERED)
    with progress(f"{options.split} images", len(numbers)) as advance:
        some = some_of(split, numbers, network, statistics)
        return numbers, guesses(network, some, "given", pictures.batch_size, advance)


def _left_out(part, missing):
    """A `Part` that needs pictures, of which there are none. part: its anchor and heading."""
    return page.Part(*part, [page.text(f"It needs pictures: {missing}.")])


def _of_towers(out, network, statistics, split, options, kernels, names):
    """The parts that test the network again and again: what each tower is for, and what it sees.

    --pictures are for lesions and altered pictures; ten times as many for the classes, which have few each; half as
    many for single kernels and deals of them, which are many."""
    count, labelled = options.pictures, bool((np.asarray(split.labels) >= 0).all())
    some, many, few = (evenly(len(split), number) for number in (count, 10 * count, max(1, count // 2)))
    of = network, statistics, split

    def measured(what, function, numbers, times=1):
        with progress(what, times * len(numbers)) as advance:
            return function(*of, numbers, advance=advance)

    def sample_in_words(numbers):
        spread = ", spread evenly" * (len(numbers) < len(split))
        return f"{len(numbers):,} picture{'s' * (len(numbers) > 1)} of {options.split}{spread}"

    lesions_found = measured("lesions", lesions, some) if labelled else None
    removed = measured("kernels removed", kernel_lesions, few) if labelled else None
    seen = measured("altered pictures", sight, some, len(ALTERATIONS)) if labelled else ()
    division = measured("brightness and colour", colour_division, few, 3)
    leanings = measured("classes", class_leanings, many) if labelled else None
    return [
        lesions_part(out, lesions_found, removed, kernels, sample_in_words(some), sample_in_words(few)),
        sight_part(out, seen, division, leanings, split, some, names, sample_in_words(some)),
    ]


def _refuse_equals(layers):
    """Raise UserError where two runs have the same first layer: they are one, and would count twice. layers: {name:
    (kernels, ...)}."""
    seen = {}
    for name, (kernels, *_) in layers.items():
        other = seen.setdefault(kernels.tobytes(), name)
        if other != name:
            raise UserError(
                f"{name} has the same first-layer weights as {other}: they are one network; each counts once"
            )


def _described(directory):
    """Of a run, what tells it from others: recipe, seed, step, data."""
    _, trained = from_newest(directory, read_state)
    return [trained.recipe.name, str(trained.recipe.seed), f"{trained.step:,}", trained.data.fingerprint[:8]]


def _opened(options, splits):
    """The `ensembles.Run` of the run that is shown, on these splits."""
    (opened,) = open_runs(
        options.runs[:1], options.data, splits, options.gpus, options.kernels, options.pipeline, options.workers
    )
    return opened


def _parser():
    parser = command_parser("report", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run directory; the first one is shown in full")
    parser.add_argument("--data", metavar="DIR|builtin", help="default: what the first run was trained on")
    parser.add_argument(
        "--split",
        choices=("train", "val", "test"),
        default="val",
        help="whose pictures are answered (figure 4, left), silenced and altered; default: val",
    )
    parser.add_argument("--out", metavar="DIR", help="default: RUN/report")
    parser.add_argument(
        "--index",
        metavar="DIR",
        help="what is searched for the nearest pictures (figure 4, right); default: RUN/retrieval",
    )
    parser.add_argument(
        "--kernel-scale",
        choices=tuple(SCALES),
        default="layer",
        help="of the kernels (figure 3): one over both towers, one a tower, as in 2012, or one each; default: layer",
    )
    parser.add_argument("--sort", action="store_true", help="kernels of a tower from grey to colourful (figure 3)")
    parser.add_argument(
        "--pictures",
        type=int,
        default=500,
        metavar="N",
        help="of --split, on which lesions and what a tower sees are measured; ten times as many for the classes, half "
        "as many for single kernels; default: 500",
    )
    parser.add_argument("--synsets", metavar="FILE|SET", help=synsets.HELP)
    parser.add_argument(
        "--no-speed",
        dest="speed",
        action="store_false",
        help="without the time that a query takes, the one thing on the page that is another one every time",
    )
    add_machine_options(parser)
    return parser


if __name__ == "__main__":
    run_command(main)
