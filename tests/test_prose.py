"""The field's words: what readers of the code and the docs would not guess does not come back."""

import io
import re
import tokenize

import pytest

from tests.locations import ROOT

# A pattern, and what to write instead. Matched in comments, docstrings and docs, not in code.
BANNED = {
    r"\bfor people\b": "for users",
    r"\btold again\b": "paraphrased",
    r"\bset aside\b": "rejected",
    r"\bwho measures\b": "a plain sentence",
    r"\b(?:put|stands?|placed) behind\b": "after",
    r"\bseats?\b": "slot",
    r"\bthe field's word\b": "the word itself",
}
MOST_OWN = 60
FOLDERS = ("clara_jax", "configs", "examples", "benchmarks", "launch", "docs", "tests")


def files():
    """Return the programs and documents whose prose is checked."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*"))]
    return found + [path for path in paths if path.suffix in (".py", ".md", ".sh")]


def prose(path):
    """Return (line, text) of a file's sentences: all of a document; comments and strings of a program."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return list(enumerate(text.split("\n"), 1))
    found = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and token.line.lstrip().startswith('"""')):
            found += enumerate(token.string.split("\n"), token.start[0])
    return found


@pytest.mark.parametrize("pattern", BANNED)
def test_banned_words(pattern):
    found = [
        f"{path.relative_to(ROOT)}:{line}: write {BANNED[pattern]!r}: {text.strip()}"
        for path in files()
        for line, text in prose(path)
        if re.search(pattern, text, re.IGNORECASE)
    ]
    assert not found, "\n".join(found)


def test_own_is_for_ownership():
    lines = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in files()
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1)
        if re.search(r"\bown\b", line)
    ]
    assert len(lines) <= MOST_OWN, "\n".join(lines)
