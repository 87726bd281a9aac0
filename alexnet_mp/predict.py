"""The most probable classes of any picture, by a trained network.

examples
  python -m alexnet_mp.predict RUN photograph.jpg
  python -m alexnet_mp.predict RUN *.png --views ten --top 3
  curl -s https://example.org/cat.jpg | python -m alexnet_mp.predict RUN -
  python -m alexnet_mp.predict RUN photograph.jpg --json
  python -m alexnet_mp.predict RUN PHOTOS --csv classes.csv
  python -m alexnet_mp.predict RUN PHOTOS --synsets synset_words.txt
  python -m alexnet_mp.predict RUN photograph.jpg --page photograph.html

A folder stands for the pictures in it and in its folders; what is no picture is named and passed over. A file may be
anything that Pillow opens. It is read as training reads its own: grey, palettes, CMYK and 16 bits a channel become RGB
of 8 bits, of something transparent the colours below stay, orientation tags are ignored (turn such a
photograph first), the shorter side is rescaled and the central square kept. Of classes that tie the first leads. A
file that can't be read is a line on standard error, the others are answered all the same, and the status is 2.

--page FILE.html shows one picture's way through both towers, layer by layer; and with tower a off, with tower b off,
and with the links between them cut. What is off is put to its mean over pictures of the validation split, of what the
run was trained on or of --data; a network that came with such means needs no pictures. --page FILE.png draws the
answers of all these, and the maps of the whole network.
"""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from .command_options import add_run_options, compute_as_in_training
from .data import synsets
from .data.class_names import apart_by_number
from .data.dataset import open_data_of_run, open_dataset
from .data.image_files import STDIN, map_pictures
from .data.synsets import in_words
from .evaluation.per_class import as_csv
from .evaluation.predict_images import centre_images, predict
from .evaluation.protocol import centre_view
from .evaluation.trained import class_words, load_run
from .runs.unit_means import load_unit_means
from .system import durable_files
from .system.command_line import command_parser
from .system.errors import UserError, complain, run_command
from .system.terminal import lines_on_stderr, printable, say


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.top < 1:
        raise UserError(f"--top {options.top}: it must be at least 1")
    if options.csv not in (None, STDIN):
        durable_files.refuse_output("--csv", options.csv)
    if options.page is None and options.data is not None:
        raise UserError("--data: it says what --page's means are of; they go together")
    if options.page is not None:
        if len(options.pictures) > 1 or os.path.isdir(options.pictures[0]):
            raise UserError("--page shows one picture; name one file")
        if not options.page.endswith((".html", ".png")):
            raise UserError(f"--page {options.page}: its name has to end with .html or .png")
        durable_files.refuse_output("--page", options.page)
    compute_as_in_training()
    with lines_on_stderr():  # standard output holds the answers alone
        network, training = load_run(options.run, options.gpus, options.kernels)
    words = in_words(training.classes, class_words(options.run, training.classes), options.synsets)
    class_names, answers = apart_by_number(training.classes), []
    for path, picture, prediction in map_pictures(
        options.pictures,
        network.recipe.stored_size,
        lambda batch: zip(*predict(network, training.statistics, batch, options.views, options.top)),
    ):
        if prediction is None:
            answers.append({"file": path, "error": str(picture)})
            continue
        if options.page is not None:
            with (
                lines_on_stderr() if options.json or options.csv == STDIN else nullcontext()
            ):  # nothing but the document
                _write_page(options, network, training, path, picture, words)
        top = [
            {"class": training.classes[label], "name": words[label], "label": label, "probability": probability}
            for probability, label in zip(*(tensor.tolist() for tensor in prediction))
        ]
        answers.append({"file": path, "top": top})
        if not options.json and options.csv != STDIN:
            _tell(path, top, class_names)
    if options.json:
        header = {"run": options.run, "checkpoint": training.checkpoint.name, "views": options.views}
        print(json.dumps({**header, "pictures": answers}, indent=1))
    if options.csv:
        content = _table(answers, min(options.top, len(words)), class_names).encode(errors="surrogateescape")
        if options.csv == STDIN:
            sys.stdout.flush()
            sys.stdout.buffer.write(content)
        else:
            durable_files.write_output(options.csv, content)
    return 2 if any("error" in answer for answer in answers) else 0


