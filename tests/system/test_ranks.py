"""Who speaks for a job that ends, where the store that all meet in answers, fails, or says nothing."""

import threading

import pytest

from alexnet_mp.system import ranks
from alexnet_mp.system.ranks import Lost, Ranks


class Store:
    """What `torch.distributed`'s is asked. answer: called for every question."""

    def __init__(self, answer):
        self.add = self.check = lambda *_: answer()
        self.set = lambda *_: None


def fails():
    raise RuntimeError("Connection reset by peer")


def test_the_first_to_end_speaks():
    assert Ranks(1, 2, store=Store(lambda: 1)).speaks()
    assert not Ranks(1, 2, store=Store(lambda: 2)).speaks()
    assert Ranks().speaks()


def test_who_can_ask_nobody_speaks(monkeypatch):
    """A link was cut: of itself a client of the store waits for its answer without end."""
    monkeypatch.setattr(ranks, "ANSWERED", 0.05)
    silent = threading.Event()
    assert Ranks(1, 2, store=Store(fails)).speaks()
    assert Ranks(1, 2, store=Store(silent.wait)).speaks()
    with pytest.raises(Lost, match="the processes' store does not answer"):
        Ranks(1, 2, store=Store(silent.wait)).meet()
    silent.set()
