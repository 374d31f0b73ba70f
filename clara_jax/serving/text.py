"""The server of a base model alone: chats are answered as the base has learnt it, without a store."""

from __future__ import annotations

from fastapi import FastAPI, Request

from clara_jax.inference.engine import Request as EngineRequest
from clara_jax.plain import Plain
from clara_jax.serving import schema
from clara_jax.serving.app import Service
from clara_jax.serving.chat import sampling
from clara_jax.serving.guard import Limits
from clara_jax.serving.worker import Worker


def text_app(worker: Worker, limits: Limits, model: str) -> FastAPI:
    """The application.

    Args:
      worker: of a `Plain`.
      model: the name that clients see.
    """
    service = Service(worker, limits, model)

    @service.app.post("/v1/chat/completions", response_model=schema.ChatResponse)
    async def chat(body: schema.ChatRequest, request: Request):
        """Answers a chat, all messages of which are read. With ``stream`` the answer comes as server-sent events."""
        messages = [{"role": _role(message.role), "content": message.text} for message in body.messages]

        def ask(plain: Plain) -> tuple[EngineRequest, None]:
            return plain.request(messages, sampling(body), body.seed), None

        return await service.answer(request, body, ask)

    return service.app


def _role(role: str) -> str:
    """OpenAI's newer name of the system means nothing to the templates of open models."""
    return "system" if role == "developer" else role
