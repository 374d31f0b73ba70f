"""Memories of documents on disk or in a bucket: compressed once, looked up by a hash of the document's tokens.

A store is two TensorStore arrays (Zarr 3) with a row for each document, grown in blocks of `ROWS`: its memory, and its
key, a hash of its tokens. A memory is written before its key, and each block of either at once, so whenever a writer is
stopped, every stored key has its memory, and a memory without a key is written again. Rows without a key are holes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorstore
from jaxtyping import Bool, Float, Int, Shaped

from clara_jax.errors import ClaraError
from clara_jax.files import file_errors
from clara_jax.locks import locked

ROWS = 256  # documents of a block, which is one file; each can be read alone
FORMAT = 1
_KEY_BYTES = 16
_KEY = np.dtype(f"V{_KEY_BYTES}")
_ABOUT = "clara_jax"  # the key of the metadata among the array's attributes
_DAMAGE = ("DATA_LOSS", "NOT_FOUND", "FAILED_PRECONDITION")  # the status codes of TensorStore
_REMEDY = "delete the directory, and its documents are compressed anew"


def document_key(ids: Int[np.ndarray, " T"]) -> bytes:
    """Return a document's key, a hash of its token ids, int32 [T]."""
    return hashlib.blake2b(np.ascontiguousarray(ids, "<i4").tobytes(), digest_size=_KEY_BYTES).digest()


def document_keys(documents: Sequence[Int[np.ndarray, " _"]]) -> Shaped[np.ndarray, " N"]:
    """Return the keys of documents, void16 [N]."""
    return np.frombuffer(b"".join(map(document_key, documents)), _KEY)


