"""The recipes that `--recipe` knows, by name; and `desk`, the network of the desk study. What `ablations.py` derives
from them is run by `claims`."""

from dataclasses import replace

from .ablations import source_init
from .architectures import mini, paper, source2012
from .caffe import caffe_alexnet, caffenet
from .cifar import (
    cifar11_local,
    cifar13_local,
    cifar18,
    cifar18_lrn,
    cifar18_no_norm,
    cifar_relu,
    cifar_sigmoid,
    cifar_tanh,
)
from .one_weird_trick import owt2014
from .pretraining import net146_2009, net146_2011, net146_2012
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


PRESETS = {
    preset.__name__: preset
    for preset in (
        paper,
        source2012,
        mini,
        desk,
        cifar18,
        cifar18_lrn,
        cifar18_no_norm,
        cifar13_local,
        cifar11_local,
        cifar_relu,
        cifar_tanh,
        cifar_sigmoid,
        net146_2009,
        net146_2011,
        net146_2012,
        caffe_alexnet,
        caffenet,
        owt2014,
    )
}
