"""The training pictures nearest to a query (paper 6.1)."""

from typing import Literal

import numpy as np

from .features import Features
from .index import Index, exact_index, nearest

NEIGHBOURS = 6  # figure 4


class Search:
    """Called with the `Features` of queries and k: (distances (Q, k), numbers of training pictures (Q, k)), nearest
    first.

    by: "fc7" (the last hidden layer), "codes" (of `bits` bits), or "pixels".
    """

    def __init__(self, index: Index, by: Literal["fc7", "codes", "pixels"], bits: int | None = None):
        stored, self.by = index.features("train"), by
        self.labels, self.encoder = stored.labels, None
        if by == "codes":
            self.encoder, codes = index.codes(bits)
            self.exact = exact_index(by, codes["train"])
        else:
            self.exact = exact_index(by, stored.hidden if by == "fc7" else stored.pixels)

    def __call__(self, queries: Features, k: int) -> tuple[np.ndarray, np.ndarray]:
        match self.by:
            case "fc7":
                asked = queries.hidden
            case "codes":
                asked = self.encoder.codes(queries.hidden)
            case "pixels":
                asked = queries.pixels.astype(np.float16).astype(np.float32)  # as they are stored
        return nearest(self.exact, asked, k)
