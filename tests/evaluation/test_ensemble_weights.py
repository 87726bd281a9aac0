"""Averages of networks: hand-made probabilities, weights by the search of 2012, and every wrong weight refused."""

import itertools
import math

import numpy as np
import pytest
import torch
from inner_cases import every

from alexnet_mp.evaluation import ensemble_weights
from alexnet_mp.evaluation.accuracy import answers, joined, judged, topk_credit
from alexnet_mp.evaluation.ensemble_weights import choose_weights, fold, normalised, nothing, parse_weights
from alexnet_mp.system.errors import UserError


def logs_of(*probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).log().float()


def averaged(logs, weights):
    total = nothing(*logs[0].shape)
    for of_network, weight in zip(logs, weights, strict=True):
        fold(total, of_network, weight)
    return total


def right(logs, labels, weights):
    """How many of the images have their label among the top five of the weighted sum of probabilities: in float64, ties
    in part."""
    scores = sum(weight * of_network.double().exp() for weight, of_network in zip(weights, logs, strict=True))
    return topk_credit(scores, labels)[1].item()


def test_probabilities_are_averaged_not_their_logarithms():
    """0.9 and 0.1 average to 0.5; their geometric mean, and what logits give, is another class's win."""
    one, other = logs_of([0.9, 0.1, 0.0], [0.2, 0.5, 0.3]), logs_of([0.1, 0.3, 0.6], [0.2, 0.5, 0.3])
    total = averaged([one, other], (0.5, 0.5))
    assert total.exp().tolist() == [pytest.approx([0.5, 0.2, 0.3], rel=1e-6), pytest.approx([0.2, 0.5, 0.3], rel=1e-6)]
    total = averaged([one, other], normalised((1, 3)))
    assert total[0].exp().tolist() == pytest.approx([0.3, 0.25, 0.45], rel=1e-6)
    outcome = answers(total, torch.tensor([0, 1]))
    assert outcome.errors().top1_error == 50 and outcome.errors().loss == pytest.approx(
        -(math.log(0.3) + math.log(0.5)) / 2, rel=1e-6
    )


def test_a_network_of_weight_0_changes_nothing():
    one, other = logs_of([0.7, 0.2, 0.1]), torch.full((1, 3), math.nan)
    assert torch.equal(averaged([one, other], (1, 0)), one)


def test_a_network_averaged_with_itself_is_itself_beyond_float32():
    """Its last classes have probabilities of e^-200 and less, all 0 as float32, where they would tie."""
    scores = torch.tensor([[0, -210, -240, -220, -230, -250, -200.0]], dtype=torch.float64).log_softmax(1)
    total = averaged([scores.float()] * 3, (1 / 3,) * 3)
    for label in range(7):
        labels = torch.tensor([label])
        own, average = answers(scores, labels), answers(total, labels)
        assert average.top.tolist() == own.top.tolist() == [[0, 6, 1, 3, 4]]
        assert average.loss.item() == pytest.approx(own.loss.item(), abs=1e-6)
        for outcome in (own, average):
            assert (outcome.top1.item(), outcome.top5.item()) == (label == 0, label not in (2, 5))


def test_mirrored_networks_tie():
    one, other = logs_of([0.6, 0.4]), logs_of([0.4, 0.6])
    for label in (0, 1):
        outcome = answers(averaged([one, other], (0.5, 0.5)), torch.tensor([label]))
        assert outcome.top1.item() == 0.5 and outcome.top[0, 0] == 0  # half an image; what is named is the first


def test_answers_in_parts_are_those_of_the_whole():
    generator = torch.Generator().manual_seed(1)
    logs, labels = (
        torch.randn(70, 9, generator=generator).round().log_softmax(1),
        torch.randint(9, (70,), generator=generator),
    )
    outcome = answers(logs, labels)
    parts = joined([judged(*rows) for rows in zip(logs.split(16), labels.split(16))])
    assert all(torch.equal(vars(outcome)[name], values) for name, values in vars(parts).items() if name != "sums")
    torch.testing.assert_close(outcome.sums, parts.sums)
    top1, top5 = (topk_credit(logs.double(), labels) / 70).tolist()
    assert 0 < top1 < top5 < 1 and outcome.errors().images == 70
    errors = outcome.errors()
    assert (errors.top1_error, errors.top5_error) == (pytest.approx(100 - 100 * top1), pytest.approx(100 - 100 * top5))


def test_equal_classes_come_in_their_order_among_the_top_five():
    outcome = answers(torch.tensor([[1.0, 3, 2, 3, 2, 2, 2]]), torch.tensor([6]))
    assert outcome.top.tolist() == [[1, 3, 2, 4, 5]] and outcome.top5.item() == 3 / 4


