"""Bad images are named and odd ones read, alike by DALI and by PyTorch; and whatever ends a pipeline, nothing of it
stays."""

import gc
import importlib.util
import io
import os
import shutil
import signal
import subprocess
import sys
import zlib
from contextlib import closing

import numpy as np
import prepared_sets
import pytest
from inner_cases import every
from PIL import Image
from pipeline_sets import (
    ORIENTATION,
    PIPELINES,
    QUICK_PIPELINES,
    in_memory,
    jpegs,
    needs_dali,
    pipeline,
    same_views,
    until_error,
    views_of,
)
from small_set import BATCH, STORED, TRAIN, VAL, picture, same, tenth, tiny

from alexnet_mp.data import pipeline_dali
from alexnet_mp.data.augmentation import order
from alexnet_mp.data.dataset import Folder, open_dataset
from alexnet_mp.data.pipeline_dali import DaliPipeline, available
from alexnet_mp.data.pipeline_torch import TorchPipeline
from alexnet_mp.evaluation.protocol import centre_view, ten_views
from alexnet_mp.recipes.architectures import paper
from alexnet_mp.system.errors import UserError

pytestmark = pytest.mark.run


class FedAhead(DaliPipeline):
    """With the thread that works for a GPU."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.on_gpu = True


FED = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=needs_dali) for kind in (DaliPipeline, FedAhead)], ids=["dali", "dali ahead"]
)
WAYS = pytest.mark.parametrize("kind", [*FED.args[1], TorchPipeline], ids=["dali", "dali ahead", "torch"])


def every_way_with(*cases):
    """kind, source and what else a case has. The thread feeds DALI with no files of a folder."""
    kinds = {"dali": (DaliPipeline, needs_dali), "dali ahead": (FedAhead, needs_dali), "torch": (TorchPipeline, ())}
    return [
        pytest.param(kind, *case, id="-".join(map(str, (name, *case))), marks=marks)
        for name, (kind, marks) in kinds.items()
        for case in cases
        if kind is not FedAhead or case[0] != "files"
    ]


@WAYS
@every("options", [(), ("--raw",)], ids=["jpeg", "raw"])
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
    colour, grey = (
        random.integers(0, 256, (50, 61, 3), dtype=np.uint8),
        random.integers(0, 256, (44, 44), dtype=np.uint8),
    )
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(grey).save(folder / "grey.jpg")
    Image.fromarray(colour).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(random.integers(0, 256, (50, 61, 4), dtype=np.uint8), "RGBA").save(folder / "alpha.png")
    Image.fromarray(random.integers(0, 65536, (47, 50)).astype(np.uint16)).save(folder / "deep.png")
    Image.fromarray(colour).save(folder / "png.JPEG", "PNG")
    Image.fromarray(colour).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(colour[:1, :1]).save(folder / "one.png")
    Image.fromarray(colour).quantize(16).save(folder / "palette.png")


@pytest.mark.process
@needs_dali
@every("workers", [0, 2])
def test_odd_but_valid_images_are_read_alike(root, tmp_path, workers):
    copy = shutil.copytree(root, tmp_path / "copy")
    for split in ("train", "val"):
        odd_images(copy / split / "ant")
    expected, reader = (
        pipeline(kind, Folder(copy, STORED), tiny(paper), workers) for kind in (TorchPipeline, DaliPipeline)
    )
    assert same(list(reader.train(0, 1, tenth)), list(expected.train(0, 1, tenth)))
    assert same_views(views_of(reader), views_of(expected))


def huge_header():
    """A PNG that says 50,000 x 50,000 pixels."""
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "PNG")
    content = bytearray(file.getvalue())
    content[16:24] = (50_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.process
@PIPELINES
@every("workers", [0, 2])
@every(
    "damage",
    [None, b"", slice(600), b"not an image" * 50, huge_header()],
    ids=["missing", "empty", "truncated", "garbage", "huge"],
)
def test_an_unreadable_image_is_named_in_one_line_when_its_batch_is_due(
    root, tmp_path, nothing_stays, kind, workers, damage
):
    """The batches before it come. Afterwards the same pipeline reads what is whole again."""
    copy = shutil.copytree(root, tmp_path / "copy")
    folder, recipe = Folder(copy, STORED), tiny(paper)
    expected = list(pipeline(TorchPipeline, Folder(root, STORED), recipe).train(0, 1, tenth))
    path = folder.splits["train"].files[order(recipe, 1, TRAIN)[-1]]
    content = path.read_bytes()
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(content[damage] if isinstance(damage, slice) else damage)
    reader = pipeline(kind, folder, recipe, workers)
    batches, error = until_error(reader.train(0, 1, tenth))
    nothing_stays()  # although the error is still there
    assert str(error).startswith(f"cannot read image {path}: ") and "\n" not in str(error)
    assert same(batches, expected[:2])
    path.write_bytes(content)
    assert same(list(reader.train(0, 1, tenth)), expected)
    last_path = copy / "val" / "bee" / f"{VAL - 1}.png"
    last_path.write_bytes(b"not an image")
    batches, error = until_error((list(views), labels) for views, labels in reader.views("val", 4, ten_views(recipe)))
    assert str(error).startswith(f"cannot read image {last_path}: ") and len(batches) == 2


DAMAGE = {
    "empty": lambda content: b"",
    "garbage": lambda content: b"not an image" * 50,
    "half": lambda content: content[: len(content) // 2],
    "no end": lambda content: content[:-30],
    "tables": lambda content: content[:30] + bytes(100) + content[130:],
}


@pytest.mark.process
@WAYS
@every("workers", [0, 2])
@every("damage", DAMAGE)
def test_a_jpeg_that_no_decoder_takes_is_named(nothing_stays, kind, workers, damage):
    """Such as a set whose checksums were made to fit would hold."""
    split, recipe = jpegs("train", TRAIN), tiny(paper)
    expected = list(pipeline(TorchPipeline, in_memory(split), recipe).train(0, 1, tenth))
    index = order(recipe, 1, TRAIN)[10]
    split.files[index] = DAMAGE[damage](split.files[index])
    reader = pipeline(kind, in_memory(split), recipe, workers)
    batches, error = until_error(reader.train(0, 1, tenth))
    nothing_stays()
    assert str(error).startswith(f"cannot read image image {index}: ") and "\n" not in str(error)
    assert "DALI" not in str(error)  # what Pillow finds says more
    assert same(batches, expected[:1])
    _, error = until_error(reader.views("val", 4, centre_view(recipe)))
    assert str(error).startswith(f"cannot read image image {index}: ")


@FED
def test_a_jpeg_that_only_dali_refuses_is_named(nothing_stays, monkeypatch, kind):
    split = jpegs("train", TRAIN)
    split.files[3] = b"not an image"
    monkeypatch.setattr(split, "read", lambda index: picture("train", index))
    _, error = until_error(pipeline(kind, in_memory(split), tiny(paper)).train(0, 1, tenth))
    assert str(error) == "cannot read image image 3: DALI's decoder refuses it"


@FED
def test_a_failure_that_is_no_image_s_fault_is_raised_as_it_is(sources, nothing_stays, monkeypatch, kind):
    def fail(_):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(pipeline_dali.DaliOnDevice, "take", fail)
    monkeypatch.setattr(pipeline_dali, "refuses", lambda *_: False)
    with pytest.raises(RuntimeError, match="out of luck"):
        list(pipeline(kind, sources["jpeg"], tiny(paper)).train(0, 1, tenth))


@pytest.mark.process
@pytest.mark.parametrize("kind, source, workers", every_way_with(("files", 0), ("files", 2), ("jpeg", 2)))
def test_leaving_early_leaves_nothing(sources, nothing_stays, kind, source, workers):
    """Closed, dropped, or left by an exception, in the first batch or later; and the next one works."""
    reader = pipeline(kind, sources[source], tiny(paper), workers)
    expected = list(reader.train(0, 1, tenth))
    for count in (0, 1, 2, 3):
        batches = reader.train(0, 2, tenth)
        for _ in range(count):
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


@pytest.mark.slow
@pytest.mark.process
@QUICK_PIPELINES
@every("source", ["files", "jpeg"])
def test_training_goes_on_while_validation_starts_and_ends_processes(sources, nothing_stays, kind, source):
    """Processes are forked while DALI's threads are at work: none of them may wait for a lock that a thread held."""
    trainer, tester = (pipeline(kind, sources[name], tiny(paper), 2) for name in (source, "files"))
    expected, views = list(trainer.train(0, 6, tenth)), views_of(tester)
    batches = []
    for number, batch in enumerate(trainer.train(0, 6, tenth)):
        batches.append(batch)
        if number % 2:
            assert same_views(views_of(tester), views)
    assert same(batches, expected)


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from small_set import STORED, fitted, paper, tiny
from alexnet_mp.data.dataset import Folder
from alexnet_mp.system.errors import run_command
from alexnet_mp.data.pipeline_dali import DaliPipeline
from alexnet_mp.data.pipeline_torch import TorchPipeline


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
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, os.path.dirname(os.path.dirname(__file__)), str(root), kind.name, str(epochs)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.process
@QUICK_PIPELINES
def test_ctrl_c_ends_all_processes_at_once(root, kind):
    process = run_script(root, kind, 10**6)
    assert process.stdout.readline() == "started\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the run
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and errors == "stopped\n"
    with pytest.raises(ProcessLookupError):  # no process of its group is left
        os.killpg(process.pid, 0)


