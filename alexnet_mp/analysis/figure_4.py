"""Figure 4 of the paper: left, pictures with the five most probable classes as bars, and which ones to show; right,
pictures, and the training pictures nearest to them."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..data.dataset import DataSet, Split, evenly
from ..data.image_files import pipeline_of
from ..data.pipeline import Pipeline
from ..data.pipeline_torch import TorchPipeline
from ..data.pixel_statistics import Statistics
from ..evaluation.protocol import both_protocols, centre_view
from ..network.network import TwoTowerAlexNet
from ..retrieval.contact_sheet import LINE_LETTERS
from ..retrieval.features import Features
from ..retrieval.search import NEIGHBOURS, Search

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_ANSWERED = 500  # pictures, of all views: enough to choose from
EACH = 4  # pictures of each sort
TOP = 5
# of the most probable class's probability; a picture is ambiguous where the second has as much, and the third less
CLOSE = 0.5
# by so much more probable is the true class in the best crop than in the centre, where a picture counts as off-centre
FAR = 0.1
LETTERS = 26  # of a class's name
RIGHT, WRONG = "#d55e00", "#56b4e9"  # the true class's bar, the others' (Okabe and Ito); 2012 tinted the true one red
QUERIES = 5  # shown on the right
EXAMPLE = 2.6, 3.9  # inches: a picture and its bars

Cell = tuple[np.ndarray | None, list[str]]  # a picture (size, size, 3) uint8, and lines of words


# --- left


@dataclass(frozen=True)
class Guesses:
    """What a network says of N pictures, all views averaged."""

    labels: np.ndarray  # (N,) int64, -1 where nobody knows
    top: np.ndarray  # (N, 5) int64, most probable first; fewer columns where there are fewer classes
    probabilities: np.ndarray  # (N, 5) float64, of these
    own: np.ndarray  # (N,) float64, of the label; NaN without one
    # (N, P) float64, of the label, from each crop by itself, averaged with its mirror image; NaN likewise
    places: np.ndarray
    centre: int  # the column of `places` that is the centre's

    def __len__(self):
        return len(self.labels)


def some_of(split: Split, numbers: np.ndarray, network: TwoTowerAlexNet, statistics: Statistics) -> TorchPipeline:
    """The pipeline whose split "given" is these pictures of a split, with their labels."""
    pipeline = pipeline_of(
        [split.read(number) for number in numbers], network.recipe, network.exchange.devices, statistics
    )
    pipeline.dataset.splits["given"].labels = split.labels[numbers]
    return pipeline


@torch.inference_mode()
def guesses(
    network: TwoTowerAlexNet, pipeline: Pipeline, split: str, batch_size: int, advance: Callable[[int], None]
) -> Guesses:
    """The `Guesses` of a network, which is in test mode, of all pictures of a split. advance(n) is called for every n
    of them."""
    views = list(dict.fromkeys(view for protocol in both_protocols(pipeline.recipe).values() for view in protocol))
    parts = []
    with closing(pipeline.views(split, batch_size, views)) as batches_of_views:
        for batches, labels in batches_of_views:
            # (views, n, classes)
            distributions = torch.stack([network(*towers).double().softmax(1) for towers in batches]).cpu()
            parts.append(guesses_of_batch(distributions, labels.cpu(), views))
            advance(len(labels))
    fields = [torch.cat(field).numpy() for field in zip(*parts)]
    return Guesses(*fields, _places(views).index(centre_view(pipeline.recipe)[0][:2]))


def guesses_of_batch(
    distributions: torch.Tensor, labels: torch.Tensor, views: Sequence[tuple[int, int, bool]]
) -> tuple[torch.Tensor, ...]:
    """The first five fields of `Guesses`, as tensors that hold nothing of the size of all classes.

    distributions: (views, n, classes) float64 probabilities; labels: (n,) int64; views: [(top, left, flip)].
    """
    probabilities, top = distributions.mean(0).sort(dim=1, descending=True, stable=True)
    targets = labels.clamp(min=0)
    of_label = distributions.gather(2, targets[None, :, None].expand(len(views), -1, 1))[:, :, 0]  # (views, n)
    places = torch.stack([of_label[[view[:2] == place for view in views]].mean(0) for place in _places(views)], 1)
    own = of_label.mean(0)
    own[labels < 0], places[labels < 0] = torch.nan, torch.nan
    return labels, top[:, :TOP].clone(), probabilities[:, :TOP].clone(), own, places


def _places(views):
    return list(dict.fromkeys(view[:2] for view in views))


def examples(predictions: Guesses) -> list[tuple[str, str, list[int]]]:
    """[(heading, why these, indices)]: which pictures to show of each sort, at most `EACH`, the foremost first, and
    none twice.

    Of a sort that there is not the indices are empty, and the reason says so.

    Without labels only what is sure and what is ambiguous can be told.
    """
    picks, groups = set(), []

    def take(heading, why, none, scores, among):
        order = np.argsort(-scores, kind="stable")
        indices = [int(index) for index in order if among[index] and index not in picks][:EACH]
        picks.update(indices)
        groups.append((heading, why if indices else f"{none} among them.", indices))

    right = predictions.top[:, 0] == predictions.labels
    first, second = predictions.probabilities[:, 0], predictions.probabilities[:, 1]
    third = predictions.probabilities[:, 2] if predictions.probabilities.shape[1] > 2 else np.zeros(len(predictions))
    if (predictions.labels >= 0).all():
        take("Best", "Right, and the surest of all.", "No right answer is", first, right)
        take(
            "Worst",
            "Wrong, and the true class has the lowest probability.",
            "No wrong answer is",
            -predictions.own,
            ~right,
        )
        gain = predictions.places.max(1) - predictions.places[:, predictions.centre]
        take(
            "Off-centre",
            "Right, and one crop beside the centre sees far more of the class than the centre does.",
            "No picture that one crop beside the centre tells far better than the centre is",
            gain,
            right & (gain > FAR),
        )
    else:
        take(
            "Surest",
            "The highest probability of all; nobody knows the true classes.",
            "Nothing is",
            first,
            np.ones(len(predictions), bool),
        )
    take(
        "Ambiguous",
        "Two classes are nearly as probable as each other, and no third one is.",
        "No picture with two classes of like probability, and no third, is",
        2 * second - first - third,
        (second >= CLOSE * first) & (third < CLOSE * first),
    )
    return groups


def draw_example(picture: np.ndarray, title: str, bars: Sequence[tuple[str, float, bool | np.bool_]]) -> "Figure":
    """One picture over its bars.

    picture: (size, size, 3) uint8. bars: [(name, probability, whether it is the true class)], the longest first.
    """
    # Imported late: it takes a second. The object interface draws without a display and without global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=EXAMPLE, facecolor="white")
    # Places by hand: a layout that makes room for names would shrink the picture for a long one.
    image, axes = figure.add_axes((0.05, 0.345, 0.9, 0.6)), figure.add_axes((0.05, 0.01, 0.93, 0.32))
    image.imshow(picture)
    image.set(xticks=[], yticks=[])
    image.set_title(short_name(title), fontsize=10, pad=4, parse_math=False)
    for row, (name, probability, true) in enumerate(bars):
        axes.barh(
            row, probability, color=RIGHT if true else WRONG, alpha=0.6, hatch="//" if true else None, edgecolor="white"
        )
        axes.text(0.02, row, f"{short_name(name)}  {percent(probability)}", va="center", fontsize=9, parse_math=False)
    axes.set(xlim=(0, 1), ylim=(len(bars) - 0.5, -0.5), xticks=[], yticks=[])
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    return figure


def percent(probability: float) -> str:
    """As a bar says it: whole per cents, below one "<1 %"."""
    return f"{100 * probability:.0f} %" if probability >= 0.01 else "<1 %"


def told_apart(classes: Sequence[str], names: Sequence[str], length: int = LETTERS) -> list[str]:
    """The names of classes, of which no two look the same in a figure: "crane" twice, ImageNet's bird and its machine,
    become "crane (n02012849)" and "crane (n03126707)".

    classes: as the data set calls them; names: in words; length: the letters that the figure has room for."""
    forms = [unicodedata.normalize("NFC", short_name(name, length)) for name in names]  # accents look the same
    counts, texts = Counter(forms), []
    for number, (label, name, form) in enumerate(zip(classes, names, forms, strict=True), start=1):
        mark = f" ({label})" if len(label) <= 10 and label != name else f" (class {number})"
        texts.append(name if counts[form] == 1 else short_name(name, length - len(mark)) + mark)
    return texts


def short_name(name: str, length: int = LETTERS) -> str:
    """The first synonym of an ImageNet class's name, in letters that can be drawn on a line, cut to fit."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name.partition(",")[0]).strip() or "(no name)"
    return name if len(name) <= length else name[: length - 3] + "..."


