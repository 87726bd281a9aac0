"""When rates fall: three times on a plateau, then the end; and the dates of the 2012 run."""

import dataclasses
import json

import pytest
from inner_cases import every

from alexnet_mp.recipes.architectures import mini, paper, source2012
from alexnet_mp.recipes.recipe import Date, change_layers
from alexnet_mp.training.schedule import make_schedule


def rates_of(schedule, epoch=1):
    return {round(rate, 12) for rate in schedule.rates(epoch).values()}


def test_a_plateau_drops_the_rate_three_times_and_then_ends_the_run():
    schedule = make_schedule(dataclasses.replace(paper(), plateau_patience=2))
    history = []
    for error in [50, 40, 40, 41, 39, 39, 39, 39, 39, 39, 39, 39, 39]:
        assert not schedule.finished
        schedule.observe(error)
        history.append((schedule.drops, schedule.finished))
    # 40, 41: two without a new best -> drop 1; the next is the first of its rate; then every third 39 is a drop, and
    # the fourth ends the run.
    assert history == [
        (0, False),
        (0, False),
        (0, False),
        (1, False),
        (1, False),
        (1, False),
        (2, False),
        (2, False),
        (2, False),
        (3, False),
        (3, False),
        (3, False),
        (4, True),
    ]


def test_an_error_that_rises_at_a_drop_and_then_improves_is_no_plateau():
    """ "Stopped improving with the current learning rate" (5): what an earlier rate came to doesn't count."""
    schedule = make_schedule(dataclasses.replace(paper(), plateau_patience=2))
    for error in [40, 41, 42]:
        schedule.observe(error)
    assert schedule.drops == 1
    for error in [48, 47, 46, 45, 44, 43, 42, 41]:
        schedule.observe(error)
    assert (schedule.drops, schedule.best) == (1, 41)


def test_the_state_of_a_plateau_whose_drop_kept_its_best_is_read():
    """As a checkpoint before 2026-11-29 has it: it goes on, and its next drop forgets the best."""
    schedule = make_schedule(dataclasses.replace(paper(), plateau_patience=2))
    schedule.restore({"drops": 1, "best": 40.0, "since_best": 1})
    schedule.observe(45.0)
    assert (schedule.drops, schedule.since_best) == (2, 0)
    schedule.observe(44.0)
    assert (schedule.drops, schedule.best) == (2, 44.0)


def test_plateau_rates_are_a_tenth_each_time():
    schedule = make_schedule(dataclasses.replace(paper(), plateau_patience=1))
    rates = [rates_of(schedule)]
    for _ in range(3):
        schedule.observe(50)
        schedule.observe(50)
        rates.append(rates_of(schedule))
    assert rates == [{0.01}, {0.001}, {0.0001}, {0.00001}]
    assert schedule.colour_noise(90) == 0.1


def test_patience_starts_anew_with_every_best():
    schedule = make_schedule(dataclasses.replace(paper(), plateau_patience=3))
    for error in [50, 51, 52, 49, 50, 51, 48, 48.5, 48.5]:
        schedule.observe(error)
    assert schedule.drops == 0
    schedule.observe(48)  # equal is not better
    assert schedule.drops == 1


@every(
    "epoch, conv1, others, conv1_bias, biases, noise",
    [
        (1, 1e-2, 1e-2, 2e-2, 2e-2, 0.1),
        (23, 1e-2, 1e-2, 2e-2, 2e-2, 0.1),
        (24, 1e-3, 1e-3, 2e-3, 2e-3, 0.1),
        (51, 1e-3, 1e-3, 2e-3, 2e-3, 0.1),
        (52, 1e-4, 1e-4, 2e-3, 2e-3, 0.1),
        (68, 1e-4, 1e-4, 2e-3, 2e-3, 0.1),
        (69, 1e-5, 1e-4, 2e-3, 2e-3, 0.0),
        (73, 0, 1e-4, 0, 2e-3, 0.0),
        (78, 0, 1e-4, 0, 2e-3, 0.0),
        (79, 0, 1e-5, 0, 2e-3, 0.0),
        (93, 0, 1e-5, 0, 2e-3, 0.0),
    ],
)
def test_the_dates_of_the_2010_run(epoch, conv1, others, conv1_bias, biases, noise):
    """params-145-2010:170-176: after 23, 51, 68, 72 and 78 epochs, end after 93."""
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


