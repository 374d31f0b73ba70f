"""The training stages: one loss each, and the subtrees that it trains.

A loss is a sum of terms, each a mean over a different count (labelled tokens, documents, questions with a gold
document). The counts are those of the whole batch, known before any part of it is run, so the losses and gradients of
microbatches simply add up to those of the batch. A term's name holds its sum until `objective_value` divides it.

Optimizer, schedules, batches and candidates of Table 10 are in `clara_jax.training.stage_config`, whose
`StageConfig.hyperparameters` makes the `Objective` here, and in configs/.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, overload

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Int32, Key, ScalarLike

from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.batches import Batch, DistinctSequences, Sequences, StoredMemories
from clara_jax.input_pipeline.tokenization import IGNORED
from clara_jax.method.appendix.marginal import document_log_likelihoods, marginal_loss
from clara_jax.method.clara import ClaraModel
from clara_jax.method.compressor import Encoded, alignment_loss, encode, encode_before_map
from clara_jax.method.estimators.methods import METHODS, select
from clara_jax.method.generator import CE_OVER, RECORDS, TOKENS, answer_terms, label_weights
from clara_jax.method.memory_map import calibrated_map, pool_runs
from clara_jax.method.parameters import MAP, flatten, overlap, unflatten
from clara_jax.method.reranker import contrastive_loss, relevance_scores
from clara_jax.method.topk import DEGENERATE, degenerate
from clara_jax.model.sharding import Array, join_rows, microbatches, reshape_rows, split_rows

NORMALIZATIONS = ("none", "standard")
# What is folded into an example's key, by what draws from it: document d has DOCUMENTS + d. Documents and the noise of
# the top-k share a number, as no stage has both.
PROMPT, QUERY, DOCUMENTS, NOISE = 0, 1, 2, 2


@dataclasses.dataclass(frozen=True)
class Objective:
    """Hyperparameters of a loss: λ and k of Table 10, the released code's τ, and this project's other fields.

    Temperature and scaffold may be arrays, where they change with the step.
    """

    ce_over: str = TOKENS  # L_CE is a mean over labelled "tokens" (the released code), or over the means of "records"
    scaffold: float | jax.Array = 0.0  # β of the memory map, see `clara_jax.method.memory_map`
    mse_weight: float = 0.1  # λ
    mse_reduction: str = "mean"  # over channels: "mean" as the released code, "sum" as the paper's formula
    top_k: int = 5  # k
    temperature: float | jax.Array = 0.02  # τ
    topk_method: str = "iterative"  # whose gradient replaces that of the choice, one of `METHODS`
    score_normalization: str = "none"  # or "standard": to mean 0 and deviation 1 over a question's candidates
    # Of the probability path, a mean over questions where L_CE is one over tokens: see
    # `clara_jax.method.appendix.marginal`.
    marginal_weight: float = 0.0

    def __post_init__(self):
        if self.mse_reduction not in ("mean", "sum"):
            raise ClaraError(
                f'mse_reduction: {self.mse_reduction!r} must be "mean" (released code) or "sum" (the paper\'s formula)'
            )
        if self.top_k < 1:
            raise ClaraError(f"top_k: {self.top_k!r} must be at least 1")
        if isinstance(self.temperature, float) and self.temperature <= 0:
            raise ClaraError(f"temperature: {self.temperature!r} must be above 0")
        choices = (("topk_method", METHODS), ("score_normalization", NORMALIZATIONS), ("ce_over", CE_OVER))
        for field, names in choices:
            if getattr(self, field) not in names:
                raise ClaraError(f"{field}: {getattr(self, field)!r} must be one of {', '.join(names)}")


Terms = dict[str, jax.Array]  # sums over the examples of a batch, by term
Loss = Callable[[ClaraModel, Any, Batch, Objective, jax.Array | None], Terms]


@dataclasses.dataclass(frozen=True)
class Stage:
    """A training stage.

    Attributes:
      reference_name: its name in the released code; "" for a stage that is not in it.
      trains: paths of the subtrees it trains by default.
      starts_from: subtree -> subtree it is copied from, unless an earlier stage has trained it.
      loss: (model, params, batch, objective, keys [B, S] or None) -> sums of its terms.
      weights: objective -> weight of each term in the loss; other terms are only reported.
    """

    name: str
    reference_name: str
    trains: tuple[str, ...]
    starts_from: Mapping[str, str]
    loss: Loss
    weights: Callable[[Objective], Mapping[str, float]]


def counts(batch: Batch, ce_over: str = TOKENS) -> Terms:
    """Return the denominator of each term's mean over a batch.

    | term | number of |
    | --- | --- |
    | ce, accuracy | labelled tokens (ce with ``ce_over`` "records": records) |
    | mse | documents |
    | contrastive, recall | questions with a positive document |
    | marginal | questions with a document |
    | nan_scores, too_few | questions |
    """
    labelled = jnp.sum(batch.prompt.labels != IGNORED)
    numbers = {"ce": labelled, "accuracy": labelled, "mse": jnp.sum(batch.document_valid)}
    if ce_over == RECORDS:
        numbers["ce"] = jnp.sum(label_weights(batch.prompt))
    if batch.positives is not None:
        numbers["contrastive"] = numbers["recall"] = jnp.sum(jnp.any(batch.positives & batch.document_valid, axis=-1))
    if batch.query is not None:
        real = batch.example_ids[:, 0] >= 0
        numbers["marginal"] = jnp.sum(real & jnp.any(batch.document_valid, axis=-1))
        numbers |= dict.fromkeys(DEGENERATE, jnp.sum(real))
    return {name: number.astype(jnp.float32) for name, number in numbers.items()}


def objective_value(
    stage: Stage, objective: Objective, terms: Mapping[str, ScalarLike], counted: Mapping[str, ScalarLike]
) -> tuple[jax.Array, Terms]:
    """Return the loss Σ weight · sum / count, and every term as sum / count."""
    means = {name: jnp.asarray(value) / jnp.maximum(counted[name], 1) for name, value in terms.items()}
    return sum((weight * means[name] for name, weight in stage.weights(objective).items()), jnp.float32(0)), means


def inherit(stage: Stage, params: Any, trained: Iterable[str]) -> Any:
    """Return the parameters that a stage begins with.

    Targets of ``starts_from`` that no earlier stage has trained are copies of their sources.
    """
    leaves = flatten(params)
    for target, source in stage.starts_from.items():
        if not any(overlap(target, subtree) for subtree in trained):
            leaves |= {
                path.replace(source, target, 1): leaf for path, leaf in leaves.items() if path.startswith(f"{source}/")
            }
    return unflatten(leaves)


def scp_loss(model: ClaraModel, params: Any, batch: Batch, objective: Objective, keys: jax.Array | None) -> Terms:
    """Return the terms of L = L_CE + λ L_MSE (section 2.2): all documents are compressed, all condition the target.

    Salient compressor pretraining has one document per row; instruction tuning has several.
    """
    assert isinstance(batch.documents, Sequences)  # only stages with a frozen compressor have others
    documents = encode_documents(model, params, batch.documents, keys, objective.scaffold)
    mse = jnp.sum(alignment_loss(documents, batch.document_valid, objective.mse_reduction))
    return answer_terms(model, params, batch.prompt, documents.memory, _fold(keys, PROMPT), objective.ce_over) | {
        "mse": mse
    }


def text_loss(model: ClaraModel, params: Any, batch: Batch, objective: Objective, keys: jax.Array | None) -> Terms:
    """Return the terms of L = L_CE over prompts with documents as plain text: the baseline without compression."""
    return answer_terms(model, params, batch.prompt, None, _fold(keys, PROMPT), objective.ce_over)


def end_to_end_loss(
    model: ClaraModel, params: Any, batch: Batch, objective: Objective, keys: jax.Array | None
) -> Terms:
    """Return the terms of L = -Σ_t log p(a_t | q, M_(1:k), a_<t) (section 3): rank, select k, answer.

    It needs no relevance labels. The compressor is frozen, so that documents can be compressed once: no gradient and no
    dropout in their branch.
    """
    scores, documents, _ = rank_documents(model, params, batch, keys)
    scores = normalize(scores, batch.document_valid, objective.score_normalization)
    terms, selected, indices = answer_from_best(model, params, batch, objective, scores, documents, keys)
    terms |= _degenerate(scores, batch, objective)
    if objective.marginal_weight:
        terms["marginal"] = jnp.sum(selected_marginal_loss(model, params, batch, objective, scores, selected, indices))
    if batch.positives is not None:
        terms["recall"] = jnp.sum(recall(indices, batch.positives & batch.document_valid))
    return terms


def answer_from_best(
    model: ClaraModel,
    params: Any,
    batch: Batch,
    objective: Objective,
    scores: Float32[jax.Array, "B D"],
    documents: Float[Array, "B D M E"],
    keys: Key[jax.Array, "B S"] | None,
) -> tuple[Terms, Float[jax.Array, "B K M E"], Int32[jax.Array, "B K"]]:
    """Return L_CE as a function of the scores [B, D], through the straight-through choice among memories [B, D, M, E].

    Returns:
      the sums "ce" and "accuracy"; memories of the selected documents [B, K, M, E]; their indices int32 [B, K].
    """
    noise = None if keys is None else _fold(keys, NOISE)[:, 0]
    selection, indices = select(
        scores, objective.top_k, objective.topk_method, objective.temperature, batch.document_valid, noise
    )
    selected = jnp.einsum("BKD,BDME->BKME", selection.astype(documents.dtype), documents)
    terms = answer_terms(model, params, batch.prompt, selected, _fold(keys, PROMPT), objective.ce_over)
    return terms, selected, indices


def selected_marginal_loss(
    model: ClaraModel,
    params: Any,
    batch: Batch,
    objective: Objective,
    scores: Float32[jax.Array, "B D"],
    selected: Float[jax.Array, "B K M E"],
    indices: Int32[jax.Array, "B K"],
) -> Float32[jax.Array, " B"]:
    """Return -log Σ_d p(d|x) p(y|x, d) of each question, d over the documents that `answer_from_best` selected.

    Its gradient in the scores [B, D] is the probability path of appendix A (`clara_jax.method.appendix.marginal`);
    float32 [B].
    """
    likelihoods = document_log_likelihoods(model, params, batch.prompt, selected)
    chosen, exist = (jnp.take_along_axis(x, indices, axis=1) for x in (scores, batch.document_valid))
    return marginal_loss(chosen, exist, likelihoods, objective.temperature)


def retrieval_loss(model: ClaraModel, params: Any, batch: Batch, objective: Objective, keys: jax.Array | None) -> Terms:
    """Return the terms of the query reasoner's contrastive loss; a row may have several positives."""
    assert batch.positives is not None  # records of this stage have relevance labels
    scores, valid = rank_documents(model, params, batch, keys)[0], batch.document_valid
    scores = normalize(scores, valid, objective.score_normalization)
    loss = contrastive_loss(scores, batch.positives, valid, objective.temperature)
    _, indices = select(scores, objective.top_k, objective.topk_method, objective.temperature, valid)
    terms = {"contrastive": jnp.sum(loss), "recall": jnp.sum(recall(indices, batch.positives & valid))}
    return terms | _degenerate(scores, batch, objective)


