from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS_OF_THE_SECOND_BLOCK = """
import ctypes, resource, sys
from training.commands.threads import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
size = 48 << 20  # above every threshold that glibc would come to by itself
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(size)))
    ctypes.memset(block, 1, size)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
def test_a_freed_block_is_not_asked_of_the_kernel_again() -> None:
    faults = {
        way: int(
            subprocess.run(
                [sys.executable, "-c", FAULTS_OF_THE_SECOND_BLOCK, way], check=True, capture_output=True, text=True
            ).stdout
        )
        for way in ("kept", "given back")
    }
    assert faults["given back"] >= 20, "one for each page, of 2 MiB or less, or this shows nothing"
    assert faults["kept"] < faults["given back"] / 4
