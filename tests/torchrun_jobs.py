"""Jobs that torchrun starts: what they say, which processes they have, and how they end."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tiny_run import TINY, lines

ROOT = Path(__file__).parents[1]
DEADLINE = 150  # seconds; none takes thirty where a processor is free
APART = ("--towers", "apart", "--overlap", "off")
HERE = ("--nproc-per-node", "2", "--rdzv-endpoint", "localhost:0")


def torchrun(data, out, *more, nodes=HERE, program=("-m", "alexnet_mp.train"), within=(), restarts=0, **environment):
    """Its process, which has a group of its own. It gives each process one thread, where nothing is set.

    nodes: what torchrun is told of machines and processes. within: a command that starts it.
    """
    return subprocess.Popen(
        [
            *(*within, sys.executable, "-m", "torch.distributed.run", "--rdzv-backend", "c10d", *nodes),
            *("--max-restarts", str(restarts), *program),
            *(*TINY, "--data", str(data), "--out", str(out), *map(str, more)),
        ],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | environment,
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
    pids = {}
    with suppress(FileNotFoundError, ProcessLookupError):  # one that ends meanwhile
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            pids |= {entry: int(pid) for entry in environment if entry.startswith(b"RANK=")}
    return [pids[name] for name in sorted(pids)]


def until_step(process, out, step):
    deadline = time.monotonic() + DEADLINE
    while not (out / "metrics.jsonl").exists() or lines(out)[-1:] == [] or lines(out)[-1]["step"] < step:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
