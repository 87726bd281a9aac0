"""Which code and which packages computed: what run directories, records and reports say of it."""

import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = ("alexnet_mp", "torch", "numpy", "pillow", "triton", "nvidia-dali-cuda130", "nvidia-dali-cuda120")


def package_version(package: str) -> str | None:
    """The installed version, None where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def source_commit() -> str | None:
    """The commit of the source tree this runs from, "+changes" if files differ from it; None outside a git checkout."""

    def git(*words):
        return subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True, encoding="utf-8"
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != Path(__file__).resolve().parents[2]:
            return None  # installed inside somebody else's repository
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
