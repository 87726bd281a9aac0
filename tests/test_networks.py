"""networks/desk, the trained network of the repository: of the record, whole, and small enough to lie here."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from learned.measure import digest
from safetensors.numpy import load_file

import alexnet_mp
from alexnet_mp import convert, predict
from alexnet_mp.analysis.specialisation import first_layer
from alexnet_mp.data.synthetic import Builtin
from alexnet_mp.recipes.named import PRESETS
from alexnet_mp.recipes.recipe import from_dict, override

ROOT = Path(__file__).resolve().parents[1]
DESK = ROOT / "networks" / "desk"
ANSWERS = [58, 30, 85, 85, 97, 76, 85, 85, 97, 43]


def test_it_is_the_network_of_the_record(tmp_path, capsys):
    """Recipe and first layer of seed 3's record; the answers that it gave of embedded pictures when it was written."""
    record = np.load(ROOT / "claims" / "records" / "runs" / "base-1109a44c-seed3.npz")
    assert (load_file(DESK / "model.safetensors")["conv1.weight"] == record["conv1"]).all()
    config = json.loads((DESK / "config.json").read_text(encoding="utf-8"))
    assert from_dict(config["recipe"]) == override(PRESETS["desk"](), ["seed=3"])
    assert len(config["classes"]) == 100 and config["class_names"][:2] == ["goldfish", "bullfrog"]
    split = Builtin(64).splits["val"]
    pictures = [split.read(number) for number in range(0, 200, 20)]
    with torch.inference_mode():
        labels = alexnet_mp.from_pretrained(DESK)(torch.from_numpy(np.stack(pictures))).argmax(1)
    assert labels.tolist() == ANSWERS
    assert convert.main([str(DESK), str(tmp_path / "run")]) == 0
    kernels, towers = first_layer(tmp_path / "run")
    assert (kernels == record["conv1"].astype(np.float32)).all() and towers == 2
    assert digest(tmp_path / "run") == "9e0cf8758a28dd19"  # of all weights
    from PIL import Image

    Image.fromarray(pictures[0]).save(tmp_path / "picture.png")
    capsys.readouterr()
    assert predict.main([str(tmp_path / "run"), str(tmp_path / "picture.png"), "--gpus", "cpu"]) == 0
    assert f"{config['class_names'][ANSWERS[0]]} ({config['classes'][ANSWERS[0]]})" in capsys.readouterr().out


def test_records_and_networks_stay_small():
    """A clone gets them all, so they stay under 20 MB together."""
    process = subprocess.run(["git", "ls-files", "-z", "claims", "networks"], cwd=ROOT, capture_output=True, text=True)
    if process.returncode:
        pytest.skip("no git repository: what else lies there can't be told from what is kept")
    sizes = [(ROOT / name).stat().st_size for name in process.stdout.split("\0") if name]
    assert len(sizes) > 50 and sum(sizes) < 20e6
