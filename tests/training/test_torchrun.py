"""`torchrun -m alexnet_mp.train`, as a user types it: a process a tower, and pairs of towers."""

import os
import random
import signal
import time
from contextlib import suppress

import pytest
from tiny_run import assert_same_end, make_quick, newest, run, state
from torchrun_jobs import APART, ended, torchrun, until_step, workers

from alexnet_mp.runs import checkpoint_format, checkpoints, first_layers

pytestmark = [pytest.mark.slow, pytest.mark.process, pytest.mark.usefixtures("one_thread", "quick")]
EPOCHS = ["--epochs", "20"]
LONG = ["--epochs", "300", "--checkpoint-every", "5"]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        return run(data, tmp_path_factory.mktemp("whole") / "run", *EPOCHS, "--keep-every", 20)


def test_a_killed_rank_is_started_again_and_goes_on_bit_for_bit(data, tmp_path, without_bytes, whole):
    out = tmp_path / "run"
    flags = "--checkpoint-every", 10, "--keep-every", 20
    process = torchrun(data, out, *APART, *EPOCHS, "--resume", "auto", *flags, restarts=1)
    until_step(process, out, 15)
    os.kill(workers(process)[0], signal.SIGKILL)
    status, output, ours = ended(process)
    assert status == 0 and "resumed from" in output
    assert len(ours) <= 1 and all("another process of this job ended" in line for line in ours)  # or torchrun was first
    for directory in checkpoints.listing(out).values():
        checkpoint_format.verify(directory)
    assert_same_end(out, whole)
    kernels = [
        {step: first_layers.read(path).tobytes() for step, path in first_layers.listing(of).items()}
        for of in (out, whole)
    ]
    assert kernels[0] == kernels[1] and list(kernels[0]) == [0, 20, 40, 60]


def test_a_stop_is_saved_by_all_and_said_once(data, tmp_path, without_bytes, whole):
    out = tmp_path / "run"
    process = torchrun(data, out, *APART, *EPOCHS)
    until_step(process, out, 5)
    process.send_signal(signal.SIGTERM)
    status, output, ours = ended(process)
    assert status != 0 and ours == ["stopping after this step; once more to stop without saving"]
    assert f"stopped as asked after step {state(newest(out))['step']}" in output
    run(data, out, *EPOCHS, "--resume", "auto")
    assert_same_end(out, whole)


def test_wrong_use_is_said_once_and_not_tried_again(data, tmp_path):
    process = torchrun(data, tmp_path / "run", *APART, "--gpus", "0,1", restarts=3)
    status, output, ours = ended(process)
    assert status != 0 and len(ours) == 1 and "GPU 0 is not there" in ours[0] and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "job, flags", [(["--towers", "apart"], ["--overlap", "off"]), ([], ["--microbatch", 3])], ids=["apart", "two pairs"]
)
def test_a_rank_that_is_killed_at_any_moment_costs_no_checkpoint(job, flags, data, tmp_path, without_bytes):
    """Ten moments for each arrangement: while the processes start, meet, train, test or save."""
    flags = [*LONG, *flags]
    whole, draws, kills = run(data, tmp_path / "whole", *flags), random.Random(1), 0
    while kills < 10:
        out = tmp_path / f"run-{kills}"
        process = torchrun(data, out, *job, *flags, "--resume", "auto", restarts=20)
        while process.poll() is None and kills < 10:
            time.sleep(draws.uniform(0, 8))
            ranks = workers(process) if process.poll() is None else []
            if ranks:
                with suppress(ProcessLookupError):  # it ends by itself meanwhile
                    os.kill(draws.choice(ranks), signal.SIGKILL)
                    kills += 1
                for directory in checkpoints.listing(out).values() if out.exists() else ():
                    checkpoint_format.verify(directory)
        status, _, _ = ended(process)
        assert status == 0 and checkpoints.listing(out)
        assert_same_end(out, whole)
