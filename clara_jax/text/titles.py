"""How a document's title stands before its text, wherever documents come from: on a separate line."""

from __future__ import annotations


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


def atx_heading(line: str) -> str | None:
    """Return the text of a Markdown heading of the kind "# Title" or "## Title ##"; None for another line.

    A mark is apart from the text: the heading "# C#" is "C#" (CommonMark 0.31, section 4.2).
    """
    rest = line.lstrip("#")
    if not 1 <= len(line) - len(rest) <= 6 or rest[:1] not in (" ", "\t"):
        return None
    text = rest.strip(" \t")
    closed = text.rstrip("#")
    return closed.rstrip(" \t") if closed[-1:] in ("", " ", "\t") else text


def _words(line: str) -> list[str]:
    """Return the words of a line without the marks of a Markdown heading."""
    heading = atx_heading(line.strip())
    return (line if heading is None else heading).split()
