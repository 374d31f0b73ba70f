"""Atomic writes of files and folders."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from clara_jax.errors import ClaraError

# The system's error code in messages of TensorStore and of the Rust code of safetensors and tokenizers.
_SYSTEM_ERROR = re.compile(r"os[ _]error(?:_code)?[ =]+'?(\d+)")


@contextlib.contextmanager
def file_errors(what: str, remark: str = "") -> Iterator[None]:
    """Turn errors of the file system within the block into a `ClaraError`, whichever library raises them.

    Libraries in Rust and C++ raise other exceptions than OSError. Other errors are bugs, and pass.

    Args:
      what: the beginning of the message: what cannot be done.
      remark: its end, after the system's reason.

    Raises:
      ClaraError: the file system refuses.
    """
    try:
        yield
    except ClaraError:
        raise
    except OSError as error:
        raise ClaraError(f"{what}: {error.strerror or error}{remark}") from error
    except Exception as error:
        code = _SYSTEM_ERROR.search(str(error))
        if code is None:
            raise
        raise ClaraError(f"{what}: {os.strerror(int(code[1]))}{remark}") from error


@contextlib.contextmanager
def replaced_when_whole(path: str | os.PathLike, problem: str = "cannot be written") -> Iterator[Path]:
    """Yield a hidden path beside the file to write to; it replaces the file when the block ends without an exception.

    The disk holds the new content before the rename. An exception, Ctrl-C included, leaves the file as it was and
    nothing beside it; a process that is killed leaves the hidden file, which the next one overwrites.

    Args:
      path: the file.
      problem: follows the path in error messages.

    Raises:
      ClaraError: the file system refuses, in the block or after it.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with file_errors(f"{path}: {problem}"):
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
    except BaseException:  # Ctrl-C is among them
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def folder_when_whole(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a hidden folder to fill; it becomes ``path``, which must not exist, when the block ends well.

    Raises:
      ClaraError: there is something already; the file system refuses.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.partial")
    if os.path.lexists(path):
        raise ClaraError(f"{path}: is there already; name another folder or remove it")
    try:
        with file_errors(f"{path}: cannot be written"):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            yield temporary
            for folder, _, files in os.walk(temporary):
                for name in (*files, "."):
                    sync(Path(folder, name))
            os.rename(temporary, path)
            sync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def user_cache() -> Path:
    """Return the user's cache folder of this package.

    This is ``clara_jax`` in ``XDG_CACHE_HOME``, in ``%LOCALAPPDATA%`` on Windows, else in ``~/.cache``.
    """
    named = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if os.name == "nt" else None)
    return (Path(named) if named else Path.home() / ".cache") / "clara_jax"


def sync(path: Path) -> None:
    """Flush a file or directory to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
