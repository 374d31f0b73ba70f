"""Characters as a reader sees them, and titles of Markdown: over generated texts, in linear time."""

import os
import re
import time
import unicodedata

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_jax.data.corpus import readers
from clara_jax.data.corpus.build import build_corpus
from clara_jax.data.corpus.cleaning import cleaned, one_line
from clara_jax.data.corpus.files import LINKS, find_files
from clara_jax.data.corpus.markdown import first_heading, without_front_matter
from clara_jax.data.corpus.readers import read_documents
from clara_jax.errors import ClaraError
from clara_jax.text.chunks import Chunker
from clara_jax.text.counting import count_words
from clara_jax.text.sentences import paragraph_ends
from tests.data.corpus import pdf, write

ANY = st.text(st.characters(exclude_categories=()), max_size=60)


@settings(deadline=None)
@given(ANY, st.booleans())
def test_nothing_unseen_is_left_and_cleaning_again_changes_nothing(text, typeset):
    result = cleaned(text, typeset).text
    kinds = {unicodedata.category(character) for character in result if character not in "\n\t"}
    assert not kinds & {"Cc", "Cs", "Zl", "Zp"}
    assert not re.search("[\ufb00-\ufb06\u00ad\u200b\ufeff\u202a-\u202e\u2066-\u2069]", result)
    assert cleaned(result, typeset).text == result
    if not typeset:
        assert cleaned(result) == (result, 0)
    result.encode()


@settings(deadline=None)
@given(
    st.text(st.characters(categories=("L", "N", "P", "Zs"), exclude_characters="\u115f\u1160\u3164\uffa0"), max_size=60)
)
def test_what_is_shown_stays(text):
    text = unicodedata.normalize("NFC", re.sub("[\u2e80-\u2fdf\ufb00-\ufdff\ufe80-\ufeff]", "", text))
    assert cleaned(text) == (text, 0)


@pytest.mark.parametrize(
    ("glyphs", "letters"),
    [
        ("\ufefb\ufe8e", "\u0644\u0627\u0627"),  # Arabic by the place in the word
        ("\ufb50\ufbfe", "\u0671\u06cc"),
        ("\ufb14\ufb4f", "\u0574\u0565\u05d0\u05dc"),  # Armenian, Hebrew
        ("\u2f08\u2ed1\u2f42", "\u4eba\u9577\u6587"),  # radicals of both blocks
        ("Zu\u0308rich, A\u030angstro\u0308m", "Zürich, Ångström"),
        ("か\u3099 \u1112\u1161\u11ab", "が 한"),
        ("co\u034foperate\u3164\uffa0", "cooperate"),
    ],
)
def test_glyphs_are_letters(glyphs, letters):
    text, count = cleaned(glyphs)
    assert text == letters and count > 0 and cleaned(text) == (text, 0)


@settings(deadline=None)
@given(
    st.sampled_from(["office", "classifies", "Auffahrt", "ﬂuﬀy"]), st.sampled_from(["\0", "\u200b", "\u202e", "\x07"])
)
def test_words_within_are_whole(word, mark):
    middle = len(word) // 2
    ligated = word.replace("ffi", "ﬃ").replace("fi", "ﬁ")
    assert cleaned(word[:middle] + mark + word[middle:]).text == cleaned(word).text == cleaned(ligated).text


WORD = st.text("abcdefgh", min_size=3, max_size=12)


@settings(deadline=None)
@given(WORD, WORD)
def test_words_divided_where_a_line_ends(first, second):
    assert cleaned(f"x {first}-\n{second} y", True).text == f"x {first}{second} y"
    assert cleaned(f"x {first}\u00ad\n{second} y").text == f"x {first}{second} y"
    assert cleaned(f"x {first}-\n{second} y").text == f"x {first}-\n{second} y"
    assert (
        cleaned(f"x {first}-\n{second}. A {first}-{second} y", True).text == f"x {first}-{second}. A {first}-{second} y"
    )


@pytest.mark.parametrize("text", ["Anglo-\nSaxon", "pre-\nand post-war", "1990-\n2000", "a -\nb", "- one\n- two"])
def test_other_hyphens_stay(text):
    assert cleaned(text, True).text == text


TITLE = st.text(
    st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_categories=("C",)), min_size=1, max_size=80
)


@settings(deadline=None)
@given(TITLE.filter(str.strip), st.sampled_from(["'", '"', ">", "|", None]), st.dictionaries(WORD, WORD, max_size=3))
def test_front_matter_is_yaml(title, style, fields):
    fields = {**{name: value for name, value in fields.items() if name != "title"}, "title": title}
    front = yaml.dump(fields, default_style=style, allow_unicode=True, width=30)
    body = without_front_matter(f"---\n{front}---\nText.\n")
    assert (one_line(body.title), body.text) == (one_line(title), "Text.\n")


@pytest.mark.parametrize(
    "front, title",
    [
        ("title: >-\n  A long title\n  over two lines", "A long title over two lines"),
        ("title: |\n  One\n  two", "One two"),
        ("title: 2024", "2024"),
        ("title: yes", "yes"),
        ("Title: Ferry: a guide", "Ferry: a guide"),  # no YAML: a colon within
        ("title: [a, b]", ""),
        ("title: &a [*a, *a]", ""),
        ("title: !!python/object/apply:os.system ['true']", ""),
        ("tags: [a\nb: c", ""),
        (f"a: {'[' * 5000}", ""),
    ],
)
def test_front_matter(front, title):
    assert one_line(without_front_matter(f"---\n{front}\n---\nText.").title) == title


def test_what_is_no_front_matter():
    for text in ("---\nProse.\n---\nMore.", "--- \ntitle: x", "----\ntitle: x\n----\n", " ---\ntitle: x\n---\n"):
        assert without_front_matter(text) == (text, "")


