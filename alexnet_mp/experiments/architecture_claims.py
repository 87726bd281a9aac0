"""The paper's claims of the architecture: section 3, depth and size (1, 7), what the towers become (6.1)."""

import math
from functools import partial

from ..recipes import ablations
from .claim import BASE, NOT_RECORDED, Arm, Claim, base_and
from .error_kinds import Difference
from .network_kinds import Towers
from .time_kinds import Iterations, Rates

ARCHITECTURE = (
    Claim(
        "specialisation",
        "6.1",
        "In every run the first-layer kernels of one tower become largely colour-agnostic, those of the "
        "other largely colour-specific.",
        "figure 3; in every run, whatever the initial weights",
        "no figure",
        Towers(),
        (
            BASE,
            Arm("no_links_same_width", "control: no links, nothing widened", (ablations.no_links_same_width,)),
            Arm("one_tower", "control: one tower with the maps of both, split at random", (ablations.one_tower,)),
        ),
    ),
    Claim(
        "lrn",
        "3.3",
        "Local response normalisation lowers the error.",
        "1.4 / 1.2 points",
        "148 (without the spatial norm too): 42.03 / 19.36 against 40.66 / 18.21 of 145: 1.37 / 1.15 points; but "
        "167, without "
        "the norms of layer 2 alone and under a later schedule, has 40.49 / 18.12",
        Difference(),
        base_and("no_lrn", "no normalisation, the spatial one among them", ablations.no_lrn),
        points=1.4,
    ),
    Claim(
        "one-gpu",
        "3.2",
        "Two towers beat one network of half as many kernels on one GPU.",
        "1.7 / 1.2 points",
        "145-half: 39.17 / 18.23 against 37.47 / 17.00 of 145-2010: 1.70 / 1.23 points",
        Difference(),
        base_and(
            "one_gpu",
            "one tower: half the kernels of each convolution but the last, and all of the rest",
            ablations.one_gpu,
        ),
        points=1.7,
    ),
    Claim(
        "pooling",
        "3.4",
        "Overlapping pooling (3x3, stride 2) beats pooling without overlap (2x2, stride 2).",
        "0.4 / 0.3 points; networks overfit a little less",
        "147: 41.06 / 18.51 against 40.66 / 18.21 of 145: 0.39 / 0.30 points",
        Difference(),
        base_and(
            "non_overlapping",
            "2x2 pools, and pads with which the pooled maps stay as large, as in 147",
            ablations.non_overlapping,
        ),
        points=0.4,
        tells_gaps=True,
    ),
    Claim(
        "depth",
        "1, 7",
        "Each convolutional layer matters (the first, which shrinks the picture, can't be taken out alone).",
        '"inferior performance" without any one; about 2 points top-1 for each of the middle ones',
        NOT_RECORDED,
        Difference(),
        (
            BASE,
            *(
                Arm(f"no_{name}", f"without {name}", (partial(ablations.without_layer, name=name),))
                for name in ("conv2", "conv3", "conv4", "conv5")
            ),
        ),
        points=2.0,
        every=True,
    ),
    Claim(
        "links",
        "3.2",
        "The links between the towers at conv3, fc6 and fc7 lower the error.",
        "no figure",
        "150 (conv2 of 160 maps, fc6 of 4096 a GPU): 41.83 / 19.33 against 40.66 / 18.21 of 145: 1.16 / 1.12 points",
        Difference(),
        (
            BASE,
            Arm("no_links", "no links; conv2 and fc6 widened as in net 150", (ablations.no_links,)),
            Arm("no_links_same_width", "no links, nothing widened", (ablations.no_links_same_width,)),
        ),
        effect=0.6,
    ),
    Claim(
        "order",
        "3.5",
        "ReLU stands before the first normalisation (the source normalises signed values).",
        "no figure",
        "120 (conv, pool, ReLU, norm) 41.04 / 18.71, 131 (the norm first, and nothing else changed) 40.93 / 18.57; "
        "166 (norms first in layer 2 too, a later schedule) 41.10 / 18.67",
        Difference(),
        (
            Arm("paper_order", "ReLU, norm, pool in layer 1", (ablations.paper_order,)),
            Arm("source_order", "norm, pool, ReLU in layer 1", (ablations.source_order,)),
        ),
        direction=0,
    ),
    Claim(
        "saturating",
        "3.1",
        "Other networks, too, learn several times faster with ReLUs than with units that "
        "saturate (each here at the rates of the base).",
        '"consistently" several times, how much depends on the network; no figure',
        "no configuration trained with another unit",
        Iterations(),
        (
            BASE,
            Arm("tanh", "tanh in place of every ReLU", (ablations.tanh,)),
            Arm("sigmoid", "the logistic function in place of every ReLU", (ablations.sigmoid,)),
        ),
        effect=math.log(2),
    ),
    Claim(
        "larger",
        "1, 7",
        "A larger network is better.",
        '"results have improved as we have made our network larger"; no figure',
        NOT_RECORDED,
        Difference(),
        (
            BASE,
            Arm("half_width", "half the maps and units in every layer but the last", (ablations.half_as_wide,)),
            Arm("double_width", "twice as many", (ablations.twice_as_wide,)),
        ),
        effect=0.5,
    ),
    Claim(
        "cifar-lrn",
        "3.3",
        "Local response normalisation lowers the error of a four-layer network on CIFAR-10.",
        "13 % without, 11 % with",
        "18pct with (spatial) norms, 19pct without and with another weight decay",
        Difference(),
        (
            Arm("cifar18_no_norm", "layers-18pct without its norms", preset="cifar18_no_norm"),
            Arm("cifar18_lrn", "with norms over three neighbouring maps", preset="cifar18_lrn"),
            Arm("cifar18", "layers-18pct, whose norms are spatial", preset="cifar18"),
        ),
        data="cifar10",
        needs="CIFAR-10",
        direction=-1,
        points=2.0,
    ),
    Claim(
        "cifar-relu",
        "3.1",
        "A four-layer network with ReLUs comes to 25 % training error on CIFAR-10 six times as fast as with tanh.",
        "six times (figure 1)",
        "no configuration with tanh",
        Rates(),
        (Arm("cifar_relu", "ReLU", preset="cifar_relu"), Arm("cifar_tanh", "tanh", preset="cifar_tanh")),
        data="cifar10",
        needs="CIFAR-10",
        effect=math.log(3),
    ),
    Claim(
        "cifar-local",
        "3.3",
        "The locally connected networks of the source: 11 % with normalisation, 13 % without.",
        "13 % without, 11 % with",
        "conv-local-13pct, conv-local-11pct, which differ in a layer's width and a weight decay too",
        Difference(),
        (
            Arm("cifar11_local", "conv-local-11pct", preset="cifar11_local"),
            Arm("cifar13_local", "conv-local-13pct", preset="cifar13_local"),
        ),
        data="cifar10",
        needs="CIFAR-10",
        points=2.0,
    ),
    Claim(
        "cifar-sigmoid",
        "3.1",
        "The same network with the logistic function, the other saturating unit that 3.1 names.",
        '"much slower"; figure 1 has tanh alone',
        "no configuration with it",
        Rates(),
        (Arm("cifar_relu", "ReLU", preset="cifar_relu"), Arm("cifar_sigmoid", "logistic", preset="cifar_sigmoid")),
        data="cifar10",
        needs="CIFAR-10",
        effect=math.log(3),
    ),
)
