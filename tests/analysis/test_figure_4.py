"""Which pictures the report shows and why, on answers made by hand; their probabilities; bars of any names."""

import io

import numpy as np
import pytest
import torch
from inner_cases import every

from alexnet_mp.analysis import figure_4
from alexnet_mp.analysis.figure_4 import Guesses, draw_example, examples, guesses_of_batch, short_name, told_apart

VIEWS = [(0, 0, False), (4, 4, False), (0, 0, True), (4, 4, True)]


def answered(labels, *rows, places=None):
    """`Guesses` from the classes' probabilities, one row a picture; if nothing is said both places see what the average
    does."""
    probabilities = np.array(rows, float)
    top = np.argsort(-probabilities, axis=1, kind="stable")
    own = np.where(np.array(labels) < 0, np.nan, probabilities[np.arange(len(rows)), labels])
    places = np.stack([own, own], 1) if places is None else np.array(places, float)
    return Guesses(np.array(labels), top, np.take_along_axis(probabilities, top, 1), own, places, centre=1)


def shown(guesses):
    return {heading: pictures for heading, _, pictures in examples(guesses) if pictures}


def test_best_worst_and_ambiguous_are_found_in_their_order():
    guesses = answered(
        [0, 0, 0, 1, 2, 0],
        [0.9, 0.05, 0.05],
        [0.8, 0.1, 0.1],
        [0.1, 0.85, 0.05],
        [0.5, 0.02, 0.48],
        [0.34, 0.33, 0.33],
        [0.95, 0.03, 0.02],
    )
    assert shown(guesses) == {"Best": [5, 0, 1], "Worst": [3, 2, 4]}  # and all are shown once


def test_each_sort_is_short_and_no_picture_is_shown_twice(monkeypatch):
    monkeypatch.setattr(figure_4, "EACH", 1)
    guesses = answered(
        [0, 0, 0, 1, 2, 0],
        [0.9, 0.05, 0.05],
        [0.48, 0.47, 0.05],
        [0.1, 0.85, 0.05],
        [0.5, 0.02, 0.48],
        [0.34, 0.33, 0.33],
        [0.95, 0.03, 0.02],
    )
    # of picture 3, which is as ambiguous, the worst is told
    assert shown(guesses) == {"Best": [5], "Worst": [3], "Ambiguous": [1]}
    assert figure_4.EACH == 1 and len(examples(guesses)) == 4


def test_off_centre_is_right_and_far_more_probable_in_a_corner(monkeypatch):
    monkeypatch.setattr(figure_4, "EACH", 1)
    places = [[0.9, 0.9], [0.9, 0.5], [0.65, 0.6], [0.2, 0.9], [0.9, 0.1]]
    guesses = answered(
        [0] * 5, [0.9, 0.05, 0.05], [0.7, 0.2, 0.1], [0.6, 0.2, 0.2], [0.6, 0.2, 0.2], [0.3, 0.6, 0.1], places=places
    )
    assert shown(guesses)["Off-centre"] == [1]  # 4 is farther apart, and wrong
    assert "Off-centre" not in shown(
        answered([0] * 2, [0.9, 0.05, 0.05], [0.6, 0.2, 0.2], places=[[0.9, 0.9], [0.65, 0.6]])
    )
    assert "Off-centre" not in shown(answered([0], [0.9, 0.05, 0.05], places=[[0.9, 0.9]]))


def test_ambiguous_is_between_two_classes_and_no_more():
    guesses = answered([-1] * 4, [0.9, 0.05, 0.05], [0.34, 0.33, 0.33], [0.5, 0.45, 0.05], [0.6, 0.2, 0.2])
    by_heading = {heading: (why, pictures) for heading, why, pictures in examples(guesses)}
    assert by_heading["Surest"][1] == [0, 3, 2, 1] and by_heading["Ambiguous"][1] == []
    assert by_heading["Ambiguous"][0].startswith("No picture with two classes of like probability")


