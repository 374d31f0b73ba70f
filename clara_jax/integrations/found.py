"""What all integrations do alike: search with the pipeline's lock held, and describe a hit in JSON's types."""

from __future__ import annotations

from typing import Any

from clara_jax.rag_pipeline import RagPipeline
from clara_jax.results import Hit
from clara_jax.text.documents import Chunk


def search(pipeline: RagPipeline, question: str, k: int | None, how: str | None, where: str | None) -> list[Hit]:
    """Return the k best chunks for a question, from any thread; see `RagPipeline.search`.

    Raises:
      ClaraError: as `RagPipeline.search`; a k below 1.
    """
    with pipeline.lock:
        return pipeline.search(question, k, how, where)


def metadata(chunk: Chunk) -> dict[str, Any]:
    """Return what is known of a chunk beside its text, without what is not: strings and numbers by name."""
    known: dict[str, Any] = {"id": chunk.id, "document": chunk.document, "title": chunk.title, "source": chunk.source}
    if chunk.start >= 0:
        known |= {"start": chunk.start, "end": chunk.end}
    if isinstance(chunk, Hit):
        known |= {"rank": chunk.rank, "score": chunk.score}
    return {name: value for name, value in known.items() if value not in ("", None)}
