"""The towers in a process each: the bits of one process, the ledger of one process, and what went over the wire.

What two processes compute is found once, for all tests of this file."""

import collections
import math

import apart
import pytest
import torch
import two_towers
from inner_cases import every
from two_towers import CASES

from alexnet_mp.network.exchange import NAMES
from alexnet_mp.recipes.shapes import crossings, sizes

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def found():
    """({case: of one process}, the same of tower a's process, of tower b's)"""
    return two_towers.all_cases(None), *apart.in_all(2, two_towers.all_cases)


@every("case", CASES)
def test_two_processes_have_the_bits_of_one(case, found):
    """Losses, right answers, weights, velocities, and the logits of a test; each way of overlap with its like."""
    one, a, b = (each[case] for each in found)
    assert len(one["numbers"]) == CASES[case].get("steps", two_towers.STEPS)
    assert a["numbers"] == b["numbers"] == one["numbers"]
    for what in ("weights", "velocities"):
        assert a[what].keys() == one[what].keys()
        for name in one[what]:
            assert a[what][name] == one[what][name], f"{what}: {name}"
    assert a["logits"] == b["logits"] == one["logits"]


@every("name", sorted({name for name, _ in CASES} - {"bfloat16"}))
def test_by_halves_is_another_rounding(name, found):
    """Else the comparison above could not tell the two ways."""
    one, _, _ = found
    assert one[name, False]["weights"] != one[name, True]["weights"]


@every("case", CASES)
def test_the_ledger_is_that_of_one_process(case, found):
    one, a, b = (each[case]["ledgers"] for each in found)
    assert a == b and [[entry[:3] for entry in step] for step in a] == [[entry[:3] for entry in step] for step in one]
    if case[0] in two_towers.RECIPES:
        assert a[-1] == sorted(crossings(two_towers.RECIPES[case[0]](), two_towers.LAST, two_towers.CLASSES))


@every("case", CASES)
def test_what_goes_over_the_wire_is_what_the_ledger_says(case, found):
    """And, the first time a shape crosses, its strides, eight bytes a dimension; and tower a tells the loss and the
    right answers, sixteen bytes. Nothing else travels in a step."""
    _, *processes = found
    for tower, process in enumerate(processes):
        old_shapes = set()
        for ledger, wire in zip(process[case]["ledgers"], process[case]["wire"], strict=True):
            message_sizes = [entry[3] for entry in ledger if entry[1].startswith(NAMES[tower])]
            shapes = {(edge, pass_, size) for edge, _, pass_, size in ledger} - old_shapes
            old_shapes |= shapes
            rest = collections.Counter(wire)
            rest.subtract(message_sizes)
            assert min(rest.values()) >= 0  # all that the ledger has was sent
            strides = [size for size, count in rest.items() for _ in range(count)]
            if tower == 0:
                strides.remove(16)
            assert len(strides) == len(shapes) and set(strides) <= {16, 32}


@every("case", CASES)
def test_what_arrives_has_the_strides_of_what_was_sent(case, found):
    _, a, b = (each[case]["layouts"] for each in found)
    assert len(a) == len(b) > 0
    for (*ours, strides_out, strides_in), (*theirs, other_strides_out, other_strides_in) in zip(a, b, strict=True):
        assert ours == theirs and (strides_out, strides_in) == (other_strides_in, other_strides_out)
    for edge, _, shape, strides_out, _ in a:
        if edge == "conv3":
            assert strides_out == torch.empty(shape, memory_format=torch.channels_last, device="meta").stride()


def test_a_checkpoint_gets_tower_bs_tensors_which_no_step_sends(found):
    _, a, b = found
    for case in CASES:
        name = case[0] if case[0] in two_towers.RECIPES else "mini"
        count = sum(
            math.prod(size.weight_shape) + math.prod(size.bias_shape)
            for size in sizes(two_towers.RECIPES[name](), two_towers.CLASSES)
            if size.layer.towers == "each"
        )
        assert (a[case]["collected"], b[case]["collected"]) == (0, 2 * 4 * count)  # weights and velocities, float32
