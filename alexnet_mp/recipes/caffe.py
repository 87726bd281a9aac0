"""The two networks that Caffe's model zoo gave weights of: BVLC AlexNet and the reference CaffeNet.

Numbers are from `models/bvlc_alexnet` and `models/bvlc_reference_caffenet` of BVLC/caffe, train_val.prototxt and
solver.prototxt."""

from dataclasses import replace

from .architectures import paper
from .recipe import Date, Recipe, change_layers


def caffe_alexnet() -> Recipe:
    """BVLC AlexNet: 57.1 % top-1 and 80.2 % top-5 accuracy on ILSVRC-2012 validation, centre view (its readme).

    What differs from the paper: crops of 227 without a last window over the edge, at 30 offsets; k is 1, and alpha
    divided by the size; normalisation sees across the towers' border; no colour shifts; other initial weights, biases
    learn at twice the rate and don't decay; 256 images a step, the rate falls four times in 90 epochs, after 100,000
    steps each.

    Caffe multiplies by 2 what dropout leaves in training, and by nothing in test. Here fc7 and fc8 have twice its
    weights instead: their initial deviations are doubled, their rate is 4 times and their decay a quarter of Caffe's,
    so that each step changes them by twice what Caffe's changes.

    Command: `python -m alexnet_mp.train --recipe caffe_alexnet --set lrn_crosses=false`: towers that are trained don't
    see across their border."""
    return replace(_caffe(0.1), name="caffe_alexnet")


def caffenet() -> Recipe:
    """The reference CaffeNet: 57.4 % top-1 and 80.4 % top-5 accuracy on ILSVRC-2012 validation, centre view (its
    readme). Unlike `caffe_alexnet` it pools before it normalises, and its initial biases are the paper's.

    Command: `python -m alexnet_mp.train --recipe caffenet --set lrn_crosses=false`."""
    recipe = change_layers(_caffe(1.0), "conv1", "conv2", then=("relu", "max_pool", "lrn"))
    return replace(recipe, name="caffenet")


def _caffe(bias):
    recipe = change_layers(paper(), "conv2", "conv4", "conv5", "fc6", "fc7", init_bias=bias)
    recipe = change_layers(recipe, "fc6", init_std=0.005)
    changes = dict(rate=4.0, weight_decay=0.0005 / 4)
    recipe = change_layers(recipe, "fc7", init_std=2 * 0.005, **changes)
    recipe = change_layers(recipe, "fc8", init_std=2 * 0.01, **changes)
    return replace(
        recipe,
        crop_size=227,
        crop_positions=30,
        lrn_k=1.0,
        lrn_alpha=1e-4 / 5,  # lrn_layer.cpp: alpha over local_size
        lrn_crosses=True,
        colour_noise=0.0,
        batch_size=256,
        bias_learning_rate=0.02,
        bias_weight_decay=0.0,
        schedule="dated",
        # 100,000 steps of 256 of 1,281,167 images are 19.98 epochs
        dates=tuple(
            Date(epoch, weights=rate, biases=rate) for epoch, rate in ((21, 0.1), (41, 0.01), (61, 1e-3), (81, 1e-4))
        ),
    )
