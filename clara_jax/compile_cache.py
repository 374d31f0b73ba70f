"""Programs that XLA has compiled are kept in the user's cache folder, so that the next start loads them.

This is JAX's persistent compilation cache, set up for a machine that people have. Commands switch it on
(`clara_jax.command.run`); importing ``clara_jax`` changes nothing. Loaded programs give the same bits as programs that
were just compiled, because a folder serves only one kind of processor, number of cores, and version of JAX.

JAX can bound a cache by itself (``jax_compilation_cache_max_size``). It is not used: each write reads a file for each
entry under one lock (0.09 s of a processor at 500 entries, against 0.0002 s without), and a process that is killed
between an entry and its time of access ends all later writes. Here `trim` bounds the folder when a process ends.
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
STAMP = ".checked"  # its time: entries that are older are known to be whole
_ZSTD = bytes.fromhex("28b52ffd")  # how its data begins
_PAUSE, _DAY = 60.0, 86400.0  # seconds between two looks at the folder; before an empty folder goes
# What tells processors apart in Linux's /proc/cpuinfo: x86's fields, then ARM's. The clock changes and is left out.
_FIELDS = {"vendor_id", "cpu family", "model", "model name", "flags"}
_FIELDS |= {"CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"}
_DEFAULTS = {
    # Small programs too: a start compiles hundreds of them, and loading one takes a tenth of the time.
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


def enable() -> None:
    """Keep what this process compiles, and load what others on this machine have compiled.

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
    """Compile everything in this process and in those that it starts: for timings of a cold start."""
    _configure({"jax_enable_compilation_cache": False})


def machine() -> str:
    """Return a name for what a compiled program depends on besides the program: the processor, the number of cores that
    XLA divides loops among, and the versions of JAX."""
    facts = [platform.system(), platform.machine(), os.environ.get("PJRT_NPROC") or str(_cores())]
    facts += [importlib.metadata.version(name) for name in ("jax", "jaxlib")]
    try:
        first = Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n")[0]
        facts += [line for line in first.splitlines() if line.partition(":")[0].strip() in _FIELDS]
    except OSError:  # not Linux
        facts += [platform.processor(), platform.node()]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def trim(root: Path, limit: int = LIMIT) -> None:
    """Remove what a killed process or a full disk has left half-written, then the entries used longest ago until all
    together fit in ``limit`` bytes. Other processes may read, write and trim at the same time."""
    stamp = root / STAMP
    checked, began = stamp.stat().st_mtime, time.time()
    entries = []
    for path in root.glob(f"*/*{ENTRY}"):
        with contextlib.suppress(OSError):  # gone meanwhile
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
    for folder in root.iterdir():  # of processors and versions that are used no more
        with contextlib.suppress(OSError):
            if folder.is_dir() and began - folder.stat().st_mtime > _DAY:
                folder.rmdir()
    os.utime(stamp, (began, began))


def _trim_now_and_then(root: Path) -> None:
    with contextlib.suppress(OSError):
        if "jax" in sys.modules and time.time() - (root / STAMP).stat().st_mtime > _PAUSE:
            trim(root)


def _is_whole(path: Path) -> bool:
    """Return whether the compressed bytes of an entry end where they should: of zstd, where JAX finds it, else zlib."""
    # Not from `clara_jax.data.jsonl`: this runs while Python ends, when what that imports can no longer begin.
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
    """Set JAX's options: in the environment, which JAX reads when it is imported and which processes that are started
    from here inherit; and in JAX, where it is imported already."""
    for name, value in options.items():
        os.environ[name.upper()] = str(value)
        if "jax" in sys.modules:
            sys.modules["jax"].config.update(name, value)
