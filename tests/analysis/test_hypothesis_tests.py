"""p-values against scipy and against counting by hand, and what is read off a curve against curves whose answer is
known."""

import itertools
import math

import numpy as np
import pytest
from inner_cases import every
from scipy import stats

from alexnet_mp.analysis.hypothesis_tests import mcnemar, paired, sign_flip, sign_flip_of_counts
from alexnet_mp.analysis.learning_curves import drops, epochs_to, moved_at, step_of_loss, thinned
from alexnet_mp.analysis.specialisation import chroma_shares, random_split_p


def test_three_pairs_of_one_sign_have_the_least_p_there_is():
    assert sign_flip([1.0, 2.0, 0.5]) == 0.25 == paired([0, 0, 0], [1.0, 2.0, 0.5]).least_p
    assert sign_flip([-1.0, -2.0, -0.5]) == 0.25


def test_sign_flip_by_hand():
    # Sums of +-1 +-2 -+4: 7, 5, 3, 1 and their opposites; the one seen is 1 + 2 - 4 = -1: all are as far from 0.
    assert sign_flip([1.0, 2.0, -4.0]) == 1.0
    assert sign_flip([1.0, -2.0, 4.0]) == 0.75  # 3; 1 and -1 are nearer
    assert sign_flip([0.0, 0.0]) == 1.0
    assert sign_flip([1.0]) is None


