"""Retention of a run's checkpoints: which there are, which of them is the newest intact or the best, which go.

Hidden names in the folder of checkpoints are unfinished work: ``.partial`` is being written, ``.removed`` is being
deleted, and ``.replaced`` makes way for a new checkpoint of its name, and counts until that is complete.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clara_jax import distributed
from clara_jax.checkpoints.integrity import UnknownFormatError, read_metadata, verify_checkpoint
from clara_jax.errors import ClaraError, warn_line
from clara_jax.files import file_errors, sync

PARTIAL, REMOVED, REPLACED = ".partial", ".removed", ".replaced"

_NAME = re.compile(r"(\d+)-(.+)-(\d+)")
_LOWER_IS_BETTER = ("ce", "mse", "contrastive")


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
        if name.startswith(".") and name.endswith(REPLACED):
            named.setdefault(name[1 : -len(REPLACED)], path)
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
        except UnknownFormatError:
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


def thin_out(run_dir: Path, committed: Path, keep: int, best: str | None) -> None:
    """Remove the run's checkpoints up to the one just committed, but those that `CheckpointWriter` keeps."""
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


def clear_unfinished(folder: Path) -> None:
    """Remove what a killed writer left in a folder of checkpoints, and restore the one that it was replacing."""
    for path in folder.glob(".*") if folder.is_dir() else ():
        name = folder / path.stem[1:]
        if path.suffix == REPLACED and not name.exists():
            os.rename(path, name)
        elif path.suffix in (PARTIAL, REMOVED, REPLACED):
            shutil.rmtree(path)


def hidden(directory: Path, suffix: str) -> Path:
    """Return a hidden name beside a checkpoint, on the same file system, under which it does not count."""
    return directory.with_name(f".{directory.name}{suffix}")


def _remove(directory: Path) -> None:
    removed = hidden(directory, REMOVED)
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
