"""Less idle memory in processes that run packages: glibc keeps what was freed. Other C libraries are left alone."""

import ctypes

ONE_HEAP = (-8, 1)
"""M_ARENA_MAX of glibc's malloc.h: by default there are eight heaps for every core."""


def share_one_heap() -> None:
    """Have threads that are started from now on use what others have freed, rather than each a heap of its own."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(*ONE_HEAP)


def release_freed_memory() -> None:
    """Give back to the system what this process has freed."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
