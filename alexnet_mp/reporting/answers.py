"""The report's parts on pictures: what the network says of them, and which are nearest to them (figure 4)."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..analysis.figure_4 import (
    Guesses,
    draw_example,
    examples,
    nearest_pictures,
    one_of_each_class,
    percent,
    told_apart,
)
from ..analysis.figures import write_figure
from ..data.dataset import DataSet, Split
from ..data.synsets import hint
from ..retrieval.contact_sheet import LINE_LETTERS, contact_sheet, png
from ..retrieval.index import Index
from ..retrieval.search import NEIGHBOURS, Search
from ..system import durable_files
from . import page

ANSWERS = "figure4left", "What it answers to pictures (figure 4, left)"
NEAREST = "figure4right", "The training pictures nearest to a picture (figure 4, right)"


def figure_4_left(
    out: Path, guesses: Guesses, numbers: np.ndarray, split: Split, name: str, names: Sequence[str]
) -> page.Part:
    """The `Part` with examples. guesses: of the pictures `numbers` of `split`, whose name that is; names: of the
    classes."""
    origin = "from which the network learned" if name == "train" else "that the network has not learned from"
    sample = (
        f"{len(guesses):,} pictures"
        if len(guesses) == len(split)
        else f"{len(guesses):,} pictures, spread over the {len(split):,},"
    )
    views = "all views averaged" if guesses.places.shape[1] > 1 else "from the centre view"
    pieces = [
        page.text(
            f"Some of {sample} {origin}, with its {guesses.top.shape[1]} most probable classes, {views}. Above a "
            "picture stands its true class, whose bar is hatched."
        ),
        page.why(
            "These are chosen, sort by sort. The program of 2012 drew eight pictures at random and asked "
            "for the centre view alone; how the paper's eight were chosen is not said."
        ),
        *([page.why(note)] if (note := hint(names)) else []),
    ]
    for heading, why, indices in examples(guesses):
        entries = []
        for index in indices:
            label = guesses.labels[index]
            bars = [
                (names[guess], probability, guess == label)
                for guess, probability in zip(guesses.top[index], guesses.probabilities[index])
            ]
            title = "not known" if label < 0 else names[label]
            path = out / f"figure4_{numbers[index]:06}.png"
            write_figure(draw_example(split.read(int(numbers[index])), title, bars), path, density=1)
            answers = ", ".join(f"{guess} {percent(probability)}" for guess, probability, _ in bars)
            entries.append((path, f"A picture, true class {title}; the network says {answers}"))
        pieces += [page.heading(heading), page.why(why), *([page.images(entries)] if entries else [])]
    return page.Part(*ANSWERS, pieces)


def figure_4_right(out: Path, index: Index, dataset: DataSet, words: Sequence[str]) -> page.Part:
    """The `Part` with queries and their nearest training pictures, by the last hidden layer and by pixels.

    dataset: the pictures that the index is of; words: its classes in words.
    """
    source, queries = index.described.source, index.features("val")
    searches = [(what, Search(index, by)) for what, by in ((source.layer, "fc7"), ("pixels", "pixels"))]
    names = told_apart(source.classes, words, LINE_LETTERS)
    pieces = [
        page.text(
            f"A validation picture, and the {NEIGHBOURS} training pictures whose {source.layer} vectors "
            f"({source.units:,} numbers) are nearest to its own by Euclidean distance; under them the nearest "
            "by pixels. In the paper the first kind mean the same and look different, and the second are alike in "
            "colour and shape only."
        )
    ]
    successes, totals, numbers = Counter(), Counter(), one_of_each_class(queries.labels)
    for number in numbers:
        rows, matches, sizes = nearest_pictures(queries, number, searches, dataset, names)
        totals.update(sizes)
        successes.update(matches)
        path = out / f"neighbours_{number:06}.png"
        durable_files.replace(path, png(contact_sheet(rows)))
        counts = ", ".join(f"{count} by {what}" for what, count in matches.items())
        name = names[queries.labels[number]]
        pieces.append(page.heading(f"A picture of {name}; of its class are {counts}"))
        pieces += [page.tiles(path, row) for row in rows]
    counts = ", ".join(f"{successes[what]} of {count} by {what}" for what, count in totals.items())
    pieces.append(page.why(f"Of the query's class, in these rows: {counts}. The next part counts over many queries."))
    return page.Part(*NEAREST, pieces)
