"""tools/build_wheel.sh, and its wheel in an environment that has nothing else of this project."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ["train", "--gpus", "cpu", "--recipe", "mini", "--steps", "2", "--batch-size", "16", "--workers", "0"]


def done(*command, **more):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    process = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment, **more)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler (c++)")
def test_a_wheel_is_built_in_isolation_installed_into_nothing_and_trains(tmp_path):
    """It needs the network, and three gigabytes of disk."""
    done(ROOT / "tools/build_wheel.sh", tmp_path / "dist")
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    (source,) = (tmp_path / "dist").glob("*.tar.gz")
    assert re.fullmatch(r"alexnet_mp-[\d.]+-py3-none-manylinux_2_\d+_x86_64(\.\w+)*", wheel.stem), wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if ".so" in name] == ["alexnet_mp/kernels/compiled.so"]  # torch brings its own
    assert "alexnet_mp/reporting/page.html" in names

    pin = re.search(r"^torch==.*$", (ROOT / "requirements.txt").read_text(), re.M)[0]
    done(sys.executable, "-m", "venv", tmp_path / "empty")
    bin_ = tmp_path / "empty/bin"
    done(bin_ / "pip", "install", "--quiet", pin, wheel)
    code = "from alexnet_mp.kernels import dispatch; print(dispatch.built(), dispatch.LIBRARY)"
    output = done(bin_ / "python", "-c", code, cwd=tmp_path)
    assert "'cpu'" in output and str(tmp_path / "empty") in output
    output = done(bin_ / "alexnet-mp", *TRAIN, "--out", tmp_path / "run", cwd=tmp_path)
    assert "kernels cpu" in output and "done after step 2" in output and "WARNING: no compiled" not in output
    assert done(bin_ / "alexnet-mp", "--version").startswith("alexnet_mp ")

    # Without a compiler, from source: it is said when it runs, once.
    done(bin_ / "pip", "uninstall", "--quiet", "--yes", "alexnet_mp")
    done(bin_ / "pip", "install", "--quiet", "setuptools")  # not another torch for an isolated build
    build = "--no-build-isolation", "--no-deps"
    done("env", "CXX=no-such-compiler", bin_ / "pip", "install", "--quiet", *build, source)
    output = done(bin_ / "alexnet-mp", *TRAIN, "--out", tmp_path / "slow", cwd=tmp_path)
    assert output.count("WARNING: no compiled kernels") == 1 and "kernels reference" in output
