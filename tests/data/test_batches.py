"""Reading by worker processes: everything once, errors whole, no signal lost; the batches of an epoch and the views of
a test."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from inner_cases import every
from pipeline_sets import Pixels, in_memory, needs_dali, pipeline
from small_set import NOTHING, PRESETS, STORED, TRAIN, picture, same, tenth, tiny, write_set

from alexnet_mp.data import survey as survey_module
from alexnet_mp.data import workers as processes
from alexnet_mp.data.batches import EpochKeys, minibatches, steps_per_epoch
from alexnet_mp.data.dataset import Folder, cache_splits
from alexnet_mp.data.pipeline_dali import DaliPipeline
from alexnet_mp.data.pipeline_raw import RawPipeline
from alexnet_mp.data.pipeline_torch import TorchPipeline
from alexnet_mp.data.pixel_statistics import Sums
from alexnet_mp.data.survey import survey
from alexnet_mp.evaluation.protocol import centre_view, nine_views, ten_views
from alexnet_mp.recipes.architectures import mini, paper, source2012
from alexnet_mp.recipes.named import PRESETS as PRESETS_BY_NAME


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("images"))


def test_views_are_the_corners_the_centre_and_their_mirrors():
    places = [(0, 0), (0, 32), (16, 16), (32, 0), (32, 32)]
    for recipe in (paper(), source2012()):
        assert ten_views(recipe) == [(*place, False) for place in places] + [(*place, True) for place in places]
        assert centre_view(recipe) == [(16, 16, False)]
    assert [view[:2] for view in ten_views(mini())[:5]] == [(0, 0), (0, 16), (8, 8), (16, 0), (16, 16)]


def test_nine_views_are_three_by_three_places():
    assert nine_views(mini()) == [(top, left, False) for top in (0, 8, 16) for left in (0, 8, 16)]
    recipe = dataclasses.replace(mini(), stored_size=99, crop_positions=1)
    assert nine_views(recipe)[4] == centre_view(recipe)[0] == (1, 1, False) and nine_views(recipe)[8] == (3, 3, False)


@pytest.mark.process
@pytest.mark.parametrize(
    "kind", [pytest.param(DaliPipeline, marks=needs_dali), RawPipeline, TorchPipeline], ids=["dali", "raw", "torch"]
)
@every("workers", [0, 2])
@PRESETS
def test_a_batch_says_which_images_it_is_made_of(kind, workers, preset):
    """From the middle of an epoch on; the blue channel of a picture tells which one it is."""
    recipe, dataset = tiny(preset), in_memory(Pixels("train", TRAIN))
    batches = list(pipeline(kind, dataset, recipe, workers, statistics=NOTHING).train(2, 3, lambda epoch: 0.0))
    for batch, (epoch, _, images) in zip(batches, EpochKeys(recipe, TRAIN, 2, 3), strict=True):
        assert batch.numbers.dtype == np.int64 and batch.epoch == epoch and np.array_equal(batch.numbers, images)
        assert (batch.images[0][:, 2, 0, 0] / 10).tolist() == images.tolist()
    assert [len(batch.numbers) for batch in batches] == [5, 8, 8, 5, 8, 8, 5]


def test_the_files_of_cifar10_are_cut_by_themselves():
    """2012: five files of 10,000, each 78 minibatches of 128 and one of 16; the whole at once would be 391."""
    recipe, dataset = PRESETS_BY_NAME["cifar18"](), SimpleNamespace(splits={"train": range(50_000)})
    sizes = [len(batch) for batch in minibatches(recipe, 50_000)]
    assert sizes == 5 * (78 * [128] + [16]) and steps_per_epoch(recipe, dataset) == 395
    assert [place for batch in minibatches(recipe, 50_000) for place in batch] == list(range(50_000))
    other = dataclasses.replace(recipe, batch_file_size=None)
    assert steps_per_epoch(other, dataset) == 391 and len(minibatches(other, 50_000)[-1]) == 80
    assert minibatches(recipe, 9) == [range(9)] and minibatches(recipe, 10_001)[-1] == range(10_000, 10_001)


@pytest.mark.process
@pytest.mark.parametrize(
    "kind", [pytest.param(DaliPipeline, marks=needs_dali), RawPipeline, TorchPipeline], ids=["dali", "raw", "torch"]
)
@every("workers", [0, 2])
@PRESETS
def test_every_pipeline_cuts_files_by_themselves(kind, workers, preset):
    """Files of 10, 10 and 1 of 21 pictures, in minibatches of 8: from any step on, the same pictures as in one go."""
    recipe, dataset = tiny(preset, batch_file_size=10), in_memory(Pixels("train", TRAIN))
    runs = [
        list(pipeline(kind, dataset, recipe, workers, statistics=NOTHING).train(step, 2, lambda epoch: 0.1))
        for step in (0, 2, 6)
    ]
    assert [len(batch.numbers) for batch in runs[0]] == 2 * [8, 2, 8, 2, 1]
    assert same(runs[0][2:], runs[1]) and same(runs[0][6:], runs[2])
    for epoch in (1, 2):  # the same order and the same draws as of batches that end elsewhere
        own = [batch for batch in runs[0] if batch.epoch == epoch]
        reference = pipeline(kind, dataset, tiny(preset), workers, statistics=NOTHING).train(0, 2, lambda epoch: 0.1)
        reference = [batch for batch in reference if batch.epoch == epoch]
        numbers, others = (np.concatenate([batch.numbers for batch in batches]) for batches in (own, reference))
        images, expected = (torch.cat([batch.images[0] for batch in batches]) for batches in (own, reference))
        assert np.array_equal(numbers, others)
        torch.testing.assert_close(images, expected, rtol=0, atol=1e-4)


@pytest.mark.process
@pytest.mark.parametrize("workers", [0, 2])
def test_the_survey_adds_up_every_image(root, monkeypatch, workers):
    monkeypatch.setattr(survey_module, "CHUNK", 4)  # 21 images: five full chunks and a single image
    counts, sums = [], Sums(STORED)
    total = survey(Folder(root, STORED).splits["train"], STORED, workers, counts.append)
    for index in range(TRAIN):
        sums.add(picture("train", index))
    assert counts == [4, 4, 4, 4, 4, 1] and total.count == TRAIN
    assert np.array_equal(total.pixels, sums.pixels) and np.array_equal(total.products, sums.products)


@pytest.mark.process
@pytest.mark.parametrize("workers", [0, 2])
def test_after_the_survey_the_cache_holds_every_picture(root, tmp_path, workers):
    copy = shutil.copytree(root, tmp_path / "copy")
    folder, original = Folder(copy, STORED), Folder(root, STORED)
    assert cache_splits(folder, STORED) == ["train", "val"]
    statistics = survey(folder.splits["train"], STORED, workers, lambda count: None).statistics()
    shutil.rmtree(copy / "train")
    batches = []
    for dataset in (folder, original):
        pipeline = TorchPipeline(dataset, tiny(paper), ["cpu"], workers)
        pipeline.use(statistics)
        batches.append(list(pipeline.train(0, 1, tenth)))
    assert same(*batches)


@pytest.mark.process
def test_no_signal_ends_a_worker_from_its_first_moment_on(root, monkeypatch):
    """A scheduler's SIGTERM may come just when validation forks its workers: it must find the signal blocked
    already."""

    def signalled():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)

    monkeypatch.setattr(processes, "die_with_parent", signalled)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert survey(Folder(root, STORED).splits["train"], STORED, 2, lambda n: None).count == TRAIN
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before  # the parent hears them again


@pytest.mark.parametrize("main_thread", [True, False])
def test_held_signals_come_afterwards_whichever_thread_receives_them(main_thread):
    """A thread that was there before doesn't block them, and the main thread runs the handler."""
    handler_calls, held, sent, free = [], threading.Event(), threading.Event(), threading.Event()

    def send():
        held.wait(60)
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        sent.set()
        free.wait(60)

    def hold():
        with processes.signals_held():
            held.set()
            assert sent.wait(60)
            early_calls.extend(handler_calls)

    early_calls, threads = [], [threading.Thread(target=send)]
    if not main_thread:
        threads.append(threading.Thread(target=hold))
    before = signal.signal(signal.SIGTERM, lambda *_: handler_calls.append("SIGTERM"))
    try:
        for thread in threads:
            thread.start()
        if main_thread:
            hold()
            assert early_calls == []
        free.set()
        for thread in threads:
            thread.join()
        assert handler_calls == ["SIGTERM"]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
@pytest.mark.process
def test_a_worker_whose_parent_died_before_its_first_moment_ends(tmp_path):
    """What the kernel is asked for then comes too late."""
    code = (
        "import multiprocessing, os, pathlib, signal, sys, time\n"
        "from alexnet_mp.data.workers import die_with_parent\n"
        "def work():\n"
        "    while os.getppid() == parent: time.sleep(0.01)\n"
        "    pathlib.Path(sys.argv[1], 'begun').touch()\n"
        "    die_with_parent()\n"
        "    pathlib.Path(sys.argv[1], 'alive').touch()\n"
        "parent = os.getpid()\n"
        "multiprocessing.get_context('fork').Process(target=work).start()\n"
        "os.kill(parent, signal.SIGKILL)\n"
    )
    # waits for both to end
    process = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, timeout=60)
    assert process.returncode == -signal.SIGKILL and [path.name for path in tmp_path.iterdir()] == ["begun"]
