"""A user's corpus, from which candidates are taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clara_jax.data.importers.examples import ImportedDocument, Log
from clara_jax.data.importers.fields import Fields
from clara_jax.data.importers.reading import each_record
from clara_jax.formats.jsonl import raw_lines

TEXTS, IDS = ("text", "contents"), ("id", "_id")


def read_corpus(paths: Sequence[str], log: Log | None = None) -> Iterator[ImportedDocument]:
    """Yield the documents of JSONL files.

    Each line has ``text`` (or ``contents``) and optionally ``title`` and ``id`` (or ``_id``), as in the files of
    ``python -m clara_jax.data corpus``, of ``--stage corpus``, and of BEIR.

    Raises:
      ClaraError: a line that is not such a document, unless ``log`` collects them.
    """
    return each_record(raw_lines, paths, _document, log)


def _document(record: Fields, log: Log) -> ImportedDocument:
    text = next((name for name in TEXTS if name in record), TEXTS[0])
    id = next((str(record.get(name)) for name in IDS if name in record), "")
    return ImportedDocument(record.text_or_blank("title").strip(), record.text(text), id)
