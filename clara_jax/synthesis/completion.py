"""A chat completion: the request, the reply, a server's refusal; and what a server says, without secrets.

Secrets are API keys, and the credentials in a URL.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

CHARACTERS_PER_TOKEN = 4  # where the server does not count

_SHOWN = "[redacted]"
_SHORTEST = 8  # characters of a secret that is searched for in answers
_SECRET_NAME = r"[\w.-]{0,64}(?:key|token|secret|password|passwd|signature|sig|auth|credential|code)[\w.-]{0,64}"
_USER = re.compile(r"(?<=://)[^/?#\s]*@")
_PARAMETER = re.compile(rf"([?&]{_SECRET_NAME}=)[^&#\s\"']+", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class CompletionRequest:
    """A chat completion request.

    Attributes:
      messages: (role, content) of each.
      schema: JSON schema of the reply, None for free text.
      max_tokens: limit on the reply's length.
      temperature: of sampling.
      seed: of sampling.
    """

    messages: tuple[tuple[str, str], ...]
    schema: Mapping[str, Any] | None
    max_tokens: int
    temperature: float
    seed: int

    def key(self) -> str:
        """Return a hex digest of the request, the same in every process; the order of a schema's properties counts."""
        content = [self.messages, self.schema, self.max_tokens, float(self.temperature), self.seed]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Completion:
    """A chat completion.

    Attributes:
      text: empty only where it is cut: all tokens went into reasoning that the server does not show.
      prompt_tokens: as the server counts; one per four characters where it does not.
      completion_tokens: likewise.
      cut: whether it stopped at max_tokens.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    cut: bool


class RefusedError(Exception):
    """A request that the server will never answer, though it answers others; the message is the reason."""


def text_of(content: Any) -> str | None:
    """Return the text of a reply's content, None where it is neither a string nor a list of parts.

    Of parts, as in OpenAI's and Mistral's interfaces, those of text count; halves of surrogate pairs become U+FFFD.
    """
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


def error_message(body: Any) -> str:
    """Return the message in an error's body, in any server's format."""
    while isinstance(body, Mapping) and body:
        body = next((body[name] for name in ("error", "message", "detail") if body.get(name)), json.dumps(body))
    return body if isinstance(body, str) else json.dumps(body)


def estimated_tokens(text: str) -> int:
    """Return the tokens of a text, estimated where the server does not count them."""
    return -(-len(text) // CHARACTERS_PER_TOKEN)


def redacted(text: str, *secrets: str) -> str:
    """Return a text without these secrets, verbatim or escaped for JSON, HTML or URLs.

    User names, passwords and parameters named like keys are removed from every URL in the text, too.
    """
    forms = {form for secret in secrets if secret for form in _forms(secret)}
    for form in sorted(forms, key=len, reverse=True):  # one may be part of another
        text = text.replace(form, _SHOWN)
    return _PARAMETER.sub(rf"\g<1>{_SHOWN}", _USER.sub(f"{_SHOWN}@", text))


def repeats(text: str, *secrets: str) -> bool:
    """Return whether a text contains one of these secrets, verbatim or escaped.

    Those of fewer than 8 characters do not count: the keys of private servers are often words such as "none" or
    "EMPTY".
    """
    return any(form in text for secret in secrets if len(secret) >= _SHORTEST for form in _forms(secret))


def secrets_of(url: str) -> list[str]:
    """Return the secrets of a URL: password, user and password as a header, and parameters named like keys."""
    parts = urlsplit(url)
    found = [value for name, value in parse_qsl(parts.query) if re.fullmatch(_SECRET_NAME, name, re.IGNORECASE)]
    if parts.username:
        # A user without a password is a token.
        found += [unquote(parts.password or parts.username), basic(url)]
    return found


def basic(url: str) -> str:
    """Return the credentials of a URL as basic authentication encodes them (RFC 7617)."""
    parts = urlsplit(url)
    pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return base64.b64encode(pair.encode()).decode()


def _forms(secret: str) -> set[str]:
    escaped = json.dumps(secret)[1:-1]
    return {secret, quote(secret, safe=""), quote(secret), html.escape(secret), escaped, escaped.replace("/", r"\/")}