@pytest.mark.parametrize(
    "text, title",
    [
        ("Text\n\n## Second ##\n", "Second"),
        ("# C#\n\nA language.", "C#"),
        ("# C# #  \n\nA language.", "C#"),
        ("```\n# code\n```\n# Title", "Title"),
        ("~~~\n```\n# code\n~~~\n# Title", "Title"),
        ("Title\n===\n", "Title"),
        ("> quote\n===\n# Title", "Title"),
        ("#no\n####### seven\n# #\n#\tTab", "Tab"),
        ("    # code\nText", ""),
    ],
)
def test_first_heading(text, title):
    assert first_heading(text) == title


# Each was quadratic, cubic or worse for one of the ways in which a title, a line or a word may be looked for.
HOSTILE = ["# \t", "#  ", "#\n", "=\n", "a\n   = = \n", "```\n", "`", "~", " ", " " * 999 + "\n", "\n", "a-\n", "-\n"]
HOSTILE += [
    "\u00ad \n",
    "\u00ad ",
    "---\n",
    "a: [",
    '."',
    "a\n\n",
    "\ufb01",
    "\ud800",
    "<a",
    "<p>",
    "1. a\n",
    "| ",
    "\u0301\u0327",
    "\u0344",
    "\ufefb",
]


@pytest.mark.parametrize("unit", HOSTILE)
@pytest.mark.parametrize("head", ["", "---\ntitle: ", "# x "])
def test_time_is_linear(unit, head):
    def seconds(size):
        start = time.process_time()
        text = cleaned(head + unit * (size // len(unit)) + "x", True).text
        body = without_front_matter(text)
        first_heading(body.text)
        paragraph_ends(text)
        return time.process_time() - start

    seconds(1000)
    assert seconds(250_000) < 2.5  # a quadratic way takes minutes


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([".txt", ".md", ".jsonl", ".md.gz"]), st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(suffix, content):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, f"a{suffix}")
        with open(path, "wb") as file:
            file.write(content)
        try:
            for document in read_documents([path]):
                document.text.encode()
        except ClaraError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    "charset",
    [
        "x-none",
        "hex",
        "rot13",
        "idna",
        "punycode",
        "undefined",
        "utf-99",
        "zlib",
        "utf-7",
        "utf-16",
        "UTF-16LE",
        "utf-32",
    ],
)
def test_a_charset_that_does_not_exist(charset, tmp_path):
    page = (
        f'<html><head><meta charset="{charset}"></head><body><p>{"Grüße aus dem schönen Köln. " * 9}</p></body></html>'
    )
    for name, encoding in (("a", "utf-8"), ("b", "cp1252")):
        (document,) = read_documents([write(tmp_path / name, {"a.html": page.encode(encoding)})])
        assert "Grüße aus dem schönen Köln" in document.text


def test_a_few_bytes_of_zero_hide_no_encoding(tmp_path):
    text = "Grüße aus dem schönen Köln, und für Änderungen noch mehr Grüße. " * 9
    damaged = text.encode("cp1252") + b"\0"
    (document,) = read_documents([write(tmp_path, {"a.txt": damaged})])
    assert document.text.strip() == text.strip() and document.cleaned == 1


def test_pdf_characters(tmp_path):
    (document,) = read_documents([write(tmp_path, {"a.pdf": pdf([["The exam-", "ple is here."]])})])
    assert "example is here" in document.text.replace("\n", " ")


def test_the_report_counts(tmp_path):
    folder = write(tmp_path / "in", {"a.txt": "One\0 two.", "b.txt": "The ofﬁce."})
    report = build_corpus([folder], tmp_path / "out.jsonl", Chunker(count_words), progress=False)
    assert report.cleaned == 2 and "cleaned     2 characters" in str(report)


def test_links_are_not_followed_out_of_a_folder(tmp_path):
    secret = write(tmp_path / "outside", {"secret.txt": "Secret.", "deep/more.md": "More."})
    folder = write(tmp_path / "in", {"a.txt": "One.", "sub/b.md": "Two."})
    os.symlink(f"{secret}/secret.txt", f"{folder}/notes.txt")
    os.symlink(f"{folder}/a.txt", f"{folder}/sub/within.txt")
    os.symlink("/nowhere/at/all", f"{folder}/broken.txt")
    os.symlink(secret, f"{folder}/linked")
    os.symlink(folder, f"{folder}/sub/loop")

    def names(given, follow=False):
        files, ignored = find_files([given], follow)
        return sorted(file.name for file in files), ignored[LINKS]

    assert names(folder) == (["a.txt", "sub/b.md", "sub/within.txt"], 2)
    for pattern in ("*.txt", "**/*.txt", "*/*", "*"):
        found, passed = names(f"{folder}/{pattern}")
        assert not any("secret" in name or "notes" in name or "more" in name for name in found) and passed
    os.remove(f"{folder}/broken.txt")
    found, passed = names(folder, True)
    assert {"notes.txt", "linked/secret.txt", "linked/deep/more.md"} <= set(found) and not passed
    assert names(f"{folder}/notes.txt") == (["notes.txt"], 0)  # named: read
    os.symlink(folder, tmp_path / "root")
    assert names(f"{tmp_path}/root")[0] == ["a.txt", "sub/b.md", "sub/within.txt"]


def test_a_file_that_unpacks_to_more_than_its_share(tmp_path, monkeypatch):
    import gzip

    monkeypatch.setattr(readers, "LARGEST", 1000)
    folder = write(tmp_path, {"a.txt.gz": gzip.compress(b"a " * 10_000)})
    with pytest.raises(ClaraError, match="holds more than"):
        list(read_documents([folder]))
