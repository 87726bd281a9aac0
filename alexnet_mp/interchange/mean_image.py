"""The mean image that a network was trained with, from what people have of it."""

import os
import re
from pathlib import Path

import numpy as np

from ..data.pixel_statistics import STATISTICS, Statistics
from ..system import durable_files
from ..system.errors import need
from . import arrays, caffe_files

_LEVELS = re.compile(r"\d{1,3}(\.\d{1,12})?(,\d{1,3}(\.\d{1,12})?){2}", re.ASCII)
MOST_BYTES = 1 << 28  # of a file
BESIDE = ("mean.binaryproto", "imagenet_mean.binaryproto", STATISTICS, "mean.npy")
TAKES = (
    f"--mean takes .binaryproto, .npy of (height, width, 3) in RGB, {STATISTICS} of a run, or three grey levels R,G,B"
)


def read_mean(source: str | Path, side: int) -> Statistics:
    """The `Statistics` of a file or of three numbers, of pictures of side x side.

    Nobody knows the principal components of colours but a run's statistics: without them they have no length, and
    nothing could be shifted along them. Raises OSError, ValueError, `caffe_files.DAMAGE`."""
    path, real = Path(source), os.path.realpath(source)  # in a cache of models it is a link, and its name alone tells
    if _LEVELS.fullmatch(str(source)):
        image = np.broadcast_to([float(level) for level in str(source).split(",")], (side, side, 3)).copy()
    elif path.name == STATISTICS:
        return _checked(Statistics.of_file(real), side)
    elif path.suffix == ".binaryproto":
        image = caffe_files.read_mean(durable_files.read(real, MOST_BYTES))
    else:
        need(path.suffix == ".npy", TAKES)
        image = arrays.read_array(real, MOST_BYTES)
    return _checked(Statistics(image, np.zeros(3), np.eye(3)), side)


def _checked(statistics, side):
    statistics.check(side)
    need(((statistics.mean >= 0) & (statistics.mean <= 255)).all(), "it has values that are no grey levels, 0 to 255")
    return statistics
