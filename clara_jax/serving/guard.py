"""Middleware before every route: checks of a request's key, origin, size and time, and request metrics."""

from __future__ import annotations

import asyncio
import dataclasses
import hmac
import json
import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from clara_jax import strict_json
from clara_jax.serving.metrics import Metrics
from clara_jax.serving.schema import error

OPEN = ("/", "/health", "/favicon.ico")  # paths that need no key
FILES = "/v1/files/"  # paths below it take a file each, as it is
_MOST_FILES = 2  # that are received or read at one time: they are larger than other requests
_POLICY = "content-security-policy"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_HEADERS = {
    _POLICY: "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_SURROGATE = re.compile(rb"\\u[dD][89abcdefABCDEF]")  # half of a pair, or a whole one
_PREFLIGHT_SECONDS = b"600"


@dataclasses.dataclass(frozen=True)
class RequestLimits:
    """The limits of clients' requests.

    Attributes:
      key: that a client must send ("Authorization: Bearer ..."), None for none.
      hosts: allowed names in the Host header, and in the Origin header of pages; None for any. This refuses a page of
        another origin whose domain name resolves to this server (DNS rebinding).
      body: bytes of a request, and characters of an uploaded file's text.
      file: bytes of an uploaded file.
      body_seconds: until a request has arrived.
      request_seconds: until it is answered.
    """

    key: str | None = None
    hosts: tuple[str, ...] | None = None
    body: int = 4 << 20
    file: int = 16 << 20
    body_seconds: float = 20.0
    request_seconds: float = 300.0


class Guard:
    """The ASGI middleware."""

    def __init__(self, app: Callable[..., Any], limits: RequestLimits, metrics: Metrics):
        self._app, self._limits, self._metrics = app, limits, metrics
        self._files = 0  # inside

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Check a request, pass it on to the application or refuse it, and count it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        shared = self._shared_with(headers)

        async def watched(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                # A response may bring a policy: the page, which has a script.
                known = [name for name, _ in message["headers"]]
                added = [(k.encode(), v.encode()) for k, v in _HEADERS.items() if k.encode() not in known]
                message["headers"] = [*message["headers"], *added, *shared]
            await send(message)

        takes_file = scope["path"].startswith(FILES) and scope["method"] == "PUT"
        self._files += takes_file
        try:
            body, refused = None, self._refused(scope, headers)
            if refused is None and shared and _is_preflight(scope, headers):
                await _preflight(watched, headers)
                return
            if refused is None:
                body, refused = await self._body(receive, self._limits.file if takes_file else self._limits.body)
            if refused is None and body is not None and not takes_file:
                refused = _unreadable(body)
            if refused is not None:
                await _send_error(watched, *refused)
            elif body is not None:
                await self._app(scope, _replayed(body, receive), watched)
            else:
                status = 499  # the client has disconnected, so no response is sent
        finally:
            self._files -= takes_file
            # Paths without a route have one label, as their number is unbounded.
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - began)

    def _shared_with(self, headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
        """Return the CORS headers that let a page read the response, none where its origin may not.

        With a key, which no browser sends by itself, any page may; else pages of the allowed host names, or of the host
        of the request.
        """
        origin = headers.get("origin", "")
        hosts = self._limits.hosts
        if self._limits.key is None or hosts is not None:
            known = hosts if hosts is not None else (_host(headers.get("host", "")),)
            if not origin or _host_of(origin) is None or _host_of(origin) not in known:
                return []
        if not origin:
            return []
        return [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"Origin")]

    def _refused(self, scope: dict[str, Any], headers: dict[str, str]) -> tuple[int, str, str] | None:
        """Return the status, message and kind of a refusal by the headers, or None."""
        if self._limits.hosts is not None and _host(headers.get("host", "")) not in self._limits.hosts:
            return 400, f"this server is not known as {headers.get('host', '')[:100]!r}", "invalid_request_error"
        origin = headers.get("origin")  # of the page, where a page sends the request
        if self._limits.hosts is not None and origin is not None and _host_of(origin) not in self._limits.hosts:
            return 403, f"pages of {origin[:100]!r} may not ask this server", "permission_error"
        if self._limits.key is not None and scope["path"] not in OPEN and not _is_preflight(scope, headers):
            kind, _, given = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(given.encode(), self._limits.key.encode()):
                return 401, "the key is missing or wrong: Authorization: Bearer KEY", "authentication_error"
        takes_file = scope["path"].startswith(FILES) and scope["method"] == "PUT"
        if takes_file and self._files > _MOST_FILES:
            return 429, f"{_MOST_FILES} files are being read; send this one again in a second", "rate_limit_error"
        length, most = headers.get("content-length", ""), self._limits.file if takes_file else self._limits.body
        return _large(most) if length.isdigit() and int(length) > most else None

    async def _body(self, receive: Callable[..., Any], most: int) -> tuple[bytes | None, tuple[int, str, str] | None]:
        """Read the whole body: return it, None where the client has disconnected; and a refusal, or None."""
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None, None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        return None, _large(most)
                    if not message.get("more_body", False):
                        return b"".join(parts), None
        except TimeoutError:
            words = f"the request took longer than {self._limits.body_seconds:g} seconds to arrive"
            return None, (408, words, "timeout_error")


def _large(most: int) -> tuple[int, str, str]:
    return 413, f"the request is larger than {most:,} bytes", "invalid_request_error"


def _is_preflight(scope: dict[str, Any], headers: dict[str, str]) -> bool:
    """Return whether a request is a browser's CORS preflight, which has no key."""
    return scope["method"] == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


async def _preflight(send: Callable[..., Any], asked: dict[str, str]) -> None:
    headers = [
        (b"access-control-allow-methods", b"GET, POST, PUT, DELETE, OPTIONS"),
        (b"access-control-allow-headers", asked.get("access-control-request-headers", "").encode("latin-1")),
        (b"access-control-max-age", _PREFLIGHT_SECONDS),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _unreadable(body: bytes) -> tuple[int, str, str] | None:
    """Return a refusal of a body, or None: JSON can escape half of a surrogate pair, which is no character."""
    if _SURROGATE.search(body):
        try:
            json.dumps(strict_json.parse(body), ensure_ascii=False).encode()
        except UnicodeEncodeError:
            words = "the request holds half of a surrogate pair; send the character whole"
            return 400, words, "invalid_request_error"
        except (ValueError, RecursionError):
            pass  # other mistakes are reported where the body is parsed
    return None


def _replayed(body: bytes, receive: Callable[..., Any]) -> Callable[..., Any]:
    given = False

    async def again() -> dict[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _host(header: str) -> str | None:
    return _host_of(f"//{header}")


def _host_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


async def _send_error(send: Callable[..., Any], status: int, message: str, kind: str) -> None:
    """Send an error, and close the connection, as the request may not have been read to its end."""
    body = json.dumps(error(message, kind)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"connection", b"close")] + [(b"www-authenticate", b"Bearer")] * (status == 401)
    headers += [(b"retry-after", b"1")] * (status == 429)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
