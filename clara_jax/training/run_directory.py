"""The run directory: its lock, which one process holds, the environment of the run, JSON files written whole."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

import clara_jax
from clara_jax.errors import ClaraError, warn_line
from clara_jax.files import replaced_when_whole
from clara_jax.formats.json_file import json_text
from clara_jax.locks import locked
from clara_jax.model.sharding import all_devices

LOCK = ".lock"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "transformers")
_GIT_SECONDS = 10


@contextlib.contextmanager
def lock(run_dir: str | Path) -> Iterator[None]:
    """Lock the run directory for this process, which makes it first where it is missing.

    The lock is on ``<run>/.lock``, which names its holder. Where the file system has no locks, a warning is all there
    is.

    Raises:
      ClaraError: another process has it; the directory cannot be made.
    """
    run_dir = Path(run_dir)
    path = run_dir / LOCK

    def busy() -> str:
        holder = ""
        with contextlib.suppress(OSError):
            holder = path.read_text(encoding="utf-8", errors="replace").strip()
        return (
            f"{run_dir}: another process ({holder or 'just started'}) trains in this directory; wait for it or choose "
            "another --workdir"
        )

    def unsupported(error: OSError) -> None:
        warn_line(f"{run_dir}: cannot be locked ({error.strerror}); see to it that no other process trains there")

    with contextlib.ExitStack() as stack:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(path, busy, unsupported=unsupported))
        except OSError as error:
            raise ClaraError(
                f"{run_dir}: cannot be a run directory: {error.strerror}; choose another --workdir"
            ) from error
        # The holder is named only for the message of a refused process: a full disk is no reason to fail here.
        with contextlib.suppress(OSError):
            path.write_text(f"pid {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        yield


def environment() -> dict[str, Any]:
    """Return the environment of a run, for ``run.json``.

    Returns:
      "versions" of Python and packages; "platform"; "backend", "device" (kind), "devices" and "processes" (counts);
      "git": "commit" and "local_changes" (bool) of the checkout that this program lies in, None where it lies in none
      or there is no git; "command", as a shell takes it; "started" (UTC, ISO 8601).
    """
    return {
        "versions": {"python": platform.python_version(), "clara_jax": clara_jax.__version__}
        | {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "backend": jax.default_backend(),
        "device": all_devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "git": _git(Path(clara_jax.__file__).resolve()),
        "command": shlex.join(sys.orig_argv),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def write_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file in one move: readers, and a process killed meanwhile, see the old content or the new.

    Raises:
      ClaraError: the file system refuses.
      ValueError: a number that is not finite.
    """
    text = json_text(value)
    with replaced_when_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(file: Path) -> dict[str, Any] | None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=_GIT_SECONDS).stdout.strip()

    try:
        # An installed package may lie below a checkout that has nothing to do with it.
        git("ls-files", "--error-unmatch", file.name)
        return {"commit": git("rev-parse", "HEAD"), "local_changes": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
