"""The characters of a text as a reader sees them: one place for every kind of file.

Files hold more than readable text: glyphs in place of letters, marks that are never shown, accents apart from their
letters, words divided where a line ends. The compressor would see other tokens than a question's, so they are cleaned
before anything else looks at the text.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import chain
from typing import NamedTuple

from clara_jax.spelling import normal_form

# What fonts have for letters that touch (ﬁ), for those of Arabic and Hebrew by their place in a word (ﻼ), and radicals
# that look like Chinese characters (⼈): letters, by Unicode's mappings but for its second block of radicals.
_GLYPHS = {
    glyph: letters
    for glyph in map(chr, chain(range(0x2E80, 0x2FE0), range(0xFB00, 0xFDD0), range(0xFE80, 0xFEFD)))
    if (letters := unicodedata.normalize("NFKC", glyph)) != glyph and " " not in letters
}
_GLYPHS |= dict(
    zip(
        "⺠⻁⻄⻅⻆⻉⻋⻑⻓⻔⻘⻙⻚⻛⻜⻝⻢⻣⻤⻥⻦⻧⻨⻩⻬⻭⻮⻯⻰⻲",
        "民虎西见角贝车長长门青韦页风飞食马骨鬼鱼鸟卤麦黄齐歯齿竜龙亀",
        strict=True,
    )
)
_GLYPH = re.compile(f"[{''.join(_GLYPHS)}]")
_LINE_ENDS = re.compile("\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
# What is never shown: controls but tab and line feed, marks of direction, joiners of width zero, tags, and what Unicode
# keeps free of characters. U+200C and U+200D stay: they change the letters beside them, and emoji are joined by them.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufdd0-\ufdef\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\U000e0000-\U000e0fff]"
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_SOFT_LINE_END = re.compile(r"\u00ad[ \t]*\n[ \t]*")
# The lengths are bounded so that no text takes more than a few looks at each of its characters.
_DIVIDED = re.compile(r"(?<=[^\W\d_])(?:-|\u2010)[ \t]{0,8}\n[ \t]{0,8}(?=[^\W\d_])")
_BEFORE = re.compile(r"[^\W\d_]+\Z")
_AFTER = re.compile(r"[^\W\d_]+")
_LONGEST_PART = 40  # of a word, in letters
# "pre- and post-war": a hyphen before these stands for the rest of a word, and no word goes on.
_GO_ON = frozenset("and or to nor und oder bis sowie et ou y o e i en of".split())


class Cleaned(NamedTuple):
    """A text, and how many characters of it were dropped or replaced (ends of lines aside)."""

    text: str
    changed: int


def cleaned(text: str, typeset: bool = False) -> Cleaned:
    r"""Return the text as a reader sees it.

    Letters replace glyphs, accents are composed with their letters (NFC), lines end with "\n", and there is nothing
    that is not shown. Surrogate pairs become one character, halves of them the replacement character. The time is
    linear in the text's length.

    Args:
      text: as it stands in a file, decoded.
      typeset: its lines were broken for a page, as in a PDF: words that a hyphen divides where a line ends are joined.
    """
    changed = 0

    def counted(pattern: re.Pattern, replacement, text: str) -> str:
        nonlocal changed
        text, count = pattern.subn(replacement, text)
        changed += count
        return text

    text = _LINE_ENDS.sub("\n", text)
    if _SURROGATE.search(text):
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text = counted(_GLYPH, lambda match: _GLYPHS[match[0]], text)
    if "\u00ad" in text:
        text = counted(_SOFT_LINE_END, "", text)
    text = counted(_INVISIBLE, "", text)
    composed = normal_form("NFC", text)
    if composed != text:
        changed += max(1, len(text) - len(composed))
        text = composed
    if typeset:
        text, count = _joined(text)
        changed += count
    return Cleaned(text, changed)


def one_line(text: str) -> str:
    """Return the cleaned text on one line, with single spaces."""
    return " ".join(cleaned(text).text.split())


def _joined(text: str) -> tuple[str, int]:
    """Return the text with divided words joined, and their number.

    Where the text has the word with its hyphen elsewhere, and not without it, the hyphen belongs to the word and stays.
    """
    if "\n" not in text:
        return text, 0
    words = set(re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)?", text))
    pieces, position = [], 0
    for match in _DIVIDED.finditer(text):
        before = _BEFORE.search(text, max(position, match.start() - _LONGEST_PART), match.start())
        after = _AFTER.match(text, match.end(), match.end() + _LONGEST_PART)
        # A capital letter begins another name ("Anglo-\nSaxon").
        if before is None or after is None or not after[0][0].islower() or after[0] in _GO_ON:
            continue
        whole, hyphened = before[0] + after[0], f"{before[0]}-{after[0]}"
        keep = hyphened in words and whole not in words
        pieces += [text[position : match.start()], "-" * keep]
        position = match.end()
    return "".join([*pieces, text[position:]]), len(pieces) // 2
