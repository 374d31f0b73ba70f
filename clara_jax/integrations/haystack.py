"""A Haystack component that retrieves from a store of compressed documents.

pipeline.add_component("retriever", ClaraRetriever("smollm2-clara", "stores/notes", top_k=3))
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from haystack import Document, component, default_to_dict

from clara_jax.integrations.found import metadata, search
from clara_jax.rag_pipeline import RagPipeline


@component
class ClaraRetriever:
    """Retrieve the chunks of a store that are best for a query, as Haystack's documents.

    The model is opened by `warm_up`, which a Haystack pipeline calls, or by the first query. What it is opened from is
    what a serialised pipeline keeps.

    Args:
      checkpoint: see `Clara.load`.
      store: a directory, or the URL of a bucket.
      top_k: the number of chunks; default as the model was trained.
      how: "memory", "words" or "both"; default see `RagPipeline.usual_how`.
      where: a condition that chunks must meet; see docs/store.md.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        store: str | os.PathLike,
        top_k: int | None = None,
        how: str | None = None,
        where: str | None = None,
    ):
        self.checkpoint, self.store = str(checkpoint), str(store)
        self.top_k, self.how, self.where = top_k, how, where
        self._pipeline: RagPipeline | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what makes this component again, for a serialised pipeline."""
        names = ("checkpoint", "store", "top_k", "how", "where")
        return default_to_dict(self, **{name: getattr(self, name) for name in names})

    def warm_up(self) -> None:
        """Open the model and the store, once.

        Raises:
          ClaraError: see `RagPipeline.open`.
        """
        if self._pipeline is None:
            self._pipeline = RagPipeline.open(self.checkpoint, self.store)

    @component.output_types(documents=list[Document])
    def run(self, query: str, top_k: int | None = None) -> dict[str, list[Document]]:
        """Return the best chunks for a query under "documents", best first.

        Args:
          query: the question.
          top_k: in place of the component's.

        Raises:
          ClaraError: see `RagPipeline.search`, `RagPipeline.open`.
        """
        self.warm_up()
        assert self._pipeline is not None
        hits = search(self._pipeline, query, self.top_k if top_k is None else top_k, self.how, self.where)
        return {
            "documents": [Document(id=hit.id, content=hit.text, meta=metadata(hit), score=hit.score) for hit in hits]
        }
