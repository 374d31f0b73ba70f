"""What another server says, in one line without secrets: API keys, and the credentials in a URL."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

_SHOWN = "[redacted]"
_SHORTEST = 8  # characters of a secret that is searched for in answers
_SECRET_NAME = r"[\w.-]{0,64}(?:key|token|secret|password|passwd|signature|sig|auth|credential|code)[\w.-]{0,64}"
_USER = re.compile(r"(?<=://)[^/?#\s]*@")
_PARAMETER = re.compile(rf"([?&]{_SECRET_NAME}=)[^&#\s\"']+", re.IGNORECASE)
_MESSAGE_LENGTH = 200  # characters of a server's message


def error_message(body: Any) -> str:
    """Return the message in an error's body, in any server's format."""
    while isinstance(body, Mapping) and body:
        body = next((body[name] for name in ("error", "message", "detail") if body.get(name)), json.dumps(body))
    return body if isinstance(body, str) else json.dumps(body)


def shown(words: str, *secrets: str) -> str:
    """Return a server's message in one short line, without these secrets and without control characters."""
    clean = "".join(c if c.isprintable() else " " for c in redacted(words, *secrets))
    line = " ".join(clean.split())
    return line if len(line) <= _MESSAGE_LENGTH else f"{line[: _MESSAGE_LENGTH - 1]}…"


def address_of(url: str) -> SplitResult | None:
    """Return the parts of a server's URL, None where it is not one."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018
    except ValueError:
        return None
    return parts if parts.scheme in ("http", "https") and parts.hostname else None


def without_user(url: str) -> str:
    """Return what was given for a URL, and need not be one, without anything that may be a user and a password."""
    return url.rpartition("@")[2]


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
