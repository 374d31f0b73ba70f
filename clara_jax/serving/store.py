"""The server of a store: answers with their sources, ranking, search, documents, and a page."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException

from clara_jax.data.corpus.documents import Document
from clara_jax.errors import ClaraError
from clara_jax.inference.engine import Request as EngineRequest
from clara_jax.inference.engine import Result
from clara_jax.library import Asked, Hit, Library
from clara_jax.retrieval.documents import CutDocument
from clara_jax.retrieval.filling import Filled
from clara_jax.serving import schema
from clara_jax.serving.app import Service
from clara_jax.serving.chat import Reply, sampling
from clara_jax.serving.guard import Limits
from clara_jax.serving.worker import Worker

MODEL = "clara"
ABSTAINED = "The documents do not seem to answer this question."
_TOGETHER = 16  # chunks of documents that are compressed between two steps of the answers
_NOT_FOUND = {404: {"model": schema.ErrorResponse, "description": "there is no such document"}}


def store_app(worker: Worker, limits: Limits) -> FastAPI:
    """The application.

    Args:
      worker: of a `Library`.
    """
    service = Service(worker, limits, MODEL)
    app, within = service.app, service.within

    @app.post("/v1/chat/completions", response_model=schema.StoreChatResponse)
    async def chat(body: schema.StoreChatRequest, request: Request):
        """Answers the last message of the user from the store; the user's messages before it are searched with, too,
        and those of both are read. With ``stream`` the answer comes as server-sent events, the first of which has what
        it is given from."""
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

        def ask(library: Library) -> tuple[EngineRequest | None, Asked]:
            asked = library.ask(question, **options)
            return asked.request, asked

        return await service.answer(request, body, ask, _Sourced)

    @app.post("/v1/search")
    async def search(body: schema.SearchRequest, request: Request) -> schema.SearchResponse:
        """The chunks that fit a question best."""
        hits = await within(
            request, worker.run(lambda library: library.search(body.question, body.k, body.how, body.where))
        )
        return schema.SearchResponse(hits=_chunks(hits))

    @app.post("/v1/rank")
    async def rank(body: schema.RankRequest, request: Request) -> schema.RankResponse:
        """Ranks given texts for a question."""
        scores = await within(request, worker.run(lambda library: library.rank(body.question, body.documents)))
        order = sorted(range(len(scores)), key=lambda i: -scores[i])
        return schema.RankResponse(results=[schema.Ranked(index=i, score=scores[i]) for i in order])

    @app.post("/v1/documents")
    async def add(body: schema.AddRequest, request: Request) -> schema.AddResponse:
        """Puts documents into the store. One whose id is there is replaced; what is unchanged is not compressed again.
        Where this takes longer than a request may, it goes on all the same."""
        documents = [
            Document(
                own.id, " ".join(own.title.split()), own.text.replace("\r\n", "\n").replace("\r", "\n"), own.source
            )
            for own in body.documents
        ]
        filled = sum(await within(request, worker.run(_add, documents)), Filled())
        service.metrics.compressed.inc(filled.compressed)
        return schema.AddResponse(**vars(filled))

    @app.get("/v1/documents")
    async def documents(
        request: Request,
        offset: Annotated[int, Query(ge=0, lt=2**31)] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> schema.ListResponse:
        """Documents of the store in the order of their ids."""
        own, total = await within(request, worker.run(lambda library: library.documents(offset, limit)))
        return schema.ListResponse(documents=[schema.ListedDocument(**vars(one)) for one in own], total=total)

    @app.delete("/v1/documents/{document:path}", responses=_NOT_FOUND)
    async def delete(document: str, request: Request) -> schema.DeleteResponse:
        """Takes a document out of the store. An id may hold slashes; it names no file."""
        if not await within(request, worker.run(lambda library: library.delete([document]))):
            raise HTTPException(404, f"there is no document {document!r}")
        return schema.DeleteResponse(deleted=document)

    page = resources.files("clara_jax.serving").joinpath("page/index.html").read_text("utf-8")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page)

    return app


class _Sourced(Reply):
    """An answer, and what it is given from."""

    unanswered = ABSTAINED

    async def whole(self) -> dict[str, Any]:
        body = await super().whole()
        return body | {"sources": body["found"]["sources"]}

    def beside(self, result: Result | None) -> dict[str, Any]:
        asked: Asked = self.answering.about
        found = {
            "candidates": [vars(hit) for hit in asked.hits],
            "sources": [vars(hit) for hit in asked.sources],
            "compress_ratio": asked.compress_ratio,
            "abstained": asked.request is None,
            "searched": asked.searched,
            "searched_as": "question" if asked.searched == asked.question else "concatenated",
            "turns": asked.turns,
            "milliseconds": asked.milliseconds | ({} if result is None else result.milliseconds),
        }
        return {"found": found}


def _add(library: Library, documents: list[Document]) -> Iterator[Filled]:
    """All are looked at before the first goes in."""
    group: list[CutDocument] = []
    for document in [*library.cut(documents), None]:
        if group and (document is None or sum(len(own.chunks) for own in group) >= _TOGETHER):
            yield library.add(group)
            group = []
        if document is not None:
            group.append(document)
    library.finish()


def _chunks(hits: list[Hit]) -> list[schema.Chunk]:
    return [schema.Chunk(**vars(hit)) for hit in hits]
