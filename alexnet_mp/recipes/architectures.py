"""`paper`, `source2012` and `mini`: the networks of the paper's text, of its code of 2012, and a small one."""

from collections.abc import Sequence
from dataclasses import replace

from .recipe import Date, Layer, Recipe, change_layers


def paper() -> Recipe:
    """The text of the paper, taken literally. Measured there: 37.5 % top-1, 17.0 % top-5 on ILSVRC-2010 test, ten
    views.

    Command: `python -m alexnet_mp.train --gpus 0,1 --data DIR --recipe paper`. Cost in 2012: five to six days on two
    GTX 580."""
    # 3.5: "the response-normalized and pooled output of the first convolutional layer"
    lrn_epilogue = ("relu", "lrn", "max_pool")
    fc_epilogue = ("relu", "dropout")
    return Recipe(
        "paper",
        layers=(
            Layer("conv1", "conv", 48, "image", lrn_epilogue, kernel=11, stride=4),
            Layer("conv2", "conv", 128, "own", lrn_epilogue, kernel=5, pad=2, init_bias=1.0),
            Layer("conv3", "conv", 192, "both", ("relu",), kernel=3, pad=1),
            Layer("conv4", "conv", 192, "own", ("relu",), kernel=3, pad=1, init_bias=1.0),
            Layer("conv5", "conv", 128, "own", ("relu", "max_pool"), kernel=3, pad=1, init_bias=1.0),
            Layer("fc6", "fc", 2048, "both", fc_epilogue, init_bias=1.0),
            Layer("fc7", "fc", 2048, "both", fc_epilogue, init_bias=1.0),
            Layer("fc8", "fc", None, "both", (), towers="first"),
        ),
    )


def source2012() -> Recipe:
    """Net 145 as the 2012 code ran it, with the dates of its ILSVRC-2010 run (0.374727 / 0.169987 on test, ten views).

    Command: `python -m alexnet_mp.train --gpus 0,1 --data DIR --recipe source2012`.
    """
    recipe = change_layers(paper(), "conv3", "conv4", "conv5", init_std=0.03)
    recipe = change_layers(recipe, "conv1", then=("lrn", "max_pool", "relu"))
    recipe = change_layers(recipe, "conv2", then=("relu", "lrn", "spatial_norm", "max_pool"))
    recipe = change_layers(recipe, "conv5", then=("max_pool", "relu"))
    return replace(
        recipe,
        name="source2012",
        lrn_alpha=1e-4 / 5,  # scale divided by size (layer.py:1183)
        pool_ties="all",
        crop_positions=33,  # offsets 0..32 inclusive
        crop_share=32,  # convdata_jpeg.py:238-246
        mean_follows_crop=False,  # convdata_jpeg.py:95,205-211
        colour_scale="root",
        colour_shrink=True,  # convdata_jpeg.py:154-179
        reshuffle=False,  # convdata_jpeg.py:143
        bias_learning_rate=0.02,
        bias_weight_decay=0.0,  # layer.cu:565
        schedule="dated",
        epochs=93,
        dates=dates_of_145([layer.name for layer in recipe.layers]),
    )


def dates_of_145(names: Sequence[str]) -> tuple[Date, ...]:
    """What was changed by hand in the 93 epochs of net 145 on ILSVRC-2010. names: of all layers.

    The notes (params-145-2010:170-176) say 23, 51, 68, 72, 78, 93, each the last epoch before a change: the author's
    script for net 120 (run4.sh:3-8) gives such numbers to --epochs, and the loop runs while epoch <= num_epochs
    (cuda-convnet, gpumodel.py:136). So a change comes with the epoch behind.
    """
    first_layer, *later_layers = names
    # Biases end at 0.002; in the script for net 120 they fall with the first drop.
    return (
        Date(24, weights=0.1, biases=0.1),
        Date(52, weights=0.01),
        Date(69, layers=(first_layer,), weights=0.001, colour_noise=0.0),
        Date(73, layers=(first_layer,), weights=0.0, biases=0.0),
        Date(79, layers=tuple(later_layers), weights=0.001),
    )


def mini() -> Recipe:
    """The paper's network for a laptop: the same graph, half as wide or less, on 96x96 crops of 112x112 pictures.

    The initial deviations grow by the root of the ratio of fan-ins, so that fewer inputs add up to as large a sum as in
    the full network. Twelve epochs, the rate divided by ten for the last two. Everything else, the biases that start at
    1 among it, is the paper's.

    Command: `make train`.
    """
    widths = {  # maps or units of one tower, and the initial deviation
        "conv1": (24, 0.01),
        "conv2": (64, 0.014),
        "conv3": (96, 0.014),
        "conv4": (96, 0.014),
        "conv5": (64, 0.014),
        "fc6": (256, 0.042),
        "fc7": (256, 0.028),
        "fc8": (None, 0.028),
    }
    recipe = paper()
    for name, (maps, std) in widths.items():
        recipe = change_layers(recipe, name, maps=maps, init_std=std)
    return replace(
        recipe,
        name="mini",
        stored_size=112,
        crop_size=96,
        crop_positions=16,
        epochs=12,
        schedule="dated",
        dates=(Date(11, weights=0.1, biases=0.1),),
    )
