"""Old names of public classes, methods and fields: each works for one version more, with a DeprecationWarning."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def renamed_attributes(module: str, renamed: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a ``__getattr__`` for a module in which some attributes have new names.

    Args:
      module: the module's name, its ``__name__``.
      renamed: old name -> new name.
    """

    def find(name: str) -> Any:
        if name not in renamed:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn_renamed(f"{module}.{name}", f"{module}.{renamed[name]}")
        return getattr(sys.modules[module], renamed[name])

    return find


def renamed_method(old: str, method: Callable[P, T]) -> Callable[P, T]:
    """Return a method that warns and calls another one, its new name.

    Args:
      old: the name before, with its class: "Clara.read".
      method: what is called.
    """
    new = f"{old.rpartition('.')[0]}.{method.__name__}"

    @functools.wraps(method)
    def warned(*args: P.args, **kwargs: P.kwargs) -> T:
        warn_renamed(old, new)
        return method(*args, **kwargs)

    warned.__doc__ = f"Call `{new}`; this is its old name."
    return warned


def renamed_field(old: str, new: str) -> property:
    """Return a property that warns and reads an attribute of the same object.

    Args:
      old: the name before, with its class: "RagAnswer.asked".
      new: the attribute's name now, without its class.
    """

    def value(self: Any) -> Any:
        warn_renamed(old, f"{old.rpartition('.')[0]}.{new}")
        return getattr(self, new)

    return property(value, doc=f"Return `{new}`; this is its old name.")


def warn_renamed(old: str, new: str, stacklevel: int = 3) -> None:
    """Warn that a name has changed.

    Args:
      old: the name before.
      new: the name now.
      stacklevel: frames up to the caller's; by default after this function and the one that stands for the old name.
    """
    message = f"{old} is now {new}; the old name will go in the next version"
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel)
