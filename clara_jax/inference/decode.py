"""Prefill and decoding: one pass over the prompts, then a loop that samples one token of each row at a time.

`generate` makes one program of both for a batch that begins and ends together; `clara_jax.inference.programs` makes
several of the same functions, for rows that come and go. Rows are independent: length, sampling and random draws are
per row, so an answer does not depend on the batch that it is decoded in.
"""

from __future__ import annotations

import dataclasses
import numbers
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Int32, UInt32

from clara_jax.errors import ClaraError
from clara_jax.method.clara import ClaraModel
from clara_jax.method.generator import splice
from clara_jax.model.cache import KVCache, empty
from clara_jax.model.sharding import BATCH
from clara_jax.model.transformer import join_logits

# Sampling that a program supports for every row: argmax only, draws from all tokens, or from a nucleus.
Mode = Literal["greedy", "sample", "nucleus"]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Sampling parameters: greedy at temperature 0, else draws from the nucleus of probability ``top_p``."""

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
        """The cheapest mode that these parameters need."""
        return "greedy" if self.temperature == 0 else "sample" if self.top_p == 1 else "nucleus"


@flax.struct.dataclass
class DecodeState:
    """The decoding state of a batch.

    Attributes:
      token: int32 [B], the last sampled token, which is the model's next input.
      count: int32 [B], tokens sampled so far.
      limit: int32 [B], the largest number of tokens.
      done: bool [B], rows that have ended.
      log_probability: float32 [B], sum over the sampled tokens under the model.
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


def initial_state(
    limit: Int32[jax.Array, " B"],
    temperature: Float32[jax.Array, " B"],
    top_p: Float32[jax.Array, " B"],
    seed: UInt32[jax.Array, " B"],
) -> DecodeState:
    """Return the state of rows [B] of which no token has been sampled yet."""
    zero = jnp.zeros_like(limit)
    return DecodeState(zero, zero, limit, limit < 1, zero.astype(jnp.float32), temperature, top_p, seed)


class Generated(NamedTuple):
    """Generated answers.

    Attributes:
      tokens: int32 [B, max_new_tokens], ended by (and padded with) the end token.
      lengths: int32 [B], tokens before the end token.
      log_probability: float32 [B], sum over the tokens under the model, the end token included.
    """

    tokens: jax.Array
    lengths: jax.Array
    log_probability: jax.Array


@partial(jax.jit, static_argnames=("model", "sampling", "end_ids"))
def generate(
    model: ClaraModel,
    params: Any,
    prompt_ids: Int32[jax.Array, "B T"],
    prompt_mask: Bool[jax.Array, "B T"],
    memory_index: Int32[jax.Array, "B T"],
    memories: Float[jax.Array, "B K M E"] | None,
    seeds: UInt32[jax.Array, " B"],
    sampling: Sampling,
    end_ids: tuple[int, ...],
) -> Generated:
    """Generate answers to prompts with memories, in one program for a whole batch.

    Args:
      model: backbone and hyperparameters.
      params: the model's parameters.
      prompt_ids: int32 [B, T], padded anywhere.
      prompt_mask: bool [B, T].
      memory_index: int32 [B, T], see `splice`.
      memories: [B, K, M, E]; None where all is text.
      seeds: uint32 [B], of sampling.
      sampling: for all rows.
      end_ids: tokens that end an answer.
    """
    shape, limit = prompt_ids.shape[:1], sampling.max_new_tokens

    def same(value: float, dtype: Any) -> jax.Array:
        return jnp.full(shape, value, dtype, out_sharding=jax.P(BATCH))

    state = initial_state(
        same(limit, jnp.int32), same(sampling.temperature, jnp.float32), same(sampling.top_p, jnp.float32), seeds
    )
    # Move padding to the right; the order of tokens does not change.
    order = jnp.argsort(~prompt_mask, axis=1, stable=True)
    ids, mask, index = (jnp.take_along_axis(x, order, axis=1) for x in (prompt_ids, prompt_mask, memory_index))
    last, cache = prefill(model, params, ids, mask, index, memories, ())
    state = sample_next(model, params, last, state, sampling.mode, end_ids)
    first = state.token
    if limit > 1:
        state, following, _ = decode(model, params, (cache,), state, limit - 1, sampling.mode, end_ids)
        tokens = jnp.concatenate([first[:, None], following], axis=1)
    else:
        tokens = first[:, None]
    ended = jnp.any(tokens[:, :, None] == jnp.asarray(end_ids, jnp.int32), axis=2)
    return Generated(tokens, jnp.sum(jnp.cumsum(ended, axis=1) == 0, axis=1, dtype=jnp.int32), state.log_probability)


def role_of(params: Any) -> str | None:
    """Return the role whose adapter generates, or None where it is merged (`clara_jax.inference.weights`)."""
    return "generator" if "generator" in params["lora"] else None


