"""The files of a split: ArrayRecord shards, written one after the other as items come."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from clara_jax.errors import ClaraError

OPTIONS = "group_size:1"  # every item compressed (Zstandard) alone: any one is read without its neighbours


@dataclasses.dataclass(frozen=True)
class Shard:
    """A finished file: its name, its items, its size on the disk in bytes."""

    name: str
    records: int
    bytes: int


class ShardWriter:
    """A writer of a split's items; one shard is open at a time, and only its current chunk is in memory.

    TFDS' writer holds up to 1 GB of a split in memory, and beyond that asks TensorFlow for temporary files. It
    needs them for shuffling; here the order stays that of the input, and shuffling is left to the batch plan.

    Args:
      template: TFDS' names for the files of the split. Their number is part of them, so each shard gets its name when
        the last one is finished.
      shard_bytes: size of the items, uncompressed, at which a shard is full.
    """

    def __init__(self, template: tfds.core.ShardedFileTemplate, shard_bytes: int):
        self._template, self._shard_bytes = template, shard_bytes
        self._shards: list[Shard] = []
        self._writer: ArrayRecordWriter | None = None
        self._count = self._size = self._total = 0

    def add(self, data: bytes) -> None:
        """Append an item's bytes.

        Raises:
          ClaraError: the file system refuses.
        """
        try:
            writer = self._writer
            if writer is None:
                writer = self._writer = ArrayRecordWriter(str(self._unfinished()), OPTIONS)
                if not writer.ok():  # a file that cannot be opened raises nothing
                    raise ClaraError(f"{self._unfinished()}: cannot be written")
            writer.write(data)
        except RuntimeError as error:
            raise self._refused(error) from error
        self._count += 1
        self._size += len(data)
        if self._size >= self._shard_bytes:
            self._finish_shard()

    def finish(self) -> tuple[tfds.core.SplitInfo, list[Shard]]:
        """Name the shards, all of them on the disk; at least one item was added."""
        if self._writer is not None:
            self._finish_shard()
        named = []
        for index, shard in enumerate(self._shards):
            path = self._template.sharded_filepath(shard_index=index, num_shards=len(self._shards))
            os.rename(self._folder / shard.name, path)
            named.append(dataclasses.replace(shard, name=path.name))
        lengths = [shard.records for shard in named]
        split = self._template.split
        assert split is not None  # the template of a split has its name
        info = tfds.core.SplitInfo(
            name=split, shard_lengths=lengths, num_bytes=self._total, filename_template=self._template
        )
        return info, named

    @property
    def _folder(self) -> Path:
        return Path(os.fspath(self._template.data_dir))

    def _unfinished(self) -> Path:
        return self._folder / f"{self._template.split}-{len(self._shards):05d}.partial"

    def _finish_shard(self) -> None:
        path = self._unfinished()
        assert self._writer is not None  # a shard is finished only after an item was written to it
        try:
            self._writer.close()
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            reader = ArrayRecordReader(str(path))
            stored = reader.num_records()
            reader.close()
        except (OSError, RuntimeError) as error:
            raise self._refused(error) from error
        if stored != self._count:  # a cut file has no index, and then no records
            raise ClaraError(f"{path}: holds {stored} of {self._count} records; the disk has lost some of it")
        self._shards.append(Shard(path.name, self._count, path.stat().st_size))
        self._total += self._size
        self._writer, self._count, self._size = None, 0, 0

    def _refused(self, error: Exception) -> ClaraError:
        reason = str(error).removeprefix("write() failed: ").partition(";")[0]
        return ClaraError(f"{self._unfinished()}: cannot be written: {reason}")
