"""DPR's training files: Natural Questions and others with passages of Wikipedia (Karpukhin et al. 2020).

Files: ``biencoder-nq-train.json.gz``, ``biencoder-nq-dev.json.gz``, ``biencoder-trivia-*.json.gz`` and the like. One
JSON array of

- ``question``: string.
- ``answers``: list of at least one string.
- ``positive_ctxs``, ``negative_ctxs``, ``hard_negative_ctxs``: lists, of which the negative ones may be missing, of
  - ``title``, ``text``: strings.
  - ``score``, ``title_score``, ``passage_id`` (``psg_id`` in the development file): not read.
- ``dataset``: not read.

An example's documents are its positive, hard negative and other negative passages, in this order; the positive ones
are gold, the first being the one that the annotators marked. Questions without a positive passage are skipped and
counted, as DPR does. Questions have no names; ids are made of question and answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clara_jax.data.importers.examples import ImportedDocument, ImportedExample, Log
from clara_jax.data.importers.fields import Fields
from clara_jax.data.importers.json_files import read_array
from clara_jax.data.importers.natural_questions import named_question
from clara_jax.data.importers.reading import each_record

NO_POSITIVE = "no positive passage"


def read(paths: Sequence[str], log: Log | None = None) -> Iterator[ImportedExample]:
    """Yield the questions of some files that have a positive passage.

    Raises:
      ClaraError: a departure from the format, unless ``log`` collects them.
    """
    return each_record(read_array, paths, _example, log)


def _example(record: Fields, log: Log) -> ImportedExample | None:
    question, answers, id = named_question(record, "answers", "dpr")
    positive, hard, other = (
        [
            ImportedDocument(passage.text_or_blank("title"), passage.text("text"))
            for passage in record.objects(name, optional=name != "positive_ctxs")
        ]
        for name in ("positive_ctxs", "hard_negative_ctxs", "negative_ctxs")
    )
    if not positive:
        log.skip(NO_POSITIVE)
        return None
    if not log.is_new(id, record.where):
        return None
    documents = (*positive, *hard, *other)
    gold = tuple(i < len(positive) for i in range(len(documents)))
    return ImportedExample(id, question, answers, documents, gold, record.where)
