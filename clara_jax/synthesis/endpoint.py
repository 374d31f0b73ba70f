"""Asks a language model behind any OpenAI-compatible server (vLLM, llama.cpp, hosted ones), many requests at once.

A request that fails is sent again, after a while that doubles: statuses 408, 409, 425, 429 and 5xx, a server that does
not answer in time or breaks off, a body that is no chat completion or has no text. `Retry-After` is the least it waits,
and where a server is busy (429, or any of these with that header) all requests wait, not only the one it was said to.

How answers are kept to a schema is found out with the first refusal that the schema may have caused: the request is
sent again with any JSON object asked for, then with words alone, and what the server takes is asked for from then on.
Likewise an option that the server does not take (max_tokens, temperature, seed) is left out, or called otherwise.
"""

from __future__ import annotations

import asyncio
import dataclasses
import email.utils
import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import SplitResult, parse_qsl, urlsplit

import aiohttp
import openai
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential, wait_random

from clara_jax.errors import ClaraError
from clara_jax.strict_json import parse
from clara_jax.synthesis.pace import Pace
from clara_jax.synthesis.redaction import basic, redacted, repeats, secrets_of

Structured = Literal["schema", "object", "none"]
STRUCTURED: tuple[Structured, ...] = ("schema", "object", "none")
MOST_TOKENS = 2_000_000  # that a request may have used, beside what its text shows: thoughts are not shown
CHARACTERS_PER_TOKEN = 4  # where the server does not count
REST = 5.0  # seconds that all requests wait where a busy server does not say how long
LONGEST_REST = 600.0  # seconds; where a server asks for more, the user may choose another time

# With six attempts a server may be away for a minute.
BACK_OFF = wait_exponential(multiplier=2, max=60) + wait_random(0, 2)
_BUSY = 429
_AGAIN = frozenset({408, 409, 425, _BUSY})  # and 5xx
_NOT_IMPLEMENTED = 501
_REFUSED = frozenset({400, 413, 422})
_MAY_BE_THE_SCHEMA = frozenset({400, 422, _NOT_IMPLEMENTED})
_BUSY_CAUSE = f"http_{_BUSY}"
_EMPTY = "empty"
_OPTIONS = ("max_tokens", "temperature", "seed")
_INSTEAD = {"max_tokens": {"max_tokens": "max_completion_tokens"}}  # OpenAI's name for models that think
_UNWANTED = re.compile(
    r"unsupported|not supported|not permitted|extra|unknown|unrecogni[sz]ed|unexpected", re.IGNORECASE
)
_MESSAGE_LENGTH = 200  # characters of what a server says


@dataclasses.dataclass(frozen=True)
class Ask:
    """What is sent.

    Attributes:
      messages: (role, content) of each.
      schema: JSON schema of the wanted answer, None for free text.
      max_tokens: of the answer, at most.
    """

    messages: tuple[tuple[str, str], ...]
    schema: Mapping[str, Any] | None
    max_tokens: int
    temperature: float
    seed: int

    def key(self) -> str:
        """A hex digest of all of it, the same in every process. The order within a schema counts: models follow it."""
        content = [self.messages, self.schema, self.max_tokens, float(self.temperature), self.seed]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
      text: empty only where it is cut: all tokens went into thoughts that the server does not show.
      prompt_tokens, completion_tokens: as the server counts; a token for four characters where it does not.
      cut: it stopped at max_tokens.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    cut: bool


class Refused(Exception):
    """The server will not answer this request however often it is asked, but others it will; its text is the reason."""


class _NotSo(Refused):
    """By a status that may mean how the answer is to be kept to a schema."""


class _Again(Exception):
    """An attempt that failed.

    Attributes:
      cause: a short name, for statistics; detail: one line.
      busy: the server cannot answer others now either.
      after: seconds that the server asks for.
    """

    def __init__(self, cause: str, detail: str, busy: bool = False, after: float | None = None):
        super().__init__(detail)
        self.cause, self.detail, self.busy, self.after = cause, detail, busy, after


