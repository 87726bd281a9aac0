"""Copies of the weights in 16 bits that the update writes: the bits of a run that casts in every step, and never an old
copy.
"""

import copy

import pytest
import torch
from graph_pair import Pair, look, small
from overlapped import Called
from tiny_run import bits

from alexnet_mp import mini
from alexnet_mp.network.network import TwoTowerAlexNet
from alexnet_mp.training.graphed_step import WARM_UP

pytestmark = [pytest.mark.usefixtures("exact"), pytest.mark.usefixtures("one_thread")]
BF16 = torch.bfloat16
PARAMETERS = 30  # of both towers: fc8 is on one


def casting(network, dtype):
    """In place of `network.keep_copies`: none are."""


def layers(network):
    return [layer for tower in network.towers for layer in tower.children()]


def assert_fresh(network):
    copies = [(layer, name) for layer in layers(network) for name in layer.kept]
    assert len(copies) == sum(1 for _ in network.parameters())
    for layer, name in copies:
        value, version = layer.kept[name]
        assert version == getattr(layer, name)._version and torch.equal(value, getattr(layer, name).to(BF16))


@pytest.mark.parametrize("apart", [False, True])
def test_the_bits_are_those_of_casts_in_every_step(apart, monkeypatch):
    """Weights, velocities, losses, sums; gradients but for their dtype. With other rates, frozen layers, and weights
    from elsewhere.
    """
    results = []
    for keep in (True, False):
        pair = Pair(small(), apart=apart)
        step, network, optimizer = pair.steps[0], pair.networks[0], pair.optimizers[0]
        with monkeypatch.context() as patch:
            if not keep:
                patch.setattr(TwoTowerAlexNet, "keep_copies", casting)
            tensors = []
            for factor, frozen in ((1.0, ()), (0.5, ("conv1", "fc7")), (2.0, ("fc6",))):
                pair.set_rates(factor, frozen)
                for _ in range(2):
                    numbers = step(*pair.batch(2, BF16), look)
                    tensors += [number.float() for number in numbers]
                    tensors += [p.grad.float() for p in network.parameters() if p.grad is not None]
                    tensors += [p.detach().clone() for p in network.parameters()]
                    tensors += [part.clone() for parts in optimizer.velocities().values() for part in parts]
                    if keep:
                        assert_fresh(network)
                        assert {p.grad.dtype for p in network.parameters() if p.grad is not None} == {BF16}
                network.load_merged({name: 0.9 * value for name, value in network.merged_state().items()})
            with torch.no_grad():
                network.eval()
                tensors.append(network(*pair.batch(2, BF16)[0]))
        results.append(tensors)
    assert len(results[0]) == len(results[1])
    assert all(bits(one) == bits(other) for one, other in zip(*results, strict=True))


@pytest.mark.run
@pytest.mark.parametrize("apart", [False, True])
def test_graphs_read_what_updates_write(apart):
    """And what was loaded between two replays."""
    pair = Pair(small(), apart=apart)
    pair.set_rates()
    pair.train(*[2] * (WARM_UP + 2), dtype=BF16)
    (shape,) = pair.graphed.shapes.values()
    assert shape.captured and shape.update
    assert {gradient.dtype for gradient in shape.gradients.values()} == {BF16}
    for network in pair.networks:
        network.load_merged({name: 0.9 * value for name, value in network.merged_state().items()})
    pair.train(2, dtype=BF16)
    pair.set_rates(0.1, ["conv2"])
    pair.train(*[2] * (WARM_UP + 2), dtype=BF16)
    assert not pair.graphed.given_up


@pytest.mark.run
def test_graphs_of_another_dtype_are_not_used_again():
    """Their copies are gone."""
    pair = Pair(small())
    pair.set_rates()
    for dtype in (torch.float32, BF16):
        pair.train(*[1] * (WARM_UP + 2), dtype=dtype)
        shapes = [shape for shape in pair.graphed.shapes.values() if shape.captured]
        assert len(shapes) == 1 and len(pair.graphs.living) == 2


def test_a_step_casts_no_weight():
    pair = Pair(small())
    pair.set_rates()
    step, batch, counts = pair.steps[0], pair.batch(2, BF16), []
    step(*batch, look)
    for forget in (False, True):
        if forget:
            for layer in layers(pair.networks[0]):
                layer.kept.clear()
            pair.networks[0].keep_copies = lambda dtype: None
        with Called() as calls:
            step(*batch, look)
        counts.append(calls.counts[torch.ops.aten._to_copy.default])
    assert counts[1] - counts[0] == 2 * PARAMETERS  # there, and the gradients back
    assert sum(1 for _ in pair.networks[0].parameters()) == PARAMETERS


def test_an_old_copy_is_not_used():
    network = TwoTowerAlexNet(small(), ("cpu", "cpu"), 5).eval()
    images = torch.randn(2, 3, mini().crop_size, mini().crop_size).to(BF16)
    with torch.no_grad():
        network.keep_copies(BF16)
        before = network(images, images)
        network.towers[0].fc8.bias += 1
        after = network(images, images)
        assert not torch.equal(after, before)
        twin = copy.deepcopy(network)
        assert all(not layer.kept for layer in layers(twin)) and torch.equal(twin(images, images), after)
        network.keep_copies(BF16)
        assert torch.equal(network(images, images), after)
    assert_fresh(network)


def test_in_the_weights_own_dtype_nothing_is_kept():
    pair = Pair(small())
    pair.set_rates()
    pair.train(2)
    assert all(not layer.kept for network in pair.networks for layer in layers(network))
    assert {parameter.grad.dtype for parameter in pair.networks[0].parameters()} == {torch.float32}
