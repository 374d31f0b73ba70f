"""Completion of a memory store: documents that are missing in it are compressed and added."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence

import numpy as np
from jaxtyping import Int

from clara_jax import distributed
from clara_jax.checkpoints.bundle import Bundle
from clara_jax.inference.encode import encode_texts
from clara_jax.inference.memory_store import ROWS, MemoryStore, document_keys

SAVE_SECONDS = 30.0  # the most work that is lost where the process is killed

Parts = Iterator[tuple[int, int]]  # after each batch: documents done so far, tokens of the batch


def complete_store(
    open_store: Callable[[], MemoryStore],
    bundle: Bundle,
    documents: Sequence[Int[np.ndarray, " _"]],
    batch_size: int,
    work: Callable[[Parts, int], None],
) -> MemoryStore:
    """Return the store after adding the memories of all documents that it lacks.

    Args:
      open_store: opens it; called again where another process has written.
      bundle: the model that compresses.
      documents: token ids without memory tokens, int32 [T] each.
      batch_size: documents of a device call, which the mesh divides.
      work: iterates over the batches, given their iterator and the number of documents to compress; not called where
        there are none. Its exceptions stop the work, and the store keeps what is done; the next call does the rest.

    Raises:
      ClaraError: the store belongs to another compressor, or cannot be read or written; another process fills it.
    """

    def make() -> None:
        open_store()

    # The main process creates the store, and writes what all of them compute.
    distributed.on_main(make)
    store = open_store()
    if not _lacking(store, documents):
        return store
    with contextlib.ExitStack() as stack:
        distributed.on_main(stack.enter_context, store.writing())
        if not distributed.is_main():
            store = open_store()  # another run may have written before we got the lock
        missing = _lacking(store, documents)
        parts = stack.enter_context(contextlib.closing(_compress(store, bundle, missing, batch_size)))
        if missing:
            work(parts, len(missing))
    distributed.barrier("memories")
    return open_store()


def _lacking(store: MemoryStore, documents: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the distinct documents that are not in the store."""
    if not documents:
        return []
    keys, first = np.unique(document_keys(documents), return_index=True)
    return [documents[i] for i in first[~store.has(keys)]]


def _compress(
    store: MemoryStore, bundle: Bundle, documents: Sequence[np.ndarray], batch_size: int
) -> Generator[tuple[int, int], None, None]:
    parts = encode_texts(
        bundle.model, bundle.params, "compressor", documents, bundle.tokenizer, bundle.mesh, batch_size
    )
    done = 0
    with _Writer(store) as writer:
        for places, memories in parts:
            batch = [documents[i] for i in places]
            if distributed.is_main():
                writer.add(document_keys(batch), memories)
            done += len(batch)
            yield done, sum(map(len, batch))


class _Writer:
    """Buffer of batches, appended to a store when they fill a block or `SAVE_SECONDS` have passed."""

    def __init__(self, store: MemoryStore):
        self._store = store
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []
        self._flushed = time.monotonic()

    def add(self, keys: np.ndarray, memories: np.ndarray) -> None:
        self._parts.append((keys, memories))
        if sum(len(keys) for keys, _ in self._parts) >= ROWS or time.monotonic() - self._flushed > SAVE_SECONDS:
            self._flush()

    def _flush(self) -> None:
        if self._parts:
            keys, memories = (np.concatenate(arrays) for arrays in zip(*self._parts, strict=True))
            self._store.append(keys, memories)
        self._parts, self._flushed = [], time.monotonic()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or kind is GeneratorExit:  # at the end, or where the consumer of the batches has stopped
            self._flush()
