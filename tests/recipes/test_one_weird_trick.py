"""`owt2014`: its layers, parameters and rates, as cuda-convnet2 has them; and the same network's on one GPU."""

import pytest

from alexnet_mp.recipes.one_weird_trick import one_gpu_rates, owt2014
from alexnet_mp.recipes.shapes import parameter_counts, sizes
from alexnet_mp.training.schedule import make_schedule


def test_the_network():
    layer_sizes = {size.layer.name: size for size in sizes(owt2014())}
    assert {name: size.output for name, size in layer_sizes.items()} == {
        "conv1": (64, 27, 27),
        "conv2": (192, 13, 13),
        "conv3": (384, 13, 13),
        "conv4": (256, 13, 13),
        "conv5": (256, 6, 6),
        "fc6": (4096, 1, 1),
        "fc7": (4096, 1, 1),
        "fc8": (1000, 1, 1),
    }
    fc_parameters = sum(size.parameters for name, size in layer_sizes.items() if name.startswith("fc"))
    assert parameter_counts(owt2014()) == (61_100_840,) and fc_parameters == 58_631_144
    assert (owt2014().batch_size, owt2014().fc_batch_size) == (512, 128)
    one = one_gpu_rates(owt2014())
    assert (one.batch_size, one.fc_batch_size) == (128, None)
    assert [size.weight_shape for size in sizes(one)] == [size.weight_shape for size in layer_sizes.values()]


def test_the_rates():
    """Weights: 250 in four parts of the 90 epochs; biases: 10 in two. Of the fully connected layers a quarter."""
    schedule, one_gpu = make_schedule(owt2014()), make_schedule(one_gpu_rates(owt2014()))
    for epochs, weights, biases in (
        ((1, 23), 1.0, 1.0),
        ((24, 45), 250 ** (-1 / 3), 1.0),
        ((46, 68), 250 ** (-2 / 3), 0.1),
        ((69, 90), 1 / 250, 0.1),
    ):
        for epoch in epochs:
            for layer, share in (("conv1", 1.0), ("conv5", 1.0), ("fc6", 0.25), ("fc8", 0.25)):
                for what, rate in ((".weight", 0.04 * weights), (".bias", 0.08 * biases)):
                    assert schedule.rates(epoch)[layer + what] == pytest.approx(share * rate, rel=1e-12)
                    assert one_gpu.rates(epoch)[layer + what] == pytest.approx(rate / 4, rel=1e-12)
