"""A retrieval index is computed from a run: features of every picture, and codes of them."""

import hashlib
import os
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..data.dataset import difference
from ..evaluation.ensembles import open_runs
from ..evaluation.trained import class_words, load_run
from ..network.network import TwoTowerAlexNet
from ..recipes.shapes import sizes
from ..system import durable_files
from ..system.errors import UserError
from ..system.file_lock import held
from ..system.memory import free_memory
from ..system.provenance import PACKAGES, package_version, source_commit
from ..system.terminal import progress, say
from . import short_codes
from .features import features, last_hidden
from .index import SPLITS, Index, Source, source_difference, write_index

OF_A_RUN = "retrieval"  # the directory, in a run's, of its index


def build_index(
    run: str,
    data: str | None = None,
    out: str | Path | None = None,
    bits: Iterable[int] = (128,),
    seed: int = 0,
    gpus: str = "auto",
    kernels: str = "auto",
    pipeline: str = "auto",
    workers: int | None = None,
    batch_size: int | None = None,
) -> Index:
    """The `Index` of a run's newest weights on a data set (None: what it was trained on), with codes of these lengths.

    out: where it is, or will be; None: RUN/retrieval. What is there and fits is used. Raises UserError where it
    doesn't."""
    out = Path(out or Path(run) / OF_A_RUN)
    (opened_run,) = open_runs([run], data, SPLITS, gpus, kernels, pipeline, workers, batch_size)
    network, training = load_run(run, gpus, kernels)
    source = _source(run, out, network, training, opened_run.dataset)
    if os.path.lexists(out):
        index = _existing_index(out, source, opened_run.dataset)
    else:
        _refuse_place(out, source)
        with _lock_of(out):
            if os.path.lexists(out):  # another process has made it meanwhile
                index = _existing_index(out, source, opened_run.dataset)
            else:
                index = _new_index(run, out, source, network, opened_run)
    add_codes(index, bits, seed)
    return index


@contextmanager
def _lock_of(out):
    """Two processes that write one index do so one after the other."""
    lock = out.with_name(f"{out.name}.lock")
    with held(lock, f"{out}: another process is writing this index; waiting for it"):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _existing_index(out, source, dataset):
    """The `Index` that is there. Raises UserError where it is of something else."""
    index = Index(out)
    fingerprint = index.described.source.fingerprint
    change = difference(fingerprint, dataset)
    if not change:  # noted as a former version did, where it is another
        source = replace(source, fingerprint=fingerprint)
    if reason := source_difference(index.described.source, source):
        raise UserError(
            f"{out}: {reason}{f' ({change})' if change else ''}; choose another directory for the index, or remove it"
        )
    remark = "" if fingerprint == dataset.fingerprint else " (it was made without the times of the pictures)"
    say(f"{out} is there and fits{remark}")
    return index


def _new_index(run, out, source, network, opened_run):
    of_splits = {}
    for split in SPLITS:
        with progress(f"{split}, {source.layer}", source.images[split]) as advance:
            of_splits[split] = features(network, opened_run.pipeline, split, opened_run.batch_size, advance)
        if not np.isfinite(of_splits[split].hidden).all():
            raise UserError(f"{run}: its {source.layer} has values that are not finite; it diverged")
    dataset = opened_run.dataset
    names = {split: [_relative_name(name, dataset.source) for name in dataset.splits[split].names] for split in SPLITS}
    packages = {name: package_version(name) for name in (*PACKAGES, "faiss-cpu")}
    index = write_index(out, source, packages, source_commit(), of_splits, names)
    counts = ", ".join(f"{count:,} {split}" for split, count in source.images.items())
    say(f"{out}: {counts} vectors of {source.units:,} numbers")
    return index


def add_codes(index: Index, bits: Iterable[int], seed: int = 0) -> None:
    """Learn what the index lacks of these lengths."""
    if set(bits) <= set(index.lengths):
        return
    with _lock_of(index.path):
        index.read_again()  # another process may have added some meanwhile
        _add_codes(index, bits, seed)


def _add_codes(index, bits, seed):
    for length in bits:
        if length in index.lengths:
            continue
        count = index.described.source.images["train"]
        with progress(f"codes of {length} bits", short_codes.passes(count) * count, "pictures") as advance:
            codes = index.add_codes(length, seed, advance)
        say(
            f"codes of {length} bits: {100 * codes.loss:.1f} % of the variance lost after {codes.epochs} epochs; "
            f"a bit is 1 in {100 * codes.least_ones:.0f} to {100 * codes.most_ones:.0f} % of the training pictures"
        )


def _source(run, out, network, training, dataset):
    recipe, classes = network.recipe, training.classes
    size = sizes(recipe, len(classes))[-2]  # `last_hidden` of it
    return Source(
        os.path.relpath(run, out),
        training.checkpoint.name,
        weights_digest(network),
        recipe.name,
        last_hidden(recipe).name,
        recipe.towers * int(np.prod(size.output)),
        dataset.source,
        dataset.fingerprint,
        tuple(classes),
        tuple(dataset.class_names or class_words(run, classes)),
        {split: len(dataset.splits[split]) for split in SPLITS},
    )


def weights_digest(network: TwoTowerAlexNet) -> str:
    """sha256 of a network's weights, names and values."""
    digest = hashlib.sha256()
    for name, tensor in network.merged_state().items():
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.float().contiguous().numpy()).cast("B"))
    return digest.hexdigest()


def _refuse_place(out, source):
    durable_files.refuse_unwritable("the index", out, out.absolute().parent)
    count = max(source.images.values())
    need = 3 * 4 * source.units * count  # the vectors, and as much again twice while they are put together
    if need > free_memory():
        raise UserError(
            f"vectors of {source.units:,} numbers of {count:,} pictures need {need / 1e9:.1f} GB of memory, and "
            f"{free_memory() / 1e9:.1f} GB are free; index a smaller set with --data"
        )


def _relative_name(name, root):
    """A picture's name in its data set; a folder's pictures have paths."""
    absolute = os.path.abspath(name)
    return os.path.relpath(absolute, root) if os.path.isabs(root) and absolute.startswith(f"{root}{os.sep}") else name
