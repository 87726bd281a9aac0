"""Whole runs of several pairs of towers: with a microbatch they leave what one leaves, bit for bit; how they go on,
stop and fail."""

import importlib
import json
import os
import signal

import apart
import pytest
from inner_cases import every
from tiny_run import DATED, PLATEAU, SOURCE2012, add_to_step, assert_same_end, lines, make_quick, newest, run, state

from alexnet_mp.runs.directory import read_run

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("one_thread", "quick")]
# Three steps an epoch, of 9, 9 and 6 images: 5, 5 and 3 pieces. The validation's 6 images are one batch.
PIECES = ["--microbatch", 2]
# Five steps an epoch, the last of 4 images; the validation's are a batch of 5 and one of 1.
SMALL = ["--batch-size", 5, "--microbatch", 1, "--epochs", 2]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        return run(data, tmp_path_factory.mktemp("whole") / "run", *PIECES)


@every(
    "flags, job",
    [
        (SMALL + DATED, dict(count=4, towers="together")),
        (PIECES + PLATEAU + SOURCE2012, dict(count=2, towers="together")),
        (SMALL + ["--overlap", "off"], dict(count=4, towers="apart")),
    ],
)
def test_a_run_is_that_of_one_process(flags, job, data, tmp_path, without_bytes):
    """Metrics, checkpoint, rates, tests: with dropout, short minibatches, and tests that are dealt."""
    out, output = apart.run_apart(data, tmp_path / "many", *flags, **job)
    assert_same_end(out, run(data, tmp_path / "one", *flags))
    if job["towers"] == "together":
        assert f"devices: {job['count']} pairs of towers, all towers on cpu, a process a pair" in output
        assert "graphs: off (a minibatch in pieces)" in output
        # 1,475 parameters of four bytes
        assert f"; {job['count']} pairs of towers add up their gradients, 0.01 MB each\n" in output
        settings = json.loads((out / "run.json").read_text())
        microbatch = flags[flags.index("--microbatch") + 1]
        assert (settings["pairs"], settings["microbatch"]) == (job["count"], microbatch)


def test_a_run_goes_on_with_another_number_of_pairs(data, tmp_path, without_bytes, whole):
    """Microbatch and overlap are the run's: nobody says them again, and no one says that the bits are others."""
    out = tmp_path / "run"
    apart.run_apart(data, out, *PIECES, "--steps", 3, count=4, towers="together")
    _, output = apart.run_apart(data, out, "--resume", "auto", "--steps", 5, count=2, towers="together")
    assert "no longer bit for bit" not in output
    apart.run_apart(data, out, "--resume", "auto", "--steps", 7, count=4)
    run(data, out, "--resume", "auto")
    assert state(newest(out))["made_by"]["microbatch"] == 2
    assert_same_end(out, whole)


def test_what_is_no_longer_exact_is_said(data, tmp_path, whole):
    for flags, more, count in (
        (["--microbatch", 3], "microbatch: 2 -> 3", 1),
        (["--microbatch", 0], "microbatch: 2 -> None", 1),
        (["--microbatch", 0], "microbatch: 2 -> None, pairs: 1 -> 2", 2),
    ):
        out = tmp_path / str(len(os.listdir(tmp_path)))
        _, output = apart.run_apart(data, out, "--resume", newest(whole), *flags, count=count, towers="together")
        assert f"something else computes: {more}" in output


def test_without_a_microbatch_it_is_one_run_within_rounding(data, tmp_path):
    out, output = apart.run_apart(data, tmp_path / "many", count=2, towers="together")
    assert "0.01 MB each; without --microbatch the last bits depend on the number of pairs\n" in output
    one = run(data, tmp_path / "one")
    for mine, expected in zip(lines(out), lines(one), strict=True):
        assert mine.keys() == expected.keys() and mine["kind"] == expected["kind"]
        for name in ("loss", "top1_error"):
            if name in expected:
                assert mine[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-4), (mine, expected)


def test_a_signal_to_one_is_a_signal_to_all(data, tmp_path, without_bytes, whole):
    stop = apart.in_rank(3, apart.at_step(5, lambda trainer: signal.raise_signal(signal.SIGTERM)))
    processes = apart.processes_of(data, tmp_path / "run", *PIECES, before=stop, count=4, towers="together")
    assert apart.end(processes) == [0] * 4
    assert apart.said(processes) == ["stopping after this step; once more to stop without saving"]
    apart.run_apart(data, tmp_path / "run", "--resume", "auto", count=2, towers="together")
    assert_same_end(tmp_path / "run", whole)


