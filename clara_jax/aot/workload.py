"""The shapes of a stage's batches without data: full documents, and prompts of a stated length."""

from __future__ import annotations

import numpy as np

from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.batches import Array, Batch
from clara_jax.input_pipeline.buckets import Shapes, text_width
from clara_jax.input_pipeline.document_tokenizer import FRAME
from clara_jax.input_pipeline.encoding import TEXT as AS_TEXT
from clara_jax.input_pipeline.records import ONE_DOCUMENT
from clara_jax.method.clara import ClaraConfig
from clara_jax.training.stage_config import StageConfig

# Tokens of a prompt besides its memories, and of its target: a paraphrase is as long as its document, an instruction's
# answer a paragraph, an answer to a question a sentence.
TEXT = {
    "scp": (64, 256),
    "instruct": (128, 256),
    "end_to_end": (64, 64),
    "retrieval": (64, 64),
    "autoencode": (2, 256),
    "continue": (2, 32),
}
QUESTION = 64


def stage_shapes(stage: StageConfig, clara: ClaraConfig, text: int | None = None, target: int | None = None) -> Shapes:
    """Return the shapes of a stage's batches with full documents.

    Args:
      stage: of a configuration.
      clara: the method's sizes.
      text: tokens of a prompt besides documents, as memories or texts, and target; default by stage.
      target: tokens of a target; default by stage.

    Raises:
      ClaraError: a prompt beyond ``max_length``.
    """
    usual_text, usual_target = TEXT[stage.kind]
    text, target = usual_text if text is None else text, usual_target if target is None else target
    documents = stage.topk.candidates if stage.ranks else 1 if stage.kind in ONE_DOCUMENT else stage.topk.k
    read, as_text = min(stage.topk.k, documents), stage.data.documents == AS_TEXT
    each, what = (clara.doc_max_length, "document's") if as_text else (clara.memory_tokens, "memory")
    prompt = read * each + text + target
    if prompt > clara.max_length:
        raise ClaraError(
            f"--text, --target: a prompt of {read} x {each} {what} tokens, {text} of text and {target} "
            f"of target has {prompt} tokens, beyond config.clara.max_length {clara.max_length}; choose less"
        )
    if as_text:
        return Shapes(0, 0, 0, prompt, target)
    document, question = (
        text_width(length + FRAME, clara.memory_tokens) for length in (clara.doc_max_length, QUESTION)
    )
    return Shapes(documents, document, question if stage.ranks else 0, prompt, target)


def full_batch(batch: Batch) -> Batch:
    """Return a host batch with the shapes of an abstract one and without padding, for throughput accounting."""

    def ones(x: Array) -> np.ndarray:
        return np.ones(x.shape, bool)

    def zeros(x: Array) -> np.ndarray:
        return np.zeros(x.shape, np.int32)

    return Batch(
        document_ids=None,
        document_mask=None if batch.document_mask is None else ones(batch.document_mask),
        document_valid=ones(batch.document_valid),
        query_ids=None,
        query_mask=None if batch.query_mask is None else ones(batch.query_mask),
        prompt_ids=zeros(batch.prompt_ids),
        prompt_mask=ones(batch.prompt_mask),
        memory_index=zeros(batch.memory_index),
        labels=zeros(batch.labels),
        positives=None,
        example_ids=zeros(batch.example_ids),
    )