@every("n", [2, 5, 8])
def test_sign_flip_counts_all_patterns(n):
    differences = np.random.default_rng(n).normal(0.5, 1, n)
    sums = [
        sum(sign * value for sign, value in zip(signs, differences)) for signs in itertools.product((1, -1), repeat=n)
    ]
    assert sign_flip(differences) == np.mean([abs(total) >= abs(differences.sum()) - 1e-9 for total in sums])
    test = stats.permutation_test((differences,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip(differences) == pytest.approx(test.pvalue)


def test_equal_sums_added_in_another_order_are_ties():
    assert sign_flip([0.1, 0.2, 0.3, -0.3, -0.2, -0.1 - 1e-17]) == 1.0
    assert sign_flip([0.1, 0.2, 0.3]) == sign_flip([0.3, 0.2, 0.1]) == 0.25


def test_too_many_pairs_are_refused():
    with pytest.raises(ValueError, match="20 at most"):
        sign_flip(np.ones(21))


def test_mcnemar_counts_the_pictures_that_one_alone_gets_right():
    """p against scipy's binomial test, by hand, and against the sign-flip tests of the same pairs, which agree also of
    larger differences. Of 95 % intervals about as many have the true difference in them."""
    random = np.random.default_rng(0)
    for n, chance_a, chance_b in ((1, 0.5, 0.5), (16, 0.5, 0.8), (16, 0.9, 0.2), (2000, 0.3, 0.33), (50, 0, 0)):
        right_a, right_b = random.random(n) < chance_a, random.random(n) < chance_b
        test = mcnemar(right_a, right_b)
        only_a, only_b = (right_a & ~right_b).sum(), (right_b & ~right_a).sum()
        assert (test.n, test.only_a, test.only_b) == (n, only_a, only_b)
        expected = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
        differences = right_a.astype(int) - right_b
        assert test.p == pytest.approx(expected) == pytest.approx(sign_flip_of_counts(differences))
        assert n > 16 or n == 1 or test.p == pytest.approx(sign_flip(differences))
        assert test.difference == pytest.approx(100 * (right_a.mean() - right_b.mean()))
        assert -100 <= test.interval[0] < test.difference + 1e-9 and test.difference - 1e-9 < test.interval[1] <= 100
    assert mcnemar([1, 1, 1, 1, 0], [0, 0, 0, 0, 1]).p == 0.375  # 2 (1 + 5) / 32
    hits = 0
    for _ in range(400):  # a's and b's right answers depend on each other; the difference is 10 points
        kind = random.choice(4, 60, p=(0.3, 0.3, 0.2, 0.2))  # both, neither, ..., of which a alone 0.2 + 0.1
        kind[random.random(60) < 0.25] = 2
        low, high = mcnemar((kind == 0) | (kind == 2), (kind == 0) | (kind == 3)).interval
        hits += low <= 100 * (0.75 * 0.2 + 0.25 - 0.75 * 0.2) <= high
    assert 370 <= hits <= 394
    with pytest.raises(ValueError, match="no pairs"):
        mcnemar([True], [True, False])
    for _ in range(6):
        values = random.integers(-3, 4, 11)
        assert sign_flip_of_counts(values) == pytest.approx(sign_flip(values))
    assert sign_flip_of_counts([0, 0]) == sign_flip_of_counts([]) == 1.0
    assert sign_flip_of_counts([2] * 3000 + [-1] * 2000) < 1e-12


@pytest.mark.filterwarnings("error")
@every("wrong", [math.nan, math.inf])
def test_no_p_of_what_is_no_number(wrong):
    assert sign_flip([wrong, 1.0, 2.0]) is None
    test = paired([1.0, 2.0], [wrong, 3.0])
    assert test.p is None


def test_paired():
    test = paired([10.0, 20.0, 30.0], [11.0, 22.0, 30.0])
    assert (test.n, test.mean, test.sd) == (3, 1.0, 1.0) and test.p == 0.5
    assert paired([], []) is None
    one = paired([1.0], [3.0])
    assert (one.mean, one.sd, one.p) == (2.0, None, None)
    with pytest.raises(ValueError, match="no pairs"):
        paired([1.0], [1.0, 2.0])


def test_the_loss_moves_when_it_stays_below():
    level = 0.97 * math.log(10)
    assert moved_at([2.4] * 5 + [2.0] * 20, 10, window=1) == 6
    assert moved_at([2.4] * 5 + [2.0] * 5 + [2.4] * 5 + [2.0] * 5, 10, window=1) == 16  # it came back once
    assert moved_at([2.4] * 30, 10) is None
    assert moved_at([2.0] * 9 + [2.4], 10, window=1) is None  # above at the end
    assert moved_at([2.0] * 30, 10) == 10  # the first step that has ten losses
    assert moved_at([2.0] * 9, 10) is None
    # Ten losses of which k are 2.0 have the mean 2.4 - 0.04 k: below 2.2335 from k = 5 on.
    assert 2.4 - 0.04 * 4 > level > 2.4 - 0.04 * 5 and moved_at([2.4] * 50 + [2.0] * 50, 10) == 55
    assert moved_at([2.4] * 20 + [math.nan] + [2.0] * 30, 10) == 31  # the last window with the NaN ends at step 30


def test_epochs_to_a_training_error():
    # steps 9 to 12 are the first four at 20 %, but 50, 20, 20, 20 is 27.5 %
    assert epochs_to([50.0] * 8 + [20.0] * 8, 4) == 3.0
    assert epochs_to([50.0] * 8 + [0.0] * 8, 4) == 2.5  # 50, 50, 0, 0: 25 % is reached
    assert epochs_to([20.0] * 4, 4) == 1.0
    assert epochs_to([26.0] * 40, 4) is None and epochs_to([0.0] * 3, 4) is None


def test_the_step_of_a_loss_is_between_two_points():
    curve = {"steps": [10, 20, 30], "loss": [2.0, 1.0, 0.5]}
    assert step_of_loss(curve, 2.5) == 10 and step_of_loss(curve, 1.5) == 15 and step_of_loss(curve, 0.5) == 30
    assert step_of_loss(curve, 0.4) is None


@every("wrong", [math.nan, math.inf])
def test_points_that_are_no_numbers_lie_on_no_line(wrong):
    curve = {"steps": [10, 20, 30], "loss": [2.0, wrong, 1.0]}
    assert step_of_loss(curve, 1.5) == 20 and step_of_loss(curve, wrong) in (None, 10)
    assert step_of_loss({"steps": [10, 20], "loss": [wrong, 1.0]}, 1.5) == 20
    assert step_of_loss({"steps": [10, 20], "loss": [wrong, wrong]}, 1.5) is None
    assert step_of_loss({"steps": [], "loss": []}, 1.0) is None


def test_nothing_thinned_is_nothing_and_a_nan_is_not_hidden():
    assert thinned([]) == []
    blocks = thinned([1.0, math.nan, 3.0, 4.0], 2)
    assert blocks[1] == (4, 3.5) and blocks[0][0] == 2 and math.isnan(blocks[0][1])


@every("count", [1, 3, 59, 60, 61, 1000])
def test_thinned_has_every_value_once(count):
    values = np.random.default_rng(0).normal(size=count)
    blocks = thinned(values, 60)
    assert len(blocks) == min(count, 60) and blocks[-1][0] == count
    lengths = np.diff([0, *(step for step, _ in blocks)])
    assert max(lengths) - min(lengths) <= 1
    assert sum(length * mean for length, (_, mean) in zip(lengths, blocks)) == pytest.approx(values.sum())


def test_chroma_of_grey_and_of_colour():
    grey = np.ones((2, 3, 5, 5)) * np.random.default_rng(0).normal(size=(2, 1, 5, 5))
    colour = np.random.default_rng(1).normal(size=(2, 3, 5, 5))
    colour -= colour.mean(1, keepdims=True)
    assert chroma_shares(np.concatenate([grey, colour]), 2) == [pytest.approx(0, abs=1e-12), pytest.approx(1)]
    # One colour channel alone: a third of its energy is grey.
    assert chroma_shares(np.eye(3)[:2, :, None, None], 2) == [pytest.approx(2 / 3)] * 2


def test_a_random_split_is_told_from_a_divided_one():
    random = np.random.default_rng(0)
    kernels = random.normal(size=(24, 3, 5, 5))
    divided_kernels = kernels.copy()
    divided_kernels[:12] = divided_kernels[:12].mean(1, keepdims=True)
    assert random_split_p(divided_kernels, 1000) == pytest.approx(1 / 1001)
    assert random_split_p(kernels, 1000) > 0.05
    # Four kernels, two of them grey, as the towers have them: of the six halves, two are as far apart.
    four_kernels = np.concatenate([divided_kernels[:2], np.tile(kernels[20:21], (2, 1, 1, 1))])
    assert random_split_p(four_kernels, 3000) == pytest.approx(1 / 3, abs=0.05)


def test_epochs_at_which_rates_fell():
    """Not where they stayed and the colour noise ended, rose again, or are told a second time by a run that went on."""

    def line(epoch, weight, bias, noise=0.1):
        return {
            "kind": "schedule",
            "step": 10 * epoch,
            "epoch": epoch,
            "colour_noise": noise,
            "learning_rates": {"conv1.weight": weight, "conv1.bias": bias},
        }

    lines = [
        line(1, 1e-2, 2e-2),
        {"kind": "train", "step": 11, "learning_rate": 1e-3},
        line(4, 1e-3, 2e-2),
        line(6, 1e-3, 2e-2, 0.0),
        line(6, 1e-3, 2e-2, 0.0),
        line(8, 1e-2, 2e-2),
        line(9, 1e-2, 2e-3),
    ]
    assert drops(lines) == [4, 9]
    assert drops(lines[:2]) == [] == drops([])


@pytest.mark.filterwarnings("error")
def test_a_split_of_what_are_no_kernels_of_two_towers_has_no_p():
    for count in (0, 1, 5):
        with pytest.raises(ValueError, match=f"{count} kernels are not those of two towers"):
            random_split_p(np.ones((count, 3, 2, 2)), 10)
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match="finite"):
            random_split_p(np.full((4, 3, 2, 2), value), 10)
    assert random_split_p(np.zeros((4, 3, 2, 2)), 10) == 1.0  # no energy, no difference
