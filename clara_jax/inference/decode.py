"""Answers token by token: one prefill, then one jitted loop over a key/value cache."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from clara_jax.errors import ClaraError
from clara_jax.method.clara import ClaraModel
from clara_jax.method.generator import splice
from clara_jax.model.cache import Cache, empty_cache
from clara_jax.model.sharding import BATCH
from clara_jax.model.transformer import join_logits


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: greedily at temperature 0, else from the nucleus of probability ``top_p``."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self):
        if not isinstance(self.max_new_tokens, int) or self.max_new_tokens < 1:
            raise ClaraError(f"max_new_tokens: {self.max_new_tokens!r} is not a positive whole number")
        if self.temperature < 0:
            raise ClaraError(f"temperature: {self.temperature!r} must be 0 (greedy) or above")
        if not 0 < self.top_p <= 1:
            raise ClaraError(f"top_p: {self.top_p!r} must be above 0 and at most 1")


class Generated(NamedTuple):
    """Tokens int32 [B, max_new_tokens], ended by (and padded with) the end token; how many count, int32 [B], the end
    token not among them; the sum of their log-probabilities under the model, float32 [B]."""

    tokens: jax.Array
    lengths: jax.Array
    log_probability: jax.Array


@flax.struct.dataclass
class _State:
    step: jax.Array
    token: jax.Array  # int32 [B], chosen but not yet read by the model
    tokens: jax.Array
    lengths: jax.Array
    log_probability: jax.Array
    done: jax.Array  # bool [B]
    cache: Cache
    key: jax.Array


@partial(jax.jit, static_argnames=("model", "sampling", "end_ids"))
def generate(
    model: ClaraModel,
    params: Any,
    prompt_ids: jax.Array,
    prompt_mask: jax.Array,
    memory_index: jax.Array,
    memories: jax.Array,
    key: jax.Array,
    sampling: Sampling,
    end_ids: tuple[int, ...],
) -> Generated:
    """Continues prompts, padded on the left, in which memories stand.

    Args:
      prompt_ids, prompt_mask, memory_index: [B, T].
      memories: [B, K, M, E].
      key: PRNG key of sampling; unused when greedy.
      end_ids: tokens that end an answer.
    """
    batch, length = prompt_ids.shape
    limit = sampling.max_new_tokens
    rows = jax.P(BATCH)
    x = splice(model, params, prompt_ids, memory_index, memories)
    cache = empty_cache(model.config, batch, length + limit, model.dtype)
    states, cache = model.forward(params, "generator", x, prompt_mask, cache)
    token, logp, key = _choose(model, params, states[:, -1:], key, sampling)
    ends = jnp.asarray(end_ids, jnp.int32)

    def record(state: _State, token: jax.Array, logp: jax.Array) -> _State:
        ended = jnp.any(token[:, None] == ends, axis=1)
        token = jnp.where(state.done, ends[0], token)
        counts = ~state.done & ~ended
        return state.replace(
            token=token,
            tokens=jax.lax.dynamic_update_slice(state.tokens, token[:, None], (0, state.step)),
            lengths=state.lengths + counts,
            log_probability=state.log_probability + jnp.where(state.done, 0, logp),
            done=state.done | ended,
            step=state.step + 1,
        )

    state = _State(
        step=jnp.int32(0),
        token=token,
        tokens=jnp.full((batch, limit), end_ids[0], jnp.int32, out_sharding=jax.P(BATCH, None)),
        lengths=jnp.zeros(batch, jnp.int32, out_sharding=rows),
        log_probability=jnp.zeros(batch, jnp.float32, out_sharding=rows),
        done=jnp.zeros(batch, bool, out_sharding=rows),
        cache=cache,
        key=key,
    )

    def body(state: _State) -> _State:
        x = model.embed(params, state.token[:, None])
        # A finished row goes on reading end tokens: its slots are its own, so nothing else sees them.
        mask = jnp.ones((batch, 1), bool, out_sharding=jax.P(BATCH, None))
        states, cache = model.forward(params, "generator", x, mask, state.cache)
        token, logp, key = _choose(model, params, states, state.key, sampling)
        return record(state.replace(cache=cache, key=key), token, logp)

    state = jax.lax.while_loop(lambda s: (s.step < limit) & ~jnp.all(s.done), body, record(state, token, logp))
    return Generated(state.tokens, state.lengths, state.log_probability)


def _choose(
    model: ClaraModel, params: Any, states: jax.Array, key: jax.Array, sampling: Sampling
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The next token of each row from the last state [B, 1, E], its log-probability, and the next key."""
    logits = join_logits(*model.logits(params, states))[:, 0]
    log_probabilities = jax.nn.log_softmax(logits)
    if sampling.temperature == 0:
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    else:
        key, draw = jax.random.split(key)
        scaled = logits / sampling.temperature
        if sampling.top_p < 1:
            order = jnp.argsort(scaled, axis=-1, descending=True)
            ranked = jax.nn.softmax(jnp.take_along_axis(scaled, order, axis=-1))
            # A token stays when the probability before it is below top_p: the most likely one always does.
            kept = jnp.cumsum(ranked, axis=-1) - ranked < sampling.top_p
            kept = jnp.take_along_axis(kept, jnp.argsort(order, axis=-1), axis=-1)
            scaled = jnp.where(kept, scaled, -jnp.inf)
        noise = jax.random.gumbel(draw, scaled.shape, out_sharding=jax.P(BATCH, None))
        token = jnp.argmax(scaled + noise, axis=-1).astype(jnp.int32)
    picked = jnp.where(jnp.arange(logits.shape[-1]) == token[:, None], log_probabilities, 0)
    return token, jnp.sum(picked, axis=-1), key
