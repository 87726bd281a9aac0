"""Weights on disk: what is saved is loaded bit for bit, and what is no checkpoint is refused by name."""
import pickle

import pytest
import torch
from safetensors.torch import load_file

from alexnet_mp import TwoTowerAlexNet, checkpoint, mini
from alexnet_mp.errors import UserError


@pytest.fixture
def network():
    return TwoTowerAlexNet(mini(), ("cpu", "cpu"), 5)


def test_round_trip(network, tmp_path):
    directory = checkpoint.save(tmp_path, network, 7)
    assert directory == tmp_path / "checkpoints" / "step_00000007" == checkpoint.newest(tmp_path)
    plain = load_file(directory / "weights.safetensors")  # as anybody reads it, without this project
    assert plain["conv1.weight"].shape == (48, 3, 11, 11) and len(plain) == 16
    other = TwoTowerAlexNet(mini(), ("cpu", "cpu"), 5)
    other.load_merged(checkpoint.load(directory))
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), other.state_dict().values(), strict=True))


def test_the_newest_is_by_step(network, tmp_path):
    for step in (9, 100, 20):
        checkpoint.save(tmp_path, network, step)
    assert checkpoint.newest(tmp_path).name == "step_00000100"


def test_a_crash_during_a_save_leaves_the_old_one(network, tmp_path, monkeypatch):
    checkpoint.save(tmp_path, network, 1)

    def crash(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", crash)
        with pytest.raises(OSError):
            checkpoint.save(tmp_path, network, 2)
    assert checkpoint.newest(tmp_path).name == "step_00000001"
    checkpoint.save(tmp_path, network, 3)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_00000001", "step_00000003"]


def test_no_checkpoint_is_said(tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoint.newest(tmp_path)


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, pickle.dumps({"conv1.weight": 1})], ids=["empty", "garbage", "pickle"])
def test_damaged_weights_are_refused(content, network, tmp_path):
    directory = checkpoint.save(tmp_path, network, 1)
    (directory / "weights.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="weights.safetensors"):
        checkpoint.load(directory)
