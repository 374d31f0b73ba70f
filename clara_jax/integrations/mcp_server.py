"""A store for clients of the Model Context Protocol: tools that search, answer, add, list and delete."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations

from clara_jax import __version__
from clara_jax.errors import ClaraError
from clara_jax.integrations.found import metadata, search
from clara_jax.rag_pipeline import RagPipeline
from clara_jax.results import Hit
from clara_jax.text.documents import CorpusDocument

MOST_LISTED = 1000  # documents of one call
MOST_CHUNKS = 100  # of one search
INSTRUCTIONS = """A collection of the user's documents. `ask` answers a question from them and names its sources; \
`search` returns passages to read yourself. Quote the sources' documents by their names."""


def make_server(pipeline: RagPipeline) -> MCPServer[None]:
    """Return a server whose tools work on a pipeline's store, one call after another.

    What a tool refuses (`ClaraError`) is the call's error, in one line. Standard output is the protocol's: what
    libraries print there while a tool works goes to standard error.

    Args:
      pipeline: the model and the store.
    """
    server: MCPServer[None] = MCPServer("clara", version=__version__, instructions=INSTRUCTIONS)
    reads = ToolAnnotations(read_only_hint=True)

    @contextlib.contextmanager
    def working() -> Iterator[None]:
        with pipeline.lock, contextlib.redirect_stdout(sys.stderr):
            try:
                yield
            except ClaraError as error:
                raise ToolError(str(error)) from None

    @server.tool("search", annotations=reads)
    def find(question: str, k: int = 5, how: str | None = None, where: str | None = None) -> list[dict[str, Any]]:
        """Find the passages of the user's documents that are best for a question, best first.

        Args:
          question: in plain words.
          k: the number of passages, at most 100.
          how: "memory" (by meaning), "words" (by the words in it) or "both"; leave it out for what suits the model.
          where: a condition, e.g. "document = 'notes/a.md'" or "modified >= '2026-01-01'".
        """
        with working():
            if not 1 <= k <= MOST_CHUNKS:
                raise ClaraError(f"k is {k}; it must be from 1 to {MOST_CHUNKS}")
            return [_described(hit) for hit in search(pipeline, question, k, how, where)]

    @server.tool(annotations=reads)
    def ask(question: str, k: int | None = None, where: str | None = None, expand: int = 1) -> dict[str, Any]:
        """Answer a question from the user's documents, and return the passages that the answer was read from.

        Args:
          question: in plain words.
          k: the number of passages to read; leave it out for what the model was trained with.
          where: see `search`.
          expand: of so many of the best passages the model also reads the text, for names and numbers.
        """
        with working():
            answer = pipeline.answer(question, k=k, where=where, expand=expand)
            sources = [_described(hit) for hit in answer.context.sources]
        return {"answer": answer.text, "abstained": answer.text is None, "sources": sources}

    @server.tool(annotations=ToolAnnotations(destructive_hint=True, idempotent_hint=True))
    def add(text: str, id: str, title: str = "") -> dict[str, int]:
        """Add a document to the collection; one of the same id is replaced.

        Args:
          text: of the document.
          id: its name, by which it is quoted.
          title: one line.
        """
        with working():
            report = pipeline.add([CorpusDocument(id, title, text, "")])
            pipeline.finish()
        return {"chunks_compressed": report.compressed, "chunks_unchanged": report.unchanged}

    @server.tool("list", annotations=reads)
    def documents(offset: int = 0, limit: int = 100) -> dict[str, Any]:
        """List the documents of the collection by name.

        Args:
          offset: the number of documents before the first one that is listed.
          limit: the most that are listed, at most 1000.
        """
        with working():
            if offset < 0 or not 1 <= limit <= MOST_LISTED:
                raise ClaraError(
                    f"offset is {offset}, limit is {limit}; they must be at least 0, and from 1 to {MOST_LISTED}"
                )
            listed, total = pipeline.documents(offset, limit)
        rows = [{"id": one.id, "title": one.title, "chunks": one.chunks, "modified": one.modified} for one in listed]
        return {"documents": rows, "total": total}

    @server.tool(annotations=ToolAnnotations(destructive_hint=True, idempotent_hint=True))
    def delete(ids: list[str]) -> dict[str, int]:
        """Delete documents from the collection.

        Args:
          ids: of the documents, as `list` and `search` give them.
        """
        with working():
            return {"deleted": pipeline.delete(ids)}

    return server


def _described(hit: Hit) -> dict[str, Any]:
    return metadata(hit) | {"text": hit.text}
