"""A LangChain retriever over a store of compressed documents.

retriever = ClaraRetriever(pipeline=RagPipeline.open("smollm2-clara", "stores/notes"), k=3)
retriever.invoke("Who wrote the minutes?")  # documents, best first
"""

from __future__ import annotations

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

from clara_jax.integrations.found import metadata, search
from clara_jax.rag_pipeline import RagPipeline


class ClaraRetriever(BaseRetriever):
    """Retrieve the chunks of a store that are best for a query, as LangChain's documents.

    A document has the chunk's text and id; its metadata name the document it was cut from, its place there, its rank
    and its score. Several threads may use one pipeline.

    Attributes:
      pipeline: the model and the store.
      k: the number of chunks; default as the model was trained.
      how: "memory", "words" or "both"; default see `RagPipeline.usual_how`.
      where: a condition that chunks must meet; see docs/store.md.
    """

    pipeline: RagPipeline
    k: int | None = None
    how: str | None = None
    where: str | None = None

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        hits = search(self.pipeline, query, self.k, self.how, self.where)
        return [Document(hit.text, id=hit.id, metadata=metadata(hit)) for hit in hits]
