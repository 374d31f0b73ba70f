"""Checkpoints of a training run: written atomically, verified when read, pruned while training goes on.

A checkpoint is a directory ``<run>/checkpoints/<NN>-<stage>-<step>``:

- ``arrays/``: the arrays, in Orbax's format (this is the only module that uses Orbax);
- ``clara.json``: the metadata, and the version of this format;
- further files of the caller's, such as the tokenizer;
- ``checksums.json``: size and SHA-256 of every other file.

Every process of a run writes the arrays on its devices, the main one everything else; they may be killed at any point.
Hidden names are unfinished work: ``.partial`` is being written, ``.removed`` is being deleted, and ``.replaced`` makes
way for a new checkpoint of its name, and counts until that is complete. The next save of the run cleans up.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from clara_jax import distributed
from clara_jax.errors import ClaraError
from clara_jax.files import file_errors, sync
from clara_jax.formats.json_file import read_object

FORMAT_VERSION = 1
ARRAYS, METADATA, CHECKSUMS = "arrays", "clara.json", "checksums.json"
RESTORE = "restore the file from a copy"

Tree = Mapping[str, Any]

_NAME = re.compile(r"(\d+)-(.+)-(\d+)")
_PARTIAL, _REMOVED, _REPLACED = ".partial", ".removed", ".replaced"
_LOWER_IS_BETTER = ("ce", "mse", "contrastive")
_HASHING_THREADS = 8
# Small enough for a large checkpoint's files to be hashed in parallel.
_FILE_BYTES = 64 * 2**20


class _UnknownFormatError(ClaraError):
    """An intact checkpoint of a format that this program cannot read, for which an older one is no substitute."""


def checkpoint_directory(run_dir: str | Path, number: int, stage: str, step: int) -> Path:
    """Return the directory of the run's checkpoint after ``step`` steps of its stage ``number``.

    This is ``<run>/checkpoints/<NN>-<stage>-<step>``, with the step in eight digits.
    """
    return Path(run_dir) / "checkpoints" / f"{number:02d}-{stage}-{step:08d}"


def checkpoints(run_dir: str | Path) -> list[Path]:
    """Return the run's checkpoints, damaged ones included, by stage number and step; unfinished ones do not count."""
    folder = Path(run_dir) / "checkpoints"
    if not folder.is_dir():
        return []
    named = {path.name: path for path in folder.iterdir()}
    for name, path in list(named.items()):
        if name.startswith(".") and name.endswith(_REPLACED):
            named.setdefault(name[1 : -len(_REPLACED)], path)
    found = [(match, path) for name, path in named.items() if (match := _NAME.fullmatch(name)) and path.is_dir()]
    return [path for _, path in sorted(found, key=lambda item: (int(item[0][1]), int(item[0][3])))]


def newest_intact(run_dir: str | Path) -> Path | None:
    """Return the newest checkpoint whose files are all there and match their checksums; None where there is none.

    Each damaged one that is skipped gets one warning line on standard error.

    Raises:
      ClaraError: it is intact, but another version's.
    """
    found = distributed.on_main(_newest_intact, run_dir)
    return None if found is None else Path(found)


def _newest_intact(run_dir: str | Path) -> str | None:
    damaged, found = [], None
    for path in reversed(checkpoints(run_dir)):
        try:
            verify_checkpoint(path)
            found = path
            break
        except _UnknownFormatError:
            raise
        except ClaraError as error:
            damaged.append((path, error))
    instead = "and no earlier one is intact" if found is None else f"using the one before, {found.name}"
    for path, error in damaged:
        reason = str(error).partition(";")[0]
        warn_line(f"checkpoint {path.name} is damaged ({reason}); {instead}")
    return None if found is None else str(found)


def latest_checkpoint(run_dir: str | Path) -> Path:
    """Return the newest intact checkpoint, see `newest_intact`, or fail.

    Raises:
      ClaraError: there is none, or it is another version's.
    """
    if newest := newest_intact(run_dir):
        return newest
    if found := checkpoints(run_dir):
        raise ClaraError(
            f"{run_dir}: every checkpoint there is damaged ({len(found)} of them); restore one from a copy"
        )
    raise ClaraError(f"{run_dir}: no checkpoint there; a training run keeps them in checkpoints/<NN>-<stage>-<step>")


