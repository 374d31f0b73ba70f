"""Indexing: only new or changed chunks are compressed, and each document is stored whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from clara_jax import distributed
from clara_jax.checkpoints.bundle import Bundle
from clara_jax.inference.encode import encode_texts
from clara_jax.inference.memory_store import document_key
from clara_jax.retrieval.ann import Projection
from clara_jax.retrieval.document_store import DocumentStore
from clara_jax.retrieval.documents import ONE_FILE, ChunkedDocument
from clara_jax.retrieval.shards import Part, Shard
from clara_jax.text.documents import DocumentMetadata

if TYPE_CHECKING:
    from clara_jax.retrieval.staging import Staging

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
    left = iter(documents)
    while group := _take(left, pace.chunks):
        yield group


def _take(documents: Iterator[ChunkedDocument], chunks: int) -> list[ChunkedDocument]:
    """Take documents until they have so many chunks or a little more."""
    group: list[ChunkedDocument] = []
    count = 0
    for document in documents:
        group.append(document)
        count += max(1, len(document.chunks))
        if count >= chunks:
            break
    return group


class _Group:
    """Documents that are written together: their chunks, the chunks' token ids and keys, and room for the memories."""

    def __init__(self, store: DocumentStore, bundle: Bundle, documents: list[ChunkedDocument]):
        self.documents = documents
        self.chunks = [chunk for document in documents for chunk in document.chunks]
        rows = bundle.tokenizer.encode_documents([chunk.text for chunk in self.chunks])
        self.ids = [np.asarray(row, np.int32) for row in rows]
        self.keys = [document_key(row) for row in self.ids]
        self.memories = np.zeros((len(self.chunks), *store.encoding.shape), bundle.model.dtype)

    @property
    def metadata(self) -> dict[str, DocumentMetadata]:
        """What is known of the documents, by their ids."""
        return {document.id: document.metadata for document in self.documents}

    def compress(self, plan: _Plan, bundle: Bundle, batch_size: int) -> None:
        """Compress the chunks of a plan that have no memory yet."""
        sequences = [self.ids[i] for i in plan.compress]
        compressed = encode_texts(
            bundle.model, bundle.params, "compressor", sequences, bundle.tokenizer, bundle.mesh, batch_size
        )
        for places, encoded in compressed:
            self.memories[[plan.compress[place] for place in places]] = encoded

    def copy(self, plan: _Plan, store: DocumentStore) -> None:
        """Copy the memories of a plan that are in the store already."""
        if plan.reuse:
            self.memories[[int(place) for place in plan.reuse]] = store.memories(list(plan.reuse.values()))


def _put(store: DocumentStore, bundle: Bundle, documents: list[ChunkedDocument], batch_size: int) -> IndexReport:
    group = _Group(store, bundle, documents)
    while True:
        plan = _Plan(**distributed.on_main(lambda: dataclasses.asdict(_plan(store, group, store.remote))))
        group.compress(plan, bundle, batch_size)
        if distributed.on_main(_write, store, group, plan):
            return plan.report(group)


def _write(store: DocumentStore, group: _Group, plan: _Plan) -> bool:
    """Carry out a plan, and return True; False where another writer's commit has made it outdated."""
    with store.writing():
        with store.reading():
            if _plan(store, group, store.remote) != plan:
                return False
            group.copy(plan, store)
        written = plan.written
        if written or plan.outdated:
            projection = Projection.read(store)
            store.replace(
                [group.chunks[i] for i in written],
                [group.keys[i] for i in written],
                group.memories[written],
                [group.chunks[i].id for i in plan.keep],
                plan.outdated,
                None if projection is None else projection.vectors(group.memories[written]),
                group.metadata,
            )
    return True


