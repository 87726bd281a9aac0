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
        return [([towers[0].clone() for towers in crops], labels) for crops, labels in batches]


@PRESETS
@every("workers", [0, 1, 3])
def test_the_batches_are_those_of_the_definition(dataset, preset, way, workers):
    """Three epochs with noise, without and with more; the last batch of each has five images."""
    recipe, noise = tiny(preset), {1: 0.1, 2: 0.0, 3: 0.3}
    expected = list(as_defined(dataset, recipe).train(0, 3, noise.get))
    batches = list(raw(dataset, recipe, workers, way=way).train(0, 3, noise.get))
    assert [(batch.epoch, len(batch.labels)) for batch in batches] == [(e, n) for e in (1, 2, 3) for n in (8, 8, 5)]
    assert same(batches, expected) and batches[0].images[0].is_contiguous(memory_format=torch.channels_last)
    assert not same(batches[:3], batches[3:6])


@PRESETS
@every("dtype, memory_format", [(torch.float32, torch.channels_last), (torch.bfloat16, torch.contiguous_format)])
def test_what_is_left_to_the_step_makes_the_same_images(dataset, preset, dtype, memory_format, monkeypatch):
    """Whatever the noise of the epoch; both towers on a device share it; nothing of a batch lies in another's
    memory."""
    monkeypatch.setattr(pipeline_raw, "_page_locked", plain)
    recipe, noise, options = tiny(preset), {1: 0.1, 2: 0.0, 3: 0.3}, dict(dtype=dtype, memory_format=memory_format)
    pipeline = raw(dataset, recipe, 1, ("cpu", "cpu"), way="ahead", **options)
    pipeline.left_to_step = True
    batches = list(pipeline.train(0, 3, noise.get))
    for batch in batches:
        assert isinstance(batch.images[0], Uncropped) and batch.images[0] is batch.images[1]
        images = all_images(batch.images)
        assert images[0] is images[1] and images[0].is_contiguous(memory_format=memory_format)
        batch.images[:] = images[:1]
    assert same(batches, list(as_defined(dataset, recipe, **options).train(0, 3, noise.get)))
    assert isinstance(next(pipeline.views("val", 4, centre_view(recipe)))[0].__next__()[0], torch.Tensor)


@PRESETS
@every("dtype, memory_format", [(torch.bfloat16, torch.channels_last), (torch.float16, torch.contiguous_format)])
def test_every_dtype_and_memory_format(dataset, preset, dtype, memory_format):
    recipe, options = tiny(preset), dict(dtype=dtype, memory_format=memory_format)
    own = list(raw(dataset, recipe, **options).train(0, 1, tenth))
    assert same(own, list(as_defined(dataset, recipe, **options).train(0, 1, tenth)))
    assert all(
        batch.images[0].dtype == dtype and batch.images[0].is_contiguous(memory_format=memory_format) for batch in own
    )


@PRESETS
def test_a_start_at_step_k_skips_k_batches(dataset, preset, way, monkeypatch):
    # so that batches of two epochs are drawn for together, and apart
    monkeypatch.setattr(batches_module, "DRAWN_AT_ONCE", 2)
    batches = list(as_defined(dataset, tiny(preset)).train(0, 3, tenth))
    for step in range(10):
        assert same(list(raw(dataset, tiny(preset), way=way).train(step, 3, tenth)), batches[step:])


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
            batches = views(raw(dataset, recipe, 2, way=way), which)
        assert [len(labels) for _, labels in batches] == [4, 4, 3]
        assert torch.cat([labels for _, labels in batches]).tolist() == [label("val", index) for index in range(VAL)]
        for (images, labels), (others, other_labels) in zip(batches, expected, strict=True):
            assert torch.equal(labels, other_labels) and len(images) == len(which)
            assert all(torch.equal(a, b) for a, b in zip(images, others, strict=True))
    # not all views are asked for
    first_views = [next(iter(crops))[0] for crops, _ in raw(dataset, recipe, way=way).views("val", 4, which)]
    assert all(torch.equal(a, images[0]) for a, (images, _) in zip(first_views, expected, strict=True))


