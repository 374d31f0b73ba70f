"""Reading a store: its chunks and their memories by id, its documents, its statistics.

Chunks and memories are compared with their checksums: a damaged one is an error that names its chunk.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clara_jax.errors import ClaraError
from clara_jax.retrieval.conditions import COLUMNS, FIELDS, compiled
from clara_jax.retrieval.encodings import ByteRows, MemoryEncoding
from clara_jax.retrieval.rows import METADATA, among, as_bytes, as_chunk, as_metadata, damaged_memories
from clara_jax.retrieval.table import StoreError, Table, errors
from clara_jax.text.documents import CHUNK_FIELDS, Chunk, DocumentMetadata

_STATS_ROWS = 8192  # chunks whose texts are measured at a time


@dataclasses.dataclass(frozen=True)
class StoredDocument:
    """A document of a store, with the numbers of its chunks and tokens, and what is known of its file."""

    id: str
    title: str
    source: str
    chunks: int
    tokens: int
    path: str = ""
    type: str = ""
    modified: str = ""


class ChunkReader:
    """The chunks of a table, as they are read; `clara_jax.retrieval.document_store.DocumentStore` also writes them.

    A read sees the last commit; reads that belong together stand in a block of `reading`.

    Attributes:
      location: a directory, or the URL of a bucket.
      encoding: of memories.
      fingerprint: of the compressor (`clara_jax.checkpoints.bundle.Bundle.compressor_fingerprint`).
    """

    def __init__(self, location: str, table: Table, encoding: MemoryEncoding, fingerprint: str):
        self.location, self._table = location, table
        self.encoding, self.fingerprint = encoding, fingerprint

    def __len__(self) -> int:
        """Return the number of chunks."""
        return self._table.read(len)

    @property
    def version(self) -> int:
        """A number that changes with every commit of any process."""
        return self._table.read(lambda table: table.version)

    def reading(self) -> contextlib.AbstractContextManager[Any]:
        """Return a block in which all reads see one version, the newest when it begins."""
        return self._table.reading()

    def where(self, condition: str) -> list[str]:
        """Return the ids of the chunks for which a condition holds (`clara_jax.retrieval.conditions`).

        Raises:
          ClaraError: the condition cannot be parsed.
        """
        return self._rows(self._compiled(condition), ["id"])["id"].to_pylist()

    def check_condition(self, condition: str) -> None:
        """Check a condition before a search.

        Raises:
          ClaraError: it cannot be parsed, or names a column that the store does not have.
        """
        self._compiled(condition)

    def index(self) -> tuple[list[str], list[bytes]]:
        """Return the ids and keys of all chunks."""
        rows = self._rows(None, ["id", "key"])
        return rows["id"].to_pylist(), rows["key"].to_pylist()

    def chunks(self, ids: Sequence[str]) -> list[Chunk]:
        """Return chunks by id, in the order of the ids.

        Raises:
          ClaraError: one of them is not there, or is damaged.
        """
        found: dict[str, Chunk] = {}
        for chunk, _, whole in self._chunks(among("id", ids)) if ids else ():
            if not whole:
                raise self._damaged([chunk.id])
            found[chunk.id] = chunk
        self._check_there(ids, found)
        return [found[name] for name in ids]

    def known(self, documents: Sequence[str]) -> dict[str, dict[str, tuple[Chunk, bytes]]]:
        """Return the chunks of some documents, as document -> chunk id -> (chunk, key).

        Documents that are not in the store are left out. The key of a damaged chunk is empty, and so equals no other.
        """
        found: dict[str, dict[str, tuple[Chunk, bytes]]] = {}
        if documents:
            for chunk, key, whole in self._chunks(among("document", documents)):
                found.setdefault(chunk.document, {})[chunk.id] = chunk, key if whole else b""
        return found

    def metadata(self, documents: Sequence[str]) -> dict[str, DocumentMetadata]:
        """Return what is known of documents, by their ids; of one that is not in the store nothing is returned."""
        if not documents:
            return {}
        names = self._metadata_columns()
        rows = self._rows(among("document", documents), ["document", *names])
        found = {row.pop("document"): row for row in rows.to_pylist()}
        return {name: as_metadata(dict.fromkeys(METADATA.names) | row) for name, row in found.items()}

    def of_files(self, paths: Sequence[str]) -> list[str]:
        """Return the ids of the documents that were read from some files, given by their real paths; "" is no file."""
        paths = [path for path in paths if path]
        if not paths or "path" not in self._metadata_columns():
            return []
        return self._rows(among("path", paths), ["document"])["document"].unique().to_pylist()

    def memories(self, ids: Sequence[str]) -> np.ndarray:
        """Return memories by id, [n, M, E] of ``encoding.dtype``, in the order of the ids.

        Raises:
          ClaraError: one of them is not there, or is damaged.
        """
        rows = self._rows(among("id", ids) if ids else "false", ["id", "memory", "memory_checksum"])
        stored, encoded = self._whole_memories(rows)
        places = {name: place for place, name in enumerate(stored)}
        self._check_there(ids, places)
        return self.encoding.decode(encoded)[[places[name] for name in ids]]

    def all_memories(self, rows: int) -> Iterator[tuple[list[str], list[bytes], np.ndarray]]:
        """Yield all chunks' (ids, keys, memories [n, M, E]), at most ``rows`` at a time.

        Raises:
          ClaraError: one of them is damaged.
        """
        columns = ["id", "key", "memory", "memory_checksum"]
        for batch in self.rows(columns, rows):
            ids, encoded = self._whole_memories(batch)
            yield ids, batch["key"].to_pylist(), self.encoding.decode(encoded)

    def documents(
        self, offset: int = 0, limit: int | None = None, containing: str = ""
    ) -> tuple[list[StoredDocument], int]:
        """Return documents in the order of their ids, and the number of all that fit.

        Args:
          offset: documents that are left out at the beginning.
          limit: documents at most.
          containing: a text that the id or the title of a document must contain, in capitals or not; "" fits all.
        """
        known = [name for name in self._metadata_columns() if name != "fields"]
        rows = self._rows(None, ["document", "title", "source", "tokens", *known])
        sums = [("title", "min"), ("source", "min"), ("document", "count"), ("tokens", "sum")]
        grouped = rows.group_by("document").aggregate(sums + [(name, "min") for name in known]).sort_by("document")
        names = ["document", "title_min", "source_min", "document_count", "tokens_sum"]
        names += [f"{name}_min" for name in known]
        if containing:
            wanted, shown = containing.casefold(), zip(*(grouped[name].to_pylist() for name in names[:2]), strict=True)
            grouped = grouped.filter(pa.array([wanted in f"{one}\n{title}".casefold() for one, title in shown]))
        taken = grouped.select(names).slice(offset, limit).to_pylist()
        # Null stands in rows that were written before the column was there.
        values: list[list[Any]] = [["" if row[name] is None else row[name] for name in names] for row in taken]
        listed = [StoredDocument(*one) for one in values]
        return listed, grouped.num_rows

    def stats(self) -> dict[str, Any]:
        """Return statistics of the store: documents, chunks, tokens, bytes, and the compressor and encoding.

        "bytes" are those of all files of the newest version, "text_bytes" those of the chunks' texts in UTF-8, and
        "memory_bytes" those of one chunk's memory. Both the latter and "bytes_per_chunk" are also given as multiples of
        a chunk's text, None of an empty store.
        """
        documents, chunks, tokens, text = set(), 0, 0, 0
        with self.reading():
            version = self.version
            size = self._table.read(lambda table: table.stats()["total_bytes"])
            for batch in self.rows(["document", "tokens", "text"], _STATS_ROWS):
                documents.update(batch["document"].to_pylist())
                chunks += batch.num_rows
                tokens += int(np.sum(batch["tokens"].to_numpy(), dtype=np.int64))
                lengths = pc.call_function("binary_length", [batch["text"]])
                text += int(np.sum(lengths.to_numpy(), dtype=np.int64))

        def times_text(each: float) -> float | None:
            return round(each * chunks / text, 2) if text else None

        each = size / chunks if chunks else 0.0
        return {
            "documents": len(documents),
            "chunks": chunks,
            "tokens": tokens,
            "bytes": size,
            "bytes_per_chunk": round(each, 1),
            "bytes_times_text": times_text(each),
            "text_bytes": text,
            "text_bytes_per_chunk": round(text / chunks, 1) if chunks else 0.0,
            "memory_tokens": self.encoding.shape[0],
            "memory_count": self.encoding.memory_count,
            "width": self.encoding.shape[1],
            "encoding": self.encoding.name,
            "memory_bytes": self.encoding.size,
            "memory_times_text": times_text(self.encoding.size),
            "fingerprint": self.fingerprint,
            "version": version,
        }

    def _metadata_columns(self) -> list[str]:
        """Return the columns of `METADATA`; a store of an earlier version has none before it is written to."""
        names = self._table.read(lambda table: table.schema.names)
        return [name for name in METADATA.names if name in names]

    def _compiled(self, condition: str | None) -> str | None:
        if condition is None:
            return None
        missing = set(METADATA.names).difference(self._metadata_columns())
        return compiled(condition, [name for name in (*COLUMNS, FIELDS) if name not in missing])

    def _rows(self, condition: str | None, columns: list[str]) -> pa.Table:
        def search(table: Any) -> pa.Table:
            query = table.search()
            return (query.where(condition) if condition else query).select(columns).to_arrow()

        return self._table.read(search)

    def rows(self, columns: list[str], rows: int) -> Iterator[pa.Table]:
        """Yield all rows of one version, at most ``rows`` at a time."""
        with self.reading() as table:
            with errors(self.location, "read"):
                batches = iter(table.search().select(columns).to_batches(rows))
            while True:
                with errors(self.location, "read"):
                    batch = next(batches, None)
                if batch is None:
                    return
                if batch.num_rows:
                    yield pa.Table.from_batches([batch])

    def _chunks(self, condition: str) -> Iterator[tuple[Chunk, bytes, bool]]:
        """Yield chunks with their keys, and whether their checksums hold."""
        rows = self._rows(condition, [*CHUNK_FIELDS, "key", "facts_checksum"])
        return map(as_chunk, rows.to_pylist())

    def _whole_memories(self, rows: pa.Table) -> tuple[list[str], ByteRows]:
        """Return the ids and memories of rows, as bytes.

        Raises:
          ClaraError: one of them is damaged.
        """
        ids, encoded = rows["id"].to_pylist(), as_bytes(rows["memory"])
        damaged = damaged_memories(ids, encoded, rows["memory_checksum"].to_pylist())
        if damaged:
            raise self._damaged(damaged)
        return ids, encoded

    def _damaged(self, ids: Sequence[str]) -> StoreError:
        others = f" and {len(ids) - 1} others are" if len(ids) > 1 else " is"
        return StoreError(
            f"{self.location}: chunk {ids[0]!r}{others} not as it was written: the disk, or what wrote to it, has "
            "damaged it; python -m clara_jax.compress --verify names all such chunks, delete their documents and add "
            "them again"
        )

    def _check_there(self, ids: Sequence[str], found: Mapping[str, Any]) -> None:
        missing = set(ids).difference(found)
        if missing:
            raise ClaraError(f"{self.location}: has no chunk {min(missing)!r}" + (" and others" * (len(missing) > 1)))
