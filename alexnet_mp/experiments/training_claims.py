"""The paper's claims of training: augmentation (4.1), dropout (4.2), update, weights and schedule (5), length."""

import math
from dataclasses import replace

from ..recipes import ablations
from .claim import BASE, NOT_RECORDED, Arm, Claim, base_and
from .error_kinds import Cumulative, Difference, Overfitting, Schedule, Training
from .network_kinds import Masks
from .time_kinds import Dropout, Moved

TRAINING = (
    Claim(
        "dropout",
        "4.2",
        "Without dropout the network overfits.",
        '"substantial overfitting"; with dropout iterations roughly double',
        "no configuration without it",
        Dropout(),
        base_and("no_dropout", "no dropout", ablations.no_dropout),
        effect=5.0,
    ),
    Claim(
        "crops-flips",
        "4.1",
        "Without random crops and mirror images, the colour shifts kept, the network overfits.",
        '"substantial overfitting"',
        NOT_RECORDED,
        Overfitting(),
        base_and(
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
        NOT_RECORDED,
        Difference(),
        base_and(
            "no_colour", "no colour shift; where the base divides by 1 + noise, not that either", ablations.no_colour
        ),
        points=1.0,
    ),
    Claim(
        "augmentation",
        "4.1",
        "Without crops, mirror images and colour shifts, all that 4.1 describes, the network overfits.",
        'of crops and mirror images "substantial overfitting", of the colours over 1 point top-1; no figure of all '
        "together",
        NOT_RECORDED,
        Overfitting(),
        base_and("no_augmentation", "centre crops alone, no flips, no colour", ablations.no_augmentation),
        effect=5.0,
    ),
    Claim(
        "weight-decay",
        "5",
        "Weight decay lowers the training error too.",
        "no figure",
        NOT_RECORDED,
        Training(),
        base_and("no_weight_decay", "no weight decay", ablations.no_weight_decay),
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
        base_and("zero_biases", "all biases begin at 0", ablations.zero_biases),
        effect=math.log(1.1),
    ),
    Claim(
        "curve",
        "3, 4",
        "Augmentation, then structure, then regularisation: each adds to the ones before.",
        "no such figure",
        NOT_RECORDED,
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
            replace(BASE, what="+ dropout and weight decay: the network as it is"),
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
        NOT_RECORDED,
        Overfitting(),
        base_and("no_crops", "the central crop alone in training", ablations.no_crops),
        effect=5.0,
    ),
    Claim(
        "flips",
        "4.1",
        "The mirror images' part of it: error and overfitting without them, random crops kept.",
        "no figure of its own",
        NOT_RECORDED,
        Overfitting(),
        base_and("no_flips", "no mirror images in training", ablations.no_flips),
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
        NOT_RECORDED,
        Masks(),
        (BASE,),
        direction=0,
    ),
    Claim(
        "longer",
        "1, 7",
        "Longer training is better.",
        '"and trained it longer"; no figure',
        "no comparison of lengths alone; 145 trained on for 44 epochs from a rate of 0.001: 40.25 / 17.99 against "
        "40.66 / 18.21",
        Difference(),
        (
            replace(BASE, derive=(ablations.without_plateaus,)),
            Arm(
                "twice_as_long",
                "twice the epochs, the rates falling at the same shares of them",
                (ablations.twice_as_long,),
            ),
        ),
        direction=-1,
        effect=0.5,
    ),
)
