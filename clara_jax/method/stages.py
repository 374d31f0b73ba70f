"""The training stages: one loss each, and the subtrees that it trains.

A loss is a sum of terms, each a mean with its own count (labelled tokens, documents, questions with a gold document).
The counts are those of the whole batch, known before any part of it is run, so the losses and gradients of microbatches
simply add up to those of the batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from clara_jax.data.batches import Batch
from clara_jax.data.tokenization import IGNORED
from clara_jax.errors import ClaraError
from clara_jax.method.clara import ClaraModel
from clara_jax.method.compressor import Encoded, alignment_loss, encode
from clara_jax.method.generator import language_model_loss, splice
from clara_jax.method.parameters import flatten, overlap, unflatten
from clara_jax.method.reranker import contrastive_loss, cosine_scores
from clara_jax.method.topk import straight_through_topk
from clara_jax.model.sharding import join_rows, split_rows


@dataclasses.dataclass(frozen=True)
class Objective:
    """The numbers of a loss (Table 10)."""

    mse_weight: float = 0.1  # λ
    mse_reduction: str = "mean"  # over channels: "mean" as the released code, "sum" as the paper's formula
    top_k: int = 5  # k
    temperature: float = 0.02  # τ

    def __post_init__(self):
        if self.mse_reduction not in ("mean", "sum"):
            raise ClaraError(
                f'mse_reduction: {self.mse_reduction!r} must be "mean" (released code) or "sum" (the paper\'s formula)'
            )
        if self.top_k < 1:
            raise ClaraError(f"top_k: {self.top_k!r} must be at least 1")
        if self.temperature <= 0:
            raise ClaraError(f"temperature: {self.temperature!r} must be above 0")


Terms = dict[str, jax.Array]  # sums over the examples of a batch, by term
Loss = Callable[[ClaraModel, Any, Batch, Objective, jax.Array | None], Terms]


@dataclasses.dataclass(frozen=True)
class Stage:
    """A training stage.

    Attributes:
      reference_name: what the released code calls it.
      trains: paths of the subtrees it trains by default.
      starts_from: subtree -> subtree it is copied from, unless an earlier stage has trained it.
      loss: (model, params, batch, objective, keys [B] or None) -> sums of its terms.
      weights: objective -> weight of each term in the loss; other terms are only reported.
    """

    name: str
    reference_name: str
    trains: tuple[str, ...]
    starts_from: Mapping[str, str]
    loss: Loss
    weights: Callable[[Objective], Mapping[str, float]]


def counts(batch: Batch) -> Terms:
    """What each term is a mean over: the batch's labelled tokens, documents, or questions with a positive document."""
    labelled = jnp.sum(batch.labels != IGNORED)
    numbers = {"ce": labelled, "accuracy": labelled, "mse": jnp.sum(batch.document_valid)}
    if batch.positives is not None:
        numbers["contrastive"] = numbers["recall"] = jnp.sum(jnp.any(batch.positives & batch.document_valid, axis=-1))
    return {name: number.astype(jnp.float32) for name, number in numbers.items()}


def objective_value(stage: Stage, objective: Objective, terms: Terms, counted: Terms) -> tuple[jax.Array, Terms]:
    """The loss Σ weight · sum / count, and every term as sum / count."""
    means = {name: value / jnp.maximum(counted[name], 1) for name, value in terms.items()}
    return sum(weight * means[name] for name, weight in stage.weights(objective).items()), means


def inherit(stage: Stage, params: Any, trained: Iterable[str]) -> Any:
    """``params`` as the stage finds them: what it starts as a copy of something else is one, unless ``trained``."""
    leaves = flatten(params)
    for target, source in stage.starts_from.items():
        if not any(overlap(target, subtree) for subtree in trained):
            leaves |= {
                path.replace(source, target, 1): leaf for path, leaf in leaves.items() if path.startswith(f"{source}/")
            }
    return unflatten(leaves)


def scp_loss(model: ClaraModel, params: Any, batch: Batch, objective: Objective, keys: jax.Array | None) -> Terms:
    """L = L_CE + λ L_MSE (section 2.2): compress every document of a row and generate the target from all of them.

    Salient compressor pretraining has one document per row; instruction tuning has several.
    """
    documents = _encode_documents(model, params, batch, keys)
    mse = jnp.sum(alignment_loss(documents, batch.document_valid, objective.mse_reduction))
    return _answer(model, params, batch, documents.memory, keys) | {"mse": mse}


def end_to_end_loss(
    model: ClaraModel, params: Any, batch: Batch, objective: Objective, keys: jax.Array | None
) -> Terms:
    """L = -Σ_t log p(a_t | q, M_(1:k), a_<t) (section 3): rank, select k, answer; no relevance labels.

    The compressor is frozen, so that documents can be compressed once: no gradient and no dropout in their branch.
    """
    scores, documents, _ = rank_documents(model, params, batch, keys)
    k = min(objective.top_k, documents.shape[1])
    selection, indices = straight_through_topk(scores, k, objective.temperature, batch.document_valid)
    selected = jnp.einsum("BKD,BDME->BKME", selection.astype(documents.dtype), documents)
    terms = _answer(model, params, batch, selected, keys)
    if batch.positives is not None:
        terms["recall"] = jnp.sum(recall(indices, batch.positives & batch.document_valid))
    return terms


