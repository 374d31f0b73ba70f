"""Building a data set: whole or not at all, however the process ends."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from clara_jax.data.builders.datasets import DATASETS, REJECTED, SHARD_BYTES
from clara_jax.data.builders.reading import schema_of
from clara_jax.data.builders.source import read_metadata
from clara_jax.data.layout import INFO
from clara_jax.errors import ClaraError
from clara_jax.files import sync
from clara_jax.formats.jsonl import data_files
from clara_jax.locks import locked

LOCK, STAGING, PREVIOUS = ".lock", ".building", "previous"  # beside the data set's directory; within the second


@dataclasses.dataclass(frozen=True)
class SplitReport:
    """A split that was built; ``bytes`` is the size of its files."""

    records: int
    shards: int
    bytes: int
    rejected: int
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class BuildReport:
    """A data set that was built.

    Attributes:
      directory: of the data set, down to its version.
      rejects: the file of lines that were left out; None where there is none.
    """

    directory: Path
    stage: str
    splits: Mapping[str, SplitReport]
    fingerprint: str
    rejects: Path | None
    seconds: float

    def __str__(self) -> str:
        lines = [f"{self.directory}: {self.stage}, {self.seconds:.1f} s"]
        for name, split in self.splits.items():
            sizes = f"{split.records} records, {split.shards} shards, {split.bytes} bytes, {split.rejected} rejected"
            lines.append(f"  {name}: {sizes}, fingerprint {split.fingerprint}")
        lines.append(f"  fingerprint {self.fingerprint}")
        if self.rejects:
            lines.append(f"  rejected lines: {self.rejects}")
        return "\n".join(lines)


def build(
    stage: str,
    files: Mapping[str, Sequence[str]],
    directory: str | os.PathLike,
    *,
    on_error: str = "stop",
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: bool = False,
) -> BuildReport:
    """Build ``<directory>/clara_<stage>/<version>`` from JSONL files, in the layout of TFDS.

    It is written beside its place and moved there when the disk holds it. A build that was killed leaves nothing that
    could be taken for a data set; the next one removes it.

    Args:
      stage: "scp", "instruct", "end_to_end", "retrieval" (stored as clara_end_to_end) or "corpus".
      files: patterns of files by split.
      directory: local or mounted.
      on_error: "stop" at the first line that is not a record, or "skip" it: it goes to ``rejected.jsonl`` beside the
        shards.
      overwrite: replace a data set that is there; it stays as it was until the new one is complete.
      shard_bytes: see `JsonlDataset`.
      progress: show a bar for each split.

    Raises:
      ClaraError: files that are not there or hold no records, a bad line, a directory that holds this data set already
        or in which another process builds it, a file system that refuses.
    """
    started = time.monotonic()
    schema_of(stage)
    found = {split: data_files(patterns, f"--{split}") for split, patterns in files.items() if patterns}
    if not found:
        raise ClaraError("no data file is named; name at least one JSONL file, e.g. --train FILE")
    root = Path(directory).expanduser()
    name, version = DATASETS[stage].name, str(DATASETS[stage].VERSION)
    target = root / name / version
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.parent / LOCK, f"{target}: another process is building it; wait for it"):
            staging = target.parent / STAGING
            _clear(staging, target)
            if target.exists() and not overwrite:
                raise ClaraError(f"{target}: is there already; name another directory, or give --overwrite")
            try:
                options = {"on_error": on_error, "shard_bytes": shard_bytes, "progress": progress}
                dataset = DATASETS[stage](data_dir=staging, files=found, stage=stage, **options)
                dataset.download_and_prepare()
                _move(Path(dataset.data_dir), target, staging)
            finally:
                _clear(staging, target)
    except OSError as error:
        raise ClaraError(f"{error.filename or target}: {error.strerror or error}") from error
    return _report(target, time.monotonic() - started)


def _report(target: Path, seconds: float) -> BuildReport:
    metadata = read_metadata(target)
    splits = {
        name: SplitReport(
            about["records"],
            len(about["shards"]),
            sum(shard["bytes"] for shard in about["shards"]),
            about["rejected"],
            about["fingerprint"],
        )
        for name, about in metadata["splits"].items()
    }
    rejects = target / REJECTED
    return BuildReport(
        target, metadata["stage"], splits, metadata["fingerprint"], rejects if rejects.exists() else None, seconds
    )


def _move(made: Path, target: Path, staging: Path) -> None:
    """Put a data set in its place, once the disk holds it."""
    for path in (*made.iterdir(), made):
        sync(path)
    if target.exists():
        target.rename(staging / PREVIOUS)
    made.rename(target)
    sync(target.parent)


def _clear(staging: Path, target: Path) -> None:
    """Remove what a build left, except for a data set that it was about to replace when it ended."""
    previous = staging / PREVIOUS
    if (previous / INFO).is_file() and not target.exists():
        previous.rename(target)
    if staging.exists():
        shutil.rmtree(staging)
