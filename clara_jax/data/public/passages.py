"""The files of passages: sentences with their paraphrases, and the pool for stages that learn from text alone."""

from __future__ import annotations

import html
import re
import urllib.parse
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from clara_jax.data.builders.overlap import runs
from clara_jax.data.builders.statistics import words
from clara_jax.data.public.downloads import members
from clara_jax.data.public.sources import Book, Download
from clara_jax.data.public.writing import write
from clara_jax.errors import ClaraError
from clara_jax.strict_json import parse

LEAST = 100  # characters of a passage
SHARED_RUNS = 2  # of eight words, that a passage may have in common with held-out documents
CC_BY = "creativecommons.org/licenses/by/"
_CNXML = "{http://cnx.rice.edu/cnxml}"
_METADATA, _COLLECTION = "{http://cnx.rice.edu/mdml}", "{http://cnx.rice.edu/collxml}"
_LEFT_OUT = {f"{_CNXML}{name}" for name in ("note", "figure", "equation", "table", "exercise", "list", "media")}
# Tokens joined by spaces, as they were written: in this order.
_JOINED = (
    (re.compile(r"(?:``|'')\s+(.*?)\s+''"), r'"\1"'),
    (re.compile(r"\s+([.,;:!?%)\]])"), r"\1"),
    (re.compile(r"([(\[$#])\s+"), r"\1"),
    (re.compile(r"\s+(n't|'(?:s|re|ve|ll|d|m)\b)"), r"\1"),
)


def written_out(tokens: str) -> str:
    """Return a text of tokens that are joined by spaces as it would have been written."""
    text = " ".join(html.unescape(tokens).split())
    for pattern, replacement in _JOINED:
        text = pattern.sub(replacement, text)
    return text


def wiki_split(train: Iterable[Path], dev: Iterable[Path], output: Path) -> dict[str, int]:
    """Write sentences, each with its paraphrase in two."""
    written: dict[str, int] = {}
    for split, files in (("train", train), ("dev", dev)):
        records = (_paraphrase(*pair) for file in files for pair in _pairs(file))
        written |= write(output, f"extra/paraphrase_wikisplit/stage1_pretrain_paraphrase.{split}.jsonl", records)
    return written


def _pairs(path: Path) -> Iterator[tuple[str, str]]:
    with open(path, encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, 1):
            whole, tab, split = line.rstrip("\n").partition("\t")
            parts = [part for part in split.split("<::::>") if part.strip()]
            if not tab or not whole.strip() or not parts:
                raise ClaraError(f"{path}:{number}: must be a sentence, a tab, and its parts between <::::>")
            yield written_out(whole), " ".join(map(written_out, parts))


def _paraphrase(document: str, paraphrase: str) -> dict[str, Any]:
    return {"data_type": "paraphrase", "question": "", "answers": [paraphrase], "docs": [document]}


class HeldOut:
    """The held-out documents, with which passages are compared."""

    def __init__(self, documents: Iterable[str]):
        found = [runs(words(text)) for text in dict.fromkeys(documents)]
        self._runs = np.unique(np.concatenate([np.zeros(0, np.uint64), *found]))

    def repeats(self, text: str) -> bool:
        """Return whether a passage has more than `SHARED_RUNS` runs of eight words in common with them."""
        found = runs(words(text))
        if not len(self._runs) or not len(found):
            return False
        places = np.minimum(np.searchsorted(self._runs, found), len(self._runs) - 1)
        return int((self._runs[places] == found).sum()) > SHARED_RUNS


def wiki_leads(archive: Path, pattern: str, output: Path, held_out: HeldOut) -> dict[str, int]:
    """Write the beginnings of Wikipedia's articles, each article once."""

    def passages() -> Iterator[tuple[str, str, str]]:
        seen: set[str] = set()
        for name, content in tqdm(members(archive, pattern), "wiki_leads", unit=" files", leave=False):
            try:
                pages = parse(content)
            except ValueError as error:
                raise ClaraError(f"{archive}: {name}: is no JSON ({error})") from None
            for link, text in pages.items() if isinstance(pages, dict) else ():
                page = urllib.parse.unquote(link.removeprefix("/wiki/"))
                if page not in seen and isinstance(text, str):
                    seen.add(page)
                    yield page, page.replace("_", " "), written_out(text)

    return _write_pool(output, "pool/wiki_leads.jsonl.gz", passages(), held_out)


def openstax(
    books: Iterable[tuple[Book, Path]], fetch: Callable[[Download], Path], output: Path, held_out: HeldOut
) -> dict[str, int]:
    """Write the paragraphs of textbooks.

    Args:
      books: each with its file of contents.
      fetch: brings a file.
      output: the folder.
      held_out: documents that passages must not repeat.

    Raises:
      ClaraError: a book under another licence; a file that is none of the format.
    """

    def passages() -> Iterator[tuple[str, str, str]]:
        for book, contents in books:
            tree = _tree(contents)
            licence = tree.find(f".//{_METADATA}license")
            if licence is None or CC_BY not in (licence.get("url") or ""):
                raise ClaraError(f"{contents}: its licence is not CC BY; the book is not taken")
            modules = [str(one.get("document")) for one in tree.iter(f"{_COLLECTION}module")]
            for module in tqdm(modules, book.name, unit=" modules", leave=False):
                if not re.fullmatch(r"m\d+", module):
                    raise ClaraError(f"{contents}: {module!r} is no name of a module")
                file = f"{book.name}/{module}.cnxml"
                yield from _paragraphs(book, fetch(Download(file, f"{book.root}/modules/{module}/index.cnxml")))

    return _write_pool(output, "pool/openstax.jsonl.gz", passages(), held_out)


def _paragraphs(book: Book, path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (id, title, text) of the paragraphs of a module's running text."""
    tree = _tree(path)
    title = tree.findtext(f"{_CNXML}title") or tree.findtext(f".//{_METADATA}title") or ""
    content = tree.find(f"{_CNXML}content")
    for number, paragraph in enumerate(_running(content) if content is not None else ()):
        text = " ".join("".join(_text(paragraph)).split())
        yield f"{book.name}/{path.stem}/{number}", " ".join(title.split()), text


def _running(node: ElementTree.Element) -> Iterator[ElementTree.Element]:
    for child in node:
        if child.tag == f"{_CNXML}para":
            yield child
        elif child.tag not in _LEFT_OUT:
            yield from _running(child)


def _text(node: ElementTree.Element) -> Iterator[str]:
    yield node.text or ""
    for child in node:
        if child.tag not in _LEFT_OUT:
            yield from _text(child)
        yield child.tail or ""


def _tree(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError) as error:
        raise ClaraError(f"{path}: is no XML ({error}); remove it, and it is fetched anew") from None


def _write_pool(output: Path, name: str, passages: Iterable[tuple[str, str, str]], held_out: HeldOut) -> dict[str, int]:
    chosen = (
        {"id": id, "title": title, "text": text}
        for id, title, text in passages
        if len(text) >= LEAST and not held_out.repeats(text)
    )
    return write(output, name, chosen)
