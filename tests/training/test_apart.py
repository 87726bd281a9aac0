"""Whole runs with a process a tower: they leave what one process leaves, bit for bit; and how they stop."""

import signal

import apart
import pytest
from inner_cases import every
from tiny_run import (
    DATED,
    PLATEAU,
    SOURCE2012,
    add_to_step,
    assert_same_end,
    make_quick,
    newest,
    run,
    signalled_in_test,
    state,
)

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("one_thread", "quick")]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        return run(data, tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.parametrize(
    "flags",
    [SOURCE2012, *(pytest.param(flags, marks=pytest.mark.slow) for flags in ([], DATED, PLATEAU))],
    ids=["source2012", "paper's", "dates", "plateau"],
)
@every("overlap", ["off", "on"])
def test_a_run_is_that_of_one_process(flags, overlap, data, tmp_path, without_bytes):
    """Metrics, checkpoint, rates, tests: with dropout, a short last batch in each epoch, and either way of overlap."""
    out, output = apart.run_apart(data, tmp_path / "apart", "--overlap", overlap, *flags)
    assert_same_end(out, run(data, tmp_path / "one", "--overlap", overlap, *flags))
    assert "in a process each" in output and "cross between the processes" in output


@every("towers", [("together", "apart"), ("apart", "together"), ("apart", "apart")])
def test_a_run_goes_on_in_either_arrangement(towers, data, tmp_path, without_bytes, whole):
    """A checkpoint does not know how many processes made it. All of it is read by tower a's, and told to the other."""
    for arrangement, more in zip(towers, (["--steps", 4], ["--resume", "auto"]), strict=True):
        if arrangement == "apart":
            apart.run_apart(data, tmp_path / "run", "--overlap", "off", *more)
        else:
            run(data, tmp_path / "run", *more)
    assert_same_end(tmp_path / "run", whole)


def test_the_way_of_overlap_is_said(data, tmp_path, whole):
    """The one that a run keeps, and another."""
    _, output = apart.run_apart(data, tmp_path / "kept", "--resume", newest(whole))
    assert "overlap stays off, as the run had it" in output
    _, output = apart.run_apart(data, tmp_path / "run", "--resume", newest(whole), "--overlap", "on")
    assert "something else computes: overlap: off -> on" in output


def test_it_begins_with_the_weights_of_another_run(data, tmp_path, without_bytes, whole):
    out, output = apart.run_apart(data, tmp_path / "apart", "--init", whole, "--steps", 4, "--overlap", "off")
    assert "begins with conv1, conv2, fc6 of" in output
    assert_same_end(out, run(data, tmp_path / "one", "--init", whole, "--steps", 4))


@every("rank", [0, 1])
def test_a_signal_to_one_is_a_signal_to_all(rank, data, tmp_path, without_bytes, whole):
    """The step is finished, all of it is saved, and one line says so."""
    stop = apart.in_rank(rank, apart.at_step(5, lambda trainer: signal.raise_signal(signal.SIGTERM)))
    processes = apart.processes_of(data, tmp_path / "run", "--overlap", "off", before=stop)
    assert apart.end(processes) == [0, 0]
    assert apart.said(processes) == ["stopping after this step; once more to stop without saving"]
    assert "stopped as asked after step 5" in processes[0].out and state(newest(tmp_path / "run"))["step"] == 5
    apart.run_apart(data, tmp_path / "run", "--overlap", "off", "--resume", "auto")
    assert_same_end(tmp_path / "run", whole)


@pytest.mark.slow
def test_a_signal_in_a_validation_drops_it_in_all(data, tmp_path, without_bytes, whole):
    stop = apart.in_rank(1, lambda patch: signalled_in_test(patch, 2))
    processes = apart.processes_of(data, tmp_path / "run", "--overlap", "off", before=stop)
    assert apart.end(processes) == [0, 0] and len(apart.said(processes)) == 1
    assert not state(newest(tmp_path / "run"))["validated"]
    apart.run_apart(data, tmp_path / "run", "--overlap", "off", "--resume", "auto")
    assert_same_end(tmp_path / "run", whole)


def test_a_second_signal_ends_all_at_once(data, tmp_path):
    def twice(trainer):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)

    processes = apart.processes_of(data, tmp_path / "run", before=lambda: add_to_step(pytest.MonkeyPatch(), 5, twice))
    assert apart.end(processes) == [130, 130] and apart.said(processes) == ["stopped"]
