"""Secrets taken out of what is said: keys, and what stands in a URL beside the address."""

from __future__ import annotations

import base64
import html
import json
import re
from urllib.parse import parse_qsl, quote, unquote, urlsplit

_SHOWN = "[redacted]"
_SHORTEST = 8  # characters of a secret that is looked for in answers
_SECRET_NAME = r"[\w.-]{0,64}(?:key|token|secret|password|passwd|signature|sig|auth|credential|code)[\w.-]{0,64}"
_USER = re.compile(r"(?<=://)[^/?#\s]*@")
_PARAMETER = re.compile(rf"([?&]{_SECRET_NAME}=)[^&#\s\"']+", re.IGNORECASE)


def redacted(text: str, *secrets: str) -> str:
    """A text without these secrets, as they are or escaped for JSON, HTML or URLs; and without user names, passwords
    and parameters that are named as keys in whatever URL it has."""
    forms = {form for secret in secrets if secret for form in _forms(secret)}
    for form in sorted(forms, key=len, reverse=True):  # one may be part of another
        text = text.replace(form, _SHOWN)
    return _PARAMETER.sub(rf"\g<1>{_SHOWN}", _USER.sub(f"{_SHOWN}@", text))


def repeats(text: str, *secrets: str) -> bool:
    """Whether a text has one of these secrets, as it is or escaped. Those of fewer than 8 characters are none: servers
    of one's own are given "none" or "EMPTY", which are words."""
    return any(form in text for secret in secrets if len(secret) >= _SHORTEST for form in _forms(secret))


def secrets_of(url: str) -> list[str]:
    """What must not be shown of a URL: user and password, together too, and parameters that are named as keys."""
    parts = urlsplit(url)
    found = [value for name, value in parse_qsl(parts.query) if re.fullmatch(_SECRET_NAME, name, re.IGNORECASE)]
    if parts.username:
        # A user without a password is a token.
        found += [unquote(parts.password or parts.username), basic(url)]
    return found


def basic(url: str) -> str:
    """User and password of a URL, as a header has them (RFC 7617)."""
    parts = urlsplit(url)
    pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return base64.b64encode(pair.encode()).decode()


def _forms(secret: str) -> set[str]:
    escaped = json.dumps(secret)[1:-1]
    return {secret, quote(secret, safe=""), quote(secret), html.escape(secret), escaped, escaped.replace("/", r"\/")}
