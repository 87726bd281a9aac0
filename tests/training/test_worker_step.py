"""Steps of workers that divide convolutions by images and fully connected layers by units: the numbers of the whole
network computed by autograd, with the update written out; what travels, and what a checkpoint has."""

import dataclasses

import pytest
import torch
from inner_cases import every
from workers import CLASSES, COUNTS, Threads, batches, by_hand, rates_of, recipe, steps

from alexnet_mp import TwoTowerAlexNet
from alexnet_mp.network.worker_network import WorkerAlexNet
from alexnet_mp.parallel.pieces import Pieces
from alexnet_mp.parallel.workers import Workers
from alexnet_mp.recipes import shapes
from alexnet_mp.system.ranks import ALONE
from alexnet_mp.training.step import TrainingStep
from alexnet_mp.training.update_rule import PaperSGD
from alexnet_mp.training.worker_step import WorkerStep

pytestmark = pytest.mark.usefixtures("one_thread")
WORKERS = (1, 2, 3, 4)


def assert_same(outcome, expected):
    """Within 1e-12 of the largest value."""
    numbers, *tensors = expected
    for (loss, right), (expected_loss, expected_right) in zip(outcome["numbers"], numbers, strict=True):
        assert loss == pytest.approx(expected_loss, rel=1e-12) and right == expected_right
    for mine, whole in zip((outcome["weights"], outcome["velocities"]), tensors):
        assert mine.keys() == whole.keys()
        for name, tensor in whole.items():
            torch.testing.assert_close(mine[name], tensor.detach(), rtol=1e-12, atol=1e-12 * tensor.abs().max().item())


CONVOLUTIONS = ("conv1", "conv2", "conv3", "conv4", "conv5")


@pytest.mark.slow
@every(
    "size, frozen",
    [(2, ()), (1, ()), (4, ()), (9, ()), (2, ("conv1", "conv2")), (2, ("fc6", "fc8")), (2, CONVOLUTIONS)],
)
def test_however_many_workers_take_the_steps_of_the_whole_network(size, frozen):
    """In float64, with dropout, rates of each kind, short minibatches, and workers without an image."""
    of = recipe(size)
    expected = by_hand(of, frozen=frozen)
    for count in WORKERS if size == 2 and not frozen else (1, 3):
        outcomes = Threads(count).run(lambda workers: steps(workers, of, frozen=frozen))
        assert_same(outcomes[0], expected)
        for outcome in outcomes:
            assert outcome["numbers"] == outcomes[0]["numbers"] and outcome["step"] == len(COUNTS)
            assert outcome["checked"] == sum(-(-images // size) for images in COUNTS)
            for name in ("conv1.weight", "conv5.bias"):
                assert torch.equal(outcome["weights"][name], outcomes[0]["weights"][name])


def test_updated_once_a_minibatch_they_take_everyones_steps():
    of = recipe(9)
    network = TwoTowerAlexNet(dataclasses.replace(of, fc_batch_size=None), ["cpu"], CLASSES).train().double()
    optimizer, numbers = PaperSGD(network), []
    for images, labels in batches(of):
        optimizer.set_rates(rates_of(of))
        loss, right, *_ = TrainingStep(network, optimizer)([images], labels, lambda loss: None)
        numbers.append((loss.item(), right.item()))
    whole = numbers, network.merged_state(), network.merged(optimizer.velocities())
    often = by_hand(recipe(4))[0]  # else nobody could tell when the updates come
    assert all(one[0] != pytest.approx(other[0], rel=1e-6) for one, other in zip(often, numbers))
    assert_same(Threads(2).run(lambda workers: steps(workers, of))[0], whole)


def test_the_ledger_by_hand():
    """Of an image its last maps and its units go to the K - 1 others, and their gradients return; its label and the
    sums of the last layer do not; the convolutions' gradients go around twice. No weight travels."""
    of = recipe(2)
    sizes = {size.layer.name: size for size in shapes.sizes(of, CLASSES)}
    convolutions = sum(size.parameters for size in sizes.values() if size.layer.kind == "conv")
    for count in WORKERS:
        outcomes = Threads(count).run(lambda workers: steps(workers, of))
        for number, images in enumerate(COUNTS):
            others = (count - 1) * images * 8
            expected = {
                ("labels", "all", "forward", others),
                ("loss", "all", "forward", others * CLASSES),
                ("convolutions", "all", "backward", 2 * (count - 1) * convolutions * 8),
            }
            for edge, values in (("fc6", 5 * 1 * 1), ("fc7", 11), ("fc8", 9)):
                expected |= {(edge, "all", pass_, others * values) for pass_ in ("forward", "backward")}
            ledger = outcomes[0]["ledgers"][number]
            assert set(ledger) == (expected if count > 1 else set())
            assert all(outcome["ledgers"][number] == ledger for outcome in outcomes)
            total = sum(outcome["wires"][number] for outcome in outcomes)
            assert total == sum(size for what, *_, size in ledger if what != "convolutions")


def test_a_test_is_that_of_the_whole_network():
    """Each worker has other images, one has none."""
    of = dataclasses.replace(recipe(), fc_batch_size=4)
    (images, _), *_ = batches(of, (9,))
    whole = TwoTowerAlexNet(of, ["cpu"], CLASSES).double().eval()
    parts = [images[:4], images[4:5], None, images[5:]]

    def test(workers):
        network = WorkerAlexNet(of, "cpu", CLASSES, "auto", workers).double().eval()
        with torch.inference_mode():
            mine = parts[workers.number]
            return network.without_images() if mine is None else network(mine)

    outputs = Threads(4).run(test)
    assert outputs.pop(2) is None
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(outputs).clone(), whole(images), rtol=1e-12, atol=1e-12)


def test_a_checkpoint_knows_no_workers():
    """Drawn, merged, taken by another number of workers, and merged again: the same bits."""
    of = recipe()
    whole = TwoTowerAlexNet(of, ["cpu"], CLASSES).merged_state()
    changed = {name: tensor + 1 for name, tensor in whole.items()}

    def through(workers):
        network = WorkerAlexNet(of, "cpu", CLASSES, "auto", workers)
        state = network.merged_state()
        network.load_merged(changed)
        return state, network.merged_state()

    for count in WORKERS:
        for network_state, expected in zip(Threads(count).run(through)[0], (whole, changed), strict=True):
            assert network_state.keys() == expected.keys() and all(
                torch.equal(network_state[name], expected[name]) for name in network_state
            )


def test_bfloat16_is_near_float32():
    """A step of images in bfloat16, with weights in float32."""
    of = recipe(4)

    def step(workers, dtype):
        network = WorkerAlexNet(of, "cpu", CLASSES, "auto", workers).train()
        optimizer = PaperSGD(network)
        optimizer.set_rates(rates_of(of))
        ((images, labels),) = batches(of, (9,))
        pieces = Pieces(workers.number, workers.count)
        worker_step, rows = WorkerStep(network, optimizer, pieces), pieces.read(9)
        loss, *_ = worker_step([images[rows].to(dtype)], labels[rows], lambda loss: None, 9)
        return loss.item(), network.merged(optimizer.velocities())

    loss, velocities = step(Workers(ALONE, torch.device("cpu")), torch.float32)
    bf16_loss, bf16_velocities = Threads(2).run(lambda workers: step(workers, torch.bfloat16))[0]
    assert bf16_loss == pytest.approx(loss, rel=0.02)
    for name, velocity in velocities.items():
        assert bf16_velocities[name].dtype == torch.float32
        assert (bf16_velocities[name] - velocity).norm() < 0.2 * velocity.norm(), name
