"""The published data of CLaRa: records of all stages, and evaluation sets (arXiv 2511.18659).

The data set ``apple/CLaRa_multi_stage`` holds JSONL files in the format of `clara_jax.input_pipeline.records`:

- pretraining: ``data_type`` ("qa" or "paraphrase"), ``question``, ``answers``, ``docs`` (one document);
- instruction tuning: ``question``, ``docs``, ``gold_answer``, ``answer``;
- end-to-end tuning: ``question``, ``docs``, ``answer``, ``pos_index``;

and for 2wiki, hotpotqa, musique and nq evaluation sets with and without the positive documents ensured. The released
evaluation code reads them as ``{stage1_eval|stage2_eval}/{dataset}/eval_processed_{with_pos|no_pos}.jsonl``.

Records keep their documents and gold positions. The import checks them for a stage, leaves out those of another, and
gives ids to those without: made of the content, with the data set's name in front in evaluation files. A record that
stands twice is skipped.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clara_jax.data.importers.examples import Log, content_id
from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import decode, is_remote, raw_lines
from clara_jax.input_pipeline.records import STAGES, Record, parse_record

# The names of the released code.
STAGE_NAMES = {
    "stage1": "scp",
    "stage1_2": "instruct",
    "stage2": "end_to_end",
    "stage2_pretrain_retrieval": "retrieval",
}
OTHER_STAGE = "of another stage"
NO_POSITIVE = "no positive document, which retrieval needs"

_EVALUATION = re.compile(r"stage[12]_eval/([^/]+)/eval_processed_(with|no)_pos\.jsonl")


def patterns(path: str) -> str:
    """Return the pattern of an input: a file or pattern as it is, of a folder all JSONL files below it."""
    return f"{path.rstrip('/')}/**/*.jsonl*" if not is_remote(path) and os.path.isdir(path) else path


def read(paths: Sequence[str], stage: str, log: Log | None = None) -> Iterator[dict[str, Any]]:
    """Yield the records of a stage, each as an object with the fields of `clara_jax.input_pipeline.records`.

    Args:
      paths: JSONL files.
      stage: one of `clara_jax.input_pipeline.records.STAGES`, or its name in the released code.
      log: collects what is left out.

    Raises:
      ClaraError: an unknown stage; a line that is no record of this format, unless ``log`` collects them.
    """
    stage = STAGE_NAMES.get(stage, stage)
    if stage not in STAGES:
        raise ClaraError(f"--stage: {stage!r} is unknown; it must be one of {', '.join([*STAGES, *STAGE_NAMES])}")
    log = log or Log()
    for path in paths:
        evaluation = _EVALUATION.search(path.replace(os.sep, "/"))
        dataset, ensured = (evaluation[1], evaluation[2] == "with") if evaluation else ("clara", False)
        for where, line in raw_lines(path):
            with log.record(where, line):
                fields = decode(line, where)
                kind = _stage_kind(fields)
                record = parse_record(fields, "scp" if kind == "scp" else "retrieval", where)
                if (kind == "scp") != (stage == "scp"):
                    log.skip(f"{OTHER_STAGE} ({kind})")
                    continue
                record = parse_record(fields, stage, where)
                if ensured and fields.get("pos_index") == []:
                    raise ClaraError(f'{where}: "pos_index" is empty in a file "with_pos"; a positive must be named')
                if stage == "retrieval" and not record.positives:
                    log.skip(NO_POSITIVE)
                    continue
                if record.qid != where:
                    log.claim(record.qid, where)
                    yield _fields(record, record.qid)
                    continue
                id = content_id(dataset, record.kind, *record.questions, *record.answers, *record.documents)
                if log.is_new(id, where):
                    yield _fields(record, id)


def _stage_kind(fields: Any) -> str:
    """Return "scp" or "a question"; lines that are neither are refused later, as one of them."""
    if not isinstance(fields, Mapping):
        return "a question"
    is_scp = fields.get("data_type") == "paraphrase" or isinstance(fields.get("question"), list)
    return "scp" if is_scp else "a question"


def _fields(record: Record, id: str) -> dict[str, Any]:
    fields: dict[str, Any] = {"qid": id}
    if record.kind != "question":
        question = list(record.questions) if record.kind == "qa" else ""
        return fields | {
            "data_type": record.kind,
            "question": question,
            "answers": list(record.answers),
            "docs": list(record.documents),
        }
    fields |= {"question": record.questions[0], "docs": list(record.documents)}
    if record.answers:  # retrieval needs none
        fields |= {"answer": record.answers[0], "golden_answers": list(record.gold_answers)}
    return fields | {"pos_index": list(record.positives)}
