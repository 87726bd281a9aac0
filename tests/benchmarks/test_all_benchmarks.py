"""Every benchmark that this machine can run, once and small: that it computes, not how fast."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.process]


def test_every_benchmark_runs():
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "benchmarks", "--benchmark-disable", "-q", "--long", "-p", "no:cacheprovider"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0 and " passed" in process.stdout and "failed" not in process.stdout, process.stdout