class Endpoint:
    """See the beginning of this module. For one event loop.

    Attributes:
      structured: how answers are kept to their schemas now: "schema", "object" (any JSON object) or "none".
      requests: sent, repeated ones too; answered: of these.
      repeated: how many were sent again, by cause: "http_<status>", "timeout", "connection", "not_a_completion",
        "empty", "unwanted_option".
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
        """
        Args:
          url: up to what stands before "/chat/completions", as http://localhost:8000/v1. Its query is sent along; a
            user and password in it as such (basic authentication), in place of the key.
          key: the server's, None where it wants none. No message shows it, nor any other secret of the URL.
          concurrency: greatest number of requests in flight.
          attempts: how often a request is sent at most. A busy server (429) that answers others meanwhile has as many
            as it likes.
          timeout: seconds of an attempt, whole.
          requests_per_minute: at most; tokens_per_minute: the same, of prompts (estimated) and max_tokens.
          structured: "auto" finds it out.

        Raises:
          ClaraError: one of them makes no sense.
        """
        key = (key or "").strip()
        if not (key.isascii() and key.isprintable()):
            raise ClaraError("the key has characters that no key has; set it anew")
        address = _parts(url)
        self._secrets = [key, *(secrets_of(url) if address else ())]
        self._url = self._shown(url.partition("?")[0])
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
        self._pace = Pace(requests_per_minute, tokens_per_minute)
        self._backed_off = 0.0
        self._finds_out = structured == "auto"
        self._finding_out = asyncio.Lock()
        self._options = {name: name for name in _OPTIONS}  # as the server calls them; those that it takes
        self._taken: set[tuple[Structured, str]] = set()  # with schemas that the server has not refused
        # It logs each request with its whole URL, which may have a secret.
        logging.getLogger("httpx2").setLevel(logging.WARNING)
        self._client = openai.AsyncOpenAI(
            base_url=f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path}",
            api_key=key or "none",  # without one, the variable for OpenAI's own would be sent to whatever server
            default_headers={"Authorization": f"Basic {basic(url)}" if address.username else f"Bearer {key or 'none'}"},
            default_query=dict(parse_qsl(address.query, keep_blank_values=True)),
            timeout=None,  # `asyncio.timeout` ends an attempt, also one whose answer comes in drops
            max_retries=0,
            http_client=openai.DefaultAioHttpClient(),  # takes half the time of the usual one
        )

    @property
    def waited(self) -> float:
        """Seconds between attempts, and until the rates or a busy server allowed a request; of all of them together."""
        return self._backed_off + self._pace.waited

    async def close(self) -> None:
        await self._client.close()

    async def ask(self, ask: Ask, may: Callable[[], None] = lambda: None) -> Reply:
        """
        Args:
          may: is called before each attempt, when its turn has come; what it raises ends the request.

        Raises:
          Refused: the server answers others, but not this one.
          ClaraError: nothing can go on: the key or the model is wrong, or the server was away for all attempts.
        """
        structured = self.structured if ask.schema is not None else "none"
        try:
            return await self._answer(ask, structured, may)
        except _NotSo:
            known = (structured, str(ask.schema)) in self._taken
            if not self._finds_out or structured == "none" or known:
                raise
        async with self._finding_out:
            if self.structured == structured:  # no other request has found it out meanwhile
                for less in STRUCTURED[STRUCTURED.index(structured) + 1 :]:
                    try:
                        reply = await self._answer(ask, less, may)
                    except _NotSo:  # never for "none"
                        continue
                    self.structured = less
                    return reply
        return await self.ask(ask, may)

    async def _answer(self, ask: Ask, structured: Structured, may: Callable[[], None]) -> Reply:
        """Attempts until there is an answer, or there have been enough."""
        counted, answered, progress = 0, self.answered, False

        def enough(state: RetryCallState) -> bool:
            nonlocal counted, answered, progress
            progress, answered = self.answered > answered, self.answered
            counted += not (progress and state.outcome.exception().cause == _BUSY_CAUSE)
            return counted >= self._attempts

        def wait(state: RetryCallState) -> float:
            failure = state.outcome.exception()
            if failure.busy:
                self._pace.rest(failure.after or REST)
            # Longer each time also where a server wants less: what it is busy with may take longer than it says.
            return max(failure.after or 0.0, BACK_OFF(state))

        def count(state: RetryCallState) -> None:
            self.repeated[state.outcome.exception().cause] += 1
            self._backed_off += state.upcoming_sleep

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_Again), stop=enough, wait=wait, before_sleep=count, reraise=True
        )
        try:
            reply = await retrying(self._attempt, ask, structured, may)
        except _Again as last:
            failure = last
        else:
            if self._finds_out and structured != "none":
                self._taken.add((structured, str(ask.schema)))
            return reply
        words = f"no answer in {self._attempts} attempts, the last one: {failure.detail}"
        # Others were answered meanwhile, or this one was, with nothing.
        if (progress and failure.cause != _BUSY_CAUSE) or failure.cause == _EMPTY:
            raise Refused(words)
        raise ClaraError(f"{self._url}: {words}; when the server is well, the same command goes on from here")

    async def _attempt(self, ask: Ask, structured: Structured, may: Callable[[], None]) -> Reply:
        body = {
            "model": self._model,
            "messages": [{"role": role, "content": content} for role, content in ask.messages],
        }
        if structured == "schema":
            schema = {"name": ask.schema.get("title", "reply"), "schema": ask.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif structured == "object":
            body["response_format"] = {"type": "json_object"}
        prompt_tokens = sum(_tokens(content) for _, content in ask.messages)
        async with self._slots:
            await self._pace.turn(prompt_tokens + ask.max_tokens)
            may()
            self.requests += 1
            body |= {name: getattr(ask, option) for option, name in self._options.items()}
            try:
                async with asyncio.timeout(self._timeout):
                    # Not `chat.completions.create`, whose checks take as long as all the rest.
                    content = await self._client.post("/chat/completions", body=body, cast_to=bytes)
            except TimeoutError:
                failure = _Again("timeout", f"it took longer than {self._timeout:g} seconds")
            except openai.APIStatusError as error:
                failure = self._by_status(error, structured)
            except (openai.APIConnectionError, aiohttp.ClientError) as error:
                failure = _Again("connection", self._shown(str(error.__cause__ or error)) or "the connection broke off")
            except UnicodeEncodeError:
                failure = Refused("the text has half a surrogate pair, which cannot be sent")
            else:
                failure = None
        if failure is not None:
            raise failure  # not where the client's own is handled, which may show a secret
        reply = self._read(content, prompt_tokens)
        self.answered += 1
        return reply

    def _by_status(self, error: openai.APIStatusError, structured: Structured) -> Exception:
        status, words = error.status_code, self._shown(_message(error.body)) or "no reason"
        said = f"the server says {status}: {words}"
        if status in (401, 403):
            return ClaraError(f"{self._url}: the key is missing, wrong, or not for this model; {said}")
        if status == 404 or error.code == "model_not_found":
            return ClaraError(
                f"{self._url}: there is no model {self._model!r}, or the address is wrong (most end in /v1); {said}"
            )
        if (option := _unwanted(error, words)) is not None:
            self._options.pop(option, None)
            self._options |= _INSTEAD.get(option, {})
            return _Again("unwanted_option", said)
        if status in _MAY_BE_THE_SCHEMA and structured != "none":
            return _NotSo(said)
        if status in _REFUSED:
            return Refused(said)
        if status not in _AGAIN and (status < 500 or status == _NOT_IMPLEMENTED):
            return ClaraError(f"{self._url}: {said}")
        after = _seconds(error.response.headers.get("retry-after", ""))
        if after is not None and after > LONGEST_REST:
            return ClaraError(f"{self._url}: {said}; start the same command again in {after:,.0f} s")
        return _Again(f"http_{status}", said, status == _BUSY or after is not None, after)

    def _read(self, content: bytes, prompt_tokens: int) -> Reply:
        try:
            body = parse(content)
        except ValueError:
            body = None
        try:
            choice = body["choices"][0]
            message, reason = choice["message"], choice.get("finish_reason")
            text, refusal = _content(message.get("content")), message.get("refusal")
            usage = body.get("usage")
        except (AttributeError, IndexError, KeyError, TypeError):
            text = None
        if not isinstance(text, str):
            said = _message(body) if isinstance(body, Mapping) else content.decode(errors="replace")
            raise _Again("not_a_completion", f"no chat completion: {self._shown(said) or 'nothing'}")
        if reason == "content_filter" or (refusal and not text):
            raise Refused(f"the server's filter: {self._shown(str(refusal or reason))}")
        if repeats(text, *self._secrets):
            raise Refused("the reply repeats the key or another secret of the address")  # it would be kept
        cut = reason == "length"
        usage = usage if isinstance(usage, Mapping) else {}
        if not text.strip() and not cut:
            raise _Again(_EMPTY, "an answer without text")
        counted, guessed = (usage.get("prompt_tokens"), usage.get("completion_tokens")), (prompt_tokens, _tokens(text))
        # A server may count whatever it likes: what no request can have used is not believed.
        most = MOST_TOKENS + 4 * sum(guessed)
        tokens = (
            count if type(count) is int and 0 <= count <= most else guess
            for count, guess in zip(counted, guessed, strict=True)
        )
        return Reply(text, *tokens, cut)

    def _shown(self, words: str) -> str:
        """One line of what a server says, short, without secrets and without what moves a terminal's cursor."""
        clean = "".join(c if c.isprintable() else " " for c in redacted(words, *self._secrets))
        line = " ".join(clean.split())
        return line if len(line) <= _MESSAGE_LENGTH else f"{line[: _MESSAGE_LENGTH - 1]}…"


