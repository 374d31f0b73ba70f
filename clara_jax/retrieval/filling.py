"""Documents into a store: only what is new or changed is compressed, and each document is there whole or not at all."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from clara_jax import distributed
from clara_jax.bundle import Bundle
from clara_jax.inference.encode import encode_texts
from clara_jax.retrieval.document_store import DocumentStore
from clara_jax.retrieval.documents import CutDocument
from clara_jax.retrieval.first_pass import Projection
from clara_jax.retrieval.memory_store import document_key
from clara_jax.retrieval.rows import StoredChunk

SAVE_SECONDS = 20.0  # about as much of the work is lost where the process is killed
FEWEST, MOST = 32, 8192  # chunks that are compared and written together


@dataclasses.dataclass(frozen=True)
class Filled:
    """What became of documents: how many there were, and of their chunks how many were compressed, how many had their
    memory in the store already, and how many were taken out of it."""

    documents: int = 0
    compressed: int = 0
    unchanged: int = 0
    removed: int = 0

    def __add__(self, other: Filled) -> Filled:
        return Filled(*map(sum, zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


def fill(
    store: DocumentStore,
    bundle: Bundle,
    documents: Iterable[CutDocument],
    batch_size: int,
    done: Callable[[Filled], None] = lambda part: None,
) -> Filled:
    """Puts documents into a store; a document that is there is replaced.

    Several processes compress together, each on its own devices, and the main one writes; all of them need the same
    documents.

    Args:
      batch_size: texts of a device call, which the mesh divides.
      done: is told of every part that is safe in the store.

    Raises:
      ClaraError: the store refuses; what was written before stays, and the same call does the rest.
    """
    total, pace = Filled(), _Pace()
    for group in _groups(documents, pace):
        with pace:
            part = _put(store, bundle, group, batch_size)
        total += part
        done(part)
    return total


class _Pace:
    """How many chunks are written together: as many as take about as long as may be lost, by the main process's
    clock."""

    chunks = FEWEST

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return  # not all processes need fail together: nothing is to be agreed on
        faster = distributed.on_main(lambda: time.monotonic() - self._began < SAVE_SECONDS / 2)
        self.chunks = min(2 * self.chunks, MOST) if faster else max(self.chunks // 2, FEWEST)


def _groups(documents: Iterable[CutDocument], pace: _Pace) -> Iterator[list[CutDocument]]:
    """Whole documents, as many as have ``pace.chunks`` chunks together."""
    group: list[CutDocument] = []
    count = 0
    for document in documents:
        group.append(document)
        count += max(1, len(document.chunks))
        if count >= pace.chunks:
            yield group
            group, count = [], 0
    if group:
        yield group


def _put(store: DocumentStore, bundle: Bundle, documents: list[CutDocument], batch_size: int) -> Filled:
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
        for places, own in compressed:
            memories[[plan.compress[place] for place in places]] = own
        if distributed.on_main(_write, store, documents, chunks, keys, memories, plan):
            return Filled(len(documents), len(plan.compress), len(plan.keep) + len(plan.reuse), plan.removed)


def _write(
    store: DocumentStore,
    documents: list[CutDocument],
    chunks: list[StoredChunk],
    keys: list[bytes],
    memories: np.ndarray,
    plan: _Plan,
) -> bool:
    """Whether the plan still held, and is carried out; another writer may have come in between."""
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
            )
    return True


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is to be done with chunks, by their place.

    Attributes:
      compress: these.
      reuse: place (as text, for JSON) -> id of a chunk in the store with the same content, but another id or other
        facts beside it.
      keep: these are in the store as they are.
      outdated: documents that are in the store and not as they are now.
      removed: chunks of theirs whose ids are gone.
    """

    compress: list[int]
    reuse: dict[str, str]
    keep: list[int]
    outdated: list[str]
    removed: int


def _plan(store: DocumentStore, documents: list[CutDocument], chunks: list[StoredChunk], keys: list[bytes]) -> _Plan:
    known = store.known([document.id for document in documents])
    by_content = {key: name for own in known.values() for name, (_, key) in own.items()}
    plan: dict[str, Any] = {"compress": [], "reuse": {}, "keep": []}
    for place, (chunk, key) in enumerate(zip(chunks, keys, strict=True)):
        if known.get(chunk.document, {}).get(chunk.id) == (chunk, key):
            plan["keep"].append(place)
        elif key in by_content:
            plan["reuse"][str(place)] = by_content[key]
        else:
            plan["compress"].append(place)
    kept = {chunks[place].id for place in plan["keep"]}
    now = {document.id: {chunk.id for chunk in document.chunks} for document in documents}
    outdated = [name for name, own in known.items() if set(own) != now[name] or set(own) - kept]
    removed = sum(len(set(own) - now[name]) for name, own in known.items())
    if store.remote:
        # Nobody is kept from writing there until this is: what changes is written whole, its other chunks too.
        changing = {*outdated, *(chunks[place].document for place in [*plan["compress"], *map(int, plan["reuse"])])}
        again = [place for place in plan["keep"] if chunks[place].document in changing]
        plan["reuse"] |= {str(place): chunks[place].id for place in again}
        plan["keep"] = [place for place in plan["keep"] if chunks[place].document not in changing]
    return _Plan(**plan, outdated=outdated, removed=removed)
