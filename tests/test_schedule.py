"""When rates fall: three times on a plateau, then the end; and the dates of the 2012 run."""
import dataclasses

import pytest

from alexnet_mp.recipe import Date, mini, paper, source2012
from alexnet_mp.schedule import make_schedule


def rates_of(schedule, epoch=1):
    return {round(rate, 12) for rate in schedule.rates(epoch).values()}


def test_a_plateau_drops_the_rate_three_times_and_then_ends_the_run():
    schedule = make_schedule(dataclasses.replace(paper(), plateau_patience=2))
    history = []
    for error in [50, 40, 40, 41, 39, 39, 39, 39, 39, 39, 39]:
        assert not schedule.finished
        schedule.observe(error)
        history.append((schedule.drops, schedule.finished))
    # 40, 41: two without a new best -> drop 1; 39 is new; then every second 39 is a drop, and the fourth ends the run.
    assert history == [(0, False), (0, False), (0, False), (1, False), (1, False), (1, False), (2, False), (2, False), (3, False),
                       (3, False), (4, True)]


def test_plateau_rates_are_a_tenth_each_time():
    schedule = make_schedule(dataclasses.replace(paper(), plateau_patience=1))
    seen = [rates_of(schedule)]
    schedule.observe(50)
    for _ in range(3):
        schedule.observe(50)
        seen.append(rates_of(schedule))
    assert seen == [{0.01}, {0.001}, {0.0001}, {0.00001}]
    assert schedule.colour_noise(90) == 0.1


def test_patience_starts_anew_with_every_best():
    schedule = make_schedule(dataclasses.replace(paper(), plateau_patience=3))
    for error in [50, 51, 52, 49, 50, 51, 48, 48.5, 48.5]:
        schedule.observe(error)
    assert schedule.drops == 0
    schedule.observe(48)  # equal is not better
    assert schedule.drops == 1


@pytest.mark.parametrize("epoch, conv1, others, conv1_bias, biases, noise", [
    (1, 1e-2, 1e-2, 2e-2, 2e-2, 0.1), (22, 1e-2, 1e-2, 2e-2, 2e-2, 0.1), (23, 1e-3, 1e-3, 2e-3, 2e-3, 0.1),
    (50, 1e-3, 1e-3, 2e-3, 2e-3, 0.1), (51, 1e-4, 1e-4, 2e-3, 2e-3, 0.1), (67, 1e-4, 1e-4, 2e-3, 2e-3, 0.1),
    (68, 1e-5, 1e-4, 2e-3, 2e-3, 0.0), (72, 0, 1e-4, 0, 2e-3, 0.0), (77, 0, 1e-4, 0, 2e-3, 0.0),
    (78, 0, 1e-5, 0, 2e-3, 0.0), (93, 0, 1e-5, 0, 2e-3, 0.0)])
def test_the_dates_of_the_2010_run(epoch, conv1, others, conv1_bias, biases, noise):
    """params-145-2010:170-176."""
    schedule = make_schedule(source2012())
    expected = {}
    for layer in source2012().layers:
        expected[f"{layer.name}.weight"] = conv1 if layer.name == "conv1" else others
        expected[f"{layer.name}.bias"] = conv1_bias if layer.name == "conv1" else biases
    assert schedule.rates(epoch) == pytest.approx(expected, rel=1e-12, abs=0)
    assert schedule.colour_noise(epoch) == noise
    schedule.observe(50.0)
    assert not schedule.finished and source2012().epochs == 93


def test_colour_noise_can_return():
    """The continued run of net 145 put the noise back."""
    recipe = dataclasses.replace(mini(), dates=(Date(2, colour_noise=0.0), Date(4, colour_noise=0.1)))
    assert [make_schedule(recipe).colour_noise(epoch) for epoch in range(1, 6)] == [0.1, 0.0, 0.0, 0.1, 0.1]
