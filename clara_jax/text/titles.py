"""How a document's title stands before its text, wherever documents come from: on a separate line."""

from __future__ import annotations


def title_line(title: str) -> str:
    """Return the line of a title, its line end included; "" for no title."""
    return f"{title}\n" if title else ""


def titled(title: str, text: str) -> str:
    """Return the text below its title.

    A text that begins with its title line already stays as it is. Of a long title only the first words may stand there,
    as in passages of `clara_jax.data.corpus`.
    """
    first = text.partition("\n")[0].split()
    if first and first == title.split()[: len(first)]:
        return text
    return title_line(title) + text
