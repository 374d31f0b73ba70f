"""Verification of a whole store against its checksums."""

from __future__ import annotations

from collections.abc import Callable

from clara_jax.retrieval.document_store import DocumentStore
from clara_jax.retrieval.rows import as_bytes, as_chunk, damaged_memories
from clara_jax.retrieval.words import indexed
from clara_jax.text.documents import CHUNK_FIELDS

_READ_ROWS = 1024  # chunks of a read


def damaged_chunks(store: DocumentStore, done: Callable[[int], object] = lambda chunks: None) -> list[str]:
    """Read all of a store, and return the ids of damaged chunks.

    These do not match their checksums, have other words than their text's, or are stored twice.

    Args:
      store: to be read.
      done: called with the number of chunks of each part that has been read.

    Raises:
      ClaraError: a file is damaged so that it cannot be read.
    """
    damaged: list[str] = []
    seen: set[str] = set()
    for rows in store.rows([*CHUNK_FIELDS, "words", "key", "memory", "facts_checksum", "memory_checksum"], _READ_ROWS):
        sums = rows["memory_checksum"].to_pylist()
        found = set(damaged_memories(rows["id"].to_pylist(), as_bytes(rows["memory"]), sums))
        for row in rows.drop_columns(["memory", "memory_checksum"]).to_pylist():
            kept = row.pop("words")
            chunk, _, whole = as_chunk(row)
            if not whole or chunk.id in seen or kept != indexed(chunk.text):
                found.add(chunk.id)
            seen.add(chunk.id)
        damaged += sorted(found)
        done(rows.num_rows)
    return damaged
