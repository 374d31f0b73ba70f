"""A data set that was built: any of its items by number, from any process."""

from __future__ import annotations

import contextlib
import dataclasses
import operator
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

from array_record.python.array_record_data_source import ArrayRecordDataSource

from clara_jax.data.builders.fingerprint import FORMAT, fingerprint
from clara_jax.data.builders.reading import schema_of
from clara_jax.data.builders.schema import Item
from clara_jax.data.layout import INFO, METADATA, STAGES
from clara_jax.errors import ClaraError
from clara_jax.strict_json import parse, unsealed

# The fields of the metadata (`read_metadata`), of each of its splits and of each shard, with their types.
_WHOLE = {"stage": str, "fingerprint": str, "splits": dict}
_SPLIT = {"fingerprint": str, "records": int, "with_positives": int, "rejected": int, "files": list, "shards": list}
_SHARD = {"name": str, "records": int, "bytes": int}
_READ_AT_ONCE = 256  # items that iteration reads at one time


@dataclasses.dataclass
class _WholeShard:
    """A file as ArrayRecordDataSource takes it (its `FileInstruction`), so that it is not opened to be counted."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class RecordSource(Sequence[Item]):
    """The items of one split, in their order; usable as ``grain.MapDataset.source(...)``.

    Only a small file is read before the first item is asked for. Pickled, it is a few strings; unpickling opens the
    same data set, or raises an error if it has changed.

    Attributes:
      directory: of the data set, down to its version.
      split: "train", "eval".
      stage: for which it was built.
      fingerprint: of this split.
      with_positives: records that name a positive document.
      rejected: lines that were left out when it was built.
    """

    def __init__(self, directory: str | os.PathLike, split: str):
        """Open a split of a data set.

        Args:
          directory: that of the data set, or one in which there is no other.
          split: "train", "eval".

        Raises:
          ClaraError: no data set, no such split, files that are missing or cut.
        """
        self.directory, self.split = str(dataset_directory(directory)), split
        metadata = read_metadata(self.directory)
        if split not in metadata["splits"]:
            has = ", ".join(metadata["splits"])
            raise ClaraError(f"{self.directory}: has no split {split!r}; it has {has}")
        about = metadata["splits"][split]
        self.stage: str = metadata["stage"]
        self.fingerprint: str = about["fingerprint"]
        self.with_positives: int = about["with_positives"]
        self.rejected: int = about["rejected"]
        self._schema = schema_of(self.stage)
        self._data = ArrayRecordDataSource([self._shard(*map(shard.get, _SHARD)) for shard in about["shards"]])

    def __len__(self) -> int:
        return len(self._data)

    # No slices are taken, as `grain.MapDataset.source` needs none.
    def __getitem__(self, index: SupportsIndex) -> Item:  # pyright: ignore[reportIncompatibleMethodOverride]
        place = self._place(index)
        with self._damage():
            return self._schema.decode(self._data[place])

    def __getitems__(self, indices: Sequence[SupportsIndex]) -> list[Item]:
        """Return items by number, in the order of the numbers; faster than one at a time from several shards."""
        places = [self._place(index) for index in indices]
        with self._damage():
            return list(map(self._schema.decode, self._data.__getitems__(places))) if places else []

    def __iter__(self) -> Iterator[Item]:
        for start in range(0, len(self), _READ_AT_ONCE):
            yield from self.__getitems__(range(start, min(start + _READ_AT_ONCE, len(self))))

    def __repr__(self) -> str:
        return f"RecordSource({self.directory!r}, {self.split!r}, fingerprint={self.fingerprint[:12]})"

    def __reduce__(self):
        return _reopen, (self.directory, self.split, self.fingerprint)

    def verify(self) -> None:
        """Read every item once and compare the fingerprint.

        Raises:
          ClaraError: they are not those that were built.
        """
        if fingerprint(self, self._schema) != self.fingerprint:
            raise ClaraError(f"{self.directory}: split {self.split} is not what was built; build it again")

    @contextlib.contextmanager
    def _damage(self) -> Iterator[None]:
        """Turn any error that a damaged file makes the readers raise into a `ClaraError` of one line."""
        try:
            yield
        except Exception as error:
            raise ClaraError(f"{self.directory}: split {self.split} cannot be read: {error}; build it again") from error

    def _place(self, index: SupportsIndex) -> int:
        place = operator.index(index)
        if not -len(self) <= place < len(self):
            raise IndexError(f"{self!r} has {len(self)} records; there is none at {place}")
        return place % len(self)

    def _shard(self, name: str, records: int, bytes: int) -> _WholeShard:
        path = os.path.join(self.directory, name)
        try:
            size = os.stat(path).st_size
        except OSError as error:
            raise ClaraError(f"{path}: {error.strerror}; the data set is not whole, copy or build it again") from None
        if size != bytes:
            raise ClaraError(f"{path}: has {size} bytes, and had {bytes} when it was built; copy or build it again")
        return _WholeShard(path, 0, records, records)


def dataset_directory(directory: str | os.PathLike) -> Path:
    """Return the directory of a data set: the one that is named, or the only one in it (DIR/clara_scp/1.0.0).

    Raises:
      ClaraError: there is none, or several.
    """
    path = Path(directory).expanduser()
    if (path / INFO).is_file():
        return path
    found = sorted(file.parent for pattern in ("*", "clara_*/*") for file in path.glob(f"{pattern}/{INFO}"))
    if len(found) == 1:
        return found[0]
    if found:
        raise ClaraError(f"{path}: holds {', '.join(str(one.relative_to(path)) for one in found)}; name one of them")
    problem = "holds no data set" if path.is_dir() else "no such directory"
    raise ClaraError(f"{path}: {problem}; python -m clara_jax.data build makes one")


def read_metadata(directory: str | os.PathLike) -> dict[str, Any]:
    """Return the metadata of a data set: format, stage, fingerprint, and by split its records and shards.

    Raises:
      ClaraError: it was not built by this package, or in another format, or was changed since.
    """
    path = Path(directory) / METADATA
    try:
        metadata = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ClaraError(f"{path}: cannot be read ({error}); is this a data set of clara_jax?") from None
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise ClaraError(f"{path}: is not of format {FORMAT}; build the data set again")
    metadata = unsealed(metadata)
    if metadata is None or not _is_whole(metadata):
        raise ClaraError(f"{path}: is not what was written; build the data set again")
    return metadata


def _is_whole(metadata: dict[str, Any]) -> bool:
    if not _has(metadata, _WHOLE) or metadata["stage"] not in STAGES:
        return False
    splits = metadata["splits"].values()
    return all(_has(split, _SPLIT) and all(_has(shard, _SHARD) for shard in split["shards"]) for split in splits)


def _has(value: Any, members: dict[str, type]) -> bool:
    """Return whether it is an object with these members, no number of which is below 0."""
    if not isinstance(value, dict):
        return False
    found = ((value.get(name), kind) for name, kind in members.items())
    return all(isinstance(x, kind) and not (isinstance(x, int) and kind is int and x < 0) for x, kind in found)


def _reopen(directory: str, split: str, expected: str) -> RecordSource:
    source = RecordSource(directory, split)
    if source.fingerprint != expected:
        raise ClaraError(f"{directory}: split {split} was built anew while it was in use; start again")
    return source
