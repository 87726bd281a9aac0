"""Pictures that mean the same: the nearest by the network's last hidden layer, by short codes of it, or by pixels
(paper, 6.1).

examples
  python -m alexnet_mp.retrieve index RUN --data DIR                    all its pictures' vectors, and codes of 128 bits
  python -m alexnet_mp.retrieve query RUN photograph.jpg --sheet nearest.png
  python -m alexnet_mp.retrieve query RUN *.jpg --by codes -k 10 --json
  python -m alexnet_mp.retrieve measure RUN --bits 64,128,256 --speed

An index holds train and val: what is found are training pictures, and `measure` asks for them with the validation
pictures. An index that is there already and is of the same weights and pictures is used, and lengths of code that it
lacks are added; one of another run, checkpoint or data set is refused. Where the pictures have changed since, `query`
and `measure` answer of those that the index is of, and say so. Queries are read as in `predict`. Searches are exact:
every stored vector is compared."""

import json
import sys
from collections.abc import Sequence

from .analysis.figure_4 import told_apart
from .command_options import add_machine_options, add_run_options, compute_as_in_training
from .data.image_files import map_pictures, pipeline_of
from .retrieval.build import OF_A_RUN, add_codes, build_index
from .retrieval.contact_sheet import LINE_LETTERS, contact_sheet, png
from .retrieval.features import features
from .retrieval.index import BY
from .retrieval.measures import measure, table
from .retrieval.query import code_length, index_at, neighbour, network_of, stored_pictures
from .retrieval.search import NEIGHBOURS, Search
from .system import durable_files
from .system.command_line import command_parser
from .system.errors import UserError, run_command
from .system.terminal import lines_on_stderr, printable, say

BITS = "128"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    compute_as_in_training()
    return {"index": _index, "query": _query, "measure": _measure}[options.action](options)


def _index(options):
    if not 0 <= options.seed < 2**32:
        raise UserError(f"--seed {options.seed}: it must be 0 to {2**32 - 1}")
    build_index(
        options.run,
        options.data,
        options.out,
        _lengths(options.bits),
        options.seed,
        options.gpus,
        options.kernels,
        options.pipeline,
        options.workers,
        options.batch_size,
    )
    return 0


def _query(options):
    if options.k < 1:
        raise UserError(f"-k {options.k}: it must be at least 1")
    if options.sheet is not None:
        durable_files.refuse_output("--sheet", options.sheet)
    index = index_at(options.index)
    bits = code_length(index, options.by, options.bits, options.run)
    with lines_on_stderr():  # standard output holds the answers alone
        network, facts = network_of(index, options.run, options.gpus, options.kernels)
    search, names = Search(index, options.by, bits), index.names("train")
    words = told_apart(index.described.source.classes, index.described.source.class_names, LINE_LETTERS)
    answers, rows = [], []
    pictures = stored_pictures(index, options.data, network.recipe.stored_size, bool(options.sheet))

    def search_batch(batch):
        queries = features(
            network,
            pipeline_of(batch, network.recipe, network.exchange.devices, facts.statistics),
            "given",
            network.recipe.batch_size,
        )
        return zip(*search(queries, options.k))

    for path, picture, result in map_pictures(options.pictures, network.recipe.stored_size, search_batch):
        if result is None:
            answers.append({"file": path, "error": str(picture)})
            continue
        pairs = zip(*(column.tolist() for column in result))  # distance, number
        neighbours = [neighbour(index, search.labels, names, *pair) for pair in pairs]
        answers.append({"file": path, "nearest": neighbours})
        if not options.json:
            _tell(path, neighbours, words)
        if options.sheet:
            query = picture, [printable(path), f"nearest by {options.by}"]
            rows.append([query, *(_cell(pictures, hit, words) for hit in neighbours)])
    if options.json:
        print(json.dumps({"index": str(index.path), "by": options.by, "bits": bits, "queries": answers}, indent=1))
    if rows:
        durable_files.write_output(options.sheet, png(contact_sheet(rows)))
    return 2 if any("error" in answer for answer in answers) else 0


def _cell(pictures, hit, words):
    picture = None
    if pictures is not None:
        try:
            picture = pictures.read(hit["number"])
        except UserError as error:
            print(f"missing on the sheet: {printable(str(error))}", file=sys.stderr)
    return picture, [f"{hit['distance']:.4g}", printable(words[hit["label"]]), printable(hit["name"])]