@pytest.mark.slow
@pytest.mark.process
@needs_dali
def test_dali_says_nothing_where_nothing_is_wrong(root):
    process = run_script(root, DaliPipeline, 3)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and errors == ""


@pytest.mark.slow
@pytest.mark.parametrize("kind, source", every_way_with(("files",), ("pixels",)))
def test_memory_stays_flat_over_fifty_epochs_of_other_files(sources, kind, source):
    memory_stays_flat(sources, kind, source)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(DaliPipeline, marks=[needs_dali, pytest.mark.slow], id="dali"),
        pytest.param(FedAhead, marks=[needs_dali, pytest.mark.slow], id="dali ahead"),
        pytest.param(TorchPipeline, id="torch"),
    ],
)
def test_memory_stays_flat_over_fifty_epochs(sources, kind):
    memory_stays_flat(sources, kind, "jpeg")


def memory_stays_flat(sources, kind, source):
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


def test_without_dali_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not available()
    with pytest.raises(UserError, match="pip install nvidia-dali-cuda130.*--pipeline torch"):
        DaliPipeline(None, paper(), ["cpu"], 2)


def test_a_dali_that_cannot_be_loaded_is_one_line(monkeypatch):
    monkeypatch.setattr(pipeline_dali, "available", lambda: True)
    monkeypatch.setitem(sys.modules, "nvidia.dali.fn", None)  # the import statement then raises ImportError
    with pytest.raises(UserError, match="DALI can't be loaded.*--pipeline torch") as refusal:
        DaliPipeline(None, paper(), ["cpu"], 2)
    assert "\n" not in str(refusal.value)
