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
from .reporting.forward_passes import forward_passes
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
    first_run, runs = options.runs[0], named(options.runs)
    run_fields, lines = read_run(first_run), sound_metrics(first_run)
    layers = {
        name: (*first_layer(directory), bool(links(read_run(directory)["recipe"]))) for name, directory in runs.items()
    }
    _refuse_equals(layers)
    out = Path(first_run) / "report" if options.out is None else Path(options.out)
    old_pictures = page_directory(out)
    with suppress(OSError):
        out.rmdir()  # empty: made to see whether it can be, and not left behind by what is refused now
    index_run, message = _data(options)
    if index_run is not None:
        # What --synsets can't name is refused before the index is made.
        in_words(index_run.dataset.classes, index_run.dataset.classes, options.synsets)
    pictures = index_run if index_run is None or options.split in SPLITS else _run_on(options, (options.split,))
    if pictures is not None:
        say(_work(options, run_fields["recipe"], pictures.dataset))
    index = None if index_run is None else _index(options)
    network, trained = load_run(first_run, options.gpus, options.kernels)
    recipe = trained.recipe
    own_words = class_words(first_run, trained.classes) if index is None else index.described.source.class_names
    words = in_words(trained.classes, own_words, options.synsets)
    names = told_apart(trained.classes, words)
    answers = None if pictures is None else _answers(options, network, trained.statistics, pictures)
    out.mkdir(parents=True, exist_ok=True)
    page.begin(out / page.NAME)
    name, (kernels, towers, _) = next(iter(layers.items()))
    step = int(trained.checkpoint.name.rpartition("_")[2])
    if pictures is None:
        say(f"{message}; the parts that need pictures are left out")
        likeness, *tower_parts = (_placeholder(part, message) for part in (SIMILARITY, LESIONS, SIGHT))
        picture_parts = [_placeholder(part, message) for part in (ANSWERS, NEAREST, CODES)]
    else:
        split, (numbers, picture_guesses) = pictures.dataset.splits[options.split], answers
        samples = [split.read(numbers[place]) for place in evenly(len(numbers), most_pictures(recipe))]
        likeness = similarity(
            out,
            first_run,
            step,
            network,
            trained.statistics,
            dict(list(runs.items())[1:]),
            Pictures(samples, options.split, pictures.batch_size),
            options.gpus,
            options.kernels,
        )
        tower_parts = _of_towers(out, network, trained.statistics, split, options, kernels, names)
        picture_parts = [
            figure_4_left(out, picture_guesses, numbers, split, options.split, names),
            figure_4_right(out, index, index_run.dataset, words),
            short_codes(out, index, options.speed),
        ]
    parts = [
        figure_3(out, kernels, towers, options.kernel_scale, options.sort),
        specialisation(out, kernels, towers, layers, {name: _identity(directory) for name, directory in runs.items()}),
        growing(out, {name: growth(directory) for name, directory in runs.items()}),
        likeness,
        *tower_parts,
        training(out, lines, recipe, len(names)),
        exchange(recipe, len(names), network.exchange.devices, lines, devices_of(run_fields)),
        memory(out, recipe, len(names)),
        *picture_parts,
        provenance(run_fields, recipe, step, index_run.dataset if index_run else None),
    ]
    comparison = f", with {len(runs) - 1} other run{'s' * (len(runs) > 2)} for comparison" if len(runs) > 1 else ""
    stage = "converted, not trained here" if run_fields.get("converted") else f"step {step:,} of its training"
    page.write(
        out / page.NAME,
        f"What each GPU learned: {recipe.name} on {len(names):,} classes",
        f"Run {name}, {stage}{comparison}.",
        parts,
        headline(kernels, lines, recipe, len(names)),
    )
    for name in old_pictures - page.pictures_of(out / page.NAME):
        (out / name).unlink(missing_ok=True)
    say(f"wrote {out / page.NAME}")
    return 0


