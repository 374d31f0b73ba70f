"""The server of a document store: answers with their sources, ranking, search, documents, and a page."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import re
import uuid
from collections.abc import Iterator
from importlib import resources
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Path, Query, Request
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException

from clara_jax.data.corpus.files import KINDS
from clara_jax.errors import ClaraError
from clara_jax.inference.requests import Request as EngineRequest
from clara_jax.inputs import check_texts
from clara_jax.rag_pipeline import RagPipeline
from clara_jax.results import Hit, RetrievedContext
from clara_jax.retrieval.documents import LONGEST_ID, ChunkedDocument
from clara_jax.retrieval.indexing import IndexReport
from clara_jax.serving import rerank_schema, schema
from clara_jax.serving.app import Service
from clara_jax.serving.chat import ChatCompletion, sampling
from clara_jax.serving.guard import FILES, RequestLimits
from clara_jax.serving.quotes import quotes
from clara_jax.serving.uploads import Upload, UploadReader
from clara_jax.serving.worker import Finished, Worker
from clara_jax.text.documents import CorpusDocument

MODEL = "clara"
ABSTAINED = "The documents do not seem to answer this question."
NO_TOOLS = "tools: none are called here; the answer is from the documents"
_CHUNKS_PER_TURN = 16  # chunks that are compressed between two steps of the engine
_QUOTED = 3  # candidates that have a quote, besides the sources
_SHOWN = 20  # lines of a file that could not be read
_FILE = {"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {"format": "binary"}}}}}
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
            if body.tools or body.functions:
                context = dataclasses.replace(context, warnings=(*context.warnings, NO_TOOLS))
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

    @app.post("/v1/rerank", response_model_exclude_none=True)
    async def rerank(body: rerank_schema.RerankRequest, request: Request) -> rerank_schema.RerankResponse:
        """Rank given documents for a query, in the form of Cohere's and Jina's rerankers."""
        texts = body.texts

        def score(library: RagPipeline) -> tuple[list[float], int]:
            return library.rank(body.query, texts), library.count_tokens([body.query, *texts])

        scores, tokens = await within(request, worker.run(score))
        results = [
            rerank_schema.Reranked(
                index=i,
                relevance_score=scores[i],
                document=rerank_schema.TextDocument(text=texts[i]) if body.return_documents else None,
            )
            for i in sorted(range(len(scores)), key=lambda i: -scores[i])[: body.top_n]
        ]
        return rerank_schema.RerankResponse(
            id=uuid.uuid4().hex,
            model=MODEL,
            results=results,
            usage=rerank_schema.TokensRead(prompt_tokens=tokens, total_tokens=tokens),
            meta=rerank_schema.RerankMeta(tokens=rerank_schema.InputTokens(input_tokens=tokens)),
        )

    @app.post("/v1/embeddings")
    async def embeddings(body: rerank_schema.EmbeddingsRequest, request: Request) -> rerank_schema.EmbeddingsResponse:
        """Embed texts, in the form of OpenAI's: the mean of a text's memory vectors, at length 1."""
        texts = check_texts(body.texts, "input")
        parts = await within(request, worker.run(_embed, texts, body.input_type == "query"))
        vectors, tokens = [vector for part, _ in parts for vector in part], sum(count for _, count in parts)
        as_text = body.encoding_format == "base64"
        data = [
            rerank_schema.Embedding(index=i, embedding=_base64(vector) if as_text else vector.tolist())
            for i, vector in enumerate(vectors)
        ]
        usage = rerank_schema.TokensRead(prompt_tokens=tokens, total_tokens=tokens)
        return rerank_schema.EmbeddingsResponse(data=data, model=MODEL, usage=usage)

    @app.post("/v1/documents")
    async def add(body: schema.AddRequest, request: Request) -> schema.AddResponse:
        """Add documents to the store, or replace those with the same ids; unchanged chunks are not compressed again.

        The work goes on where it takes longer than the time limit of a request.
        """
        documents = [_document(new) for new in body.documents]
        return schema.AddResponse(**await added(documents, request))

    async def added(documents: list[CorpusDocument] | list[ChunkedDocument], request: Request) -> dict[str, Any]:
        parts = await within(request, worker.run(_add, documents))
        report = sum((part for part, _ in parts), IndexReport())
        service.metrics.compressed.inc(report.compressed)
        return vars(report) | {"warnings": list(dict.fromkeys(warning for _, warning in parts if warning))}

    @app.get(FILES.rstrip("/"))
    async def kinds() -> schema.FileKinds:
        """Return which files can be sent."""
        return schema.FileKinds(suffixes=list(KINDS), most_bytes=limits.file, most_characters=limits.body)

    reader = UploadReader()

    @app.put(FILES + "{name:path}", openapi_extra=_FILE)
    async def put(
        name: Annotated[str, Path(min_length=1, max_length=LONGEST_ID)], request: Request
    ) -> schema.FileResponse:
        """Add the documents of a file, whose content is the body; `compress` reads the same kinds in the same way.

        The name is the id of its document, and names no file here. Documents with the same ids are replaced.
        """
        content = await request.body()

        async def read() -> Upload:
            read_files = await worker.run(lambda library: library.read_files)
            return await reader.read(content, name, limits.body, read_files)

        upload = await within(request, read())
        skipped = [schema.Skipped(place=place, reason=reason) for place, reason in upload.skipped.items()]
        return schema.FileResponse(
            **await added(upload.documents, request),
            ids=[document.id for document in upload.documents],
            skipped=skipped[:_SHOWN],
            skipped_count=len(skipped),
            note=upload.note,
        )

    @app.get("/v1/documents")
    async def documents(
        request: Request,
        offset: Annotated[int, Query(ge=0, lt=2**31)] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        containing: Annotated[str, Query(max_length=200)] = "",
    ) -> schema.ListResponse:
        """List documents of the store in the order of their ids, those whose id or title contains a text."""
        stored, total = await within(request, worker.run(lambda library: library.documents(offset, limit, containing)))
        listed = [{name: getattr(one, name) for name in schema.ListedDocument.model_fields} for one in stored]
        return schema.ListResponse(documents=[schema.ListedDocument(**one) for one in listed], total=total)

    @app.delete("/v1/documents/{document:path}", responses=_NOT_FOUND)
    async def delete(document: str, request: Request) -> schema.DeleteResponse:
        """Delete a document from the store. An id may hold slashes; it names no file."""
        if not await within(request, worker.run(lambda library: library.delete([document]))):
            raise HTTPException(404, f"there is no document {document!r}")
        return schema.DeleteResponse(deleted=document)

    page = resources.files("clara_jax.serving").joinpath("page/index.html").read_text("utf-8")
    policy = {"content-security-policy": _policy(page)}

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers=policy)

    return app


class _SourcedCompletion(ChatCompletion):
    """A chat completion with its sources."""

    unanswered = ABSTAINED

    async def whole(self) -> dict[str, Any]:
        """Return the completion, with the sources as a further field."""
        body = await super().whole()
        return body | {"sources": body["found"]["sources"]}

    async def beside(self, finished: Finished | None) -> dict[str, Any]:
        """Return what was retrieved for the answer, the quotes and the times."""
        context: RetrievedContext = self.answering.about
        quoted = [] if finished is None else await asyncio.to_thread(_quoted, context, finished.text)
        found = {
            "candidates": [vars(hit) for hit in context.hits],
            "sources": [vars(hit) for hit in context.sources],
            "compress_ratio": context.compress_ratio,
            "abstained": context.request is None,
            "searched": context.searched,
            "searched_as": "question" if context.searched == context.question else "concatenated",
            "turns": context.turns,
            "milliseconds": context.milliseconds | ({} if finished is None else finished.result.milliseconds),
            "warnings": list(context.warnings),
            "quotes": quoted,
        }
        return {"found": found}


def _quoted(context: RetrievedContext, answer: str) -> list[dict[str, Any]]:
    hits = context.hits[: max(context.selected, _QUOTED)]
    found = zip(hits, quotes([hit.text for hit in hits], context.question, answer), strict=True)
    return [{"id": hit.id, **quote._asdict()} for hit, quote in found if quote is not None]


def _policy(page: str) -> str:
    """Return the content security policy of the page: its script and its style run, and none that came in later."""
    allowed = []
    for tag in ("script", "style"):
        (inline,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        allowed.append(f"{tag}-src 'sha256-{digest}'")
    return (
        f"default-src 'none'; {'; '.join(allowed)}; img-src data:; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )


def _add(
    pipeline: RagPipeline, documents: list[CorpusDocument] | list[ChunkedDocument]
) -> Iterator[tuple[IndexReport, str | None]]:
    """Index documents in small groups, after all of them have been checked; yield what to warn of with each report."""
    group: list[ChunkedDocument] = []
    for document in [*pipeline.chunk(documents), None]:
        if group and (document is None or sum(len(one.chunks) for one in group) >= _CHUNKS_PER_TURN):
            yield pipeline.add(group), pipeline.unread(group)
            group = []
        if document is not None:
            group.append(document)
    pipeline.finish()


def _embed(pipeline: RagPipeline, texts: list[str], query: bool) -> Iterator[tuple[np.ndarray, int]]:
    """Embed texts in small groups; yield vectors and the number of tokens."""
    for start in range(0, len(texts), _CHUNKS_PER_TURN):
        group = texts[start : start + _CHUNKS_PER_TURN]
        yield pipeline.embed(group, query), pipeline.count_tokens(group)


def _base64(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _document(new: schema.NewDocument) -> CorpusDocument:
    assert new.title is not None and new.source is not None  # `schema.Sent` replaces null by the default
    text = new.text.replace("\r\n", "\n").replace("\r", "\n")
    return CorpusDocument(new.id, " ".join(new.title.split()), text, new.source)


def _chunks(hits: list[Hit]) -> list[schema.Chunk]:
    return [schema.Chunk(**vars(hit)) for hit in hits]
