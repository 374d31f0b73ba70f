"""Answers token by token: a prompt is read in one pass, then a jitted loop reads and chooses one token of each row at a
time.

Nothing here depends on what other rows do: a row has its own length, its own way of choosing and its own random draws,
so an answer is the same whatever it is decoded together with.
"""

from __future__ import annotations

import dataclasses
import numbers
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from clara_jax.errors import ClaraError
from clara_jax.method.clara import ClaraModel
from clara_jax.method.generator import splice
from clara_jax.model.cache import Past, empty
from clara_jax.model.sharding import BATCH
from clara_jax.model.transformer import join_logits

# What some row of a program may need: the likeliest token alone, draws from all tokens, or from a nucleus.
Mode = Literal["greedy", "sample", "nucleus"]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: greedily at temperature 0, else from the nucleus of probability ``top_p``."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self):
        if not isinstance(self.max_new_tokens, int) or self.max_new_tokens < 1:
            raise ClaraError(f"max_new_tokens: {self.max_new_tokens!r} is not a positive whole number")
        for name in ("temperature", "top_p"):
            if not isinstance(getattr(self, name), numbers.Real):
                raise ClaraError(f"{name}: {getattr(self, name)!r} is no number")
        if not self.temperature >= 0:
            raise ClaraError(f"temperature: {self.temperature!r} must be 0 (greedy) or above")
        if not 0 < self.top_p <= 1:
            raise ClaraError(f"top_p: {self.top_p!r} must be above 0 and at most 1")

    @property
    def mode(self) -> Mode:
        return "greedy" if self.temperature == 0 else "sample" if self.top_p == 1 else "nucleus"


@flax.struct.dataclass
class Rows:
    """Where the sequences of a batch stand.

    Attributes:
      token: int32 [B], chosen and not yet read by the model.
      count: int32 [B], tokens chosen so far.
      limit: int32 [B], how many may be chosen.
      done: bool [B], nothing more is chosen.
      log_probability: float32 [B], of the chosen tokens under the model, together.
      temperature, top_p: float32 [B].
      seed: uint32 [B]; the draw of a row's n-th token depends on its seed and n alone.
    """

    token: jax.Array
    count: jax.Array
    limit: jax.Array
    done: jax.Array
    log_probability: jax.Array
    temperature: jax.Array
    top_p: jax.Array
    seed: jax.Array


def fresh(limit: jax.Array, temperature: jax.Array, top_p: jax.Array, seed: jax.Array) -> Rows:
    """Rows [B] of which nothing has been chosen yet."""
    zero = jnp.zeros_like(limit)
    return Rows(zero, zero, limit, limit < 1, zero.astype(jnp.float32), temperature, top_p, seed)


class Generated(NamedTuple):
    """Tokens int32 [B, max_new_tokens], ended by (and padded with) the end token; how many count, int32 [B], the end
    token not among them; the sum of their log-probabilities under the model, float32 [B], the end token's included."""

    tokens: jax.Array
    lengths: jax.Array
    log_probability: jax.Array


@partial(jax.jit, static_argnames=("model", "sampling", "end_ids"))
def generate(
    model: ClaraModel,
    params: Any,
    prompt_ids: jax.Array,
    prompt_mask: jax.Array,
    memory_index: jax.Array,
    memories: jax.Array | None,
    seeds: jax.Array,
    sampling: Sampling,
    end_ids: tuple[int, ...],
) -> Generated:
    """Continues prompts in which memories stand: one program for a whole batch.

    Args:
      prompt_ids, prompt_mask, memory_index: [B, T], padded anywhere.
      memories: [B, K, M, E]; None where all is text.
      seeds: uint32 [B], of sampling.
      end_ids: tokens that end an answer.
    """
    shape, limit = prompt_ids.shape[:1], sampling.max_new_tokens

    def same(value: float, dtype: jnp.dtype) -> jax.Array:
        return jnp.full(shape, value, dtype, out_sharding=jax.P(BATCH))

    rows = fresh(
        same(limit, jnp.int32), same(sampling.temperature, jnp.float32), same(sampling.top_p, jnp.float32), seeds
    )
    # What is not attended goes behind what is, in the same order.
    order = jnp.argsort(~prompt_mask, axis=1, stable=True)
    ids, mask, index = (jnp.take_along_axis(x, order, axis=1) for x in (prompt_ids, prompt_mask, memory_index))
    state, past = read(model, params, ids, mask, index, memories, ())
    rows = choose(model, params, state, rows, sampling.mode, end_ids)
    first = rows.token
    if limit > 1:
        rows, behind, _ = decode(model, params, (past,), rows, limit - 1, sampling.mode, end_ids)
        tokens = jnp.concatenate([first[:, None], behind], axis=1)
    else:
        tokens = first[:, None]
    ended = jnp.any(tokens[:, :, None] == jnp.asarray(end_ids, jnp.int32), axis=2)
    return Generated(tokens, jnp.sum(jnp.cumsum(ended, axis=1) == 0, axis=1, dtype=jnp.int32), rows.log_probability)


