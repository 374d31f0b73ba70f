"""Errors as HTTP responses in OpenAI's format."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from clara_jax.errors import ClaraError
from clara_jax.inference.generator_server import GeneratorServerError
from clara_jax.retrieval.table import StoreError
from clara_jax.serving import schema
from clara_jax.serving.clients import ClientGoneError
from clara_jax.serving.validation_messages import explain
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
        502: "the server that writes the answers (--generator) cannot be reached, or fails, and why",
        503: "the server is stopping",
        504: "the request took too long",
    }.items()
}

# What the framework says of a request that reaches no route, and what this server says.
_USUAL = {
    "Not Found": "{sent}: there is no such route; /openapi.json lists them",
    "Method Not Allowed": "{sent}: the route has another method; /openapi.json lists them",
    "There was an error parsing the body": "the body cannot be read as JSON: it is nested too deeply, or has a number "
    "of thousands of digits",
}


def explained(error: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Return the status, body and headers of an error's response."""
    match error:
        case StoreError():
            return 500, schema.error(str(error), "server_error"), {}
        case GeneratorServerError():
            return 502, schema.error(str(error), "server_error"), {}
        case ClaraError():
            return 400, schema.error(str(error), "invalid_request_error"), {}
        case QueueFullError():
            words = "as many requests wait as may; try again in a second"
            return 429, schema.error(words, "rate_limit_error"), {"retry-after": "1"}
        case ServerStoppingError():
            return 503, schema.error("the server is stopping", "server_error"), {"retry-after": "30"}
        case TimeoutError():
            words = (
                "the request took longer than the server's --request-seconds; while /health says starting, questions "
                "wait for the compiler: ask again when it says ok"
            )
            return 504, schema.error(words, "timeout_error"), {}
        case ClientGoneError():
            return 499, schema.error("the client has gone", "server_error"), {}
        case HTTPException():
            kind = "invalid_request_error" if error.status_code < 500 else "server_error"
            words = str(ClaraError(error.detail))  # of no more characters than any message has
            return error.status_code, schema.error(words, kind), dict(error.headers or {})
    return 500, schema.error("the server failed; its log says why", "server_error"), {}


def explain_errors(app: FastAPI) -> None:
    """Register the handlers that answer an application's errors in this format."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        status, body, headers = explained(error)
        if isinstance(error, HTTPException) and error.detail in _USUAL:
            sent = f"{request.method} {request.url.path[:200]}"
            body = schema.error(_USUAL[error.detail].format(sent=sent), "invalid_request_error")
        return JSONResponse(body, status, headers)

    ours = (ClaraError, QueueFullError, ServerStoppingError, ClientGoneError)
    for kind in (*ours, TimeoutError, HTTPException, Exception):
        app.add_exception_handler(kind, answer)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        words, field = explain(error.errors(), error.body)
        return JSONResponse(schema.error(words, "invalid_request_error", field), 422)
