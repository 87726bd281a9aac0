"""The list of the paper's claims, in the order of `claims run all`: what tells most for its time is first."""

from .architecture_claims import ARCHITECTURE
from .result_claims import RESULTS
from .training_claims import TRAINING

ORDER = (
    "specialisation",
    "views",
    "lrn",
    "one-gpu",
    "dropout",
    "crops-flips",
    "colour",
    "augmentation",
    "pooling",
    "depth",
    "links",
    "weight-decay",
    "init",
    "biases",
    "order",
    "sixth-conv",
    "pretraining",
    "ensemble5",
    "ensemble7",
    "curve",
    "crops",
    "flips",
    "schedule",
    "masks",
    "saturating",
    "larger",
    "longer",
    "test-images",
    "cifar-lrn",
    "cifar-relu",
    "cifar-local",
    "cifar-sigmoid",
    "headline-2010",
    "headline-2012",
    "headline-2009",
    "owt",
)
CLAIMS = tuple(sorted(ARCHITECTURE + TRAINING + RESULTS, key=lambda claim: ORDER.index(claim.id)))
KINDS = {claim.kind.word: claim.kind for claim in CLAIMS}  # by the word that a record has
