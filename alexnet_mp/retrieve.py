"""Pictures that mean the same: the nearest by the network's last hidden layer, by short codes of it, or by pixels (paper, 6.1).

examples
  python -m alexnet_mp.retrieve index RUN --data DIR                    all its pictures' vectors, and codes of 128 bits
  python -m alexnet_mp.retrieve query RUN/retrieval photograph.jpg --sheet nearest.png
  python -m alexnet_mp.retrieve query RUN/retrieval *.jpg --by codes -k 10 --json
  python -m alexnet_mp.retrieve measure RUN/retrieval --bits 64,128,256 --speed

An index holds train and val: what is found are training pictures, and `measure` asks for them with the validation pictures. An
index that is there already and is of the same weights and pictures is used, and lengths of code that it lacks are added; one of
another run, checkpoint or data set is refused. Queries are read as in `predict`. Searches are exact: every stored vector is compared.
"""
import argparse
import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch

from . import files, retrieval_index, short_codes
from .allocator import keep_freed_memory
from .console import lines_on_stderr, printable, progress, say
from .contact_sheet import contact_sheet, png
from .dataset import free_memory, open_dataset
from .errors import UserError, run_command
from .evaluate import load_run, open_runs
from .features import features, last_hidden
from .geometry import sizes
from .given_pictures import answered, pipeline_of
from .options import add_machine_options, add_run_options
from .predict import class_words
from .retrieval_index import BY, SPLITS, Index, Source, difference, exact_index, nearest
from .retrieval_record import measure, table
from .run_directory import PACKAGES, package_version, source_commit

BITS = "128"
NEIGHBOURS = 6  # figure 4


def main(arguments=None):
    options = _parser().parse_args(arguments)
    keep_freed_memory()
    torch.backends.cudnn.allow_tf32 = False  # as in training
    return {"index": _index, "query": _query, "measure": _measure}[options.action](options)


def build_index(run, data=None, out=None, bits=(128,), seed=0, gpus="auto", kernels="auto", pipeline="auto", workers=None,
                batch_size=None):
    """The `Index` of a run's newest weights on a data set (None: what it was trained on), with codes of these lengths.

    out: where it is, or will be; None: RUN/retrieval. What is there and fits is used. Raises UserError where it doesn't.
    """
    out = Path(out or Path(run) / "retrieval")
    opened, = open_runs([run], data, SPLITS, gpus, kernels, pipeline, workers, batch_size)
    network, found = load_run(run, gpus, kernels)
    source = _source(run, out, network, found, opened.dataset)
    if os.path.lexists(out):
        index = Index(out)
        if reason := difference(index.described.source, source):
            raise UserError(f"{out}: {reason}; choose another directory for the index, or remove it")
        say(f"{out} is there and fits")
    else:
        _refuse_place(out, source)
        of_splits = {}
        for split in SPLITS:
            with progress(f"{split}, {source.layer}", source.images[split]) as advance:
                of_splits[split] = features(network, opened.pipeline, split, opened.batch_size, advance)
            if not np.isfinite(of_splits[split].hidden).all():
                raise UserError(f"{run}: its {source.layer} has values that are not finite; it diverged")
        dataset = opened.dataset
        names = {split: [_relative(name, dataset.source) for name in dataset.splits[split].names] for split in SPLITS}
        packages = {name: package_version(name) for name in (*PACKAGES, "faiss-cpu")}
        index = retrieval_index.write(out, source, packages, source_commit(), of_splits, names)
        counts = ", ".join(f"{count:,} {split}" for split, count in source.images.items())
        say(f"{out}: {counts} vectors of {source.units:,} numbers")
    _add_codes(index, bits, seed)
    return index


def _add_codes(index, bits, seed=0):
    """Learn what the index lacks of these lengths."""
    for length in bits:
        if length in index.lengths:
            continue
        count = index.described.source.images["train"]
        with progress(f"codes of {length} bits", short_codes.passes(count) * count, "pictures") as advance:
            codes = index.add_codes(length, seed, advance)
        say(f"codes of {length} bits: {100 * codes.loss:.1f} % of the variance lost after {codes.epochs} epochs; "
            f"a bit is 1 in {100 * codes.least_ones:.0f} to {100 * codes.most_ones:.0f} % of the training pictures")


def _source(run, out, network, found, dataset):
    recipe, classes = network.recipe, found.classes
    size = sizes(recipe, len(classes))[-2]  # `last_hidden` of it
    return Source(os.path.relpath(run, out), found.checkpoint.name, weights_digest(network), recipe.name,
                  last_hidden(recipe).name, recipe.towers * int(np.prod(size.output)), dataset.source, dataset.fingerprint, tuple(classes),
                  tuple(getattr(dataset, "class_names", None) or class_words(run, classes)),
                  {split: len(dataset.splits[split]) for split in SPLITS})


