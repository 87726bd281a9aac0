"""Errors class by class, and which classes are taken for which, as CSV."""

import csv
import io
from collections.abc import Iterable, Sequence

import torch

from ..data.class_names import apart_by_number
from .accuracy import Answers, top5_tells


def confusion(labels: torch.Tensor, predicted: torch.Tensor, classes: int) -> torch.Tensor:
    """How many images of each class (rows) were taken for which class (columns): (classes, classes) int64.

    labels, predicted: (N,) int64. What is predicted is the most probable class, of equals the one that comes first:
    whole counts, where errors give a class that ties a part of an image (`accuracy.topk_credit_each`)."""
    return torch.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def table(classes: Sequence[str], answers: Answers, counts: torch.Tensor, words: Sequence[str] | None = None) -> str:
    """CSV, a row a class: name, images, top-1 and top-5 error in %, the wrong class it is most often taken for, how
    often; where `words` say something else than `classes`, these as two more columns at the end.

    A number stands behind names that accents alone tell apart (`apart_by_number`).
    answers: to all images; counts: their `confusion`. Without images there is no error, of five classes or fewer no
    top-5 error, and without a wrong one no wrong class: the field is empty. Of classes that it is taken for equally
    often, the first is named."""
    confusions = counts.clone().fill_diagonal_(0)
    # numpy's argmax names the first of equals
    frequencies, rivals = confusions.max(1).values.tolist(), confusions.numpy().argmax(1)
    rows = [("class", "images", "top-1 error %", "top-5 error %", "most frequent wrong class", "its images")]
    names = apart_by_number(classes)
    words = None if words is None or list(words) == list(classes) else words
    if words:
        rows[0] += ("class in words", "wrong class in words")
    for label, name in enumerate(names):
        own = answers.labels == label
        images = int(own.sum())
        errors = [
            f"{100 - 100 * credit[own].mean().item():.4f}" if images and tells else ""
            for credit, tells in ((answers.top1, True), (answers.top5, top5_tells(len(classes))))
        ]
        rival = rivals[label] if frequencies[label] else None
        row = name, images, *errors, "" if rival is None else names[rival], frequencies[label]
        rows.append(row + (words[label], "" if rival is None else words[rival]) if words else row)
    return as_csv(rows)


def confusion_table(classes: Sequence[str], counts: torch.Tensor) -> str:
    """CSV of a `confusion`: a header of the predicted classes, then a row a class; names as in `table`."""
    names = apart_by_number(classes)
    return as_csv([("class", *names), *((name, *row) for name, row in zip(names, counts.tolist(), strict=True))])


def as_csv(rows: Iterable[Sequence[object]]) -> str:
    """Rows of values as text, lines that end in a line feed."""
    content = io.StringIO(newline="")
    csv.writer(content, lineterminator="\n").writerows(rows)
    return content.getvalue()