def compress_distinct(model: ClaraModel, params: Any, batch: Batch, parts: int = 1) -> Batch:
    """Return the batch with memories in place of its distinct documents, each compressed once.

    There is neither gradient nor dropout. A batch of other documents is returned as it is.

    Args:
      model: backbone and hyperparameters.
      params: the model's parameters.
      batch: of any documents.
      parts: number of parts that are compressed one after the other, so that memory suffices for a microbatch each.
    """
    if not isinstance(batch.documents, DistinctSequences):
        return batch

    def compress(texts: Sequences) -> jax.Array:
        return encode(model, params, "compressor", texts).memory[:, 0]

    texts, index = batch.documents.texts, batch.documents.index
    if parts == 1:
        memory = compress(texts)
    else:
        by_part = jax.lax.map(compress, jax.tree.map(lambda x: microbatches(x, parts), texts))
        memory = join_rows(jnp.moveaxis(by_part, 0, 1))
    # A row's documents may have been compressed on any device.
    whole = jax.reshard(jax.lax.stop_gradient(memory), jax.P(*(None for _ in memory.shape)))
    rows = jax.P(jax.typeof(index).sharding.spec[0], *(None for _ in memory.shape))
    placed = whole.at[index].get(out_sharding=rows)
    vectors = jnp.where(batch.document_valid[..., None, None], placed, 0)
    return dataclasses.replace(batch, documents=StoredMemories(vectors))


