"""The rows of a store as Arrow tables: columns, bytes, and the checksums that detect damaged rows."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from clara_jax.deprecation import renamed_attributes
from clara_jax.retrieval.encodings import ByteRows
from clara_jax.retrieval.words import indexed
from clara_jax.text.documents import CHUNK_FIELDS, Chunk, DocumentMetadata

VECTOR_WIDTH = 256  # of search vectors, see `clara_jax.retrieval.ann`
KEY_BYTES = 16
ABOUT = b"clara_jax"  # the key of our entry in the table's metadata
# Of documents; stores that were made before December 2026 get these columns when they are next written to.
_JSON = pa.json_(pa.utf8())
METADATA = pa.schema({"path": pa.string(), "type": pa.string(), "modified": pa.string(), "fields": _JSON})


def schema(memory_bytes: int | None, about: Mapping[str, Any]) -> pa.Schema:
    """Return the Arrow schema of chunks.

    Args:
      memory_bytes: the size of an encoded memory; None where they differ.
      about: the store's properties, for the table's metadata.
    """
    whole, text = pa.int64(), pa.string()
    types = dict(zip(CHUNK_FIELDS, (text, text, text, text, text, whole, whole, whole), strict=True))
    types |= {
        "words": text,
        "key": pa.binary(KEY_BYTES),
        "memory": pa.binary(-1 if memory_bytes is None else memory_bytes),
    }
    types |= {"facts_checksum": pa.uint32(), "memory_checksum": pa.uint32()}
    fields = [pa.field(name, kind, False) for name, kind in types.items()]
    fields.append(pa.field("vector", pa.list_(pa.float32(), VECTOR_WIDTH)))
    return pa.schema([*fields, *METADATA], {ABOUT: json.dumps(about)})


def as_rows(
    chunks: Sequence[Chunk],
    keys: Sequence[bytes],
    memories: ByteRows,
    vectors: np.ndarray | None,
    metadata: Mapping[str, DocumentMetadata],
) -> pa.Table:
    """Return chunks as rows to be written, with their words for the full-text index and their checksums.

    Args:
      chunks: the rows.
      keys: of 16 bytes each.
      memories: as bytes, see `clara_jax.retrieval.encodings.MemoryEncoding.encode`.
      vectors: float32 [n, 256], or None.
      metadata: of documents, by their ids; of those that are not there nothing is known.
    """
    stored = schema(memories.shape[1] if isinstance(memories, np.ndarray) else None, {}).remove_metadata()
    columns = [pa.array([getattr(chunk, name) for chunk in chunks], stored.field(name).type) for name in CHUNK_FIELDS]
    columns.append(pa.array([indexed(chunk.text) for chunk in chunks], pa.string()))
    columns += [binary(np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), KEY_BYTES)), binary(memories)]
    sums = [facts_checksum(chunk, key) for chunk, key in zip(chunks, keys, strict=True)]
    columns.append(pa.array(sums, pa.uint32()))
    sums = [memory_checksum(chunk.id, row) for chunk, row in zip(chunks, memories, strict=True)]
    columns.append(pa.array(sums, pa.uint32()))
    columns.append(vector_array(vectors, len(chunks)))
    stated = [metadata.get(chunk.document, DocumentMetadata()) for chunk in chunks]
    columns += [pa.array([getattr(one, name) for one in stated], pa.string()) for name in METADATA.names[:-1]]
    fields = pa.array([json.dumps(dict(one.fields), ensure_ascii=False) for one in stated], pa.utf8())
    columns.append(pa.ExtensionArray.from_storage(_JSON, fields))
    return pa.table(columns, schema=stored)


def as_metadata(row: Mapping[str, Any]) -> DocumentMetadata:
    """Return the metadata of a row with the columns of `METADATA`; null stands for nothing known."""
    texts = {name: row[name] or "" for name in METADATA.names[:-1]}
    return DocumentMetadata(**texts, fields=json.loads(row["fields"] or "{}"))


def as_chunk(row: dict[str, Any]) -> tuple[Chunk, bytes, bool]:
    """Return the chunk and the key of a row, and whether its checksum holds.

    Args:
      row: the columns `CHUNK_FIELDS`, "key" and "facts_checksum".
    """
    key, checksum = row.pop("key"), row.pop("facts_checksum")
    chunk = Chunk(**row)
    return chunk, key, facts_checksum(chunk, key) == checksum


def facts_checksum(chunk: Chunk, key: bytes) -> int:
    """Return the CRC-32 of a chunk's fields and key."""
    parts = "\0".join(str(getattr(chunk, name)) for name in CHUNK_FIELDS)
    return zlib.crc32(key, zlib.crc32(parts.encode("utf-8", "surrogatepass")))


def memory_checksum(name: str, memory: np.ndarray) -> int:
    """Return the CRC-32 of a memory's bytes, uint8 [size], and of the id of its chunk."""
    return zlib.crc32(memory.data, zlib.crc32(name.encode("utf-8", "surrogatepass")))


def damaged_memories(names: Sequence[str], memories: ByteRows, checksums: Iterable[int]) -> list[str]:
    """Return the ids of the chunks whose memory, as bytes, does not match its checksum."""
    found = zip(names, memories, checksums, strict=True)
    return [name for name, memory, checksum in found if memory_checksum(name, memory) != checksum]


def binary(rows: ByteRows) -> pa.Array:
    """Return n rows of bytes, uint8 [n, size] or of different lengths, as n binary values."""
    if not isinstance(rows, np.ndarray):
        return pa.array([row.tobytes() for row in rows], pa.binary())
    buffers = [None, pa.py_buffer(np.ascontiguousarray(rows))]
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(rows.shape[1]), len(rows), buffers)


def as_bytes(column: pa.Array | pa.ChunkedArray) -> ByteRows:
    """Return n binary values as uint8 [n, size], without a copy where the column has one part.

    Values of different lengths are n arrays.
    """
    if column.type == pa.binary():
        return [np.frombuffer(value, np.uint8) for value in column.to_pylist()]
    parts = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    size = column.type.byte_width
    rows = [
        np.frombuffer(part.buffers()[1], np.uint8).reshape(-1, size)[part.offset : part.offset + len(part)]
        for part in parts
        if len(part)
    ]
    return rows[0] if len(rows) == 1 else np.concatenate([np.zeros((0, size), np.uint8), *rows])


def vector_array(vectors: np.ndarray | None, count: int) -> pa.Array:
    """Return search vectors, float32 [count, 256], as an Arrow array, or as many nulls."""
    kind = pa.list_(pa.float32(), VECTOR_WIDTH)
    if vectors is None:
        return pa.nulls(count, kind)
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float32).reshape(-1)), VECTOR_WIDTH)


def among(column: str, values: Sequence[str]) -> str:
    """Return the SQL condition that a column is one of some texts."""
    texts = ", ".join("'" + value.replace("'", "''") + "'" for value in values)
    return f"{column} IN ({texts})"


__getattr__ = renamed_attributes(__name__, {"StoredChunk": "Chunk"})
