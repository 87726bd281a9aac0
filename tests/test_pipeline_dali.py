"""DALI gives the batches that `pipeline_torch.py` defines, to the last bit on a CPU; and whatever ends it, nothing of it stays."""
import dataclasses
import gc
import importlib.util
import io
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import prepared_sets
import pytest
import torch
from PIL import Image, ImageFile
from small_set import BATCH, PRESETS, STORED, TRAIN, VAL, fitted, label, picture, same, tenth, tiny, write_set

from alexnet_mp import pipeline_dali
from alexnet_mp.dataset import Folder, cached, open_dataset
from alexnet_mp.draws import order
from alexnet_mp.errors import UserError
from alexnet_mp.loader import centre_view, ten_views
from alexnet_mp.pipeline_dali import DaliPipeline, available
from alexnet_mp.pipeline_torch import TorchPipeline
from alexnet_mp.recipe import paper
from alexnet_mp.stored_picture import decoded

needs_dali = pytest.mark.skipif(not available(), reason="DALI is not installed")
needs_gpu = pytest.mark.skipif(not available() or not torch.cuda.is_available(), reason="needs DALI and a GPU")
needs_no_gpu = pytest.mark.skipif(not available() or torch.cuda.is_available(), reason="needs DALI and a machine without a GPU")
PIPELINES = pytest.mark.parametrize("kind", [pytest.param(DaliPipeline, marks=needs_dali), TorchPipeline], ids=["dali", "torch"])
ORIENTATION = 0x0112  # an EXIF tag; 6 says that the picture is to be turned by 90 degrees
NOISE = {1: 0.1, 2: 0.0, 3: 0.3}  # of three epochs: each has its own scale in the 2012 recipe


class Jpegs:
    """A split of JPEG files in memory, of the stored size; nothing about them is checked."""

    holds = "jpeg"

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
    return Jpegs([jpeg(picture(split, index), **options) for index in range(count)],
                 labels=np.array([label(split, index) for index in range(count)]))


class Pixels:
    """A split of the pictures themselves, in memory."""

    holds = "pixels"

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
    return {"files": Folder(root, STORED), "jpeg": in_memory(jpegs("train", TRAIN), jpegs("val", VAL)),
            "pixels": in_memory(Pixels("train", TRAIN), Pixels("val", VAL))}


SOURCES = pytest.mark.parametrize("source", ["files", "jpeg", "pixels"])


def pipeline(kind, dataset, recipe, workers=0, devices=("cpu",), statistics=None, **options):
    result = kind(dataset, recipe, devices, workers, **options)
    result.use(statistics or fitted())
    return result


def views_of(reader, batch_size=4, which=None):
    """[(views of a batch, labels)], all made."""
    return [(list(views), labels) for views, labels in reader.views("val", batch_size, which or ten_views(reader.recipe))]


def same_views(found, expected):
    return len(found) == len(expected) and all(
        torch.equal(labels, others) and len(a) == len(b) and all(torch.equal(x, y) for v, w in zip(a, b) for x, y in zip(v, w))
        for (a, labels), (b, others) in zip(found, expected))


def threads():
    """The threads of this process, and the processes that it started."""
    return len(os.listdir("/proc/self/task")), len(multiprocessing.active_children())


@pytest.fixture
def nothing_stays():
    """A function that fails where threads or processes were left behind; called at the end in any case."""
    torch.zeros(10**6).sum()  # PyTorch's own threads are there from now on
    gc.collect()
    before = threads()

    def check():
        end = time.monotonic() + 5
        while threads() != before and time.monotonic() < end:  # a thread that has ended may be listed for a moment
            time.sleep(0.01)
        assert threads() == before

    yield check
    check()


@needs_dali
@PRESETS
@SOURCES
def test_every_batch_is_that_of_pytorch_to_the_bit(sources, preset, source):
    """All of them kept until the end: DALI doesn't use their memory again."""
    expected = list(pipeline(TorchPipeline, sources[source], tiny(preset), devices=("cpu", "cpu")).train(0, 3, NOISE.get))
    found = list(pipeline(DaliPipeline, sources[source], tiny(preset), 2, devices=("cpu", "cpu")).train(0, 3, NOISE.get))
    assert [(batch.epoch, len(batch.labels)) for batch in found] == [(e, n) for e in (1, 2, 3) for n in (8, 8, 5)]
    assert same(found, expected) and len(found[0].images) == 2
    assert all(batch.images[0].is_contiguous(memory_format=torch.channels_last) for batch in found)


