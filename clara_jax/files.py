"""Files that are there whole or not at all, however the process that writes them ends; and one writer at a time."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from clara_jax.errors import ClaraError

# How TensorStore and the Rust code of safetensors and tokenizers name the system's error in a message.
_SYSTEM_ERROR = re.compile(r"os[ _]error(?:_code)?[ =]+'?(\d+)")


@contextlib.contextmanager
def file_errors(what: str, remark: str = "") -> Iterator[None]:
    """Turns what the file system refuses into one line, whichever library passes it on: those in Rust and C++ have
    exceptions of their own. Other errors are bugs, and pass.

    Args:
      what: cannot be done, for the message; remark: behind the reason.

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
    """A hidden name beside the file, to be written in the block; what is there takes the file's place when the block
    has ended well and the disk holds it.

    Whatever ends the block otherwise, Ctrl-C too, leaves the file as it was and nothing beside it; a process that is
    killed leaves the hidden name, which the next one writes anew.

    Args:
      problem: what messages say of the path.

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
    """The same for a folder that is not there yet: a hidden one beside it, to be filled in the block.

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


@contextlib.contextmanager
def locked(path: str | os.PathLike, busy: str | None, shared: bool = False) -> Iterator[None]:
    """Keeps other processes out by the kernel's lock on a file, which is made where it is missing and stays; gone with
    the process that holds it. Where a file system has no locks, there is none.

    Args:
      busy: the message where another process has it; None to wait until it has not.
      shared: any number may hold it together, and keep out those that do not share; no lock where a file system that
        cannot be written lacks the file.

    Raises:
      ClaraError: another process has it, and there is a message.
    """
    import fcntl  # which Windows has not; the rest of this module works there

    try:
        file = os.open(path, os.O_CREAT | (os.O_RDONLY if shared else os.O_WRONLY), 0o666)
    except OSError:
        if not shared:
            raise
        yield
        return
    try:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            raise ClaraError(busy) from None
        except OSError:
            pass
        yield
    finally:
        os.close(file)


def user_cache() -> Path:
    """Return the folder for what can be made again: ``clara_jax`` in ``XDG_CACHE_HOME``, ``%LOCALAPPDATA%`` on Windows,
    else in ``~/.cache``."""
    named = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if os.name == "nt" else None)
    return (Path(named) if named else Path.home() / ".cache") / "clara_jax"


def sync(path: Path) -> None:
    """Has the disk hold what was written to a file or directory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
