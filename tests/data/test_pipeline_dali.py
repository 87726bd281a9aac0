"""DALI gives the batches that `pipeline_torch.py` defines, to the last bit on a CPU."""

import dataclasses
import shutil
import threading
import weakref
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import prepared_sets
import pytest
import torch
from inner_cases import every
from PIL import Image, ImageFile
from pipeline_sets import (
    NOISE,
    ORIENTATION,
    SOURCES,
    Jpegs,
    in_memory,
    jpeg,
    needs_dali,
    needs_gpu,
    needs_no_gpu,
    pipeline,
    same_views,
    until_error,
    views_of,
)
from small_set import PRESETS, STORED, TRAIN, fitted, same, tenth, tiny

from alexnet_mp.data import augmentation, pipeline_dali
from alexnet_mp.data import batches as batches_module
from alexnet_mp.data.dataset import Folder, cache_splits, open_dataset
from alexnet_mp.data.pipeline_dali import DaliPipeline
from alexnet_mp.data.pipeline_torch import TorchPipeline
from alexnet_mp.evaluation.protocol import centre_view, ten_views
from alexnet_mp.recipes.architectures import paper
from alexnet_mp.system.errors import UserError


@pytest.mark.process
@needs_dali
@PRESETS
@SOURCES
def test_every_batch_is_that_of_pytorch_to_the_bit(sources, preset, source):
    """All of them kept until the end: DALI doesn't use their memory again."""
    expected = list(
        pipeline(TorchPipeline, sources[source], tiny(preset), devices=("cpu", "cpu")).train(0, 3, NOISE.get)
    )
    batches = list(
        pipeline(DaliPipeline, sources[source], tiny(preset), 2, devices=("cpu", "cpu")).train(0, 3, NOISE.get)
    )
    assert [(batch.epoch, len(batch.labels)) for batch in batches] == [(e, n) for e in (1, 2, 3) for n in (8, 8, 5)]
    assert same(batches, expected) and len(batches[0].images) == 2
    assert all(batch.images[0].is_contiguous(memory_format=torch.channels_last) for batch in batches)


@pytest.mark.process
@needs_dali
@PRESETS
@SOURCES
def test_every_view_is_that_of_pytorch_to_the_bit(sources, preset, source):
    expected = views_of(pipeline(TorchPipeline, sources[source], tiny(preset), devices=("cpu", "cpu")))
    batches = views_of(pipeline(DaliPipeline, sources[source], tiny(preset), 2, devices=("cpu", "cpu")))
    assert [len(labels) for _, labels in batches] == [4, 4, 3] and same_views(batches, expected)


@pytest.mark.run
@needs_dali
@PRESETS
@every("dtype", [torch.float32, torch.bfloat16, torch.float16])
@every("memory_format", [torch.channels_last, torch.contiguous_format])
def test_every_type_and_layout_is_that_of_pytorch_to_the_bit(sources, preset, dtype, memory_format):
    options = {"dtype": dtype, "memory_format": memory_format}
    expected, batches = (
        list(pipeline(kind, sources["jpeg"], tiny(preset), **options).train(0, 1, tenth))
        for kind in (TorchPipeline, DaliPipeline)
    )
    assert same(batches, expected) and all(batch.images[0].dtype == dtype for batch in batches)
    assert all(batch.images[0].is_contiguous(memory_format=memory_format) for batch in batches)
    expected, batches = (
        views_of(pipeline(kind, sources["pixels"], tiny(preset), **options), which=centre_view(tiny(preset)))
        for kind in (TorchPipeline, DaliPipeline)
    )
    assert same_views(batches, expected) and batches[0][0][0][0].dtype == dtype


@pytest.mark.run
@needs_dali
@every(
    "changes",
    [
        {"crop_size": STORED, "crop_positions": 1},
        {"crop_size": 11, "crop_positions": 30},
        {"crop_size": 1, "crop_positions": 40},
        {"flip": False},
        {"crop_share": 1, "mean_follows_crop": False},
        {"crop_share": 3, "mean_follows_crop": True},
        {"colour_shrink": True, "colour_scale": "eigenvalue"},
        {"batch_size": TRAIN + 5},
        {"batch_size": 1},
    ],
)
def test_every_recipe_is_that_of_pytorch_to_the_bit(sources, changes):
    expected, batches = (
        list(pipeline(kind, sources["jpeg"], tiny(paper, **changes)).train(0, 2, NOISE.get))
        for kind in (TorchPipeline, DaliPipeline)
    )
    assert same(batches, expected)