def weights_digest(network):
    """sha256 of a network's weights, names and values."""
    digest = hashlib.sha256()
    for name, tensor in network.merged_state().items():
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.float().contiguous().numpy()).cast("B"))
    return digest.hexdigest()


def _refuse_place(out, source):
    parent = out.absolute().parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"the index {out}: {parent} is not a directory that can be written to")
    count = max(source.images.values())
    need = 3 * 4 * source.units * count  # the vectors, and as much again twice while they are put together
    if need > free_memory():
        raise UserError(f"vectors of {source.units:,} numbers of {count:,} pictures need {need / 1e9:.1f} GB of memory, and "
                        f"{free_memory() / 1e9:.1f} GB are free; index a smaller set with --data")


def _relative(name, root):
    """A picture's name in its data set; a folder's pictures have paths."""
    absolute = os.path.abspath(name)
    return os.path.relpath(absolute, root) if os.path.isabs(root) and absolute.startswith(f"{root}{os.sep}") else name


def _index(options):
    build_index(options.run, options.data, options.out, _lengths(options.bits), options.seed, options.gpus, options.kernels,
                options.pipeline, options.workers, options.batch_size)
    return 0


def _query(options):
    if options.k < 1:
        raise UserError(f"-k {options.k}: it must be at least 1")
    if options.sheet is not None:
        _refuse_output(options.sheet)
    index = Index(options.index)
    bits = _length_of(index, options)
    with lines_on_stderr():  # standard output holds the answers alone
        network, found = _network(index, options)
    search, names = Search(index, options.by, bits), index.names("train")
    answers, rows = [], []
    pictures = _stored_pictures(index, options, network.recipe.stored_size) if options.sheet else None

    def searched(some):
        seen = features(network, pipeline_of(some, network, found.statistics), "given", network.recipe.batch_size)
        return zip(*search(seen, options.k))

    for path, picture, told in answered(options.pictures, network.recipe.stored_size, searched):
        if told is None:
            answers.append({"file": path, "error": str(picture)})
            continue
        pairs = zip(*(each.tolist() for each in told))  # distance, number
        found_here = [_neighbour(index, search.labels, names, *pair) for pair in pairs]
        answers.append({"file": path, "nearest": found_here})
        if not options.json:
            _tell(path, found_here)
        if options.sheet:
            query = picture, [printable(path), f"nearest by {options.by}"]
            rows.append([query, *(_cell(pictures, one) for one in found_here)])
    if options.json:
        print(json.dumps({"index": options.index, "by": options.by, "bits": bits, "queries": answers}, indent=1))
    if rows:
        _write(options.sheet, png(contact_sheet(rows)))
    return 2 if any("error" in answer for answer in answers) else 0


class Search:
    """Called with the `Features` of queries and k: (distances (Q, k), numbers of training pictures (Q, k)), nearest first.

    by: "fc7" (the last hidden layer), "codes" (of `bits` bits), or "pixels".
    """

    def __init__(self, index, by, bits=None):
        stored, self.by = index.features("train"), by
        self.labels, self.encoder = stored.labels, None
        if by == "codes":
            self.encoder, codes = index.codes(bits)
            self.exact = exact_index(by, codes["train"])
        else:
            self.exact = exact_index(by, stored.hidden if by == "fc7" else stored.pixels)

    def __call__(self, queries, k):
        match self.by:
            case "fc7":
                asked = queries.hidden
            case "codes":
                asked = self.encoder.codes(queries.hidden)
            case "pixels":
                asked = queries.pixels.astype(np.float16).astype(np.float32)  # as they are stored
        return nearest(self.exact, asked, k)


def _network(index, options):
    """(network, its `evaluate.Trained`): of the weights that the index is of, or UserError."""
    source = index.described.source
    run = options.run or os.path.normpath(index.path / source.run)
    network, found = load_run(run, options.gpus, options.kernels)
    if weights_digest(network) != source.weights_sha256:
        raise UserError(f"{index.path} is of the weights of {source.checkpoint}, and {run} has others at {found.checkpoint.name}; "
                        f"python -m alexnet_mp.retrieve index with another --out makes an index of these")
    return network, found


def _length_of(index, options):
    """The code's length in bits; None where the search is by something else."""
    if options.by != "codes":
        if options.bits is not None:
            raise UserError(f"--bits {options.bits}: only a search --by codes has a length")
        return None
    if not index.lengths:
        raise UserError(f"{index.path} has no codes; python -m alexnet_mp.retrieve index makes them")
    return index.lengths[-1] if options.bits is None else options.bits


