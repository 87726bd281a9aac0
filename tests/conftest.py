"""Images that the tests make for themselves; and Triton's interpreter, where there is no GPU to compile for."""

import functools
import gc
import os
import signal
from importlib import metadata

import pytest
import torch
from image_folders import make_folder

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated, so before any of them is imported

# A shell starts what it puts in the background with Ctrl-C ignored, nohup with a hang-up ignored. Processes that the
# tests start and interrupt would inherit that.
for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, default)

# Where the fixtures of more than one folder are.
pytest_plugins = [
    "tiny_run",  # before those that import it
    "apart",
    "cases",
    "disk",
    "fake_streams",
    "graph_pair",
    "pipeline_sets",
    "prepared_sets",
    "tiny_checkpoint",
    "toy_stages",
]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """A test marked `gpu(count=1, besides=True, reason=...)` is skipped where there are fewer, or `besides` is
    false."""
    config.collected_cases = len(items)  # with those that -m and -k take away
    device_count = torch.cuda.device_count()
    for item in items:
        for mark in item.iter_markers("gpu"):
            (count,) = mark.args or (1,)
            lacking = device_count < count or not mark.kwargs.get("besides", True)
            item.add_marker(pytest.mark.skipif(lacking, reason=mark.kwargs["reason"]))  # by which gpu_check knows it


def pytest_collection_finish():
    """What the imports made stays: a collection, which every capture of a graph asks for, need not walk over it each
    time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def nothing_waited_for():
    """No test cuts the power: a file need not be on the disk, only whole. And versions, of which a run notes ten,
    stay."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: os.fstat(descriptor) and None)
        patch.setattr(metadata, "version", functools.cache(metadata.version))
        yield


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "data")


@pytest.fixture(scope="module")
def one_thread():
    """A few thousand values do not pay for waking a second thread; on a busy machine that takes 10 ms an operation."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def with_gpu_kernels(monkeypatch):
    """Both kinds of GPU kernels are built, and no GPU is too old for them; nothing stays left out."""
    from alexnet_mp.kernels import dispatch  # imported late: the variable above is read first

    monkeypatch.setattr(dispatch, "built", lambda: ("cuda", "triton", "cpu"))
    monkeypatch.setattr(dispatch, "_too_old", lambda device: False)
    yield
    dispatch.leave_out(())