@every("patience", [1, 2, 3])
def test_a_restored_plateau_goes_on_as_if_nothing_had_been(patience):
    """At every moment, also through JSON, which a checkpoint is."""
    recipe = dataclasses.replace(paper(), plateau_patience=patience, plateau_drops=2)
    whole, errors = make_schedule(recipe), [50.0, 40.0, 40.0, 41.0, 39.5, 39.5, 39.5, 0.0, 0.0, 12.25, 12.25, 12.25]
    for count, error in enumerate(errors):
        restored = make_schedule(recipe)
        restored.restore(json.loads(json.dumps(whole.state(), allow_nan=False)))
        for later in errors[count:]:
            restored.observe(later)
        expected = make_schedule(recipe)
        for each in errors:
            expected.observe(each)
        assert (restored.state(), restored.finished, restored.rates(1)) == (
            expected.state(),
            expected.finished,
            expected.rates(1),
        )
        whole.observe(error)


@every(
    "state",
    [
        {},
        {"drops": 0, "best": None},
        {"drops": -1, "best": None, "since_best": 0},
        {"drops": 0, "best": None, "since_best": -1},
        {"drops": 0.5, "best": None, "since_best": 0},
        {"drops": None, "best": None, "since_best": 0},
        {"drops": 0, "best": 5.0, "since_best": 0, "more": 1},
    ],
)
def test_what_is_no_state_of_a_plateau_is_refused(state):
    with pytest.raises(ValueError, match="plateau"):
        make_schedule(paper()).restore(state)


def test_a_dated_schedule_has_no_state():
    schedule = make_schedule(source2012())
    schedule.observe(50.0)
    assert schedule.state() == {}
    schedule.restore({})
    with pytest.raises(ValueError, match="dated"):
        schedule.restore({"drops": 0, "best": None, "since_best": 0})


def test_less_patience_than_was_waited_already_is_a_drop_at_once():
    """A run may go on with another patience, where that is told; it must not wait for ever then."""
    before, now = (make_schedule(dataclasses.replace(paper(), plateau_patience=patience)) for patience in (5, 2))
    for error in [50, 51, 52, 53]:
        before.observe(error)
    now.restore(before.state())
    now.observe(54)
    assert (now.drops, now.since_best) == (1, 0)


def test_dates_count_from_a_layers_own_rate_of_weights():
    """Its biases keep the recipe's rate, as in 2012: epsB stayed where it was when epsW of the old layers was a
    tenth."""
    recipe = change_layers(change_layers(source2012(), "conv1", rate=0.1), "fc8", rate=0.0)
    schedule, plain = make_schedule(recipe), make_schedule(source2012())
    for epoch in (1, 24, 69, 73):
        factors = {"conv1": 0.1, "fc8": 0.0}
        expected = {
            name: rate * (factors.get(name.split(".")[0], 1) if name.endswith("weight") else 1)
            for name, rate in plain.rates(epoch).items()
        }
        assert schedule.rates(epoch) == pytest.approx(expected), epoch
    plateau = make_schedule(dataclasses.replace(recipe, schedule="plateau", plateau_patience=1))
    for error in (50, 60):
        plateau.observe(error)
    rates = [plateau.rates(1)[name] for name in ("conv1.weight", "conv2.weight", "conv1.bias", "fc8.bias")]
    assert rates == pytest.approx([1e-4, 1e-3, 2e-3, 2e-3])
