"""Documents that are cut to a length where a stage reads them: windows of passages, paragraphs around an answer.

Where a window begins is drawn from a seed and the record's number, so equal runs read equal windows, and the sections
of a run, each with another seed, read different ones of the same passages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from clara_jax.input_pipeline.drawn import generator
from clara_jax.input_pipeline.records import TEXT_STAGES, Record
from clara_jax.input_pipeline.tokenization import ClaraTokenizer

CONTINUATION = 32  # tokens that are to be continued with, at most
CROPS = (START, ANSWER) = ("start", "answer")


def cut_records(records: Sequence[Record], tokenizer: ClaraTokenizer, crop: str, seed: int) -> list[Record]:
    """Cut texts that are longer than ``tokenizer.doc_max_length`` tokens to a window of so many.

    Passages ("autoencode", "continue") become a window drawn from them and their target, the window itself or the up to
    `CONTINUATION` tokens after it; windows of white space, and single tokens, which nothing can follow, are left out.
    With ``crop`` "answer" the documents of questions are cut, too: a positive one to a window that holds one of the
    answers, if it has one, any other to its beginning. All else stays as it is, and is cut at its end when it is
    encoded.

    Args:
      records: of one stage or several.
      tokenizer: counts tokens, and has the longest document's number of them.
      crop: one of `CROPS`.
      seed: of the draws.
    """
    drawn = generator(seed, 0).random(len(records))
    results: list[Record | None] = list(records)
    passages = [i for i, record in enumerate(records) if record.kind in TEXT_STAGES and _is_whole(record)]
    texts = [tokenizer.plain(records[i].documents[0]) for i in passages]
    for i, text, offsets in zip(passages, texts, tokenizer.offsets(texts), strict=True):
        results[i] = _window(records[i], text, offsets, tokenizer.doc_max_length, drawn[i])
    if crop == ANSWER:
        asked = [i for i, record in enumerate(records) if record.kind == "question"]
        documents = [tokenizer.plain(text) for i in asked for text in records[i].documents]
        cuts = iter(zip(documents, tokenizer.offsets(documents), strict=True))
        for i in asked:
            results[i] = _around_answers(records[i], cuts, tokenizer.doc_max_length, drawn[i])
    return [record for record in results if record is not None]


def _is_whole(record: Record) -> bool:
    """Return whether a passage is still to be divided into a document and a target."""
    return record.kind == "autoencode" or not record.answers


def _window(record: Record, text: str, offsets: Sequence[tuple[int, int]], length: int, drawn: float) -> Record | None:
    if record.kind == "autoencode":
        start = int(drawn * (max(0, len(offsets) - length) + 1))
        document = _slice(text, offsets, start, start + length)
        if not document:
            return None
        return dataclasses.replace(record, documents=(document,), answers=(document,), gold_answers=(document,))
    if len(offsets) < 2:
        return None
    # Something must follow: of a short passage, up to half of it does.
    follows = min(CONTINUATION, max(1, len(offsets) // 2))
    length = min(length, len(offsets) - follows)
    start = int(drawn * (len(offsets) - follows - length + 1))
    document = _slice(text, offsets, start, start + length)
    target = _slice(text, offsets, start + length, start + length + follows)
    if not document or not target:
        return None
    return dataclasses.replace(record, documents=(document,), answers=(target,), gold_answers=(target,))


def _around_answers(record: Record, cuts, length: int, drawn: float) -> Record:
    documents = []
    for number, original in enumerate(record.documents):
        text, offsets = next(cuts)
        if len(offsets) <= length:
            documents.append(original)
            continue
        first, last, begins = 0, len(offsets) - length, 0  # where a window may begin; where the answer does
        answer = _find(text, (*record.answers, *record.gold_answers)) if number in record.positives else None
        if answer is None:
            last = 0
        else:
            begins = next((i for i, (_, end) in enumerate(offsets) if end > answer[0]), 0)
            ends = next((i for i, (_, end) in enumerate(offsets) if end >= answer[1]), len(offsets) - 1)
            first, last = max(first, ends + 1 - length), min(last, begins)
        start = first + int(drawn * (last - first + 1)) if last >= first else min(begins, len(offsets) - length)
        documents.append(_slice(text, offsets, start, start + length))
    return dataclasses.replace(record, documents=tuple(documents))


def _find(text: str, answers: Sequence[str]) -> tuple[int, int] | None:
    """Return where the first of the answers that a text holds begins and ends in it; None without any."""
    folded = text.casefold()
    same = len(folded) == len(text)  # some letters fold to two, and places would shift
    for answer in answers:
        begins = folded.find(answer.casefold()) if same else text.find(answer)
        if answer and begins >= 0:
            return begins, begins + len(answer)
    return None


def _slice(text: str, offsets: Sequence[tuple[int, int]], start: int, stop: int) -> str:
    chosen = offsets[start:stop]
    # The blank before its first word stays: without it that word would be other tokens, and the window longer.
    cut = text[chosen[0][0] : chosen[-1][1]] if chosen else ""
    return cut if cut.strip() else ""
