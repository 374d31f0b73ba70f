"""Stored memories for stages with a frozen compressor: documents are compressed once, before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clara_jax.checkpoints.bundle import Bundle
from clara_jax.distributed import Agreement
from clara_jax.inference.memory_cache import Parts, complete_store
from clara_jax.inference.memory_store import MemoryStore
from clara_jax.input_pipeline.batches import MemoryReader
from clara_jax.training.metrics import Progress
from clara_jax.training.stage_config import IN_RUN, StageConfig
from clara_jax.training.stopping import Stopped, StopSignal


def open_memories(
    stage: StageConfig,
    bundle: Bundle,
    documents: Sequence[np.ndarray],
    stop: StopSignal,
    progress: bool = False,
    workdir: Path | None = None,
) -> MemoryReader:
    """Open the stage's store of memories, after adding the memories of documents that it lacks.

    Args:
      stage: its ``memories`` are the store's place.
      bundle: the model, whose compressor is frozen.
      documents: token ids without memory tokens.
      stop: asked after each batch.
      progress: show a bar with the time left.
      workdir: the run directory, for a stage whose ``memories`` are in it (`IN_RUN`).

    Returns:
      a function from documents to their memories, read from the store.

    Raises:
      ClaraError: the store belongs to another compressor, or cannot be read or written.
      Stopped: ``stop`` was set; the store keeps the finished documents, and the next call does the others.
    """
    model = bundle.model
    sizes = (model.clara.memory_tokens, model.config.embed_dim, model.dtype.name)
    fingerprint = bundle.compressor_fingerprint()
    place = stage.data.memories
    if place == IN_RUN:  # by compressor: the stages of a run may have different ones
        assert workdir is not None  # a stage of a run
        place = str(workdir / "memories" / fingerprint[:12])
    # As many at one time as a training step would compress, since those fit into memory.
    size = stage.optimizer.microbatch * stage.topk.candidates

    def work(parts: Parts, count: int) -> None:
        name = f"{stage.name}: {count} documents to compress, {size} at a time"
        agreement = Agreement(bundle.mesh)
        with stop.deferred(), Progress(-(-count // size), name, enabled=progress) as shown:
            for done, tokens in parts:
                shown.update(tokens=tokens)
                if agreement.now(stop()):
                    raise Stopped(
                        f"stopped while documents are compressed, {done} of {count} are in {place}; the same "
                        "command does the rest"
                    )

    def open_store() -> MemoryStore:
        return MemoryStore(place, fingerprint, *sizes)

    return complete_store(open_store, bundle, documents, size, work).read_documents
