"""A corpus of one's own, from which candidates are taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clara_jax.data.importers.examples import Document, Log
from clara_jax.data.importers.fields import Fields
from clara_jax.data.jsonl import decode, raw_lines

TEXTS, IDS = ("text", "contents"), ("id", "_id")


def read_corpus(paths: Sequence[str], log: Log | None = None) -> Iterator[Document]:
    """The documents of JSONL files, each line with ``text`` (or ``contents``) and optionally ``title`` and ``id``
    (or ``_id``): those of ``python -m clara_jax.data corpus``, of ``--stage corpus``, and of BEIR.

    Raises:
      ClaraError: a line that is not such a document, unless ``log`` collects them.
    """
    log = log or Log()
    for path in paths:
        for where, line in raw_lines(path):
            with log.record(where, line):
                record = Fields(decode(line, where), where)
                text = next((name for name in TEXTS if name in record), TEXTS[0])
                id = next((str(record.get(name)) for name in IDS if name in record), "")
                yield Document(record.text_or_blank("title").strip(), record.text(text), id)
