"""Errors as HTTP responses in OpenAI's format."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from clara_jax.errors import ClaraError
from clara_jax.retrieval.table import StoreError
from clara_jax.serving import schema
from clara_jax.serving.clients import ClientGoneError
from clara_jax.serving.worker import QueueFullError, ServerStoppingError

RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": schema.ErrorResponse, "description": words}
    for status, words in {
        400: "what is asked for cannot be done, and why",
        401: "the key is missing or wrong",
        403: "a page of another origin asks",
        408: "the request arrived too slowly",
        413: "the request is too large",
        404: "there is no such model or document",
        422: "a field is missing or wrong",
        429: "as many requests wait as may; try again after Retry-After seconds",
        500: "the store is damaged or cannot be written, and where; or the server failed",
        503: "the server is stopping",
        504: "the request took too long",
    }.items()
}


# Messages for fields that OpenAI's API has and this server does not support.
_NOT_DONE = {
    "tools": "no tools are called here; leave it out, or empty",
    "tool_choice": 'no tools are called here; leave it out, or "none" or "auto"',
    "functions": "no functions are called here; leave it out, or empty",
    "function_call": 'no functions are called here; leave it out, or "none" or "auto"',
    "logprobs": "log-probabilities are not reported here; leave it out, or false",
    "top_logprobs": "log-probabilities are not reported here; leave it out",
    "logit_bias": "no bias is added here; leave it out, or empty",
    "frequency_penalty": "there are no penalties here; leave it out, or 0",
    "presence_penalty": "there are no penalties here; leave it out, or 0",
    "modalities": 'answers are text; leave it out, or ["text"]',
    "n": "there is one answer; leave it out, or 1",
}


def explained(error: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Return the status, body and headers of an error's response."""
    match error:
        case StoreError():
            return 500, schema.error(str(error), "server_error"), {}
        case ClaraError():
            return 400, schema.error(str(error), "invalid_request_error"), {}
        case QueueFullError():
            words = "as many requests wait as may; try again in a second"
            return 429, schema.error(words, "rate_limit_error"), {"retry-after": "1"}
        case ServerStoppingError():
            return 503, schema.error("the server is stopping", "server_error"), {"retry-after": "30"}
        case TimeoutError():
            return 504, schema.error("the request took too long", "timeout_error"), {}
        case ClientGoneError():
            return 499, schema.error("the client has gone", "server_error"), {}
        case HTTPException():
            kind = "invalid_request_error" if error.status_code < 500 else "server_error"
            return error.status_code, schema.error(str(error.detail), kind), dict(error.headers or {})
    return 500, schema.error("the server failed; its log says why", "server_error"), {}


def explain_errors(app: FastAPI) -> None:
    """Register the handlers that answer an application's errors in this format."""

    async def answer(_: Request, error: Exception) -> JSONResponse:
        status, body, headers = explained(error)
        return JSONResponse(body, status, headers)

    ours = (ClaraError, QueueFullError, ServerStoppingError, ClientGoneError)
    for kind in (*ours, TimeoutError, HTTPException, Exception):
        app.add_exception_handler(kind, answer)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = max(error.errors(), key=lambda e: len(e["loc"]))  # in a union, of the member that matched furthest
        field = ".".join(str(part) for part in first["loc"] if part != "body")
        reason = _NOT_DONE.get(field.partition(".")[0]) or first["msg"]
        if field.startswith("messages.") and ".content." in field and first["loc"][-1] == "type":
            reason = "parts of the type text alone are read here; no images, sounds or files"
        words = f"{field}: {reason}" if field else reason
        return JSONResponse(schema.error(words, "invalid_request_error", field or None), 422)
