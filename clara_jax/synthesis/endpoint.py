"""A client of any OpenAI-compatible server (vLLM, llama.cpp, hosted ones), with many requests in flight.

A failed request is retried with exponential back-off: statuses 408, 409, 425, 429 and 5xx, a timeout, a connection that
breaks off, a body that is no chat completion or has no text. It waits at least `Retry-After`, and where a server is
busy (429, or any of these with that header) all requests wait, not only the one that failed.

The mode of structured output is negotiated at the first refusal that the schema may have caused: the request is sent
again with any JSON object asked for, then without a response format, and the mode that the server accepts is used from
then on. Likewise an option that the server does not accept (max_tokens, temperature, seed) is left out or renamed.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import parse_qsl

import aiohttp
import openai
from aiolimiter import AsyncLimiter
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential, wait_random

from clara_jax.errors import ClaraError
from clara_jax.redaction import address_of, basic, error_message, repeats, secrets_of, shown, without_user
from clara_jax.strict_json import parse
from clara_jax.synthesis.completion import Completion, CompletionRequest, RefusedError, estimated_tokens, text_of

Structured = Literal["schema", "object", "none"]
STRUCTURED: tuple[Structured, ...] = ("schema", "object", "none")
MOST_TOKENS = 2_000_000  # a request may have used beyond those of its text: reasoning is not shown
REST = 5.0  # seconds that all requests wait where a busy server does not say how long
LONGEST_REST = 600.0  # seconds; where a server asks for more, the user may start again later

# With six attempts a server may be unreachable for a minute.
BACK_OFF = wait_exponential(multiplier=2, max=60) + wait_random(0, 2)
_BUSY = 429
_AGAIN = frozenset({408, 409, 425, _BUSY})  # and 5xx
_NOT_IMPLEMENTED = 501
_REFUSED = frozenset({400, 413, 422})
_MAY_BE_THE_SCHEMA = frozenset({400, 422, _NOT_IMPLEMENTED})
_BUSY_CAUSE = f"http_{_BUSY}"
_EMPTY = "empty"
_OPTIONS = ("max_tokens", "temperature", "seed")
_INSTEAD = {"max_tokens": {"max_tokens": "max_completion_tokens"}}  # OpenAI's name for reasoning models
_UNWANTED = re.compile(
    r"unsupported|not supported|not permitted|extra|unknown|unrecogni[sz]ed|unexpected", re.IGNORECASE
)


class _SchemaRefusedError(RefusedError):
    """A refusal whose status may mean that the server does not support the mode of structured output."""


class _RetryableError(Exception):
    """A failed attempt that is worth another one.

    Attributes:
      cause: a short name, for statistics.
      detail: one line.
      busy: whether the server is too busy for other requests, too.
      after: seconds that the server asks to wait.
    """

    def __init__(self, cause: str, detail: str, busy: bool = False, after: float | None = None):
        super().__init__(detail)
        self.cause, self.detail, self.busy, self.after = cause, detail, busy, after


class RateLimiter:
    """A limiter of requests and tokens per minute, first come, first served.

    In any span of time each rate may be exceeded by what it allows in one second; so may the server's window of a
    minute, by a 60th.

    Attributes:
      waited: seconds that all requests together have waited.
    """

    def __init__(self, requests_per_minute: float | None = None, tokens_per_minute: float | None = None):
        self._requests, self._tokens = _limiter(requests_per_minute), _limiter(tokens_per_minute)
        self._paused_until = 0.0
        self._order = asyncio.Lock()
        self.waited = 0.0

    def pause(self, seconds: float) -> None:
        """Let no request go for so long."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)

    async def acquire(self, tokens: int) -> None:
        """Wait until a request of so many tokens may be sent."""
        began = time.monotonic()
        async with self._order:
            if self._requests is not None:
                await self._requests.acquire()
            # A request may have more tokens than a second allows: they are acquired in parts.
            remaining = float(tokens)
            while self._tokens is not None and remaining > 0:
                part = min(remaining, self._tokens.max_rate)
                await self._tokens.acquire(part)
                remaining -= part
            while (left := self._paused_until - time.monotonic()) > 0:
                await asyncio.sleep(left)
        self.waited += time.monotonic() - began


