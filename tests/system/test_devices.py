"""--gpus: every form, with no GPU and with several, and what is said of a device that is not there."""

import pytest
import torch
from inner_cases import every

from alexnet_mp import train
from alexnet_mp.evaluation import trained
from alexnet_mp.recipes.named import PRESETS
from alexnet_mp.system.devices import make_current, of_pair, of_process, resolve
from alexnet_mp.system.errors import UserError
from alexnet_mp.training import plan
from alexnet_mp.training import run as runs


@pytest.fixture
def gpus(monkeypatch):
    return lambda count: monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@every(
    "text, count, towers, expected",
    [
        ("cpu", 0, 2, ["cpu", "cpu"]),
        ("cpu,cpu", 0, 2, ["cpu", "cpu"]),
        ("auto", 0, 2, ["cpu", "cpu"]),
        ("auto", 0, 1, ["cpu"]),
        ("0", 1, 2, ["cuda:0", "cuda:0"]),
        ("0,0", 1, 2, ["cuda:0", "cuda:0"]),
        ("auto", 1, 2, ["cuda:0", "cuda:0"]),
        ("0,1", 2, 2, ["cuda:0", "cuda:1"]),
        ("1,0", 2, 2, ["cuda:1", "cuda:0"]),
        ("auto", 4, 2, ["cuda:0", "cuda:1"]),
        ("cpu,0", 1, 2, ["cpu", "cuda:0"]),
        (" 0 , 1 ", 2, 2, ["cuda:0", "cuda:1"]),
        ("auto", 2, 1, ["cuda:0"]),
        ("1", 2, 1, ["cuda:1"]),
    ],
)
def test_every_form(text, count, towers, expected, gpus):
    gpus(count)
    assert [str(device) for device in resolve(text, towers)] == expected


@every(
    "text, count, towers, words",
    [
        ("0,1", 0, 2, ["no CUDA device", "--gpus cpu would work"]),
        ("0,1", 1, 2, ["GPU 1 is not there", "the GPUs here are 0", "--gpus 0 would work"]),
        ("0,7", 2, 2, ["GPU 7", "0, 1", "--gpus 0,1 would work"]),
        ("cpu,0", 0, 2, ["no CUDA device"]),
        ("0,1", 2, 1, ["1 tower"]),
        ("0,1,2", 3, 2, ["2 tower"]),
        ("cuda", 1, 2, ["0,1 (two GPUs)"]),
        ("", 1, 2, ["two GPUs"]),
        ("-1", 1, 2, ["two GPUs"]),
        ("²", 1, 2, ["two GPUs"]),
    ],
)
def test_what_is_not_there_is_said(text, count, towers, words, gpus):
    gpus(count)
    with pytest.raises(UserError) as error:
        resolve(text, towers)
    assert all(word in str(error.value) for word in words), str(error.value)


class Current(Exception):
    """GPU so and so is made the current one."""


@pytest.fixture
def set_device(monkeypatch):
    def current(device):
        raise Current(str(device))

    monkeypatch.setattr(torch.cuda, "set_device", current)


@every(
    "names, first", [(["cuda:1", "cuda:1"], "cuda:1"), (["cuda:1", "cuda:0"], "cuda:1"), (["cpu", "cuda:2"], "cuda:2")]
)
def test_the_first_gpu_is_the_current_one(names, first, set_device):
    with pytest.raises(Current, match=first):
        make_current(map(torch.device, names))


def test_without_a_gpu_none_is(set_device):
    make_current([torch.device("cpu")] * 2)


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_command_makes_no_context_on_a_gpu_that_it_was_not_given(command, gpus, set_device, monkeypatch, tmp_path):
    """Before it asks for memory anywhere."""
    gpus(2)
    for module, network in ((plan, runs), (trained, trained)):
        monkeypatch.setattr(module, "check_kernels", lambda *_: None)
        monkeypatch.setattr(network, "TwoTowerAlexNet", None)
    with pytest.raises(Current, match="cuda:1"):
        if command == "train":
            train.main(["--gpus", "1", "--recipe", "mini", "--out", str(tmp_path / "run")])
        else:
            training = trained.Trained(PRESETS["mini"](), "builtin", [], None, {}, tmp_path)
            monkeypatch.setattr(trained, "trained", lambda *_, **__: training)
            trained.load_run(tmp_path, "1")