def retrieval_loss(model: ClaraModel, params: Any, batch: Batch, objective: Objective, keys: jax.Array | None) -> Terms:
    """Contrastive training of the query reasoner, several positives allowed."""
    scores, documents, _ = rank_documents(model, params, batch, keys)
    loss = contrastive_loss(scores, batch.positives, batch.document_valid, objective.temperature)
    k = min(objective.top_k, documents.shape[1])
    _, indices = straight_through_topk(scores, k, objective.temperature, batch.document_valid)
    return {"contrastive": jnp.sum(loss), "recall": jnp.sum(recall(indices, batch.positives & batch.document_valid))}


def rank_documents(
    model: ClaraModel, params: Any, batch: Batch, keys: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cosine scores [B, D], document memories [B, D, M, E] without gradient, query memory [B, M, E]."""
    documents = batch.memories
    if documents is None:
        documents = jax.lax.stop_gradient(_encode_documents(model, params, batch, None).memory)
    query = encode(model, params, "query_reasoner", batch.query_ids, batch.query_mask, _fold(keys, 1)).memory
    return cosine_scores(query, documents), documents, query


def recall(indices: jax.Array, positives: jax.Array) -> jax.Array:
    """Recall@k: the fraction of a row's positives among the indices [B, K]; float32 [B], 0 without positives."""
    chosen = jnp.any(indices[..., None] == jnp.arange(positives.shape[-1], dtype=indices.dtype), axis=1)
    found, total = jnp.sum(chosen & positives, axis=-1), jnp.sum(positives, axis=-1)
    return found / jnp.maximum(total, 1).astype(jnp.float32)


def _encode_documents(model: ClaraModel, params: Any, batch: Batch, keys: jax.Array | None) -> Encoded:
    """Each row's documents: memory [B, D, M, E], mean text state [B, D, E]."""
    if batch.memory_at is not None:  # a row's documents are one sequence
        ids, mask = batch.document_ids[:, 0], batch.document_mask[:, 0]
        return encode(model, params, "compressor", ids, mask, _fold(keys, 2), batch.memory_at)
    # All documents of all rows are one flat batch of B · D texts.
    count = batch.document_ids.shape[1]
    flat_keys = None
    if keys is not None:
        numbers = jnp.arange(2, 2 + count)
        flat_keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(keys, numbers)
        flat_keys = join_rows(flat_keys)
    ids, mask = join_rows(batch.document_ids), join_rows(batch.document_mask)
    flat = encode(model, params, "compressor", ids, mask, flat_keys)
    return jax.tree.map(lambda x: split_rows(x, count), flat)


def _answer(model: ClaraModel, params: Any, batch: Batch, memories: jax.Array, keys: jax.Array | None) -> Terms:
    x = splice(model, params, batch.prompt_ids, batch.memory_index, memories)
    dropout = model.dropout(_fold(keys, 0), batch.prompt_mask)
    states, _ = model.forward(params, "generator", x, batch.prompt_mask, dropout=dropout)
    if batch.targets_at is None:
        length, targets = states.shape[1], batch.labels.shape[1]
        before = states[:, length - targets - 1 : length - 1]
    else:
        before = jnp.take_along_axis(states, jnp.maximum(batch.targets_at - 1, 0)[..., None], axis=1)
    ce, correct = language_model_loss(model, params, before, batch.labels)
    return {"ce": ce, "accuracy": correct}


def _fold(keys: jax.Array | None, number: int) -> jax.Array | None:
    """Keys of any shape, each with the number folded in."""
    if keys is None:
        return None
    fold = jax.random.fold_in
    for _ in keys.shape:
        fold = jax.vmap(fold, (0, None))
    return fold(keys, number)


def _compression_weights(objective: Objective) -> dict[str, float]:
    return {"ce": 1.0, "mse": objective.mse_weight}


STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "scp", "stage1", ("lora/compressor", "lora/generator", "tokens/memory"), {}, scp_loss, _compression_weights
        ),
        Stage(
            "instruct",
            "stage1_2",
            ("lora/compressor", "lora/generator", "tokens/memory"),
            {},
            scp_loss,
            _compression_weights,
        ),
        # The released code also moves the memory tokens' rows here. They are the compressor's input too: moving them
        # would change every compressed document, so they stay as they are unless the configuration's `trains` says
        # otherwise.
        Stage(
            "end_to_end",
            "stage2",
            ("lora/query_reasoner", "lora/generator"),
            {"lora/query_reasoner": "lora/compressor"},
            end_to_end_loss,
            lambda objective: {"ce": 1.0},
        ),
        Stage(
            "retrieval",
            "stage2_pretrain_retrieval",
            ("lora/query_reasoner",),
            {"lora/query_reasoner": "lora/compressor"},
            retrieval_loss,
            lambda objective: {"contrastive": 1.0},
        ),
    )
}
