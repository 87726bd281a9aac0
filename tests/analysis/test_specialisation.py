"""Two towers compared, against scipy and against counting by hand; and how often they part, in towers made to part or
not."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from inner_cases import every
from made_kernels import BLUE_YELLOW, GREY, RED_GREEN, made, measured
from scipy import stats
from tiny_checkpoint import tiny

from alexnet_mp.analysis.first_layer import kernel_statistics
from alexnet_mp.analysis.hypothesis_tests import holm, wilson
from alexnet_mp.analysis.random_deals import (
    as_far_p,
    cliffs_delta,
    energy_distances,
    kuipers_v,
    pairings,
    random_orders,
    watsons_u2,
)
from alexnet_mp.analysis.specialisation import (
    DIVISION_LEVEL,
    MEASURES,
    Division,
    appearance,
    appearance_by_chance,
    division,
    division_by_chance,
    first_layer,
    matching,
    tower_differences,
)
from alexnet_mp.recipes import shapes
from alexnet_mp.runs.checkpoints import put
from alexnet_mp.system.errors import UserError


def test_cliffs_delta_against_counting_and_scipy():
    values = np.array([0.1, 0.5, 0.5, 0.9, 0.5, 0.2, 0.7])
    for members in ([0, 1, 2], [3, 4, 6, 2], [5]):
        others = np.delete(values, members)
        delta = np.mean([np.sign(x - y) for x, y in itertools.product(values[members], others)])
        assert cliffs_delta(values, np.array([members])) == pytest.approx([delta])
        u = stats.mannwhitneyu(values[members], others).statistic
        assert delta == pytest.approx(2 * u / (len(members) * len(others)) - 1)


def test_cliffs_delta_p_against_scipy():
    random = np.random.default_rng(0)
    values = np.concatenate([random.normal(size=12), random.normal(0.7, size=12)])
    difference = tower_differences(measured(frequency=values))["frequency"]
    assert difference.p == pytest.approx(stats.mannwhitneyu(values[:12], values[12:], method="exact").pvalue, abs=0.01)
    assert difference.effect < 0 and difference.effect_size == "Cliff's delta" and difference.n == (12, 12)


def kuiper_by_hand(a, b):
    """Largest difference of the shares on all arcs between two points, both kinds of ends."""
    points = np.unique(np.concatenate([a, b]))
    arcs = itertools.product(points, repeat=2)

    def share(sample, start, end):
        inside = (sample >= start) & (sample <= end) if start <= end else (sample >= start) | (sample <= end)
        return inside.mean()

    return max(share(a, *arc) - share(b, *arc) for arc in arcs)


def test_kuipers_v_by_hand():
    random = np.random.default_rng(0)
    for n, of_all in ((3, 8), (5, 10), (1, 2), (4, 9)):
        values = random.integers(0, 12, of_all) * 15.0  # with ties
        assert kuipers_v(values, np.arange(n)[None]) == pytest.approx([max(0, kuiper_by_hand(values[:n], values[n:]))])
    assert kuipers_v(np.array([1.0, 2, 3, 10, 11, 12]), np.array([[0, 1, 2], [0, 2, 4]])) == pytest.approx([1, 1 / 3])


def test_circular_statistics_do_not_depend_on_where_the_circle_is_cut():
    random = np.random.default_rng(1)
    values, orders = random.uniform(0, 180, 15), random_orders(15, 20, 0)[:, :6]
    for turn in (1, 44.4, 90, 179):
        for statistic in (kuipers_v, watsons_u2):
            assert statistic((values + turn) % 180, orders) == pytest.approx(statistic(values, orders))
            assert statistic(180 - values, orders) == pytest.approx(statistic(values, orders))


def test_watsons_u2_by_hand():
    """1, 2 are ahead of 3, 4 by 1/2, 1, 1/2, 0; U^2 is 2 * 2 / 4^2 times their squares' sum less their sum's square /
    4."""
    assert watsons_u2(np.array([1.0, 2, 3, 4]), np.array([[0, 1], [0, 2]])) == pytest.approx(
        [(1.5 - 1) / 4, (0.5 - 0.25) / 4]
    )
    ties = np.array([1.0, 1, 2, 2])  # ahead at 1 by 1/2 - 1/2 or by 1, twice each
    assert watsons_u2(ties, np.array([[0, 2], [0, 1]])) == pytest.approx([0, (2 - 1) / 4])


def test_orientations_that_differ_and_those_that_lie_on_both_sides_of_0():
    one_direction = tower_differences(
        measured(orientation=[179, 178, 1, 2, 3, 177, 0.5, 179.5, 1.5, 178.5, 2.5, 177.5])
    )["orientation"]
    assert one_direction.p > 0.3 and one_direction.effect <= 0.5
    two_directions = tower_differences(measured(orientation=[179, 178, 1, 2, 3, 177, 90, 91, 89, 88, 92, 93]))[
        "orientation"
    ]
    assert two_directions.effect == pytest.approx(1) and two_directions.p < 0.02 and two_directions.by_chance < 0.7
    assert two_directions.effect_size == "Kuiper's V" and two_directions.n == (6, 6)
    # the same mean, if any
    spread = np.concatenate([np.linspace(80, 100, 16), np.linspace(0, 180, 16, endpoint=False)])
    assert tower_differences(measured(orientation=spread))["orientation"].p < 0.01


def test_holm_by_hand():
    for values, p in (([-0.3, -0.4, -0.5], 1 / 3), ([0.3, 0.3 - 1e-15, 0.2], 2 / 3), ([-0.3, -0.3 - 1e-15, -0.2], 1)):
        assert as_far_p(np.array(values)) == p
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, None, 0.6, 0.7]) == [pytest.approx(0.03), None, 1.0, 1.0]
    assert holm([]) == [] and holm([None]) == [None]


def test_towers_that_part_and_towers_that_do_not():
    differences = tower_differences(kernel_statistics(made(0, GREY, RED_GREEN)))
    assert list(differences) == list(MEASURES)
    assert differences["colourfulness"].effect == -1 and differences["colourfulness"].p == pytest.approx(1 / 10_001)
    assert differences["colourfulness"].holm_p == pytest.approx(5 / 10_001)
    for measure in ("frequency", "orientation", "phase"):
        assert differences[measure].holm_p > 0.05
    control = tower_differences(kernel_statistics(made(1, GREY, GREY)))
    assert min(of_one.holm_p for of_one in control.values()) > 0.05


def test_orientations_are_those_of_tuned_kernels_alone():
    selectivity = [0.9, 0.9, 0.1, 0.1, 0.9, 0.9, 0.9, 0.1]
    statistics = measured(
        selectivity=selectivity, frequency=[0.1] * 4 + [0, 0.1, 0.1, 0.1], orientation=[0, 1, 90, 90, 0, 1, 0.5, 90]
    )
    differences = tower_differences(statistics)
    assert differences["orientation"].n == differences["phase"].n == (2, 2) and differences["frequency"].n == (4, 4)
    nothing = tower_differences(measured(selectivity=[0.9, 0.9, 0.1, 0.1]))
    assert (
        nothing["phase"].effect is nothing["phase"].p is nothing["phase"].holm_p is nothing["phase"].by_chance is None
    )
    assert nothing["phase"].n == (2, 0)
    assert nothing["frequency"].p == 1.0 and nothing["frequency"].effect == 0  # all equal


def test_differences_are_the_same_each_time_and_p_depends_on_no_exchange_of_the_towers():
    kernels = made(2, GREY, (1, 0.5, 0))
    statistics, swap = kernel_statistics(kernels), kernel_statistics(np.roll(kernels, 12, axis=0))
    assert tower_differences(statistics) == tower_differences(statistics)
    for one, other in zip(tower_differences(statistics).values(), tower_differences(swap).values()):
        assert abs(one.effect) == pytest.approx(abs(other.effect)) and one.p == pytest.approx(other.p, abs=0.03)


def test_an_odd_number_of_kernels():
    for n in (0, 3):
        with pytest.raises(ValueError, match="not those of two towers"):
            tower_differences(measured(phase=[0.0] * n) if n else kernel_statistics(np.ones((0, 3, 5, 5))))


def test_runs_that_part_are_counted_up_to_exchanging_the_towers():
    runs = {"one": made(0, GREY, RED_GREEN), "two": made(1, RED_GREEN, GREY), "three": made(2, GREY, GREY)}
    tally = appearance(runs)
    assert (tally.n, tally.count, tally.colour_in_b) == (3, 2, 1)
    assert [half.run for half in tally.halves] == list(runs)
    assert [half.specialised for half in tally.halves] == [True, True, False]
    assert (
        tally.halves[0].chroma == pytest.approx((0, 1), abs=0.02)
        and tally.halves[0].p <= DIVISION_LEVEL < tally.halves[2].p
    )
    assert tally.interval == wilson(2, 3)


def test_random_halves_meet_the_criterion_as_often_as_its_level_says():
    """Of networks with grey and coloured kernels; 2,000 splits. Also an odd number of maps."""
    runs = {"one": made(0, GREY, RED_GREEN), "two": made(1, GREY, (1, 0, 0))[:-1]}
    tally = appearance_by_chance(runs, splits=1000)
    assert (
        tally.n == 2000
        and 0.002 < tally.count / tally.n < 0.02
        and tally.interval[0] < DIVISION_LEVEL < tally.interval[1]
    )
    ps = np.array([half.p for half in tally.halves])
    assert abs((ps <= 0.5).mean() - 0.5) < 0.06
    assert [half.run for half in tally.halves[::1000]] == ["one", "two"]
    assert tally == appearance_by_chance(runs, splits=1000)


def test_a_split_of_one_kernel():
    with pytest.raises(ValueError, match="few: 1 kernels"):
        appearance_by_chance({"few": np.ones((1, 3, 5, 5))})
    assert appearance_by_chance({"two": np.ones((2, 3, 5, 5))}, splits=10).count == 0
    kernels = made(
        0, GREY, RED_GREEN, count=2
    )  # of its three splits one is apart, which a third of the others are, too
    ties = appearance_by_chance({"four": kernels}, splits=100, draws=3000)
    assert max(half.p for half in ties.halves) == 1 and min(half.p for half in ties.halves) == pytest.approx(
        1 / 3, abs=0.05
    )


def test_wilson_is_what_it_was():
    """Of the formula that stood here before scipy's."""
    for count, n, low, high in (
        (0, 1, 0.0, 0.7934506856227626),
        (1, 1, 0.20654931437723742, 1.0),
        (0, 5, 0.0, 0.43448246478317476),
        (2, 3, 0.20765960080204773, 0.9385080552796038),
        (3, 3, 0.4385029682449545, 1.0),
        (5, 10, 0.23659309051256397, 0.7634069094874361),
        (999, 1000, 0.994357441402042, 0.9998234536293739),
        (1000, 1000, 0.9961732415144449, 1.0),
        (0, 10000, 0.0, 0.00038399837067659573),
        (123, 4567, 0.022620022313028027, 0.032039816815401245),
    ):
        assert wilson(count, n) == pytest.approx((low, high), rel=1e-12, abs=1e-15)
    assert wilson(0, 0) == (0.0, 1.0)
    assert appearance({}).n == 0


