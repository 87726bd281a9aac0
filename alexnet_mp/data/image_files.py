"""Picture files that somebody names on a command line: read as training reads its own, and seen by a network."""

import io
import os
import sys

import numpy as np

from ..system.errors import UserError, complain
from ..system.terminal import printable
from .pipeline_torch import TorchPipeline
from .resize import decoded

AT_ONCE = 64  # pictures in memory
STDIN = "-"
MOST_BYTES = 1 << 30  # of standard input


class Given:
    """A data set of one split, "given": pictures (N, stored_size, stored_size, 3) uint8 in memory, without labels."""

    def __init__(self, pictures):
        self.splits = {"given": _GivenSplit(pictures)}


class _GivenSplit:
    storage = "pixels"

    def __init__(self, pictures):
        self.pictures, self.labels = pictures, np.full(len(pictures), -1)

    def __len__(self):
        return len(self.pictures)

    def read(self, index):
        return self.pictures[index]


def answered(paths, size, answer):
    """Yields (path, stored picture (size, size, 3) uint8, its answer) of each file, in order.

    answer(pictures): one answer a picture, of `AT_ONCE` at most. A file that can't be read is a line on standard error,
    and yields (path, the UserError that says why, None). "-" is standard input. Any format that Pillow opens;
    `stored_picture` decides about modes, transparency and orientation."""
    for start in range(0, len(paths), AT_ONCE):
        some = [(path, _read(path, size)) for path in paths[start : start + AT_ONCE]]
        good = [picture for _, picture in some if not isinstance(picture, UserError)]
        answers = iter(answer(good)) if good else iter(())
        for path, picture in some:
            if isinstance(picture, UserError):
                complain(picture)
                yield path, picture, None
            else:
                yield path, picture, next(answers)


def _read(path, size):
    try:
        if path != STDIN:
            # a pipe would be waited for
            if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
                raise UserError(f"cannot read image {path}: it is not a regular file")
            return decoded(path, size, path)
        content = sys.stdin.buffer.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise UserError(f"cannot read image -: more than {MOST_BYTES:,} bytes")
        return decoded(io.BytesIO(content), size, STDIN)
    except UserError as error:
        return UserError(printable(str(error)))


def pipeline_of(pictures, network, statistics):
    """The pipeline whose split "given" is a list of stored pictures, at least one, on the network's devices."""
    pipeline = TorchPipeline(Given(np.stack(pictures)), network.recipe, network.exchange.devices, workers=0)
    pipeline.use(statistics)
    return pipeline
