"""Memory for the CPU: keep what was freed, since every fresh page costs a fault."""
import ctypes

# Parameters of glibc's mallopt(3), from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory():
    """Let glibc reuse the pages of freed tensors instead of returning each large one to the kernel and faulting it in again.

    A training step frees and takes the same gigabytes every time. Does nothing where the C library is another one.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