def test_without_labels_there_are_no_errors():
    outcome = joined([judged(torch.eye(3), torch.full((3,), -1))] * 2)
    assert (
        outcome.errors() is None
        and outcome.top1 is None
        and outcome.loss is None
        and outcome.top.tolist() == [[0, 1, 2], [1, 0, 2], [2, 0, 1]] * 2
    )


# --- the search


def second_needed(share):
    """One image of seven classes, label 6. The first network puts five others before it, all by 0.01; the second puts
    it before them, by 0.01 * share: it is right from a weight on that is 1 / share of the first one's."""
    first = [0.12] * 5 + [0.29, 0.11]
    second = [0.1] * 5 + [0.5 - 0.01 * share, 0.1 + 0.01 * share]
    return first, second


def test_the_search_by_hand():
    """Two networks. At 0.5 and 0.5 the image that needs twice the second's weight is wrong. Of the first weight 0 is
    tried before all others, and is right for both images; nothing is strictly better after that, neither of the first
    nor of the second."""
    first, second = zip(second_needed(2), second_needed(0.5))
    logs, labels = [logs_of(*first), logs_of(*second)], torch.tensor([6, 6])
    assert [right(logs, labels, weights) for weights in ((1, 1), (1, 2.1), (0, 1))] == [1, 2, 2]
    assert choose_weights(logs, labels) == (0, 0.5)


def test_the_first_of_equally_good_weights_stays():
    """Two images that need the second network with at least 1.2 and at most 1.8 times the weight of the first: by hand,
    0.5 / 1.2 = 0.417 and 0.5 / 1.8 = 0.278, so the first that is tried between them is 0.3."""
    from_12 = second_needed(1 / 1.2)
    # the networks changed: right while 1.8 times the first's weight is more than the second's
    to_18 = second_needed(1.8)[::-1]
    first, second = zip(from_12, to_18)
    logs, labels = [logs_of(*first), logs_of(*second)], torch.tensor([6, 6])
    assert [right(logs, labels, (1, ratio)) for ratio in (1.1, 1.3, 1.7, 1.9)] == [1, 2, 2, 1]
    assert choose_weights(logs, labels) == (0.3, 0.5)


def test_the_largest_weight_is_tried():
    """An image that needs the first network with 1.97 times the weight of the second: of 0, 0.05, ..., 1 only 1 is as
    much."""
    second, first = second_needed(1 / 1.97)
    assert choose_weights([logs_of(first), logs_of(second)], torch.tensor([6])) == (1, 0.5)


def test_of_few_classes_the_first_answer_counts():
    """Of five classes all are among the first five. By hand: the average is right about image 0 where the first
    network has more than 1/4 of the second's weight (0.8 of a lead against 0.2), about image 1 where it has less than
    1/3 (0.6 against 0.2); of steps of 0.05 that is 0.15 to 0.5. Of six classes every weighting is right."""
    for classes, expected in ((2, (0.15, 0.5)), (5, (0.15, 0.5)), (6, (0.5, 0.5))):
        rest = [0.0] * (classes - 2)
        first = logs_of([0.9, 0.1, *rest], [0.2, 0.8, *rest])
        second = logs_of([0.4, 0.6, *rest], [0.6, 0.4, *rest])
        assert choose_weights([first, second], torch.tensor([0, 0])) == expected, classes


@every("above, count", [(4, 1), (5, 0), (6, 0)])
def test_four_before_the_label_leave_it_among_five(above, count):
    logs = logs_of([0.16] * above + [0.02] * (6 - above) + [0.1])
    assert (
        ensemble_weights._Right([logs], torch.tensor([6]))([10])
        == ensemble_weights._Right([logs, logs], torch.tensor([6]))([3, 0])
        == count
    )


def test_the_fifth_decides():
    """Four classes that both networks put before the label, and one that only the first does."""
    counter = ensemble_weights._Right(
        [logs_of([0.16] * 5 + [0.02, 0.1]), logs_of([0.16] * 4 + [0.02] * 2 + [0.1])], torch.tensor([6])
    )
    assert (counter([1, 0]), counter([0, 1]), counter([1, 5]), counter([5, 1])) == (0, 1, 1, 0)


def test_weights_that_are_good_already_stay_a_half():
    logs = [logs_of([0.1] * 6 + [0.4])] * 3
    assert choose_weights(logs, torch.tensor([6])) == (0.5, 0.5, 0.5)


