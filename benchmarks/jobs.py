"""Training steps of jobs of one or several processes, which take one when they are told to and wait otherwise."""

import multiprocessing
import os
import socket
from contextlib import ExitStack

import torch

from alexnet_mp import TwoTowerAlexNet, paper
from alexnet_mp.parallel.pairs import Pairs
from alexnet_mp.parallel.pieces import Pieces
from alexnet_mp.system.devices import make_current
from alexnet_mp.system.job import joined
from alexnet_mp.training.piecewise_step import PiecewiseStep
from alexnet_mp.training.step import TrainingStep
from alexnet_mp.training.update_rule import PaperSGD

RATE = 1e-6  # so that no step among hundreds diverges


class Job:
    """A step of a recipe's network by so many processes, as `interleaved.time_interleaved` takes it.

    devices: [those of each process]. threads: of each, on a CPU. apart: a process a tower. microbatch: None: a pair's
    images at once. recipe: None: the paper's. Close it to end the processes."""

    calls, sets = 1, 1

    def __init__(self, devices, threads, batch, apart=False, microbatch=None, recipe=None):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        context, self.ends, self.processes = multiprocessing.get_context("spawn"), [], []
        for rank, own_devices in enumerate(devices):
            env = {
                "RANK": str(rank),
                "WORLD_SIZE": str(len(devices)),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": str(threads),
            }
            parent_end, child_end = context.Pipe()
            process = context.Process(
                target=_serve, args=(child_end, env, own_devices, threads, batch, apart, microbatch, recipe or paper())
            )
            process.start()
            child_end.close()
            self.ends.append(parent_end)
            self.processes.append(process)
        self.losses = [end.recv() for end in self.ends]  # of a step that warms up; EOFError where a process failed
        self.runs = {"step": self.step}

    def step(self):
        for end in self.ends:
            end.send(True)
        for end in self.ends:
            end.recv()

    def close(self):
        for end in self.ends:
            end.close()
        for process in self.processes:
            process.join()


def _serve(pipe, env, devices, threads, batch, apart, microbatch, recipe):
    os.environ.update(env)
    torch.set_num_threads(threads)
    with ExitStack() as stack:
        ranks = stack.enter_context(joined(apart))
        take = _step_of(ranks, [torch.device(device) for device in devices], batch, microbatch, recipe)
        pipe.send(take())
        while True:
            try:
                pipe.recv()
            except EOFError:
                return
            pipe.send(take())


def _step_of(ranks, devices, batch, microbatch, recipe):
    network = TwoTowerAlexNet(recipe, devices, ranks=ranks if ranks.apart else None)
    make_current(devices)
    optimizer = PaperSGD(network)
    optimizer.set_rates(dict.fromkeys(network.layer_parameters(), RATE))
    pieces = Pieces(ranks.pair, ranks.pairs, microbatch)
    images = 60 * torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))[pieces.read(batch)]
    replicas = {device: images.to(device, memory_format=torch.channels_last) for device in dict.fromkeys(devices)}
    labels = (torch.arange(batch) % 1000)[pieces.read(batch)].to(devices[0])
    arguments = [replicas[device] for device in devices], labels, lambda loss: None
    if microbatch or ranks.pairs > 1:
        arguments += (batch,)
        step = PiecewiseStep(network, optimizer, Pairs(ranks, network.exchange.devices), pieces)
    else:
        step = TrainingStep(network, optimizer)

    def take():
        loss, *_ = step(*arguments)
        for device in replicas:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        return loss.item()

    return take
