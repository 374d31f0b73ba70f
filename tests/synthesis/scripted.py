"""A server of chat completions on the loopback that behaves, and misbehaves, as it is told."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web


class Misbehaviour(enum.Enum):
    HANG = "no answer, ever"
    DRIBBLE = "the answer comes in drops, and never to its end"
    DROP = "the connection ends before the answer"
    DROP_MIDWAY = "the connection ends within the answer"


@dataclasses.dataclass(frozen=True)
class Response:
    """What is sent, after so many seconds."""

    status: int
    body: bytes
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    after: float = 0.0


def says(
    content: Any,
    finish_reason: str = "stop",
    usage: Mapping[str, Any] | None = None,
    after: float = 0.0,
    **message: Any,
) -> Response:
    """A chat completion of this text, or of this object as JSON; without usage where there is none."""
    text = content if isinstance(content, str | None) else json.dumps(content)
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish_reason}
    body = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "scripted", "choices": [choice]}
    return raw(json.dumps(body | ({"usage": usage} if usage else {})), after=after)


def raw(body: str, status: int = 200, after: float = 0.0, **headers: str) -> Response:
    return Response(status, body.encode(), {name.replace("_", "-"): value for name, value in headers.items()}, after)


def fails(status: int, message: str = "it failed", after: float = 0.0, **headers: str) -> Response:
    """An error as OpenAI's; headers as retry_after="1"."""
    return raw(json.dumps({"error": {"message": message, "type": "error"}}), status, after, **headers)


@dataclasses.dataclass(frozen=True)
class Received:
    """A request.

    Attributes:
      path: with its query.
      headers: their names in lower case.
      at: seconds of the monotonic clock.
    """

    body: dict[str, Any]
    path: str
    headers: Mapping[str, str]
    at: float


class Scripted:
    """The server, for a with block.

    Attributes:
      url: for `Endpoint`.
      requests: received so far, in their order.
      in_flight, most_in_flight: requests that are being answered, now and at most.
    """

    def __init__(self, behave: Callable[[dict[str, Any], int], Response | Misbehaviour]):
        """
        Args:
          behave: is given a request's body, and how often it has come by now (1 is the first time), whatever
            response_format it had. What it raises is raised where the block ends.
        """
        self._behave = behave
        self.requests: list[Received] = []
        self.in_flight = self.most_in_flight = 0
        self._times = Counter[str]()
        self._problem: Exception | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> Scripted:
        self._thread.start()
        assert self._ready.wait(10), "the server did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()
        if self._problem is not None:
            raise self._problem

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=1 << 28)
        app.router.add_post("/v1/chat/completions", self._counted)
        # Requests end when their clients leave, and when the server does.
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.01)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}/v1"
        self._ready.set()
        await self._end.wait()
        await runner.cleanup()

    async def _counted(self, request: web.Request) -> web.StreamResponse:
        self.in_flight += 1
        self.most_in_flight = max(self.in_flight, self.most_in_flight)
        try:
            return await self._answer(request)
        finally:
            self.in_flight -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append(Received(body, request.path_qs, headers, time.monotonic()))
        same = json.dumps({name: value for name, value in body.items() if name != "response_format"})
        self._times[same] += 1
        try:
            behaviour = self._behave(body, self._times[same])
        except Exception as error:
            self._problem = error
            behaviour = fails(400, "the script failed")
        if isinstance(behaviour, Response):
            await asyncio.sleep(behaviour.after)
            headers = {"content-type": "application/json", **behaviour.headers}
            return web.Response(status=behaviour.status, body=behaviour.body, headers=headers)
        return await self._misbehave(behaviour, request)

    async def _misbehave(self, how: Misbehaviour, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "application/json", "content-length": "100000"})
        if how in (Misbehaviour.DRIBBLE, Misbehaviour.DROP_MIDWAY):
            await response.prepare(request)
            await response.write(b'{"choices": [')
        while how is Misbehaviour.DRIBBLE:
            await response.write(b" ")
            await asyncio.sleep(0.02)
        if how is Misbehaviour.HANG:
            await asyncio.Event().wait()
        request.transport.abort()
        return response
