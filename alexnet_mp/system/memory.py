"""Memory of the CPU: how much is free, and keeping what was freed, since every fresh page costs a fault."""

import ctypes
from pathlib import Path

# Parameters of glibc's mallopt(3), from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Let glibc reuse the pages of freed tensors instead of returning each large one to the kernel and faulting it in
    again.

    A training step frees and takes the same gigabytes every time. Does nothing where the C library is another one.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def free_memory() -> int:
    """Bytes that this process may still take: the machine's, or its control group's where that is less."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    free_bytes = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    try:
        group = Path("/sys/fs/cgroup")
        statistics = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
        # cached files give way
        used_bytes = int((group / "memory.current").read_text(encoding="utf-8")) - int(statistics["inactive_file"])
        free_bytes = min(free_bytes, int((group / "memory.max").read_text(encoding="utf-8")) - used_bytes)
    except (OSError, ValueError, KeyError):  # no control group, or no limit ("max")
        pass
    return max(free_bytes, 0)
