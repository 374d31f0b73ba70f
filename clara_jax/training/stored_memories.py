"""Where a stage leaves the compressor frozen: its documents compressed once, before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clara_jax.bundle import Bundle
from clara_jax.data.batches import Memories
from clara_jax.distributed import Agreement
from clara_jax.inference.memories import Parts, complete_store
from clara_jax.retrieval.memory_store import MemoryStore
from clara_jax.training.config import IN_RUN, StageConfig
from clara_jax.training.metrics import Progress
from clara_jax.training.stopping import Stopped, StopSignal


def open_memories(
    stage: StageConfig,
    bundle: Bundle,
    documents: Sequence[np.ndarray],
    stop: StopSignal,
    progress: bool = False,
    workdir: Path | None = None,
) -> Memories:
    """The memories of documents from the stage's store, into which those that it lacks are put first.

    Args:
      documents: token ids without memory tokens.
      progress: show a bar with the time left.
      workdir: the run directory, for a stage whose ``memories`` are in it (`IN_RUN`).

    Raises:
      ClaraError: the store belongs to another compressor, or cannot be read or written.
      Stopped: told to stop; the store keeps what is done, and the next call does the rest.
    """
    model = bundle.model
    sizes = (model.clara.memory_tokens, model.config.width, model.dtype.name)
    fingerprint = bundle.compressor_fingerprint()
    place = stage.memories
    if place == IN_RUN:  # the stages of a run may have compressors of their own
        place = str(workdir / "memories" / fingerprint[:12])
    # As many at one time as a training step would compress: they are known to fit.
    size = stage.batch_size // stage.accumulate * stage.candidates

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
