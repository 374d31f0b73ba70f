"""HotpotQA: questions over two Wikipedia paragraphs (Yang et al. 2018).

Files: ``hotpot_train_v1.1.json``, ``hotpot_dev_distractor_v1.json``, ``hotpot_dev_fullwiki_v1.json``. One JSON array of

- ``_id``: string, unique.
- ``question``, ``answer``: strings. The test file has no ``answer`` and is refused.
- ``supporting_facts``: list of [title, number of the sentence], sentences counted from 0.
- ``context``: list of [title, list of sentences]: ten paragraphs. In the fullwiki file a search found them:
  the supporting ones may be missing, and the list may be shorter or empty.
- ``type``, ``level``: not read.

An example's documents are the paragraphs of ``context``; those with the title of a supporting fact are gold. Counted
but not refused, since the published files hold them: supporting paragraphs that a search did not find, sentence
numbers beyond the end of the paragraph, paragraphs without text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clara_jax.data.importers.examples import ImportedDocument, ImportedExample, Log
from clara_jax.data.importers.fields import Fields, checked_list, checked_text, checked_whole
from clara_jax.data.importers.json_files import read_array
from clara_jax.data.importers.reading import each_record
from clara_jax.errors import ClaraError

TEST_FILE = "the test file, which holds no answers, cannot be imported"
NOT_FOUND = "supporting paragraphs that are not in the context"
BEYOND_END = "supporting sentences beyond the end of their paragraph"
NO_TEXT = "paragraphs without text, left out"


def read(paths: Sequence[str], log: Log | None = None) -> Iterator[ImportedExample]:
    """Yield the questions of some files.

    Raises:
      ClaraError: a departure from the format, unless ``log`` collects them.
    """
    return each_record(read_array, paths, example_of, log)


def example_of(record: Fields, log: Log, complete: bool = False) -> ImportedExample:
    """Return the example of a record.

    Args:
      record: as published.
      log: collects oddities.
      complete: refuse a record whose supporting paragraphs are not all in its context.
    """
    id, where = record.id("_id"), record.where
    log.claim(id, where)
    question, answer = record.text("question"), record.text("answer", TEST_FILE)
    paragraphs = [_paragraph(value, f'"context"[{i}]', where) for i, value in enumerate(record.items("context"))]
    lengths: dict[str, int] = {}
    for title, sentences in paragraphs:
        lengths[title] = max(len(sentences), lengths.get(title, 0))
    supporting = set()
    for i, fact in enumerate(record.items("supporting_facts", TEST_FILE)):
        title, sentence = _fact(fact, f'"supporting_facts"[{i}]', where)
        supporting.add(title)
        if title in lengths and sentence >= lengths[title]:
            log.note(BEYOND_END)
    if not supporting:
        record.refuse("supporting_facts", "is empty; it must name the paragraphs that answer")
    missing = sorted(supporting - set(lengths))
    if missing and complete:
        record.refuse("supporting_facts", f'names {missing[0]!r}, which is the title of no paragraph in "context"')
    log.note(NOT_FOUND, len(missing))
    documents = [(ImportedDocument(title, _joined(sentences)), title in supporting) for title, sentences in paragraphs]
    written = [(document, gold) for document, gold in documents if document.text]
    log.note(NO_TEXT, len(documents) - len(written))
    texts, gold = zip(*written, strict=True) if written else ((), ())
    return ImportedExample(id, question, (answer,), texts, gold, where)


def _paragraph(value: object, name: str, where: str) -> tuple[str, list[str]]:
    pair = checked_list(value, name, where)
    if len(pair) != 2:
        raise ClaraError(f"{where}: {name} has {len(pair)} entries; it must be [title, sentences]")
    sentences = checked_list(pair[1], f"{name}[1]", where)
    return checked_text(pair[0], f"{name}[0]", where), [
        checked_text(sentence, f"{name}[1][{i}]", where, blank=True) for i, sentence in enumerate(sentences)
    ]


def _fact(value: object, name: str, where: str) -> tuple[str, int]:
    pair = checked_list(value, name, where)
    if len(pair) != 2:
        raise ClaraError(f"{where}: {name} has {len(pair)} entries; it must be [title, number of the sentence]")
    sentence = checked_whole(pair[1], f"{name}[1]", where)
    if sentence < 0:
        raise ClaraError(f"{where}: {name}[1] is {sentence}; sentences are counted from 0")
    return checked_text(pair[0], f"{name}[0]", where), sentence


def _joined(sentences: list[str]) -> str:
    """Return the paragraph; HotpotQA's sentences begin with a space, those of 2WikiMultiHopQA do not."""
    return " ".join(sentence.strip() for sentence in sentences if sentence.strip())
