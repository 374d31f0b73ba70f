"""Checkpoints of a training run: written atomically, verified when read, pruned while training goes on.

A checkpoint is a directory ``<run>/checkpoints/<NN>-<stage>-<step>``:

- ``arrays/``: the arrays, in Orbax's format (this is the only module that uses Orbax);
- ``clara.json``: the metadata, and the version of this format;
- further files of the caller's, such as the tokenizer;
- ``checksums.json``: size and SHA-256 of every other file.

Every process of a run writes the arrays on its devices, the main one everything else; they may be killed at any point.
Unfinished work has hidden names (`clara_jax.checkpoints.retention`); the next save of the run cleans up.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from clara_jax import distributed
from clara_jax.checkpoints.description import Description
from clara_jax.checkpoints.integrity import (
    FORMAT_VERSION,
    METADATA,
    read_metadata,
    verify_checkpoint,
    write_checksums,
)
from clara_jax.checkpoints.retention import (
    PARTIAL,
    REPLACED,
    checkpoint_directory,
    clear_unfinished,
    hidden,
    latest_checkpoint,
    thin_out,
)
from clara_jax.errors import ClaraError, warn_line
from clara_jax.files import file_errors, sync
from clara_jax.formats.base import end_tokens
from clara_jax.formats.json_file import json_text
from clara_jax.method.parameters import flatten, unflatten
from clara_jax.model.precision import PRECISIONS
from clara_jax.model.quantization import NONE, kernel_of

ARRAYS = "arrays"
FILES = ()  # any directory may be one, or a run's

Tree = Mapping[str, Any]

# Small enough for a large checkpoint's files to be hashed in parallel.
_FILE_BYTES = 64 * 2**20


def save_checkpoint(
    directory: str | Path,
    arrays: Tree,
    metadata: Mapping[str, Any],
    write_extra: Callable[[Path], None] | None = None,
) -> None:
    """Write a checkpoint atomically: under another name, then renamed.

    Args:
      directory: must not exist yet.
      arrays: nested dict of arrays (an Optax state may be a node of it), sharded or not.
      metadata: JSON values; ``format_version`` is added.
      write_extra: called with the directory to write further files into.

    Raises:
      ClaraError: ``directory`` exists, the metadata has a number that is not finite, or the file system refuses (disk
        full, no permission).
    """
    directory = Path(directory).absolute()
    if directory.exists():
        raise ClaraError(f"{directory}: a checkpoint exists already; remove it or choose another run directory")
    _begin_save(directory, arrays, metadata, write_extra)()


class CheckpointWriter:
    """A writer of a run's checkpoints, which saves in the background and deletes old ones.

    It keeps the newest ``keep`` of the run, and of each stage the best by the metric ``best`` (see `best_checkpoint`)
    and the last with ``metadata["finished"]``. It deletes only after a new one is completely on disk, and none of a
    later step: a run that was resumed from an earlier checkpoint replaces those ahead of it when it reaches them.

    A context manager; at the end it waits for the disk. One writer per run directory, in each process of the run; all
    make the same calls.

    Args:
      run_dir: directory of the run.
      keep: number of newest checkpoints to keep.
      best: metric of the best one to keep; None for none.
    """

    def __init__(self, run_dir: str | Path, keep: int = 3, best: str | None = "loss"):
        if keep < 1:
            raise ValueError(f"keep is {keep}; a run keeps at least its newest checkpoint")
        self._run_dir, self._keep, self._best = Path(run_dir), keep, best
        self._executor = ThreadPoolExecutor(1, "checkpoints")
        self._saving: Future[None] | None = None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except Exception as error:
            if kind is None:
                raise
            # The error that ended the run matters more than that its last checkpoint failed, too.
            warn_line(str(error))

    def save(
        self,
        number: int,
        stage: str,
        step: int,
        arrays: Tree,
        metadata: Mapping[str, Any],
        write_extra: Callable[[Path], None] | None = None,
        wait: bool = False,
    ) -> None:
        """Save ``checkpoint_directory(run_dir, number, stage, step)`` once the previous save is done.

        Returns when the arrays may be donated; a thread does the rest. An existing checkpoint of that name, which a
        resumed run reaches again, is replaced, damaged or intact: the same step of a run has the same arrays.

        Args:
          number: of the stage within the run.
          stage: its name.
          step: steps of the stage that are done.
          arrays: as for `save_checkpoint`.
          metadata: as for `save_checkpoint`.
          write_extra: called in the thread with the directory to write further files into.
          wait: return only when the checkpoint is on disk.

        Raises:
          ClaraError: this one or the previous one cannot be written; earlier ones are intact.
        """
        self.wait()
        directory = checkpoint_directory(self._run_dir, number, stage, step).absolute()
        if distributed.is_main():
            with file_errors(f"{directory.parent}: cannot clear away what a killed run left"):
                clear_unfinished(directory.parent)
        finish = _begin_save(directory, arrays, metadata, write_extra)

        def finish_and_thin_out() -> None:
            finish()
            if distributed.is_main():
                thin_out(self._run_dir.absolute(), directory, self._keep, self._best)

        self._saving = self._executor.submit(finish_and_thin_out)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Wait until the last save is on disk.

        Raises:
          ClaraError: it could not be written. Raised once.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()
            distributed.barrier("saved")

    def close(self) -> None:
        """Wait for the last save, and end the thread."""
        try:
            self.wait()
        finally:
            self._executor.shutdown()


def describe(path: Path) -> Description:
    """Return the description of a checkpoint, or of a run's newest intact one.

    Raises:
      ClaraError: no checkpoint there, or a damaged one.
    """
    if not (path / METADATA).is_file():
        path = latest_checkpoint(path)
    metadata = read_metadata(path)
    return Description(
        path=path,
        source=path / METADATA,
        clara=metadata["clara"],
        base=metadata["base"],
        precision=metadata["precision"],
        quantization=metadata.get("quantization", NONE),  # absent in checkpoints from before there was one
        history=tuple(metadata["history"]),
        trained=tuple(metadata["trained"]),
        overrides=tuple(metadata["own"]),
        prompt_version=metadata["prompt_version"],
        tokenizer=path / "tokenizer",
        further_ends=end_tokens(metadata.get("ends"), f'{path / METADATA}: "ends"'),
    )


def load(about: Description, leaves: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Load the model's leaves, each process its shards; others, such as the optimizer's state, are not read.

    Args:
      about: see `describe`.
      leaves: those that the checkpoint holds, by path, each with its sharding.

    Raises:
      ClaraError: see `load_arrays`.
    """
    stored = jnp.dtype(PRECISIONS[about.precision].stored)  # the base's dtype, which may be another one now
    targets = {
        name: jax.ShapeDtypeStruct(
            leaf.shape,
            stored if name.startswith("base/") and not kernel_of(name) else leaf.dtype,
            sharding=leaf.sharding,
        )
        for name, leaf in leaves.items()
    }
    only = tuple(dict.fromkeys(name.partition("/")[0] for name in leaves))
    arrays = flatten(load_arrays(about.path, unflatten(targets), only))
    return {name: array.astype(leaves[name].dtype) for name, array in arrays.items()}


