"""What a machine and its Python have, as far as it can be told without torch; and what of it may be shown to others."""

import ctypes
import functools
import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Collection
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

SECONDS = 20  # for a program that is asked
IMPORTING = 120  # and for an import
NVIDIA, DISPLAY = "0x10de", "0x03"  # on the PCI bus: the vendor, and the first digits of the class


def driver() -> str | None:
    """The version of NVIDIA's driver, "580.65.06"; None where there is none."""
    for path, pattern in (
        ("/sys/module/nvidia/version", r"([\d.]+)"),
        ("/proc/driver/nvidia/version", r"Module\s+([\d.]+)"),
    ):
        with suppress(OSError, ValueError):
            if match := re.search(pattern, Path(path).read_text(encoding="utf-8")):
                return match[1]
    match = re.match(r"\s*([\d.]+)", asked("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or "")
    return match[1] if match else None  # in WSL there are no such files


def cuda_of_driver() -> tuple[int, int] | None:
    """The newest CUDA that the driver can run, (13, 0); None where there is none."""
    version = ctypes.c_int()
    try:
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) == 0 and version.value:
            return version.value // 1000, version.value % 1000 // 10
    except (OSError, AttributeError):
        pass
    return None


def nvcc() -> str | None:
    """The release of the CUDA compiler that torch would build with, "13.0"; None where there is none."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    for program in (*(os.path.join(home, "bin", "nvcc") for home in homes), "nvcc", "/usr/local/cuda/bin/nvcc"):
        if match := re.search(r"release ([\d.]+)", asked(program, "--version") or ""):
            return match[1]
    return None


def architectures(library: str | Path) -> list[str] | None:
    """What GPU code a library holds: ["sm_80", "sm_90", "PTX of sm_90"]; None where there is no cuobjdump to tell."""
    programs, triton = ["cuobjdump"], None
    with suppress(Exception):  # of a package that is broken
        triton = find_spec("triton")
    if triton and triton.origin:
        programs.append(os.path.join(os.path.dirname(triton.origin), "backends", "nvidia", "bin", "cuobjdump"))
    for program in programs:
        code, ptx = (asked(program, flag, str(library)) for flag in ("--list-elf", "--list-ptx"))
        if code is not None:
            names, ptx_names = (sorted(set(re.findall(r"\.(sm_\w+)\.", listing or ""))) for listing in (code, ptx))
            return names + [f"PTX of {name}" for name in ptx_names]
    return None


def gpu_on_the_bus() -> bool:
    """Whether there is an NVIDIA GPU, with or without a driver."""
    for device in Path("/sys/bus/pci/devices").glob("*"):
        with suppress(OSError):
            if (device / "vendor").read_text(encoding="utf-8").strip() == NVIDIA and (device / "class").read_text(
                encoding="utf-8"
            ).startswith(DISPLAY):
                return True
    return False


def asked(program: str, *arguments: str) -> str | None:
    """What a program on PATH prints; None where it isn't there, fails or takes too long."""
    path = shutil.which(program)
    if path is None:
        return None
    try:
        process = subprocess.run(
            [path, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            stdin=subprocess.DEVNULL,
            encoding="utf-8",
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout if process.returncode == 0 else None


def cache_directory() -> Path | None:
    """Where a user's programs keep what they can do without (XDG Base Directory Specification); None without a home."""
    directory = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if directory.is_absolute():
        return directory
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        return None


def imports(names: Collection[str]) -> dict[str, str | None]:
    """{name: None where it can be imported, else why not, in a line}; each is tried in a process of its own."""
    return {name: why for name, why in zip(names, map(_failure, [_process(f"import {name}") for name in names]))}


@functools.cache
def deadly(library: str | Path) -> str | None:
    """Why a process that loads a library beside torch ends by a signal, in a line; None where it lives."""
    if not Path(library).exists():
        return None
    process = _process(f"import torch\ntry: torch.ops.load_library({str(library)!r})\nexcept OSError: pass")
    why = _failure(process, f"loading {Path(library).name}")
    return why if not isinstance(process, OSError) and (process.returncode or 0) < 0 else None


def _process(code):
    """A process with this code; an OSError where there is none."""
    try:
        return subprocess.Popen(
            [sys.executable, "-c", f"{code}\nprint('done')"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            encoding="utf-8",
        )
    except OSError as error:
        return error


def _failure(process, what="the import"):
    if isinstance(process, OSError):
        return f"no process can be started: {process.strerror}"
    try:
        output, errors = process.communicate(timeout=IMPORTING)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return f"{what} takes more than {IMPORTING} s"
    if process.returncode == 0 and output.rstrip().endswith("done"):
        return None
    if process.returncode < 0:
        return f"{what} ends its process by signal {-process.returncode}"
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    return shown(lines[-1]) if lines else f"{what} ends its process with status {process.returncode}"


def version(package: str) -> str | None:
    """The installed version of a package, None where there is none or its description is damaged."""
    with suppress(Exception):
        return metadata.version(package)
    return None


def shown(text: object) -> str:
    """A message of others as it may be pasted anywhere: in a line, without directories, homes and user names."""
    text = " ".join(str(text).split())
    homes, users = _homes_and_users()
    for home in homes:
        text = text.replace(home, "~")
    text = re.sub(r"/(?:home|Users)/[^\s/:'\"(),;]+", "~", text)
    letter = r"[^\s/:'\"(),;=\[\]<>]"
    text = re.sub(rf"(?<![\w./])~?/(?!/)(?:{letter}*/)+({letter}+)", r".../\1", text)  # a path, but no https://address
    for user in users:
        text = re.sub(rf"(?<![\w-]){re.escape(user)}(?![\w-])", "USER", text)
    return text[:300]


def _homes_and_users():
    """(home directories of this user, names), the longest first."""
    homes, users = {os.environ.get("HOME", "")}, {os.environ.get(name, "") for name in ("USER", "LOGNAME", "SUDO_USER")}
    with suppress(KeyError):
        entry = pwd.getpwuid(os.getuid())
        homes.add(entry.pw_dir)
        users.add(entry.pw_name)
    homes |= {os.path.realpath(home) for home in homes if home}
    homes = {home.rstrip("/") for home in homes}
    users |= {os.path.basename(home) for home in homes}
    return (
        sorted((home for home in homes if len(home) > 1), key=len, reverse=True),
        sorted((user for user in users if user and user != "root"), key=len, reverse=True),
    )