def rank_documents(
    model: ClaraModel, params: Any, batch: Batch, keys: Key[jax.Array, "B S"] | None
) -> tuple[Float32[jax.Array, "B D"], Float[Array, "B D M E"], Float[jax.Array, "B M E"]]:
    """Return scores [B, D], document memories [B, D, M, E] without gradient, and query memory [B, M, E]."""
    assert batch.query is not None  # batches of stages that rank have questions
    found = compress_distinct(model, params, batch).documents
    if isinstance(found, StoredMemories):
        documents = found.vectors
    else:
        assert isinstance(found, Sequences)
        documents = jax.lax.stop_gradient(encode_documents(model, params, found).memory)
    query = encode(model, params, "query_reasoner", batch.query, _fold(keys, QUERY)).memory[:, 0]
    return relevance_scores(query, documents, model.clara.memory_count), documents, query


def normalize(
    scores: Float32[jax.Array, "B D"], valid: Bool[Array, "B D"], normalization: str
) -> Float32[jax.Array, "B D"]:
    """Return the scores [B, D] that the temperature divides.

    "standard" gives them mean 0 and standard deviation 1 over a row's candidates, so that a temperature means the same
    for every model; their order does not change.
    """
    if normalization == "none":
        return scores
    count = jnp.maximum(jnp.sum(valid, axis=-1, keepdims=True), 1)
    centred = jnp.where(valid, scores - jnp.sum(jnp.where(valid, scores, 0), axis=-1, keepdims=True) / count, 0)
    return centred * jax.lax.rsqrt(jnp.sum(centred**2, axis=-1, keepdims=True) / count + 1e-12)


