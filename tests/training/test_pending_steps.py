"""When the numbers of steps are read: all of them, in order, with waits as seldom as may be, and with the time of
each."""

import numpy as np
import pytest
import torch
from fake_device import LateEvents

from alexnet_mp.training import pending_steps
from alexnet_mp.training.pending_steps import READ_EVERY, PendingSteps

CPU = torch.device("cpu")


def take(pending, step):
    pending.add(step, np.arange(step), 100 * step, [torch.tensor(float(step)), torch.tensor(step)])


def steps_read(pending, wait=False):
    return [step.step for step, _ in pending.read(wait)]


def test_on_a_cpu_a_step_is_read_when_it_was_taken():
    pending = PendingSteps([CPU, CPU])
    for step in range(1, 4):
        take(pending, step)
        ((record, seconds),) = pending.read(wait=False)
        assert (record.step, record.exchanged, [tensor.item() for tensor in record.numbers]) == (
            step,
            100 * step,
            [step, step],
        )
        assert len(record.images) == step and seconds > 0


@pytest.mark.parametrize("behind", [1, 3, READ_EVERY - 1])
def test_what_is_there_is_read_without_a_wait(behind, monkeypatch):
    monkeypatch.setattr(pending_steps, "mark", device := LateEvents(behind))
    pending, numbers = PendingSteps([CPU]), []
    for step in range(1, 41):
        take(pending, step)
        numbers += steps_read(pending)
        assert numbers == list(range(1, step - behind + 1))
    assert device.waits == []
    assert steps_read(pending, wait=True) == list(range(41 - behind, 41)) and steps_read(pending, wait=True) == []


def test_the_host_waits_for_the_older_half_of_too_many_steps(monkeypatch):
    monkeypatch.setattr(pending_steps, "mark", LateEvents(10**9))
    pending, half = PendingSteps([CPU]), READ_EVERY // 2
    for step in range(1, 4 * READ_EVERY):
        take(pending, step)
        numbers = steps_read(pending)
        start = step - READ_EVERY
        assert numbers == (list(range(start + 1, start + half + 1)) if start >= 0 and start % half == 0 else [])
        assert len(pending.unread) < READ_EVERY


def test_numbers_that_the_next_step_overwrites_were_copied(monkeypatch):
    monkeypatch.setattr(pending_steps, "mark", LateEvents(2))
    pending, loss = PendingSteps([CPU]), torch.tensor(0.0)
    for step in range(1, 5):
        pending.add(step, np.arange(1), 0, [loss.fill_(step)])
    assert [step.numbers[0].item() for step, _ in pending.read(wait=True)] == [1, 2, 3, 4]


def test_each_step_has_its_own_time_however_many_are_read_at_once(monkeypatch):
    clock = iter([10.0, 11.0, 13.0, 20.0, 20.5])
    monkeypatch.setattr(pending_steps.time, "perf_counter", lambda: next(clock))
    pending = PendingSteps([CPU])  # begins at 10
    take(pending, 1)
    take(pending, 2)
    assert [seconds for _, seconds in pending.read(wait=True)] == [1.0, 2.0]
    pending.start_clock()  # after a validation that ended at 20
    take(pending, 3)
    assert [seconds for _, seconds in pending.read(wait=True)] == [0.5]


def test_the_time_is_a_gpus_where_there_is_one():
    devices = [torch.device("cpu"), torch.device("cuda:0")]
    marks = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pending_steps, "mark", lambda device: marks.append(device))
        pending = PendingSteps(devices)
        take(pending, 1)
    assert marks == [devices[1], devices[1], devices[0]]
