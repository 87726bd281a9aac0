"""The operations of the network: `reference.py` defines them, `ops.py` chooses who computes them."""
from .ops import (augment, avg_pool, dropout, linear, lrn, lrn_max_pool, max_pool, paper_sgd_, relu_dropout, spatial_norm,
                  spatial_norm_max_pool)

__all__ = ["augment", "avg_pool", "dropout", "linear", "lrn", "lrn_max_pool", "max_pool", "paper_sgd_", "relu_dropout", "spatial_norm",
           "spatial_norm_max_pool"]
