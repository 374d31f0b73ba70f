"""Attention of the generator when it chooses an answer's first token: to memories, text, and the first token."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clara_jax.analysis.section import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    compared,
    draw,
    embed,
    legend,
    percent,
    section,
)
from clara_jax.checkpoints.bundle import Bundle
from clara_jax.distributed import gather
from clara_jax.inference.encode import LENGTH_MULTIPLE
from clara_jax.input_pipeline import prompts
from clara_jax.memory_count import existing
from clara_jax.method.clara import ClaraModel
from clara_jax.method.generator import splice
from clara_jax.model.sharding import BATCH, put_batch


@partial(jax.jit, static_argnums=0)
def last_token_attention(
    model: ClaraModel, params: Any, ids: jax.Array, mask: jax.Array, memory_index: jax.Array, memories: jax.Array
) -> jax.Array:
    """Return the attention weights of each prompt's last token, from which the answer's first token comes.

    All tokens but the last are prefilled as usual; then the queries of the last one are compared with all keys.

    Args:
      model: the generator's model.
      params: all parameters.
      ids: int32 [B, T], padded on the right.
      mask: bool [B, T], True at tokens.
      memory_index: int32 [B, T], the memory vector at each position, -1 at text.
      memories: [B, K, M, E].

    Returns:
      float32 [L, B, H, T]; every attended row sums to one.
    """
    at = jnp.arange(ids.shape[1])
    last = jnp.maximum(jnp.sum(mask, axis=1, dtype=jnp.int32) - 1, 0)
    x = splice(model, params, ids, memory_index, memories)
    _, cache = model.forward(params, "generator", x, mask & (at < last[:, None]), return_kv=True)
    x = jnp.take_along_axis(x, last[:, None, None], axis=1)
    q, of_last = model.queries(params, "generator", x, jnp.any(mask, axis=1, keepdims=True), (cache,))
    keys = cache.put(of_last, last).k  # [L, B, G, T, C]
    # Replicated over "model": the scores of one token are not worth a split of the heads.
    q, keys = (jax.reshard(part, jax.P(None, BATCH)).astype(jnp.float32) for part in (q[:, :, 0], keys))
    layers, batch, heads, channels = q.shape
    q = q.reshape(layers, batch, keys.shape[2], -1, channels)
    scores = jnp.einsum("LBGQC,LBGSC->LBGQS", q, keys, precision="highest") * channels**-0.5
    seen = at <= last[:, None]
    if model.config.sliding_window is not None:
        seen &= at > last[:, None] - model.config.sliding_window
    weights = jax.nn.softmax(jnp.where(seen[:, None, None], scores, jnp.finfo(jnp.float32).min), axis=-1)
    return weights.reshape(layers, batch, heads, -1)


@dataclasses.dataclass(frozen=True)
class Shares:
    """Shares of the attention of n prompts, means over heads; K documents at most.

    Attributes:
      documents: [n, L, K], onto the memory of each document, in the prompt's order; NaN where a prompt has fewer.
      first: [n, L], onto the first token of the prompt, the attention sink.
      places: [n], the share of the prompt's tokens that are memories, which uniform attention would give them.
    """

    documents: np.ndarray
    first: np.ndarray
    places: np.ndarray

    @property
    def memory(self) -> np.ndarray:
        """Return the share onto all memories, [n, L]."""
        return np.nansum(self.documents, axis=2)


def attention_shares(
    bundle: Bundle, questions: Sequence[str], memories: Sequence[np.ndarray], batch_size: int
) -> Shares:
    """Return the shares of attention of questions over their documents' memories.

    Args:
      bundle: the model.
      questions: n of them.
      memories: [K, M, E] of each question, in the order of the prompt.
      batch_size: prompts of a device call, a multiple of the mesh's batch shards.
    """
    tokens, config = bundle.model.clara.memory_tokens, bundle.model.config
    asked = [prompts.question(question, len(read)) for question, read in zip(questions, memories, strict=True)]
    pairs = zip(bundle.tokenizer.encode_prompts(asked), memories, strict=True)
    encoded = [one.only(existing(read, bundle.tokenizer.memory_count)) for one, read in pairs]
    length = -(-max(len(ids) for ids, _ in encoded) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    slots = max(map(len, memories))
    documents = np.full((len(encoded), config.layers, slots), np.nan)
    first, places = np.zeros((len(encoded), config.layers)), np.zeros(len(encoded))
    for start in range(0, len(encoded), batch_size):
        ids = np.full((batch_size, length), bundle.tokenizer.pad_id, np.int32)
        mask, index = np.zeros(ids.shape, bool), np.full(ids.shape, -1, np.int32)
        vectors = np.zeros((batch_size, slots, tokens, config.embed_dim), memories[0].dtype)
        part = memories[start : start + batch_size]
        for row, ((known, places_of), read) in enumerate(zip(encoded[start:], part, strict=False)):
            size = len(known)
            ids[row, :size], mask[row, :size], index[row, :size] = known, True, places_of
            vectors[row, : len(read)] = read
        with jax.set_mesh(bundle.mesh):
            arrays = put_batch((ids, mask, index, vectors), bundle.mesh)
            weights = gather(last_token_attention(bundle.model, bundle.params, *arrays)).mean(axis=2)
        for row, read in enumerate(memories[start : start + batch_size]):
            slot = index[row] // tokens  # -1 at text
            for number in range(len(read)):
                documents[start + row, :, number] = weights[:, row, slot == number].sum(axis=1)
            first[start + row] = weights[:, row, 0]
            places[start + row] = np.mean(slot[mask[row]] >= 0)
    return Shares(documents, first, places)


def by_rank(onto: np.ndarray, gold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean attention to right documents and to others at each rank, [K] each, NaN where there is none.

    Args:
      onto: [n, K], NaN where there is no document.
      gold: bool [n, K], which documents are right.
    """
    there = ~np.isnan(onto)
    kinds = (there & gold, there & ~gold)
    with np.errstate(invalid="ignore"):
        right, other = (np.where(kind, onto, 0).sum(0) / kind.sum(0) for kind in kinds)
    return right, other


