"""The document store: chunks with their memories in a LanceDB table, on a disk or in a bucket.

A commit replaces whole documents, so a store holds each document as it was before or as it is after, whenever a writer
is stopped. What a chunk was made of is known by its key: a chunk with the same key need not be compressed again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import FTS, IvfSq

from clara_jax.errors import ClaraError
from clara_jax.files import locked
from clara_jax.retrieval.encodings import MemoryEncoding

FORMAT = 1
VECTOR_WIDTH = 256  # of search vectors, see `clara_jax.retrieval.first_pass`
_CHUNKS, _PROJECTION = "chunks", "projection"
_FEWEST_INDEXED = 10_000  # chunks; of fewer every search vector is looked at
_ABOUT = b"clara_jax"  # our entry among the table's metadata
_KEY_BYTES = 16
_FACTS = ("id", "document", "title", "text", "source", "start", "end", "tokens")


@dataclasses.dataclass(frozen=True)
class StoredChunk:
    """A chunk as it lies in a store.

    Attributes:
      id: unique in the store.
      document: the id of the document it was cut from.
      title, source: the document's.
      text: what was compressed.
      start, end: of the stretch of the document, in characters; -1 where unknown.
      tokens: of the text.
    """

    id: str
    document: str
    title: str
    text: str
    source: str
    start: int
    end: int
    tokens: int


@dataclasses.dataclass(frozen=True)
class StoredDocument:
    """A document of a store: how many chunks it has, and their tokens."""

    id: str
    title: str
    source: str
    chunks: int
    tokens: int


class DocumentStore:
    """A table of chunks. Any number of readers and writers; every read sees the last commit.

    Attributes:
      location: a directory, or the URL of a bucket.
      encoding: of memories.
      fingerprint: of the compressor (`clara_jax.bundle.Bundle.compressor_fingerprint`).
    """

    def __init__(self, location: str, database: Any, table: Any):
        self.location, self._database, self._table = location, database, table
        about = self._about(location, table)
        self.fingerprint: str = about["fingerprint"]
        self.encoding = MemoryEncoding(about["encoding"], about["memory_tokens"], about["width"])

    @classmethod
    def exists(cls, location: str | os.PathLike) -> bool:
        """Whether there is a store."""
        location = os.path.expanduser(os.fspath(location))
        if "://" not in location and not os.path.isdir(location):
            return False  # a connection would make the directory
        with _errors(location, "opened"):
            return _CHUNKS in _tables(_connect(location))

    @classmethod
    def open(cls, location: str | os.PathLike) -> DocumentStore:
        """Opens a store.

        Raises:
          ClaraError: there is none, or it is of another format.
        """
        location = os.path.expanduser(os.fspath(location))
        if not cls.exists(location):
            raise ClaraError(f"{location}: no store is there; make one with python -m clara_jax.compress")
        with _errors(location, "opened"):
            database = _connect(location)
            return cls(location, database, database.open_table(_CHUNKS))

    @classmethod
    def open_or_make(
        cls, location: str | os.PathLike, fingerprint: str, encoding: str, memory_tokens: int, width: int
    ) -> DocumentStore:
        """Opens a store, or makes an empty one; either way it is for this compressor.

        Raises:
          ClaraError: it is another compressor's or encoding's, or the place cannot be written.
        """
        location = os.path.expanduser(os.fspath(location))
        about = {"format": FORMAT, "fingerprint": fingerprint, "encoding": encoding}
        about |= {"memory_tokens": memory_tokens, "width": width}
        size = MemoryEncoding(encoding, memory_tokens, width).size
        if not cls.exists(location):
            with _errors(location, "made"):
                # Another writer may make it at the same time; whose it is, is looked at below.
                _connect(location).create_table(_CHUNKS, schema=_schema(size, about), exist_ok=True)
        store = cls.open(location)
        store.check(fingerprint)
        if store.encoding.name != encoding:
            raise ClaraError(
                f"{location}: holds memories as {store.encoding.name}, not {encoding}; name another directory, or ask "
                f"for {store.encoding.name}"
            )
        return store

    def check(self, fingerprint: str) -> None:
        """Refuses a store of another compressor.

        Raises:
          ClaraError: it is.
        """
        if fingerprint != self.fingerprint:
            raise ClaraError(
                f"{self.location}: holds memories of another compressor (fingerprint {self.fingerprint[:12]}, this "
                f"model has {fingerprint[:12]}); compress the documents with this model into another directory"
            )

    def __len__(self) -> int:
        """Chunks."""
        with self._errors("read"):
            return self._table.count_rows()

    @property
    def version(self) -> int:
        """A number that changes with every commit, of whichever process."""
        with self._errors("read"):
            return self._table.version

    # --- writing ---

    def writing(self) -> contextlib.AbstractContextManager[None]:
        """For whoever reads what is there and writes accordingly: waits for other writers, and keeps them out; those in
        a bucket only from parting a commit, which is whole in any case."""
        remote = "://" in self.location
        return contextlib.nullcontext() if remote else locked(os.path.join(self.location, ".lock"), None)

    def known(self, documents: Sequence[str]) -> dict[str, dict[str, tuple[StoredChunk, bytes]]]:
        """The chunks of some documents: document -> chunk id -> (chunk, key); documents that are not there are left
        out."""
        found: dict[str, dict[str, tuple[StoredChunk, bytes]]] = {}
        if documents:
            for row in self._rows(_among("document", documents), [*_FACTS, "key"]).to_pylist():
                key = row.pop("key")
                found.setdefault(row["document"], {})[row["id"]] = StoredChunk(**row), key
        return found

    def replace(
        self,
        chunks: Sequence[StoredChunk],
        keys: Sequence[bytes],
        memories: np.ndarray,
        kept: Sequence[str] = (),
        outdated: Sequence[str] = (),
        vectors: np.ndarray | None = None,
    ) -> None:
        """Writes chunks of whole documents, and takes away what those documents had besides, in one commit.

        Args:
          chunks: with ``keys``, 16 bytes each, and ``memories`` [n, M, E].
          kept: ids of chunks of the outdated documents that stay as they are.
          outdated: documents that had chunks before.
          vectors: search vectors float32 [n, 256]; None where the store has none yet.

        Raises:
          ClaraError: the file system refuses; nothing is written then.
        """
        facts = {name: [getattr(chunk, name) for chunk in chunks] for name in _FACTS}
        encoded = self.encoding.encode(memories)
        columns = [pa.array(facts[name], _schema(0, {}).field(name).type) for name in _FACTS]
        columns += [_binary(np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), _KEY_BYTES)), _binary(encoded)]
        columns.append(_vectors(vectors, len(chunks)))
        rows = pa.table(columns, schema=_schema(self.encoding.size, {}))
        with self._errors("written"):
            merge = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            if outdated:
                stale = _among("document", outdated) + (f" AND NOT ({_among('id', kept)})" if kept else "")
                merge = merge.when_not_matched_by_source_delete(stale)
            merge.execute(rows, on_bad_vectors="null")

    def delete(self, documents: Sequence[str]) -> int:
        """Takes documents away.

        Returns:
          how many were there.
        """
        with self.writing():
            there = list(self.known(documents))
            if there:
                with self._errors("written"):
                    self._table.delete(_among("document", there))
        return len(there)

    # --- searching ---

    def projection(self) -> np.ndarray | None:
        """What `set_projection` was given, float32 [rows, M·E], or None."""
        with self._errors("read"):
            if _PROJECTION not in _tables(self._database):
                return None
            rows = self._database.open_table(_PROJECTION).search().select(["row"]).to_arrow()["row"]
        return _bytes(rows).view("<f4")

    def set_projection(self, rows: np.ndarray) -> None:
        """Keeps what search vectors are made with, float32 [rows, M·E], in the place of what was there."""
        table = pa.table({"row": _binary(np.ascontiguousarray(rows, "<f4").view(np.uint8))})
        with self._errors("written"):
            if _PROJECTION in _tables(self._database):
                self._database.drop_table(_PROJECTION)
            self._database.create_table(_PROJECTION, table)

    def set_vectors(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        """Gives chunks their search vectors, float32 [n, 256]."""
        rows = pa.table({"id": list(ids), "vector": _vectors(vectors, len(ids))})
        with self._errors("written"):
            self._table.merge_insert("id").when_matched_update_all().execute(rows)

    def index_words(self) -> None:
        """Makes the index that `words` searches, or brings it up to date."""
        self._index("text", FTS())

    def index_vectors(self) -> None:
        """Makes the index that `nearest` searches, where there are enough chunks for one; or brings it up to date."""
        if len(self) >= _FEWEST_INDEXED:
            # A byte for each number: what product quantization would lose here is most of the recall.
            self._index("vector", IvfSq(distance_type="dot"))

    def _index(self, column: str, config: Any) -> None:
        with self._errors("indexed"):
            if any(column in index.columns for index in self._table.list_indices()):
                self._table.optimize()
            else:
                self._table.create_index(column, config=config)

    def nearest(self, query: np.ndarray, count: int, condition: str | None = None) -> list[str]:
        """The ids of the chunks whose search vectors have the largest inner products with a query's, float32 [256]."""
        with self._errors("searched"):
            search = self._table.search(query, vector_column_name="vector").distance_type("dot").limit(count)
            rows = (search.where(condition) if condition else search).select(["id", "_distance"]).to_arrow()
        return rows["id"].to_pylist()

    def words(self, text: str, count: int, condition: str | None = None) -> list[tuple[str, float]]:
        """(id, BM25 score) of the chunks that best match a text's words, best first."""
        with self._errors("searched"):
            search = self._table.search(text, query_type="fts", fts_columns="text").limit(count)
            rows = (search.where(condition) if condition else search).select(["id", "_score"]).to_arrow()
        return list(zip(rows["id"].to_pylist(), rows["_score"].to_pylist(), strict=True))

    # --- reading ---

    def where(self, condition: str) -> list[str]:
        """The ids of the chunks for which an SQL condition on the columns holds.

        Raises:
          ClaraError: the condition cannot be understood.
        """
        try:
            return self._table.search().where(condition).select(["id"]).to_arrow()["id"].to_pylist()
        except (ValueError, RuntimeError, OSError) as error:
            raise ClaraError(f"where: {condition!r} is no condition on the columns: {_reason(error)}") from error

    def index(self) -> tuple[list[str], list[bytes]]:
        """The ids and keys of all chunks."""
        rows = self._rows(None, ["id", "key"])
        return rows["id"].to_pylist(), rows["key"].to_pylist()

    def chunks(self, ids: Sequence[str]) -> list[StoredChunk]:
        """Chunks by id, in the order of the ids.

        Raises:
          ClaraError: one of them is not there.
        """
        found = {row["id"]: StoredChunk(**row) for row in self._by_id(ids, list(_FACTS)).to_pylist()}
        return [found[name] for name in ids]

    def memories(self, ids: Sequence[str]) -> np.ndarray:
        """Memories by id, [n, M, E] of ``encoding.dtype``, in the order of the ids.

        Raises:
          ClaraError: one of them is not there.
        """
        rows = self._by_id(ids, ["id", "memory"])
        places = {name: place for place, name in enumerate(rows["id"].to_pylist())}
        return self.encoding.decode(_bytes(rows["memory"]))[[places[name] for name in ids]]

    def all_memories(self, rows: int) -> Iterator[tuple[list[str], list[bytes], np.ndarray]]:
        """All chunks' (ids, keys, memories [n, M, E]), at most ``rows`` at a time."""
        with self._errors("read"):
            for batch in self._table.search().select(["id", "key", "memory"]).to_batches(rows):
                if batch.num_rows:
                    memories = self.encoding.decode(_bytes(batch["memory"]))
                    yield batch["id"].to_pylist(), batch["key"].to_pylist(), memories

    def documents(self, offset: int = 0, limit: int | None = None) -> tuple[list[StoredDocument], int]:
        """Documents in the order of their ids, and how many there are in all."""
        rows = self._rows(None, ["document", "title", "source", "tokens"])
        sums = [("title", "min"), ("source", "min"), ("document", "count"), ("tokens", "sum")]
        grouped = rows.group_by("document").aggregate(sums).sort_by("document")
        names = ["document", "title_min", "source_min", "document_count", "tokens_sum"]
        taken = grouped.select(names).slice(offset, limit).to_pylist()
        return [StoredDocument(*(row[name] for name in names)) for row in taken], grouped.num_rows

    def stats(self) -> dict[str, Any]:
        """Numbers of the store: documents, chunks, tokens, bytes and what it is for."""
        rows = self._rows(None, ["document", "tokens"])
        with self._errors("read"):
            size = self._table.stats()["total_bytes"]
        return {
            "documents": len(rows["document"].unique()),
            "chunks": rows.num_rows,
            "tokens": int(np.sum(rows["tokens"].to_numpy(), dtype=np.int64)),
            "bytes": size,
            "memory_tokens": self.encoding.shape[0],
            "width": self.encoding.shape[1],
            "encoding": self.encoding.name,
            "memory_bytes": self.encoding.size,
            "fingerprint": self.fingerprint,
            "version": self.version,
        }

    def _rows(self, condition: str | None, columns: list[str]) -> pa.Table:
        with self._errors("read"):
            query = self._table.search()
            return (query.where(condition) if condition else query).select(columns).to_arrow()

    def _by_id(self, ids: Sequence[str], columns: list[str]) -> pa.Table:
        rows = self._rows(_among("id", ids), columns) if ids else self._rows("false", columns)
        missing = set(ids).difference(rows["id"].to_pylist())
        if missing:
            raise ClaraError(f"{self.location}: has no chunk {min(missing)!r}" + (" and others" * (len(missing) > 1)))
        return rows

    @staticmethod
    def _about(location: str, table: Any) -> Mapping[str, Any]:
        about = json.loads((table.schema.metadata or {}).get(_ABOUT, b"{}"))
        if about.get("format") != FORMAT:
            raise ClaraError(
                f"{location}: is a store of format {about.get('format')}, this program reads {FORMAT}; make it again "
                "with python -m clara_jax.compress"
            )
        return about

    def _errors(self, what: str) -> contextlib.AbstractContextManager[None]:
        return _errors(self.location, what)


