"""Workers that are threads of one process, and what a step of theirs has to be: the network computed whole by autograd,
the update written out. For `test_worker_step.py`."""

import dataclasses
import threading
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from alexnet_mp import TwoTowerAlexNet, mini
from alexnet_mp.network.worker_network import WorkerAlexNet
from alexnet_mp.parallel.pieces import Pieces
from alexnet_mp.parallel.workers import Workers
from alexnet_mp.recipes.ablations import one_tower
from alexnet_mp.recipes.recipe import change_layers
from alexnet_mp.training.schedule import make_schedule
from alexnet_mp.training.update_rule import PaperSGD
from alexnet_mp.training.worker_step import WorkerStep

CLASSES, SIZE = 7, 32
COUNTS = (5, 9, 2)  # images of the minibatches: the last is smaller than four workers
PATIENCE = 60  # seconds


def recipe(fc_batch_size=2, **changes):
    """One tower with three convolutions and dropout; rates that differ by kind; norms, pools, tanh."""
    base = one_tower(mini())
    widths = {"conv1": 4, "conv2": 6, "conv3": 5, "conv4": 6, "conv5": 5, "fc6": 11, "fc7": 9}
    for name, maps in widths.items():
        base = change_layers(base, name, maps=maps, init_std=0.1)
    base = change_layers(base, "fc6", "fc7", "fc8", rate=0.25)
    base = change_layers(base, "fc7", then=("tanh", "dropout"))
    return dataclasses.replace(base, crop_size=64, batch_size=9, fc_batch_size=fc_batch_size, **changes)


def batches(of, counts=COUNTS, dtype=torch.float64):
    draws = torch.Generator().manual_seed(3)
    for count in counts:
        images = 60 * torch.randn(count, 3, of.crop_size, of.crop_size, generator=draws)
        labels = torch.randint(0, CLASSES, (count,), generator=draws)
        yield images.to(dtype, memory_format=torch.channels_last), labels


def rates_of(of, frozen=()):
    return {
        name: 0.0 if name.partition(".")[0] in frozen else rate for name, rate in make_schedule(of).rates(1).items()
    }


class Threads:
    """Stands for the processes, and carries what they send."""

    def __init__(self, count):
        self.count, self.failed, self.mail, self.changed = count, False, {}, threading.Condition()

    def run(self, function):
        """[function(workers) in each thread]"""
        from_threads = [None] * self.count

        def call(number):
            try:
                from_threads[number] = function(ThreadWorkers(self, number))
            except BaseException as error:
                with self.changed:
                    self.failed = self.failed or error
                    self.changed.notify_all()

        threads = [threading.Thread(target=call, args=(number,), daemon=True) for number in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        if self.failed:
            raise self.failed
        assert not self.mail  # all that was sent was received
        return from_threads

    def put(self, key, value):
        with self.changed:
            self.mail[key] = value
            self.changed.notify_all()

    def take(self, key):
        with self.changed:
            self.changed.wait_for(lambda: key in self.mail or self.failed, PATIENCE)
            return self.mail.pop(key)


class ThreadWorkers(Workers):
    """wire: bytes that this one has sent."""

    def __init__(self, threads, number):
        self.threads, self.number, self.count = threads, number, threads.count
        self.device, self.ledger, self.wire, self.swaps = torch.device("cpu"), [], 0, 0
        self.others = [k for k in range(self.count) if k != number]
        self.pairs = SimpleNamespace(
            sum=lambda gradients: [torch.stack(self._all(gradient)).sum(0) for gradient in gradients]
        )

    def gather(self, value):
        return self._all(value)

    def swap(self, outgoing, incoming):
        self.swaps += 1
        number = self.swaps
        for k in self.others:
            if outgoing[k] is not None and outgoing[k].numel():
                assert outgoing[k].is_contiguous()
                self.wire += outgoing[k].numel() * outgoing[k].element_size()
                self.threads.put((number, self.number, k), outgoing[k].clone())

        def wait():
            for k in self.others:
                if incoming[k] is not None and incoming[k].numel():
                    tensor = self.threads.take((number, k, self.number))
                    assert (tensor.shape, tensor.dtype) == (incoming[k].shape, incoming[k].dtype)
                    incoming[k].copy_(tensor)

        return wait

    def _all(self, value):
        self.swaps += 1
        for k in self.others:
            self.threads.put((self.swaps, self.number, k), value)
        keys = [(self.swaps, k, self.number) for k in range(self.count)]
        return [value if k == self.number else self.threads.take(key) for k, key in enumerate(keys)]


def steps(workers, of, counts=COUNTS, frozen=(), dtype=torch.float64):
    """What a worker computes in some steps."""
    network = WorkerAlexNet(of, "cpu", CLASSES, "auto", workers).train().to(dtype)
    optimizer = PaperSGD(network)
    step = WorkerStep(network, optimizer, Pieces(workers.number, workers.count))
    numbers, ledgers, wires, losses = [], [], [], []
    for images, labels in batches(of, counts, dtype):
        optimizer.set_rates(rates_of(of, frozen))
        workers.wire, rows = 0, step.pieces.read(len(images))
        loss, right, *sums = step([images[rows]], labels[rows], losses.append, len(images))
        numbers.append((loss.item(), right.item()))
        ledgers.append([dataclasses.astuple(entry) for entry in step.ledger(len(images))])
        wires.append(workers.wire)
        parameters = [part for parts in network.layer_parameters().values() for part in parts if part.requires_grad]
        assert not optimizer.non_finite_in(sums) and sum(map(len, sums)) == len(parameters)
    return {
        "numbers": numbers,
        "weights": network.merged_state(),
        "velocities": network.merged(optimizer.velocities()),
        "ledgers": ledgers,
        "wires": wires,
        "step": network.step,
        "checked": len(losses),
    }


def by_hand(of, counts=COUNTS, frozen=()):
    """The same of the whole network in one piece: (numbers, weights, velocities)."""
    network = TwoTowerAlexNet(of, ["cpu"], CLASSES).train().double()
    weights = {name: part for name, (part,) in network.layer_parameters().items()}
    velocities = {name: torch.zeros_like(part) for name, part in weights.items()}
    rates, numbers = rates_of(of, frozen), []

    def update(name, gradient):
        decay = of.weight_decay if name.endswith("weight") else of.bias_weight_decay
        velocities[name] = of.momentum * velocities[name] - decay * rates[name] * weights[name] - rates[name] * gradient
        weights[name].data += velocities[name].detach()

    for images, labels in batches(of, counts):
        names = [name for name in weights if rates[name]]
        conv_gradients = {name: torch.zeros_like(weights[name]) for name in names if name.startswith("conv")}
        total = correct = 0
        for first in range(0, len(images), of.fc_batch_size):
            part = slice(first, first + of.fc_batch_size)
            logits = network(images[part], first_row=first, begins_step=first == 0)
            loss, share = F.cross_entropy(logits, labels[part]), len(logits) / len(images)
            gradients = dict(zip(names, torch.autograd.grad(loss, [weights[name] for name in names])))
            total, correct = total + loss.item() * share, correct + (logits.argmax(1) == labels[part]).sum().item()
            for name in names:
                if name in conv_gradients:
                    conv_gradients[name] += share * gradients[name]
                else:
                    update(name, gradients[name])
        for name, gradient in conv_gradients.items():
            update(name, gradient)
        numbers.append((total, correct))
    return numbers, weights, velocities
