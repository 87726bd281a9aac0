"""Every claim of the paper as data: what it says, the figures of the paper and of the 2012 notes, and which networks
test it.

Figures are errors in % (top-1 / top-5), differences in points. "2012" figures are from the notes in the source's
configuration files, where they record any; 147 is `layers-147.cfg`. The order is that of `claims run all`: what tells
most for its time is first."""

import math
from dataclasses import dataclass
from dataclasses import replace as changed
from functools import partial

from ..recipes import ablations
from ..recipes.recipe import Recipe
from .error_kinds import Cumulative, Difference, Errors, Overfitting, Schedule, Training, Views
from .kind import Kind
from .network_kinds import Ensemble, Masks, Towers
from .time_kinds import Dropout, Iterations, Moved, Rates


@dataclass(frozen=True)
class Arm:
    """One network of a claim: a preset, and what is changed in it."""

    name: str  # a word; run directories begin with it
    what: str
    derive: tuple = ()  # functions Recipe -> Recipe, applied in this order
    preset: str | None = None  # None: what --base says
    init: str | None = None  # the arm, trained before with the same seed, whose weights this one begins with
    larger: bool = False  # trained on the larger label set


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, and the networks that test it."""

    id: str
    section: str
    sentence: str
    paper: str
    source: str  # what the 2012 notes have
    kind: Kind
    arms: tuple[Arm, ...]
    # Or "labelled test", "cifar10", "ilsvrc-2010", "ilsvrc-2012", "fall-2009": on other data `run all` leaves it out.
    data: str = "any"
    seeds: int = 3  # unless --seeds says otherwise
    needs: str = ""  # of the data, said by the list
    more: str = ""  # of the command
    direction: int = 1  # of what `verdict.py` compares, in the paper: 1 above 0, -1 below, 0 none
    effect: float | None = None  # which would count, in that direction: half of the paper's, where it has a figure
    every: bool = False  # the claim is made of every arm, not of the second alone


def at_rate(factor: float, recipe: Recipe) -> Recipe:
    """Both learning rates times `factor`."""
    return changed(
        recipe, learning_rate=recipe.learning_rate * factor, bias_learning_rate=recipe.bias_learning_rate * factor
    )


def fine_tuned(recipe: Recipe) -> Recipe:
    """Rates and dates of 146-2012-2011, at the same share of the recipe's epochs."""
    return ablations.fine_tuned(recipe, recipe.epochs)


GRID = (1.0, 3.0, 10.0)  # of a search, factors on both learning rates; widened if the best is at its edge
FACTORS = (0.01, 0.03, 0.1, 0.3, *GRID, 30.0, 100.0)

BASE = Arm("base", "the network as it is")
FINE_TUNING = (
    Arm("sixth_conv", "pre-training", (ablations.sixth_conv,), larger=True),
    Arm(
        "fine_tuned",
        "pre-trained, then fine-tuned with a new last layer",
        (ablations.sixth_conv, fine_tuned),
        init="sixth_conv",
    ),
)
NOTHING = "not recorded"


def _base_and(name, what, *derive):
    return BASE, Arm(name, what, derive)