@pytest.mark.run
@needs_dali
@pytest.mark.parametrize("size", [256, 57])
def test_every_kind_of_jpeg_is_decoded_as_pillow_does_to_the_bit(monkeypatch, size):
    monkeypatch.setattr(ImageFile, "MAXBLOCK", 2**20)  # Pillow writes noise only into a larger buffer
    noise = np.random.default_rng(2).integers(0, 256, (size, size, 3), dtype=np.uint8)
    ramp = np.stack([np.add.outer(np.arange(size), np.arange(size) * factor) % 256 for factor in (1, 2, 5)], 2).astype(
        np.uint8
    )
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    files = [
        jpeg(pixels, quality=quality, subsampling=subsampling, progressive=progressive)
        for pixels in (noise, ramp)
        for quality in (30, 75, 85, 95, 100)
        for subsampling in (0, 1, 2)
        for progressive in (False, True)
    ]
    files += [
        jpeg(ramp, exif=exif),
        jpeg(ramp[:, :, 0]),
        jpeg(ramp, optimize=True),
        jpeg(ramp, restart_marker_rows=1),
        jpeg(ramp, keep_rgb=True),
        jpeg(noise) + b"trailing",
    ]
    recipe = tiny(paper, stored_size=size, crop_size=size, crop_positions=1, batch_size=len(files))
    moments = dataclasses.replace(fitted(), mean=np.zeros((size, size, 3)))
    expected, batches = (
        list(pipeline(kind, in_memory(Jpegs(files, size)), recipe, statistics=moments).train(0, 1, lambda epoch: 0.0))
        for kind in (TorchPipeline, DaliPipeline)
    )
    assert same(batches, expected)


@needs_dali
@PRESETS
def test_what_runs_on_a_gpu_computes_the_same_on_a_cpu(sources, monkeypatch, preset):
    """The graph with the mean as a constant, built on the CPU; a batch for GPUs alone brings no mean images."""
    expected = list(pipeline(DaliPipeline, sources["pixels"], tiny(preset)).train(0, 3, NOISE.get))
    monkeypatch.setattr(DaliPipeline, "_less_mean_on_cpu", DaliPipeline._less_mean_on_gpu)
    assert same(list(pipeline(DaliPipeline, sources["pixels"], tiny(preset)).train(0, 3, NOISE.get)), expected)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    draw, shift = augmentation.of_view((1, 2, True), 2), np.zeros((2, 3), np.float32)
    for devices in (["cuda:0"], ["cpu", "cuda:0"]):
        reader = pipeline(DaliPipeline, sources["pixels"], tiny(preset), devices=devices)
        inputs = reader._draw_inputs(draw.top, draw.left, draw.flip, shift)
        assert ("mean" in inputs) == ("cpu" in devices) and len(inputs["top"]) == 2


@pytest.mark.process
@needs_dali
@PRESETS
@SOURCES
def test_the_number_of_threads_decides_nothing(sources, preset, source):
    one, two, four = (pipeline(DaliPipeline, sources[source], tiny(preset), workers) for workers in (1, 2, 4))
    batches = list(one.train(0, 2, tenth))
    assert same(list(two.train(0, 2, tenth)), batches) and same(list(four.train(0, 2, tenth)), batches)
    assert same_views(views_of(two), views_of(one))


@needs_dali
@PRESETS
def test_a_start_at_step_k_skips_k_batches(sources, preset):
    reader = pipeline(DaliPipeline, sources["jpeg"], tiny(preset))
    batches = list(reader.train(0, 2, tenth))
    assert len(batches) == 6 and not same(batches[:3], batches[3:])
    for step in range(8):
        assert same(list(reader.train(step, 2, tenth)), batches[step:])


@needs_dali
def test_a_view_is_made_when_it_is_asked_for(sources, monkeypatch):
    """Views that nobody wants cost nothing, and leave the next batch as it is."""
    reader = pipeline(DaliPipeline, sources["jpeg"], tiny(paper))
    expected, which = views_of(reader), ten_views(reader.recipe)
    calls, feed = [], pipeline_dali.DaliOnDevice.feed
    monkeypatch.setattr(
        pipeline_dali.DaliOnDevice, "feed", lambda self, inputs: (calls.append(sorted(inputs)), feed(self, inputs))
    )
    for number, (views, _) in enumerate(reader.views("val", 4, which)):
        for index in range(number + 1):
            assert torch.equal(next(views)[0], expected[number][0][index][0])
    assert number == 2 and calls.count(["jpeg"]) == 3 and len(calls) == 3 + 1 + 2 + 3