def _stored_pictures(index, options, size):
    """The training pictures, to be drawn; None, with a line that says why, where they aren't there any more."""
    source = index.described.source
    try:
        dataset = open_dataset(options.data or source.data, size, SPLITS)
        if dataset.fingerprint != source.fingerprint:
            raise UserError(f"{options.data or source.data} holds other pictures now")
        return dataset.splits["train"]
    except UserError as error:
        print(f"the sheet shows no training pictures: {printable(str(error))}; --data says where they are", file=sys.stderr)
        return None


def _neighbour(index, labels, names, distance, number):
    label = int(labels[number])
    source = index.described.source
    return {"name": names[number], "class": source.classes[label], "class_name": source.class_names[label], "label": label,
            "number": number, "distance": distance}


def _cell(pictures, found):
    picture = None
    if pictures is not None:
        try:
            picture = pictures.read(found["number"])
        except UserError as error:
            print(f"missing on the sheet: {printable(str(error))}", file=sys.stderr)
    return picture, [f"{found['distance']:.4g}", printable(found["class_name"]), printable(found["name"])]


def _tell(path, found):
    say(printable(path))
    for one in found:
        say(f"  {one['distance']:10.5g}  {printable(one['class_name'])}  {printable(one['name'])}")


def _measure(options):
    if options.queries < 1:
        raise UserError(f"--queries {options.queries}: it must be at least 1")
    index = Index(options.index)
    with lines_on_stderr():
        lengths = index.lengths if options.bits is None else _lengths(options.bits)
        _add_codes(index, lengths)
        record = measure(index, lengths, options.queries, options.speed, pixel_codes=True)
    _write(index.path / "measures.json", json.dumps(record, indent=1).encode() + b"\n")
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


def _refuse_output(path):
    """Raise UserError early for a file that is there already or can't be written."""
    folder = Path(path).absolute().parent
    if os.path.lexists(path) or not Path(path).name:
        raise UserError(f"--sheet {path}: it is there already; choose another name")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"--sheet {path}: {folder} is not a directory that can be written to")


def _write(path, content):
    try:
        files.replace(path, content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def _parser():
    parser = argparse.ArgumentParser(prog="python -m alexnet_mp.retrieve", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", metavar="index|query|measure", required=True)
    index = actions.add_parser("index", help="compute and keep what searches need")
    index.add_argument("run", metavar="RUN", help="the directory of a run; its newest weights are used")
    index.add_argument("--data", metavar="DIR|builtin", help="with train and val pictures; default: what it was trained on")
    index.add_argument("--out", metavar="DIR", help="where the index is put; default: RUN/retrieval")
    index.add_argument("--bits", default=BITS, metavar="B,...", help=f"lengths of codes; default: {BITS}")
    index.add_argument("--seed", type=int, default=0, help="of the codes' auto-encoder; default: 0")
    add_machine_options(index)
    index.add_argument("--batch-size", type=int, help="images at a time; default: the recipe's")
    query = actions.add_parser("query", help="the training pictures nearest to a picture")
    query.add_argument("index", metavar="INDEX")
    query.add_argument("pictures", metavar="FILE", nargs="+", help="a picture; - is standard input")
    query.add_argument("--by", choices=BY, default="fc7",
                       help="fc7, the last hidden layer whatever its name, Euclidean; codes, bits that differ; pixels, Euclidean on "
                            "32x32; default: fc7")
    query.add_argument("--bits", type=int, help="of codes; default: the longest there are")
    query.add_argument("-k", type=int, default=NEIGHBOURS, help=f"how many to find; default: {NEIGHBOURS}, as in figure 4")
    query.add_argument("--json", action="store_true", help="one JSON document on standard output")
    query.add_argument("--sheet", metavar="FILE.png", help="draw the queries and what was found beside them")
    query.add_argument("--data", metavar="DIR", help="where the training pictures are now; default: where they were")
    query.add_argument("--run", metavar="RUN", help="where the run is now; default: where it was, as seen from the index")
    add_run_options(query)
    measured = actions.add_parser("measure", help="precision, mean average precision, bytes, time")
    measured.add_argument("index", metavar="INDEX")
    measured.add_argument("--bits", metavar="B,...", help="lengths of codes; missing ones are learned; default: all there are")
    measured.add_argument("--queries", type=int, default=2000, metavar="N",
                          help="validation pictures to ask with, spread evenly over all; default: 2000")
    measured.add_argument("--speed", action="store_true", help="also: queries a second, and on a million random codes")
    measured.add_argument("--json", action="store_true", help="the record on standard output; INDEX/measures.json has it anyway")
    return parser


if __name__ == "__main__":
    run_command(main)
