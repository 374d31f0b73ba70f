"""MuSiQue: questions composed of two to four simpler ones (Trivedi et al. 2022).

Files: ``musique_ans_v1.0_train.jsonl``, ``musique_ans_v1.0_dev.jsonl``, ``musique_full_v1.0_train.jsonl``,
``musique_full_v1.0_dev.jsonl``. Each line is an object:

- ``id``: string; in the full sets a question stands twice, answerable and not.
- ``paragraphs``: list of
  - ``idx``: whole number, unique in the record.
  - ``title``, ``paragraph_text``: strings.
  - ``is_supporting``: true or false.
- ``question``, ``answer``: strings. The test files have no ``answer`` and are refused.
- ``answer_aliases``: list of strings, other accepted answers. It, and the two below, may be missing.
- ``answerable``: true or false.
- ``question_decomposition``: list of the simpler questions; of each, ``paragraph_support_idx`` is the ``idx`` of the
  supporting paragraph, or null where it was taken out.

An example's documents are its paragraphs. Questions that cannot be answered are skipped and counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clara_jax.data.importers.examples import UNANSWERABLE, ImportedDocument, ImportedExample, Log, distinct
from clara_jax.data.importers.fields import Fields
from clara_jax.data.importers.reading import each_record
from clara_jax.formats.jsonl import raw_lines

TEST_FILE = "the test files, which hold no answers, cannot be imported"


def read(paths: Sequence[str], log: Log | None = None) -> Iterator[ImportedExample]:
    """Yield the answerable questions of some files.

    Raises:
      ClaraError: a departure from the format, unless ``log`` collects them.
    """
    return each_record(raw_lines, paths, _example, log)


def _example(record: Fields, log: Log) -> ImportedExample | None:
    id = record.id("id")
    answer = record.text("answer", TEST_FILE)
    if "answerable" in record and not record.flag("answerable"):
        log.skip(UNANSWERABLE)
        return None
    log.claim(id, record.where)
    documents, gold = {}, {}
    for paragraph in record.objects("paragraphs"):
        idx = paragraph.whole("idx")
        if idx in documents:
            paragraph.refuse("idx", f"is {idx}, as that of another paragraph; each must be unique")
        documents[idx] = ImportedDocument(paragraph.text_or_blank("title").strip(), paragraph.text("paragraph_text"))
        gold[idx] = paragraph.flag("is_supporting")
    for part in record.objects("question_decomposition", optional=True):
        support = part.whole("paragraph_support_idx")
        if support not in documents:
            part.refuse("paragraph_support_idx", f'is {support}, which is the "idx" of no paragraph')
        if not gold[support]:
            part.refuse("paragraph_support_idx", f'is {support}, a paragraph whose "is_supporting" is false')
    if not any(gold.values()):
        record.refuse("paragraphs", 'has none whose "is_supporting" is true')
    answers = distinct([answer, *record.texts("answer_aliases", optional=True)])
    question = record.text("question")
    return ImportedExample(id, question, answers, tuple(documents.values()), tuple(gold.values()), record.where)
