"""How good each kind of search is, how large, and how fast: precision among the first k, and mean average precision.

Hamming distances of short codes tie all the time. Of pictures at one distance any order is as good as any other, so a
measure is its mean over all of them, in closed form (McSherry and Najork, "Computing information retrieval performance
measures efficiently in the presence of tied scores", ECIR 2008), and does not depend on the order in which the pictures
lie on the disk."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..data.dataset import evenly
from ..system.devices import device_name
from ..system.provenance import package_version, source_commit
from ..system.terminal import progress
from . import short_codes
from .index import Index
from .search import all_distances, exact_index, nearest

AT = (1, 6, 10, 50)


@dataclass(frozen=True)
class Measures:
    """Means over the queries; a picture is relevant where its class is the query's."""

    precision: dict  # {k: share of relevant pictures among the k nearest}
    mean_average_precision: float
    queries: int


def measures(
    distances: np.ndarray, relevant: np.ndarray, at: Sequence[int] = AT
) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """Precision and average precision of each of Q queries: ({k: (Q,) float64}, (Q,) float64).

    distances: (Q, N); relevant: (Q, N) bool. Of fewer than k pictures all count as the k nearest. Without a relevant
    picture the average precision is 0."""
    precision, average = {k: [] for k in at}, []
    for of_query, relevance in zip(distances, relevant, strict=True):
        ranking = _ranking(of_query, relevance)
        hits = np.cumsum(ranking.chance)
        for k in at:
            depth = min(k, len(hits))
            precision[k].append(hits[depth - 1] / depth)
        place = np.arange(1, len(hits) + 1)
        average.append((ranking.chance * ranking.found / place).sum() / max(1, relevance.sum()))
    return {k: np.array(values) for k, values in precision.items()}, np.array(average)


@dataclass(frozen=True)
class _Ranking:
    """Of each place of a ranking, over all orders of pictures that tie; (N,) float64 each."""

    chance: np.ndarray  # that the picture there is relevant
    found: np.ndarray  # relevant pictures up to and with this place, given that this one is


def _ranking(distances, relevant):
    order = np.argsort(distances, kind="stable")
    sorted_distances, relevance = distances[order], relevant[order]
    starts = np.flatnonzero(np.r_[True, sorted_distances[1:] != sorted_distances[:-1]])
    sizes = np.diff(np.r_[starts, len(sorted_distances)])
    hits = np.add.reduceat(relevance.astype(np.float64), starts)
    before = np.cumsum(hits) - hits
    group = np.repeat(np.arange(len(starts)), sizes)
    tie_rank = np.arange(len(sorted_distances)) - starts[group]  # pictures of its own distance that come before it
    tied_hits = tie_rank * (hits - 1)[group] / np.maximum(sizes - 1, 1)[group]
    return _Ranking((hits / sizes)[group], before[group] + tied_hits + 1)


def gathered(parts: Iterable[tuple[dict[int, np.ndarray], np.ndarray]], at: Sequence[int] = AT) -> Measures:
    """The `Measures` over all queries, from what `measures` gave for some of them at a time."""
    precision, average = zip(*parts)
    averages = np.concatenate(average)
    return Measures(
        {k: float(np.concatenate([part[k] for part in precision]).mean()) for k in at},
        float(averages.mean()),
        len(averages),
    )


QUERIES_AT_ONCE = 64
SYNTHETIC = 1_000_000  # codes
TIMED = 64  # queries
NEIGHBOURS = 6  # whose distance in pixels is told, as many as figure 4 shows


def measure(
    index: Index, lengths: Sequence[int], most_queries: int, speed: bool = False, pixel_codes: bool = False
) -> dict:
    """A record, plain JSON types: the measures of pixels, the last hidden layer, and codes of these lengths, learned
    and random.

    Queries are validation pictures, at most so many, spread evenly over all; what is ranked are all training pictures.
    "pixel_distance": how far apart in pixels a picture and its neighbours by the last hidden layer are. speed: also
    queries a second. pixel_codes: also codes whose auto-encoder is trained on the pixels instead, which the paper
    expects to be much worse (6.1).
    """
    train, val = index.features("train"), index.features("val")
    rows = evenly(len(val.labels), most_queries)
    entries = []
    for by, bits, kind, size, vectors, queries in _searches(index, lengths, train, val, pixel_codes):
        entry = {"by": by, "bits": bits, "codes": kind, "bytes_per_picture": size}
        means = _of_search(
            by, vectors, queries[rows], train.labels, val.labels[rows], f"{kind or ''} {by} {bits or ''}".strip()
        )
        entry |= {
            "precision": {str(k): value for k, value in means.precision.items()},
            "mean_average_precision": means.mean_average_precision,
        }
        if speed:
            entry["queries_per_second"] = _speed(by, vectors, queries[rows])
        entries.append(entry)
    source = index.described.source
    record = {
        "run": source.run,
        "checkpoint": source.checkpoint,
        "recipe": source.recipe,
        "layer": source.layer,
        "data": source.data,
        "fingerprint": source.fingerprint,
        "train": len(train.labels),
        "queries": len(rows),
        "chance": _chance(train.labels, val.labels[rows]),
        "commit": source_commit(),
        "packages": {name: package_version(name) for name in ("torch", "numpy", "faiss-cpu")},
        "searches": entries,
        "pixel_distance": _pixel_distance(train, val, rows),
    }
    if speed:
        record |= {
            "device": device_name(torch.device("cpu")),
            "synthetic_codes": SYNTHETIC,
            "synthetic": [{"bits": bits, "queries_per_second": _synthetic(bits)} for bits in lengths],
        }
    return record


