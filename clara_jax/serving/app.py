"""What every server has: the guard, errors in one shape, health, metrics, one model's name, and answers to chats."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from clara_jax.serving import schema
from clara_jax.serving.chat import Events, Reply
from clara_jax.serving.clients import while_there
from clara_jax.serving.errors import RESPONSES, explain_errors
from clara_jax.serving.guard import Guard, Limits
from clara_jax.serving.metrics import Metrics
from clara_jax.serving.worker import Ask, Worker

T = TypeVar("T")


class Service:
    """An application, for a server to add its own routes to.

    Attributes:
      app, metrics: what it is made of.
    """

    def __init__(self, worker: Worker, limits: Limits, model: str):
        """
        Args:
          model: the name that clients see.
        """
        self._worker, self._limits, self._model = worker, limits, model
        self.metrics = Metrics(worker)
        self.app = FastAPI(title="clara_jax", version="1", docs_url=None, redoc_url=None, responses=RESPONSES)
        self.app.add_middleware(Guard, limits=limits, metrics=self.metrics)
        explain_errors(self.app)
        self._add_routes()

    async def within(self, request: Request, work: Awaitable[T]) -> T:
        """What the work gives, if it is done while the client waits and a request may take; see `while_there`."""
        return await while_there(request, work, self._limits.request_seconds)

    async def answer(
        self, request: Request, body: schema.ChatRequest, ask: Ask, reply: type[Reply] = Reply
    ) -> dict[str, Any] | Response:
        """The chat completion, or the stream of its pieces, as the body wants it.

        Args:
          ask: see `Worker.ask`.
          reply: its format.

        Raises:
          what `Worker.ask` and `while_there` raise.
        """
        answering = await self.within(request, self._worker.ask(ask, body.endings))
        own = reply(answering, body, self.metrics, self._model)
        if body.stream:
            return Events(own, self._worker, self._limits.request_seconds)
        try:
            return await self.within(request, own.whole())
        finally:
            self._worker.finish(answering)

    def _add_routes(self) -> None:
        worker = self._worker

        @self.app.get("/v1/models")
        async def models() -> schema.Models:
            """The one model that there is."""
            return schema.Models(data=[schema.Model(id=self._model)])

        @self.app.get("/v1/models/{model:path}")
        async def model(model: str) -> schema.Model:
            """The one model, by its name."""
            if model != self._model:
                raise HTTPException(404, f"there is no model {model!r}; the one here is {self._model!r}")
            return schema.Model(id=self._model)

        @self.app.get("/health", responses={503: {"model": schema.Health, "description": "stopping, or failed"}})
        async def health() -> Response:
            """Whether requests are taken."""
            status = "failed" if not worker.alive else "stopping" if worker.stopping else "ok"
            own = schema.Health(
                status=status,
                answering=worker.answering,
                inside=worker.inside,
                limit=worker.limit,
                needs_key=self._limits.key is not None,
            )
            return JSONResponse(own.model_dump(), 200 if status == "ok" else 503)

        @self.app.get("/metrics", response_class=Response)
        async def numbers() -> Response:
            """For Prometheus."""
            return Response(self.metrics.text(), media_type=CONTENT_TYPE_LATEST)
