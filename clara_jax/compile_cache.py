"""A persistent cache of XLA's compiled programs in the user's cache folder, so that the next start loads them.

This is JAX's persistent compilation cache with defaults for a user's machine. Commands enable it
(`clara_jax.command.run`); importing ``clara_jax`` changes nothing. Loaded programs give the same bits as programs that
were just compiled, because a folder serves only one kind of processor, number of cores, and version of JAX.

JAX can bound a cache (``jax_compilation_cache_max_size``). It is not used: each write reads a file for each entry under
one lock (0.09 s of a processor at 500 entries, against 0.0002 s without), and a process that is killed between writing
an entry and its access time blocks all later writes. Here `trim` bounds the folder when a process ends.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
import time
import zlib
from pathlib import Path

from clara_jax.files import user_cache

LIMIT = 1 << 30  # bytes of all entries together; those used longest ago go first
RESERVE = 256 << 20  # bytes that must be free for programs to be kept
ENTRY = "-cache"  # how JAX ends the name of an entry
STAMP = ".checked"  # its time: older entries are known to be whole
_ZSTD = bytes.fromhex("28b52ffd")  # magic number of zstd
_PAUSE, _DAY = 60.0, 86400.0  # seconds between two checks of the folder; before an empty folder is removed
# The fields of Linux's /proc/cpuinfo that distinguish processors: x86's, then ARM's. The clock varies and is left out.
_FIELDS = {"vendor_id", "cpu family", "model", "model name", "flags"}
_FIELDS |= {"CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"}
_DEFAULTS = {
    # Small programs too: a start compiles hundreds of them, and loading one takes a tenth of the time.
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


def enable() -> None:
    """Keep the programs that this process compiles, and load those that others on this machine have compiled.

    JAX's variables come first: ``JAX_ENABLE_COMPILATION_CACHE=false`` leaves the cache off, and another folder in
    ``JAX_COMPILATION_CACHE_DIR`` is neither bounded nor checked here. Call it before anything is compiled; JAX need not
    be imported yet. A folder that cannot be written, or a full disk, is one warning on standard error and no cache.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    if os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "").lower() in ("0", "false", "off", "no", "n", "f"):
        return
    root = user_cache() / "compiled"
    folder = root / machine()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        if not (root / STAMP).exists():
            (root / STAMP).touch()
        free = shutil.disk_usage(folder).free
        problem = f"{free >> 20} MiB are free on the disk of {RESERVE >> 20} that must be" if free < RESERVE else None
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        print(f"warning: {folder}: compiled programs are not kept: {problem}", file=sys.stderr)
        return
    _configure({"jax_compilation_cache_dir": str(folder), **_DEFAULTS})
    atexit.register(_trim_now_and_then, root)


def disable() -> None:
    """Compile everything in this process and in its children: for timings of a cold start."""
    _configure({"jax_enable_compilation_cache": False})


def machine() -> str:
    """Return a hash of what a compiled program depends on besides its source.

    This is the processor, the number of cores that XLA splits loops over, and the versions of JAX.
    """
    facts = [platform.system(), platform.machine(), os.environ.get("PJRT_NPROC") or str(_cores())]
    facts += [importlib.metadata.version(name) for name in ("jax", "jaxlib")]
    try:
        first = Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n")[0]
        facts += [line for line in first.splitlines() if line.partition(":")[0].strip() in _FIELDS]
    except OSError:  # not Linux
        facts += [platform.processor(), platform.node()]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def trim(root: Path, limit: int = LIMIT) -> None:
    """Remove truncated entries, then the least recently used until the rest fits in ``limit`` bytes.

    Entries are truncated by a killed process or a full disk. Other processes may read, write and trim at the same time.
    """
    stamp = root / STAMP
    checked, began = stamp.stat().st_mtime, time.time()
    entries = []
    for path in root.glob(f"*/*{ENTRY}"):
        with contextlib.suppress(OSError):  # another process may have removed it
            facts = path.stat()
            if facts.st_mtime >= checked and not _is_whole(path):
                path.unlink()
            else:
                entries.append((max(facts.st_atime, facts.st_mtime), facts.st_size, path))
    excess = sum(size for _, size, _ in entries) - limit
    for _, size, path in sorted(entries):
        if excess <= 0:
            break
        with contextlib.suppress(OSError):
            path.unlink()
        excess -= size
    for folder in root.iterdir():  # of processors and versions that are no longer used
        with contextlib.suppress(OSError):
            if folder.is_dir() and began - folder.stat().st_mtime > _DAY:
                folder.rmdir()
    os.utime(stamp, (began, began))


def _trim_now_and_then(root: Path) -> None:
    with contextlib.suppress(OSError):
        if "jax" in sys.modules and time.time() - (root / STAMP).stat().st_mtime > _PAUSE:
            trim(root)


def _is_whole(path: Path) -> bool:
    """Return whether the compressed data of an entry is complete: zstd where JAX finds it, else zlib."""
    # Not from `clara_jax.formats.jsonl`: this runs while Python exits, when the thread pools of its imports cannot
    # start.
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd

    data = path.read_bytes()
    try:
        (zstd if data.startswith(_ZSTD) else zlib).decompress(data)
    except (zlib.error, zstd.ZstdError):
        return False
    return True


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _configure(options: dict[str, str | float | bool]) -> None:
    """Set JAX's options in the environment and, where JAX is imported already, in its configuration.

    JAX reads the environment when it is imported, and child processes inherit it.
    """
    for name, value in options.items():
        os.environ[name.upper()] = str(value)
        if "jax" in sys.modules:
            sys.modules["jax"].config.update(name, value)