@needs_dali
@PRESETS
@SOURCES
def test_every_view_is_that_of_pytorch_to_the_bit(sources, preset, source):
    expected = views_of(pipeline(TorchPipeline, sources[source], tiny(preset), devices=("cpu", "cpu")))
    found = views_of(pipeline(DaliPipeline, sources[source], tiny(preset), 2, devices=("cpu", "cpu")))
    assert [len(labels) for _, labels in found] == [4, 4, 3] and same_views(found, expected)


@needs_dali
@PRESETS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_every_type_and_layout_is_that_of_pytorch_to_the_bit(sources, preset, dtype, memory_format):
    options = {"dtype": dtype, "memory_format": memory_format}
    expected, found = (list(pipeline(kind, sources["jpeg"], tiny(preset), **options).train(0, 1, tenth))
                       for kind in (TorchPipeline, DaliPipeline))
    assert same(found, expected) and all(batch.images[0].dtype == dtype for batch in found)
    assert all(batch.images[0].is_contiguous(memory_format=memory_format) for batch in found)
    expected, found = (views_of(pipeline(kind, sources["pixels"], tiny(preset), **options), which=centre_view(tiny(preset)))
                       for kind in (TorchPipeline, DaliPipeline))
    assert same_views(found, expected) and found[0][0][0][0].dtype == dtype


@needs_dali
@pytest.mark.parametrize("changes", [
    {"crop_size": STORED, "crop_positions": 1}, {"crop_size": 11, "crop_positions": 30}, {"crop_size": 1, "crop_positions": 40},
    {"flip": False}, {"crop_share": 1, "mean_follows_crop": False}, {"crop_share": 3, "mean_follows_crop": True},
    {"colour_shrink": True, "colour_scale": "eigenvalue"}, {"batch_size": TRAIN + 5}, {"batch_size": 1}], ids=str)
def test_every_recipe_is_that_of_pytorch_to_the_bit(sources, changes):
    expected, found = (list(pipeline(kind, sources["jpeg"], tiny(paper, **changes)).train(0, 2, NOISE.get))
                       for kind in (TorchPipeline, DaliPipeline))
    assert same(found, expected)


@needs_dali
@pytest.mark.parametrize("size", [256, 57])
def test_every_kind_of_jpeg_is_decoded_as_pillow_does_to_the_bit(monkeypatch, size):
    monkeypatch.setattr(ImageFile, "MAXBLOCK", 2**20)  # Pillow writes noise only into a larger buffer
    noise = np.random.default_rng(2).integers(0, 256, (size, size, 3), dtype=np.uint8)
    smooth = np.stack([np.add.outer(np.arange(size), np.arange(size) * factor) % 256 for factor in (1, 2, 5)], 2).astype(np.uint8)
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    files = [jpeg(pixels, quality=quality, subsampling=subsampling, progressive=progressive)
             for pixels in (noise, smooth) for quality in (30, 75, 85, 95, 100) for subsampling in (0, 1, 2)
             for progressive in (False, True)]
    files += [jpeg(smooth, exif=turned), jpeg(smooth[:, :, 0]), jpeg(smooth, optimize=True), jpeg(smooth, restart_marker_rows=1),
              jpeg(smooth, keep_rgb=True), jpeg(noise) + b"trailing"]
    recipe = tiny(paper, stored_size=size, crop_size=size, crop_positions=1, batch_size=len(files))
    plain = dataclasses.replace(fitted(), mean=np.zeros((size, size, 3)))
    expected, found = (list(pipeline(kind, in_memory(Jpegs(files, size)), recipe, statistics=plain).train(0, 1, lambda epoch: 0.0))
                       for kind in (TorchPipeline, DaliPipeline))
    assert same(found, expected)


@needs_dali
@PRESETS
def test_what_runs_on_a_gpu_computes_the_same_on_a_cpu(sources, monkeypatch, preset):
    """The graph with the mean as a constant, built on the CPU."""
    expected = list(pipeline(DaliPipeline, sources["pixels"], tiny(preset)).train(0, 3, NOISE.get))
    monkeypatch.setattr(DaliPipeline, "_less_mean_on_cpu", DaliPipeline._less_mean_on_gpu)
    assert same(list(pipeline(DaliPipeline, sources["pixels"], tiny(preset)).train(0, 3, NOISE.get)), expected)


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
    whole = list(reader.train(0, 2, tenth))
    assert len(whole) == 6 and not same(whole[:3], whole[3:])
    for step in range(8):
        assert same(list(reader.train(step, 2, tenth)), whole[step:])