class MemoryStore:
    """The memories of documents, [M, E] each; one writer at a time, any number of readers.

    Args:
      location: a directory, or the URL of a bucket (``gs://bucket/path``, ``s3://bucket/path``); made where missing.
      fingerprint: of the compressor (`clara_jax.checkpoints.bundle.Bundle.compressor_fingerprint`).
      memory_tokens: M.
      width: E.
      dtype: of memories, the compute dtype of the compressor: "bfloat16" or "float32".

    Raises:
      ClaraError: it cannot be opened or made; it belongs to another compressor.
    """

    def __init__(self, location: str | os.PathLike, fingerprint: str, memory_tokens: int, width: int, dtype: str):
        self.location = os.path.expanduser(os.fspath(location))
        self._about = {"format": FORMAT, "fingerprint": fingerprint}
        self._item, self._dtype = (memory_tokens, width), dtype
        self._read_all()

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self._sorted)

    @property
    def shape(self) -> tuple[int, int]:
        """(M, E) of a memory."""
        return self._item

    @property
    def dtype(self) -> np.dtype:
        """The dtype of memories."""
        return self._memories.dtype.numpy_dtype

    def has(self, keys: Shaped[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
        """Return which of the keys, void16 [N], are in the store; bool [N]."""
        return self._find(keys) >= 0

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Lock the store for `append`, and read the rows that other processes have written; a bucket has no lock.

        Raises:
          ClaraError: another process writes; the directory cannot be written.
        """
        busy = f"{self.location}: another process is filling it; wait for it, or name another directory"
        remote = "://" in self.location
        with contextlib.ExitStack() as stack:
            if not remote:
                with file_errors(f"{self.location}: cannot be written"):
                    stack.enter_context(locked(os.path.join(self.location, ".lock"), busy))
            self._read_all()
            yield

    def append(self, keys: Shaped[np.ndarray, " N"], memories: Float[np.ndarray, "N M E"]) -> None:
        """Add documents in new blocks; within `writing`.

        Args:
          keys: void16 [N], none of which is in the store.
          memories: [N, M, E].

        Raises:
          ClaraError: the store cannot be written.
        """
        if not len(keys):
            return
        start = _whole_blocks(len(self._rows))
        stop = start + _whole_blocks(len(keys))
        with self._errors("written"):
            self._memories = self._memories.resize(exclusive_max=[stop, *self.shape], expand_only=True).result()
            self._memories[start : start + len(keys)].write(memories).result()
            self._keys = self._keys.resize(exclusive_max=[stop, _KEY_BYTES], expand_only=True).result()
            self._keys[start : start + len(keys)].write(keys.view(np.uint8).reshape(-1, _KEY_BYTES)).result()
        self._index(np.concatenate([self._rows, np.zeros(start - len(self._rows), _KEY), keys]))

    def read(self, keys: Shaped[np.ndarray, " N"]) -> Float[np.ndarray, "N M E"]:
        """Read the memories of documents, [N, M, E]; equal keys are read once.

        Args:
          keys: void16 [N].

        Raises:
          ClaraError: one of them is not in the store; a file is damaged.
        """
        different, places = np.unique(keys, return_inverse=True)
        rows = self._find(different)
        if (rows < 0).any():
            raise ClaraError(f"{self.location}: has no memory of {int((rows < 0).sum())} documents")
        with self._errors("read"):
            return self._memories[rows].read().result()[places]

    def read_documents(self, documents: Sequence[Int[np.ndarray, " _"] | None]) -> Float[np.ndarray, "N M E"]:
        """Read memories by token ids, [N, M, E]; zeros where a document is None."""
        result = np.zeros((len(documents), *self.shape), self.dtype)
        there = {place: ids for place, ids in enumerate(documents) if ids is not None}
        if there:
            result[list(there)] = self.read(document_keys(list(there.values())))
        return result

    def _read_all(self) -> None:
        """Open the arrays as they are now, and read the keys."""
        # The keys first: of those that are read, the memories are there, whatever is written meanwhile.
        self._keys = self._open("keys", (_KEY_BYTES,), "uint8", {}, {})
        with self._errors("read"):
            self._index(np.ascontiguousarray(self._keys.read().result()).view(_KEY).reshape(-1))
        # Every stored key has its memory: a missing file is an error, and must not be read as fill values.
        whole = {"fill_missing_data_reads": False, "store_data_equal_to_fill_value": True}
        self._memories = self._open("memories", self._item, self._dtype, self._about, whole)
        if len(self._rows) > self._memories.shape[0]:
            raise self._changed()

    def _index(self, rows: np.ndarray) -> None:
        """Index the keys of all rows, holes included."""
        numbers = np.flatnonzero(rows != np.zeros((), _KEY))
        self._rows = rows[: numbers[-1] + 1 if len(numbers) else 0]
        order = np.argsort(rows[numbers])
        self._numbers, self._sorted = numbers[order], rows[numbers][order]

    def _find(self, keys: np.ndarray) -> np.ndarray:
        """Return the rows of keys, -1 where there is none; int64 [N]."""
        if not len(self._sorted):
            return np.full(len(keys), -1, np.int64)
        places = np.minimum(np.searchsorted(self._sorted, keys), len(self._sorted) - 1)
        return np.where(self._sorted[places] == keys, self._numbers[places], -1)

    def _open(
        self, name: str, item: tuple[int, ...], dtype: str, about: dict[str, Any], options: Mapping[str, bool]
    ) -> tensorstore.TensorStore:
        """Open an array of items, or make it."""
        little = {"name": "bytes", "configuration": {"endian": "little"}}
        checked = [little, {"name": "crc32c"}]
        # One file for a block, in which every item can be read alone.
        block = {"chunk_shape": [1, *item], "codecs": checked, "index_codecs": checked}
        metadata = {
            "shape": [0, *item],
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [ROWS, *item]}},
            "codecs": [{"name": "sharding_indexed", "configuration": block}] if len(item) > 1 else checked,
            "fill_value": 0,
            "attributes": {_ABOUT: about},
        }
        spec = {"driver": "zarr3", "kvstore": self._kvstore(name), **options}
        with self._errors("opened"):
            try:
                array = tensorstore.open(spec).result()
            except ValueError as error:
                if "NOT_FOUND" not in str(error):
                    raise
                return tensorstore.open(spec | {"metadata": metadata}, create=True).result()
        self._check(array, about)
        # The array's metadata have no checksum: opening with the expected layout verifies them.
        stored = {part: metadata[part] for part in ("chunk_grid", "codecs", "fill_value")}
        stored["data_type"] = array.dtype.name
        with self._errors("opened"):
            array = tensorstore.open(spec | {"metadata": stored}).result()
        if array.shape[1:] != item:
            raise self._changed()
        return array

    def _kvstore(self, name: str) -> Any:
        if self.location.startswith("s3://"):
            bucket, _, path = self.location.removeprefix("s3://").partition("/")
            return {
                "driver": "s3",
                "bucket": bucket,
                "path": "/".join(filter(None, [path.strip("/"), name, ""])),
                **_s3(),
            }
        if "://" in self.location:
            return f"{self.location.rstrip('/')}/{name}/"
        return {"driver": "file", "path": os.path.join(os.path.abspath(self.location), name) + "/"}

    def _check(self, array: tensorstore.TensorStore, about: dict[str, Any]) -> None:
        metadata = array.spec().to_json()["metadata"]
        found = metadata.get("attributes", {}).get(_ABOUT)
        if not isinstance(found, dict) or not found.keys() >= about.keys():
            raise self._changed()
        if not about:
            return
        if found["format"] != about["format"]:
            raise ClaraError(
                f"{self.location}: holds memories of format {found['format']}, this program writes "
                f"{about['format']}; name another directory, or delete this one"
            )
        if found["fingerprint"] != about["fingerprint"]:
            other = str(found["fingerprint"])[:12]
            raise ClaraError(
                f"{self.location}: holds memories of another compressor, or of this one in another precision "
                f"(fingerprint {other}, this model has {about['fingerprint'][:12]}); name another directory, or delete "
                "this one to compress the documents anew"
            )

    def _changed(self) -> ClaraError:
        return ClaraError(f"{self.location}: is not as it was written; {_REMEDY}")

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Turn errors of file systems and buckets, and damaged or missing data, into a `ClaraError`.

        TensorStore reports all of them as ValueError.
        """
        try:
            yield
        except (ValueError, OSError) as error:
            reason = str(error).partition(" [")[0]
            hint = f"; {_REMEDY}" if any(kind in reason for kind in _DAMAGE) else ""
            raise ClaraError(f"{self.location}: memories cannot be {what}: {reason}{hint}") from error


def _s3() -> dict[str, Any]:
    """Return what the usual variables of the environment say of S3; by itself TensorStore does not look at these."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    found: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
    if endpoint and region:  # of Amazon's, it asks the bucket
        found["aws_region"] = region
    if "AWS_ACCESS_KEY_ID" in os.environ:  # else it looks for files and roles, and says which are not there
        found["aws_credentials"] = {"type": "environment"}
    return found


def _whole_blocks(rows: int) -> int:
    return -(-rows // ROWS) * ROWS
