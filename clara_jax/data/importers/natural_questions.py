"""Natural Questions, open domain: questions asked of a search engine (Kwiatkowski et al. 2019, Lee et al. 2019).

``nq-open``. Files: ``NQ-open.train.jsonl``, ``NQ-open.dev.jsonl``, ``NQ-open.efficientqa.dev.1.1.jsonl``. Each line:

- ``question``: string.
- ``answer``: list of at least one string.

There are no documents: candidates come from a user's corpus, and no gold document is known.

``nq-lost-in-the-middle`` (Liu et al. 2023). Files: ``nq-open-oracle.jsonl.gz``,
``nq-open-{10,20,30}_total_documents_gold_at_{0,4,9,...}.jsonl.gz``. Each line:

- ``question``: string.
- ``answers``: list of at least one string.
- ``ctxs``: list of
  - ``title``, ``text``: strings.
  - ``isgold``: true or false, the passage that the annotators marked; exactly one is.
  - ``hasanswer``: true or false, whether an answer's text stands in it.
  - ``id``, ``score``, ``original_retrieval_index``: not read, the gold passage has none.
- ``nq_annotated_gold``: not read.

Neither form names its questions; ids are made of question and answers, and a line with both the same is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clara_jax.data.importers.examples import ImportedDocument, ImportedExample, Log, content_id, distinct
from clara_jax.data.importers.fields import Fields
from clara_jax.data.importers.reading import each_record
from clara_jax.formats.jsonl import raw_lines


def read_open(paths: Sequence[str], log: Log | None = None) -> Iterator[ImportedExample]:
    """Yield the questions of NQ-open's files, without documents.

    Raises:
      ClaraError: a departure from the format, unless ``log`` collects them.
    """
    return each_record(raw_lines, paths, _without_passages, log)


def read_lost_in_the_middle(paths: Sequence[str], log: Log | None = None) -> Iterator[ImportedExample]:
    """Yield the questions of the "lost in the middle" files, each with its passages.

    Raises:
      ClaraError: a departure from the format, unless ``log`` collects them.
    """
    return each_record(raw_lines, paths, _with_passages, log)


def _without_passages(record: Fields, log: Log) -> ImportedExample | None:
    question, answers, id = named_question(record, "answer", "nq")
    return ImportedExample(id, question, answers, (), (), record.where) if log.is_new(id, record.where) else None


def _with_passages(record: Fields, log: Log) -> ImportedExample | None:
    question, answers, id = named_question(record, "answers", "nq")
    documents, gold = [], []
    for passage in record.objects("ctxs"):
        passage.flag("hasanswer")
        gold.append(passage.flag("isgold", "a file of search results alone cannot be imported"))
        documents.append(ImportedDocument(passage.text_or_blank("title").strip(), passage.text("text")))
    if sum(gold) != 1:
        record.refuse("ctxs", f'has {sum(gold)} entries whose "isgold" is true; there must be one')
    if not log.is_new(id, record.where):
        return None
    return ImportedExample(id, question, answers, tuple(documents), tuple(gold), record.where)


def named_question(fields: Fields, answers: str, prefix: str) -> tuple[str, tuple[str, ...], str]:
    """Return question, answers, and an id made of both.

    Args:
      fields: of the record.
      answers: name of the field that holds the list of answers.
      prefix: of the id.
    """
    question, accepted = fields.text("question"), fields.texts(answers)
    if not accepted:
        fields.refuse(answers, "is empty; it needs at least one answer")
    return question, distinct(accepted), content_id(prefix, question, *accepted)