CLAIMS = (
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
        "views",
        "4.1",
        "Averaging over ten views beats the centre view.",
        "1.5 / 1.3 points",
        "145-2010: 39.02 / 18.30 centre, 37.47 / 17.00 ten views: 1.55 / 1.30 points",
        Views(),
        (BASE,),
        effect=0.75,
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
        _base_and("no_lrn", "no normalisation, the spatial one among them", ablations.no_lrn),
        effect=0.7,
    ),
    Claim(
        "one-gpu",
        "3.2",
        "Two towers beat one network of half as many kernels on one GPU.",
        "1.7 / 1.2 points",
        "145-half: 39.17 / 18.23 against 37.47 / 17.00 of 145-2010: 1.70 / 1.23 points",
        Difference(),
        _base_and(
            "one_gpu",
            "one tower: half the kernels of each convolution but the last, and all of the rest",
            ablations.one_gpu,
        ),
        effect=0.85,
    ),
    Claim(
        "dropout",
        "4.2",
        "Without dropout the network overfits substantially; with it, it takes about twice the iterations.",
        '"substantial overfitting"; iterations roughly doubled',
        "no configuration without it",
        Dropout(),
        _base_and("no_dropout", "no dropout", ablations.no_dropout),
        effect=5.0,
    ),
    Claim(
        "crops-flips",
        "4.1",
        "Without random crops and mirror images, the colour shifts kept, the network overfits.",
        '"substantial overfitting"',
        NOTHING,
        Overfitting(),
        _base_and(
            "no_crops_or_flips",
            "the central crop alone, no mirror images; colours as they are",
            ablations.no_crops,
            ablations.no_flips,
        ),
        effect=5.0,
    ),
    Claim(
        "colour",
        "4.1",
        "Shifting the colours along their principal components lowers the error.",
        "over 1 point top-1",
        NOTHING,
        Difference(),
        _base_and(
            "no_colour", "no colour shift; where the base divides by 1 + noise, not that either", ablations.no_colour
        ),
        effect=0.5,
    ),
    Claim(
        "augmentation",
        "4.1",
        "Without crops, mirror images and colour shifts, all that 4.1 describes, the network overfits.",
        'of crops and mirror images "substantial overfitting", of the colours over 1 point top-1; no figure of all '
        "together",
        NOTHING,
        Overfitting(),
        _base_and("no_augmentation", "centre crops alone, no flips, no colour", ablations.no_augmentation),
        effect=5.0,
    ),
    Claim(
        "pooling",
        "3.4",
        "Overlapping pooling (3x3, stride 2) beats pooling without overlap (2x2, stride 2), and "
        "overfits a little less.",
        "0.4 / 0.3 points",
        "147: 41.06 / 18.51 against 40.66 / 18.21 of 145: 0.39 / 0.30 points",
        Difference(),
        _base_and(
            "non_overlapping",
            "2x2 pools, and pads with which the pooled maps stay as large, as in 147",
            ablations.non_overlapping,
        ),
        effect=0.2,
    ),
    Claim(
        "depth",
        "1, 7",
        "Each convolutional layer matters (the first, which shrinks the picture, can't be taken out alone).",
        '"inferior performance" without any one; about 2 points top-1 for each of the middle ones',
        NOTHING,
        Difference(),
        (
            BASE,
            *(
                Arm(f"no_{name}", f"without {name}", (partial(ablations.without_layer, name=name),))
                for name in ("conv2", "conv3", "conv4", "conv5")
            ),
        ),
        effect=1.0,
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
        "weight-decay",
        "5",
        "Weight decay lowers the training error too.",
        "no figure",
        NOTHING,
        Training(),
        _base_and("no_weight_decay", "no weight decay", ablations.no_weight_decay),
        effect=0.5,
    ),
    Claim(
        "init",
        "5",
        "Weights from N(0, 0.01) in every layer train (the source has 0.03 in conv3 to conv5).",
        "0.01 everywhere",
        "0.03 in conv3 to conv5; no comparison recorded",
        Moved(),
        (
            Arm(
                "source_init",
                "0.03 in conv3 to conv5, 0.01 elsewhere, times the root of the paper's fan-in over the base's",
                (ablations.source_init,),
            ),
            Arm("literal_init", "0.01 in every layer, times the same root", (ablations.literal_init,)),
        ),
    ),
    Claim(
        "biases",
        "5",
        "Biases that begin at 1 in conv2, conv4, conv5 and the hidden layers accelerate the early stages of learning.",
        "no figure",
        "1 in the same layers; no comparison recorded",
        Moved(),
        _base_and("zero_biases", "all biases begin at 0", ablations.zero_biases),
        effect=math.log(1.1),
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
        "sixth-conv",
        "6 (table 2)",
        "A sixth convolutional layer over the last pooling layer (here without any pre-training).",
        "only with pre-training: 39.0 / 16.6 against 40.7 / 18.2",
        "only with pre-training",
        Difference(),
        _base_and("sixth_conv", "conv6 after the last pool", ablations.sixth_conv),
        direction=0,
    ),
    Claim(
        "pretraining",
        "6",
        "Pre-training on a larger label set, then fine-tuning, with a sixth convolutional layer, lowers the error.",
        "39.0 / 16.6 against 40.7 / 18.2; the 1.7 / 1.6 points are of conv6 and the pre-training together",
        "146-2012-2011: 38.99 / 16.62; 146-2012-2009: 39.10 / 16.88; 145, which has no conv6: 40.66 / 18.21",
        Difference(),
        (
            Arm("scratch", "sixth convolutional layer, not pre-trained", (ablations.sixth_conv,)),
            *FINE_TUNING,
            Arm(
                "larger_set_bottleneck",
                "pre-training with the linear bottleneck of 146-2011",
                (ablations.sixth_conv, ablations.bottleneck),
                larger=True,
            ),
            Arm(
                "fine_tuned_bottleneck",
                "the same from a network pre-trained with the bottleneck, which is dropped",
                (ablations.sixth_conv, fine_tuned),
                init="larger_set_bottleneck",
            ),
        ),
        needs="--larger DIR, a set of more classes; without it the network is pre-trained on all classes of --data, "
        "and fine-tuned on every second one of them; scratch has conv6 too: the differences are of pre-training and "
        "the rates of fine-tuning, and conv6's part is that of sixth-conv",
        more=" --larger DIR2",
        direction=-1,
        effect=0.85,
    ),
    Claim(
        "ensemble5",
        "6 (table 2)",
        "Five networks averaged beat one.",
        "38.1 / 16.4 against 40.7 / 18.2, 2012 validation; 16.4 top-5 on its test set",
        "no average recorded; `avg-valid.py` chose weights on the validation set",
        Ensemble(),
        (BASE,),
        seeds=1,
        needs="five networks for an ensemble",
        direction=-1,
        effect=1.3,
    ),
    Claim(
        "ensemble7",
        "6 (table 2)",
        "Seven networks averaged, two of them pre-trained on a larger label set, beat five.",
        "36.7 / 15.4 against 38.1 / 16.4, 2012 validation; 15.3 top-5 on its test set",
        "no average recorded; one net is known to be pre-trained on Fall 2011 (38.99 / 16.62)",
        Ensemble(),
        (BASE, *FINE_TUNING),
        seeds=1,
        needs="what pretraining needs, and five more networks",
        more=" --larger DIR2",
        direction=-1,
        effect=0.7,
    ),
    Claim(
        "curve",
        "3, 4",
        "Augmentation, then structure, then regularisation: each adds to the ones before.",
        "no such figure",
        NOTHING,
        Cumulative(),
        (
            Arm(
                "plain",
                "no augmentation, norms, overlapping pools, dropout or weight decay",
                (
                    ablations.no_augmentation,
                    ablations.no_lrn,
                    ablations.non_overlapping,
                    ablations.no_dropout,
                    ablations.no_weight_decay,
                ),
            ),
            Arm(
                "augmented",
                "+ crops, flips and colour",
                (ablations.no_lrn, ablations.non_overlapping, ablations.no_dropout, ablations.no_weight_decay),
            ),
            Arm(
                "structured", "+ normalisation and overlapping pools", (ablations.no_dropout, ablations.no_weight_decay)
            ),
            changed(BASE, what="+ dropout and weight decay: the network as it is"),
        ),
        direction=-1,
        effect=0.5,
        every=True,
    ),
    Claim(
        "crops",
        "4.1",
        "The crops' part of it: error and overfitting without random crops, mirror images kept.",
        "no figure of its own",
        NOTHING,
        Overfitting(),
        _base_and("no_crops", "the central crop alone in training", ablations.no_crops),
        effect=5.0,
    ),
    Claim(
        "flips",
        "4.1",
        "The mirror images' part of it: error and overfitting without them, random crops kept.",
        "no figure of its own",
        NOTHING,
        Overfitting(),
        _base_and("no_flips", "no mirror images in training", ablations.no_flips),
        effect=5.0,
    ),
    Claim(
        "schedule",
        "5",
        "The rate is divided by ten when the validation error stalls (the notes have dates).",
        "three times; no comparison",
        "by hand after 23, 51 and 78 of 93 epochs, and two more dates of conv1; no comparison recorded",
        Schedule(),
        (
            Arm(
                "dated", "all rates divided at the three dates of 2012, scaled to the epochs", (ablations.dated_drops,)
            ),
            Arm(
                "plateau",
                "all rates divided on a plateau, the patience scaled to the epochs",
                (ablations.plateau_schedule,),
            ),
        ),
        direction=0,
    ),
    Claim(
        "masks",
        "4.2",
        "Outputs times one half approximate the geometric mean of the networks that dropout samples.",
        '"a reasonable approximation"; no figure',
        NOTHING,
        Masks(),
        (BASE,),
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
        NOTHING,
        Difference(),
        (
            BASE,
            Arm("half_width", "half the maps and units in every layer but the last", (ablations.half_as_wide,)),
            Arm("double_width", "twice as many", (ablations.twice_as_wide,)),
        ),
        effect=0.5,
    ),
    Claim(
        "longer",
        "1, 7",
        "Longer training is better.",
        '"and trained it longer"; no figure',
        "no comparison of lengths alone; 145 trained on for 44 epochs from a rate of 0.001: 40.25 / 17.99 against "
        "40.66 / 18.21",
        Difference(),
        _base_and(
            "twice_as_long", "twice the epochs, the rates falling at the same shares of them", ablations.twice_as_long
        ),
        direction=-1,
        effect=0.5,
    ),
    Claim(
        "test-images",
        "6",
        "Errors on validation and test images differ by at most 0.1 points.",
        '"do not differ by more than 0.1%"',
        "137: 37.80 / 17.10 on the 2010 validation set, 37.62 / 17.12 on its test set",
        Errors(),
        (BASE,),
        data="labelled test",
        needs="a set with validation and labelled test images",
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
        effect=1.0,
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
        effect=1.0,
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
    Claim(
        "headline-2010",
        "6 (table 1)",
        "ILSVRC-2010 test: this network, and before it the best published.",
        "37.5 / 17.0 ten views, 39.0 / 18.3 centre view; sparse coding 47.1 / 28.2; SIFT + Fisher vectors 45.7 / 25.7",
        "145-2010: 37.47 / 17.00 ten views, 39.02 / 18.30 centre view",
        Errors(),
        (BASE,),
        data="ilsvrc-2010",
        seeds=1,
        needs="ILSVRC-2010, prepared",
        more=" --base source2012",
    ),
    Claim(
        "headline-2012",
        "6 (table 2)",
        "ILSVRC-2012 validation: one network; and the second best entry of that year.",
        "40.7 / 18.2; second best entry 26.2 top-5 (test set)",
        "145: 40.66 / 18.21",
        Errors(),
        (BASE,),
        data="ilsvrc-2012",
        seeds=1,
        needs="ILSVRC-2012, prepared; the labels of its test images are not public, so their figure is the test "
        "server's for the file of: python -m alexnet_mp.evaluate RUN --data DIR --split test --submission FILE",
        more=" --base source2012",
    ),
    Claim(
        "headline-2009",
        "6",
        "ImageNet Fall 2009, 10,184 classes, half of it for the test; six convolutional layers.",
        "67.4 / 40.9; the best before it 78.1 / 60.9",
        "141-2009-half, which is 137 + conv6 and not 145 + conv6: not recorded; other splits: 69.38 / 43.65 "
        "(2009-101), "
        "69.42 / 43.73 (131-2009)",
        Errors(),
        (Arm("sixth_conv", "conv6 after the last pool", (ablations.sixth_conv,)),),
        data="fall-2009",
        seeds=1,
        needs="Fall 2009, prepared with --val-fraction 0.5",
        more=" --base source2012",
    ),
)
KINDS = {claim.kind.word: claim.kind for claim in CLAIMS}  # by the word that a record has


def command(claim: Claim, data: str = "DIR") -> str:
    return f"python -m alexnet_mp.claims run {claim.id} --data {data}{claim.more}"