@needs_dali
def test_a_view_is_made_when_it_is_asked_for(sources, monkeypatch):
    """Views that nobody wants cost nothing, and leave the next batch as it is."""
    reader = pipeline(DaliPipeline, sources["jpeg"], tiny(paper))
    expected, which = views_of(reader), ten_views(reader.recipe)
    fed, feed = [], pipeline_dali._Dali.feed
    monkeypatch.setattr(pipeline_dali._Dali, "feed", lambda self, inputs: (fed.append(sorted(inputs)), feed(self, inputs)))
    for number, (views, _) in enumerate(reader.views("val", 4, which)):
        for wanted in range(number + 1):
            assert torch.equal(next(views)[0], expected[number][0][wanted][0])
    assert number == 2 and fed.count(["jpeg"]) == 3 and len(fed) == 3 + 1 + 2 + 3


@needs_dali
@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_cache_is_read(root, tmp_path, workers):
    copy = shutil.copytree(root, tmp_path / "copy")
    folder = Folder(copy, STORED)
    assert cached(folder, STORED) == ["train", "val"]
    for split in folder.splits.values():
        for index in range(len(split)):
            split.read(index)
    shutil.rmtree(copy)
    found = list(pipeline(DaliPipeline, folder, tiny(paper), workers).train(0, 1, tenth))
    assert same(found, list(pipeline(TorchPipeline, Folder(root, STORED), tiny(paper)).train(0, 1, tenth)))


@needs_dali
@PRESETS
@pytest.mark.parametrize("options", [(), ("--raw",)], ids=["jpeg", "raw"])
def test_a_prepared_set_is_read_alike(root, tmp_path, monkeypatch, preset, options):
    dataset = open_dataset(str(prepared_sets.prepared(monkeypatch, root, tmp_path / "set", *options, size=STORED)), STORED)
    assert dataset.splits["train"].holds == ("pixels" if options else "jpeg")
    readers = [pipeline(kind, dataset, tiny(preset), statistics=dataset.statistics) for kind in (DaliPipeline, TorchPipeline)]
    assert same(*(list(reader.train(0, 2, tenth)) for reader in readers))
    assert same_views(*(views_of(reader) for reader in readers))


@PIPELINES
@pytest.mark.parametrize("options", [(), ("--raw",)], ids=["jpeg", "raw"])
def test_a_flipped_byte_in_a_prepared_set_is_named(root, tmp_path, monkeypatch, nothing_stays, kind, options):
    directory = prepared_sets.prepared(monkeypatch, root, tmp_path / "set", *options, size=STORED)
    columns = open_dataset(str(directory), STORED).splits["train"].columns
    index = 17
    shard = directory / f"train-{columns.shard[index]:05}.tar"
    content = bytearray(shard.read_bytes())
    content[columns.offset[index] + columns.length[index] // 2] ^= 1
    shard.write_bytes(content)
    dataset = open_dataset(str(directory), STORED)
    with pytest.raises(UserError, match=rf"bee/17\.png in .*{shard.name}: .*crc32"):
        list(pipeline(kind, dataset, tiny(paper)).train(0, 1, tenth))


def odd_images(folder):
    """Valid images of kinds that are rare among photographs."""
    random = np.random.default_rng(6)
    colour, grey = random.integers(0, 256, (50, 61, 3), dtype=np.uint8), random.integers(0, 256, (44, 44), dtype=np.uint8)
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    Image.fromarray(grey).save(folder / "grey.jpg")
    Image.fromarray(colour).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(random.integers(0, 256, (50, 61, 4), dtype=np.uint8), "RGBA").save(folder / "alpha.png")
    Image.fromarray(random.integers(0, 65536, (47, 50)).astype(np.uint16)).save(folder / "deep.png")
    Image.fromarray(colour).save(folder / "png.JPEG", "PNG")
    Image.fromarray(colour).save(folder / "turned.jpg", exif=turned)
    Image.fromarray(colour[:1, :1]).save(folder / "one.png")
    Image.fromarray(colour).quantize(16).save(folder / "palette.png")


@needs_dali
@pytest.mark.parametrize("workers", [0, 2])
def test_odd_but_valid_images_are_read_alike(root, tmp_path, workers):
    copy = shutil.copytree(root, tmp_path / "copy")
    for split in ("train", "val"):
        odd_images(copy / split / "ant")
    expected, found = (pipeline(kind, Folder(copy, STORED), tiny(paper), workers) for kind in (TorchPipeline, DaliPipeline))
    assert same(list(found.train(0, 1, tenth)), list(expected.train(0, 1, tenth)))
    assert same_views(views_of(found), views_of(expected))


def huge_header():
    """A PNG that says 50,000 x 50,000 pixels."""
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "PNG")
    content = bytearray(file.getvalue())
    content[16:24] = (50_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def until_error(batches):
    """([what comes before the UserError], the error)."""
    found = []
    with pytest.raises(UserError) as raised:
        for batch in batches:
            found.append(batch)
    return found, raised.value


@PIPELINES
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", [None, b"", slice(600), b"not an image" * 50, huge_header()],
                         ids=["missing", "empty", "truncated", "garbage", "huge"])
