"""Large pages: a process that starts again with them takes large blocks with few page faults."""

import os
import subprocess
import sys

import pytest

from clara_jax import huge_pages

# Page faults of taking and writing 64 MiB, and what the process was told, behind a new start.
CODE = """
import ctypes, os, resource, sys
from clara_jax import huge_pages

huge_pages.start_again()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
ctypes.memset(libc.malloc(64 << 20), 1, 64 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, os.environ.get("GLIBC_TUNABLES"), *sys.argv[1:])
"""

needs_madvise = pytest.mark.skipif(
    not huge_pages._asked_for(), reason="the kernel does not give large pages to those who ask (transparent_hugepage)"
)


def start(**variables):
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"} | variables
    command = [sys.executable, "-c", CODE, "an argument", "--another=1"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    faults, tunables, *rest = ran.stdout.split()
    return int(faults), tunables, rest


@needs_madvise
def test_a_new_start_has_few_page_faults_and_the_same_arguments():
    faults, tunables, rest = start()
    assert tunables == "glibc.malloc.hugetlb=1" and rest == ["an", "argument", "--another=1"]
    before, _, _ = start(GLIBC_TUNABLES="glibc.malloc.mmap_max=65536")
    assert faults < before / 10


def test_what_the_user_has_chosen_stays():
    assert start(GLIBC_TUNABLES="glibc.malloc.mmap_max=65536")[1] == "glibc.malloc.mmap_max=65536"


@pytest.mark.parametrize("mode", ["[always] madvise never", "always madvise [never]", None])
def test_nothing_happens_where_it_would_change_nothing(mode, monkeypatch, tmp_path):
    file = tmp_path / "enabled"
    if mode is not None:
        file.write_text(mode)
    monkeypatch.setattr(huge_pages, "_MODE", file)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("started again"))
    huge_pages.start_again()
    assert "GLIBC_TUNABLES" not in os.environ
