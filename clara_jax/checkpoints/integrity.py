"""Integrity of a checkpoint: the checksums of its files, written with it and compared when it is read.

``checksums.json`` has size and SHA-256 of every other file; ``clara.json``, the metadata, has the format's version.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from clara_jax.errors import ClaraError
from clara_jax.formats.json_file import json_text, read_object

FORMAT_VERSION = 1
METADATA, CHECKSUMS = "clara.json", "checksums.json"
RESTORE = "restore the file from a copy"

_HASHING_THREADS = 8


class UnknownFormatError(ClaraError):
    """An intact checkpoint of a format that this program cannot read, for which an older one is no substitute."""


def read_metadata(directory: str | Path) -> dict[str, Any]:
    """Return a checkpoint's metadata, with ``format_version``. Verifies this one file, not the arrays.

    Raises:
      ClaraError: no checkpoint, a file missing or damaged, an unknown format version.
    """
    directory = Path(directory)
    return _read_metadata(directory, _checksums(directory))


def verify_checkpoint(directory: str | Path) -> None:
    """Compare every file with its checksum.

    Raises:
      ClaraError: the first file that is missing, cut short or changed.
    """
    directory = Path(directory)
    sums = _checksums(directory)
    _read_metadata(directory, sums)
    _in_threads(lambda item: _verify(directory, *item), sums.items())


def write_checksums(directory: Path) -> None:
    """Write the checksums of all files that lie in a directory."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    names = [path.relative_to(directory).as_posix() for path in files]
    sums = dict(zip(names, _in_threads(_digest, files), strict=True))
    (directory / CHECKSUMS).write_text(json_text(sums), encoding="utf-8")


def _read_metadata(directory: Path, sums: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    if METADATA not in sums:
        raise ClaraError(f"{directory / CHECKSUMS}: has no entry for {METADATA}; restore the checkpoint from a copy")
    _verify(directory, METADATA, sums[METADATA])
    metadata = read_object(directory / METADATA, RESTORE)
    version = metadata.get("format_version")
    if version != FORMAT_VERSION:
        raise UnknownFormatError(
            f"{directory / METADATA}: format_version is {version!r}, this program reads {FORMAT_VERSION}; "
            "use the version of clara_jax that wrote it"
        )
    return metadata


def _digest(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _verify(directory: Path, name: str, expected: Mapping[str, Any]) -> None:
    path = directory / name
    remedy = "restore the checkpoint from a copy, or train it again"
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise ClaraError(f"{path}: has {size} bytes instead of {expected['bytes']}; {remedy}")
        if _digest(path)["sha256"] != expected["sha256"]:
            raise ClaraError(f"{path}: does not match its checksum; {remedy}")
    except FileNotFoundError as error:
        raise ClaraError(f"{path}: missing; {remedy}") from error
    except OSError as error:
        raise ClaraError(f"{path}: cannot be read: {error.strerror}") from error


def _checksums(directory: Path) -> dict[str, dict[str, Any]]:
    if not directory.is_dir():
        raise ClaraError(f"{directory}: no such checkpoint directory")
    if not (directory / CHECKSUMS).is_file():
        raise ClaraError(f"{directory}: no checkpoint of clara_jax: it has no {CHECKSUMS}")
    sums = read_object(directory / CHECKSUMS, RESTORE)
    for name, entry in sums.items():
        if not isinstance(entry, dict) or not {"bytes", "sha256"} <= entry.keys():
            raise ClaraError(f"{directory / CHECKSUMS}: {name!r} has no bytes and sha256; restore the file from a copy")
    # This file has no checksum of its own. Its text is canonical, so that any change shows.
    if (directory / CHECKSUMS).read_text(encoding="utf-8") != json_text(sums):
        raise ClaraError(f"{directory / CHECKSUMS}: was changed since it was written; {RESTORE}")
    return sums


def _in_threads(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """Call a function for each item in threads; hashing and reading release the interpreter's lock."""
    with ThreadPoolExecutor(min(_HASHING_THREADS, os.cpu_count() or 1)) as pool:
        return list(pool.map(function, items))
