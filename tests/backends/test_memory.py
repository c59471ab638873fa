"""What glibc keeps of freed memory."""

import os
import platform
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has its own way")


def test_what_was_freed_is_given_back():
    """Small blocks below one that is still used stay with the process otherwise."""
    code = """
    import torch
    from mvquant.backends.memory import release_freed_memory
    def resident():
        return sum(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon:"))
    before = resident()
    blocks = [torch.ones(8192) for _ in range(4000)]  # 128 MB
    last = torch.ones(8192)
    del blocks
    kept = resident() - before
    release_freed_memory()
    print(kept > 100_000, resident() - before < 20_000)
    """
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "1000000000"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    assert subprocess.check_output(command, env=environment, text=True).split() == ["True", "True"]


@pytest.mark.parametrize(("before", "heaps"), [("", 4), ("share_one_heap()", 1)])
def test_threads_share_one_heap(before, heaps):
    code = f"""
    import ctypes, sys, threading
    from mvquant.backends.memory import share_one_heap
    {before}
    libc = ctypes.CDLL(None)
    libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
    together = threading.Barrier(3)
    def work():
        libc.malloc(1000)
        together.wait()
    threads = [threading.Thread(target=work) for _ in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    file = ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w"))
    libc.malloc_info(0, file)
    libc.fclose(file)
    """
    told = subprocess.check_output([sys.executable, "-c", textwrap.dedent(code)], text=True)
    assert told.count("<heap nr=") == heaps
