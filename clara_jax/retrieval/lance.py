"""LanceDB, imported without the validators of its client of remote catalogues, which are two fifths of its import.

The client (``lance_namespace_urllib3_client``) is not used here. Pydantic builds a validator of each of its calls when
it is imported; here each is built when it is called.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import pydantic

os.environ.setdefault(
    "LANCEDB_LOG", "error"
)  # read once, at import; it warns of conflicts, which are retried in `table`
_build = pydantic.validate_call


def _when_called(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Return ``pydantic.validate_call(function, **options)``, made when it is first called."""
    if function is None:
        return functools.partial(_when_called, **options)
    validated = functools.cache(lambda: _build(function, **options))

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        return validated()(*arguments, **named)

    return call


pydantic.validate_call = _when_called
try:
    import lancedb
    from lancedb.index import FTS, IvfSq
    from lancedb.query import MatchQuery
finally:
    pydantic.validate_call = _build

__all__ = ["FTS", "IvfSq", "MatchQuery", "lancedb"]