def _schema(memory_bytes: int, about: Mapping[str, Any]) -> pa.Schema:
    whole, text = pa.int64(), pa.string()
    types = dict(zip(_FACTS, (text, text, text, text, text, whole, whole, whole), strict=True))
    fields = [pa.field(name, kind, nullable=False) for name, kind in types.items()]
    fields += [pa.field("key", pa.binary(_KEY_BYTES), False), pa.field("memory", pa.binary(memory_bytes), False)]
    fields.append(pa.field("vector", pa.list_(pa.float32(), VECTOR_WIDTH)))
    return pa.schema(fields, {_ABOUT: json.dumps(about)})


def _binary(rows: np.ndarray) -> pa.Array:
    """uint8 [n, size] -> n binary values."""
    buffers = [None, pa.py_buffer(np.ascontiguousarray(rows))]
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(rows.shape[1]), len(rows), buffers)


def _bytes(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """n binary values -> uint8 [n, size], without a copy where the column is in one piece."""
    parts = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    size = column.type.byte_width
    rows = [
        np.frombuffer(part.buffers()[1], np.uint8).reshape(-1, size)[part.offset : part.offset + len(part)]
        for part in parts
        if len(part)
    ]
    return rows[0] if len(rows) == 1 else np.concatenate([np.zeros((0, size), np.uint8), *rows])


def _vectors(vectors: np.ndarray | None, count: int) -> pa.Array:
    kind = pa.list_(pa.float32(), VECTOR_WIDTH)
    if vectors is None:
        return pa.nulls(count, kind)
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float32).reshape(-1)), VECTOR_WIDTH)


def _among(column: str, values: Sequence[str]) -> str:
    """The SQL condition that a column is one of some texts."""
    texts = ", ".join("'" + value.replace("'", "''") + "'" for value in values)
    return f"{column} IN ({texts})"


def _connect(location: str) -> Any:
    # Every read asks for the last commit: other processes write, too.
    return lancedb.connect(location, read_consistency_interval=datetime.timedelta(0))


def _tables(database: Any) -> list[str]:
    return list(database.list_tables().tables)


@contextlib.contextmanager
def _errors(location: str, what: str) -> Iterator[None]:
    """LanceDB reports what the file system or the bucket refuses as one of these."""
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        if isinstance(error, ClaraError):
            raise
        raise ClaraError(f"{location}: the store cannot be {what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The first line of a message, without the place in a library's source."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].partition(", /")[0][:300]
