"""The operations of the network: `reference.py` defines them, `dispatch.py` chooses who computes them."""

from .augmentation import augment
from .linear_op import linear
from .lrn_pool import lrn, lrn_max_pool, max_pool, spatial_norm_max_pool
from .reference import avg_pool, dropout, spatial_norm  # plain PyTorch on every device
from .relu_dropout_op import relu_dropout
from .sgd import paper_sgd_

__all__ = [
    "augment",
    "avg_pool",
    "dropout",
    "linear",
    "lrn",
    "lrn_max_pool",
    "max_pool",
    "paper_sgd_",
    "relu_dropout",
    "spatial_norm",
    "spatial_norm_max_pool",
]
