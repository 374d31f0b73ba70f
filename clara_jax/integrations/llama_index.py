"""LlamaIndex: a retriever over a store, a query engine that answers from memories, and a reader of files and folders.

pipeline = RagPipeline.open("smollm2-clara", "stores/notes")
ClaraRetriever(pipeline, k=3).retrieve("Who wrote the minutes?")
ClaraQueryEngine(pipeline=pipeline).query("Who wrote the minutes?")
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from llama_index.core.base.response.schema import Response
from llama_index.core.query_engine import CustomQueryEngine
from llama_index.core.readers.base import BaseReader
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import Document, NodeWithScore, QueryBundle, TextNode

from clara_jax.integrations.found import metadata, search
from clara_jax.rag_pipeline import RagPipeline
from clara_jax.results import Hit


def _node(hit: Hit) -> NodeWithScore:
    return NodeWithScore(node=TextNode(id_=hit.id, text=hit.text, metadata=metadata(hit)), score=hit.score)


class ClaraRetriever(BaseRetriever):
    """Retrieve the chunks of a store that are best for a query, as LlamaIndex's nodes.

    Args:
      pipeline: the model and the store; several threads may use it.
      k: the number of chunks; default as the model was trained.
      how: "memory", "words" or "both"; default see `RagPipeline.usual_how`.
      where: a condition that chunks must meet; see docs/store.md.
      options: of LlamaIndex's base class.
    """

    def __init__(
        self,
        pipeline: RagPipeline,
        k: int | None = None,
        how: str | None = None,
        where: str | None = None,
        **options: Any,
    ):
        super().__init__(**options)
        self._pipeline, self._k, self._how, self._where = pipeline, k, how, where

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [_node(hit) for hit in search(self._pipeline, query_bundle.query_str, self._k, self._how, self._where)]


class ClaraQueryEngine(CustomQueryEngine):
    """Answer queries from the memories of the best chunks; the response's sources are those chunks.

    Attributes:
      pipeline: the model and the store; several threads may use it.
      options: of `RagPipeline.ask`, e.g. ``{"k": 3, "expand": 1}``.
    """

    pipeline: RagPipeline
    options: dict[str, Any] = {}

    def custom_query(self, query_str: str) -> Response:
        """Return the answer; the text is empty where the model abstains.

        Raises:
          ClaraError: see `RagPipeline.ask`.
        """
        with self.pipeline.lock:
            answer = self.pipeline.answer(query_str, **self.options)
        return Response(answer.text or "", source_nodes=[_node(hit) for hit in answer.context.sources])


class ClaraReader(BaseReader):
    """Read files and folders in the chunks that a model's compressor reads whole, one LlamaIndex document each.

    Args:
      pipeline: the model by whose tokenizer texts are cut.
    """

    def __init__(self, pipeline: RagPipeline):
        self._pipeline = pipeline

    def lazy_load_data(self, paths: Sequence[str], follow_links: bool = False) -> Iterator[Document]:
        """Yield the chunks of files and folders, in order; see `RagPipeline.read`.

        Raises:
          ClaraError: a path that does not exist, or a file that cannot be read.
        """
        for document in self._pipeline.read(paths, follow_links):
            for chunk in document.chunks:
                yield Document(id_=chunk.id, text=chunk.text, metadata=metadata(chunk))
