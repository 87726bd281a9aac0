"""Precision and average precision: by hand, against the mean over all orders of ties."""

import itertools

import numpy as np
import pytest
from inner_cases import every

from alexnet_mp.retrieval.measures import gathered, measures


def plain(relevant, at):
    """Precision and average precision of one ranking without ties."""
    hits = np.cumsum(relevant)
    average = (hits / np.arange(1, len(hits) + 1))[np.array(relevant, bool)].sum() / max(1, sum(relevant))
    return [hits[min(k, len(hits)) - 1] / min(k, len(hits)) for k in at] + [average]


def of_one(distances, relevant, at):
    precision, average = measures(np.array([distances]), np.array([relevant], bool), at)
    return [precision[k][0] for k in at] + [average[0]]


def test_by_hand():
    """Relevant in places 1 and 3 of 4: (1 + 2/3) / 2."""
    assert of_one([0.1, 0.2, 0.3, 0.4], [1, 0, 1, 0], (1, 2, 3)) == pytest.approx([1, 1 / 2, 2 / 3, 5 / 6])
    assert of_one([0.4, 0.3, 0.2, 0.1], [1, 0, 1, 0], (1, 2)) == pytest.approx([0, 1 / 2, 1 / 2])


@every("distances", [[3, 3, 3, 3, 3], [1, 1, 2, 2, 2], [2, 1, 2, 1, 0], [0, 1, 2, 3, 4], [5, 5, 5, 5, 1]])
@every("relevant", list(itertools.product((0, 1), repeat=5))[1::3])
def test_ties_count_as_the_mean_over_all_their_orders(distances, relevant):
    at, rows = (1, 2, 3, 9), []
    for order in itertools.permutations(range(5)):
        ranking = [distances[place] for place in order]
        if ranking == sorted(ranking):
            rows.append(plain([relevant[place] for place in order], at))
    assert of_one(distances, relevant, at) == pytest.approx(np.mean(rows, 0).tolist())


def test_the_order_on_the_disk_does_not_matter():
    random = np.random.default_rng(0)
    distances, relevant = random.integers(0, 4, 50), random.integers(0, 2, 50)
    order = random.permutation(50)
    assert of_one(distances, relevant, (1, 10)) == pytest.approx(of_one(distances[order], relevant[order], (1, 10)))


def test_nothing_relevant_is_0_and_everything_relevant_is_1():
    assert of_one([1, 2, 2], [0, 0, 0], (1, 6)) == [0, 0, 0]
    assert of_one([1, 2, 2], [1, 1, 1], (1, 6)) == [1, 1, 1]


def test_parts_of_the_queries_are_gathered():
    distances, relevant = np.array([[1, 2], [2, 1], [1, 1]]), np.array([[1, 0], [1, 0], [1, 0]], bool)
    whole = gathered([measures(distances, relevant, (1,))], (1,))
    parts = gathered([measures(distances[:2], relevant[:2], (1,)), measures(distances[2:], relevant[2:], (1,))], (1,))
    assert whole == parts and whole.queries == 3
    assert whole.precision == {1: pytest.approx(0.5)} and whole.mean_average_precision == pytest.approx(
        (1 + 1 / 2 + 3 / 4) / 3
    )
