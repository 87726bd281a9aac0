"""The training pictures nearest to a query (paper 6.1), compared with each of them: no approximation."""

from typing import TYPE_CHECKING, Literal

import numpy as np

from .features import Features
from .index import Index

if TYPE_CHECKING:
    import faiss

NEIGHBOURS = 6  # figure 4
AT_ONCE = 16  # queries: up to 19, faiss subtracts before it squares, and a picture is at distance 0 of itself


class Search:
    """Called with the `Features` of queries and k: (distances (Q, k), numbers of training pictures (Q, k)), nearest
    first.

    by: "fc7" (the last hidden layer), "codes" (of `bits` bits), or "pixels".
    """

    def __init__(self, index: Index, by: Literal["fc7", "codes", "pixels"], bits: int | None = None):
        features, self.by = index.features("train"), by
        self.labels, self.encoder = features.labels, None
        if by == "codes":
            self.encoder, codes = index.codes(bits)
            self.exact = exact_index(by, codes["train"])
        else:
            self.exact = exact_index(by, features.hidden if by == "fc7" else features.pixels)

    def __call__(self, queries: Features, k: int) -> tuple[np.ndarray, np.ndarray]:
        match self.by:
            case "fc7":
                vectors = queries.hidden
            case "codes":
                vectors = self.encoder.codes(queries.hidden)
            case "pixels":
                vectors = queries.pixels.astype(np.float16).astype(np.float32)  # as they are stored
        return nearest(self.exact, vectors, k)


def exact_index(
    by: Literal["fc7", "codes", "pixels"], vectors: np.ndarray
) -> "faiss.IndexFlatL2 | faiss.IndexBinaryFlat":
    """A faiss index of everything that is stored, compared one by one: no approximation.

    by: "codes", (N, bytes) uint8, distances in bits (Hamming); else vectors (N, units) float32, squared Euclidean
    distances."""
    import faiss  # imported late: it takes half a second

    index = faiss.IndexBinaryFlat(8 * vectors.shape[1]) if by == "codes" else faiss.IndexFlatL2(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors))
    return index


def nearest(
    index: "faiss.IndexFlatL2 | faiss.IndexBinaryFlat", queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """(distances (Q, k), which of the stored (Q, k) int64), nearest first, of equals the first of the stored.

    index: an `exact_index`; distances are whole numbers of bits, or Euclidean. k: of fewer stored than that all are
    found."""
    queries, k = np.ascontiguousarray(queries), min(k, index.ntotal)
    parts = [index.search(queries[start : start + AT_ONCE], k) for start in range(0, len(queries), AT_ONCE)]
    distances, numbers = (np.concatenate(each) for each in zip(*parts))
    order = np.lexsort((numbers, distances))
    distances, numbers = np.take_along_axis(distances, order, 1), np.take_along_axis(numbers, order, 1)
    return (np.sqrt(np.maximum(distances, 0)) if distances.dtype == np.float32 else distances), numbers


def all_distances(by: Literal["fc7", "codes", "pixels"], vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """(Q, N) distances as an `exact_index` of `by` has them: for rankings of everything."""
    if by == "codes":
        signs = [2 * np.unpackbits(codes, axis=1).astype(np.float32) - 1 for codes in (queries, vectors)]
        return (signs[0].shape[1] - signs[0] @ signs[1].T) / 2  # whole numbers below 2^24: exact
    return (queries**2).sum(1)[:, None] - 2 * queries @ vectors.T + (vectors**2).sum(1)
