"""Raw pixels give the batches that `pipeline_torch.py` defines, to the bit; the thread that works ahead for a GPU
always ends."""

import dataclasses
import gc
import os
import signal
import threading
import time
import warnings
import weakref
from contextlib import closing

import numpy as np
import pytest
import torch
from fake_streams import Memory
from inner_cases import every
from small_set import BATCH, PRESETS, STORED, TRAIN, VAL, fitted, label, picture, same, tenth, tiny

from alexnet_mp.data import batches as batches_module
from alexnet_mp.data import pipeline_raw
from alexnet_mp.data.batches_ahead import AHEAD, ahead
from alexnet_mp.data.pipeline_raw import RawPipeline
from alexnet_mp.data.pipeline_torch import TorchPipeline
from alexnet_mp.data.step_input import Uncropped, all_images
from alexnet_mp.evaluation.protocol import centre_view, ten_views
from alexnet_mp.recipes.architectures import paper
from alexnet_mp.system.errors import UserError

needs_gpu = pytest.mark.gpu(reason="needs a GPU")


class Pixels:
    """The pictures of `small_set` in a file, in another order and at odd addresses, read through a memory map."""

    storage = "pixels"

    def __init__(self, path, split, count):
        self.labels = np.array([label(split, index) for index in range(count)])
        self.names, self.damaged = [f"{split}/{index}" for index in range(count)], set()
        self.places = np.random.default_rng(4).permutation(count)
        content = np.zeros((count, 13 + 3 * STORED**2), np.uint8)
        for index, place in enumerate(self.places):
            content[place, 13:] = picture(split, index).ravel()
        content.tofile(path)
        self.map = np.memmap(path, np.uint8, "r").reshape(count, -1)

    def __len__(self):
        return len(self.labels)

    def read(self, index):
        if index in self.damaged:
            raise UserError(f"cannot read image {self.names[index]}: damaged")
        return self.map[self.places[index], 13:].reshape(STORED, STORED, 3)


class DataSet:
    def __init__(self, directory):
        self.splits = {
            split: Pixels(directory / split, split, count) for split, count in (("train", TRAIN), ("val", VAL))
        }


@pytest.fixture
def dataset(tmp_path):
    return DataSet(tmp_path)


def plain(count, size):
    """In place of page-locked memory."""
    return torch.empty(count, size, size, 3, dtype=torch.uint8)


@pytest.fixture(params=["from the map", "ahead"])
def way(request, monkeypatch):
    """Whether pictures are read straight from the map, or gathered and worked on ahead as for a GPU, in plain
    memory."""
    if request.param == "ahead":
        monkeypatch.setattr(pipeline_raw, "_page_locked", plain)
    return request.param


def raw(dataset, recipe, workers=0, devices=("cpu",), way="from the map", **options):
    pipeline = RawPipeline(dataset, recipe, devices, workers, **options)
    pipeline.on_gpu = pipeline.on_gpu or way == "ahead"
    pipeline.use(dataclasses.replace(fitted(), mean=fitted().mean.astype(np.float64) + 1e-9))
    return pipeline


def as_defined(dataset, recipe, **options):
    pipeline = TorchPipeline(dataset, recipe, ("cpu",), 0, **options)
    pipeline.use(dataclasses.replace(fitted(), mean=fitted().mean.astype(np.float64) + 1e-9))
    return pipeline


def views(pipeline, which, batch_size=4):
    with closing(pipeline.views("val", batch_size, which)) as batches:
        return [([towers[0].clone() for towers in made], labels) for made, labels in batches]


@PRESETS
@every("workers", [0, 1, 3])
def test_the_batches_are_those_of_the_definition(dataset, preset, way, workers):
    """Three epochs with noise, without and with more; the last batch of each has five images."""
    recipe, noise = tiny(preset), {1: 0.1, 2: 0.0, 3: 0.3}
    expected = list(as_defined(dataset, recipe).train(0, 3, noise.get))
    found = list(raw(dataset, recipe, workers, way=way).train(0, 3, noise.get))
    assert [(batch.epoch, len(batch.labels)) for batch in found] == [(e, n) for e in (1, 2, 3) for n in (8, 8, 5)]
    assert same(found, expected) and found[0].images[0].is_contiguous(memory_format=torch.channels_last)
    assert not same(found[:3], found[3:6])


