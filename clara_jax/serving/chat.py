"""Chat completions in OpenAI's format, whole or as server-sent events."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from clara_jax.errors import ClaraError
from clara_jax.inference.decode import Sampling
from clara_jax.inference.requests import Result
from clara_jax.serving import schema
from clara_jax.serving.clients import ClientGoneError, while_there
from clara_jax.serving.errors import explained
from clara_jax.serving.metrics import Metrics
from clara_jax.serving.worker import Answering, Finished, ServerStoppingError, Worker

DEFAULT_ANSWER = 256  # tokens
_LAST_WORDS = 5  # seconds in which a client receives the end of a stream


def sampling(body: schema.ChatRequest) -> Sampling:
    """Return a request's sampling options."""
    assert body.temperature is not None and body.top_p is not None  # `schema.Sent` replaces null by the default
    limit = body.max_completion_tokens or body.max_tokens or DEFAULT_ANSWER
    return Sampling(limit, body.temperature, body.top_p)


class ChatCompletion:
    """A chat completion, whole or in pieces.

    A server that adds fields to an answer overrides `beside`.

    Attributes:
      unanswered: the content where the model abstains.
    """

    unanswered = ""

    def __init__(self, answering: Answering, body: schema.ChatRequest, metrics: Metrics, model: str):
        self.answering, self._metrics = answering, metrics
        self._usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    async def pieces(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the chunks of a streamed completion."""
        yield self._piece({"role": "assistant", "content": ""}) | await self.beside(None)
        finished: Finished | None = None
        async for item in self.answering:
            if isinstance(item, Finished):
                finished = item
            else:
                yield self._piece({"content": item})
        if finished is None:
            yield self._piece({"content": self.unanswered})
        result = None if finished is None else finished.result
        yield self._piece({}, _reason(result)) | await self.beside(finished)
        counted = self._counted(result)
        if self._usage:
            yield self._piece(None) | {"usage": counted}

    async def whole(self) -> dict[str, Any]:
        """Return the completion, once it is finished."""
        finished: Finished | None = None
        async for item in self.answering:
            if isinstance(item, Finished):
                finished = item
        text, result = (self.unanswered, None) if finished is None else finished
        message = {"role": "assistant", "content": text}
        return self._head | {
            "object": "chat.completion",
            "choices": [{"index": 0, "message": message, "finish_reason": _reason(result)}],
            "usage": self._counted(result),
            **await self.beside(finished),
        }

    def _piece(self, delta: dict[str, Any] | None, reason: str | None = None) -> dict[str, Any]:
        choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": reason}]
        return self._head | {"object": "chat.completion.chunk", "choices": choices}

    def _counted(self, result: Result | None) -> dict[str, int]:
        """Return the token usage, and add it to the metrics."""
        if result is None:
            self._metrics.abstained.inc()
        else:
            self._metrics.tokens.inc(len(result.tokens))
            self._metrics.first.observe(result.milliseconds["first"] / 1000)
        request = self.answering.request
        prompt, answer = 0 if request is None else len(request.ids), 0 if result is None else len(result.tokens)
        return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}

    async def beside(self, finished: Finished | None) -> dict[str, Any]:
        """Return additional fields, of the whole and of a stream's first and last chunk.

        Args:
          finished: None before the answer, and where there is none.
        """
        return {}


class Events(Response):
    """The server-sent events of a chat completion, which is cancelled when the client leaves."""

    media_type = "text/event-stream"

    def __init__(self, completion: ChatCompletion, worker: Worker, seconds: float):
        super().__init__(headers={"cache-control": "no-store"})
        del self.headers["content-length"]
        self._completion, self._worker, self._seconds = completion, worker, seconds

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send the events, as an ASGI application."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await while_there(Request(scope, receive), self._send(send), None)
        # A TimeoutError is an OSError: the client does not read, and the connection is closed.
        except (ClientGoneError, OSError):
            pass
        finally:
            self._worker.finish(self._completion.answering)

    async def _send(self, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        async def event(data: str, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": more})

        failed = None
        try:
            async with asyncio.timeout(self._seconds):
                async for piece in self._completion.pieces():
                    await event(json.dumps(piece, ensure_ascii=False))
        except (TimeoutError, ServerStoppingError, ClaraError) as error:
            failed = error
        # Sending waits for a client that does not read.
        async with asyncio.timeout(_LAST_WORDS):
            if failed is not None:
                await event(json.dumps(explained(failed)[1]))
            await event("[DONE]", more=False)


def _reason(result: Result | None) -> str:
    return "length" if result is not None and result.ended == "length" else "stop"