def load_arrays(
    directory: str | Path, abstract: Tree | None = None, only: tuple[str, ...] | None = None
) -> dict[str, Any]:
    """Load the checkpoint's arrays, after all its files have been verified.

    Args:
      directory: the checkpoint.
      abstract: nested dict of `jax.ShapeDtypeStruct`, each placed by its sharding (without one: on the first device).
        None loads all arrays, whole, onto the first device, whatever mesh wrote them.
      only: top-level names to load, e.g. ``("lora", "tokens")``; the rest, e.g. the optimizer's state, stays on disk
        and may be missing from ``abstract``.

    Returns:
      A tree of the structure of ``abstract``.

    Raises:
      ClaraError: a damaged checkpoint; the first leaf that is missing, unexpected, or of another shape or dtype.
    """
    directory = Path(directory).absolute()
    distributed.on_main(verify_checkpoint, directory)
    stored = ocp.metadata(str(directory / ARRAYS)).metadata
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
        return ocp.load(str(directory / ARRAYS), jax.tree.map(target, wanted))


# --- writing ---


def _begin_save(
    directory: Path, arrays: Tree, metadata: Mapping[str, Any], write_extra: Callable[[Path], None] | None
) -> Callable[[], None]:
    """Do the part of a save that needs the arrays on their devices; return a function that does the rest.

    The arrays may be donated in between: they are on the host by then, or, on a CPU, Orbax holds references to their
    buffers, so that JAX does not reuse them.
    """
    try:
        described = json_text({"format_version": FORMAT_VERSION, **metadata})
    except ValueError as error:
        raise ClaraError(f"{directory}: the checkpoint's metadata cannot be written as JSON: {error}") from error
    _quieten_orbax()
    partial = hidden(directory, PARTIAL)
    with _or_nothing(directory, partial):
        if distributed.is_main():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        distributed.barrier("save")
        context = ocp.Context()
        context.array.saving.ocdbt_target_data_file_size = _FILE_BYTES
        with context:
            writing = ocp.save_async(str(partial / ARRAYS), dict(arrays))

    def finish() -> None:
        with _or_nothing(directory, partial):
            writing.result()
            if not distributed.is_main():
                return
            (partial / METADATA).write_text(described, encoding="utf-8")
            if write_extra is not None:
                write_extra(partial)
            write_checksums(partial)
            for path in partial.rglob("*"):
                sync(path)
            sync(partial)
            _commit(partial, directory)

    return finish


def _commit(partial: Path, directory: Path) -> None:
    replaced = hidden(directory, REPLACED)
    if directory.exists():
        os.rename(directory, replaced)
    os.rename(partial, directory)
    sync(directory.parent)
    if replaced.exists():
        shutil.rmtree(replaced)


@contextlib.contextmanager
def _or_nothing(directory: Path, partial: Path) -> Iterator[None]:
    """Remove the unfinished checkpoint if the block, which writes it, fails."""
    try:
        with file_errors(f"{directory}: cannot write the checkpoint", "; earlier checkpoints are whole"):
            yield
    except BaseException:
        if distributed.is_main():
            shutil.rmtree(partial, ignore_errors=True)
        raise


def _quieten_orbax() -> None:
    """Filter the tracebacks that Orbax logs for errors of its threads, which it raises as well."""
    logging.getLogger("absl").addFilter(_is_not_raised_anyway)


def _is_not_raised_anyway(record: logging.LogRecord) -> bool:
    return not (record.exc_info and "orbax" in record.pathname)


# --- reading ---


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