def best_checkpoint(run_dir: str | Path, stage: str, metric: str) -> Path | None:
    """Return the stage's checkpoint with the best ``metadata["evaluation"][metric]``, the newer of equals.

    Lower is better for "ce", "mse", "contrastive" and names that begin with "loss", higher for all others. None where
    no readable checkpoint of the stage has the metric.
    """
    return _best([path for path in checkpoints(run_dir) if _stage(path)[1] == stage], metric)


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
                _clear_unfinished(directory.parent)
        finish = _begin_save(directory, arrays, metadata, write_extra)

        def finish_and_thin_out() -> None:
            finish()
            if distributed.is_main():
                _thin_out(self._run_dir.absolute(), directory, self._keep, self._best)

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


def warn_line(message: str) -> None:
    """Print a warning for the user of a command: one line on standard error."""
    print(f"warning: {' '.join(message.split())}", file=sys.stderr, flush=True)


def read_metadata(directory: str | Path) -> dict[str, Any]:
    """Return a checkpoint's metadata, with ``format_version``. Verifies this one file, not the arrays.

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
        raise _UnknownFormatError(
            f"{directory / METADATA}: format_version is {version!r}, this program reads {FORMAT_VERSION}; "
            "use the version of clara_jax that wrote it"
        )
    return metadata


def verify_checkpoint(directory: str | Path) -> None:
    """Compare every file with its checksum.

    Raises:
      ClaraError: the first file that is missing, cut short or changed.
    """
    directory = Path(directory)
    read_metadata(directory)
    _in_threads(lambda item: _verify(directory, *item), _checksums(directory).items())


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


def json_text(value: Mapping[str, Any]) -> str:
    """Format an object as the text of a JSON file; ValueError for a number that is not finite."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"


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
    partial = _hidden(directory, _PARTIAL)
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
            files = sorted(path for path in partial.rglob("*") if path.is_file())
            names = [path.relative_to(partial).as_posix() for path in files]
            sums = dict(zip(names, _in_threads(_digest, files), strict=True))
            (partial / CHECKSUMS).write_text(json_text(sums), encoding="utf-8")
            for path in partial.rglob("*"):
                sync(path)
            sync(partial)
            _commit(partial, directory)

    return finish


def _commit(partial: Path, directory: Path) -> None:
    replaced = _hidden(directory, _REPLACED)
    if directory.exists():
        os.rename(directory, replaced)
    os.rename(partial, directory)
    sync(directory.parent)
    if replaced.exists():
        shutil.rmtree(replaced)


def _clear_unfinished(folder: Path) -> None:
    """Remove what a killed writer left in a folder of checkpoints, and restore the one that it was replacing."""
    for path in folder.glob(".*") if folder.is_dir() else ():
        name = folder / path.stem[1:]
        if path.suffix == _REPLACED and not name.exists():
            os.rename(path, name)
        elif path.suffix in (_PARTIAL, _REMOVED, _REPLACED):
            shutil.rmtree(path)


def _hidden(directory: Path, suffix: str) -> Path:
    """Return a hidden name beside a checkpoint, on the same file system, under which it does not count."""
    return directory.with_name(f".{directory.name}{suffix}")


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


# --- pruning ---


def _thin_out(run_dir: Path, committed: Path, keep: int, best: str | None) -> None:
    found = checkpoints(run_dir)
    # Later checkpoints than the one just committed are damaged, or the run would have been resumed from them.
    found = found[: found.index(committed) + 1]
    kept = set(found[-keep:])
    for stage in {_stage(path) for path in found}:
        of_stage = [path for path in found if _stage(path) == stage]
        finished = [path for path in of_stage if _metadata_if_readable(path).get("finished") is True]
        kept.update(finished[-1:])
        if best is not None and (path := _best(of_stage, best)):
            kept.add(path)
    for path in found:
        if path not in kept:
            with file_errors(f"{path}: cannot remove this old checkpoint"):
                _remove(path)


def _remove(directory: Path) -> None:
    removed = _hidden(directory, _REMOVED)
    os.rename(directory, removed)
    # Otherwise the deletions might reach the disk before the new name does.
    sync(directory.parent)
    shutil.rmtree(removed)


def _stage(path: Path) -> tuple[int, str]:
    """Return number and name of the stage that a checkpoint belongs to."""
    match = _NAME.search(path.name)
    assert match is not None, "`checkpoints` lists no other names"
    return int(match[1]), match[2]


def _best(paths: Iterable[Path], metric: str) -> Path | None:
    sign = -1 if metric.startswith("loss") or metric in _LOWER_IS_BETTER else 1
    scored = []
    for i, path in enumerate(paths):
        value = _metadata_if_readable(path).get("evaluation", {}).get(metric)
        if value is not None:
            scored.append((sign * value, i, path))
    return max(scored)[-1] if scored else None


def _metadata_if_readable(path: Path) -> dict[str, Any]:
    try:
        return read_metadata(path)
    except ClaraError:
        return {}


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