def recall(indices: Int32[jax.Array, "B K"], positives: Bool[Array, "B D"]) -> Float32[jax.Array, " B"]:
    """Return Recall@k, the fraction of a row's positives among the indices [B, K]; float32 [B], 0 without positives."""
    chosen = jnp.any(indices[..., None] == jnp.arange(positives.shape[-1], dtype=indices.dtype), axis=1)
    found, total = jnp.sum(chosen & positives, axis=-1), jnp.sum(positives, axis=-1)
    return found / jnp.maximum(total, 1).astype(jnp.float32)


def encode_documents(
    model: ClaraModel,
    params: Any,
    documents: Sequences,
    keys: Key[jax.Array, "B S"] | None = None,
    scaffold: ScalarLike = 0.0,
) -> Encoded:
    """Encode the documents of a batch.

    Args:
      model: backbone and hyperparameters.
      params: the model's parameters.
      documents: rows [B, R, T] of S documents each: R documents of an example, each in a row (S = 1), or S of a packed
        batch in one row (R = 1).
      keys: PRNG keys [B, S], for dropout; None without.
      scaffold: β, as of `encode`.

    Returns:
      memories [B, D, M, E] and mean states [B, D, E], D = R · S.
    """
    count = documents.ids.shape[1]
    if keys is not None:
        # Numbers are folded in one by one: JAX does not fold a vector of them into the split keys of a single row.
        keys = join_rows(jnp.stack([_fold(keys, DOCUMENTS + number) for number in range(count)], axis=1))
    flat = encode(model, params, "compressor", jax.tree.map(join_rows, documents), keys, scaffold)
    return jax.tree.map(lambda x: reshape_rows(split_rows(x, count), -1, *x.shape[2:]), flat)


