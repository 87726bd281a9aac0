"""What a query needs: the index of a run, the network that it is of, its codes, and the pictures that are found."""

import os
import sys
from collections.abc import Sequence

import numpy as np

from ..data.dataset import Split, difference, open_dataset, reason_of
from ..evaluation.trained import Trained, load_run
from ..network.network import TwoTowerAlexNet
from ..runs.directory import RUN
from ..system.command_line import typed
from ..system.errors import UserError
from ..system.terminal import printable
from .build import OF_A_RUN, weights_digest
from .index import INDEX, SPLITS, Index


def index_at(path: str) -> Index:
    """The `Index` at a path, or that of the run there. Raises UserError."""
    if os.path.exists(os.path.join(path, INDEX)) or not os.path.exists(os.path.join(path, RUN)):
        return Index(path)
    folder = os.path.join(path, OF_A_RUN)
    if not os.path.lexists(folder):
        raise UserError(f"{path} is a run without an index; {typed('retrieve', 'index', path)} makes one")
    return Index(folder)


def network_of(index: Index, run: str | None, gpus: str, kernels: str) -> tuple[TwoTowerAlexNet, Trained]:
    """The network of whose weights the index is, in test mode; and what is known of it. Raises UserError.

    run: None: where the run was, as seen from the index."""
    source = index.described.source
    run = run or os.path.normpath(index.path / source.run)
    network, training = load_run(run, gpus, kernels)
    if weights_digest(network) != source.weights_sha256:
        raise UserError(
            f"{index.path} is of the weights of {source.checkpoint}, and {run} has others at "
            f"{training.checkpoint.name}; "
            f"{typed('retrieve', 'index', run, '--out', 'DIR')} makes an index of these"
        )
    return network, training


def code_length(index: Index, by: str, bits: int | None, run: str | None) -> int | None:
    """The code's length in bits; None where the search is by something else. Raises UserError."""
    if by != "codes":
        if bits is not None:
            raise UserError(f"--bits {bits}: only a search --by codes has a length")
        return None
    if not index.lengths:
        run = run or os.path.normpath(index.path / index.described.source.run)
        raise UserError(f"{index.path} has no codes; {typed('retrieve', 'index', run, '--out', index.path)} makes them")
    return index.lengths[-1] if bits is None else bits


def stored_pictures(index: Index, data: str | None, size: int, drawn: bool = False) -> Split | None:
    """The training pictures; None, with a line that says why, where they aren't those of the index any more.

    data: where they are now, or None. drawn: whether a sheet is to show them."""
    source = index.described.source
    try:
        dataset = open_dataset(source.data if data is None else data, size, SPLITS)
        change = difference(source.fingerprint, dataset)
        if not change:
            return dataset.splits["train"]
        reason = f"{data or source.data} holds other pictures now: {change}"
    except UserError as error:
        reason = str(error) if data else f"{source.data}: {reason_of(error, source.data)}"
    print(
        f"what is found is as it was when {printable(str(index.path))} was made: {printable(reason)}"
        + ("; the sheet shows no training pictures; --data says where they are" if drawn else ""),
        file=sys.stderr,
    )
    return None


def neighbour(
    index: Index, labels: np.ndarray, names: Sequence[str], distance: float, number: int
) -> dict[str, str | int | float]:
    """What is told of a training picture that was found."""
    label = int(labels[number])
    source = index.described.source
    return {
        "name": names[number],
        "class": source.classes[label],
        "class_name": source.class_names[label],
        "label": label,
        "number": number,
        "distance": distance,
    }
