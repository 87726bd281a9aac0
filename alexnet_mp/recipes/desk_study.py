"""`desk`: the network of the desk study (claims/desk-study.md)."""

from dataclasses import replace

from .ablations import source_init
from .architectures import paper
from .recipe import Date, Recipe, change_layers


def desk() -> Recipe:
    """The paper's network for 64x64 photographs of a hundred classes on one processor core; claims/desk-study.md has
    the trials.

    conv1 has the paper's 48 kernels of 11x11 a tower, so that its figure 3 can be held beside the paper's, at stride 2,
    since a picture is a quarter as wide. conv2 to conv5 have three eighths to a third of the paper's maps, the hidden
    layers a quarter of its units. The initial deviations are the source's, times the root of the ratio of fan-ins, as
    in `mini`: with 0.01 in conv3 to conv5 as well, the trial learned later. The crop is three quarters of the picture's
    side, at every offset that there is: in equal computing time the trial ended better than with seven eighths, the
    paper's share, and fewer epochs. Ten epochs, the rate divided by ten for the ninth and by a hundred for the last.
    Batch, rates, momentum, decay, dropout, biases, norms, pools and colours are the paper's.

    Command: `python -m alexnet_mp.train --recipe desk --gpus cpu --data DIR`.
    """
    recipe = paper()
    for name, maps in {"conv2": 48, "conv3": 64, "conv4": 64, "conv5": 48, "fc6": 512, "fc7": 512}.items():
        recipe = change_layers(recipe, name, maps=maps)
    recipe = change_layers(recipe, "conv1", stride=2)
    recipe = replace(
        recipe,
        name="desk",
        stored_size=64,
        crop_size=48,
        crop_positions=17,
        schedule="dated",
        epochs=10,
        dates=(Date(9, weights=0.1, biases=0.1), Date(10, weights=0.01, biases=0.01)),
    )
    return source_init(recipe)