def random_networks(seed, networks=3, images=60, classes=12):
    """Networks that are right about different images."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=generator)
    logs = []
    for _ in range(networks):
        scores = torch.randn(images, classes, generator=generator)
        scores[torch.arange(images), labels] += torch.randn(images, generator=generator) * 1.5
        logs.append((2 * scores).log_softmax(1))
    return logs, labels


@every("seed", range(6))
def test_no_single_weight_changed_is_better(seed):
    """The search ends where every change of one weight, tried here by plain averages, is no better; never below where
    it began."""
    logs, labels = random_networks(seed)
    choice = choose_weights(logs, labels)
    best = right(logs, labels, choice)
    assert best >= right(logs, labels, (0.5,) * 3)
    neighbours = [choice[:place] + (step / 20,) + choice[place + 1 :] for place in range(3) for step in range(21)]
    assert max(right(logs, labels, weights) for weights in neighbours if any(weights)) <= best


@pytest.mark.run
@every("seed", range(4))
def test_where_one_network_is_always_right_the_search_finds_what_all_weights_find(seed):
    """Network 0 is right about every image by a little; the others are wrong by much about some. Best of all weights:
    no error."""
    logs, labels = random_networks(seed, images=12)
    probabilities = torch.full((12, 12), 0.08)
    probabilities[torch.arange(12), labels] = 0.12
    logs[0] = probabilities.log()
    grid = [weights for weights in itertools.product(range(0, 21, 2), repeat=3) if any(weights)]
    best = max(right(logs, labels, weights) for weights in grid)
    assert right(logs, labels, (1, 1, 1)) < best == 12
    assert right(logs, labels, choose_weights(logs, labels)) == best


@every("seed", range(3))
def test_two_networks_agree_with_every_ratio(seed):
    """Of two networks the ratio alone matters, and the first pass tries 0 to 2 in steps of 0.1."""
    logs, labels = random_networks(seed, networks=2, images=40)
    best = max(right(logs, labels, (step, 10)) for step in range(21))
    assert right(logs, labels, choose_weights(logs, labels)) >= best


@every("weights", [(10, 10, 0), (0, 0, 1), (20, 3, 0), (3, 20, 1)])
@every("rows", [1024, 7])
def test_the_count_of_the_search_is_that_of_the_averages(weights, rows, monkeypatch):
    """Also with ties, mirrored ones too, with labels that are always right and always wrong, and in chunks."""
    monkeypatch.setattr(ensemble_weights, "ROWS", rows)
    random = np.random.default_rng(3)
    counts = random.integers(0, 4, (3, 50, 8)) + np.eye(8, dtype=int)[random.integers(0, 8, 50)] * 2
    logs, labels = (
        [torch.from_numpy((of_network + 0.5) / 64).log().float() for of_network in counts],
        random.integers(0, 8, 50),
    )
    labels = torch.from_numpy(labels)
    expected = right(logs, labels, weights)
    assert ensemble_weights._Right(logs, labels)(weights) == pytest.approx(expected) and expected % 1 != 0


def test_every_image_surely_right_is_no_special_case():
    assert choose_weights([logs_of([0.5, 0.3, 0.2])] * 2, torch.tensor([2])) == (0.5, 0.5)


def test_all_weights_zero_are_not_tried():
    """One image that is right without the first network, and five that need five times the second's weight. Without any
    weight all classes tie: five sevenths of every image would be right, which is more than one image."""

    def led_by(lead):
        return [(1 - lead) / 7] * 6 + [(1 + 6 * lead) / 7]

    logs = [logs_of(led_by(-0.1), *[led_by(0.01)] * 5), logs_of(led_by(0.02), *[led_by(-0.05)] * 5)]
    assert ensemble_weights._Right(logs, torch.full((6,), 6))([0, 0]) == pytest.approx(30 / 7)
    assert choose_weights(logs, torch.full((6,), 6)) == (0, 0.5)


# --- what --weights says


def test_weights_as_typed():
    assert parse_weights(None, 4) == (0.25,) * 4
    assert parse_weights(["1", "3"], 2) == (0.25, 0.75)
    assert parse_weights(["0", "2e3"], 2) == (0, 1)
    assert parse_weights(["validation"], 2) == "validation"


@every(
    "words, named",
    [
        (["1"], "1 for 2 RUNs"),
        (["1", "2", "3"], "3 for 2 RUNs"),
        (["1", "-1"], "-1 is no weight"),
        (["nan", "1"], "nan is no weight"),
        (["inf", "1"], "inf is no weight"),
        (["0", "0.0"], "sum must be finite and above 0"),
        (["1e308", "1e308"], "sum must be finite"),
        (["1", "x"], "a number for each RUN"),
        (["validation", "1"], "a number for each RUN"),
        (["1", "2", "runs/a"], "the RUNs come first"),
    ],
)
def test_wrong_weights_are_refused(words, named):
    with pytest.raises(UserError, match=named):
        parse_weights(words, 2)
