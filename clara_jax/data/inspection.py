"""A record exactly as the model sees it, read from the batch that it makes."""

from __future__ import annotations

import itertools

import jax
import numpy as np

from clara_jax.input_pipeline.batches import Batch, Sequences
from clara_jax.input_pipeline.tokenization import IGNORED, ClaraTokenizer

LEARNED = ("\N{LEFT DOUBLE ANGLE BRACKET}", "\N{RIGHT DOUBLE ANGLE BRACKET}")


def lines(batch: Batch, tokenizer: ClaraTokenizer, row: int = 0) -> list[str]:
    """Return a readable description of a row of a batch, line by line.

    A memory in the prompt is ``[memory of document 1]`` (of the ranked ones, where a question ranks); what carries loss
    stands in double angle brackets.
    """
    result = []
    assert isinstance(batch.documents, Sequences)  # a batch with documents as tokens
    rows = zip(batch.documents.ids[row], batch.documents.segment_ids[row], strict=True)
    for number, (ids, segment_ids) in enumerate(rows, 1):
        mask = segment_ids != 0
        if mask.any():
            positive = " (positive)" if batch.positives is not None and batch.positives[row, number - 1] else ""
            result.append(f"\ndocument {number}{positive}, {mask.sum()} tokens: {_text(ids[mask], tokenizer)}")
    ranks = batch.query is not None
    if batch.query is not None:
        mask = batch.query.segment_ids[row] != 0
        result.append(f"\nquestion, {mask.sum()} tokens: {_text(batch.query.ids[row][mask], tokenizer)}")
    prompt = jax.tree.map(lambda x: x[row], batch.prompt)
    attended, learned = prompt.segment_ids != 0, np.zeros(len(prompt.ids), bool)
    learned[prompt.label_positions[prompt.labels != IGNORED]] = True
    slots = np.where(prompt.memory_index >= 0, prompt.memory_index // tokenizer.memory_tokens, -1)
    runs = itertools.groupby(np.flatnonzero(attended), key=lambda t: (int(slots[t]), bool(learned[t])))
    text = ""
    for (slot, is_learned), places in runs:
        if slot >= 0:
            text += f"[memory of {'the document ranked' if ranks else 'document'} {slot + 1}]"
            continue
        part = tokenizer.decode(prompt.ids[list(places)], special=True)
        text += f"{LEARNED[0]}{part}{LEARNED[1]}" if is_learned else part
    result.append(f"\nprompt, {attended.sum()} tokens, {learned.sum()} with loss: {text}")
    return result


def _text(ids: np.ndarray | jax.Array, tokenizer: ClaraTokenizer) -> str:
    """Return the text of ids that end with the memory tokens."""
    return (
        f"{tokenizer.decode(ids[: -tokenizer.memory_tokens], special=True)} + {tokenizer.memory_tokens} memory tokens"
    )
