"""Freed memory stays with the process that asks for it."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from saccade.train.allocator import keep_freed_memory
torch.set_num_threads(1)
assert keep_freed_memory() or not {keep}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print([faults() for _ in range(6)][-1])  # the heap settles first
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is no mallopt to ask")
def test_a_tensor_takes_the_pages_of_the_last_one():
    def faults(script: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", script], check=True, capture_output=True, text=True
        )
        return int(done.stdout)

    kept = faults(FAULTS.format(keep=True))
    given_back = faults(FAULTS.replace("assert keep_freed_memory() or not {keep}", ""))
    assert kept < 100 < given_back