@PRESETS
@every("dtype, memory_format", [(torch.float32, torch.channels_last), (torch.bfloat16, torch.contiguous_format)])
def test_what_is_left_to_the_step_makes_the_same_images(dataset, preset, dtype, memory_format, monkeypatch):
    """Whatever the noise of the epoch; both towers on a device share it; nothing of a batch lies in another's
    memory."""
    monkeypatch.setattr(pipeline_raw, "_page_locked", plain)
    recipe, noise, options = tiny(preset), {1: 0.1, 2: 0.0, 3: 0.3}, dict(dtype=dtype, memory_format=memory_format)
    pipeline = raw(dataset, recipe, 1, ("cpu", "cpu"), way="ahead", **options)
    pipeline.left_to_step = True
    found = list(pipeline.train(0, 3, noise.get))
    for batch in found:
        assert isinstance(batch.images[0], Uncropped) and batch.images[0] is batch.images[1]
        made = all_images(batch.images)
        assert made[0] is made[1] and made[0].is_contiguous(memory_format=memory_format)
        batch.images[:] = made[:1]
    assert same(found, list(as_defined(dataset, recipe, **options).train(0, 3, noise.get)))
    assert isinstance(next(pipeline.views("val", 4, centre_view(recipe)))[0].__next__()[0], torch.Tensor)


@PRESETS
@every("dtype, memory_format", [(torch.bfloat16, torch.channels_last), (torch.float16, torch.contiguous_format)])
def test_every_dtype_and_memory_format(dataset, preset, dtype, memory_format):
    recipe, options = tiny(preset), dict(dtype=dtype, memory_format=memory_format)
    found = list(raw(dataset, recipe, **options).train(0, 1, tenth))
    assert same(found, list(as_defined(dataset, recipe, **options).train(0, 1, tenth)))
    assert all(
        batch.images[0].dtype == dtype and batch.images[0].is_contiguous(memory_format=memory_format) for batch in found
    )


@PRESETS
def test_a_start_at_step_k_skips_k_batches(dataset, preset, way, monkeypatch):
    # so that batches of two epochs are drawn for together, and apart
    monkeypatch.setattr(batches_module, "DRAWN_AT_ONCE", 2)
    whole = list(as_defined(dataset, tiny(preset)).train(0, 3, tenth))
    for step in range(10):
        assert same(list(raw(dataset, tiny(preset), way=way).train(step, 3, tenth)), whole[step:])


@every("threads", [1, 2, 3])
def test_the_number_of_the_kernels_threads_decides_nothing(dataset, threads):
    before, expected = torch.get_num_threads(), list(as_defined(dataset, tiny(paper)).train(0, 1, tenth))
    torch.set_num_threads(threads)
    try:
        assert same(list(raw(dataset, tiny(paper)).train(0, 1, tenth)), expected)
    finally:
        torch.set_num_threads(before)


@PRESETS
def test_views_are_those_of_the_definition(dataset, preset, way):
    """Each image once, in order; in inference mode, as a test of the network runs, with a view left out."""
    recipe = tiny(preset)
    for which in (centre_view(recipe), ten_views(recipe)):
        expected = views(as_defined(dataset, recipe), which)
        with torch.inference_mode():
            found = views(raw(dataset, recipe, 2, way=way), which)
        assert [len(labels) for _, labels in found] == [4, 4, 3]
        assert torch.cat([labels for _, labels in found]).tolist() == [label("val", index) for index in range(VAL)]
        for (images, labels), (wanted, wanted_labels) in zip(found, expected, strict=True):
            assert torch.equal(labels, wanted_labels) and len(images) == len(which)
            assert all(torch.equal(a, b) for a, b in zip(images, wanted, strict=True))
    # not all views are asked for
    made = [next(iter(made))[0] for made, _ in raw(dataset, recipe, way=way).views("val", 4, which)]
    assert all(torch.equal(a, images[0]) for a, (images, _) in zip(made, expected, strict=True))


def test_both_towers_on_a_device_share_a_batch(dataset):
    batch = next(raw(dataset, tiny(paper), devices=("cpu", "cpu")).train(0, 1, tenth))
    assert len(batch.images) == 2 and batch.images[0] is batch.images[1]
    assert [
        len(towers)
        for made, _ in raw(dataset, tiny(paper), devices=("cpu",) * 2).views("val", 4, [(0, 0, True)])
        for towers in made
    ] == [2, 2, 2]


