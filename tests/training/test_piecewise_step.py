"""Steps of which several pairs of towers compute a part: the bits of one pair with a microbatch, and without one the
numbers of one that computes all at once.

What the jobs compute is found once, for all tests of this file."""

import apart
import piecewise
import pytest
import torch
from inner_cases import every
from piecewise import CASES, WITHOUT, some_steps
from two_towers import BATCH, CLASSES, LAST, RECIPES, STEPS, as_bytes

from alexnet_mp.recipes.shapes import crossings
from alexnet_mp.system.ranks import ALONE

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("one_thread")]
JOBS = {  # (processes, whether a tower is one)
    "2 pairs": (2, False),
    "4 pairs": (4, False),
    "a process a tower": (2, True),
    "2 pairs, a process a tower": (4, True),
}


@pytest.fixture(scope="module")
def one():
    return piecewise.all_cases()


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)], ids="{0} processes".format)
def found(request):
    """{job: [of each process]} of the jobs of so many processes."""
    return {
        job: apart.in_all(count, piecewise.all_cases, apart=towers_apart)
        for job, (count, towers_apart) in JOBS.items()
        if count == request.param
    }


@every("case", CASES)
def test_the_bits_do_not_know_how_many_there_are(case, one, found):
    """Losses, right answers, weights and velocities; more pairs than pieces, too, and than images."""
    expected = one[0][case]
    assert expected["step"] == len(expected["numbers"]) == CASES[case].get("steps", STEPS)
    for job, processes in found.items():
        for rank, (of_process, _) in enumerate(processes):
            assert of_process[case]["numbers"] == expected["numbers"] or job.endswith("tower"), (job, rank)
            assert [entry[:2] for entry in of_process[case]["numbers"]] == [entry[:2] for entry in expected["numbers"]]
            assert of_process[case]["step"] == expected["step"]
            assert of_process[case]["shared"]  # else each tower pads the images
        first = processes[0][0][case]
        for what in ("weights", "velocities"):
            assert first[what].keys() == expected[what].keys()
            for name in expected[what]:
                assert first[what][name] == expected[what][name], (job, what, name)


@pytest.mark.slow
def test_ten_steps_of_every_case():
    """And of large networks."""
    expected = piecewise.ten_steps()
    for job, (count, towers_apart) in JOBS.items():
        first, *_ = apart.in_all(count, piecewise.ten_steps, apart=towers_apart)
        for case, of_one in expected.items():
            compared = slice(2 if towers_apart else 3)  # a tower's process has the sums of its own weights alone
            numbers = [[entry[compared] for entry in steps[case]["numbers"]] for steps in (first, expected)]
            assert numbers[0] == numbers[1], (job, case)
            for what in ("weights", "velocities"):
                assert first[case][what] == of_one[what], (job, case, what)


@every("case", [*CASES, *WITHOUT])
def test_all_pairs_have_the_same_weights(case, found):
    """Bit for bit, and velocities, also without a microbatch: else they would drift apart."""
    for job, processes in found.items():
        states = []
        for with_microbatch, without in processes[:: 2 if JOBS[job][1] else 1]:  # where tower a is
            if case in WITHOUT:
                states.append([as_bytes(tensors) for tensors in without[case][1:]])
            else:
                states.append([with_microbatch[case]["weights"], with_microbatch[case]["velocities"]])
        assert len(states) == (1 if job == "a process a tower" else JOBS[job][0] // (1 + JOBS[job][1]))
        assert states[1:] == states[:1] * (len(states) - 1), job


def test_another_microbatch_is_another_order(one):
    """Else the comparison above could not tell."""
    assert one[0]["mini", False, 1]["weights"] != one[0]["mini", False, 5]["weights"]
    assert one[0]["mini", False, 2]["weights"] != one[0]["mini", True, 2]["weights"]


@every("name", WITHOUT)
def test_without_a_microbatch_the_numbers_are_those_of_one(name, one, found):
    """In float64, with dropout: a mask belongs to a row of the minibatch, whoever computes it."""
    whole = some_steps(ALONE, name, False, None, dtype=torch.float64, steps=2, whole=True)
    for job, processes in {"one": [one], **found}.items():
        numbers, weights, velocities = processes[0][1][name]
        for (loss, right, _), (expected_loss, expected_right, _) in zip(numbers, whole[0], strict=True):
            assert loss == pytest.approx(expected_loss, rel=1e-12) and right == expected_right, job
        for mine, expected in ((weights, whole[1]), (velocities, whole[2])):
            for key, tensor in expected.items():
                torch.testing.assert_close(mine[key], tensor, rtol=1e-12, atol=1e-12 * tensor.abs().max().item())


@every("case", [case for case in CASES if case[0] in RECIPES])
def test_what_crosses_between_the_towers_is_that_of_whole_minibatches(case, found):
    steps = CASES[case].get("steps", STEPS)
    counts = [BATCH] * (steps - 1) + [LAST]
    for job, processes in found.items():
        ledgers = processes[0][0][case]["crossed"]
        if JOBS[job][1]:
            assert ledgers == [sorted(crossings(RECIPES[case[0]](), count, CLASSES)) for count in counts]
        else:
            assert not any(size for ledger in ledgers for *_, size in ledger)  # on one device