@needs_dali
@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_cache_is_read(root, tmp_path, workers):
    copy = shutil.copytree(root, tmp_path / "copy")
    folder = Folder(copy, STORED)
    assert cache_splits(folder, STORED) == ["train", "val"]
    for split in folder.splits.values():
        for index in range(len(split)):
            split.read(index)
    shutil.rmtree(copy)
    batches = list(pipeline(DaliPipeline, folder, tiny(paper), workers).train(0, 1, tenth))
    assert same(batches, list(pipeline(TorchPipeline, Folder(root, STORED), tiny(paper)).train(0, 1, tenth)))


@needs_dali
@PRESETS
@pytest.mark.parametrize("options", [(), ("--raw",)], ids=["jpeg", "raw"])
def test_a_prepared_set_is_read_alike(root, tmp_path, monkeypatch, preset, options):
    dataset = open_dataset(
        str(prepared_sets.prepared(monkeypatch, root, tmp_path / "set", *options, size=STORED)), STORED
    )
    assert dataset.splits["train"].storage == ("pixels" if options else "jpeg")
    readers = [
        pipeline(kind, dataset, tiny(preset), statistics=dataset.statistics) for kind in (DaliPipeline, TorchPipeline)
    ]
    assert same(*(list(reader.train(0, 2, tenth)) for reader in readers))
    assert same_views(*(views_of(reader) for reader in readers))


# The thread that works for a GPU, here beside a CPU.


def fed_ahead(dataset, recipe, **options):
    reader = pipeline(DaliPipeline, dataset, recipe, 2, **options)
    reader.on_gpu = True
    return reader


@pytest.mark.run
@needs_dali
@PRESETS
@pytest.mark.parametrize("source", ["jpeg", "pixels"])
def test_a_thread_makes_the_same_batches_from_any_step(sources, nothing_stays, monkeypatch, preset, source):
    """Batches are drawn for two at a time, of one epoch or of two."""
    monkeypatch.setattr(batches_module, "DRAWN_AT_ONCE", 2)
    batches = list(
        pipeline(TorchPipeline, sources[source], tiny(preset), devices=("cpu", "cpu")).train(0, 3, NOISE.get)
    )
    reader = fed_ahead(sources[source], tiny(preset), devices=("cpu", "cpu"))
    for step in (0, 1, 2, 3, 7, 9):
        assert same(list(reader.train(step, 3, NOISE.get)), batches[step:])


@pytest.mark.process
@needs_dali
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")
def test_the_training_neither_feeds_dali_nor_takes_from_it(sources, nothing_stays, monkeypatch):
    """But for a folder's files: the processes that read them are started and watched by the thread that trains."""
    calls = set()
    for name in ("feed", "take"):

        def wrapped(*arguments, call=getattr(pipeline_dali.DaliOnDevice, name), name=name):
            calls.add((name, threading.current_thread().name))
            return call(*arguments)

        monkeypatch.setattr(pipeline_dali.DaliOnDevice, name, wrapped)
    for source in ("jpeg", "pixels", "files"):
        calls.clear()
        list(fed_ahead(sources[source], tiny(paper)).train(0, 1, tenth))
        thread = "MainThread" if source == "files" else "batches ahead"
        assert calls == {("feed", thread), ("take", thread)}


@needs_dali
def test_numbers_are_drawn_for_many_batches_at_once(sources, monkeypatch):
    counts, draws = [], augmentation.draws
    monkeypatch.setattr(
        batches_module, "draws", lambda *arguments: counts.append(len(arguments[2])) or draws(*arguments)
    )
    assert len(list(pipeline(DaliPipeline, sources["jpeg"], tiny(paper)).train(1, 3, tenth))) == 8
    assert counts == [13, 21, 21]  # what is left of an epoch, and two whole ones


@needs_dali
def test_views_are_made_while_a_thread_makes_batches(sources, nothing_stays):
    reader = fed_ahead(sources["jpeg"], tiny(paper))
    expected, views = list(reader.train(0, 4, tenth)), views_of(reader)
    batches = []
    for number, batch in enumerate(reader.train(0, 4, tenth)):
        batches.append(batch)
        if number % 4 == 1:
            assert same_views(views_of(reader), views)
    assert same(batches, expected)


