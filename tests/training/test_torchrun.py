"""`torchrun --nproc-per-node 2 -m alexnet_mp.train --towers apart`, as a user types it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_run import TINY, assert_same_end, lines, make_quick, newest, run, state

from alexnet_mp.runs import checkpoint_format, checkpoints

pytestmark = [pytest.mark.slow, pytest.mark.process, pytest.mark.usefixtures("one_thread", "quick")]
EPOCHS = ["--epochs", "20"]
DEADLINE = 150  # seconds; none takes thirty where a processor is free


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        return run(data, tmp_path_factory.mktemp("whole") / "run", *EPOCHS)


def torchrun(data, out, *more, restarts=0):
    """Its process, which has a group of its own. It gives each process one thread, where nothing is set."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--max-restarts", str(restarts)),
            *("-m", "alexnet_mp.train", "--towers", "apart", "--overlap", "off"),
            *(*TINY, "--data", str(data), "--out", str(out), *map(str, more)),
        ],
        cwd=Path(__file__).parents[2],
        env={name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(process):
    """(status, standard output, lines of ours on standard error); what else was said is there if a test fails."""
    try:
        out, err = process.communicate(timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        for worker in workers(process):
            os.kill(worker, signal.SIGKILL)
        process.kill()
        raise
    print(err)
    return process.returncode, out, [line for line in err.splitlines() if line.startswith(("error: ", "stopping"))]


def workers(process):
    """The ids of its processes, in the order of their ranks."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranked = {}
    for pid in found:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        ranked |= {entry: int(pid) for entry in environment if entry.startswith(b"RANK=")}
    return [ranked[name] for name in sorted(ranked)]


def until_step(process, out, step):
    deadline = time.monotonic() + DEADLINE
    while not (out / "metrics.jsonl").exists() or lines(out)[-1:] == [] or lines(out)[-1]["step"] < step:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_rank_is_started_again_and_goes_on_bit_for_bit(data, tmp_path, without_bytes, whole):
    out = tmp_path / "run"
    process = torchrun(data, out, *EPOCHS, "--resume", "auto", "--checkpoint-every", 10, restarts=1)
    until_step(process, out, 15)
    os.kill(workers(process)[0], signal.SIGKILL)
    status, said, ours = ended(process)
    assert status == 0 and "resumed from" in said
    assert len(ours) <= 1 and all("another process of this job ended" in line for line in ours)  # or torchrun was first
    for directory in checkpoints.listing(out).values():
        checkpoint_format.verify(directory)
    assert_same_end(out, whole)


def test_a_stop_is_saved_by_all_and_said_once(data, tmp_path, without_bytes, whole):
    out = tmp_path / "run"
    process = torchrun(data, out, *EPOCHS)
    until_step(process, out, 5)
    process.send_signal(signal.SIGTERM)
    status, said, ours = ended(process)
    assert status != 0 and ours == ["stopping after this step; once more to stop without saving"]
    assert f"stopped as asked after step {state(newest(out))['step']}" in said
    run(data, out, *EPOCHS, "--resume", "auto")
    assert_same_end(out, whole)


def test_wrong_use_is_said_once_and_not_tried_again(data, tmp_path):
    process = torchrun(data, tmp_path / "run", "--gpus", "0,1", restarts=3)
    status, said, ours = ended(process)
    assert status != 0 and len(ours) == 1 and "GPU 0 is not there" in ours[0] and not (tmp_path / "run").exists()
