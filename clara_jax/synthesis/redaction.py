"""Redaction of secrets from messages: API keys, and the credentials in a URL."""

from __future__ import annotations

import base64
import html
import json
import re
from urllib.parse import parse_qsl, quote, unquote, urlsplit

_SHOWN = "[redacted]"
_SHORTEST = 8  # characters of a secret that is searched for in answers
_SECRET_NAME = r"[\w.-]{0,64}(?:key|token|secret|password|passwd|signature|sig|auth|credential|code)[\w.-]{0,64}"
_USER = re.compile(r"(?<=://)[^/?#\s]*@")
_PARAMETER = re.compile(rf"([?&]{_SECRET_NAME}=)[^&#\s\"']+", re.IGNORECASE)


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
