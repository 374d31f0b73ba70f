"""A stage's tokens on disk: computed once per data set, tokenizer and settings, then read by number.

Of any number of records only the index of sizes and the offsets are in memory; the rest is mapped. A cache is one
directory, named by what its tokens depend on, written beside its place and moved there when it is whole. A disk may
change it later: each item has a checksum that is compared whenever it is read, and each file that is read as a whole
one that is compared when the cache is opened.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import socket
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from clara_jax.errors import ClaraError
from clara_jax.files import file_errors
from clara_jax.input_pipeline.document_tokenizer import SLICE
from clara_jax.input_pipeline.encoding import EncodedRecord, Encoder, Encoding, Example, row_of_sizes
from clara_jax.input_pipeline.prompts import PROMPT_VERSION
from clara_jax.input_pipeline.records import Record
from clara_jax.input_pipeline.tokenization import ClaraTokenizer
from clara_jax.strict_json import parse

FORMAT = 2
_ABOUT = "tokens.json"
_REMEDY = "delete the directory, and its tokens are made anew"  # of a damaged cache
# The files: flat values of all items one after another, and where each item ends, and the checksum of each.
_VALUES = {
    "documents": np.int32,
    "queries": np.int32,
    "prompt_ids": np.int32,
    "memory_index": np.int32,
    "labels": np.int32,
    "document_numbers": np.int32,
    "positives": np.int32,
    "where": np.uint8,
}
_SIZES = "sizes.npy"
# What is read as a whole, of which `_ABOUT` has the checksums.
_WHOLE = (_SIZES, "document_numbers.bin", *(f"{name}.{part}.npy" for name in _VALUES for part in ("ends", "sums")))


class TokenCache(Sequence[Example]):
    """The examples of a cache, made when they are asked for; `sizes` is their index, int32 [N, 5].

    Safe to read from several threads, and pickled as its path.

    Raises:
      ClaraError: when it is opened, or an example is read: the file system refuses; the content has changed.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        with file_errors(f"{self.directory}: tokens cannot be read", f"; {_REMEDY}"):
            try:
                about = parse((self.directory / _ABOUT).read_text(encoding="utf-8"))
                self._ranks, sums = about["ranking"], [about["checksums"][name] for name in _WHOLE]
            except (ValueError, LookupError, TypeError):
                raise self._damaged(_ABOUT) from None
            for name, expected in zip(_WHOLE, sums, strict=True):
                if _checksum(self.directory / name) != expected:
                    raise self._damaged(name)
            self._values = {name: _map(self.directory / f"{name}.bin", dtype) for name, dtype in _VALUES.items()}
        self.sizes = np.load(self.directory / _SIZES)
        self._ends, self._sums = (
            {name: np.load(self.directory / f"{name}.{part}.npy") for name in _VALUES} for part in ("ends", "sums")
        )

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Example:  # pyright: ignore[reportIncompatibleMethodOverride]  # no slices
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        index = int(index)
        documents = tuple(self._item("documents", number) for number in self._item("document_numbers", index))
        return Example(
            index,
            self._item("where", index).tobytes().decode(),
            documents,
            self._item("queries", index) if self._ranks else None,
            self._item("prompt_ids", index),
            self._item("memory_index", index),
            self._item("labels", index),
            tuple(self._item("positives", index).tolist()) if self._ranks else None,
        )

    def documents(self) -> Iterator[np.ndarray]:
        """Yield each distinct document once, in the order in which records name them."""
        return (self._item("documents", number) for number in range(len(self._ends["documents"])))

    @property
    def document_numbers(self) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of all examples' documents one after another, int32, and where each example's end, int64 [N]."""
        return self._values["document_numbers"], self._ends["document_numbers"]

    def __reduce__(self):
        return TokenCache, (self.directory,)

    def _item(self, name: str, number: int) -> np.ndarray:
        ends = self._ends[name]
        item = self._values[name][ends[number - 1] if number else 0 : ends[number]]
        if zlib.crc32(item.data) != self._sums[name][number]:
            raise self._damaged(f"{name}.bin")
        return item

    def _damaged(self, name: str) -> ClaraError:
        return ClaraError(f"{self.directory / name}: is not what was written; {_REMEDY}")


def open_or_make(
    folder: str | Path,
    records: Iterable[Record],
    fingerprint: str,
    tokenizer: ClaraTokenizer,
    encoding: Encoding,
    progress: Callable[[int], None] | None = None,
) -> TokenCache:
    """Open the cache of these tokens below ``folder``, made first where it is missing.

    Args:
      folder: of all caches.
      records: read once, in order, where the cache is missing; else not at all.
      fingerprint: of the records: another data set has another cache.
      tokenizer: of the model.
      encoding: the stage, and how its records become tokens.
      progress: called with the number of records done.

    Raises:
      ClaraError: a record whose prompt is cut so far that a memory or the whole target is lost; no records; a directory
        that cannot be written; a cache that is damaged.

    Warns:
      where it is made, if documents, questions or targets are cut.
    """
    directory = Path(folder) / cache_key(fingerprint, tokenizer, encoding)
    if not directory.exists():
        _make(directory, records, Encoder(tokenizer, encoding), progress)
    return TokenCache(directory)


def cache_key(fingerprint: str, tokenizer: ClaraTokenizer, encoding: Encoding) -> str:
    """Return a cache's name: a hash of everything that its tokens depend on."""
    facts = [FORMAT, fingerprint, tokenizer.tokenizer_hash(), PROMPT_VERSION, dataclasses.asdict(encoding)]
    facts += [tokenizer.doc_max_length, tokenizer.memory_tokens, tokenizer.max_length, tokenizer.memory_ids]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _make(directory: Path, records: Iterable[Record], encoder: Encoder, progress: Callable[[int], None] | None) -> None:
    unfinished = directory.with_name(f".{directory.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        unfinished.mkdir(parents=True)
        with _Writer(unfinished) as writer:
            source = iter(records)
            while part := list(islice(source, SLICE)):
                documents, encoded = encoder.encode(part)
                writer.add(part, documents, encoded)
                if progress is not None:
                    progress(writer.count)
        if not writer.count:
            raise ClaraError("there are no records to tokenize")
        about: dict[str, Any] = {"format": FORMAT, "records": writer.count, "documents": encoder.document_count}
        about["ranking"] = writer.ranks
        about["checksums"] = {name: _checksum(unfinished / name) for name in _WHOLE}
        (unfinished / _ABOUT).write_text(json.dumps(about) + "\n")
        try:
            os.rename(unfinished, directory)
        except OSError:
            if not directory.exists():  # two processes that made the same: the second one finds it there
                raise
    except OSError as error:
        raise ClaraError(f"{directory}: tokens cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    encoder.warn()


class _Writer:
    """A writer that appends records to the files of a cache."""

    def __init__(self, directory: Path):
        self.count, self.ranks = 0, False
        self._directory = directory
        self._files: dict[str, BinaryIO] = {name: open(directory / f"{name}.bin", "wb") for name in _VALUES}
        self._lengths: dict[str, list[np.ndarray]] = {name: [] for name in _VALUES}
        self._sums: dict[str, list[int]] = {name: [] for name in _VALUES}
        self._sizes: list[np.ndarray] = []
        self._document_lengths = np.empty(0, np.int32)

    def add(self, records: Sequence[Record], documents: list[np.ndarray], encoded: list[EncodedRecord]) -> None:
        """Append records, and the documents that are new with them."""
        self._append("documents", documents)
        new = np.array([len(ids) for ids in documents], np.int32)
        self._document_lengths = np.concatenate([self._document_lengths, new])
        none = np.empty(0, np.int32)
        self._append("queries", [none if one.query is None else one.query for one in encoded])
        for name in ("prompt_ids", "memory_index", "labels"):
            self._append(name, [getattr(one, name) for one in encoded])
        self._append("document_numbers", [np.array(one.documents, np.int32) for one in encoded])
        self._append("positives", [np.array(one.positives or (), np.int32) for one in encoded])
        self._append("where", [np.frombuffer(record.where.encode(), np.uint8) for record in records])
        lengths = ([self._document_lengths[number] for number in one.documents] for one in encoded)
        self._sizes.append(np.array(list(map(row_of_sizes, encoded, lengths)), np.int32))
        self.count += len(encoded)
        self.ranks = self.ranks or encoded[0].query is not None

    def _append(self, name: str, items: Sequence[np.ndarray]) -> None:
        if items:
            content = [np.asarray(item, _VALUES[name]).tobytes() for item in items]
            self._files[name].write(b"".join(content))
            self._lengths[name].append(np.array([len(item) for item in items], np.int64))
            self._sums[name].extend(map(zlib.crc32, content))

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for file in self._files.values():
            file.close()
        if kind is None and self.count:
            for name, lengths in self._lengths.items():
                ends = np.cumsum(np.concatenate(lengths)) if lengths else np.empty(0, np.int64)
                np.save(self._directory / f"{name}.ends.npy", ends)
                np.save(self._directory / f"{name}.sums.npy", np.array(self._sums[name], np.uint32))
            np.save(self._directory / _SIZES, np.concatenate(self._sizes))


def _map(path: Path, dtype: type) -> np.ndarray:
    """Map a flat file; an empty one cannot be mapped. Of a file that was cut within a value take the whole values."""
    count = path.stat().st_size // np.dtype(dtype).itemsize
    return np.memmap(path, dtype, "r", shape=(count,)) if count else np.empty(0, dtype)


def _checksum(path: Path) -> int:
    return zlib.crc32(_map(path, np.uint8).data)


def slices(items: Sequence[Record]) -> Iterator[Record]:
    """Yield the items of a large source, taken in slices: one by one is several times slower."""
    fetch = getattr(items, "__getitems__", None)
    for start in range(0, len(items), SLICE):
        numbers = range(start, min(start + SLICE, len(items)))
        yield from fetch(list(numbers)) if fetch is not None else (items[number] for number in numbers)
