"""The packages of pyproject.toml: what is missing, what is lost without it, how it comes where there is no network."""

import importlib
import importlib.util
import re
import subprocess
import sys
import tomllib
from importlib import metadata

from .results import Refused

# What is lost without them; without any other nothing starts.
LOST = {
    "faiss-cpu": "retrieval",
    "ipykernel": "the notebook's test",
    "nbclient": "the notebook's test",
    "onnx": "export to ONNX",
    "onnxruntime": "the test of what was exported to ONNX",
    "ruff": "the linter",
    "triton": "the Triton kernels, and the CUDA ones with them",
    "nvidia-dali-cuda130": "DALI",
    "protobuf": "Caffe's networks",
    "pytest-xdist": "several tests at a time",
    "scipy": "the claims' p values",
    "webdataset": "a test",
}
MODULES = {
    "pillow": "PIL",
    "faiss-cpu": "faiss",
    "nvidia-dali-cuda130": "nvidia.dali",
    "protobuf": "google.protobuf",
    "pytest-xdist": "xdist",
}


def importable(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def missing(root):
    """The names of packages, in pyproject.toml's order; setuptools last, if it is too old to build with."""
    importlib.invalidate_caches()
    file = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    project, build = file["project"], " ".join(file["build-system"]["requires"])
    extras = project["optional-dependencies"]
    names = [re.match(r"[\w.-]+", text)[0] for text in (*project["dependencies"], *extras["gpu"], *extras["test"])]
    missing_names = [name for name in names if not importable(MODULES.get(name, name.replace("-", "_")))]
    return missing_names + (["setuptools"] if _setuptools() < int(re.search(r"setuptools>=(\d+)", build)[1]) else [])


def _setuptools():
    """Its version's first number, 0 where it isn't there."""
    try:
        return int(metadata.version("setuptools").partition(".")[0])
    except metadata.PackageNotFoundError:
        return 0


def bring(root, wheels=None):
    """Install what is missing from a folder of wheels; one line on what is missing still, "" if nothing is.

    Raises Refused where nothing can start without it.
    """
    if wheels and not wheels.is_dir():
        raise Refused(f"--wheels {wheels}: there is no such folder")
    for name in missing(root) if wheels else ():  # one by one: what one of them lacks is no reason to lack the others
        process = subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--upgrade",  # of setuptools, which may be too old
                "--disable-pip-version-check",
                "--no-index",
                "--find-links",
                str(wheels),
                name,
            ],
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
        if process.returncode:
            print(f"{name} was not installed from {wheels}: {(process.stderr.strip().splitlines() or ['no word'])[-1]}")
    missing_names = missing(root)
    if not missing_names:
        return ""
    if essentials := [name for name in missing_names if name not in LOST]:
        raise Refused(f"not installed: {', '.join(essentials)}, and nothing starts without; {_how(essentials)}")
    return f"not installed: {', '.join(f'{name} ({LOST[name]})' for name in missing_names)}; {_how(missing_names)}"


def _how(names):
    """The way to bring them, and no more than them: what is carried to a machine without a network may have to be
    small."""
    names, version = " ".join(names), f"{sys.version_info[0]}.{sys.version_info[1]}"
    return (
        f"with a network: pip install {names}; without: pip download --only-binary=:all: --python-version {version} "
        f"-d WHEELS {names} where there is one, then --wheels WHEELS"
    )