def _tell(path, neighbours, words):
    say(printable(path))
    for hit in neighbours:
        say(f"  {hit['distance']:10.5g}  {printable(words[hit['label']])}  {printable(hit['name'])}")


def _measure(options):
    if options.queries < 1:
        raise UserError(f"--queries {options.queries}: it must be at least 1")
    index = index_at(options.index)
    with lines_on_stderr():
        stored_pictures(index, None, 1)  # compared alone: any size does
        lengths = index.lengths if options.bits is None else _lengths(options.bits)
        add_codes(index, lengths)
        record = measure(index, lengths, options.queries, options.speed, pixel_codes=True)
    durable_files.write_output(index.path / "measures.json", json.dumps(record, indent=1).encode() + b"\n")
    if options.json:
        print(json.dumps(record, indent=1))
    else:
        for line in table(record):
            say(line)
    return 0


def _lengths(text):
    """What --bits says: "64,128" -> (64, 128). Raises UserError."""
    try:
        lengths = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        lengths = ()
    if not lengths or not all(8 <= length <= 1024 and length % 8 == 0 for length in lengths):
        raise UserError(f"--bits {text}: write multiples of 8 from 8 to 1024, as in 64,128,256")
    return lengths


def _parser():
    parser = command_parser("retrieve", __doc__)
    actions = parser.add_subparsers(dest="action", metavar="index|query|measure", required=True)
    index = actions.add_parser("index", help="compute and keep what searches need")
    index.add_argument("run", metavar="RUN", help="the directory of a run; its newest weights are used")
    index.add_argument(
        "--data", metavar="DIR|builtin", help="with train and val pictures; default: what it was trained on"
    )
    index.add_argument("--out", metavar="DIR", help=f"where the index is put; default: RUN/{OF_A_RUN}")
    index.add_argument("--bits", default=BITS, metavar="B,...", help=f"lengths of codes; default: {BITS}")
    index.add_argument("--seed", type=int, default=0, help="of the codes' auto-encoder; default: 0")
    add_machine_options(index)
    index.add_argument("--batch-size", type=int, help="images at a time; default: the recipe's")
    query = actions.add_parser("query", help="the training pictures nearest to a picture")
    query.add_argument("index", metavar="INDEX|RUN", help=f"an index, or a run whose index is in RUN/{OF_A_RUN}")
    query.add_argument(
        "pictures", metavar="FILE|FOLDER", nargs="+", help="a picture, or a folder of pictures; - is standard input"
    )
    query.add_argument(
        "--by",
        choices=BY,
        default="fc7",
        help="fc7, the last hidden layer whatever its name, Euclidean; codes, bits that differ; pixels, Euclidean on "
        "32x32; default: fc7",
    )
    query.add_argument("--bits", type=int, help="of codes; default: the longest there are")
    query.add_argument(
        "-k", type=int, default=NEIGHBOURS, help=f"how many to find; default: {NEIGHBOURS}, as in figure 4"
    )
    query.add_argument("--json", action="store_true", help="one JSON document on standard output")
    query.add_argument("--sheet", metavar="FILE.png", help="draw the queries and what was found beside them")
    query.add_argument("--data", metavar="DIR", help="where the training pictures are now; default: where they were")
    query.add_argument(
        "--run", metavar="RUN", help="where the run is now; default: where it was, as seen from the index"
    )
    add_run_options(query)
    measures = actions.add_parser("measure", help="precision, mean average precision, bytes, time")
    measures.add_argument("index", metavar="INDEX|RUN", help="as for query")
    measures.add_argument(
        "--bits", metavar="B,...", help="lengths of codes; missing ones are learned; default: all there are"
    )
    measures.add_argument(
        "--queries",
        type=int,
        default=2000,
        metavar="N",
        help="validation pictures to ask with, spread evenly over all; default: 2000",
    )
    measures.add_argument("--speed", action="store_true", help="also: queries a second, and on a million random codes")
    measures.add_argument(
        "--json", action="store_true", help="the record on standard output; INDEX/measures.json has it anyway"
    )
    return parser


if __name__ == "__main__":
    run_command(main)
