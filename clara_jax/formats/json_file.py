"""JSON objects from and for files, with one line of error message for any damage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clara_jax.errors import ClaraError
from clara_jax.strict_json import parse


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """Read the JSON object in a file.

    Args:
      path: the file.
      remedy: end of error messages: what to do about a wrong file.

    Raises:
      ClaraError: the file cannot be read, or holds something else.
    """
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ClaraError(f"{path}: cannot be read: {error.strerror or error}; {remedy}") from error
    except ValueError as error:
        raise ClaraError(f"{path}: is not JSON ({error}); {remedy}") from error
    if not isinstance(value, dict):
        raise ClaraError(f"{path}: holds no JSON object; {remedy}")
    return value


def json_text(value: Mapping[str, Any]) -> str:
    """Format an object as the text of a JSON file; ValueError for a number that is not finite."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"