def calibrate(model: ClaraModel, params: Any, batch: Batch, strength: float) -> dict[str, jax.Array]:
    """Return initial values of the memory map for the documents of a batch, see `calibrated_map`."""
    assert isinstance(batch.documents, Sequences)  # stages that train the map have texts
    texts = jax.tree.map(join_rows, batch.documents)
    x, encoded = encode_before_map(model, params, "compressor", texts, None)
    valid = reshape_rows(batch.document_valid, batch.documents.ids.shape[1], -1)  # [B, D, S]
    return calibrated_map(encoded.memory, pool_runs(x, texts), join_rows(valid), strength)


def _degenerate(scores: jax.Array, batch: Batch, objective: Objective) -> Terms:
    """Count the rows that could not be ranked properly, see `degenerate`; padding rows are left out."""
    found = degenerate(scores, objective.top_k, batch.document_valid)
    return {name: jnp.sum(rows & (batch.example_ids[:, 0] >= 0), dtype=jnp.float32) for name, rows in found.items()}


@overload
def _fold(keys: jax.Array, number: int) -> jax.Array: ...


@overload
def _fold(keys: None, number: int) -> None: ...


@overload
def _fold(keys: jax.Array | None, number: int) -> jax.Array | None: ...


def _fold(keys: jax.Array | None, number: int) -> jax.Array | None:
    """Fold a number into each of the keys, which have any shape."""
    if keys is None:
        return None
    fold = jax.random.fold_in
    for _ in keys.shape:
        fold = jax.vmap(fold, (0, None))
    return fold(keys, number)


def _compression_weights(objective: Objective) -> dict[str, float]:
    return {"ce": 1.0, "mse": objective.mse_weight}


def _end_to_end_weights(objective: Objective) -> dict[str, float]:
    return {"ce": 1.0} | ({"marginal": objective.marginal_weight} if objective.marginal_weight else {})


COMPRESSION = ("lora/compressor", "lora/generator", "tokens/memory", MAP)  # what the stages before ranking train
STAGES = {
    stage.name: stage
    for stage in (
        Stage("scp", "stage1", COMPRESSION, {}, scp_loss, _compression_weights),
        Stage("instruct", "stage1_2", COMPRESSION, {}, scp_loss, _compression_weights),
        # From text alone: the target is the document itself, or its continuation.
        Stage("autoencode", "", COMPRESSION, {}, scp_loss, _compression_weights),
        Stage("continue", "", COMPRESSION, {}, scp_loss, _compression_weights),
        # The released code also trains the memory tokens' rows here. They are the compressor's input too: training them
        # would change every compressed document, so they are frozen unless the configuration's `trains` lists them.
        Stage(
            "end_to_end",
            "stage2",
            ("lora/query_reasoner", "lora/generator"),
            {"lora/query_reasoner": "lora/compressor"},
            end_to_end_loss,
            _end_to_end_weights,
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


def stage_kind(name: str) -> str:
    """Return the one of `STAGES` that a name stands for.

    It is the name itself, or the longest stage that the name begins with, followed by "_"; the name as it is where
    there is none.
    """
    fitting = [stage for stage in STAGES if name == stage or name.startswith(f"{stage}_")]
    return max(fitting, key=len, default=name)


def as_text(stage: Stage) -> Stage:
    """Return the stage with documents as plain text in the prompt, which trains the generator's adapter only."""
    return dataclasses.replace(
        stage, trains=("lora/generator",), starts_from={}, loss=text_loss, weights=lambda objective: {"ce": 1.0}
    )