def test_without_labels_nothing_is_right_or_wrong():
    guesses = answered([-1, -1, 0], [0.5, 0.45, 0.05], [0.9, 0.05, 0.05], [0.4, 0.3, 0.3])
    assert shown(guesses) == {"Surest": [1, 0, 2]}


def test_two_classes():
    assert shown(answered([0, 1], [0.9, 0.1], [0.6, 0.4])) == {"Best": [0], "Worst": [1]}


def test_probabilities_are_averaged_and_only_what_is_shown_is_kept():
    random = torch.Generator().manual_seed(0)
    each = torch.rand(4, 3, 50, generator=random, dtype=torch.float64).softmax(2)
    labels = torch.tensor([7, -1, 49])
    kept_labels, top, probabilities, own, places = guesses_of_batch(each, labels, VIEWS)
    average = each.mean(0)
    torch.testing.assert_close(probabilities, average.topk(5, dim=1)[0], rtol=0, atol=0)
    assert torch.equal(top[:, 0], average.argmax(1)) and torch.equal(kept_labels, labels)
    torch.testing.assert_close(
        own, torch.stack([average[0, 7], torch.tensor(torch.nan), average[2, 49]]), equal_nan=True
    )
    torch.testing.assert_close(places[2], torch.stack([each[[0, 2], 2, 49].mean(), each[[1, 3], 2, 49].mean()]))
    assert places.shape == (3, 2) and places[1].isnan().all()
    for tensor in (top, probabilities, own, places):  # 50,000 pictures of 1,000 classes would else be held whole
        assert tensor.untyped_storage().nbytes() == tensor.numel() * 8


@pytest.mark.run
@pytest.mark.filterwarnings("ignore:Glyph")
@every("name", ["$x^{2$", "\udcff", "\u202eolleh\n\t", "三" * 40, "", ",", "<script>", "\\frac{"])
def test_names_are_drawn_as_they_are(name):
    figure = draw_example(np.zeros((5, 5, 3), np.uint8), name, [(name, 0.75, True), (name, 0.25, False)])
    figure.savefig(io.BytesIO(), format="png", dpi=50)
    assert figure.axes[0].get_position().width == pytest.approx(0.9)  # whatever the name
    bars = figure.axes[1].patches
    assert [bar.get_width() for bar in bars] == [0.75, 0.25] and [bool(bar.get_hatch()) for bar in bars] == [
        True,
        False,
    ]
    assert len(short_name(name)) <= 26 and short_name(name).isprintable() and short_name(name)


def test_no_two_classes_look_the_same():
    """ImageNet has cranes that fly and cranes that lift, and two maillots whose second synonyms alone differ."""
    classes = ["n02012849", "n03126707", "n03710637", "n03710721", "n01440764"]
    names = ["crane", "crane", "maillot", "maillot, tank suit", "tench, Tinca tinca"]
    labels = told_apart(classes, names)
    assert labels == [
        "crane (n02012849)",
        "crane (n03126707)",
        "maillot (n03710637)",
        "maillot (n03710721)",
        "tench, Tinca tinca",
    ]
    # Folders whose names are cut to the same letters, for a figure with less room than another.
    folders = [f"{'x' * 30} {number}" for number in (7, 8)] + ["a", "a, b"]
    for length in (22, 26):
        texts = [short_name(name, length) for name in told_apart(folders, folders, length)]
        assert (
            len(set(texts)) == 4 and all(len(name) <= length for name in texts) and texts[0].endswith("... (class 1)")
        )
    assert told_apart(["a", "b"], ["a", "b"]) == ["a", "b"]
    accents = ["cafe\u0301", "caf\u00e9", "b"]  # decomposed and composed: drawn, they are the same
    assert told_apart(accents, accents) == ["cafe\u0301 (class 1)", "caf\u00e9 (class 2)", "b"]


def test_a_long_name_is_cut_behind_its_first_synonym():
    assert short_name("tench, Tinca tinca") == "tench"
    assert short_name("x" * 30) == "x" * 23 + "..." and short_name("abcdef", 5) == "ab..."
