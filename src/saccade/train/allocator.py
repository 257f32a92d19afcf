"""The memory that a step frees, kept for the next step."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_KEPT, _LARGE = 2**31 - 1, 2**30


def keep_freed_memory() -> bool:
    """Let this process keep up to 2 GiB of freed memory, and blocks below 1 GiB with it.

    By itself glibc gives every freed tensor of some MiB back to the system, whose kernel clears
    its pages again one by one for the next tensor of the same size: on a CPU, half the time of a
    convolution. This concerns the whole process, so it is for programs to call, not for libraries.

    Returns:
        whether it took effect: False where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if _has_glibc() else None
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGE)) and bool(mallopt(_TRIM_THRESHOLD, _KEPT))


def _has_glibc() -> bool:
    try:
        return hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
    except (OSError, TypeError):  # Windows opens no library without a name
        return False