def test_the_first_layer_of_a_run(tmp_path):
    checkpoint = tiny()
    put(tmp_path, checkpoint)
    kernels, towers = first_layer(tmp_path)
    assert (kernels == checkpoint.weights["conv1.weight"].numpy()).all() and towers == 2
    assert len(tower_differences(kernel_statistics(kernels), draws=100)) == 5
    with pytest.raises(UserError):
        first_layer(tmp_path / "elsewhere")


def test_a_first_layer_without_kernels(tmp_path):
    """A fully connected one sees the image as a whole."""
    checkpoint = tiny()
    _, fc2, fc8 = checkpoint.state.recipe.layers
    recipe = dataclasses.replace(checkpoint.state.recipe, layers=(dataclasses.replace(fc2, reads="image"), fc8))
    weights = {name: torch.zeros(shape) for name, shape in shapes.merged_shapes(recipe, 3).items()}
    scheduled = dataclasses.replace(checkpoint.state.scheduled, learning_rates=dict.fromkeys(weights, 0.01))
    state = dataclasses.replace(checkpoint.state, recipe=recipe, scheduled=scheduled)
    put(tmp_path, dataclasses.replace(checkpoint, weights=weights, velocity=weights, state=state))
    with pytest.raises(UserError, match="no kernels of colour images"):
        first_layer(tmp_path)


