"""Progress without a terminal: a line every ten seconds, which says how long is left."""

import pytest

from alexnet_mp.system import terminal


@pytest.fixture
def clock(monkeypatch):
    """A clock of which every look is 11 seconds after the one before."""
    seconds = iter(range(0, 1100, 11))
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(seconds))


def test_a_line_says_how_long_is_left(clock, capsys):
    with terminal.progress("test", 4, "batches") as advance:
        advance(1, "16 images")
        advance(1)
    assert capsys.readouterr().out == (
        "test: 1 of 4 batches, 0.1/s, 33 s left, 16 images\ntest: 2 of 4 batches, 0.1/s, 22 s left\n"
    )


def test_nothing_done_yet_has_no_time_left(clock, capsys):
    """A process that has no batch of a round, of a test in several processes, says so before any has come."""
    with terminal.progress("test", 4, "batches", done=2) as advance:
        advance(0)
        advance(1)
    assert capsys.readouterr().out == "test: 3 of 4 batches, 0.0/s, 22 s left\n"
