"""How a document's title stands before its text, wherever documents come from: on a separate line."""

from __future__ import annotations

import re

_MARKS = re.compile(r"^#{1,6}[ \t]+|[ \t]+#+$")  # of a Markdown heading; "C#" has none


def title_line(title: str) -> str:
    """Return the line of a title, its line end included; "" for no title."""
    return f"{title}\n" if title else ""


def is_heading_of(line: str, title: str) -> bool:
    """Return whether a line of a text says the title and nothing else, as a Markdown heading or as it is."""
    words = _words(line)
    return bool(words) and words == title.split()


def titled(title: str, text: str) -> str:
    """Return the text below its title.

    A text that begins with its title line, or with the title as a heading, stays as it is. Of a long title only the
    first words may stand there, as in passages of `clara_jax.data.corpus`.
    """
    first = _words(text.partition("\n")[0])
    if first and first == title.split()[: len(first)]:
        return text
    return title_line(title) + text


def _words(line: str) -> list[str]:
    """Return the words of a line without the marks of a Markdown heading."""
    return _MARKS.sub("", line.strip()).split()
