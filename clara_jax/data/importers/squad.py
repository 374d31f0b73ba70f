"""SQuAD 1.1 and 2.0: questions on Wikipedia paragraphs (Rajpurkar et al. 2016, 2018).

Files: ``train-v1.1.json``, ``dev-v1.1.json``, ``train-v2.0.json``, ``dev-v2.0.json``. One JSON object:

- ``version``: string, not read.
- ``data``: list of articles:
  - ``title``: string, words separated by "_" (here by spaces); files of annotation tools have none.
  - ``paragraphs``: list of
    - ``context``: string, the paragraph.
    - ``qas``: list (nobody may have asked yet) of
      - ``id``: string, unique; where there is none, the place in the file stands for it.
      - ``question``: string.
      - ``answers``: list of ``text`` and ``answer_start``, the character of ``context`` at which ``text`` stands. One
        in the training sets, several in the development sets, none where the question cannot be answered.
      - ``is_impossible``: 2.0 only, true or false. ``plausible_answers`` beside it is not read.

An example's document is its paragraph, which is gold. Questions that cannot be answered are skipped and counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clara_jax.data.importers.examples import UNANSWERABLE, ImportedDocument, ImportedExample, Log, distinct
from clara_jax.data.importers.fields import Fields
from clara_jax.data.importers.json_files import read_whole


def read(paths: Sequence[str], log: Log | None = None) -> Iterator[ImportedExample]:
    """Yield the answerable questions of some files.

    Raises:
      ClaraError: a departure from the format, unless ``log`` collects them.
    """
    log = log or Log()
    for path in paths:
        published = Fields(read_whole(path), path)
        for i, article in enumerate(published.items("data", "this is no SQuAD file")):
            where = f"{path}: data[{i}]"
            with log.record(where, article):
                article = Fields(article, where)
                title = article.text_or_blank("title").strip().replace("_", " ")
                for j, paragraph in enumerate(article.items("paragraphs")):
                    yield from _questions(paragraph, title, f"{where}.paragraphs[{j}]", log)


def _questions(value: object, title: str, where: str, log: Log) -> Iterator[ImportedExample]:
    with log.record(where, value):
        paragraph = Fields(value, where)
        document = ImportedDocument(title, paragraph.text("context"))
        for i, entry in enumerate(paragraph.items("qas", optional=True)):
            place = f"{where}.qas[{i}]"
            with log.record(place, entry):
                example = _question(Fields(entry, place), document, log)
                if example is not None:
                    yield example


def _question(entry: Fields, document: ImportedDocument, log: Log) -> ImportedExample | None:
    id = entry.id("id") if "id" in entry else entry.where
    log.claim(id, entry.where)
    impossible = "is_impossible" in entry and entry.flag("is_impossible")
    answers = [_answer(answer, document.text) for answer in entry.objects("answers", optional=impossible)]
    if impossible and answers:
        entry.refuse("answers", 'has entries though "is_impossible" is true')
    if impossible:
        log.skip(UNANSWERABLE)
        return None
    if not answers:
        entry.refuse("answers", 'is empty though "is_impossible" is not true')
    return ImportedExample(id, entry.text("question"), distinct(answers), (document,), (True,), entry.where)


def _answer(answer: Fields, context: str) -> str:
    text = answer.text("text")
    if "answer_start" not in answer:  # the text alone is learned
        return text.strip()
    start = answer.whole("answer_start")
    if not 0 <= start < len(context):
        answer.refuse("answer_start", f"is {start}, but the paragraph has {len(context)} characters")
    if not context.startswith(text, start):
        answer.refuse("answer_start", f"is {start}, where the paragraph does not say {text!r}")
    return text.strip()