@needs_no_gpu
def test_a_gpu_that_is_not_there_is_one_line():
    with pytest.raises(UserError, match="no CUDA device cuda:1.*--gpus cpu") as refusal:
        DaliPipeline(None, paper(), ["cpu", "cuda:1"], 2)
    assert "\n" not in str(refusal.value)


@needs_no_gpu
def test_a_gpu_that_dali_cannot_use_is_one_line(sources, nothing_stays, monkeypatch, streams):
    """PyTorch sees one, DALI doesn't: its CUDA is newer than the driver."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    reader = pipeline(DaliPipeline, sources["jpeg"], tiny(paper), devices=["cuda:0"])
    _, error = until_error(reader.train(0, 1, tenth))
    assert str(error).startswith("--pipeline dali: DALI can't use cuda:0: ") and "--pipeline torch" in str(error)
    assert "\n" not in str(error) and "Traceback" not in str(error) and "CUDA" in str(error)


@needs_gpu
@PRESETS
@pytest.mark.parametrize("source", ["files", "pixels"])
def test_on_a_gpu_the_same_pixels_give_the_same_images(sources, nothing_stays, preset, source):
    """From pictures, so without its decoder. Bounds: a rounding of 255 grey levels in float32, one step of the 16-bit
    types."""
    for dtype, bound in ((torch.float32, 1e-4), (torch.float16, 0.126), (torch.bfloat16, 1.01)):
        readers = [
            pipeline(kind, sources[source], tiny(preset), 2, ("cuda:0", "cpu"), dtype=dtype)
            for kind in (DaliPipeline, TorchPipeline)
        ]
        own, expected = (list(reader.train(0, 3, NOISE.get)) for reader in readers)
        assert len(own) == 9 and own[0].images[0].device.type == "cuda" and own[0].labels.device.type == "cuda"
        for a, b in zip(own, expected, strict=True):
            assert torch.equal(a.labels, b.labels) and torch.equal(a.images[1], b.images[1])
            assert (a.images[0].float() - b.images[0].float()).abs().max() <= bound
        for (a, labels), (b, others) in zip(*(views_of(reader) for reader in readers), strict=True):
            assert torch.equal(labels, others)
            assert all((x[0].float() - y[0].float()).abs().max() <= bound for x, y in zip(a, b, strict=True))


WHOLE = dataclasses.replace(paper(), crop_size=256, crop_positions=1, flip=False)
PLAIN = dataclasses.replace(fitted(), mean=np.zeros((256, 256, 3)))


def photographs(count):
    """JPEG files of smooth 256x256 pictures with a little noise, as photographs are, in the usual qualities."""
    random, files = np.random.default_rng(7), []
    for number in range(count):
        thumbnail = Image.fromarray(random.integers(0, 256, (17, 17, 3), dtype=np.uint8))
        pixels = np.asarray(thumbnail.resize((256, 256), Image.Resampling.BICUBIC)) + random.normal(0, 4, (256, 256, 3))
        files.append(
            jpeg(pixels.clip(0, 255).astype(np.uint8), quality=(75, 85, 95)[number % 3], subsampling=(0, 2)[number % 2])
        )
    return files


@needs_gpu
def test_the_jpeg_decoder_of_a_gpu_is_close_to_pillow(record_property, nothing_stays):
    recipe = dataclasses.replace(WHOLE, batch_size=16)
    on_gpu, on_cpu = (
        torch.cat(
            [
                batch.images[0].cpu()
                for batch in pipeline(kind, in_memory(Jpegs(photographs(60), 256)), recipe, 2, [device], PLAIN).train(
                    0, 1, lambda epoch: 0.0
                )
            ]
        )
        for kind, device in ((DaliPipeline, "cuda:0"), (TorchPipeline, "cpu"))
    )
    levels = (on_gpu - on_cpu).abs().flatten().double().numpy()
    differences = {"mean": levels.mean(), "99.9th percentile": np.quantile(levels, 0.999), "largest": levels.max()}
    print("grey levels between the decoders:", differences)
    record_property("grey_levels", differences)
    assert differences["mean"] < 1 and differences["99.9th percentile"] <= 4


@needs_gpu
def test_on_a_gpu_a_picture_is_decoded_alike_wherever_it_lies_in_a_batch(nothing_stays):
    """In the order of two epochs, and in batches of other sizes."""
    epochs = []
    for size in (128, 50, 7, 1):
        recipe, files = dataclasses.replace(WHOLE, batch_size=size), photographs(128)
        reader = pipeline(DaliPipeline, in_memory(Jpegs(files, 256)), recipe, 2, ["cuda:0"], PLAIN)
        for epoch in (1, 2):
            epochs.append({})
            for batch in reader.train((epoch - 1) * -(-128 // size), epoch, lambda epoch: 0.0):
                epochs[-1] |= zip(batch.numbers.tolist(), batch.images[0].cpu())
    assert all(len(pictures) == 128 for pictures in epochs)
    for number, picture in epochs[0].items():
        assert all(torch.equal(pictures[number], picture) for pictures in epochs), number


@needs_dali
def test_the_decoder_of_a_gpu_gives_no_part_of_a_batch_to_another_engine(monkeypatch):
    """Without a GPU: what DALI is asked for, which knows all of these options."""
    from nvidia.dali import Pipeline, fn

    calls, image = [], fn.decoders.image
    monkeypatch.setattr(fn.decoders, "image", lambda jpegs, **options: calls.append(options) or image(jpegs, **options))
    reader = DaliPipeline(None, paper(), ["cpu"], 2)
    with Pipeline(4, 1, None):
        reader._decoded(SimpleNamespace(on_gpu=True, input=lambda *_: fn.external_source(name="jpeg")), "jpeg")
    assert calls[0]["device"] == "mixed" and calls[0]["hw_decoder_load"] == 0


@needs_gpu
def test_on_a_gpu_batches_stay_as_they_are_while_later_ones_are_made(nothing_stays):
    recipe = tiny(paper, stored_size=256, crop_size=224)
    reader = pipeline(DaliPipeline, in_memory(Jpegs(photographs(21), 256)), recipe, 2, ["cuda:0"], PLAIN)
    tensors, copies = [], []
    for batch in reader.train(0, 20, tenth):
        tensors.append(batch.images[0])
        copies.append(batch.images[0].clone())
    assert len(tensors) == 60 and all(torch.equal(images, copy) for images, copy in zip(tensors, copies, strict=True))
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # what is current when a batch is asked for
        others = [batch.images[0].clone() for batch in reader.train(0, 20, tenth)]
    side.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(others, copies))


@needs_dali
def test_a_batch_is_taken_over_where_its_device_is_the_current_one(monkeypatch):
    """Without a GPU. DALI lets a stream wait whose handle, where it is the default one, is the same on every device."""
    stack = []

    @contextmanager
    def on(device):
        stack.append(torch.device(device))
        yield
        stack.pop()

    class Output:
        def __init__(self, device):
            self.device = device

        def as_tensor(self):
            return self

    def convert(output):
        assert stack[-1:] == [output.device]
        return torch.zeros(2, 4, 4, 3)

    class Stream:
        def record_event(self):
            return SimpleNamespace(query=lambda: True)

    devices = [torch.device("cuda:1"), torch.device("cuda:0")]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: Stream())
    monkeypatch.setattr(torch, "from_dlpack", convert)
    reader = DaliPipeline(None, paper(), devices, 2)
    images = reader._on_each_tower({device: Output(device) for device in devices}, reader._nothing_lent())
    assert [image.shape for image in images] == [(2, 3, 4, 4)] * 2


def test_what_is_lent_to_a_gpu_stays_until_its_stream_has_come_that_far(monkeypatch):
    """Without a GPU: events that are reached when the test says so."""

    class Event:
        def __init__(self):
            self.reached = False
            events.append(self)

        def query(self):
            return self.reached

        def synchronize(self):
            self.reached = True

    class Stream:
        def record_event(self):
            return Event()

    events = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream())
    loans, arrays = pipeline_dali.Lent(torch.device("cuda:1")), [np.zeros(1) for _ in range(4)]
    references = [weakref.ref(array) for array in arrays]
    while arrays:
        loans.keep(arrays.pop(0))
        if len(arrays) == 2:
            events[0].reached = True
    assert [reference() is not None for reference in references] == [False, True, True, True]
    loans.wait()
    assert all(event.reached for event in events) and not any(reference() is not None for reference in references)