def role_of(params: Any) -> str | None:
    """The adapter that answers are written with, or None where it is in the base (`clara_jax.inference.weights`)."""
    return "generator" if "generator" in params["lora"] else None


def read(
    model: ClaraModel,
    params: Any,
    ids: jax.Array,
    mask: jax.Array,
    memory_index: jax.Array,
    memories: jax.Array | None,
    past: tuple[Past, ...],
) -> tuple[jax.Array, Past]:
    """Prefill: the state of the last token of each row, [B, 1, E], and the tokens' keys and values.

    Args:
      ids, mask, memory_index: [B, T], padded on the right.
      memories: [B, K, M, E] or None, as for `splice`.
      past: what stands before, part by part.
    """
    x = splice(model, params, ids, memory_index, memories)
    states, kept = model.forward(params, role_of(params), x, mask, past, keep=True)
    last = jnp.maximum(kept.lengths - 1, 0)[:, None, None]
    return jnp.take_along_axis(states, last, axis=1), kept


def decode(
    model: ClaraModel,
    params: Any,
    past: tuple[Past, ...],
    rows: Rows,
    steps: int,
    mode: Mode,
    end_ids: tuple[int, ...],
) -> tuple[Rows, jax.Array, Past]:
    """Up to ``steps`` tokens of each row; ends early when all rows are done.

    What was read before stays as it is, and the loop carries the keys and values of its own tokens alone: a few slots
    instead of all.

    Returns:
      the rows; the chosen tokens, int32 [B, steps], the first end token behind the last one; keys and values of the
      tokens that were read, [L, B, G, steps, C], of a row that is not done all that the loop has run over.
    """
    batch = len(rows.token)
    tokens = jnp.full((batch, steps), end_ids[0], jnp.int32, out_sharding=jax.P(BATCH, None))
    everywhere = jnp.ones((batch, 1), bool, out_sharding=jax.P(BATCH, None))

    def body(carry):
        step, rows, tokens, recent = carry
        x = model.embed(params, rows.token[:, None])
        # A finished row goes on reading: its slots are its own, so nothing else sees them.
        states, new = model.forward(params, role_of(params), x, everywhere, (*past, recent), keep=True)
        rows = choose(model, params, states, rows, mode, end_ids)
        # One slot for all rows, so that a slice is written and nothing scattered.
        k, v = (
            jax.lax.dynamic_update_slice(old, own.astype(old.dtype), (0, 0, 0, step, 0))
            for old, own in ((recent.k, new.k), (recent.v, new.v))
        )
        tokens = jax.lax.dynamic_update_slice(tokens, rows.token[:, None], (0, step))
        return step + 1, rows, tokens, Past(k, v, recent.lengths + 1)

    carry = jnp.int32(0), rows, tokens, empty(model.config, batch, steps, past[0].k.dtype)
    _, rows, tokens, recent = jax.lax.while_loop(lambda c: (c[0] < steps) & ~jnp.all(c[1].done), body, carry)
    return rows, tokens, recent


def choose(model: ClaraModel, params: Any, states: jax.Array, rows: Rows, mode: Mode, end_ids: tuple[int, ...]) -> Rows:
    """The rows with the next token chosen from the states [B, 1, E]; those that are done get the first end token."""
    logits = join_logits(*model.logits(params, states))[:, 0]
    token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if mode != "greedy":
        scaled = logits / jnp.where(rows.temperature > 0, rows.temperature, 1)[:, None]
        if mode == "nucleus":
            scaled = _nucleus(scaled, rows.top_p)
        drawn = jnp.argmax(scaled + _noise(rows, logits.shape[-1]), axis=-1).astype(jnp.int32)
        token = jnp.where(rows.temperature > 0, drawn, token)
    ends = jnp.asarray(end_ids, jnp.int32)
    token = jnp.where(rows.done, ends[0], token)
    picked = jnp.sum(jnp.where(jnp.arange(logits.shape[-1]) == token[:, None], logits, 0), axis=-1)
    own = picked - jax.nn.logsumexp(logits, axis=-1)
    count = rows.count + ~rows.done
    return rows.replace(
        token=token,
        count=count,
        done=rows.done | jnp.any(token[:, None] == ends, axis=1) | (count >= rows.limit),
        log_probability=rows.log_probability + jnp.where(rows.done, 0, own),
    )


def _nucleus(scaled: jax.Array, top_p: jax.Array) -> jax.Array:
    """Logits [B, V] with those outside the nucleus at -inf. Tokens as likely as its last one are inside, too."""
    ranked = jnp.sort(scaled, axis=-1, descending=True)
    likely = jax.nn.softmax(ranked, axis=-1)
    # A token stays when the probability before it is below top_p: the most likely one always does.
    inside = jnp.cumsum(likely, axis=-1) - likely < top_p[:, None]
    last = jnp.min(jnp.where(inside, ranked, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(scaled >= last, scaled, -jnp.inf)


def _noise(rows: Rows, size: int) -> jax.Array:
    def row(seed: jax.Array, count: jax.Array) -> jax.Array:
        return jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), count), (size,))

    return jax.vmap(row)(rows.seed, rows.count)