def test_both_towers_on_a_device_share_a_batch(dataset):
    batch = next(raw(dataset, tiny(paper), devices=("cpu", "cpu")).train(0, 1, tenth))
    assert len(batch.images) == 2 and batch.images[0] is batch.images[1]
    assert [
        len(towers)
        for crops, _ in raw(dataset, tiny(paper), devices=("cpu",) * 2).views("val", 4, [(0, 0, True)])
        for towers in crops
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
    expected = next(as_defined(dataset, tiny(paper)).train(0, 1, tenth))
    order = [index for batch in pipeline_raw.EpochKeys(tiny(paper), TRAIN, 0, 1) for index in batch[2]]
    dataset.splits["train"].damaged.add(order[BATCH + 3])
    dataset.splits["val"].damaged.add(9)
    batches = []
    with pytest.raises(UserError, match=f"^cannot read image train/{order[BATCH + 3]}: damaged$"):
        for batch in raw(dataset, tiny(paper), workers, way=way).train(0, 1, tenth):
            batches.append(batch)
    assert same(batches, [expected])
    with pytest.raises(UserError, match="^cannot read image val/9: damaged$"):
        views(raw(dataset, tiny(paper), workers, way=way), centre_view(tiny(paper)))
    assert_no_thread()


def assert_no_thread():
    names = [thread.name for thread in threading.enumerate() if thread.name.startswith(("batches ahead", "read"))]
    assert not names, names


def test_closing_in_the_middle_of_an_epoch_ends_every_thread(dataset, way):
    for count in (0, 1, 2):
        batches = raw(dataset, tiny(paper), 3, way=way).train(0, 1000, tenth)
        for _ in range(count):
            next(batches)
        batches.close()
        assert_no_thread()
    view_batches = raw(dataset, tiny(paper), 3, way=way).views("val", 2, centre_view(tiny(paper)))
    next(view_batches)
    view_batches.close()
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


def settled(source, count):
    """How many items were made when the thread has come to rest, after these at the least."""
    deadline = time.monotonic() + 60
    while len(source.made) < count and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    return len(source.made)


@pytest.mark.run
def test_the_thread_is_two_items_ahead_and_no_more():
    source = Counted(20)
    with closing(ahead(source.items(), [])) as items:
        for number in range(4):
            assert next(items)[1] == number
            assert settled(source, number + 1 + AHEAD) == number + 1 + AHEAD
        assert [int(number) for _, number in items] == list(range(4, 20))
    assert source.made == list(range(20)) and source.closed_by == "batches ahead"
    assert_no_thread()


def test_an_exception_of_the_thread_comes_after_the_items_before_it():
    source, numbers = Counted(20, fails_at=3), []
    with pytest.raises(KeyError, match="broken"):
        for _, number in ahead(source.items(), []):
            numbers.append(int(number))
    assert numbers == [0, 1, 2] and source.closed_by == "batches ahead"
    assert_no_thread()


def test_an_exception_of_the_consumer_ends_the_thread():
    source = Counted(20)
    with pytest.raises(ZeroDivisionError), closing(ahead(source.items(), [])) as items:
        for _, number in items:
            1 / int(number)
    assert len(source.made) <= 1 + AHEAD and source.closed_by == "batches ahead"
    assert_no_thread()


@pytest.mark.run
def test_ctrl_c_reaches_a_consumer_that_waits():
    source, timer = Counted(3, seconds=0.5), threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt), closing(ahead(source.items(), [])) as items:
        list(items)
    assert len(source.made) <= 2
    assert_no_thread()


@pytest.mark.run
def test_an_item_is_let_go_when_the_next_one_is_asked_for():
    """Else a batch more would be held than anybody needs, here or in the thread."""
    items, live_counts = [], []

    def slow():
        for number in range(5):
            time.sleep(0.05)  # the consumer waits
            live_counts.append(sum(item() is not None for item in items))
            tensor = torch.tensor(number)
            items.append(weakref.ref(tensor))
            yield {}, tensor
            del tensor

    for _, number in ahead(slow(), []):
        del number
    assert live_counts == [0] * 5


def test_threads_take_no_more_than_one_stream_of_a_device(streams):
    """Training and validations. What a thread made may be read, and freed, by the stream that asked for it."""
    devices = [torch.device("cuda:0"), torch.device("cuda:1")]

    def items():
        for _ in range(3):
            tensors = [Memory(streams, device) for device in (*devices, devices[0])]
            for tensor in tensors:
                tensor.write()
            yield dict(zip(devices, tensors)), tensors[-1]

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
        for batch, other in zip(batches, expected, strict=True):
            on_gpu, on_cpu = batch.images
            assert on_gpu.device == torch.device("cuda:0") and batch.labels.is_cuda
            copy = on_gpu.clone()  # queued on this stream; the thread's memory must stay until it has run
            torch.cuda._sleep(1_000_000)
            late_copy = on_gpu + 0
            del batch, on_gpu
            assert torch.equal(on_cpu, other.images[0])
            assert torch.equal(copy.cpu(), other.images[0]) and torch.equal(late_copy.cpu(), other.images[0])
    for (own, labels), (images, _) in zip(
        views(raw(dataset, recipe, workers, devices=("cuda:0",)), ten_views(recipe)),
        views(as_defined(dataset, recipe), ten_views(recipe)),
        strict=True,
    ):
        assert labels.is_cuda and all(torch.equal(a.cpu(), b) for a, b in zip(own, images, strict=True))


@needs_gpu
@PRESETS
def test_what_is_left_to_the_step_on_a_gpu_is_the_cpus(dataset, preset):
    """Made by a graph that was captured with the first batch."""
    recipe, pipeline = tiny(preset), raw(dataset, tiny(preset), 2, devices=("cuda:0", "cuda:0"))
    pipeline.left_to_step = True
    expected = [batch for batch in as_defined(dataset, recipe).train(0, 40, tenth) if len(batch.labels) == BATCH]
    graph = place = y = None
    tensors = []
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
                tensors.append(y.clone())
    assert all(torch.equal(tensor.cpu(), other.images[0]) for tensor, other in zip(tensors, expected, strict=True))


@pytest.mark.gpu(2, reason="needs two GPUs")
def test_each_gpu_gets_the_batch(dataset):
    expected = list(as_defined(dataset, tiny(paper)).train(0, 5, tenth))
    for batch, other in zip(
        raw(dataset, tiny(paper), 2, devices=("cuda:0", "cuda:1")).train(0, 5, tenth), expected, strict=True
    ):
        assert [images.device.index for images in batch.images] == [0, 1]
        assert all(torch.equal(images.cpu(), other.images[0]) for images in batch.images)