def test_a_memory_map_that_may_not_be_written_is_no_cause_for_a_warning(dataset, way):
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # not only the first time in a process
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not dataset.splits["train"].read(0).flags.writeable
            list(raw(dataset, tiny(paper), 2, way=way).train(0, 1, tenth))
    finally:
        torch.set_warn_always(before)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named(dataset, way, workers):
    """The batches before it are right; no thread is left."""
    first = next(as_defined(dataset, tiny(paper)).train(0, 1, tenth))
    order = [index for batch in pipeline_raw.EpochKeys(tiny(paper), TRAIN, 0, 1) for index in batch[2]]
    dataset.splits["train"].damaged.add(order[BATCH + 3])
    dataset.splits["val"].damaged.add(9)
    found = []
    with pytest.raises(UserError, match=f"^cannot read image train/{order[BATCH + 3]}: damaged$"):
        for batch in raw(dataset, tiny(paper), workers, way=way).train(0, 1, tenth):
            found.append(batch)
    assert same(found, [first])
    with pytest.raises(UserError, match="^cannot read image val/9: damaged$"):
        views(raw(dataset, tiny(paper), workers, way=way), centre_view(tiny(paper)))
    assert_no_thread()


def assert_no_thread():
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith(("batches ahead", "read"))]
    assert not left, left


def test_closing_in_the_middle_of_an_epoch_ends_every_thread(dataset, way):
    for taken in (0, 1, 2):
        batches = raw(dataset, tiny(paper), 3, way=way).train(0, 1000, tenth)
        for _ in range(taken):
            next(batches)
        batches.close()
        assert_no_thread()
    made = raw(dataset, tiny(paper), 3, way=way).views("val", 2, centre_view(tiny(paper)))
    next(made)
    made.close()
    assert_no_thread()