@partial(jax.jit, static_argnames=("model",))
def prefill(
    model: ClaraModel,
    params: Any,
    ids: Int32[jax.Array, "B T"],
    mask: Bool[jax.Array, "B T"],
    memory_index: Int32[jax.Array, "B T"],
    memories: Float[jax.Array, "B K M E"] | None,
    caches: tuple[KVCache, ...],
) -> tuple[Float[jax.Array, "B 1 E"], KVCache]:
    """Run the model over prompts: the state of the last token of each row, [B, 1, E], and the tokens' keys and values.

    Args:
      model: backbone and hyperparameters.
      params: the model's parameters.
      ids: int32 [B, T], padded on the right.
      mask: bool [B, T].
      memory_index: int32 [B, T], see `splice`.
      memories: [B, K, M, E] or None, as of `splice`.
      caches: keys and values of what precedes the prompts, in parts that follow each other.
    """
    x = splice(model, params, ids, memory_index, memories)
    states, cache = model.forward(params, role_of(params), x, mask, caches, return_kv=True)
    last = jnp.maximum(cache.lengths - 1, 0)[:, None, None]
    return jnp.take_along_axis(states, last, axis=1), cache


def decode(
    model: ClaraModel,
    params: Any,
    caches: tuple[KVCache, ...],
    state: DecodeState,
    steps: int,
    mode: Mode,
    end_ids: tuple[int, ...],
) -> tuple[DecodeState, Int32[jax.Array, "B {steps}"], KVCache]:
    """Generate up to ``steps`` tokens of each row; stop early when all rows are done.

    The caches do not change, and the loop carries the keys and values of the new tokens only: a few slots instead of
    all.

    Args:
      model: backbone and hyperparameters.
      params: the model's parameters.
      caches: keys and values of earlier tokens, in parts that follow each other.
      state: of the rows; its last tokens are the first inputs.
      steps: the largest number of tokens.
      mode: at least what the rows' sampling needs.
      end_ids: tokens that end an answer.

    Returns:
      the new state; the sampled tokens, int32 [B, steps], padded with the first end token; keys and values of the
      tokens that the model has processed, [L, B, G, steps, C]; in a row that is not done all of the loop's are valid.
    """
    batch = len(state.token)
    tokens = jnp.full((batch, steps), end_ids[0], jnp.int32, out_sharding=jax.P(BATCH, None))
    everywhere = jnp.ones((batch, 1), bool, out_sharding=jax.P(BATCH, None))

    def body(carry):
        step, state, tokens, recent = carry
        x = model.embed(params, state.token[:, None])
        # A finished row continues to write its slots, which no other row reads.
        states, new = model.forward(params, role_of(params), x, everywhere, (*caches, recent), return_kv=True)
        state = sample_next(model, params, states, state, mode, end_ids)
        # The same slot in all rows, so that a slice is written instead of a scatter.
        k, v = (
            jax.lax.dynamic_update_slice(old, update.astype(old.dtype), (0, 0, 0, step, 0))
            for old, update in ((recent.k, new.k), (recent.v, new.v))
        )
        tokens = jax.lax.dynamic_update_slice(tokens, state.token[:, None], (0, step))
        return step + 1, state, tokens, KVCache(k, v, recent.lengths + 1)

    carry = jnp.int32(0), state, tokens, empty(model.config, batch, steps, caches[0].k.dtype)
    _, state, tokens, recent = jax.lax.while_loop(lambda c: (c[0] < steps) & ~jnp.all(c[1].done), body, carry)
    return state, tokens, recent


def sample_next(
    model: ClaraModel,
    params: Any,
    states: Float[jax.Array, "B 1 E"],
    state: DecodeState,
    mode: Mode,
    end_ids: tuple[int, ...],
) -> DecodeState:
    """Sample the next token of each row from its last-layer state, [B, 1, E]; done rows get the first end token."""
    logits = join_logits(*model.logits(params, states))[:, 0]
    token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if mode != "greedy":
        scaled = logits / jnp.where(state.temperature > 0, state.temperature, 1)[:, None]
        if mode == "nucleus":
            scaled = _nucleus(scaled, state.top_p)
        drawn = jnp.argmax(scaled + _gumbel(state, logits.shape[-1]), axis=-1).astype(jnp.int32)
        token = jnp.where(state.temperature > 0, drawn, token)
    ends = jnp.asarray(end_ids, jnp.int32)
    token = jnp.where(state.done, ends[0], token)
    picked = jnp.sum(jnp.where(jnp.arange(logits.shape[-1]) == token[:, None], logits, 0), axis=-1)
    log_probability = picked - jax.nn.logsumexp(logits, axis=-1)
    count = state.count + ~state.done
    return dataclasses.replace(
        state,
        token=token,
        count=count,
        done=state.done | jnp.any(token[:, None] == ends, axis=1) | (count >= state.limit),
        log_probability=state.log_probability + jnp.where(state.done, 0, log_probability),
    )


def _nucleus(scaled: jax.Array, top_p: jax.Array) -> jax.Array:
    """Set logits [B, V] outside the nucleus to -inf; tokens as likely as its last one are inside, too."""
    ranked = jnp.sort(scaled, axis=-1, descending=True)
    likely = jax.nn.softmax(ranked, axis=-1)
    # A token stays when the probability before it is below top_p: the most likely one always does.
    inside = jnp.cumsum(likely, axis=-1) - likely < top_p[:, None]
    last = jnp.min(jnp.where(inside, ranked, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(scaled >= last, scaled, -jnp.inf)


def _gumbel(state: DecodeState, size: int) -> jax.Array:
    def row(seed: jax.Array, count: jax.Array) -> jax.Array:
        return jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), count), (size,))

    return jax.vmap(row)(state.seed, state.count)