def _table(answers, top, class_names):
    """CSV, a row a picture: its file, the most probable classes with their names and probabilities, and the error of
    one that can't be read. class_names: of all classes, no two alike."""
    columns = [f"{what} {place}" for place in range(1, top + 1) for what in ("class", "name", "probability")]
    rows = [("file", *columns, "error")]
    for answer in answers:
        top = [(class_names[guess["label"]], guess["name"], guess["probability"]) for guess in answer.get("top", ())]
        rows.append((answer["file"], *(sum(top, ()) or [""] * len(columns)), answer.get("error", "")))
    return as_csv(rows)


def _tell(path, top, class_names):
    say(printable(path))
    for place in top:
        name, of_class = place["name"], class_names[place["label"]]
        words = of_class if name == place["class"] else f"{name} ({of_class})"
        say(f"  {100 * place['probability']:6.2f} %  {printable(words)}")


def _write_page(options, network, training, path, picture, words):
    # Imported late, and below: who asks for classes alone doesn't wait for what draws.
    from .analysis.figure_4 import told_apart
    from .analysis.one_picture import through
    from .reporting.one_picture import draw_page, write_page

    recipe = network.recipe
    means, caption = (
        _means(options, network, training) if recipe.towers == 2 else (None, "It has one tower: nothing crosses.")
    )
    (top, left, _), side = centre_view(recipe)[0], recipe.crop_size
    view, names = picture[top : top + side, left : left + side], told_apart(training.classes, words)
    passage = through(network, centre_images(network, training.statistics, [picture]), means)
    if options.page.endswith(".png"):
        draw_page(options.page, view, passage, names)
    else:
        weight_name = f"{recipe.layers[0].name}.weight"
        write_page(
            options.page,
            "standard input" if path == STDIN else os.path.basename(path),
            view,
            passage,
            network.merged_state(weight_name)[weight_name].float().numpy(),
            names,
            f"{recipe.name} on {len(words):,} classes, run {os.path.basename(os.path.realpath(options.run))}, "
            f"{training.checkpoint.name}. {synsets.hint(names)}".rstrip(),
            caption,
            recipe,
        )
    say(f"wrote {printable(options.page)}")


def _means(options, network, training):
    """(means as `layer_outputs` takes them, in words of what); (None, why) if the run has none, its own data can't be
    read and nobody named others."""
    from .analysis.layer_outputs import on_devices, unit_means_of

    unit_means, recipe = None, network.recipe
    if options.data is None:
        unit_means = load_unit_means(options.run, recipe, len(training.classes))
    if unit_means is None:
        try:
            dataset = (
                open_data_of_run(options.run, training.source, recipe.stored_size, ("val",))
                if options.data is None
                else open_dataset(options.data, recipe.stored_size, ("val",))
            )
        except UserError as error:
            if options.data is not None:
                raise
            complain(error)
            return None, f"Nothing is shown as off: the means would be over the run's own data, and {error}."
        unit_means = unit_means_of(network, training.statistics, dataset)
    words = f"Off: an output is put to its mean over {unit_means.over}, unit by unit, under the centre view."
    return on_devices(unit_means, network), words


def _parser():
    parser = command_parser("predict", __doc__)
    parser.add_argument("run", metavar="RUN", help="the directory of a run; its newest weights answer")
    parser.add_argument(
        "pictures", metavar="FILE|FOLDER", nargs="+", help="a picture, or a folder of pictures; - is standard input"
    )
    parser.add_argument(
        "--views",
        choices=("one", "ten"),
        default="one",
        help="the centre view, or the mean over all views of the recipe's test, ten, nine or one; default: one",
    )
    parser.add_argument("--top", type=int, default=5, metavar="K", help="classes to name; default: 5")
    parser.add_argument("--synsets", metavar="FILE|SET", help=synsets.HELP)
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="one JSON document on standard output")
    output.add_argument("--csv", metavar="FILE.csv", help="write a table, a row a picture; - is standard output")
    parser.add_argument("--page", metavar="FILE.html|FILE.png", help="show the way of one picture through both towers")
    parser.add_argument(
        "--data",
        metavar="DIR|builtin",
        help="of --page: whose val pictures give the means for what is off; default: what the run was trained on",
    )
    add_run_options(parser)
    return parser


if __name__ == "__main__":
    run_command(main)
