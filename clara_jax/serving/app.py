"""The routes."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from importlib import resources
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from clara_jax.data.corpus.documents import Document
from clara_jax.errors import ClaraError
from clara_jax.inference.decode import Sampling
from clara_jax.inference.engine import Result
from clara_jax.library import Asked, Hit, Library
from clara_jax.retrieval.documents import CutDocument
from clara_jax.retrieval.filling import Filled
from clara_jax.serving import schema
from clara_jax.serving.guard import Guard, Limits
from clara_jax.serving.metrics import Metrics
from clara_jax.serving.worker import Answering, Finished, Full, Stopping, Worker

MODEL = "clara"
ABSTAINED = "The documents do not seem to answer this question."
DEFAULT_ANSWER = 256  # tokens
_LAST_WORDS = 5  # seconds for the end of a stream to be taken
_TOGETHER = 16  # chunks of documents that are compressed between two steps of the answers
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": schema.ErrorResponse, "description": words}
    for status, words in {
        400: "what is asked for cannot be done, and why",
        401: "the key is missing or wrong",
        403: "a page of another origin asks",
        408: "the request arrived too slowly",
        413: "the request is too large",
        422: "a field is missing or wrong",
        429: "as many requests wait as may; try again after Retry-After seconds",
        503: "the server is stopping",
        504: "the request took too long",
    }.items()
}
_NOT_FOUND = {404: {"model": schema.ErrorResponse, "description": "there is no such document"}}
T = TypeVar("T")


class Gone(Exception):
    """The client does not wait any more."""


def make_app(worker: Worker, limits: Limits, rows: int) -> FastAPI:
    """The server's application.

    Args:
      rows: answers that are written together, for the metrics.
    """
    metrics = Metrics(worker, rows)
    app = FastAPI(title="clara_jax", version="1", docs_url=None, redoc_url=None, responses=_ERRORS)
    app.add_middleware(Guard, limits=limits, metrics=metrics)
    _errors(app)

    async def within(request: Request, work: Awaitable[T]) -> T:
        return await _while_there(request, work, limits.request_seconds)

    @app.post("/v1/chat/completions", response_model=schema.ChatResponse)
    async def chat(body: schema.ChatRequest, request: Request):
        """Answers the last message of the user from the store. With ``stream`` the answer comes as server-sent events,
        the first of which has what it is given from."""
        question = next((message.text for message in reversed(body.messages) if message.role == "user"), "")
        if not question.strip() or len(question) > schema.LONGEST_QUESTION:
            raise ClaraError(
                "messages: the last one of the user is the question; it needs 1 to "
                f"{schema.LONGEST_QUESTION} characters"
            )
        limit = body.max_completion_tokens or body.max_tokens or DEFAULT_ANSWER
        options = body.model_dump(include={"k", "candidates", "how", "where", "expand", "abstain_below", "seed"})
        options["sampling"] = Sampling(limit, body.temperature, body.top_p)
        answering = await within(request, worker.ask(question, options))
        reply = _Reply(answering, body, metrics)
        if body.stream:
            return _Events(reply, worker, limits.request_seconds)
        try:
            return await within(request, reply.whole())
        finally:
            worker.finish(answering)

    @app.get("/v1/models")
    async def models() -> schema.Models:
        """The one model that there is."""
        return schema.Models(data=[schema.Model(id=MODEL)])

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
        metrics.compressed.inc(filled.compressed)
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

    @app.get("/health", responses={503: {"model": schema.Health, "description": "stopping, or failed"}})
    async def health() -> Response:
        """Whether requests are taken."""
        status = "failed" if not worker.alive else "stopping" if worker.stopping else "ok"
        own = schema.Health(
            status=status,
            answering=worker.answering,
            inside=worker.inside,
            limit=worker.limit,
            needs_key=limits.key is not None,
        )
        return JSONResponse(own.model_dump(), 200 if status == "ok" else 503)

    @app.get("/metrics", response_class=Response)
    async def numbers() -> Response:
        """For Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    page = resources.files("clara_jax.serving").joinpath("page/index.html").read_text("utf-8")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page)

    return app


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


