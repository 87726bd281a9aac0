"""What the report says first, of finished runs and of those that have just begun."""

import numpy as np

from alexnet_mp.recipes.ablations import one_gpu
from alexnet_mp.recipes.architectures import mini, paper
from alexnet_mp.reporting.headline import headline

VAL = {"kind": "val", "images": 50_000, "top1_error": 50.0, "top5_error": 20.0}
TEST = {"kind": "test", "images": 50_000, "protocol": "ten views", "top1_error": 40.125, "top5_error": 17.0}


def kernels():
    """Grey ones in tower a, of one colour in tower b."""
    weights = np.ones((48, 3, 5, 5), np.float32)
    weights[24:, 1:] = -0.5
    return weights


def test_a_finished_run():
    error, chroma, crosses = headline(kernels(), [VAL, TEST], paper(), 1000)
    assert (error.name, error.value) == ("top-1 / top-5 error, ten views", "40.12 / 17.00 %")
    assert error.note == "a guess: 99.9 / 99.5 %"
    assert chroma.value == "0.00 / 1.00" and chroma.note.endswith("p = 0.0001")
    # 3.2, figure 2: conv2's 128 x 13 x 13 and 2,048 units, both ways, at fc8 one; as much back
    assert crosses.value == f"{2 * 128 * 4 * (2 * 128 * 6 * 6 + 2 * 128 * 13 * 13 + 3 * 2048) / 1e6:,.1f} MB"
    assert crosses.note.endswith("at conv3, fc6, fc7, fc8")


def test_few_classes_no_test_and_one_tower():
    error, *_ = headline(kernels(), [VAL], mini(), 5)
    assert (error.name, error.value, error.note) == ("top-1 error, centre view", "50.00 %", "a guess: 80.0 %")
    (chroma,) = headline(kernels(), [], one_gpu(mini()), 16)
    assert chroma.name == "share of chroma in the first layer" and chroma.value == "0.33" and not chroma.note


def test_few_pictures_have_their_number_and_an_interval():
    record = VAL | {"images": 18, "top1_error": 100 * 11 / 18, "top5_error": 100 * 1 / 18}
    error, *_ = headline(kernels(), [record], mini(), 3)
    assert error.value == "61.11 %" and error.note == "top-1 11 of 18: 39 to 80 %, 95 % interval; a guess: 66.7 %"
    error, *_ = headline(kernels(), [record], mini(), 10)
    assert error.value == "61.11 / 5.56 %"
    assert error.note.startswith("top-1 11 of 18: 39 to 80 %, 95 % interval; top-5 1 of 18: 1 to 26 %, 95 % interval; ")
