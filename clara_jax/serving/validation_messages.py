"""Messages about requests that do not fit the schema: one line, with the field, what was sent, and what is needed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

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
    "dimensions": "vectors are as long as the model makes them; leave it out",
}
# By pydantic's types of errors, what is wrong with a value; its context fills the other places.
_WRONG = {
    "missing": "is missing",
    "not_done": "{message}",
    "literal_error": "{value} must be {expected}",
    "greater_than_equal": "{value} must be at least {ge}",
    "greater_than": "{value} must be above {gt}",
    "less_than_equal": "{value} must be at most {le}",
    "less_than": "{value} must be below {lt}",
    "string_too_short": "{value} is shorter than {min_length} character(s)",
    "string_too_long": "{value} is longer than {max_length:,} characters",
    "too_short": "{value} has {actual_length} entries; at least {min_length} are needed",
    "too_long": "{value} has {actual_length} entries; there may be {max_length}",
    "finite_number": "{value} is no finite number",
}
# By the beginnings of the other types, what a value is not.
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "string": "a text",
    "bool": "true or false",
    "list": "a list",
    "dict": "an object",
    "model": "an object",
    "dataclass": "an object",
    "none": "null",
}
_SHOWN = 60  # characters of a value


def explain(errors: Sequence[Mapping[str, Any]], body: Any) -> tuple[str, str | None]:
    """Return the message about an invalid request, and the field that it is about; None where it is about the body.

    Args:
      errors: pydantic's, of `RequestValidationError.errors`.
      body: what was sent, as far as it could be parsed.
    """
    first = max(errors, key=lambda error: len(error["loc"]))  # in a union, of the member that matched furthest
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "it cannot be read")
        return f"the body is not JSON: {reason} (character {first['loc'][-1]})", None
    field = _field(first, body)
    if not field:
        return first["msg"] if first["type"] == "not_done" else f"the body: {_reason([first])}", None
    reason = _NOT_DONE.get(field.partition(".")[0])
    if field.startswith("messages.") and ".content." in field and first["loc"][-1] == "type":
        reason = "parts of the type text alone are read here; no images, sounds or files"
    return f"{field}: {reason or _reason([one for one in errors if _field(one, body) == field])}", field


def _field(error: Mapping[str, Any], body: Any) -> str:
    """Return the path of the field of an error, without the names that pydantic gives to the members of a union."""
    where, *path = error["loc"]
    if where != "body":
        return ".".join(map(str, path))
    found, node = [], body
    for number, part in enumerate(path, 1):
        inside = (isinstance(node, dict) and part in node) or (
            isinstance(node, list) and isinstance(part, int) and part < len(node)
        )
        if inside:
            node = node[part]
        if inside or (error["type"] == "missing" and number == len(path)):
            found.append(str(part))
    return ".".join(found)


def _reason(errors: Sequence[Mapping[str, Any]]) -> str:
    """Return what is wrong with a value, by the errors of all members of its union."""
    first = errors[0]
    value = json.dumps(first["input"], ensure_ascii=False, default=repr)
    value = value if len(value) <= _SHOWN else value[: _SHOWN - 1] + "…"
    for error in errors:
        if error["type"] in _WRONG:
            return _WRONG[error["type"]].format(value=value, message=error["msg"], **error.get("ctx", {}))
    kinds = [_KINDS.get(error["type"].partition("_")[0]) for error in errors]
    named = list(dict.fromkeys(kind for kind in kinds if kind))
    return f"{value} is not {' or '.join(named)}" if named else first["msg"]
