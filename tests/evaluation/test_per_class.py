"""Errors class by class and the confusion of classes, counted by hand."""

import csv
import io

import torch

from alexnet_mp.evaluation.accuracy import answers
from alexnet_mp.evaluation.per_class import confusion, confusion_table, table

CLASSES = ("ant", 'bee, "buzz"', "cow", "dog", "elk", "fox", "gnu")


def say(*order):
    """Scores with which the classes come in this order, then the others."""
    scores = torch.zeros(len(CLASSES))
    for place, label in enumerate(order):
        scores[label] = 7 - place
    return scores


# label, answer: class 4 has no image, class 3 one that is always right, class 5 one for which all classes tie
IMAGES = [
    (0, say(0)),
    (0, say(1, 0)),
    (0, say(2, 1, 3, 4, 5)),
    (0, say(1, 2, 3, 4, 0)),
    (1, say(2, 1)),
    (1, say(0, 1)),
    (2, say(2)),
    (2, say(2, 1)),
    (3, say(3)),
    (5, say()),
    (6, say(0, 1, 2, 3, 4, 5)),
]


def counted():
    outcome = answers(torch.stack([scores for _, scores in IMAGES]), torch.tensor([label for label, _ in IMAGES]))
    return outcome, confusion(outcome.labels, outcome.top[:, 0], len(CLASSES))


def rows(text):
    return list(csv.reader(io.StringIO(text)))


def test_the_confusion_by_hand():
    _, counts = counted()
    assert counts.tolist() == [
        [1, 2, 1, 0, 0, 0, 0],  # rows: what it is
        [1, 0, 1, 0, 0, 0, 0],
        [0, 0, 2, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 0],  # all tied: the first class
        [1, 0, 0, 0, 0, 0, 0],
    ]
    records = rows(confusion_table(CLASSES, counts))
    assert records[0] == ["class", *CLASSES] and [row[0] for row in records[1:]] == list(CLASSES)
    assert [[int(count) for count in row[1:]] for row in records[1:]] == counts.tolist()


def test_the_errors_of_each_class_by_hand():
    outcome, counts = counted()
    records = rows(table(CLASSES, outcome, counts))
    assert records[0] == [
        "class",
        "images",
        "top-1 error %",
        "top-5 error %",
        "most frequent wrong class",
        "its images",
    ]
    assert records[1:] == [
        ["ant", "4", "75.0000", "25.0000", CLASSES[1], "2"],
        [CLASSES[1], "2", "100.0000", "0.0000", "ant", "1"],  # once ant, once cow: the first
        ["cow", "2", "0.0000", "0.0000", "", "0"],
        ["dog", "1", "0.0000", "0.0000", "", "0"],
        ["elk", "0", "", "", "", "0"],  # no image: no error
        # a seventh of an image is right, five sevenths under top-5
        ["fox", "1", f"{600 / 7:.4f}", f"{200 / 7:.4f}", "ant", "1"],
        ["gnu", "1", "100.0000", "100.0000", "ant", "1"],
    ]
    assert rows(table(CLASSES, outcome, counts, CLASSES)) == records  # words that say nothing more
    words = [name.upper() for name in CLASSES]
    in_words = rows(table(CLASSES, outcome, counts, words))
    assert [row[:6] for row in in_words] == records and in_words[0][6:] == ["class in words", "wrong class in words"]
    assert [row[6:] for row in in_words[1:4]] == [["ANT", words[1]], [words[1], "ANT"], ["COW", ""]]


def test_the_classes_add_up_to_the_whole():
    outcome, counts = counted()
    records, errors = rows(table(CLASSES, outcome, counts))[1:], outcome.errors()
    for column, error in ((2, errors.top1_error), (3, errors.top5_error)):
        parts = sum(int(row[1]) * float(row[column] or 0) for row in records)
        assert abs(parts / len(IMAGES) - error) < 1e-3
    assert counts.sum() == len(IMAGES) == errors.images


def test_names_that_accents_alone_tell_apart_have_their_number():
    classes = ("cafe\u0301", "tea", "caf\u00e9")
    scores = torch.eye(3)[[2, 0, 1]]
    outcome = answers(scores, torch.tensor([0, 2, 1]))
    counts = confusion(outcome.labels, outcome.top[:, 0], 3)
    names = ["cafe\u0301 (class 1)", "tea", "caf\u00e9 (class 3)"]
    assert [(row[0], row[4]) for row in rows(table(classes, outcome, counts))[1:]] == list(
        zip(names, [names[2], "", names[0]])
    )
    records = rows(confusion_table(classes, counts))
    assert records[0] == ["class", *names] and [row[0] for row in records[1:]] == names