# --- right


def one_of_each_class(labels: np.ndarray) -> list[int]:
    """`QUERIES` pictures of as many classes as there are, spread over the classes: the first of each."""
    classes = np.unique(labels)
    sample = classes[evenly(len(classes), QUERIES)]
    return [int(np.flatnonzero(labels == label)[0]) for label in sample]


def nearest_pictures(
    queries: Features, number: int, searches: Sequence[tuple[str, Search]], dataset: DataSet, names: Sequence[str]
) -> tuple[list[list[Cell]], dict[str, int], dict[str, int]]:
    """A validation picture and the training pictures nearest to it, a row a search, for a `contact_sheet`; by search,
    how many of these are of its class; and how many there are.

    queries: of all validation pictures. searches: [(what they go by, `Search`)]. dataset: the pictures themselves.
    names: of the classes."""
    query = Features(*(array[number : number + 1] for array in (queries.hidden, queries.pixels, queries.labels)))
    rows, matches, counts = [], {}, {}
    for what, search in searches:
        (distances,), (indices,) = search(query, NEIGHBOURS)
        matches[what], counts[what] = int((search.labels[indices] == query.labels[0]).sum()), len(indices)
        neighbours = [("train", int(index), f"{distance:,.4g}") for index, distance in zip(indices, distances)]
        rows.append(
            [
                _cell(dataset.splits[split], index, names, words)
                for split, index, words in [("val", number, f"nearest by {what}"), *neighbours]
            ]
        )
    return rows, matches, counts


def _cell(split, number, names, words):
    return split.read(number), [short_name(names[split.labels[number]], LINE_LETTERS), words]
