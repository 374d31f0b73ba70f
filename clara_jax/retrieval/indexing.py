"""Indexing: only new or changed chunks are compressed, and each document is stored whole or not at all."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from clara_jax import distributed
from clara_jax.checkpoints.bundle import Bundle
from clara_jax.inference.encode import encode_texts
from clara_jax.inference.memory_store import document_key
from clara_jax.retrieval.ann import Projection
from clara_jax.retrieval.document_store import DocumentStore
from clara_jax.retrieval.documents import ONE_FILE, ChunkedDocument
from clara_jax.text.documents import Chunk

SAVE_SECONDS = 20.0  # of work between commits, at most about as much is lost by a kill
FEWEST, MOST = 32, 8192  # chunks of a commit


@dataclasses.dataclass(frozen=True)
class IndexReport:
    """Counts of indexed documents, and of their chunks.

    Attributes:
      documents: indexed.
      compressed: chunks that were compressed.
      unchanged: chunks whose memories were in the store already.
      removed: chunks that were deleted from the store.
    """

    documents: int = 0
    compressed: int = 0
    unchanged: int = 0
    removed: int = 0

    def __add__(self, other: IndexReport) -> IndexReport:
        return IndexReport(*map(sum, zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


def index(
    store: DocumentStore,
    bundle: Bundle,
    documents: Iterable[ChunkedDocument],
    batch_size: int,
    done: Callable[[IndexReport], None] = lambda part: None,
) -> IndexReport:
    """Add documents to a store; a document that is there is replaced.

    Several processes compress together, each on its own devices, and the main one writes; all of them need the same
    documents.

    Args:
      store: of the model's compressor.
      bundle: the model.
      documents: in chunks.
      batch_size: texts of a device call, a multiple that the mesh divides.
      done: called with a report of each part after it has been committed.

    Raises:
      ClaraError: the store cannot be written; earlier commits stay, and the same call indexes the rest.
    """
    total, pace = IndexReport(), _Pace()
    for group in _groups(documents, pace):
        with pace:
            part = _put(store, bundle, group, batch_size)
        total += part
        done(part)
    return total


class _Pace:
    """The number of chunks of a commit: as many as take about `SAVE_SECONDS` by the main process's clock."""

    chunks = FEWEST

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return  # other processes may not have failed, so there is no agreement to wait for
        faster = distributed.on_main(lambda: time.monotonic() - self._began < SAVE_SECONDS / 2)
        self.chunks = min(2 * self.chunks, MOST) if faster else max(self.chunks // 2, FEWEST)


def _groups(documents: Iterable[ChunkedDocument], pace: _Pace) -> Iterator[list[ChunkedDocument]]:
    """Group whole documents, with ``pace.chunks`` chunks or a little more in each group."""
    group: list[ChunkedDocument] = []
    count = 0
    for document in documents:
        group.append(document)
        count += max(1, len(document.chunks))
        if count >= pace.chunks:
            yield group
            group, count = [], 0
    if group:
        yield group


def _put(store: DocumentStore, bundle: Bundle, documents: list[ChunkedDocument], batch_size: int) -> IndexReport:
    chunks = [chunk for document in documents for chunk in document.chunks]
    ids = [np.asarray(row, np.int32) for row in bundle.tokenizer.encode_documents([chunk.text for chunk in chunks])]
    keys = [document_key(row) for row in ids]
    memories = np.zeros((len(chunks), *store.encoding.shape), bundle.model.dtype)
    while True:
        plan = _Plan(**distributed.on_main(lambda: dataclasses.asdict(_plan(store, documents, chunks, keys))))
        sequences = [ids[i] for i in plan.compress]
        compressed = encode_texts(
            bundle.model, bundle.params, "compressor", sequences, bundle.tokenizer, bundle.mesh, batch_size
        )
        for places, encoded in compressed:
            memories[[plan.compress[place] for place in places]] = encoded
        if distributed.on_main(_write, store, documents, chunks, keys, memories, plan):
            return IndexReport(len(documents), len(plan.compress), len(plan.keep) + len(plan.reuse), plan.removed)


def _write(
    store: DocumentStore,
    documents: list[ChunkedDocument],
    chunks: list[Chunk],
    keys: list[bytes],
    memories: np.ndarray,
    plan: _Plan,
) -> bool:
    """Carry out a plan, and return True; False where another writer's commit has made it outdated."""
    with store.writing():
        with store.reading():
            if _plan(store, documents, chunks, keys) != plan:
                return False
            if plan.reuse:
                memories[[int(place) for place in plan.reuse]] = store.memories(list(plan.reuse.values()))
        written = sorted([*plan.compress, *map(int, plan.reuse)])
        if written or plan.outdated:
            projection = Projection.read(store)
            store.replace(
                [chunks[i] for i in written],
                [keys[i] for i in written],
                memories[written],
                [chunks[i].id for i in plan.keep],
                plan.outdated,
                None if projection is None else projection.vectors(memories[written]),
                {document.id: document.metadata for document in documents},
            )
    return True


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The work for chunks, which are given by their place.

    Attributes:
      compress: chunks to be compressed.
      reuse: place (as text, for JSON) -> id of a chunk in the store with the same content, but another id, other
        fields, or a document whose metadata have changed.
      keep: chunks that are in the store unchanged.
      outdated: documents whose stored version differs, and those that the file of another one was called before.
      removed: the number of chunks of these whose ids are gone.
    """

    compress: list[int]
    reuse: dict[str, str]
    keep: list[int]
    outdated: list[str]
    removed: int


def _plan(store: DocumentStore, documents: list[ChunkedDocument], chunks: list[Chunk], keys: list[bytes]) -> _Plan:
    ids = [document.id for document in documents]
    # A file is one document: named below another folder than before, it has another id, and the one before goes.
    renamed = store.of_files([document.metadata.path for document in documents if document.metadata.type in ONE_FILE])
    known = store.known([*ids, *(name for name in renamed if name not in ids)])
    metadata = store.metadata(ids)
    stale = {document.id for document in documents if metadata.get(document.id) != document.metadata}
    by_content = {key: name for stored in known.values() for name, (_, key) in stored.items()}
    plan: dict[str, Any] = {"compress": [], "reuse": {}, "keep": []}
    for place, (chunk, key) in enumerate(zip(chunks, keys, strict=True)):
        if known.get(chunk.document, {}).get(chunk.id) == (chunk, key):
            if chunk.document in stale:
                plan["reuse"][str(place)] = chunk.id
            else:
                plan["keep"].append(place)
        elif key in by_content:
            plan["reuse"][str(place)] = by_content[key]
        else:
            plan["compress"].append(place)
    kept = {chunks[place].id for place in plan["keep"]}
    now = {document.id: {chunk.id for chunk in document.chunks} for document in documents}
    outdated = [name for name, stored in known.items() if set(stored) != now.get(name) or set(stored) - kept]
    removed = sum(len(set(stored) - now.get(name, set())) for name, stored in known.items())
    if store.remote:
        # A bucket has no locks, so others may write until this is committed: changed documents are written whole.
        changing = {*outdated, *(chunks[place].document for place in [*plan["compress"], *map(int, plan["reuse"])])}
        again = [place for place in plan["keep"] if chunks[place].document in changing]
        plan["reuse"] |= {str(place): chunks[place].id for place in again}
        plan["keep"] = [place for place in plan["keep"] if chunks[place].document not in changing]
    return _Plan(**plan, outdated=outdated, removed=removed)
