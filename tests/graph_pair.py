"""One network trained twice, eagerly and with graphs, and the devices on which both are compared."""

import dataclasses

import pytest
import torch
import torch._dynamo  # comes with the first step anyway; here it comes before `conftest.pytest_collection_finish`
from fake_device import FakeGraphs
from tiny_run import bits

from alexnet_mp import TwoTowerAlexNet, mini
from alexnet_mp.recipes.recipe import change_layers
from alexnet_mp.training.cuda_graphs import CudaGraphs
from alexnet_mp.training.graphed_step import GraphedStep
from alexnet_mp.training.schedule import make_schedule
from alexnet_mp.training.step import TrainingStep
from alexnet_mp.training.update_rule import PaperSGD

needs_gpu = pytest.mark.gpu(reason="needs a GPU")
CPU, CUDA, OTHER = torch.device("cpu"), torch.device("cuda:0"), torch.device("cuda:1")


@pytest.fixture
def exact(monkeypatch):
    """As a training run has it."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def look(loss):
    pass


class Pair:
    """The same network twice: one trained eagerly, the other with graphs.

    devices: one a tower. apart: the towers carry everything to each other, as two devices would, although they may
    share one. ranks: of a job with a process a tower, of which this one is on the one device."""

    def __init__(self, recipe, devices=(CPU, CPU), classes=5, must=True, apart=False, ranks=None, **fake):
        self.recipe, self.devices, self.classes = recipe, devices[: 1 if ranks else recipe.towers], classes
        self.networks = [TwoTowerAlexNet(recipe, self.devices, classes, ranks=ranks) for _ in range(2)]
        for network in self.networks:
            network.exchange.shared &= not apart
        self.optimizers = [PaperSGD(network) for network in self.networks]
        eager, step = [TrainingStep(*both) for both in zip(self.networks, self.optimizers, strict=True)]
        self.on_cpu = devices[0] == CPU
        self.graphs = (
            FakeGraphs(self.networks[1], self.optimizers[1], **fake)
            if self.on_cpu
            else CudaGraphs(dict.fromkeys(devices))
        )
        self.graphed = GraphedStep(step, self.graphs, must)
        self.steps = [eager, self.graphed]
        self.draws = torch.Generator().manual_seed(0)

    def set_rates(self, factor=1.0, frozen=()):
        rates = {
            name: 0.0 if name.partition(".")[0] in frozen else factor * rate
            for name, rate in make_schedule(self.recipe).rates(1).items()
        }
        for optimizer in self.optimizers:
            optimizer.set_rates(rates)

    def batch(self, count, dtype=torch.float32):
        size = self.recipe.crop_size
        images = (60 * torch.randn(count, 3, size, size, generator=self.draws)).to(
            dtype, memory_format=torch.channels_last
        )
        labels = torch.randint(0, self.classes, (count,), generator=self.draws).to(self.devices[0])
        places = {device: images.to(device) for device in self.devices}
        return [places[device] for device in self.devices], labels

    def train(self, *counts, **options):
        """Steps with batches of so many images; after each all that a run keeps is the same, bit for bit."""
        for count in counts:
            batch = self.batch(count, **options)
            numbers = [[tensor.clone() for tensor in step(*batch, look)] for step in self.steps]
            for one, other in zip(*map(self.state, range(2), numbers), strict=True):
                assert bits(one.cpu()) == bits(other.cpu())
            # two GPUs' backward passes interleave
            eager, graphed = (sorted(map(str, network.ledger())) for network in self.networks)
            assert eager == graphed != []
            for network in self.networks:
                network.exchange.clear()  # as the pass of a validation does

    def state(self, which, numbers):
        network, optimizer = self.networks[which], self.optimizers[which]
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        velocities = [part for parts in optimizer.velocities().values() for part in parts]
        return [
            *numbers,
            *(tensor.detach() for tensor in network.parameters()),
            *network.buffers(),
            *velocities,
            *gradients,
        ]


def small(recipe=mini()):
    """With few units; and with half the maps where there is only a CPU, which is a while at them."""
    for layer in [] if torch.cuda.is_available() else recipe.layers[:5]:
        recipe = change_layers(recipe, layer.name, maps=layer.maps // 2)
    return change_layers(dataclasses.replace(recipe, seed=3), "fc6", "fc7", maps=16)


needs_two = pytest.mark.gpu(2, reason="needs two GPUs")
every_place = pytest.mark.parametrize(
    "where",
    [
        # The quick runs of test_graphed_runs.py have their towers together.
        pytest.param(dict(devices=(CPU, CPU)), id="one CPU", marks=pytest.mark.slow),
        pytest.param(dict(devices=(CPU, CPU), apart=True), id="one CPU, apart"),
        pytest.param(dict(devices=(CUDA, CUDA)), id="one GPU", marks=needs_gpu),
        pytest.param(dict(devices=(CUDA, CUDA), apart=True), id="one GPU, apart", marks=needs_gpu),
        pytest.param(dict(devices=(CUDA, OTHER)), id="two GPUs", marks=needs_two),
    ],
)
GRAPHS_APART = 9 + 7 + 7 + 9  # of tower a, of b, and backward
