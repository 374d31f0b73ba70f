"""Transparent huge pages for a process that allocates and frees large blocks of memory.

XLA's CPU programs allocate their temporary buffers when they start and free them when they end. glibc returns blocks of
that size to the kernel at once, so each step faults in and clears gigabytes page by page: two fifths of the CPU time of
a training step of SmolLM2-135M. With pages of 2 MiB there are 512 times fewer of them (docs/results.md, "A training
step on a CPU"). Keeping freed memory instead (mallopt's M_MMAP_MAX) costs no faults at all, but three times the memory,
for small long-lived blocks fragment it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_TUNABLES = "GLIBC_TUNABLES"
_HUGE = "glibc.malloc.hugetlb=1"  # madvise(MADV_HUGEPAGE) for malloc's mappings; glibc before 2.35 ignores it
_MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def start_again() -> None:
    """Replace this process by the same command with huge pages, where the kernel gives them on request.

    glibc reads the setting when a process starts, before any code of ours. Nothing happens where the user has set
    tunables, where the kernel gives huge pages to all processes or to none, and outside of Linux. Call it first: what
    the process has done so far is lost.
    """
    if _TUNABLES in os.environ or not _asked_for():
        return
    os.environ[_TUNABLES] = _HUGE
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _asked_for() -> bool:
    try:
        return "[madvise]" in _MODE.read_text()
    except OSError:
        return False
