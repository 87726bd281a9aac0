"""The two pictures of a run: kernels under one scale, curves from whatever the metrics hold."""
import json

import numpy as np
from PIL import Image

from alexnet_mp.pictures import GAP, SCALE, draw_curves, kernel_picture


def test_kernels_share_one_scale_and_keep_their_places():
    weights = np.zeros((48, 3, 11, 11), np.float32)
    weights[0, 0], weights[0, 1:], weights[24, 2], weights[47] = 0.5, -0.5, 0.5, 0.25  # red: a's first; blue-ish: b's first
    picture = np.asarray(kernel_picture(weights, towers=2)).astype(int)
    cell, title = 11 * SCALE + GAP, 22

    def pixel(tower, index):
        top = tower * (title + 2 * cell + GAP) + title + (index // 16) * cell
        return picture[top + 5, GAP + (index % 16) * cell + 5].tolist()

    assert pixel(0, 0) == [255, 0, 0]
    assert pixel(0, 1) == pixel(1, 1) == [128, 128, 128]  # zero is grey in both towers: the scale is the layer's, not the kernel's
    assert pixel(1, 0) == [128, 128, 255]
    assert pixel(1, 23) == [191, 191, 191]


def test_constant_kernels_and_one_tower_can_be_drawn():
    assert kernel_picture(np.zeros((5, 3, 11, 11), np.float32), towers=1).size[1] < 120


def test_curves_of_short_runs(tmp_path):
    """One step and no validation; a last line that was cut off is left out."""
    line = {"kind": "train", "step": 1, "epoch": 1, "loss": 2.3, "top1_error": 90.0}
    for name, text in (("one", json.dumps(line) + "\n"), ("cut", json.dumps(line) + '\n{"kind": "tra'), ("none", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(text)
        with Image.open(draw_curves(tmp_path / name)) as picture:
            assert picture.size == (1100, 528)
