"""Large pages for a process whose large blocks of memory come and go.

XLA's CPU programs take their temporary buffers when they begin and free them when they end. glibc returns blocks of
that size to the kernel at once, so each step fetches and clears gigabytes page by page: two fifths of the CPU time of a
training step of SmolLM2-135M went there. With pages of 2 MiB there are 512 times fewer of them (docs/results.md, "A
training step on a CPU"). Keeping what is freed instead (mallopt's M_MMAP_MAX) costs no faults at all, and three times
the memory: what is small and stays divides what is large and goes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_TUNABLES = "GLIBC_TUNABLES"
_HUGE = "glibc.malloc.hugetlb=1"  # madvise(MADV_HUGEPAGE) for what malloc maps; glibc 2.35 and later, others ignore it
_MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def start_again() -> None:
    """Replace this process by the same command with large pages, where the kernel gives them to those who ask.

    glibc reads the setting when a process starts, before any code of ours. Nothing happens where the user has chosen
    tunables, where the kernel gives large pages to all or to nobody, and where there is no Linux. Call it first of all:
    what the process has done so far is lost.
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