@pytest.mark.slow
def test_a_signal_before_the_first_step_is_said_once(data, tmp_path):
    """To all, as torchrun sends it: while they look for each other, read, begin the run directory, or have begun it."""
    message = "stopping after this step; once more to stop without saving"
    for number, (place, words) in enumerate(
        (
            ("torch.distributed.rendezvous", None),
            ("alexnet_mp.training.run.open_data", None),
            ("alexnet_mp.training.run.RunElsewhere", message),
            ("alexnet_mp.training.trainer.PaperSGD", message),
        )
    ):

        def stop(place=place):
            target, _, name = place.rpartition(".")
            function = getattr(importlib.import_module(target), name)

            def signalled(*what, **how):
                os.kill(os.getpid(), signal.SIGTERM)
                return function(*what, **how)

            pytest.MonkeyPatch().setattr(place, signalled)

        processes = apart.processes_of(data, tmp_path / str(number), before=stop, count=2, towers="together")
        statuses = apart.end(processes)
        out = "".join(process.out for process in processes)
        if words is None:
            assert apart.said(processes) == [] and out.count("stopped before the first step") == 1, (place, out)
            assert sorted(statuses) in ([0, 130], [0, 2])
        else:
            assert apart.said(processes) == [words] and out.count("stopped as asked after step 0") == 1, (place, out)
            assert statuses == [0, 0]


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_costs_no_checkpoint(data, tmp_path, without_bytes, whole):
    kill = apart.in_rank(2, apart.at_step(5, lambda trainer: os.kill(os.getpid(), signal.SIGKILL)))
    every_step = ["--checkpoint-every", 1]
    processes = apart.processes_of(
        data, tmp_path / "run", *PIECES, *every_step, before=kill, count=4, towers="together"
    )
    statuses = apart.end(processes, timeout=60)
    assert statuses[2] == -signal.SIGKILL and all(status == 2 for rank, status in enumerate(statuses) if rank != 2)
    (line,) = apart.said(processes)
    assert "another process of this job ended" in line and "--resume auto" in line
    apart.run_apart(data, tmp_path / "run", *every_step, "--resume", "auto", count=2, towers="together")
    assert read_run(tmp_path / "run")["resumed"]  # else it has begun anew, and ends with the same bits
    assert_same_end(tmp_path / "run", whole)


@pytest.mark.slow
def test_what_is_not_finite_in_one_pair_ends_all(data, tmp_path):
    """One image of the third pair's: the sum is not finite anywhere."""

    def spoil(patch):
        add_to_step(patch, 4, lambda trainer: trainer.network.towers[0].conv1.weight.data.fill_(float("nan")))

    line = apart.ends(data, tmp_path / "run", *PIECES, before=apart.in_rank(2, spoil), count=4, towers="together")
    assert "the loss is nan at step 4" in line and "non_finite.json" in line


def test_wrong_use_is_one_line_of_all(data, tmp_path):
    for flags, job, words in (
        (
            ["--microbatch", 9],
            dict(count=2),
            "--microbatch 9: a minibatch of 9 is 1 piece(s), and there are 2 pairs of",
        ),
        (
            ["--batch-size", 1],
            dict(count=2),
            "a minibatch of 1 is 1 piece(s), and there are 2 pairs of towers; 1 at most",
        ),
        (["--microbatch", -1], dict(count=2), "--microbatch -1: a number of images below 2^53, or 0 for none"),
        (["--microbatch", 2**53], dict(count=2), "--microbatch 9007199254740992: a number of images below 2^53"),
        (
            ["--gpus", "cpu,cpu"],
            dict(count=2),
            "--gpus cpu,cpu: the 2 process(es) on this machine have 2 tower(s) each",
        ),
        (["--gpus", "0,1,2,3"], dict(count=2), "--gpus 0,1,2,3: GPU 0 is not there"),
        (["--graphs", "on"], dict(count=2), "--graphs on: not yet with a minibatch in pieces"),
        (["--profile"], dict(count=2), "--profile: not yet of a minibatch in pieces"),
    ):
        job = {"towers": "together"} | job
        line = apart.ends(data, tmp_path / "run", *flags, before=lambda: None, **job)
        assert words in line, line
        assert not (tmp_path / "run").exists()
