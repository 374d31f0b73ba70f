"""The title of a Markdown file, from front matter or headings, in time linear in the file's length."""

from __future__ import annotations

import re
from typing import NamedTuple

import yaml

from clara_jax.text.titles import atx_heading

LONGEST_FRONT_MATTER = 200  # lines
LONGEST_YAML = 20_000  # characters that are parsed: the parser is written in Python and slow

_FIELD = re.compile(r"""["']?[\w-]+["']?[ \t]*:""")
_TITLE = re.compile(r"(?i:title)[ \t]*:[ \t]*(.*)")
_NO_PLAIN = tuple("[{&*!|>")  # a YAML value that begins with one of these is no string
_NO_PARAGRAPH = tuple("#>*+- \t")


class Body(NamedTuple):
    """A text without its front matter, and the title in the front matter; "" for none."""

    text: str
    title: str


def without_front_matter(text: str) -> Body:
    """Return the text after the front matter (fields in YAML between two rules of dashes), and its ``title``.

    Two rules of dashes with prose between them are no front matter, since that has fields.
    """
    if not text.startswith("---"):
        return Body(text, "")
    lines, position = [], 0
    for number in range(LONGEST_FRONT_MATTER + 2):
        end = text.find("\n", position)
        line = text[position : len(text) if end < 0 else end]
        position = len(text) if end < 0 else end + 1
        closing = line.rstrip(" \t") in ("---", "...") if number else line.rstrip(" \t") != "---"
        if closing and number and any(_FIELD.match(line) for line in lines):
            return Body(text[position:], _title(lines))
        if closing or end < 0:
            break
        if number:
            lines.append(line)
    return Body(text, "")


def first_heading(text: str) -> str:
    """Return the text of the first heading outside fenced code; "" for none.

    Both kinds of headings count: "# Title", and a line underlined by "===".
    """
    fence, before = "", ""
    for line in text.split("\n"):
        bare = line.lstrip(" ")
        if len(line) - len(bare) <= 3:
            marks = len(bare) - len(bare.lstrip(bare[:1])) if bare[:1] in ("`", "~") else 0
            if fence:
                fence = "" if bare.startswith(fence) else fence
                before = ""
                continue
            if marks >= 3:
                fence = bare[:marks]
                continue
            title = atx_heading(bare)
            if title:
                return title
            under = bare.rstrip(" \t")
            if under and not under.strip("=") and before.strip() and not before.startswith(_NO_PARAGRAPH):
                return before
        elif fence:
            continue
        before = line
    return ""


def _title(lines: list[str]) -> str:
    source = "\n".join(lines)
    if len(source) <= LONGEST_YAML:
        try:
            # All values as the strings that stand there; nothing is constructed from tags. Aliases are never expanded:
            # only one string is taken.
            fields = yaml.load(source, Loader=yaml.BaseLoader)
        except (yaml.YAMLError, RecursionError, ValueError):
            pass
        else:
            found = fields if isinstance(fields, dict) else {}
            title = next((v for k, v in found.items() if isinstance(k, str) and k.lower() == "title"), "")
            return title if isinstance(title, str) else ""
    # Many files are no YAML because of a colon in the title itself.
    found = next(filter(None, map(_TITLE.match, lines)), None)
    title = found[1].strip() if found else ""
    return "" if title.startswith(_NO_PLAIN) else title.strip("\"'")
