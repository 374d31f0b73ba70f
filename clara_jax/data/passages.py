"""Passages: the lines of a corpus file, each a text with a name and its place in a document."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import checked_utf8, json_kind

ID_FIELDS = ("id", "_id")
TEXT_FIELDS = ("text", "contents", "content", "body")
UNKNOWN = -1


@dataclasses.dataclass(frozen=True)
class Passage:
    """One line of a corpus file.

    Attributes:
      id: the file's name for the passage, else ``where``.
      text: the passage.
      title, document, source: of the document that it is part of: its title, its id, the file it lies in; "" where
        unknown.
      start, end: characters of the document's text that it spans, -1 where unknown.
      page: where it begins, as the document counts them, -1 where unknown.
      where: "corpus.jsonl:17", for messages.
    """

    id: str
    text: str
    title: str
    document: str
    source: str
    start: int
    end: int
    page: int
    where: str


def parse_passage(fields: Any, where: str) -> Passage:
    """Return the `Passage` of one decoded JSON value.

    Args:
      fields: the decoded JSON value.
      where: what messages begin with, e.g. "corpus.jsonl:17".

    Raises:
      ClaraError: not a passage.
    """
    if not isinstance(fields, Mapping):
        raise ClaraError(f"{where}: the line holds {json_kind(fields)}; each line must be a JSON object")
    name = _first(fields, TEXT_FIELDS)
    if name is None:
        raise ClaraError(f'{where}: "text" is missing; each passage needs one (or {", ".join(TEXT_FIELDS[1:])})')
    text = _text(fields, name, where)
    if not text.strip():
        raise ClaraError(f'{where}: "{name}" is empty; write some text or remove the line')
    id_field = _first(fields, ID_FIELDS)
    return Passage(
        id=where if id_field is None else _text(fields, id_field, where, number=True),
        text=text,
        title=_text(fields, "title", where),
        document=_text(fields, "document", where, number=True),
        source=_text(fields, "source", where),
        start=_place(fields, "start", where),
        end=_place(fields, "end", where),
        page=_place(fields, "page", where),
        where=where,
    )


def _first(fields: Mapping, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if fields.get(name) is not None), None)


def _text(fields: Mapping, name: str, where: str, number: bool = False) -> str:
    """Return a string, "" where there is none; with ``number`` a whole number is taken, too."""
    value = fields.get(name)
    if value is None:
        return ""
    if number and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        wanted = "a string or a whole number" if number else "a string"
        raise ClaraError(f'{where}: "{name}" is {json_kind(value)}; it must be {wanted}')
    return checked_utf8(value, f'"{name}"', where)


def _place(fields: Mapping, name: str, where: str) -> int:
    value = fields.get(name)
    if value is None:
        return UNKNOWN
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ClaraError(f'{where}: "{name}" is {value!r}; it must be a whole number from 0')
    return value
