"""An object of a published file, read field by field: departures from the format are refused by place and name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import checked_utf8, json_kind


class Fields:
    """A JSON object whose fields are checked when they are read.

    Attributes:
      where: "file:line" of the record it is in.
      inside: its place in the record, e.g. ``"paragraphs"[3].``; "" for the record itself.
    """

    __slots__ = ("where", "inside", "_fields")

    def __init__(self, value: Any, where: str, inside: str = ""):
        if not isinstance(value, Mapping):
            what = inside.rstrip(".") or "the record"
            raise ClaraError(f"{where}: {what} is {json_kind(value)}; it must be an object")
        self.where, self.inside, self._fields = where, inside, value

    def __contains__(self, name: str) -> bool:
        """Return whether the field is there and not null."""
        return self._fields.get(name) is not None

    def get(self, name: str, hint: str = "") -> Any:
        """Return the value of a field that must be there.

        Args:
          name: of the field.
          hint: advice for a user in whose file it is missing.
        """
        if name not in self:
            self.refuse(name, f"is missing; {hint}" if hint else "is missing")
        return self._fields[name]

    def id(self, name: str) -> str:
        """Return the record's id; later messages about the record name it, too."""
        id = self.text(name)
        self.where += f" ({name} {id})"
        return id

    def text(self, name: str, hint: str = "") -> str:
        """Return a string that is not blank."""
        return checked_text(self.get(name, hint), self._named(name), self.where)

    def text_or_blank(self, name: str) -> str:
        """Return a string, "" where it is missing."""
        return checked_text(self._fields[name], self._named(name), self.where, blank=True) if name in self else ""

    def texts(self, name: str, hint: str = "", optional: bool = False) -> list[str]:
        """Return a list of strings that are not blank; the list may be empty."""
        items = self.items(name, hint, optional)
        return [checked_text(text, f"{self._named(name)}[{i}]", self.where) for i, text in enumerate(items)]

    def flag(self, name: str, hint: str = "") -> bool:
        """Return a field that is true or false."""
        value = self.get(name, hint)
        if not isinstance(value, bool):
            self.refuse(name, f"is {json_kind(value)}; it must be true or false")
        return value

    def whole(self, name: str) -> int:
        """Return a whole number."""
        return checked_whole(self.get(name), self._named(name), self.where)

    def items(self, name: str, hint: str = "", optional: bool = False) -> list[Any]:
        """Return a list; where it may be missing, an empty one in its place."""
        if optional and name not in self:
            return []
        return checked_list(self.get(name, hint), self._named(name), self.where)

    def objects(self, name: str, hint: str = "", optional: bool = False) -> list[Fields]:
        """Return a list of objects."""
        items = self.items(name, hint, optional)
        return [Fields(value, self.where, f"{self._named(name)}[{i}].") for i, value in enumerate(items)]

    def refuse(self, name: str, problem: str) -> NoReturn:
        """Raise the error that a field is not as published."""
        raise ClaraError(f"{self.where}: {self._named(name)} {problem}")

    def _named(self, name: str) -> str:
        return f'{self.inside}"{name}"'


def checked_text(value: Any, name: str, where: str, blank: bool = False) -> str:
    """Return the value if it is a string that can be written as UTF-8, and not blank unless it may be."""
    if not isinstance(value, str):
        raise ClaraError(f"{where}: {name} is {json_kind(value)}; it must be a string")
    if not blank and not value.strip():
        raise ClaraError(f"{where}: {name} is empty; it needs some text")
    return checked_utf8(value, name, where)


def checked_whole(value: Any, name: str, where: str) -> int:
    """Return the value if it is a whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ClaraError(f"{where}: {name} is {json_kind(value)}; it must be a whole number")
    return value


def checked_list(value: Any, name: str, where: str) -> list[Any]:
    """Return the value if it is a list."""
    if not isinstance(value, list):
        raise ClaraError(f"{where}: {name} is {json_kind(value)}; it must be a list")
    return value