def test_an_unreadable_image_is_named_in_one_line_when_its_batch_is_due(root, tmp_path, nothing_stays, kind, workers, damage):
    """The batches before it come. Afterwards the same pipeline reads what is whole again."""
    copy = shutil.copytree(root, tmp_path / "copy")
    folder, recipe = Folder(copy, STORED), tiny(paper)
    good = list(pipeline(TorchPipeline, Folder(root, STORED), recipe).train(0, 1, tenth))
    broken = folder.splits["train"].files[order(recipe, 1, TRAIN)[-1]]
    whole = broken.read_bytes()
    if damage is None:
        broken.unlink()
    else:
        broken.write_bytes(whole[damage] if isinstance(damage, slice) else damage)
    reader = pipeline(kind, folder, recipe, workers)
    batches, error = until_error(reader.train(0, 1, tenth))
    nothing_stays()  # although the error is still there
    assert str(error).startswith(f"cannot read image {broken}: ") and "\n" not in str(error)
    assert same(batches, good[:2])
    broken.write_bytes(whole)
    assert same(list(reader.train(0, 1, tenth)), good)
    last = copy / "val" / "bee" / f"{VAL - 1}.png"
    last.write_bytes(b"not an image")
    batches, error = until_error((list(views), labels) for views, labels in reader.views("val", 4, ten_views(recipe)))
    assert str(error).startswith(f"cannot read image {last}: ") and len(batches) == 2


