"""The server of a base model alone, which answers chats without a store."""

from __future__ import annotations

from fastapi import FastAPI, Request

from clara_jax.base_lm import BaseLM
from clara_jax.inference.requests import Request as EngineRequest
from clara_jax.serving import schema
from clara_jax.serving.app import Service
from clara_jax.serving.chat import sampling
from clara_jax.serving.guard import RequestLimits
from clara_jax.serving.worker import Worker


def text_app(worker: Worker, limits: RequestLimits, model: str) -> FastAPI:
    """Make the application.

    Args:
      worker: of a `BaseLM`.
      limits: of requests.
      model: the name that clients see.
    """
    service = Service(worker, limits, model)

    @service.app.post("/v1/chat/completions", response_model=schema.ChatResponse)
    async def chat(body: schema.ChatRequest, request: Request):
        """Answer a chat from all of its messages. With ``stream`` the answer comes as server-sent events."""
        messages = [{"role": _role(message.role), "content": message.text} for message in body.messages]

        def ask(lm: BaseLM) -> tuple[EngineRequest, None]:
            assert body.seed is not None  # `schema.Sent` replaces null by the default
            return lm.request(messages, sampling(body), body.seed), None

        return await service.answer(request, body, ask)

    return service.app


def _role(role: str) -> str:
    """Map OpenAI's newer role "developer" to "system", which the templates of open models know."""
    return "system" if role == "developer" else role
