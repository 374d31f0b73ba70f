"""Where paragraphs and sentences begin and end, as offsets into a text.

Sentences are found by pysbd. Only where sentences begin is taken from it; the texts that it returns are not used, since
they may differ from the original in detail. blingfire is fifty times faster, but is built for x86-64 alone, and ids
must not depend on the machine.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import warnings

from clara_jax.errors import ClaraError

WINDOW = 1000  # characters given to pysbd at one time: its time grows with the square of the length
SHORT = 20  # a sentence of fewer characters could be found by chance where it does not stand
EARLY = 0.8  # a line shorter than this share of the longest ended before it was full

_LINE = re.compile(r"[^\n]+")
_LIST_ITEM = re.compile(r"\s*(?:[-*+•|>]|\d{1,3}[.)]|#{1,6}|```|~~~)(?:\s|$)")
_HEADING = re.compile(r" {0,3}#{1,6}\s")


def paragraph_ends(text: str) -> list[int]:
    """Return where the paragraphs of a text end: after the last visible character of each.

    Paragraphs lie between blank lines. A line that ends early, so that the next word would have fitted on it, ends one
    as well; so does the line before a list item. A Markdown heading belongs to the paragraph below it.
    """
    found = ((match.start(), match.start() + len(match[0].rstrip())) for match in _LINE.finditer(text))
    lines = [(start, end) for start, end in found if start < end]
    ends, block = [], []
    for number, (start, end) in enumerate(lines):
        block.append((start, end))
        if number + 1 == len(lines) or text.count("\n", end, lines[number + 1][0]) > 1:
            ends += _block_ends(text, block)
            block = []
    last = ends[-1:]
    headings = {end for start, end in lines if _HEADING.match(text, start, end)}
    return [end for end in ends[:-1] if end not in headings] + last


def _block_ends(text: str, lines: list[tuple[int, int]]) -> list[int]:
    """Return the ends of paragraphs within lines that no blank line divides."""
    width, ends = max(end - start for start, end in lines), []
    for (start, end), (following, stop) in zip(lines[:-1], lines[1:], strict=True):
        word = text[following:stop].split(maxsplit=1)[0]
        if end - start + 1 + len(word) <= EARLY * width or _LIST_ITEM.match(text, following, stop):
            ends.append(end)
    return [*ends, lines[-1][1]]


def sentence_ends(paragraph: str, language: str = "en") -> list[int]:
    """Return where the sentences of a paragraph end: after the last visible character of each.

    Args:
      paragraph: its text.
      language: an ISO 639-1 code that pysbd knows.
    """
    # Line ends within a paragraph are no ends of sentences, as pysbd would take them. All offsets stay.
    flat = re.sub(r"\s", " ", paragraph.rstrip())
    starts, position = [], 0
    while position < len(flat):
        stop = position + WINDOW
        if stop < len(flat):
            stop = max(flat.rfind(" ", position + WINDOW // 2, stop), position) + 1
            stop = stop if stop > position + 1 else position + WINDOW
        found = _starts(flat[position:stop], language)
        if stop < len(flat) and len(found) > 1:  # the last sentence goes on: it begins the next window
            stop = position + found.pop()
        starts += [position + start for start in found]
        position = stop
    ends = []
    for start in starts[1:]:
        while flat[start - 1] == " ":
            start -= 1
        ends.append(start)
    return ends + [len(flat)] * bool(flat)


def _starts(text: str, language: str) -> list[int]:
    """Return where pysbd's sentences begin; those that cannot be found again are joined to the one before."""
    starts, position = [], 0
    for sentence in _segmenter(language).processor(text).process():
        start = text.find(sentence, position)
        if sentence.strip() and start >= 0 and (len(sentence) > SHORT or not text[position:start].strip()):
            starts.append(start)
            position = start + len(sentence)
    return starts


@functools.cache
def _segmenter(language: str):
    if importlib.util.find_spec("pysbd") is None:
        raise ClaraError("sentences are found with the package pysbd: pip install pysbd")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # its regular expressions, on Python 3.12 and later
        import pysbd
        import pysbd.languages
    try:
        return pysbd.Segmenter(language=language, clean=False)
    except ValueError:
        known = ", ".join(sorted(pysbd.languages.LANGUAGE_CODES))
        raise ClaraError(f"--language: {language!r} is unknown to pysbd; it must be one of {known}") from None


def check_language(language: str) -> None:
    """Refuse a language that pysbd does not know."""
    _segmenter(language)
