"""Checks of configuration values, and their messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from clara_jax.errors import ClaraError


def require(condition: bool, where: str, field: str, value: Any, rule: str) -> None:
    """Check a field's value.

    Args:
      condition: whether the value is good.
      where: the field's section with a dot after it; "" for a field of the run.
      field: its name.
      value: its value, for the message.
      rule: what a good value is, for the message.

    Raises:
      ClaraError: the condition does not hold.
    """
    if not condition:
        raise ClaraError(f"config.{where}{field} is {value!r}; {rule}")


def one_of(names: Iterable[str]) -> str:
    """Return the rule of a field that holds one of these names."""
    return "it must be one of " + ", ".join(names)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the nearest known one, or all known ones."""
    known = tuple(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
