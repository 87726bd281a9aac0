"""`owt2014`: the network of "One weird trick for parallelizing convolutional neural networks" (Krizhevsky 2014), as his
configuration for four GPUs has it.

"cc2" is cuda-convnet2. Layers are those of its `layers-imagenet-4gpu-data.cfg`. The rates are those that cc2's page on
parallelism and the comments of its other files give: no copy of the hybrid scheme's own parameter file was found."""

from dataclasses import replace

from .recipe import Date, Layer, Recipe, change_layers

CONNECTED = ("fc6", "fc7", "fc8")  # cc2: fc4096a, fc4096b, fc1000
EPOCHS = 90  # cc2, page on parallelism


def owt2014() -> Recipe:
    """One tower, as wide as both of `source2012` together but for conv1, conv2 and conv4, and 61,100,840 parameters, of
    which 58,631,144 are the fully connected layers'. What cc2 doesn't say is as in `paper`.

    Command: `torchrun --nproc-per-node 4 -m alexnet_mp.train --recipe owt2014 --gpus 0,1,2,3 --data DIR`; one process
    takes the same steps."""
    fc_epilogue = ("relu", "dropout")
    return Recipe(
        "owt2014",
        layers=(
            # cc2: rnorm1 reads conv1 itself, and pool1 has the ReLU; so has pool3.
            Layer("conv1", "conv", 64, "image", ("lrn", "max_pool", "relu"), kernel=11, stride=4),
            Layer("conv2", "conv", 192, "own", ("relu", "lrn", "max_pool"), kernel=5, pad=2, init_bias=1.0),
            Layer("conv3", "conv", 384, "own", ("relu",), kernel=3, pad=1, init_std=0.03),
            Layer("conv4", "conv", 256, "own", ("relu",), kernel=3, pad=1, init_std=0.03, init_bias=1.0),
            Layer("conv5", "conv", 256, "own", ("max_pool", "relu"), kernel=3, pad=1, init_std=0.03, init_bias=1.0),
            # A quarter of the convolutions' rate, 0.01: that of 128 images (cc2, page on parallelism).
            Layer("fc6", "fc", 4096, "own", fc_epilogue, init_bias=1.0, rate=0.25),
            Layer("fc7", "fc", 4096, "own", fc_epilogue, init_bias=1.0, rate=0.25),
            Layer("fc8", "fc", None, "own", (), init_bias=-7.0, rate=0.25),
        ),
        towers=1,
        lrn_alpha=1e-4 / 5,  # cc2: scale 0.0001, which its layer.py divides by the size
        batch_size=512,
        fc_batch_size=128,  # cc2: updatePeriod 1, an update for each GPU's images
        learning_rate=0.04,
        bias_learning_rate=0.08,
        bias_weight_decay=0.0,  # cc2: layer.cu gives biases none
        schedule="dated",
        epochs=EPOCHS,
        dates=_dates(),
    )


def one_gpu_rates(recipe: Recipe) -> Recipe:
    """`owt2014` as it would be trained on one GPU: minibatches of 128, after which all layers are updated, weights at
    0.01 and biases at 0.02 (cc2, `layer-params-imagenet-1gpu.cfg`). All change at the same dates."""
    return replace(
        change_layers(recipe, *CONNECTED, rate=1.0),
        batch_size=128,
        fc_batch_size=None,
        learning_rate=0.01,
        bias_learning_rate=0.02,
        dates=tuple(
            replace(date, biases=4 * date.biases) if date.layers == CONNECTED else date for date in recipe.dates
        ),
    )


def _dates():
    """cc2: dexp[tgtFactor=250; numSteps=4] of weights, dexp[tgtFactor=10; numSteps=2] of biases: so many equal parts of
    the run, each at a rate that is lower by the same factor (`lr.cu`). A change within an epoch comes with the next."""
    first, half, last = (1 + -(-quarter * EPOCHS // 4) for quarter in (1, 2, 3))  # 24, 46, 69
    return (
        Date(1, CONNECTED, biases=0.25),  # 0.02, twice the weights' rate (cc2, page on parallelism)
        Date(first, weights=250 ** (-1 / 3)),
        Date(half, weights=250 ** (-2 / 3), biases=0.1),
        Date(half, CONNECTED, biases=0.025),
        Date(last, weights=1 / 250),
    )
