"""A process of a stage: its surroundings, its log, its end, and the end of all that it has started."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from .results import shorten
from .stages import ROOT

GRACE = 10  # seconds for a process to end when it is asked
BEAT = 60  # seconds between two looks at a process
OWNER = "GPU_CHECK_PROCESS"  # a variable that all which a process starts inherits


def run(command: Sequence[str], log: Path, end: float, env: Mapping[str, str], beat: Callable[[], None]) -> int | None:
    """The status of a process; None if `end`, of `time.monotonic`, came first. Nothing of it, and of what it has
    started, is left.

    log: to which its output is added. env: more variables. beat() is called every `BEAT` seconds."""
    owner = {OWNER: f"{os.getpid()}-{time.monotonic_ns()}"}
    with open(log, "ab") as file:
        file.write(f"$ {' '.join(command)}\n".encode())
        file.flush()
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=ROOT,
                env=surroundings(env) | owner,
                process_group=0,
            )
        except OSError as error:
            file.write(f"{error}\n".encode())
            return 127
        try:
            while (seconds := end - time.monotonic()) > 0:
                try:
                    return process.wait(min(BEAT, seconds))
                except subprocess.TimeoutExpired:
                    beat()
            return None
        finally:
            _kill(process, owner)
            shorten(log)


def _kill(process, owner):
    """End a process and what it has started; asked first, so that a run saves and pytest writes its report."""
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is None or number == signal.SIGKILL:  # even a process that has ended may have left others
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        if number == signal.SIGKILL:
            for pid in _owned(owner):  # torchrun's processes have sessions of their own
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            pass  # after SIGKILL: in a driver that doesn't return; the device is lost, but what was found is packed


def _owned(owner: Mapping[str, str]) -> Iterator[int]:
    """The processes that have inherited a variable and its value."""
    ((name, value),) = owner.items()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended, or is another user's
            if f"{name}={value}".encode() in path.read_bytes().split(b"\0"):
                yield int(path.parent.name)


def surroundings(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables of a process."""
    path = os.pathsep.join(filter(None, (str(ROOT / "tools"), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": path} | (env or {})
