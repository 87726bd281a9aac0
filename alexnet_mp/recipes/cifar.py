"""CIFAR-10: the four-layer networks of the 2012 source, and the two of figure 1. One tower, 32x32 pictures as they are.

Source: `layers-18pct.cfg`, `layers-conv-local-13pct.cfg`, `layers-conv-local-11pct.cfg` of cuda-convnet with their
parameter files; the data are those of `convdata_cifar.py`. The per cents in the names are the test errors that the
files claim.

`python -m alexnet_mp.prepare CIFAR DIR --recipe cifar18 --raw`, then `python -m alexnet_mp.train --data DIR --recipe
cifar18`."""

from dataclasses import replace

from .recipe import Date, Layer, Recipe, change_layers


def cifar18() -> Recipe:
    """`layers-18pct`: three convolutions, a norm after the first two, whole pictures, no crops, no flips. Source: 18 %
    error.

    The norm is of type `rnorm`: over 3x3 positions of the same map, not over neighbouring maps as in the paper
    (`cifar18_lrn`). 120 epochs, then ten at a tenth of all rates and ten at a hundredth."""
    return _cifar(
        "cifar18",
        epochs=140,
        dates=(Date(121, weights=0.1, biases=0.1), Date(131, weights=0.01, biases=0.01)),
        layers=(
            Layer("conv1", "conv", 32, "image", ("max_pool", "relu", "spatial_norm"), kernel=5, pad=2, init_std=1e-4),
            Layer("conv2", "conv", 32, "own", ("relu", "avg_pool", "spatial_norm"), kernel=5, pad=2),
            Layer("conv3", "conv", 64, "own", ("relu", "avg_pool"), kernel=5, pad=2),
            Layer("fc10", "fc", None, "own", (), weight_decay=1.0),
        ),
    )


def cifar18_lrn() -> Recipe:
    """`cifar18` with the paper's norm (3.3) in place of the source's: over three neighbouring maps. No result of it is
    recorded."""
    recipe = change_layers(cifar18(), "conv1", then=("max_pool", "relu", "lrn"))
    recipe = change_layers(recipe, "conv2", then=("relu", "avg_pool", "lrn"))
    return replace(recipe, name="cifar18_lrn", lrn_size=3, lrn_alpha=5e-5 / 3, lrn_k=1.0)


def cifar18_no_norm() -> Recipe:
    """`cifar18` without its norms and with nothing else changed. The source's own, 19 %, decays fc10 by 3 instead of 1
    as well."""
    recipe = change_layers(cifar18(), "conv1", then=("max_pool", "relu"))
    return replace(change_layers(recipe, "conv2", then=("relu", "avg_pool")), name="cifar18_no_norm")


def cifar13_local() -> Recipe:
    """`layers-conv-local-13pct`: two convolutions, two layers whose kernels aren't shared between positions, no norm.
    Source: 13 %.

    520 epochs as the notes of its sibling of 11 % have it, but for a fifth batch that was kept for validation at first:
    about 350 and 150 epochs, then ten at a tenth of the weights' rates and ten at a hundredth; rates of biases stay.
    """
    return cropped(
        _cifar(
            "cifar13_local",
            epochs=520,
            dates=(Date(501, weights=0.1), Date(511, weights=0.01)),
            layers=(
                Layer(
                    "conv1", "conv", 64, "image", ("relu", "max_pool"), kernel=5, pad=2, init_std=1e-4, weight_decay=0.0
                ),
                Layer("conv2", "conv", 64, "own", ("relu", "max_pool"), kernel=5, pad=2, weight_decay=0.0),
                Layer("local3", "local", 32, "own", ("relu",), kernel=3, pad=1, init_std=0.04),
                Layer("local4", "local", 32, "own", ("relu",), kernel=3, pad=1, init_std=0.04),
                Layer("fc10", "fc", None, "own", ()),
            ),
        )
    )


def cifar11_local() -> Recipe:
    """`layers-conv-local-11pct` of the later cuda-convnet: LRN over nine maps, and local3 twice as wide. Source: 11 %.

    The paper's "13 % without, 11 % with normalisation" (3.3) are probably `cifar13_local` and this one, which differ in
    more."""
    recipe = change_layers(cifar13_local(), "conv1", then=("relu", "max_pool", "lrn"))
    recipe = change_layers(recipe, "conv2", then=("relu", "lrn", "max_pool"))
    recipe = change_layers(change_layers(recipe, "local3", maps=64), "fc10", weight_decay=0.01)
    return replace(recipe, name="cifar11_local", lrn_size=9, lrn_alpha=1e-3 / 9, lrn_k=1.0)


def cifar_relu() -> Recipe:
    """Figure 1, solid line: four layers, ReLU, nothing against overfitting, one learning rate from the start to the
    end.

    The paper gives no sizes, and no such network is in the source: this is `cifar18` without norms and without weight
    decay. The rate is the source's; the paper chose one for each network so that it trains as fast as it can."""
    recipe = change_layers(cifar18_no_norm(), "fc10", weight_decay=None)
    return replace(recipe, name="cifar_relu", weight_decay=0.0, dates=(), epochs=40)


def cifar_tanh() -> Recipe:
    """Figure 1, dashed line: `cifar_relu` with tanh."""
    recipe = change_layers(cifar_relu(), "conv1", then=("max_pool", "tanh"))
    return replace(change_layers(recipe, "conv2", "conv3", then=("tanh", "avg_pool")), name="cifar_tanh")


def cifar_sigmoid() -> Recipe:
    """`cifar_relu` with the logistic function, the other saturating unit of 3.1; figure 1 has no curve of it."""
    recipe = change_layers(cifar_relu(), "conv1", then=("max_pool", "sigmoid"))
    return replace(change_layers(recipe, "conv2", "conv3", then=("sigmoid", "avg_pool")), name="cifar_sigmoid")


def cropped(recipe: Recipe) -> Recipe:
    """The recipe on 24x24 crops at one of 9 x 9 places and mirrored, drawn for each image; tested on ten views.

    Ten are those of June 2012 (cuda-convnet, `convdata.py:66,103-111`); `test_views="nine"` is of March 2013.
    """
    return replace(recipe, crop_size=24, crop_positions=9, flip=True, test_views="ten")


def _cifar(name, **changes):
    """What these networks have in common."""
    return Recipe(
        name,
        towers=1,
        spatial_size=3,
        spatial_alpha=5e-5 / 9,
        spatial_k=1.0,  # scale over size * size (layer.py:1183)
        pool_ties="all",
        stored_size=32,
        crop_size=32,
        crop_positions=1,
        flip=False,
        test_views="one",
        mean_follows_crop=False,  # the centre window, never flipped
        colour_noise=0.0,
        reshuffle=False,
        batch_file_size=10_000,  # images of a file, cut into minibatches by themselves: 395 an epoch
        learning_rate=0.001,
        bias_learning_rate=0.002,  # epsW, epsB
        weight_decay=0.004,
        bias_weight_decay=0.0,
        schedule="dated",
        **changes,
    )
