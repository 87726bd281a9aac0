"""CUDA graphs in a process a tower: the bits of eager steps, with a fake of the captures; and a capture that fails in
one process alone, which both give up."""

import apart
import fake_device
import pytest
import torch
from graph_pair import Pair, look, small

from alexnet_mp import paper
from alexnet_mp.system.ranks import InVain
from alexnet_mp.training.graphed_step import WARM_UP

pytestmark = [pytest.mark.run, pytest.mark.process, pytest.mark.usefixtures("exact", "one_thread", "quick")]
GRAPHS = 9 + 1 + 9, 7 + 1 + 7  # of tower a, of b: forward, packing or unpacking its numbers, backward


def same_bits(ranks, more):
    """Pairs of networks that train alike, and what their graphs did: [captures, replays] of each."""
    counts = []
    extra_cases = [(small(), [4, 4, 3] * (WARM_UP + 2), torch.float32), (small(paper()), [2] * 5, torch.bfloat16)]
    for recipe, batches, dtype in [(small(), [2] * 6, torch.float32), *(extra_cases if more else ())]:
        pair = Pair(recipe, ranks=ranks)
        pair.set_rates()
        pair.train(*batches, dtype=dtype)
        assert not pair.graphed.given_up and all(shape.update for shape in pair.graphed.shapes.values())
        counts.append((pair.graphs.captures, pair.graphs.replays))
    names = [layer.name for layer in pair.recipe.layers]
    # fc8 is on tower a alone: what becomes of it tower b's process has to know.
    for frozen in (["conv1"], ["conv2", "fc7"], names[:-1], names, []) if more else (names[:-1], names):
        pair.set_rates(0.5, frozen)
        pair.train(*[2] * (WARM_UP + 2))
        assert all(shape.captured for shape in pair.graphed.shapes.values())
    return counts


def refused(ranks):
    """A capture fails in one process alone; or a replay there computes something else."""
    for which in range(2):
        here = ranks.rank == which
        for failure in (5, GRAPHS[which] + 1):  # one of the pass, and that of the update
            pair = Pair(small(), must=False, ranks=ranks, fails=lambda capture: here and capture == failure)
            pair.set_rates()
            pair.train(*[2] * (WARM_UP + 2), 3)
            assert pair.graphed.given_up and pair.graphs.living == []
        pair = Pair(small(), ranks=ranks)
        pair.set_rates()
        pair.train(*[2] * WARM_UP)
        replay = fake_device._FakeGraph.replay
        fake_device._FakeGraph.replay = spoiled(replay) if here else replay
        with pytest.raises(InVain, match="^--graphs on: .*: a replay has other bits than an eager step; --graphs auto"):
            pair.graphed(*pair.batch(2), look)
        fake_device._FakeGraph.replay = replay


def spoiled(replay):
    def other_bits(graph):
        replay(graph)
        for place in list(graph.made.values())[-1:]:
            place[-1] += 1

    return other_bits


@pytest.mark.parametrize("more", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_graphs_of_each_process_have_the_bits_of_eager_steps(more):
    for counts, graphs in zip(apart.in_all(2, same_bits, more), GRAPHS, strict=True):
        # The first replay is compared with an eager pass; the update is captured a step after the rest.
        one_shape, *others = counts
        assert one_shape == (graphs + 1, 4 * graphs + 2)
        for (captures, replays), shapes in zip(others, (2, 1)):
            assert captures == shapes * (graphs + 1) and (shapes == 2 or replays == 3 * graphs + 1)


@pytest.mark.slow
def test_what_one_process_refuses_both_give_up():
    apart.in_all(2, refused)