def _parts(url: str) -> SplitResult | None:
    """None where it is not a server's."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018
    except ValueError:
        return None
    return parts if parts.scheme in ("http", "https") and parts.hostname else None


def _unwanted(error: openai.APIStatusError, words: str) -> str | None:
    """The option that a server does not take, if that is what it says."""
    if error.status_code not in (400, 422) or not _UNWANTED.search(f"{error.code} {words}"):
        return None
    if error.param in _OPTIONS:
        return error.param
    return next((name for name in _OPTIONS if re.search(rf"\b{name}\b", words)), None)


def _content(content: Any) -> str | None:
    """The text of a message's content: a string, or a list of parts of which those of text count, as OpenAI's and
    Mistral's interfaces have them; halves of surrogate pairs become U+FFFD. None where it is neither."""
    if content is None:
        return ""
    if isinstance(content, list):
        parts = [part if isinstance(part, Mapping) else {"type": "text", "text": part} for part in content]
        texts = [part.get("text") for part in parts if part.get("type") in (None, "text", "output_text")]
        texts = [text.get("value") if isinstance(text, Mapping) else text for text in texts]  # OpenAI's assistants
        content = "".join(text for text in texts if isinstance(text, str))
    if not isinstance(content, str):
        return None
    return content.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _tokens(text: str) -> int:
    return -(-len(text) // CHARACTERS_PER_TOKEN)


def _message(body: Any) -> str:
    """The words in an error's body, whatever server it is from."""
    while isinstance(body, Mapping) and body:
        body = next((body[name] for name in ("error", "message", "detail") if body.get(name)), json.dumps(body))
    return body if isinstance(body, str) else json.dumps(body)


def _seconds(retry_after: str) -> float | None:
    """Of a Retry-After header: seconds or a date (RFC 9110, section 10.2.3); None where it says nothing."""
    if re.fullmatch(r"\d{1,9}", retry_after):
        return float(retry_after)
    try:
        date = email.utils.parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
