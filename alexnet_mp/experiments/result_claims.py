"""The paper's claims of results: ten views (4.1), section 6 with tables 1 and 2; and one of a paper after it."""

from ..recipes import ablations
from ..recipes.one_weird_trick import one_gpu_rates
from ..recipes.recipe import Recipe
from .claim import BASE, Arm, Claim, base_and
from .error_kinds import Difference, Errors, Views
from .network_kinds import Ensemble


def fine_tuned(recipe: Recipe) -> Recipe:
    """Rates and dates of 146-2012-2011, at the same share of the recipe's epochs."""
    return ablations.fine_tuned(recipe, recipe.epochs)


FINE_TUNING = (
    Arm("sixth_conv", "pre-training", (ablations.sixth_conv,), larger=True),
    Arm(
        "fine_tuned",
        "pre-trained, then fine-tuned with a new last layer",
        (ablations.sixth_conv, fine_tuned),
        init="sixth_conv",
    ),
)

RESULTS = (
    Claim(
        "views",
        "4.1",
        "Averaging over ten views beats the centre view.",
        "1.5 / 1.3 points",
        "145-2010: 39.02 / 18.30 centre, 37.47 / 17.00 ten views: 1.55 / 1.30 points",
        Views(),
        (BASE,),
        points=1.5,
    ),
    Claim(
        "sixth-conv",
        "6, table 2",
        "A sixth convolutional layer over the last pooling layer (here without any pre-training).",
        "only with pre-training: 39.0 / 16.6 against 40.7 / 18.2",
        "only with pre-training",
        Difference(),
        base_and("sixth_conv", "conv6 after the last pool", ablations.sixth_conv),
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
        "and fine-tuned on every second one of them, whose pictures it has seen before; its steps are those of both "
        "trainings; scratch has conv6 too: the differences are of pre-training and the rates of fine-tuning, and "
        "conv6's part is that of sixth-conv",
        more=" --larger DIR2",
        direction=-1,
        points=1.7,
    ),
    Claim(
        "ensemble5",
        "6, table 2",
        "Five networks averaged beat one.",
        "38.1 / 16.4 against 40.7 / 18.2, 2012 validation; 16.4 top-5 on its test set",
        "no average recorded; `avg-valid.py` chose weights on the validation set",
        Ensemble(),
        (BASE,),
        seeds=1,
        needs="five networks for an ensemble",
        direction=-1,
        points=2.6,
    ),
    Claim(
        "ensemble7",
        "6, table 2",
        "Seven networks averaged, two of them pre-trained on a larger label set, beat five.",
        "36.7 / 15.4 against 38.1 / 16.4, 2012 validation; 15.3 top-5 on its test set",
        "no average recorded; one net is known to be pre-trained on Fall 2011 (38.99 / 16.62)",
        Ensemble(),
        (BASE, *FINE_TUNING),
        seeds=1,
        needs="what pretraining needs, and five more networks",
        more=" --larger DIR2",
        direction=-1,
        points=1.4,
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
        "headline-2010",
        "6, table 1",
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
        "6, table 2",
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
    Claim(
        "owt",
        "Krizhevsky 2014",
        "Convolutions that see minibatches of 512 at four times the rate, with fully connected layers that are updated "
        "every 128 images, come to the error of minibatches of 128.",
        "not of this paper; the figures of 2014 (arXiv 1404.5997) were not read here",
        "cuda-convnet2 has the rates of both; no error recorded in the files that were read",
        Difference(),
        (
            Arm("one_gpu_rates", "minibatches of 128, all layers at 0.01", (one_gpu_rates,), preset="owt2014"),
            Arm("owt2014", "minibatches of 512 at 0.04, fully connected layers at 0.01", preset="owt2014"),
        ),
        data="ilsvrc-2012",
        seeds=1,
        needs="ILSVRC-2012, prepared; one process takes the steps of many",
        direction=0,
    ),
)
