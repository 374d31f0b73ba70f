"""Checkpoints of a training run: written whole or not at all, verified when read.

A checkpoint is a directory ``<run>/checkpoints/<NN>-<stage>``:

- ``arrays/``: the arrays, as Orbax stores them (this is the one module that knows Orbax);
- ``clara.json``: the metadata, and the version of this format;
- further files of the caller's, such as the tokenizer;
- ``checksums.json``: size and SHA-256 of every other file.

It is written by one process.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from clara_jax.checkpoints.json_file import read_object
from clara_jax.errors import ClaraError

FORMAT_VERSION = 1
ARRAYS, METADATA, CHECKSUMS = "arrays", "clara.json", "checksums.json"
RESTORE = "restore the file from a copy"

Tree = Mapping[str, Any]


def checkpoint_directory(run_dir: str | Path, number: int, stage: str) -> Path:
    """Where the run's checkpoint ``number``, of ``stage``, lies: ``<run>/checkpoints/<NN>-<stage>``."""
    return Path(run_dir) / "checkpoints" / f"{number:02d}-{stage}"


def latest_checkpoint(run_dir: str | Path) -> Path:
    """The run's checkpoint of the highest number; half-written ones have other names and do not count.

    Raises:
      ClaraError: there is none.
    """
    folder = Path(run_dir) / "checkpoints"
    numbered = []
    for path in folder.iterdir() if folder.is_dir() else ():
        number, dash, _ = path.name.partition("-")
        if dash and number.isdecimal() and path.is_dir():
            numbered.append((int(number), path.name))
    if not numbered:
        raise ClaraError(f"{run_dir}: no checkpoint there; a training run keeps them in checkpoints/<NN>-<stage>")
    return folder / max(numbered)[1]


def save_checkpoint(
    directory: str | Path,
    arrays: Tree,
    metadata: Mapping[str, Any],
    write_extra: Callable[[Path], None] | None = None,
) -> None:
    """Writes a checkpoint under another name, then renames it: under ``directory`` there is all of it or nothing.

    Args:
      directory: must not exist yet.
      arrays: nested dict of arrays (an Optax state may be a node of it), sharded or not.
      metadata: what JSON can hold; ``format_version`` is added.
      write_extra: called with the directory to write further files into.

    Raises:
      ClaraError: ``directory`` exists, or the file system refuses (disk full, no permission).
    """
    directory = Path(directory).absolute()
    if directory.exists():
        raise ClaraError(f"{directory}: a checkpoint exists already; remove it or choose another run directory")
    # Hidden and on the same file system. One that a killed run left behind is overwritten.
    partial = directory.with_name(f".{directory.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        ocp.save(partial / ARRAYS, dict(arrays))
        _write_json(partial / METADATA, {"format_version": FORMAT_VERSION, **metadata})
        if write_extra is not None:
            write_extra(partial)
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        _write_json(partial / CHECKSUMS, {path.relative_to(partial).as_posix(): _digest(path) for path in files})
        for path in partial.rglob("*"):
            _sync(path)
        _sync(partial)
        os.rename(partial, directory)
        _sync(directory.parent)
    except OSError as error:
        raise ClaraError(f"{directory}: cannot write the checkpoint: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_metadata(directory: str | Path) -> dict[str, Any]:
    """What `save_checkpoint` was given as metadata, with ``format_version``. Verifies this one file, not the arrays.

    Raises:
      ClaraError: no checkpoint, a file missing or damaged, an unknown format version.
    """
    directory = Path(directory)
    sums = _checksums(directory)
    if METADATA not in sums:
        raise ClaraError(f"{directory / CHECKSUMS}: has no entry for {METADATA}; restore the checkpoint from a copy")
    _verify(directory, METADATA, sums[METADATA])
    metadata = read_object(directory / METADATA, RESTORE)
    version = metadata.get("format_version")
    if version != FORMAT_VERSION:
        raise ClaraError(
            f"{directory / METADATA}: format_version is {version!r}, this program reads {FORMAT_VERSION}; "
            "use the version of clara_jax that wrote it"
        )
    return metadata


def verify_checkpoint(directory: str | Path) -> None:
    """Compares every file with its checksum.

    Raises:
      ClaraError: the first file that is missing, cut short or changed.
    """
    directory = Path(directory)
    read_metadata(directory)
    for name, expected in _checksums(directory).items():
        _verify(directory, name, expected)


def load_arrays(
    directory: str | Path, abstract: Tree | None = None, only: tuple[str, ...] | None = None
) -> dict[str, Any]:
    """The checkpoint's arrays, after all its files have been verified.

    Args:
      directory: the checkpoint.
      abstract: nested dict of `jax.ShapeDtypeStruct`, each placed by its sharding (without one: on the first device).
        None loads what is there, whole, onto the first device, whatever mesh wrote it.
      only: top-level names to load, e.g. ``("params",)`` to leave the optimizer's state on disk.

    Returns:
      A tree of the structure of ``abstract``.

    Raises:
      ClaraError: a damaged checkpoint; the first leaf that is missing, unexpected, or of another shape or dtype.
    """
    directory = Path(directory).absolute()
    verify_checkpoint(directory)
    stored = ocp.metadata(directory / ARRAYS).metadata
    wanted = stored if abstract is None else dict(abstract)
    if only is not None:
        for name in only:
            if name not in stored:
                raise ClaraError(f"{directory}: holds no {name!r}, only {', '.join(stored)}")
        stored, wanted = ({name: tree[name] for name in only if name in tree} for tree in (stored, wanted))
    _compare(directory, _leaves(stored), _leaves(wanted))
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def target(leaf):
        placed = getattr(leaf, "sharding", None) if abstract is not None else None
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed or first)

    context = ocp.Context()
    context.pytree.loading.partial_load = only is not None
    with context:
        return ocp.load(directory / ARRAYS, jax.tree.map(target, wanted))


def _leaves(tree: Tree) -> dict[str, Any]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


def _compare(directory: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    remedy = "open it with the base model, LoRA rank and compress rate that it was trained with"
    for name, leaf in wanted.items():
        if name not in stored:
            raise ClaraError(f"{directory}: holds no array {name}, which this model needs; {remedy}")
        have, need = ((tuple(x.shape), str(x.dtype)) for x in (stored[name], leaf))
        if have != need:
            raise ClaraError(
                f"{directory}: {name} is {have[1]}{list(have[0])} in the checkpoint, "
                f"but {need[1]}{list(need[0])} in this model; {remedy}"
            )
    for name in stored:
        if name not in wanted:
            raise ClaraError(f"{directory}: holds an array {name}, which this model does not have; {remedy}")


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
    return sums


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def _sync(path: Path) -> None:
    """Has the disk hold what was written to a file or directory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
