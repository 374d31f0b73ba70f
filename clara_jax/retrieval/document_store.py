"""The document store: chunks with their memories in a LanceDB table, on a disk or in a bucket.

A commit replaces whole documents, so a store holds each document as before or after a commit, whenever a writer is
stopped. The key of a chunk is a hash of its tokens: a chunk with the same key need not be compressed again.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from clara_jax.deprecation import renamed_attributes
from clara_jax.errors import ClaraError
from clara_jax.memory_count import FIXED
from clara_jax.retrieval.chunk_reader import ChunkReader
from clara_jax.retrieval.encodings import MemoryEncoding
from clara_jax.retrieval.lance import FTS, IvfSq, MatchQuery
from clara_jax.retrieval.rows import ABOUT, METADATA, among, as_bytes, as_rows, binary, schema, vector_array
from clara_jax.retrieval.table import Locks, Table, connect, errors, names
from clara_jax.retrieval.words import asked
from clara_jax.text.documents import Chunk, DocumentMetadata

T = TypeVar("T")
FORMAT, RAGGED = 2, 3  # the second of stores whose memories have different lengths
_CHUNKS, _PROJECTION = "chunks", "projection"
_FEWEST_INDEXED = 10_000  # chunks; of fewer, every search vector is scored
_FEW = 1000  # chunks that are not in an index yet, and are scanned one by one
# `clara_jax.retrieval.words` splits the text into words; LanceDB splits these at blanks and stems English words.
_WORDS = FTS(
    base_tokenizer="whitespace", lower_case=False, ascii_folding=False, remove_stop_words=False, max_token_length=None
)


class DocumentStore(ChunkReader):
    """A table of chunks, for any number of readers and writers.

    Each reader or writer has a separate object, used by one thread at a time. A read sees the last commit; reads that
    belong together stand in a block of `reading`.

    Attributes:
      location: a directory, or the URL of a bucket.
      remote: whether it is a URL.
      encoding: of memories.
      fingerprint: of the compressor (`clara_jax.checkpoints.bundle.Bundle.compressor_fingerprint`).
    """

    def __init__(self, location: str, database: Any):
        self._database, self._locks = database, Locks(location)
        self.remote = self._locks.remote
        table = Table(location, database, _CHUNKS, self._locks)
        about = self._about(location, table.schema)
        count = about.get("memory_count", FIXED)
        encoding = MemoryEncoding(about["encoding"], about["memory_tokens"], about["width"], count)
        super().__init__(location, table, encoding, about["fingerprint"])
        self._projection: Table | None = None

    @classmethod
    def exists(cls, location: str | os.PathLike) -> bool:
        """Return whether there is a store."""
        location = os.path.expanduser(os.fspath(location))
        if "://" not in location and not os.path.isdir(location):
            return False  # a connection would make the directory
        with errors(location, "opened"):
            return _CHUNKS in names(connect(location))

    @classmethod
    def open(cls, location: str | os.PathLike) -> DocumentStore:
        """Open a store.

        Raises:
          ClaraError: there is none, or it has another format.
        """
        location = os.path.expanduser(os.fspath(location))
        if not cls.exists(location):
            raise ClaraError(f"{location}: no store is there; make one with python -m clara_jax.compress")
        with errors(location, "opened"):
            return cls(location, connect(location))

    @classmethod
    def open_or_make(
        cls,
        location: str | os.PathLike,
        fingerprint: str,
        encoding: str,
        memory_tokens: int,
        width: int,
        memory_count: str = FIXED,
    ) -> DocumentStore:
        """Open a store of this compressor, or make an empty one.

        Raises:
          ClaraError: it has another compressor or encoding, or the place cannot be written.
        """
        location = os.path.expanduser(os.fspath(location))
        form = FORMAT if memory_count == FIXED else RAGGED
        about = {"format": form, "fingerprint": fingerprint, "encoding": encoding}
        about |= {"memory_tokens": memory_tokens, "width": width}
        about |= {} if memory_count == FIXED else {"memory_count": memory_count}
        size = MemoryEncoding(encoding, memory_tokens, width).size if memory_count == FIXED else None
        if not cls.exists(location):
            with errors(location, "made"):
                # Another writer may make it at the same time; the compressor is checked below.
                try:
                    connect(location).create_table(_CHUNKS, schema=schema(size, about), exist_ok=True)
                except ValueError as error:
                    # It is there. LanceDB spells the type of JSON otherwise once it is stored, and compares.
                    if "does not match existing" not in str(error):
                        raise
        store = cls.open(location)
        store._table.have_unique("id")
        store._index("words", _WORDS)
        store.check(fingerprint)
        if store.encoding.name != encoding:
            raise ClaraError(
                f"{location}: holds memories as {store.encoding.name}, not {encoding}; name another directory, or ask "
                f"for {store.encoding.name}"
            )
        return store

    def check(self, fingerprint: str) -> None:
        """Check that the store is of this compressor.

        Raises:
          ClaraError: it is of another one.
        """
        if fingerprint != self.fingerprint:
            raise ClaraError(
                f"{self.location}: holds memories of another compressor, or of this one in another precision "
                f"(fingerprint {self.fingerprint[:12]}, this model has {fingerprint[:12]}); compress the documents "
                "with this model into another directory"
            )

    @staticmethod
    def _about(location: str, stored: pa.Schema) -> Mapping[str, Any]:
        about = json.loads((stored.metadata or {}).get(ABOUT, b"{}"))
        if about.get("format") not in (FORMAT, RAGGED):
            raise ClaraError(
                f"{location}: is a store of format {about.get('format')}, this program reads {FORMAT} and {RAGGED}; "
                "make it again with python -m clara_jax.compress"
            )
        return about

    @property
    def url(self) -> str:
        """The place of the database, without a slash at the end."""
        return self.location.rstrip("/")

    @property
    def table_url(self) -> str:
        """The place of the table of chunks, as Lance opens it."""
        return f"{self.url}/{_CHUNKS}.lance"

    # --- writing ---

    def writing(self) -> contextlib.AbstractContextManager[None]:
        """Return a block of a read-modify-write, which waits for other writers and keeps them out.

        A bucket has no locks: there, only a single commit is atomic.
        """
        return self._locks.writing()

    def replace(
        self,
        chunks: Sequence[Chunk],
        keys: Sequence[bytes],
        memories: np.ndarray,
        kept: Sequence[str] = (),
        outdated: Sequence[str] = (),
        vectors: np.ndarray | None = None,
        metadata: Mapping[str, DocumentMetadata] | None = None,
    ) -> None:
        """Write chunks of whole documents, and delete the documents' other chunks, in one commit.

        Args:
          chunks: to be inserted or updated.
          keys: of the chunks, 16 bytes each.
          memories: of the chunks, [n, M, E].
          kept: ids of chunks of these documents that stay as they are.
          outdated: documents that had chunks before, and may have none now.
          vectors: search vectors float32 [n, 256]; None where the store has none yet.
          metadata: of the documents, by their ids.

        Raises:
          ClaraError: the file system refuses; nothing is written then.
        """
        rows = as_rows(chunks, keys, self.encoding.encode(memories), vectors, metadata or {})
        # The given chunks replace these documents whatever another writer has committed since.
        whole = sorted({*outdated, *(chunk.document for chunk in chunks)})
        stale = among("document", whole) + (f" AND NOT ({among('id', kept)})" if kept else "")

        def merge(table: Any) -> None:
            merge = table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            if whole:
                merge = merge.when_not_matched_by_source_delete(stale)
            merge.execute(rows, on_bad_vectors="null")

        with self.writing():
            self.have_columns(METADATA)
            self._table.commit("written", merge)
            self._table.tidy()

    def have_columns(self, columns: pa.Schema) -> None:
        """Add columns that a store of an earlier version does not have; see `Table.have_columns`."""
        self._table.have_columns(columns)

    def commit(self, what: str, work: Callable[[str], T]) -> T:
        """Return ``work(table_url)``, which commits by Lance itself; see `Table.commit`."""
        return self._table.commit(what, lambda table: work(self.table_url))

    def delete(self, documents: Sequence[str]) -> int:
        """Delete documents, damaged ones too.

        Returns:
          the number of documents that were in the store.
        """
        if not documents:
            return 0
        with self.writing():
            there = self._rows(among("document", documents), ["document"])["document"].unique().to_pylist()
            if there:
                self._table.commit("written", lambda table: table.delete(among("document", there)))
                self._table.tidy()
        return len(there)

    # --- searching ---

    def projection(self) -> np.ndarray | None:
        """Return the rows that `set_projection` stored, float32 [rows, X], or None."""
        table = self._projection_table()
        if table is None:
            return None
        rows = table.read(lambda stored: stored.search().select(["row"]).to_arrow()["row"])
        stored = as_bytes(rows)
        assert isinstance(stored, np.ndarray)  # rows of one size
        return stored.view("<f4")

    @property
    def projection_version(self) -> int:
        """A number that changes with `projection`; 0 where there is none."""
        table = self._projection_table()
        return 0 if table is None else table.read(lambda stored: stored.version)

    def _projection_table(self) -> Table | None:
        """Open the table of the projection, None where there is none."""
        with errors(self.location, "read"):
            if self._projection is None and _PROJECTION in names(self._database):
                self._projection = Table(self.location, self._database, _PROJECTION, self._locks)
        return self._projection

    def set_projection(self, rows: np.ndarray) -> None:
        """Store the projection of search vectors, float32 [rows, X], in place of the one before."""
        table = pa.table({"row": binary(np.ascontiguousarray(rows, "<f4").view(np.uint8))})
        with self.writing():
            with errors(self.location, "written"):
                there = self._projection_table() is not None
                self._database.create_table(_PROJECTION, table, mode="overwrite" if there else "create")
            stored = self._projection_table()
            assert stored is not None  # it has just been created
            stored.tidy(now=True)

    def set_vectors(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        """Set the search vectors of chunks, float32 [n, 256]."""
        columns = pa.schema([schema(None, {}).field(name) for name in ("id", "vector")])
        rows = pa.table([pa.array(ids, pa.string()), vector_array(vectors, len(ids))], schema=columns)
        merge = lambda table: table.merge_insert("id").when_matched_update_all().execute(rows)  # noqa: E731
        self._table.commit("written", merge)

    def index_words(self) -> None:
        """Make the index of `words` where there is none, and update it where it lacks many rows; see `tidy`."""
        self._index("words", _WORDS)
        self.tidy(now=self._table.read(_index_is_stale))

    def index_vectors(self) -> None:
        """Make the index of `nearest` where there are enough chunks for one; see `tidy`."""
        if len(self) >= _FEWEST_INDEXED:
            # A byte for each number: product quantization would lose most of the recall here.
            self._index("vector", IvfSq(distance_type="dot"))

    def tidy(self, now: bool = False) -> None:
        """Compact the table; see `Table.tidy`. Rows that are not in an index yet are found as well, more slowly."""
        self._table.tidy(now)

    def _index(self, column: str, config: Any) -> None:
        def there(table: Any) -> bool:
            return any(column in index.columns for index in table.list_indices())

        if not self._table.read(there):
            make = lambda table: there(table) or table.create_index(column, config=config)  # noqa: E731
            self._table.commit("indexed", make)

    def nearest(self, query: np.ndarray, count: int, condition: str | None = None) -> list[str]:
        """Return the ids of the chunks whose search vectors have the largest inner products with a query's.

        Args:
          query: a search vector, float32 [256].
          count: the number of ids.
          condition: see `where`.
        """
        sql = self._compiled(condition)

        def search(table: Any) -> Any:
            found = table.search(query, vector_column_name="vector").distance_type("dot").limit(count)
            return _where(found, sql).select(["id", "_distance"]).to_arrow()

        return self._table.read(search, "searched")["id"].to_pylist()

    def words(self, text: str, count: int, condition: str | None = None) -> list[tuple[str, float]]:
        """Return (id, BM25 score) of the chunks that best match a text's words, best first.

        Args:
          text: the query.
          count: the number of chunks.
          condition: see `where`.
        """
        wanted = asked(text)
        if not wanted:
            return []
        sql = self._compiled(condition)

        def search(table: Any) -> Any:
            query = MatchQuery(wanted, "words")  # pyright: ignore[reportCallIssue]  # it does not see pydantic's defaults
            found = table.search(query, query_type="fts").limit(count)
            return _where(found, sql).select(["id", "_score"]).to_arrow()

        rows = self._table.read(search, "searched")
        return list(zip(rows["id"].to_pylist(), rows["_score"].to_pylist(), strict=True))


def _index_is_stale(table: Any) -> bool:
    """Return whether an index lacks so many rows that a search spends its time on scanning them."""
    indices = table.list_indices()
    return any(index.num_unindexed_rows > max(_FEW, index.num_indexed_rows // 10) for index in indices)


def _where(search: Any, sql: str | None) -> Any:
    return search if sql is None else search.where(sql)


__getattr__ = renamed_attributes(__name__, {"StoredChunk": "Chunk"})