class Endpoint:
    """A model on a server, with retries, rate limits and negotiation of structured output. For one event loop.

    Attributes:
      structured: the current mode of structured output: "schema", "object" (any JSON object) or "none".
      requests: number sent, retries included.
      answered: number of these with a usable answer.
      repeated: number of retries by cause: "http_<status>", "timeout", "connection", "not_a_completion", "empty",
        "unwanted_option".
    """

    def __init__(
        self,
        url: str,
        model: str,
        key: str | None = None,
        concurrency: int = 64,
        attempts: int = 6,
        timeout: float = 120.0,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        structured: Literal["auto"] | Structured = "auto",
    ):
        """Set up the client; nothing is sent.

        Args:
          url: what precedes "/chat/completions", e.g. http://localhost:8000/v1. Its query is sent along; a user and
            password in it are sent as basic authentication, in place of the key.
          model: as the server calls it.
          key: API key, None where the server needs none. No message shows it, nor any other secret of the URL.
          concurrency: limit on requests in flight.
          attempts: limit on how often a request is sent. Attempts at which a server is busy (429) do not count while it
            answers others.
          timeout: seconds of a whole attempt.
          requests_per_minute: rate limit.
          tokens_per_minute: rate limit on tokens of prompts (estimated) and max_tokens.
          structured: the mode of structured output; "auto" negotiates it.

        Raises:
          ClaraError: an argument is out of range, or the URL is none.
        """
        key = (key or "").strip()
        if not (key.isascii() and key.isprintable()):
            raise ClaraError("the key has characters that no key has; set it anew")
        address = address_of(url)
        self._secrets = [key, *(secrets_of(url) if address else ())]
        self._url = self._shown((url if address else without_user(url)).partition("?")[0])
        if address is None:
            raise ClaraError(f"{self._url}: is no address of a server; it looks like http://localhost:8000/v1")
        for name, value in (
            ("concurrency", concurrency),
            ("attempts", attempts),
            ("timeout", timeout),
            ("requests_per_minute", requests_per_minute),
            ("tokens_per_minute", tokens_per_minute),
        ):
            if value is not None and value <= 0:
                raise ClaraError(f"{name}: {value} must be more than 0")
        if structured not in ("auto", *STRUCTURED):
            raise ClaraError(f"structured: {structured!r} must be one of auto, {', '.join(STRUCTURED)}")
        self.structured: Structured = "schema" if structured == "auto" else structured
        self.requests = self.answered = 0
        self.repeated = Counter[str]()
        self._model, self._attempts, self._timeout = model, attempts, timeout
        self._slots = asyncio.Semaphore(concurrency)
        self._rate_limiter = RateLimiter(requests_per_minute, tokens_per_minute)
        self._backed_off = 0.0
        self._negotiates = structured == "auto"
        self._negotiating = asyncio.Lock()
        self._options = {name: name for name in _OPTIONS}  # those that the server accepts, by its names for them
        self._accepted: set[tuple[Structured, str]] = set()  # modes with schemas that the server has not refused
        # It logs each request with its whole URL, which may have a secret.
        logging.getLogger("httpx2").setLevel(logging.WARNING)
        self._client = openai.AsyncOpenAI(
            base_url=f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path}",
            api_key=key or "none",  # otherwise the client would send OPENAI_API_KEY to any server
            default_headers={"Authorization": f"Basic {basic(url)}" if address.username else f"Bearer {key or 'none'}"},
            default_query=dict(parse_qsl(address.query, keep_blank_values=True)),
            timeout=None,  # `asyncio.timeout` ends an attempt, even one whose answer trickles in
            max_retries=0,
            http_client=openai.DefaultAioHttpClient(),  # takes half the time of the usual one
        )

    @property
    def waited(self) -> float:
        """Seconds between attempts, and until the rates or a busy server allowed a request; of all of them together."""
        return self._backed_off + self._rate_limiter.waited

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def ask(self, request: CompletionRequest, before_attempt: Callable[[], None] = lambda: None) -> Completion:
        """Send a request, as often as it takes, and return the completion.

        Args:
          request: what is sent.
          before_attempt: called right before each attempt is sent; an exception of it ends the request.

        Raises:
          RefusedError: the server answers others, but not this one.
          ClaraError: no request can succeed: the key or the model is wrong, or the server failed at all attempts.
        """
        structured = self.structured if request.schema is not None else "none"
        try:
            return await self._answer(request, structured, before_attempt)
        except _SchemaRefusedError:
            known = (structured, str(request.schema)) in self._accepted
            if not self._negotiates or structured == "none" or known:
                raise
        async with self._negotiating:
            if self.structured == structured:  # no other request has changed it meanwhile
                for less in STRUCTURED[STRUCTURED.index(structured) + 1 :]:
                    try:
                        reply = await self._answer(request, less, before_attempt)
                    except _SchemaRefusedError:  # never for "none"
                        continue
                    self.structured = less
                    return reply
        return await self.ask(request, before_attempt)

    async def _answer(
        self, request: CompletionRequest, structured: Structured, before_attempt: Callable[[], None]
    ) -> Completion:
        """Repeat attempts until one is answered or they are used up."""
        counted, answered, progress = 0, self.answered, False

        def enough(state: RetryCallState) -> bool:
            nonlocal counted, answered, progress
            progress, answered = self.answered > answered, self.answered
            counted += not (progress and _failure(state).cause == _BUSY_CAUSE)
            return counted >= self._attempts

        def wait(state: RetryCallState) -> float:
            failure = _failure(state)
            if failure.busy:
                self._rate_limiter.pause(failure.after or REST)
            # Backs off even where the server asks for less: it may be busy for longer than it says.
            return max(failure.after or 0.0, BACK_OFF(state))

        def count(state: RetryCallState) -> None:
            self.repeated[_failure(state).cause] += 1
            self._backed_off += state.upcoming_sleep

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_RetryableError), stop=enough, wait=wait, before_sleep=count, reraise=True
        )
        try:
            reply = await retrying(self._attempt, request, structured, before_attempt)
        except _RetryableError as last:
            failure = last
        else:
            if self._negotiates and structured != "none":
                self._accepted.add((structured, str(request.schema)))
            return reply
        words = f"no answer in {self._attempts} attempts, the last one: {failure.detail}"
        # The server works: others were answered meanwhile, or this one was, with an empty text.
        if (progress and failure.cause != _BUSY_CAUSE) or failure.cause == _EMPTY:
            raise RefusedError(words)
        raise ClaraError(f"{self._url}: {words}; when the server is well, the same command goes on from here")

    async def _attempt(
        self, request: CompletionRequest, structured: Structured, before_attempt: Callable[[], None]
    ) -> Completion:
        body = {
            "model": self._model,
            "messages": [{"role": role, "content": content} for role, content in request.messages],
        }
        if structured == "schema" and request.schema is not None:
            schema = {"name": request.schema.get("title", "reply"), "schema": request.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif structured == "object":
            body["response_format"] = {"type": "json_object"}
        prompt_tokens = sum(estimated_tokens(content) for _, content in request.messages)
        async with self._slots:
            await self._rate_limiter.acquire(prompt_tokens + request.max_tokens)
            before_attempt()
            self.requests += 1
            body |= {name: getattr(request, option) for option, name in self._options.items()}
            content, failure = b"", None
            try:
                async with asyncio.timeout(self._timeout):
                    # Not `chat.completions.create`: its validation takes as long as all the rest.
                    content = await self._client.post("/chat/completions", body=body, cast_to=bytes)
            except TimeoutError:
                failure = _RetryableError("timeout", f"it took longer than {self._timeout:g} seconds")
            except openai.APIStatusError as error:
                failure = self._by_status(error, structured)
            except (openai.APIConnectionError, aiohttp.ClientError) as error:
                detail = self._shown(str(error.__cause__ or error)) or "the connection broke off"
                failure = _RetryableError("connection", detail)
            except UnicodeEncodeError:
                failure = RefusedError("the text has half a surrogate pair, which cannot be sent")
        if failure is not None:
            raise failure  # outside of the handler: the client's exception as its context may show a secret
        reply = self._read(content, prompt_tokens)
        self.answered += 1
        return reply

    def _by_status(self, error: openai.APIStatusError, structured: Structured) -> Exception:
        status, words = error.status_code, self._shown(error_message(error.body)) or "no reason"
        detail = f"the server says {status}: {words}"
        if status in (401, 403):
            return ClaraError(f"{self._url}: the key is missing, wrong, or not for this model; {detail}")
        if status == 404 or error.code == "model_not_found":
            return ClaraError(
                f"{self._url}: there is no model {self._model!r}, or the address is wrong (most end in /v1); {detail}"
            )
        if (option := _unwanted(error, words)) is not None:
            self._options.pop(option, None)
            self._options |= _INSTEAD.get(option, {})
            return _RetryableError("unwanted_option", detail)
        if status in _MAY_BE_THE_SCHEMA and structured != "none":
            return _SchemaRefusedError(detail)
        if status in _REFUSED:
            return RefusedError(detail)
        if status not in _AGAIN and (status < 500 or status == _NOT_IMPLEMENTED):
            return ClaraError(f"{self._url}: {detail}")
        after = _seconds(error.response.headers.get("retry-after", ""))
        if after is not None and after > LONGEST_REST:
            return ClaraError(f"{self._url}: {detail}; start the same command again in {after:,.0f} s")
        return _RetryableError(f"http_{status}", detail, status == _BUSY or after is not None, after)

    def _read(self, content: bytes, prompt_tokens: int) -> Completion:
        body: Any = None
        text = reason = refusal = usage = None
        with contextlib.suppress(ValueError):
            body = parse(content)
        with contextlib.suppress(AttributeError, IndexError, KeyError, TypeError):
            choice = body["choices"][0]
            message, reason = choice["message"], choice.get("finish_reason")
            text, refusal, usage = text_of(message.get("content")), message.get("refusal"), body.get("usage")
        if not isinstance(text, str):
            detail = error_message(body) if isinstance(body, Mapping) else content.decode(errors="replace")
            raise _RetryableError("not_a_completion", f"no chat completion: {self._shown(detail) or 'nothing'}")
        if reason == "content_filter" or (refusal and not text):
            raise RefusedError(f"the server's filter: {self._shown(str(refusal or reason))}")
        if repeats(text, *self._secrets):
            raise RefusedError("the reply repeats the key or another secret of the address")  # it would be stored
        cut = reason == "length"
        usage = usage if isinstance(usage, Mapping) else {}
        if not text.strip() and not cut:
            raise _RetryableError(_EMPTY, "an answer without text")
        completion_tokens = estimated_tokens(text)
        # A server's count is ignored where no request can have used that many.
        most = MOST_TOKENS + 4 * (prompt_tokens + completion_tokens)

        def believed(count: Any, estimate: int) -> int:
            return count if type(count) is int and 0 <= count <= most else estimate

        return Completion(
            text,
            believed(usage.get("prompt_tokens"), prompt_tokens),
            believed(usage.get("completion_tokens"), completion_tokens),
            cut,
        )

    def _shown(self, words: str) -> str:
        """Return a server's message in one short line, without secrets and control characters."""
        return shown(words, *self._secrets)


def _limiter(per_minute: float | None) -> AsyncLimiter | None:
    """Return a limiter whose burst is what one second allows, and at least 1."""
    if per_minute is None:
        return None
    burst = max(1.0, per_minute / 60)
    return AsyncLimiter(burst, burst / per_minute * 60)


def _failure(state: RetryCallState) -> _RetryableError:
    """Return the error of the attempt that has just failed."""
    error = state.outcome.exception() if state.outcome is not None else None
    assert isinstance(error, _RetryableError), "tenacity retries for these alone"
    return error


def _unwanted(error: openai.APIStatusError, words: str) -> str | None:
    """Return the option that a server does not accept, if its error says so."""
    if error.status_code not in (400, 422) or not _UNWANTED.search(f"{error.code} {words}"):
        return None
    if error.param in _OPTIONS:
        return error.param
    return next((name for name in _OPTIONS if re.search(rf"\b{name}\b", words)), None)


def _seconds(retry_after: str) -> float | None:
    """Return the seconds of a Retry-After header, a number or a date (RFC 9110, section 10.2.3); None for neither."""
    if re.fullmatch(r"\d{1,9}", retry_after):
        return float(retry_after)
    try:
        date = email.utils.parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
