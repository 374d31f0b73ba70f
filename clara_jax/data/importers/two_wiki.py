"""2WikiMultiHopQA: questions over two or four Wikipedia paragraphs and Wikidata (Ho et al. 2020).

Files: ``train.json``, ``dev.json`` (of ``data.zip``, ``data_ids.zip`` or ``data_ids_april7.zip``).
One JSON array of

- ``_id``, ``question``, ``answer``, ``supporting_facts``, ``context``: as in HotpotQA (`hotpotqa`), but the context
  holds every supporting paragraph. The test file has no answers and is refused.
- ``evidences``: list of [subject, relation, object], strings; may be missing.
- ``evidences_id``, ``answer_id``: Wikidata ids, in the later releases only; the answer's may be null.
- ``type``, ``entity_ids``: not read.

and ``id_aliases.json`` (of the later releases), which in spite of its name is JSONL:

- ``Q_id``: string, a Wikidata id.
- ``aliases``, ``demonyms``: lists of strings.

With the aliases file, an answer's other names are accepted answers, as in the authors' evaluation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from clara_jax.data.importers.examples import ImportedExample, Log, distinct
from clara_jax.data.importers.fields import Fields, checked_list, checked_text
from clara_jax.data.importers.hotpotqa import example_of
from clara_jax.data.importers.json_files import read_array
from clara_jax.data.importers.reading import each_record
from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import raw_lines


def read(paths: Sequence[str], log: Log | None = None, aliases: str | None = None) -> Iterator[ImportedExample]:
    """Yield the questions of some files.

    Args:
      paths: of the files.
      log: collects what is left out.
      aliases: ``id_aliases.json``.

    Raises:
      ClaraError: a departure from the format, unless ``log`` collects them.
    """
    log = log or Log()
    names = read_aliases(aliases, log) if aliases else {}

    def make(record: Fields, log: Log) -> ImportedExample:
        example = example_of(record, log, complete=True)
        _check_evidences(record)
        others = names.get(record.text("answer_id"), ()) if "answer_id" in record else ()
        return dataclasses.replace(example, answers=distinct([*example.answers, *others]))

    yield from each_record(read_array, paths, make, log)


def read_aliases(path: str, log: Log) -> Mapping[str, tuple[str, ...]]:
    """Return the mapping from Wikidata id to its other names, sorted."""
    return dict(each_record(raw_lines, [path], _aliases, log))


def _aliases(record: Fields, log: Log) -> tuple[str, tuple[str, ...]] | None:
    others = {*record.texts("aliases", optional=True), *record.texts("demonyms", optional=True)}
    return (record.text("Q_id"), tuple(sorted(others))) if others else None


def _check_evidences(record: Fields) -> None:
    for i, evidence in enumerate(record.items("evidences", optional=True)):
        name = f'"evidences"[{i}]'
        triple = checked_list(evidence, name, record.where)
        if len(triple) != 3:
            raise ClaraError(
                f"{record.where}: {name} has {len(triple)} entries; it must be [subject, relation, object]"
            )
        for j, text in enumerate(triple):
            checked_text(text, f"{name}[{j}]", record.where)