def stage(
    store: DocumentStore,
    shard: Shard,
    bundle: Bundle,
    documents: Iterable[ChunkedDocument],
    batch_size: int,
    done: Callable[[IndexReport], None] = lambda part: None,
) -> IndexReport:
    """Compress the documents of a shard into parts of a store that `clara_jax.retrieval.publishing` commits.

    A part that has been written before is not computed again: the same documents in the same order have the same
    parts. Several processes may be one worker, as for `index`.

    Args:
      store: of the model's compressor.
      shard: that the documents belong to.
      bundle: the model.
      documents: in chunks.
      batch_size: texts of a device call, a multiple that the mesh divides.
      done: called with a report of each part after it has been written, or found.

    Raises:
      ClaraError: another process works on the shard; the store cannot be written. What has been written stays.
    """
    from clara_jax.retrieval.staging import Staging  # of pylance, which only workers of a shard need

    total, pace, start = IndexReport(), _Pace(), 0
    staging, names = Staging(store, shard), []
    left = iter(documents)
    distributed.on_main(staging.begin)
    try:
        while True:
            before = distributed.on_main(staging.length_at, start)
            part = list(itertools.islice(left, before)) if before else _take(left, pace.chunks)
            if not part:
                break
            group = _Group(staging.store, bundle, part)
            identity = staging.identity(part, group.keys)
            found = distributed.on_main(_found, staging, group, start, identity)
            if not found:
                with pace:
                    found = _stage(staging, bundle, group, batch_size, start, identity)
            report = IndexReport(*found["report"])
            names.append(found["name"])
            start += len(part)
            total += report
            done(report)
        distributed.on_main(staging.finish, names)
    finally:
        staging.end()
    return total


def _found(staging: Staging, group: _Group, start: int, identity: str) -> dict[str, Any] | None:
    """Return the name and the report of a part that is there; None where it is to be written."""
    found = staging.find(start, len(group.documents), identity)
    if found is None or (found["kept"] and _kept(group, _plan(staging.store, group, True)) != found["kept"]):
        return None  # what it left to the store is no longer there
    return {name: found[name] for name in ("name", "report")}


def _stage(
    staging: Staging, bundle: Bundle, group: _Group, batch_size: int, start: int, identity: str
) -> dict[str, Any]:
    """Compress and write a part, and return its name and its report."""

    def planned() -> dict[str, Any]:
        with staging.store.reading():
            plan = _plan(staging.store, group, True)
            group.copy(plan, staging.store)
        return dataclasses.asdict(plan)

    plan = _Plan(**distributed.on_main(planned))
    group.compress(plan, bundle, batch_size)
    report = dataclasses.astuple(plan.report(group))

    def write() -> str:
        written = plan.written
        return staging.write(
            Part(start, len(group.documents), identity, report, plan.outdated, _kept(group, plan)),
            [group.chunks[i] for i in written],
            [group.keys[i] for i in written],
            group.memories[written],
            group.metadata,
        )

    return {"name": distributed.on_main(write), "report": report}


def _kept(group: _Group, plan: _Plan) -> str:
    """Return a hash of the chunks that are in the store unchanged; "" where there are none."""
    kept = "\0".join(group.chunks[place].id for place in plan.keep)
    return hashlib.sha256(kept.encode("utf-8", "surrogatepass")).hexdigest() if kept else ""


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

    @property
    def written(self) -> list[int]:
        """The chunks that are written."""
        return sorted([*self.compress, *map(int, self.reuse)])

    def report(self, group: _Group) -> IndexReport:
        """Return the counts of a plan that was carried out."""
        unchanged = len(self.keep) + len(self.reuse)
        return IndexReport(len(group.documents), len(self.compress), unchanged, self.removed)


def _plan(store: DocumentStore, group: _Group, whole: bool) -> _Plan:
    """Return the work for documents.

    Args:
      store: as it is now.
      group: the documents.
      whole: write all chunks of a changed document. Where others may write until this is committed, it must be so.
    """
    documents, chunks, keys = group.documents, group.chunks, group.keys
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
    if whole:
        changing = {*outdated, *(chunks[place].document for place in [*plan["compress"], *map(int, plan["reuse"])])}
        again = [place for place in plan["keep"] if chunks[place].document in changing]
        plan["reuse"] |= {str(place): chunks[place].id for place in again}
        plan["keep"] = [place for place in plan["keep"] if chunks[place].document not in changing]
    return _Plan(**plan, outdated=outdated, removed=removed)
