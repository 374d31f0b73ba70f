"""JSON from untrusted sources, whose errors are all of one type; and objects sealed by a checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_SEAL = "checksum"  # the member of an object that holds the checksum of the others


def parse(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
      json.JSONDecodeError: not JSON; nested more deeply than Python reads; a whole number of thousands of digits; bytes
        that are not UTF-8.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except UnicodeDecodeError as error:
        raise json.JSONDecodeError(f"byte {error.start + 1} is not UTF-8", "", 0) from None
    except RecursionError:
        raise json.JSONDecodeError("it is nested too deeply", "", 0) from None
    except ValueError:
        raise json.JSONDecodeError("it has a number of thousands of digits", "", 0) from None


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object with the checksum of its members added."""
    return {**value, _SEAL: _checksum(value)}


def unsealed(value: Mapping[str, Any], needed: bool = False) -> dict[str, Any] | None:
    """Return a sealed object without its checksum, None where it was changed.

    Args:
      value: the object.
      needed: whether an object without a checksum counts as changed, too; else it is returned as is.
    """
    members = dict(value)
    seal = members.pop(_SEAL, None)
    return members if seal == _checksum(members) or (seal is None and not needed) else None


def _checksum(members: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(members, sort_keys=True).encode()).hexdigest()
