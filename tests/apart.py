"""Two processes with a tower each, on gloo: what they return, and what they sent."""

import os
import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
TIMEOUT = 120  # seconds; none of them takes ten


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def environments(count=2, threads=1):
    """The environment of each process, as torchrun would set it."""
    port, path = free_port(), os.pathsep.join([str(HERE), str(HERE.parent)])
    return [
        {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": str(threads),
            "PYTHONPATH": path,
        }
        for rank in range(count)
    ]


def begin(commands, **more):
    """Start a command a rank."""
    return [
        subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)
        for command, environment in zip(commands, environments(len(commands)), strict=True)
    ]


def end(processes, timeout=TIMEOUT):
    """[(status, stdout, stderr)] of processes, once all have ended. None of them outlives this."""
    deadline, found = time.monotonic() + timeout, []
    try:
        for process in processes:
            out, err = process.communicate(timeout=max(deadline - time.monotonic(), 0.1))
            found.append((process.returncode, out, err))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return found


def in_both(module, function, *arguments):
    """[what `module.function(ranks, *arguments)` returns in the process of tower a, in that of tower b], of a job of
    two."""
    call = pickle.dumps((module, function, arguments)).hex()
    processes = begin([[sys.executable, str(HERE / "apart.py"), call]] * 2)
    found = end(processes)
    for status, _, err in found:
        assert status == 0, err
    return [pickle.loads(bytes.fromhex(out.splitlines()[-1])) for _, out, _ in found]


if __name__ == "__main__":
    import importlib

    import torch

    from alexnet_mp.system.ranks import joined

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    module, function, arguments = pickle.loads(bytes.fromhex(sys.argv[1]))
    with joined(apart=True) as ranks:
        result = getattr(importlib.import_module(module), function)(ranks, *arguments)
    print(pickle.dumps(result).hex())