class _Reply:
    """A chat completion, whole or piece by piece."""

    def __init__(self, answering: Answering, body: schema.ChatRequest, metrics: Metrics):
        self.answering, self._metrics = answering, metrics
        self._usage = body.stream_options is not None and body.stream_options.include_usage
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": MODEL}

    async def whole(self) -> dict[str, Any]:
        finished = None
        async for item in self.answering:
            finished = item
        text = ABSTAINED if finished is None else finished.text
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": _reason(finished and finished.result),
        }
        result = finished and finished.result
        found = self._found(result)
        return self._head | {
            "object": "chat.completion",
            "choices": [choice],
            "usage": self._counted(result),
            "found": found,
            "sources": found["sources"],
        }

    async def pieces(self) -> AsyncIterator[dict[str, Any]]:
        yield self._piece({"role": "assistant", "content": ""}) | {"found": self._found(None)}
        result = None
        async for item in self.answering:
            if isinstance(item, Finished):
                result = item.result
            else:
                yield self._piece({"content": item})
        if result is None:
            yield self._piece({"content": ABSTAINED})
        yield self._piece({}, _reason(result)) | {"found": self._found(result)}
        counted = self._counted(result)
        if self._usage:
            yield self._piece(None) | {"usage": counted}

    def _piece(self, delta: dict[str, Any] | None, reason: str | None = None) -> dict[str, Any]:
        choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": reason}]
        return self._head | {"object": "chat.completion.chunk", "choices": choices}

    def _found(self, result: Result | None) -> dict[str, Any]:
        asked: Asked = self.answering.asked
        times = asked.milliseconds | ({} if result is None else result.milliseconds)
        return {
            "candidates": [vars(hit) for hit in asked.hits],
            "sources": [vars(hit) for hit in asked.sources],
            "compress_ratio": asked.compress_ratio,
            "abstained": asked.request is None,
            "milliseconds": times,
        }

    def _counted(self, result: Result | None) -> dict[str, int]:
        """The usage, which is counted for the metrics, too."""
        if result is None:
            self._metrics.abstained.inc()
        else:
            self._metrics.tokens.inc(len(result.tokens))
            self._metrics.first.observe(result.milliseconds["first"] / 1000)
        prompt, answer = self.answering.asked.prompt_tokens, 0 if result is None else len(result.tokens)
        return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


class _Events(Response):
    """Server-sent events of a chat completion, which is given up where the client goes."""

    media_type = "text/event-stream"

    def __init__(self, reply: _Reply, worker: Worker, seconds: float):
        super().__init__(headers={"cache-control": "no-store"})
        del self.headers["content-length"]
        self._reply, self._worker, self._seconds = reply, worker, seconds

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await _while_there(Request(scope, receive), self._send(send), None)
        except (Gone, OSError):  # a TimeoutError is one: the client does not read, and the connection is cut
            pass
        finally:
            self._worker.finish(self._reply.answering)

    async def _send(self, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        async def event(data: str, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": more})

        failed = None
        try:
            async with asyncio.timeout(self._seconds):
                async for piece in self._reply.pieces():
                    await event(json.dumps(piece, ensure_ascii=False))
        except (TimeoutError, Stopping) as error:
            failed = error
        # Sending waits for a client that does not read.
        async with asyncio.timeout(_LAST_WORDS):
            if failed is not None:
                await event(json.dumps(_explained(failed)[1]))
            await event("[DONE]", more=False)


async def _while_there(request: Request, work: Awaitable[T], seconds: float | None) -> T:
    """Raises:
    Gone: the client went first.
    TimeoutError: it took longer than so many seconds."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        done, _ = await asyncio.wait({task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task in done:
            return task.result()
        raise Gone if gone in done else TimeoutError
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _reason(result: Result | None) -> str:
    return "length" if result is not None and result.ended == "length" else "stop"


def _chunks(hits: list[Hit]) -> list[schema.Chunk]:
    return [schema.Chunk(**vars(hit)) for hit in hits]


def _explained(error: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers."""
    match error:
        case ClaraError():
            return 400, schema.error(str(error), "invalid_request_error"), {}
        case Full():
            words = "as many requests wait as may; try again in a second"
            return 429, schema.error(words, "rate_limit_error"), {"retry-after": "1"}
        case Stopping():
            return 503, schema.error("the server is stopping", "server_error"), {"retry-after": "30"}
        case TimeoutError():
            return 504, schema.error("the request took too long", "timeout_error"), {}
        case Gone():
            return 499, schema.error("the client has gone", "server_error"), {}
        case HTTPException():
            kind = "invalid_request_error" if error.status_code < 500 else "server_error"
            return error.status_code, schema.error(str(error.detail), kind), dict(error.headers or {})
    return 500, schema.error("the server failed; its log says why", "server_error"), {}


def _errors(app: FastAPI) -> None:
    """Every error in one shape, OpenAI's."""

    async def explained(_: Request, error: Exception) -> JSONResponse:
        status, body, headers = _explained(error)
        return JSONResponse(body, status, headers)

    for kind in (ClaraError, Full, Stopping, TimeoutError, Gone, HTTPException, Exception):
        app.add_exception_handler(kind, explained)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"] if part != "body")
        words = f"{field}: {first['msg']}" if field else first["msg"]
        return JSONResponse(schema.error(words, "invalid_request_error", field or None), 422)