@every(
    "count, gpus, here, found",
    [
        (0, "cpu", 2, ["cpu", "cpu"]),
        (0, "auto", 2, ["cpu", "cpu"]),
        (0, "cpu,cpu", 2, ["cpu", "cpu"]),
        (2, "auto", 2, ["cuda:0", "cuda:1"]),
        (4, "3,1", 2, ["cuda:3", "cuda:1"]),
        (1, "0", 1, ["cuda:0"]),
        (2, "cpu", 2, ["cpu", "cpu"]),
    ],
)
def test_each_process_has_a_device_of_the_list(count, gpus, here, found, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert [str(of_process(gpus, number, here)) for number in range(here)] == found


@every(
    "count, gpus, here, said",
    [
        (0, "0,1", 2, "GPU 0 is not there; no CUDA device was found here; --gpus cpu would work"),
        (2, "0", 2, "need a GPU each, or all the CPU; --gpus 0,1 would work"),
        (2, "0,0", 2, "need a GPU each"),
        (1, "auto", 2, "2 processes on this machine, and each sees 1 GPU; torchrun --nproc-per-node 1 would work, if"),
        (2, "cpu,0", 2, "need a GPU each"),
        (3, "0,1,2", 2, "need a GPU each"),
        (2, "0,one", 2, "--gpus 0,one: write cpu, or a GPU for each process"),
    ],
)
def test_a_list_that_does_not_fit_the_processes_is_refused(count, gpus, here, said, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(UserError) as error:
        of_process(gpus, 0, here)
    assert said in str(error.value) and "\n" not in str(error.value)


@every(
    "count, gpus, towers, here, found",
    [
        (0, "cpu", 2, 2, [["cpu", "cpu"], ["cpu", "cpu"]]),
        (0, "auto", 1, 2, [["cpu"], ["cpu"]]),
        (4, "0,1,2,3", 2, 2, [["cuda:0", "cuda:1"], ["cuda:2", "cuda:3"]]),
        (4, "auto", 2, 2, [["cuda:0", "cuda:1"], ["cuda:2", "cuda:3"]]),
        (2, "auto", 2, 2, [["cuda:0", "cuda:0"], ["cuda:1", "cuda:1"]]),
        (2, "0,0,1,1", 2, 2, [["cuda:0", "cuda:0"], ["cuda:1", "cuda:1"]]),
        (2, "1,0", 1, 2, [["cuda:1"], ["cuda:0"]]),
    ],
)
def test_each_process_has_a_pair_of_the_list(count, gpus, towers, here, found, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert [[str(device) for device in of_pair(gpus, towers, number, here)] for number in range(here)] == found


@every(
    "count, gpus, said",
    [
        (0, "0,1,2,3", "GPU 0 is not there; no CUDA device was found here; --gpus cpu would work"),
        (4, "0,1", "--gpus 0,1,2,3 would work; a process a tower is --towers apart"),
        (4, "0,1,2", "--gpus 0,1,2,3 would work"),
        (2, "0,1,0,1", "--gpus 0,0,1,1 would work"),  # NCCL refuses a GPU of two processes
        (3, "0,1,2,2", "--gpus 0,0,1,1 would work"),  # one pair on two devices, one on one
        (2, "0,one", "--gpus 0,one: write cpu, or a GPU for each tower of each process"),
        (1, "auto", "2 processes on this machine, and each sees 1 GPU; torchrun --nproc-per-node 1 would work, if"),
    ],
)
def test_a_list_that_does_not_fit_the_pairs_is_refused(count, gpus, said, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(UserError) as error:
        of_pair(gpus, 2, 0, 2)
    assert said in str(error.value) and "\n" not in str(error.value)
