"""The same small pictures as files, as JPEGs and as pixels; pipelines over them; and a check that nothing of one
stays."""

import functools
import gc
import io
import multiprocessing
import os
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from small_set import STORED, TRAIN, VAL, fitted, label, picture, tenth, tiny, write_set

from alexnet_mp.data.dataset import Folder
from alexnet_mp.data.pipeline_dali import DaliPipeline, available
from alexnet_mp.data.pipeline_torch import TorchPipeline
from alexnet_mp.data.resize import decoded
from alexnet_mp.evaluation.protocol import ten_views
from alexnet_mp.recipes.architectures import paper
from alexnet_mp.system.errors import UserError

needs_dali = pytest.mark.skipif(not available(), reason="DALI is not installed")
needs_gpu = pytest.mark.gpu(besides=available(), reason="needs DALI and a GPU")
needs_no_gpu = pytest.mark.skipif(
    not available() or torch.cuda.is_available(), reason="needs DALI and a machine without a GPU"
)
PIPELINES = pytest.mark.parametrize(
    "kind", [pytest.param(DaliPipeline, marks=needs_dali), TorchPipeline], ids=["dali", "torch"]
)
# of tests that start processes, which are the same of both
QUICK_PIPELINES = pytest.mark.parametrize(
    "kind", [pytest.param(DaliPipeline, marks=[needs_dali, pytest.mark.slow]), TorchPipeline], ids=["dali", "torch"]
)
ORIENTATION = 0x0112  # an EXIF tag; 6 says that the picture is to be turned by 90 degrees
NOISE = {1: 0.1, 2: 0.0, 3: 0.3}  # of three epochs: each has its own scale in the 2012 recipe


class Jpegs:
    """A split of JPEG files in memory, of the stored size; nothing about them is checked."""

    storage = "jpeg"

    def __init__(self, files, size=STORED, labels=None):
        self.files, self.size, self.names = files, size, [f"image {number}" for number in range(len(files))]
        self.labels = np.zeros(len(files), np.int64) if labels is None else labels

    def __len__(self):
        return len(self.files)

    def jpeg(self, index):
        return np.frombuffer(self.files[index], np.uint8)

    def read(self, index):
        return decoded(io.BytesIO(self.files[index]), self.size, self.names[index])


def jpeg(pixels, **options):
    """A JPEG file of an image, bytes."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **{"quality": 95} | options)
    return file.getvalue()


def jpegs(split, count, **options):
    return Jpegs(
        [jpeg(picture(split, index), **options) for index in range(count)],
        labels=np.array([label(split, index) for index in range(count)]),
    )


class Pixels:
    """A split of the pictures themselves, in memory."""

    storage = "pixels"

    def __init__(self, split, count):
        self.pictures = [picture(split, index) for index in range(count)]
        self.labels = np.array([label(split, index) for index in range(count)])

    def __len__(self):
        return len(self.pictures)

    def read(self, index):
        return self.pictures[index]


def in_memory(train, val=None):
    return SimpleNamespace(splits={"train": train, "val": val or train})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def sources(root):
    """Data sets of the same pictures by what their splits hold."""
    return {
        "files": Folder(root, STORED),
        "jpeg": in_memory(jpegs("train", TRAIN), jpegs("val", VAL)),
        "pixels": in_memory(Pixels("train", TRAIN), Pixels("val", VAL)),
    }


SOURCES = pytest.mark.parametrize("source", ["files", "jpeg", "pixels"])


def pipeline(kind, dataset, recipe, workers=0, devices=("cpu",), statistics=None, **options):
    result = kind(dataset, recipe, devices, workers, **options)
    result.use(statistics or fitted())
    return result


def views_of(reader, batch_size=4, which=None):
    """[(views of a batch, labels)], all made."""
    return [
        (list(views), labels) for views, labels in reader.views("val", batch_size, which or ten_views(reader.recipe))
    ]


def same_views(views, expected):
    return len(views) == len(expected) and all(
        torch.equal(labels, others)
        and len(a) == len(b)
        and all(torch.equal(x, y) for v, w in zip(a, b) for x, y in zip(v, w))
        for (a, labels), (b, others) in zip(views, expected)
    )


def threads():
    """The threads of this process, and the processes that it started."""
    return len(os.listdir("/proc/self/task")), len(multiprocessing.active_children())


@functools.cache
def begin_on_gpu():
    """Threads that CUDA and DALI keep for the whole process are there from now on."""
    if available() and torch.cuda.is_available():
        reader = pipeline(DaliPipeline, in_memory(jpegs("train", TRAIN), jpegs("val", VAL)), tiny(paper), 2, ["cuda:0"])
        list(reader.train(0, 1, tenth))
        views_of(reader)


@pytest.fixture
def nothing_stays():
    """A function that fails where threads or processes were left behind; called at the end in any case."""
    torch.zeros(10**6).sum()  # PyTorch's own threads are there from now on
    begin_on_gpu()
    gc.collect()
    before = threads()

    def more_than(before):  # NumPy's own threads end when a process is forked
        return any(now > then for now, then in zip(threads(), before))

    def check():
        end = time.monotonic() + 5
        while more_than(before) and time.monotonic() < end:  # a thread that has ended may be listed for a moment
            time.sleep(0.01)
        assert not more_than(before), (threads(), before)

    yield check
    check()


def until_error(batches):
    """([what comes before the UserError], the error)."""
    prefix = []
    with pytest.raises(UserError) as error:
        for batch in batches:
            prefix.append(batch)
    return prefix, error.value