def at_equal_rank(onto: np.ndarray, gold: np.ndarray) -> tuple[float, float]:
    """Return the mean attention to right documents and to others, as if both were at the same ranks.

    Right documents tend to come first, and first documents may be attended to for their place alone. Ranks without both
    kinds are left out, each other one has the weight n_right n_other / (n_right + n_other). NaN where no rank has both.
    """
    right, other = by_rank(onto, gold)
    there = ~np.isnan(onto)
    counts = np.array([(there & gold).sum(0), (there & ~gold).sum(0)], float)
    both = counts.min(0) > 0
    if not both.any():
        return float("nan"), float("nan")
    weights = counts.prod(0)[both] / counts.sum(0)[both]
    return float(np.average(right[both], weights=weights)), float(np.average(other[both], weights=weights))


def attention_section(shares: Shares, others: Shares | None, gold: np.ndarray, seed: int) -> dict[str, Any]:
    """Return the section of a report on attention.

    Args:
      shares: of n questions.
      others: of the same prompts with memories of other questions' documents, the control.
      gold: bool [n, K], which of the documents are right ones.
      seed: of the intervals.
    """
    memory, documents = shares.memory, np.nanmean(shares.documents, axis=1)  # [n, L], [n, K]
    text = (
        "Attention of the prompt's last token, from which the answer's first token comes; means over heads and "
        f"{len(memory)} questions. On average over layers, {percent(memory.mean())} of it goes onto memories, which "
        f"are {percent(shares.places.mean())} of the tokens, and {percent(shares.first.mean())} onto the first token, "
        "where attention goes that is not needed. "
    )
    if others is not None:
        text += (
            "With memories of another question's documents in the same places, the control, it is "
            f"{compared(others.memory.mean(1), memory.mean(1), seed)}. "
        )
    right, other = at_equal_rank(documents, gold)
    text += (
        "No place in the prompt holds right documents in some prompts and others in others, so they cannot be compared."
        if np.isnan(right)
        else f"At equal places, a right document gets {percent(right)}, another one {percent(other)}."
    )
    columns = ["layer", "memories", "first token", "other text", "a right document", "another at its place"]
    rows = []
    for layer in range(memory.shape[1]):
        onto = memory[:, layer].mean(), shares.first[:, layer].mean()
        equal = at_equal_rank(shares.documents[:, layer], gold)
        row = [layer + 1, *onto, 1 - sum(onto), *equal]
        rows.append(row if others is None else [*row, others.memory[:, layer].mean()])
    if others is not None:
        columns.append("memories of another question")
    return section("Attention onto memories", text, columns, rows, _picture(shares, by_rank(documents, gold)))


def _picture(shares: Shares, ranks: tuple[np.ndarray, np.ndarray]) -> str:
    figure, (layers, documents) = draw(2)
    memory, first = shares.memory.mean(0), shares.first.mean(0)
    at = np.arange(1, len(memory) + 1)
    parts = {"memories": (memory, BLUE), "first token": (first, GREY), "other text": (1 - memory - first, GREEN)}
    bottom = np.zeros(len(memory))
    for label, (part, colour) in parts.items():
        layers.bar(at, part, 0.9, bottom=bottom, color=colour, label=label)
        bottom += part
    layers.axhline(shares.places.mean(), color=ORANGE, linestyle="--", label="memories' share of tokens")
    layers.set_xlabel("layer")
    layers.set_ylabel("share of attention")
    legend(layers, below=True)
    places = np.arange(1, len(ranks[0]) + 1)
    for shift, label, values, colour in ((-0.2, "right", ranks[0], BLUE), (0.2, "other", ranks[1], GREY)):
        documents.bar(places + shift, np.nan_to_num(values), 0.4, color=colour, label=label)
    documents.set_xlim(0.4, len(places) + 0.6)
    documents.set_xlabel("document, in the prompt's order")
    documents.set_ylabel("share of attention")
    legend(documents, below=True)
    for axes in (layers, documents):
        axes.xaxis.get_major_locator().set_params(integer=True)
    return embed(figure)
