"""Where a stage leaves the compressor frozen: its documents compressed once, before the first step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

import numpy as np

from clara_jax import distributed
from clara_jax.bundle import Bundle
from clara_jax.data.batches import Memories
from clara_jax.distributed import Agreement
from clara_jax.inference.encode import encode_texts
from clara_jax.retrieval.memory_store import ROWS, MemoryStore, document_keys
from clara_jax.training.config import StageConfig
from clara_jax.training.metrics import Progress
from clara_jax.training.stopping import Stopped, StopSignal

SAVE_SECONDS = 30.0  # at most so much of the work is lost where the process is killed


def open_memories(
    stage: StageConfig, bundle: Bundle, documents: Sequence[np.ndarray], stop: StopSignal, progress: bool = False
) -> Memories:
    """The memories of documents from the stage's store, into which those that it lacks are put first.

    Args:
      documents: token ids without memory tokens.
      progress: show a bar with the time left.

    Raises:
      ClaraError: the store belongs to another compressor, or cannot be read or written.
      Stopped: told to stop; the store keeps what is done, and the next call does the rest.
    """
    model = bundle.model
    sizes = (model.clara.memory_tokens, model.config.width, model.precision)
    fingerprint = bundle.compressor_fingerprint()

    def open_store() -> MemoryStore:
        return MemoryStore(stage.memories, fingerprint, *sizes)

    def make_store() -> None:
        open_store()

    # The main process makes the store, and writes what all of them compute.
    distributed.on_main(make_store)
    store = open_store()
    keys, first = np.unique(document_keys(documents), return_index=True)
    if not store.has(keys).all():
        with contextlib.ExitStack() as stack:
            distributed.on_main(stack.enter_context, store.writing())
            if not distributed.is_main():
                store = open_store()  # what another run has written before the lock was ours
            stack.enter_context(stop.deferred())
            missing = first[~store.has(keys)]
            _compress(store, stage, bundle, [documents[i] for i in missing], stop, progress)
        distributed.barrier("memories")
        store = open_store()
    return store.read_documents


def _compress(
    store: MemoryStore,
    stage: StageConfig,
    bundle: Bundle,
    documents: Sequence[np.ndarray],
    stop: StopSignal,
    show: bool,
) -> None:
    # As many at one time as a training step would compress: they are known to fit.
    size = stage.batch_size // stage.accumulate * stage.candidates
    parts = encode_texts(bundle.model, bundle.params, "compressor", documents, bundle.tokenizer, bundle.mesh, size)
    name = f"{stage.name}: {len(documents)} documents to compress, {size} at a time"
    agreement = Agreement(bundle.mesh)
    with _Writer(store) as writer, Progress(-(-len(documents) // size), name, enabled=show) as progress:
        for places, memories in parts:
            own = [documents[i] for i in places]
            if distributed.is_main():
                writer.add(document_keys(own), memories)
            progress.update(tokens=sum(map(len, own)))
            if agreement.now(stop()):
                writer.flush()
                raise Stopped(
                    f"stopped while documents are compressed, {writer.written} of {len(documents)} are in "
                    f"{store.location}; the same command does the rest"
                )


class _Writer:
    """Appends to a store, several batches together as far as they fill a block or time has passed."""

    def __init__(self, store: MemoryStore):
        self.written = 0
        self._store = store
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []
        self._flushed = time.monotonic()

    def add(self, keys: np.ndarray, memories: np.ndarray) -> None:
        self._parts.append((keys, memories))
        if sum(len(keys) for keys, _ in self._parts) >= ROWS or time.monotonic() - self._flushed > SAVE_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self._parts:
            keys, memories = (np.concatenate(arrays) for arrays in zip(*self._parts, strict=True))
            self._store.append(keys, memories)
            self.written += len(keys)
        self._parts, self._flushed = [], time.monotonic()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.flush()