# --- whether the towers differ at all


def test_energy_distances_by_hand():
    random = np.random.default_rng(0)
    points, deals = random.normal(size=(7, 3)), np.array([[0, 1, 2], [6, 3, 1]])

    def mean_apart(a, b):
        return np.mean([np.linalg.norm(x - y) for x in a for y in b])

    for deal, distance in zip(deals, energy_distances(points, deals), strict=True):
        a, b = points[deal], np.delete(points, deal, 0)
        assert distance == pytest.approx(2 * mean_apart(a, b) - mean_apart(a, a) - mean_apart(b, b))
    line = np.array([0.0, 1, 4, 6])  # on a line it is twice Cramer's distance, the integral of (F - G)^2
    steps = np.diff(line) * np.array([1 / 2, 1, 1 / 2]) ** 2  # F - G of {0, 1} and {4, 6}
    assert energy_distances(line[:, None], np.array([[0, 1]])) == pytest.approx([2 * steps.sum()])


@pytest.mark.run
def test_towers_that_differ_in_one_feature_are_divided():
    grey_and_red, all_grey = made(1, GREY, RED_GREEN), made(1, GREY, GREY)
    verdict = division(grey_and_red)
    assert verdict.divided and verdict.p < 0.001 and verdict.learned == (12, 12)
    assert verdict.differences["colourfulness"].holm_p < 0.001 < 0.05 < verdict.differences["frequency"].p
    assert not division(all_grey).divided and division(all_grey).distance < verdict.distance
    blue_yellow = tuple(np.array(BLUE_YELLOW) / math.sqrt(3))  # else the noise makes it more colourful
    for towers in (
        made(1, RED_GREEN, blue_yellow),  # equally colourful, but not the same colours
        np.concatenate([made(1, GREY, orientations=(80, 100)), made(2, GREY, orientations=(-10, 10))]),
    ):
        of_one_kind = division(towers)
        assert of_one_kind.divided and of_one_kind.p < min(
            of_one_kind.differences[measure].p for measure in ("colourfulness", "selectivity", "frequency")
        )
    swap = division(np.concatenate([grey_and_red[12:], grey_and_red[:12]]))
    assert swap.distance == pytest.approx(verdict.distance) and swap.divided  # towers have no order