def _data(options):
    """(the `ensembles.Run` on the splits of the index, None); (None, why) where the run's own data can't be read and
    nobody named others."""
    try:
        return _run_on(options, SPLITS), None
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
        pipeline = some_of(split, numbers, network, statistics)
        return numbers, guesses(network, pipeline, "given", pictures.batch_size, advance)


def _placeholder(part, message):
    """A `Part` that needs pictures, of which there are none. part: its anchor and heading; message: why."""
    return page.Part(*part, [page.text(f"It needs pictures: {message}.")])


def _samples(split, count):
    """{what is measured: the numbers of pictures of --split}, for --pictures of `count`; ten times as many for the
    classes, which have few each; half as many for single kernels and deals of them, which are many."""
    sample, large_sample, small_sample = (
        evenly(len(split), number) for number in (count, 10 * count, max(1, count // 2))
    )
    return {
        "lesions": sample,
        "single kernels": small_sample,
        "altered pictures": sample,
        "brightness and colour": small_sample,
        "classes": large_sample,
    }


def _labelled(split):
    return bool((np.asarray(split.labels) >= 0).all())


def _work(options, recipe, dataset):
    """How much work `_of_towers` is, in words."""
    split = dataset.splits[options.split]
    samples = _samples(split, options.pictures)
    passes = forward_passes(recipe, len(dataset.classes), _labelled(split))
    total = sum(times * len(samples[what]) for what, times in passes.items())
    return (
        f"lesions, and what each tower sees: as much work as {total:,.0f} forward passes of a picture, with --pictures "
        f"{options.pictures}; fewer take less"
    )


def _of_towers(out, network, statistics, split, options, kernels, names):
    """The parts that test the network again and again: what each tower is for, and what it sees."""
    labelled, samples = _labelled(split), _samples(split, options.pictures)
    inputs = network, statistics, split

    def measure(what, function, times=1):
        with progress(what, times * len(samples[what])) as advance:
            return function(*inputs, samples[what], advance=advance)

    def sample_in_words(what):
        numbers = samples[what]
        spread = ", spread evenly" * (len(numbers) < len(split))
        return f"{len(numbers):,} picture{'s' * (len(numbers) > 1)} of {options.split}{spread}"

    tower_lesions = measure("lesions", lesions) if labelled else None
    removals = measure("single kernels", kernel_lesions) if labelled else None
    sights = measure("altered pictures", sight, len(ALTERATIONS)) if labelled else ()
    division = measure("brightness and colour", colour_division, 3)
    leanings = measure("classes", class_leanings) if labelled else None
    sample_words, kernel_words = map(sample_in_words, ("lesions", "single kernels"))
    return [
        lesions_part(out, tower_lesions, removals, kernels, sample_words, kernel_words),
        sight_part(out, sights, division, leanings, split, samples["altered pictures"], names, sample_words),
    ]


def _refuse_equals(layers):
    """Raise UserError where two runs have the same first layer: they are one, and would count twice. layers: {name:
    (kernels, ...)}."""
    owners = {}
    for name, (kernels, *_) in layers.items():
        owner = owners.setdefault(kernels.tobytes(), name)
        if owner != name:
            raise UserError(
                f"{name} has the same first-layer weights as {owner}: they are one network; each counts once"
            )


def _identity(directory):
    """Of a run, what tells it from others: recipe, seed, step, data."""
    _, state = from_newest(directory, read_state)
    return [state.recipe.name, str(state.recipe.seed), f"{state.step:,}", state.data.fingerprint[:8]]


def _run_on(options, splits):
    """The `ensembles.Run` of the run that is shown, on these splits."""
    (run,) = open_runs(
        options.runs[:1], options.data, splits, options.gpus, options.kernels, options.pipeline, options.workers
    )
    return run


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
        help="of --split, on which lesions and what a tower sees are measured, most of a report's work; ten times as "
        "many for the classes, half as many for single kernels; default: 500",
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