def _pixel_distance(train, val, rows):
    """Means over the queries of Euclidean distances in grey levels, and of a share: of how near in pixels the
    neighbours are.

    "by_layer": to the `NEIGHBOURS` nearest by the last hidden layer; "by_pixels": to the nearest by pixels; "any": to
    all training pictures; "nearer": the share of them that are nearer in pixels than a neighbour by the layer, 0.5
    where it might be any.
    """
    _, neighbours = nearest(exact_index("fc7", train.hidden), val.hidden[rows], NEIGHBOURS)
    sums = np.zeros(4)
    for start in range(0, len(rows), QUERIES_AT_ONCE):
        part = slice(start, start + QUERIES_AT_ONCE)
        distances = np.sqrt(np.maximum(all_distances("pixels", train.pixels, val.pixels[rows[part]]), 0))
        sorted_distances, to_neighbours = np.sort(distances, axis=1), np.take_along_axis(distances, neighbours[part], 1)
        places = [
            (np.searchsorted(row, values, "left") + np.searchsorted(row, values, "right")) / 2
            for row, values in zip(sorted_distances, to_neighbours)
        ]
        sums += [
            to_neighbours.mean(1).sum(),
            sorted_distances[:, :NEIGHBOURS].mean(1).sum(),
            sorted_distances.mean(1).sum(),
            (np.array(places).mean(1) / sorted_distances.shape[1]).sum(),
        ]
    by_layer, by_pixels, to_any, nearer = (sums / len(rows)).tolist()
    return {
        "neighbours": neighbours.shape[1],
        "by_layer": by_layer,
        "by_pixels": by_pixels,
        "any": to_any,
        "nearer": nearer,
    }


def _searches(index, lengths, train, val, pixel_codes):
    """(by, bits, "learned", "random" or "pixel", bytes a picture, what is searched, queries) of all searches."""
    # Pixels lie in the index as float16; a grey level is a byte.
    yield "pixels", None, None, train.pixels.shape[1], train.pixels, val.pixels
    yield "fc7", None, None, 4 * train.hidden.shape[1], train.hidden, val.hidden
    for bits in lengths:
        _, codes = index.codes(bits)
        yield "codes", bits, "learned", bits // 8, codes["train"], codes["val"]
        yield (
            "codes",
            bits,
            "random",
            bits // 8,
            *(short_codes.random_codes(features.hidden, bits, train.hidden) for features in (train, val)),
        )
        if pixel_codes:
            count = len(train.labels)
            with progress(f"codes of pixels, {bits} bits", short_codes.passes(count) * count, "pictures") as advance:
                encoder = short_codes.train(train.pixels, bits, index.described.codes[str(bits)].seed, advance).encoder
            yield "codes", bits, "pixel", bits // 8, encoder.codes(train.pixels), encoder.codes(val.pixels)


def _of_search(by, vectors, queries, labels, query_labels, what):
    parts = []
    with progress(f"measuring {what}", len(queries), "queries") as advance:
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            part = slice(start, start + QUERIES_AT_ONCE)
            parts.append(measures(all_distances(by, vectors, queries[part]), labels == query_labels[part, None]))
            advance(len(query_labels[part]))
    return gathered(parts)


def _chance(labels, query_labels):
    """The precision of a ranking at random."""
    return float(np.mean([(labels == label).mean() for label in query_labels]))


def _speed(by, vectors, queries, k=6):
    """Queries a second, k nearest, in batches of `AT_ONCE`; not the time to read the vectors."""
    index, queries = exact_index(by, vectors), queries[:TIMED]
    nearest(index, queries[:1], k)
    start = time.perf_counter()
    nearest(index, queries, k)
    return len(queries) / (time.perf_counter() - start)


def _synthetic(bits):
    generator = np.random.Generator(np.random.Philox(key=bits))
    codes = generator.integers(0, 256, (SYNTHETIC, bits // 8), np.uint8)
    return _speed("codes", codes, generator.integers(0, 256, (TIMED, bits // 8), np.uint8))


def table(record: dict) -> Iterator[str]:
    """The record as lines of text."""
    at = list(record["searches"][0]["precision"])
    speed = "queries_per_second" in record["searches"][0]
    yield (
        f"{record['queries']:,} validation pictures ask for {record['train']:,} training pictures of their class "
        f"({record['recipe']}, {record['checkpoint']}, {record['layer']}); at random {100 * record['chance']:.1f} %"
    )
    heads = ("bytes", "mAP", *(f"at {k}" for k in at))
    yield " ".join([f"{'search':22}", *(f"{head:>7}" for head in heads), *(["queries/s"] if speed else [])])
    for entry in record["searches"]:
        name = (
            f"{entry['codes']} codes, {entry['bits']} bits"
            if entry["bits"]
            else entry["by"].replace("fc7", record["layer"])
        )
        shares = (entry["mean_average_precision"], *entry["precision"].values())
        yield " ".join(
            [
                f"{name:22}",
                f"{entry['bytes_per_picture']:7,}",
                *(f"{100 * share:5.1f} %" for share in shares),
                *([f"{entry['queries_per_second']:9,.0f}"] if speed else []),
            ]
        )
    distance = record["pixel_distance"]
    yield (
        f"in pixels: {distance['by_layer']:,.0f} grey levels to the {distance['neighbours']} nearest by "
        f"{record['layer']}, {distance['by_pixels']:,.0f} to the nearest by pixels, {distance['any']:,.0f} to any; "
        f"{100 * distance['nearer']:.1f} % of all training pictures are nearer in pixels than a neighbour by "
        f"{record['layer']}"
    )
    for entry in record.get("synthetic", ()):
        yield (
            f"{record['synthetic_codes']:,} random codes of {entry['bits']} bits: "
            f"{entry['queries_per_second']:,.0f} queries/s, {record['device']}"
        )
