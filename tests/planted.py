"""Faults that tests plant, and small things to check: shared by test_device_checks.py and test_self_check.py."""

import faulthandler
import os
import time

import torch
from alexnet_mp.kernels import augmentation, dispatch, lrn_pool, relu_dropout_op, sgd

from alexnet_mp.network import exchange
from alexnet_mp.recipes.architectures import mini
from alexnet_mp.recipes.recipe import override
from alexnet_mp.system import isolated
from alexnet_mp.training import needed_checks

CPU, OTHER = torch.device("cpu"), torch.device("cpu:0")  # torch takes them for two devices
SMALL = [
    "stored_size=40",
    "crop_size=32",
    "crop_positions=8",
    "conv1.kernel=5",
    "conv1.stride=2",
    "conv2.kernel=3",
    "conv2.pad=1",
    "conv1.maps=8",
    "conv2.maps=12",
    "conv3.maps=8",
    "conv4.maps=8",
    "conv5.maps=8",
    "fc6.maps=24",
    "fc7.maps=24",
]


def asked(
    devices=(CPU, CPU), dtype=torch.float32, kernels="auto", pipeline="raw", storage="pixels", settings=(), overlap=None
):
    """What a run of a small network asks for."""
    recipe = override(mini(), [*SMALL, *settings])
    return needed_checks.Asked(recipe, 10, devices, dtype, kernels, pipeline, storage, overlap)


class Library:
    """The compiled operators, but for one that is replaced: by fault(the real one, *arguments)."""

    def __init__(self, name, fault):
        self.real, self.name, self.fault = dispatch.compiled(), name, fault

    def __getattr__(self, name):
        operator = getattr(self.real, name)
        return (lambda *arguments: self.fault(operator, *arguments)) if name == self.name else operator


def plant(monkeypatch, name, fault):
    """The compiled kernel `name` has this fault."""
    library = Library(name, fault)
    for module in (lrn_pool, sgd, augmentation, relu_dropout_op):
        monkeypatch.setattr(module, "compiled", lambda: library)


def one_element_of_the_gradient(real, dy, x, bias, argmax, dx, *others):
    """One in some thousands is off by a thousandth of the largest."""
    real(dy, x, bias, argmax, dx, *others)
    dx[1, 2, 3, 4] += 1e-3 * dx.abs().max()


def deliver_stale(monkeypatch, pass_):
    """Of every crossing of a pass ("forward" or "backward") the values of the one before arrive."""
    before, real = {}, exchange.copy

    def carry(self, tensor, source, target, of):
        self.exchange.enter(self.edge, tensor, source, target, of)
        values = before.get((source, of), torch.zeros_like(tensor))
        before[source, of] = tensor.clone()
        return real(values if of == pass_ else tensor, self.exchange.devices[target], False)

    monkeypatch.setattr(exchange.Crossing, "_carry", carry)


class Forked:
    """In place of `isolated._start`: a copy of this process, which has whatever was planted here, and torch at once."""

    def __init__(self, connection):
        self.returncode, self.pid = None, os.fork()
        if self.pid == 0:
            faulthandler.disable()  # pytest's would tell of each planted crash
            try:
                os.setsid()
                connection.recv()
                isolated.serve(connection)
            finally:
                os._exit(1)

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, seconds):
        end = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < end:
            time.sleep(0.001)
        return self.returncode
