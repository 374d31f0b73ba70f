"""The part that both servers share: guard, errors in one format, health, metrics, the model's name, and chats."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from clara_jax.serving import schema
from clara_jax.serving.chat import ChatCompletion, Events
from clara_jax.serving.clients import while_there
from clara_jax.serving.errors import RESPONSES, explain_errors
from clara_jax.serving.guard import Guard, RequestLimits
from clara_jax.serving.metrics import Metrics
from clara_jax.serving.worker import Ask, Worker

T = TypeVar("T")
# How uvicorn serves, whatever else is installed: with the websockets package it would answer an upgrade, which no route
# takes, and a strange one left the client waiting; another reader of HTTP has other limits.
UVICORN: dict[str, Any] = {"log_level": "warning", "ws": "none", "http": "h11"}


class Service:
    """An application with the common routes; a server adds further ones.

    Attributes:
      app: the FastAPI application.
      metrics: its Prometheus metrics.
    """

    def __init__(self, worker: Worker, limits: RequestLimits, model: str):
        """Make the application.

        Args:
          worker: owns the model.
          limits: of requests.
          model: the name that clients see.
        """
        self._worker, self._limits, self._model = worker, limits, model
        self.metrics = Metrics(worker)
        self.app = FastAPI(title="clara_jax", version="1", docs_url=None, redoc_url=None, responses=RESPONSES)
        self.app.add_middleware(Guard, limits=limits, metrics=self.metrics)
        explain_errors(self.app)
        self._add_routes()

    async def within(self, request: Request, work: Awaitable[T]) -> T:
        """Return the result of the work, cancelled when the client leaves or the time limit ends; see `while_there`."""
        return await while_there(request, work, self._limits.request_seconds)

    async def answer(
        self, request: Request, body: schema.ChatRequest, ask: Ask, completion: type[ChatCompletion] = ChatCompletion
    ) -> dict[str, Any] | Response:
        """Return the chat completion, or a stream of its pieces where the body asks for one.

        Args:
          request: the HTTP request.
          body: its content.
          ask: see `Worker.ask`.
          completion: the format.

        Raises:
          see `Worker.ask` and `while_there`.
        """
        answering = await self.within(request, self._worker.ask(ask, body.endings))
        chat = completion(answering, body, self.metrics, self._model)
        if body.stream:
            return Events(chat, self._worker, self._limits.request_seconds)
        try:
            return await self.within(request, chat.whole())
        finally:
            self._worker.finish(answering)

    def _add_routes(self) -> None:
        worker = self._worker

        @self.app.get("/v1/models")
        async def models() -> schema.Models:
            """List the one model of this server."""
            return schema.Models(data=[schema.Model(id=self._model)])

        @self.app.get("/v1/models/{model:path}")
        async def model(model: str) -> schema.Model:
            """Return the model of this server, by its name."""
            if model != self._model:
                raise HTTPException(404, f"there is no model {model!r}; the one here is {self._model!r}")
            return schema.Model(id=self._model)

        @self.app.get(
            "/health", responses={503: {"model": schema.Health, "description": "starting, stopping or failed"}}
        )
        async def health() -> Response:
            """Return whether a request is answered at once: not before the programs of first questions are there."""
            status = "failed" if not worker.alive else "stopping" if worker.stopping else "ok"
            if status == "ok" and worker.preparing:
                status = "starting"
            body = schema.Health(
                status=status,
                answering=worker.answering,
                inside=worker.inside,
                limit=worker.limit,
                needs_key=self._limits.key is not None,
                **worker.defaults,
            )
            return JSONResponse(body.model_dump(), 200 if status == "ok" else 503)

        @self.app.get("/metrics", response_class=Response)
        async def numbers() -> Response:
            """Return the metrics in the format of Prometheus."""
            return Response(self.metrics.text(), media_type=CONTENT_TYPE_LATEST)