@pytest.mark.run
def test_memory_stays_flat_over_fifty_epochs(dataset, way):
    """A batch of 21 images takes 258 kB: grown by less than ten of them, where fifty would have been kept."""
    recipe, sizes = tiny(paper, batch_size=TRAIN), []
    for batch in raw(dataset, recipe, 2, way=way).train(0, 70, tenth):
        if batch.epoch in (20, 70):
            gc.collect()
            with open("/proc/self/statm") as pages:
                sizes.append(int(pages.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    assert sizes[1] - sizes[0] < 2_580_000, sizes


# The thread that works ahead, alone: an item is no pictures, and a number for the labels.


class Counted:
    """A generator of items, and what became of it."""

    def __init__(self, count, fails_at=None, seconds=0.0):
        self.count, self.fails_at, self.seconds, self.made, self.closed_by = count, fails_at, seconds, [], None

    def items(self):
        try:
            for number in range(self.count):
                time.sleep(self.seconds)
                if number == self.fails_at:
                    raise KeyError("broken")
                self.made.append(number)
                yield {}, torch.tensor(number)
        finally:
            self.closed_by = threading.current_thread().name


def settled(counted):
    """How many items were made when the thread has come to rest."""
    before = -1
    while len(counted.made) != before:
        before = len(counted.made)
        time.sleep(0.1)
    return before


@pytest.mark.run
def test_the_thread_is_two_items_ahead_and_no_more():
    counted = Counted(20)
    with closing(ahead(counted.items(), [])) as items:
        for number in range(4):
            assert next(items)[1] == number
            assert settled(counted) == number + 1 + AHEAD
        assert [int(number) for _, number in items] == list(range(4, 20))
    assert counted.made == list(range(20)) and counted.closed_by == "batches ahead"
    assert_no_thread()


def test_an_exception_of_the_thread_comes_after_the_items_before_it():
    counted, seen = Counted(20, fails_at=3), []
    with pytest.raises(KeyError, match="broken"):
        for _, number in ahead(counted.items(), []):
            seen.append(int(number))
    assert seen == [0, 1, 2] and counted.closed_by == "batches ahead"
    assert_no_thread()


def test_an_exception_of_the_consumer_ends_the_thread():
    counted = Counted(20)
    with pytest.raises(ZeroDivisionError), closing(ahead(counted.items(), [])) as items:
        for _, number in items:
            1 / int(number)
    assert len(counted.made) <= 1 + AHEAD and counted.closed_by == "batches ahead"
    assert_no_thread()


@pytest.mark.run
def test_ctrl_c_reaches_a_consumer_that_waits():
    counted, waits = Counted(3, seconds=0.5), threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    waits.start()
    with pytest.raises(KeyboardInterrupt), closing(ahead(counted.items(), [])) as items:
        list(items)
    assert len(counted.made) <= 2
    assert_no_thread()


@pytest.mark.run
def test_an_item_is_let_go_when_the_next_one_is_asked_for():
    """Else a batch more would be held than anybody needs, here or in the thread."""
    items, left = [], []

    def slow():
        for number in range(5):
            time.sleep(0.05)  # the consumer waits
            left.append(sum(item() is not None for item in items))
            tensor = torch.tensor(number)
            items.append(weakref.ref(tensor))
            yield {}, tensor
            del tensor

    for _, number in ahead(slow(), []):
        del number
    assert left == [0] * 5


def test_threads_take_no_more_than_one_stream_of_a_device(streams):  # noqa: F811
    """Training and validations. What a thread made may be read, and freed, by the stream that asked for it."""
    devices = [torch.device("cuda:0"), torch.device("cuda:1")]

    def items():
        for _ in range(3):
            made = [Memory(streams, device) for device in (*devices, devices[0])]
            for tensor in made:
                tensor.write()
            yield dict(zip(devices, made)), made[-1]

    with closing(ahead(items(), devices)) as training:
        next(training)
        for _ in range(40):
            for pictures, labels in ahead(items(), devices):
                for tensor in (*pictures.values(), labels):
                    tensor.read()
                    tensor.free()
    assert streams.asked == dict.fromkeys(devices, 1)


@needs_gpu
@pytest.mark.parametrize("workers", [0, 4])
@PRESETS
def test_a_gpus_batches_are_the_cpus(dataset, preset, workers):
    recipe, expected = tiny(preset), list(as_defined(dataset, tiny(preset)).train(0, 40, tenth))
    with closing(raw(dataset, recipe, workers, devices=("cuda:0", "cpu")).train(0, 40, tenth)) as batches:
        for batch, wanted in zip(batches, expected, strict=True):
            on_gpu, on_cpu = batch.images
            assert on_gpu.device == torch.device("cuda:0") and batch.labels.is_cuda
            kept = on_gpu.clone()  # queued on this stream; the thread's memory must stay until it has run
            torch.cuda._sleep(1_000_000)
            later = on_gpu + 0
            del batch, on_gpu
            assert torch.equal(on_cpu, wanted.images[0])
            assert torch.equal(kept.cpu(), wanted.images[0]) and torch.equal(later.cpu(), wanted.images[0])
    for (found, labels), (images, _) in zip(
        views(raw(dataset, recipe, workers, devices=("cuda:0",)), ten_views(recipe)),
        views(as_defined(dataset, recipe), ten_views(recipe)),
        strict=True,
    ):
        assert labels.is_cuda and all(torch.equal(a.cpu(), b) for a, b in zip(found, images, strict=True))


@needs_gpu
@PRESETS
def test_what_is_left_to_the_step_on_a_gpu_is_the_cpus(dataset, preset):
    """Made by a graph that was captured with the first batch."""
    recipe, pipeline = tiny(preset), raw(dataset, tiny(preset), 2, devices=("cuda:0", "cuda:0"))
    pipeline.left_to_step = True
    expected = [batch for batch in as_defined(dataset, recipe).train(0, 40, tenth) if len(batch.labels) == BATCH]
    graph = place = y = None
    found = []
    with closing(pipeline.train(0, 40, tenth)) as batches:
        for batch in batches:
            if len(batch.labels) == BATCH:
                if graph is None:
                    batch.images[0].images()
                    place, graph = batch.images[0].clone(), torch.cuda.CUDAGraph()
                    torch.cuda.synchronize()
                    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                        y = place.images()
                place.copy_(batch.images[0], non_blocking=True)
                graph.replay()
                found.append(y.clone())
    assert all(torch.equal(one.cpu(), other.images[0]) for one, other in zip(found, expected, strict=True))


@pytest.mark.gpu(2, reason="needs two GPUs")
def test_each_gpu_gets_the_batch(dataset):
    expected = list(as_defined(dataset, tiny(paper)).train(0, 5, tenth))
    for batch, wanted in zip(
        raw(dataset, tiny(paper), 2, devices=("cuda:0", "cuda:1")).train(0, 5, tenth), expected, strict=True
    ):
        assert [images.device.index for images in batch.images] == [0, 1]
        assert all(torch.equal(images.cpu(), wanted.images[0]) for images in batch.images)
