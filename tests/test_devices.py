"""--gpus: every form, with no GPU and with several, and what is said of a device that is not there."""
import pytest
import torch

from alexnet_mp.devices import resolve
from alexnet_mp.errors import UserError


@pytest.fixture
def gpus(monkeypatch):
    return lambda count: monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize("text, count, towers, expected", [
    ("cpu", 0, 2, ["cpu", "cpu"]), ("cpu,cpu", 0, 2, ["cpu", "cpu"]), ("auto", 0, 2, ["cpu", "cpu"]), ("auto", 0, 1, ["cpu"]),
    ("0", 1, 2, ["cuda:0", "cuda:0"]), ("0,0", 1, 2, ["cuda:0", "cuda:0"]), ("auto", 1, 2, ["cuda:0", "cuda:0"]),
    ("0,1", 2, 2, ["cuda:0", "cuda:1"]), ("1,0", 2, 2, ["cuda:1", "cuda:0"]), ("auto", 4, 2, ["cuda:0", "cuda:1"]),
    ("cpu,0", 1, 2, ["cpu", "cuda:0"]), (" 0 , 1 ", 2, 2, ["cuda:0", "cuda:1"]), ("auto", 2, 1, ["cuda:0"]), ("1", 2, 1, ["cuda:1"]),
])
def test_every_form(text, count, towers, expected, gpus):
    gpus(count)
    assert [str(device) for device in resolve(text, towers)] == expected


@pytest.mark.parametrize("text, count, towers, words", [
    ("0,1", 0, 2, ["no CUDA device", "--gpus cpu would work"]),
    ("0,1", 1, 2, ["GPU 1 is not there", "the GPUs here are 0", "--gpus 0 would work"]),
    ("0,7", 2, 2, ["GPU 7", "0, 1", "--gpus 0,1 would work"]),
    ("cpu,0", 0, 2, ["no CUDA device"]),
    ("0,1", 2, 1, ["1 tower"]), ("0,1,2", 3, 2, ["2 tower"]),
    ("cuda", 1, 2, ["0,1 (two GPUs)"]), ("", 1, 2, ["two GPUs"]), ("-1", 1, 2, ["two GPUs"]), ("²", 1, 2, ["two GPUs"]),
])
def test_what_is_not_there_is_said(text, count, towers, words, gpus):
    gpus(count)
    with pytest.raises(UserError) as raised:
        resolve(text, towers)
    assert all(word in str(raised.value) for word in words), str(raised.value)
