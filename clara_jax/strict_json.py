"""JSON from outside: whatever is wrong with it is one kind of error."""

from __future__ import annotations

import json
from typing import Any


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
