"""Toy stages for tools/gpu_check, rehearsed in a process of their own; and what they leave."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A stage notes in a file that no archive holds that it has run; torch isn't asked for devices.
TOYS = """
import os, signal, subprocess, sys, time
from pathlib import Path
from gpu_check import check, processes
from gpu_check.stages import Stage

HERE = Path(__file__).parent
check.environment = lambda: {"devices": []}
processes.GRACE = 0.5

def toy(name, body="", seconds=1, limit=60, **more):
    begins = f"import os, signal, subprocess, sys, time; open({str(HERE / 'runs')!r}, 'a').write({name + ' '!r}); "
    return Stage(name, "a toy", ("false",), seconds, limit, rehearsal=("{python}", "-c", begins + body), **more)
"""


@pytest.fixture
def toys(tmp_path):
    """A function: stages as Python text, lines before them -> a function that rehearses them; `.start` doesn't wait."""

    def write(stages, before=""):
        script = tmp_path / "toys.py"
        script.write_text(f"{TOYS}{before}\nsys.exit(check.main(sys.argv[1:], [{stages}]))\n")

        def start(*arguments, work="work", to="results"):
            command = [sys.executable, script, tmp_path / to, "--rehearse", "--work", tmp_path / work, *arguments]
            return subprocess.Popen(
                command,
                env=os.environ | {"PYTHONPATH": str(ROOT / "tools")},
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )

        def rehearse(*arguments, **where):
            process = start(*arguments, **where)
            output, _ = process.communicate(timeout=60)
            return process.returncode, output

        rehearse.start = start
        return rehearse

    return write


def states(folder):
    stages = json.loads((folder / "check.json").read_text())["stages"]
    return {name: entry["state"] for name, entry in stages.items()}


def packed(folder):
    with tarfile.open(folder / "gpu-check.tar.gz") as tar:
        return {member.name: tar.extractfile(member).read().decode() for member in tar}


def runs(tmp_path, after=()):
    """The stages that have run, in order, but for the first ones."""
    return (tmp_path / "runs").read_text().split()[len(after) :]


def alive(number):
    """Whether a process runs; one that has ended doesn't, though nobody may have waited for it yet."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
