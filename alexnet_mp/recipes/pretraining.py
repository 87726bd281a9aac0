"""Net 146, step by step: 145 with a sixth convolution, pre-trained on ImageNet and fine-tuned on ILSVRC-2012 (6).

`docs/pretraining.md` has the commands, one after the other. Rates and epochs are from the notes of
`layer-params-146-2009.cfg:185-188`, `layer-params-146-2011.cfg:206-211` and `layer-params-146-2012-2011.cfg:182-193`.
"6.6491" is file 6,491 of the sixth epoch there. Ours change and end with whole epochs, the nearest to the notes'.
Biases keep 0.02: the notes say nothing else.
"""

from dataclasses import replace

from .ablations import bottleneck, fine_tuned, sixth_conv
from .architectures import source2012
from .recipe import Date, Recipe, change_layers


def net146_2009() -> Recipe:
    """146-2009 on Fall 2009: conv1 to conv5 are 145's, at a tenth of the rate; the rest is new and falls to it.

    The rest falls at 2.1600, when 1.2 epochs of some 8,700 files are over, and the end is at 6.6491, after 5.7: here
    the start of epoch 2, and six epochs.
    """
    recipe = change_layers(sixth_conv(source2012()), "conv1", "conv2", "conv3", "conv4", "conv5", rate=0.1)
    return replace(recipe, name="net146_2009", epochs=6, dates=(_to_a_tenth(2, "conv6", "fc6", "fc7", "fc8"),))


def net146_2011() -> Recipe:
    """146-2011 on Fall 2011: the convolutions of 146-2009, at a tenth of the rate; a linear bottleneck before fc8.

    The rest falls after 6 epochs; the end is at 8.11295, after 7.8: here eight epochs.
    """
    recipe = bottleneck(sixth_conv(source2012()))
    recipe = change_layers(recipe, "conv1", "conv2", "conv3", "conv4", "conv5", "conv6", rate=0.1)
    return replace(recipe, name="net146_2011", epochs=8, dates=(_to_a_tenth(7, "fc6", "fc7", "bottleneck1", "fc8"),))


def net146_2012() -> Recipe:
    """146-2012-2011 on ILSVRC-2012: 146-2011's layers but bottleneck and fc8. Source: 38.99 / 16.62 % on validation.

    fc8 begins at a tenth of its rate for 300 files of 1,024 images: 2,400 steps, which `--set fc8.rate=0.1` has.
    """
    return replace(fine_tuned(sixth_conv(source2012())), name="net146_2012")


def _to_a_tenth(epoch, *layers):
    return Date(epoch, layers=layers, weights=0.1)
