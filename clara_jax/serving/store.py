"""The server of a document store: answers with their sources, ranking, search, documents, and a page."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException

from clara_jax.errors import ClaraError
from clara_jax.inference.requests import Request as EngineRequest
from clara_jax.inference.requests import Result
from clara_jax.rag_pipeline import RagPipeline
from clara_jax.results import Hit, RetrievedContext
from clara_jax.retrieval.documents import ChunkedDocument
from clara_jax.retrieval.indexing import IndexReport
from clara_jax.serving import schema
from clara_jax.serving.app import Service
from clara_jax.serving.chat import ChatCompletion, sampling
from clara_jax.serving.guard import RequestLimits
from clara_jax.serving.worker import Worker
from clara_jax.text.documents import CorpusDocument

MODEL = "clara"
ABSTAINED = "The documents do not seem to answer this question."
_CHUNKS_PER_TURN = 16  # chunks that are compressed between two steps of the engine
_NOT_FOUND: dict[int | str, dict[str, Any]] = {
    404: {"model": schema.ErrorResponse, "description": "there is no such document"}
}


def store_app(worker: Worker, limits: RequestLimits) -> FastAPI:
    """Make the application.

    Args:
      worker: of a `RagPipeline`.
      limits: of requests.
    """
    service = Service(worker, limits, MODEL)
    app, within = service.app, service.within

    @app.post("/v1/chat/completions", response_model=schema.StoreChatResponse)
    async def chat(body: schema.StoreChatRequest, request: Request):
        """Answer the last message of the user from the store.

        The user's earlier messages are part of the search's query, and the generator reads the earlier messages of both
        sides. With ``stream`` the answer comes as server-sent events, the first of which has the sources.
        """
        said = [(message.role, message.text) for message in body.messages if message.role in ("user", "assistant")]
        last = max((place for place, (role, _) in enumerate(said) if role == "user"), default=-1)
        question = said[last][1] if said else ""
        if last < 0 or not question.strip() or len(question) > schema.LONGEST_QUESTION:
            raise ClaraError(
                "messages: the last one of the user is the question; it needs 1 to "
                f"{schema.LONGEST_QUESTION} characters"
            )
        options = body.model_dump(include={"k", "candidates", "how", "where", "expand", "abstain_below", "seed"})
        options |= {"sampling": sampling(body), "history": said[:last]}

        def ask(pipeline: RagPipeline) -> tuple[EngineRequest | None, RetrievedContext]:
            context = pipeline.ask(question, **options)
            return context.request, context

        return await service.answer(request, body, ask, _SourcedCompletion)

    @app.post("/v1/search")
    async def search(body: schema.SearchRequest, request: Request) -> schema.SearchResponse:
        """Search the chunks that fit a question best."""
        hits = await within(
            request, worker.run(lambda library: library.search(body.question, body.k, body.how, body.where))
        )
        return schema.SearchResponse(hits=_chunks(hits))

    @app.post("/v1/rank")
    async def rank(body: schema.RankRequest, request: Request) -> schema.RankResponse:
        """Rank given texts for a question."""
        scores = await within(request, worker.run(lambda library: library.rank(body.question, body.documents)))
        order = sorted(range(len(scores)), key=lambda i: -scores[i])
        return schema.RankResponse(results=[schema.Ranked(index=i, score=scores[i]) for i in order])

    @app.post("/v1/documents")
    async def add(body: schema.AddRequest, request: Request) -> schema.AddResponse:
        """Add documents to the store, or replace those with the same ids; unchanged chunks are not compressed again.

        The work goes on where it takes longer than the time limit of a request.
        """
        documents = [_document(new) for new in body.documents]
        report = sum(await within(request, worker.run(_add, documents)), IndexReport())
        service.metrics.compressed.inc(report.compressed)
        return schema.AddResponse(**vars(report))

    @app.get("/v1/documents")
    async def documents(
        request: Request,
        offset: Annotated[int, Query(ge=0, lt=2**31)] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> schema.ListResponse:
        """List documents of the store in the order of their ids."""
        stored, total = await within(request, worker.run(lambda library: library.documents(offset, limit)))
        listed = [{name: getattr(one, name) for name in schema.ListedDocument.model_fields} for one in stored]
        return schema.ListResponse(documents=[schema.ListedDocument(**one) for one in listed], total=total)

    @app.delete("/v1/documents/{document:path}", responses=_NOT_FOUND)
    async def delete(document: str, request: Request) -> schema.DeleteResponse:
        """Delete a document from the store. An id may hold slashes; it names no file."""
        if not await within(request, worker.run(lambda library: library.delete([document]))):
            raise HTTPException(404, f"there is no document {document!r}")
        return schema.DeleteResponse(deleted=document)

    page = resources.files("clara_jax.serving").joinpath("page/index.html").read_text("utf-8")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page)

    return app


class _SourcedCompletion(ChatCompletion):
    """A chat completion with its sources."""

    unanswered = ABSTAINED

    async def whole(self) -> dict[str, Any]:
        """Return the completion, with the sources as a further field."""
        body = await super().whole()
        return body | {"sources": body["found"]["sources"]}

    def beside(self, result: Result | None) -> dict[str, Any]:
        """Return what was retrieved for the answer, and the times."""
        context: RetrievedContext = self.answering.about
        found = {
            "candidates": [vars(hit) for hit in context.hits],
            "sources": [vars(hit) for hit in context.sources],
            "compress_ratio": context.compress_ratio,
            "abstained": context.request is None,
            "searched": context.searched,
            "searched_as": "question" if context.searched == context.question else "concatenated",
            "turns": context.turns,
            "milliseconds": context.milliseconds | ({} if result is None else result.milliseconds),
        }
        return {"found": found}


def _add(pipeline: RagPipeline, documents: list[CorpusDocument]) -> Iterator[IndexReport]:
    """Index documents in small groups, after all of them have been checked."""
    group: list[ChunkedDocument] = []
    for document in [*pipeline.chunk(documents), None]:
        if group and (document is None or sum(len(one.chunks) for one in group) >= _CHUNKS_PER_TURN):
            yield pipeline.add(group)
            group = []
        if document is not None:
            group.append(document)
    pipeline.finish()


def _document(new: schema.NewDocument) -> CorpusDocument:
    assert new.title is not None and new.source is not None  # `schema.Sent` replaces null by the default
    text = new.text.replace("\r\n", "\n").replace("\r", "\n")
    return CorpusDocument(new.id, " ".join(new.title.split()), text, new.source)


def _chunks(hits: list[Hit]) -> list[schema.Chunk]:
    return [schema.Chunk(**vars(hit)) for hit in hits]