@pytest.mark.run
def test_towers_without_a_division_meet_the_level_as_often_as_it_says():
    kernels = made(2, *[GREY, RED_GREEN] * 20, count=1)
    random, p = np.random.default_rng(3), []
    for _ in range(200):
        p.append(division(kernels[random.permutation(40)], draws=500).p)
    assert 20 <= sum(value <= 0.25 for value in p) <= 80  # 50 expected; six standard deviations are 37
    assert sum(value <= DIVISION_LEVEL for value in p) <= 10
    hits, splits = division_by_chance(kernels, splits=300, draws=2000)
    assert splits == 300 and hits <= 15  # 3 expected


def test_kernels_that_are_noise_take_no_part():
    random = np.random.default_rng(4)
    kernels = made(1, GREY, RED_GREEN)
    noise = random.normal(0, 0.01, size=(24, *kernels.shape[1:]))
    with_noise = np.concatenate([kernels[:12], noise[:12], kernels[12:], noise[12:]])
    verdict, baseline = division(with_noise), division(kernels)
    assert 12 <= verdict.learned[0] <= 14 and 12 <= verdict.learned[1] <= 14  # one in a hundred of noise isn't told
    assert verdict.divided and verdict.p == pytest.approx(baseline.p, abs=0.002)
    for sample in (noise, np.concatenate([kernels[:12], noise[:12]]), np.zeros((10, 3, 5, 5))):
        assert division(sample).p is None and not division(sample).divided and division(sample).differences == {}
    assert division_by_chance(noise[:9]) is None


def test_division_of_what_is_no_pair_of_towers():
    for kernels in (np.zeros((0, 3, 5, 5)), np.ones((5, 3, 5, 5))):
        with pytest.raises(ValueError, match="not those of two towers"):
            division(kernels)
    with pytest.raises(ValueError, match="finite"):
        division(np.full((12, 3, 5, 5), np.nan))


@pytest.mark.run
def test_towers_of_a_network_are_compared_with_towers_of_others():
    networks = [made(seed, GREY, RED_GREEN) if seed % 2 else made(seed, RED_GREEN, GREY) for seed in range(4)]
    mean, p = matching(networks)
    # Grey with red and green, whichever: 4! of the 105 pairings part them as far, but for noise; none by much more.
    assert mean > 1 and 1 / 105 <= p <= 24 / 105
    three_of_four = [
        np.concatenate([made(seed, GREY), made(10 + seed, RED_GREEN if seed else GREY)]) for seed in range(4)
    ]
    assert matching(three_of_four)[0] < mean
    halves = [made(seed, *[GREY, RED_GREEN] * 6, count=1)[[*range(0, 12, 2), *range(1, 12, 2)]] for seed in range(3)]
    assert matching(halves)[1] <= 6 / 15
    mixtures = [[made(4 * group + seed, *[GREY, RED_GREEN] * 12, count=1) for seed in range(4)] for group in range(40)]
    p = np.array([matching(runs)[1] for runs in mixtures])  # both towers hold both kinds: nothing parts them
    assert 3 <= (p <= 0.25).sum() <= 19 and (p <= 0.01).sum() <= 3  # 10 and 0.4 expected
    assert matching(networks[:1]) == (None, None) and matching([np.zeros((12, 3, 5, 5))] * 3) == (None, None)


def test_all_pairings_are_counted_once():
    distances = {(a, b): 1.0 if (a, b) in ((0, 1), (2, 3), (4, 5)) else 0.0 for a in range(6) for b in range(a + 1, 6)}
    sums = sorted(pairings(distances, tuple(range(6))))
    assert len(sums) == 15 and sums.count(3.0) == 1 and sums.count(1.0) == 6 and sums.count(0.0) == 8
    assert (
        len(list(pairings(dict.fromkeys(((a, b) for a in range(12) for b in range(a + 1, 12)), 1.0), tuple(range(12)))))
        == 10_395
    )


@every(
    "p, divided", [(None, False), (DIVISION_LEVEL, True), (DIVISION_LEVEL * 1.001, False), (DIVISION_LEVEL / 1.5, True)]
)
def test_a_network_is_divided_up_to_the_level_itself(p, divided):
    assert Division((12, 12), None if p is None else 0.5, p, {}).divided is divided
