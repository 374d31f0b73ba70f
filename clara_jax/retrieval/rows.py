"""The rows of a store as Arrow has them: columns, bytes, and the checksums that tell a damaged row."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from clara_jax.retrieval.words import indexed

VECTOR_WIDTH = 256  # of search vectors, see `clara_jax.retrieval.first_pass`
KEY_BYTES = 16
ABOUT = b"clara_jax"  # our entry among the table's metadata
FACTS = ("id", "document", "title", "text", "source", "start", "end", "tokens")


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


def schema(memory_bytes: int, about: Mapping[str, Any]) -> pa.Schema:
    """The columns of chunks.

    Args:
      about: what the table's metadata say of the store.
    """
    whole, text = pa.int64(), pa.string()
    types = dict(zip(FACTS, (text, text, text, text, text, whole, whole, whole), strict=True))
    types |= {"words": text, "key": pa.binary(KEY_BYTES), "memory": pa.binary(memory_bytes)}
    types |= {"facts_checksum": pa.uint32(), "memory_checksum": pa.uint32()}
    fields = [pa.field(name, kind, False) for name, kind in types.items()]
    fields.append(pa.field("vector", pa.list_(pa.float32(), VECTOR_WIDTH)))
    return pa.schema(fields, {ABOUT: json.dumps(about)})


def as_rows(
    chunks: Sequence[StoredChunk], keys: Sequence[bytes], memories: np.ndarray, vectors: np.ndarray | None
) -> pa.Table:
    """Chunks as they are written, with the words they are found by and their checksums.

    Args:
      keys: of 16 bytes each.
      memories: as bytes, uint8 [n, size].
      vectors: float32 [n, 256], or None.
    """
    own = schema(memories.shape[1], {}).remove_metadata()
    columns = [pa.array([getattr(chunk, name) for chunk in chunks], own.field(name).type) for name in FACTS]
    columns.append(pa.array([indexed(chunk.text) for chunk in chunks], pa.string()))
    columns += [binary(np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), KEY_BYTES)), binary(memories)]
    sums = [facts_checksum(chunk, key) for chunk, key in zip(chunks, keys, strict=True)]
    columns.append(pa.array(sums, pa.uint32()))
    sums = [memory_checksum(chunk.id, row) for chunk, row in zip(chunks, memories, strict=True)]
    columns.append(pa.array(sums, pa.uint32()))
    columns.append(vector_array(vectors, len(chunks)))
    return pa.table(columns, schema=own)


def as_chunk(row: dict[str, Any]) -> tuple[StoredChunk, bytes, bool]:
    """A row of `FACTS`, "key" and "facts_checksum": its chunk and key, and whether they are as they were written."""
    key, checksum = row.pop("key"), row.pop("facts_checksum")
    chunk = StoredChunk(**row)
    return chunk, key, facts_checksum(chunk, key) == checksum


def facts_checksum(chunk: StoredChunk, key: bytes) -> int:
    """CRC-32 of what is known of a chunk beside its memory."""
    parts = "\0".join(str(getattr(chunk, name)) for name in FACTS)
    return zlib.crc32(key, zlib.crc32(parts.encode("utf-8", "surrogatepass")))


def memory_checksum(name: str, memory: np.ndarray) -> int:
    """CRC-32 of a memory's bytes, uint8 [size], and of the id of its chunk."""
    return zlib.crc32(memory, zlib.crc32(name.encode("utf-8", "surrogatepass")))


def damaged_memories(names: Sequence[str], memories: np.ndarray, checksums: Iterable[int]) -> list[str]:
    """Of some chunks, with memories uint8 [n, size], those whose memory is not what was written."""
    found = zip(names, memories, checksums, strict=True)
    return [name for name, memory, checksum in found if memory_checksum(name, memory) != checksum]


def binary(rows: np.ndarray) -> pa.Array:
    """uint8 [n, size] -> n binary values."""
    buffers = [None, pa.py_buffer(np.ascontiguousarray(rows))]
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(rows.shape[1]), len(rows), buffers)


def as_bytes(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """n binary values -> uint8 [n, size], without a copy where the column is in one piece."""
    parts = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    size = column.type.byte_width
    rows = [
        np.frombuffer(part.buffers()[1], np.uint8).reshape(-1, size)[part.offset : part.offset + len(part)]
        for part in parts
        if len(part)
    ]
    return rows[0] if len(rows) == 1 else np.concatenate([np.zeros((0, size), np.uint8), *rows])


def vector_array(vectors: np.ndarray | None, count: int) -> pa.Array:
    """Search vectors float32 [count, 256], or as many empty ones."""
    kind = pa.list_(pa.float32(), VECTOR_WIDTH)
    if vectors is None:
        return pa.nulls(count, kind)
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float32).reshape(-1)), VECTOR_WIDTH)


def among(column: str, values: Sequence[str]) -> str:
    """The SQL condition that a column is one of some texts."""
    texts = ", ".join("'" + value.replace("'", "''") + "'" for value in values)
    return f"{column} IN ({texts})"
