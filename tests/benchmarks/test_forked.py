"""The experiments of benchmarks/forked.py without a GPU: what they compute, and that no stream reads what another has
not finished.
"""

import contextlib

import forked
import pytest
import torch
from graph_pair import Pair, look, small
from inner_cases import every
from overlapped import Called
from tiny_run import bits
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alexnet_mp import mini
from alexnet_mp.recipes.recipe import change_layers
from alexnet_mp.training.graphed_step import WARM_UP

pytestmark = [pytest.mark.usefixtures("exact"), pytest.mark.usefixtures("one_thread")]
RECIPES = {
    "four edges": mini(),
    "a fifth": change_layers(mini(), "conv4", reads="both"),
    "one edge": change_layers(mini(), "conv3", "fc6", "fc7", reads="own"),
}
every_recipe = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)


class Streams(TorchDispatchMode):
    """In place of a `forked.Side`: notes where each tensor was made, and refuses one that is read before its stream was
    waited for.
    """

    def __init__(self):
        super().__init__()
        self.now, self.made, self.kept, self.events = "main", {}, [], []
        self.seen = {"main": 0, "side": 0}  # of each stream, how many of the other's operations it has waited for
        self.count = {"main": 0, "side": 0}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for tensor in tree_leaves((args, kwargs or {})):
            stream, number = self.made.get(id(tensor), (self.now, 0))
            there = stream == self.now or number <= self.seen[self.now]
            assert there, f"{function} on {self.now} reads what {stream} has not finished"
        result = function(*args, **(kwargs or {}))
        self.count[self.now] += 1
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.kept.append(tensor)
                self.made[id(tensor)] = self.now, self.count[self.now]
        return result

    def fork(self, *tensors):
        self._wait("side", "main", tensors)

    def join(self, *tensors):
        self._wait("main", "side", tensors)

    def _wait(self, waiter, other, tensors):
        assert self.now == "main"
        self.events.append("fork" if waiter == "side" else "join")
        self.seen[waiter] = self.count[other]

    @contextlib.contextmanager
    def aside(self):
        assert self.now == "main"
        self.now = "side"
        yield
        self.now = "main"


def pair_of(recipe, joined=False, side=None, dtype=torch.float32):
    """A `Pair` whose second network computes otherwise."""
    pair = Pair(small(recipe))
    if joined:
        forked.lay_out(pair.networks[1], dtype)
    forked.change(pair.networks[1], joined, side)
    pair.set_rates()
    return pair


@every_recipe
def test_a_forked_pass_has_the_bits_of_today_and_waits_where_it_must(recipe):
    """Forward; backward autograd waits for itself."""
    streams = Streams()
    pair = pair_of(recipe, side=streams)
    (images, labels), passes = pair.batch(3), []
    with streams:
        logits = pair.networks[1](*images)
    assert streams.now == "main" and streams.count["side"] > 20 and streams.events[0] == "fork"
    forks = sum(layer.reads == "both" for layer in recipe.layers)
    assert streams.events == ["fork", "join"] * forks
    for network, output in ((pair.networks[0], None), (pair.networks[1], logits)):
        output = network(*images) if output is None else output
        torch.nn.functional.cross_entropy(output, labels).backward()
        passes.append([output.detach(), *(parameter.grad for parameter in network.parameters())])
    assert all(bits(one) == bits(other) for one, other in zip(*passes, strict=True))


def test_the_check_of_the_streams_notices_what_is_not_waited_for(monkeypatch):
    for what in ("fork", "join"):
        streams = Streams()
        network = pair_of(mini(), side=streams).networks[1]
        images = Pair(small()).batch(2)[0]
        monkeypatch.setattr(streams, what, lambda *tensors: None)
        with pytest.raises(AssertionError, match="has not finished"), streams:
            network(*images)


@pytest.mark.run
@pytest.mark.parametrize("side", [None, forked.Here()], ids=["one stream", "forked"])
def test_graphed_steps_that_fork_are_todays(side):
    pair = pair_of(mini(), side=side)
    for network in pair.networks:  # the experiment enters nothing
        network.ledger = lambda: [None]
    pair.train(*[2] * (WARM_UP + 2))
    assert not pair.graphed.given_up


@every_recipe
@every("dtype", [torch.float32, torch.bfloat16])
def test_a_joined_pass_computes_the_same(recipe, dtype):
    pair = pair_of(recipe, True, forked.Here(), dtype)
    images, labels = pair.batch(3, dtype)
    passes = []
    for network in pair.networks:
        network.keep_copies(dtype)
        logits = network(*images)
        torch.nn.functional.cross_entropy(logits, labels).backward()
        passes.append([logits.detach(), *(parameter.grad.float() for parameter in network.parameters())])
    for one, other in zip(*passes, strict=True):
        assert (one - other).norm() <= (1e-5 if dtype == torch.float32 else 3e-2) * one.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_that_lie_behind_each_other_stay_there(dtype):
    """After updates, too: joining weights and parting their gradients copies nothing."""
    pair = pair_of(mini(), True, None, dtype)
    network, step = pair.networks[1], pair.graphed.step
    for _ in range(2):
        step(*pair.batch(2, dtype), look)
    layers = [[getattr(tower, name) for tower in network.towers] for name in ("conv1", "conv3", "fc6", "fc7")]
    for pair_of_layers in layers:
        for name in ("weight", "bias"):
            parameters = [getattr(layer, name) for layer in pair_of_layers]
            assert forked.lies_behind(*parameters)
            if name == "weight":  # the kernels add some of the biases
                assert forked.lies_behind(*(parameter.grad for parameter in parameters))
            if dtype != torch.float32:
                assert forked.lies_behind(*(layer.kept[name][0] for layer in pair_of_layers))
                assert all(torch.equal(layer.kept[name][0], getattr(layer, name).to(dtype)) for layer in pair_of_layers)
    with Called() as calls:
        step(*pair.batch(2, dtype), look)
    joins = calls.counts[torch.ops.aten.cat.default]
    forked.change(network)
    with Called() as calls:
        step(*pair.batch(2, dtype), look)
    # The gradients of both halves of the maps are joined, and nothing else.
    assert joins - calls.counts[torch.ops.aten.cat.default] == len(layers)


def test_towers_apart_are_refused():
    network = Pair(small(), apart=True).networks[0]
    with pytest.raises(ValueError, match="on one device"):
        forked.change(network, True)