DAMAGE = {"empty": lambda whole: b"", "garbage": lambda whole: b"not an image" * 50, "half": lambda whole: whole[:len(whole) // 2],
          "no end": lambda whole: whole[:-30], "tables": lambda whole: whole[:30] + bytes(100) + whole[130:]}


@PIPELINES
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_jpeg_that_no_decoder_takes_is_named(nothing_stays, kind, workers, damage):
    """Such as a set whose checksums were made to fit would hold."""
    split, recipe = jpegs("train", TRAIN), tiny(paper)
    good = list(pipeline(TorchPipeline, in_memory(split), recipe).train(0, 1, tenth))
    bad = order(recipe, 1, TRAIN)[10]
    split.files[bad] = DAMAGE[damage](split.files[bad])
    reader = pipeline(kind, in_memory(split), recipe, workers)
    batches, error = until_error(reader.train(0, 1, tenth))
    nothing_stays()
    assert str(error).startswith(f"cannot read image image {bad}: ") and "\n" not in str(error)
    assert "DALI" not in str(error)  # what Pillow finds says more
    assert same(batches, good[:1])
    _, error = until_error(reader.views("val", 4, centre_view(recipe)))
    assert str(error).startswith(f"cannot read image image {bad}: ")


@needs_dali
def test_a_jpeg_that_only_dali_refuses_is_named(nothing_stays, monkeypatch):
    split = jpegs("train", TRAIN)
    split.files[3] = b"not an image"
    monkeypatch.setattr(split, "read", lambda index: picture("train", index))
    _, error = until_error(pipeline(DaliPipeline, in_memory(split), tiny(paper)).train(0, 1, tenth))
    assert str(error) == "cannot read image image 3: DALI's decoder refuses it"


@needs_dali
def test_a_failure_that_is_no_image_s_fault_is_raised_as_it_is(sources, nothing_stays, monkeypatch):
    def fail(_):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(pipeline_dali._Dali, "take", fail)
    monkeypatch.setattr(pipeline_dali, "_refuses", lambda *_: False)
    with pytest.raises(RuntimeError, match="out of luck"):
        list(pipeline(DaliPipeline, sources["jpeg"], tiny(paper)).train(0, 1, tenth))


@PIPELINES
@pytest.mark.parametrize("source, workers", [("files", 0), ("files", 2), ("jpeg", 2)])
def test_leaving_early_leaves_nothing(sources, nothing_stays, kind, source, workers):
    """Closed, dropped, or left by an exception, in the first batch or later; and the next one works."""
    reader = pipeline(kind, sources[source], tiny(paper), workers)
    expected = list(reader.train(0, 1, tenth))
    for taken in (0, 1, 2, 3):
        batches = reader.train(0, 2, tenth)
        for _ in range(taken):
            next(batches)
        batches.close()
        nothing_stays()
    views = reader.views("val", 4, ten_views(reader.recipe))
    next(next(views)[0])
    views.close()
    nothing_stays()
    with pytest.raises(ZeroDivisionError), closing(reader.train(0, 2, tenth)) as batches:
        for batch in batches:
            1 / (2 - batch.epoch)
    nothing_stays()
    next(batches := reader.train(0, 1, tenth))
    del batches
    nothing_stays()
    assert same(list(reader.train(0, 1, tenth)), expected)


@PIPELINES
@pytest.mark.parametrize("source", ["files", "jpeg"])
def test_training_goes_on_while_validation_starts_and_ends_processes(sources, nothing_stays, kind, source):
    """Processes are forked while DALI's threads are at work: none of them may wait for a lock that a thread held."""
    trainer, tester = (pipeline(kind, sources[held], tiny(paper), 2) for held in (source, "files"))
    expected, views = list(trainer.train(0, 6, tenth)), views_of(tester)
    found = []
    for number, batch in enumerate(trainer.train(0, 6, tenth)):
        found.append(batch)
        if number % 2:
            assert same_views(views_of(tester), views)
    assert same(found, expected)


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from small_set import STORED, fitted, paper, tiny
from alexnet_mp.dataset import Folder
from alexnet_mp.errors import run_command
from alexnet_mp.pipeline_dali import DaliPipeline
from alexnet_mp.pipeline_torch import TorchPipeline

def main():
    kind = {"dali": DaliPipeline, "torch": TorchPipeline}[sys.argv[3]]
    reader = kind(Folder(sys.argv[2], STORED), tiny(paper), ["cpu"], 2)
    reader.use(fitted())
    for number, batch in enumerate(reader.train(0, int(sys.argv[4]), lambda epoch: 0.1)):
        if number == 5:
            print("started", flush=True)
    return 0

run_command(main)
"""


def run_script(root, kind, epochs):
    return subprocess.Popen([sys.executable, "-c", SCRIPT, os.path.dirname(__file__), str(root), kind.name, str(epochs)],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


@PIPELINES
def test_ctrl_c_ends_all_processes_at_once(root, kind):
    process = run_script(root, kind, 10**6)
    assert process.stdout.readline() == "started\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the run
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and errors == "stopped\n"
    with pytest.raises(ProcessLookupError):  # no process of its group is left
        os.killpg(process.pid, 0)


@needs_dali
def test_dali_says_nothing_where_nothing_is_wrong(root):
    process = run_script(root, DaliPipeline, 3)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and errors == ""


@PIPELINES
@SOURCES
def test_memory_stays_flat_over_fifty_epochs(sources, kind, source):
    """They make 13 MB of images, and the tests after them 26 MB: far more than may stay."""
    reader, sizes = pipeline(kind, sources[source], tiny(paper)), {}
    for batch in reader.train(0, 70, tenth):
        if len(batch.labels) != BATCH and batch.epoch in (20, 70):  # the last of an epoch
            sizes[batch.epoch] = resident_bytes()
    assert sizes[70] - sizes[20] < 2e6
    for number in range(30):
        if number in (10, 29):
            sizes[number] = resident_bytes()
        views_of(reader)
    assert sizes[29] - sizes[10] < 6e6


def resident_bytes():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_importing_the_module_does_not_import_dali():
    code = ("import sys; from alexnet_mp import pipeline_dali; pipeline_dali.available(); "
            "sys.exit(any(name.startswith('nvidia.dali') for name in sys.modules))")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_without_dali_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not available()
    with pytest.raises(UserError, match="pip install nvidia-dali-cuda130.*--pipeline torch"):
        DaliPipeline(None, paper(), ["cpu"], 2)


def test_a_dali_that_cannot_be_loaded_is_one_line(monkeypatch):
    monkeypatch.setattr(pipeline_dali, "available", lambda: True)
    monkeypatch.setitem(sys.modules, "nvidia.dali.fn", None)  # the import statement then raises ImportError
    with pytest.raises(UserError, match="DALI can't be loaded.*--pipeline torch") as raised:
        DaliPipeline(None, paper(), ["cpu"], 2)
    assert "\n" not in str(raised.value)


@needs_no_gpu
def test_a_gpu_that_is_not_there_is_one_line():
    with pytest.raises(UserError, match="no CUDA device cuda:1.*--gpus cpu") as raised:
        DaliPipeline(None, paper(), ["cpu", "cuda:1"], 2)
    assert "\n" not in str(raised.value)


@needs_no_gpu
def test_a_gpu_that_dali_cannot_use_is_one_line(sources, nothing_stays, monkeypatch):
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
    """From pictures, so without its decoder. Bounds: a rounding of 255 grey levels in float32, one step of the 16-bit types."""
    for dtype, bound in ((torch.float32, 1e-4), (torch.float16, 0.126), (torch.bfloat16, 1.01)):
        readers = [pipeline(kind, sources[source], tiny(preset), 2, ("cuda:0", "cpu"), dtype=dtype)
                   for kind in (DaliPipeline, TorchPipeline)]
        found, expected = (list(reader.train(0, 3, NOISE.get)) for reader in readers)
        assert len(found) == 9 and found[0].images[0].device.type == "cuda" and found[0].labels.device.type == "cuda"
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a.labels, b.labels) and torch.equal(a.images[1], b.images[1])
            assert (a.images[0].float() - b.images[0].float()).abs().max() <= bound
        for (a, labels), (b, others) in zip(*(views_of(reader) for reader in readers), strict=True):
            assert torch.equal(labels, others)
            assert all((x[0].float() - y[0].float()).abs().max() <= bound for x, y in zip(a, b, strict=True))


@needs_gpu
def test_the_jpeg_decoder_of_a_gpu_is_close_to_pillow(record_property, nothing_stays):
    """Of smooth pictures with a little noise, as photographs are, in the usual qualities and subsamplings."""
    random, files = np.random.default_rng(7), []
    for number in range(60):
        coarse = Image.fromarray(random.integers(0, 256, (17, 17, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((256, 256), Image.Resampling.BICUBIC)) + random.normal(0, 4, (256, 256, 3))
        files.append(jpeg(smooth.clip(0, 255).astype(np.uint8), quality=(75, 85, 95)[number % 3], subsampling=(0, 2)[number % 2]))
    recipe = dataclasses.replace(paper(), crop_size=256, crop_positions=1, batch_size=16)
    plain = dataclasses.replace(fitted(), mean=np.zeros((256, 256, 3)))
    on_gpu, on_cpu = (torch.cat([batch.images[0].cpu() for batch in pipeline(
        kind, in_memory(Jpegs(files, 256)), recipe, 2, [device], plain).train(0, 1, lambda epoch: 0.0)])
        for kind, device in ((DaliPipeline, "cuda:0"), (TorchPipeline, "cpu")))
    levels = (on_gpu - on_cpu).abs().flatten().double().numpy()
    found = {"mean": levels.mean(), "99.9th percentile": np.quantile(levels, 0.999), "largest": levels.max()}
    print("grey levels between the decoders:", found)
    record_property("grey_levels", found)
    assert found["mean"] < 1 and found["99.9th percentile"] <= 4


@needs_gpu
def test_on_a_gpu_batches_stay_as_they_are_while_later_ones_are_made(sources, nothing_stays):
    reader = pipeline(DaliPipeline, sources["jpeg"], tiny(paper), 2, ["cuda:0"])
    kept, copies = [], []
    for batch in reader.train(0, 20, tenth):
        kept.append(batch.images[0])
        copies.append(batch.images[0].clone())
    assert len(kept) == 60 and all(torch.equal(images, copy) for images, copy in zip(kept, copies, strict=True))
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # what is current when a batch is asked for
        others = [batch.images[0].clone() for batch in reader.train(0, 20, tenth)]
    side.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(others, copies))
