"""The engine's jitted programs beside `prefill`: insertion of prompts into the KV cache, and decoding of all rows."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int32

from clara_jax.inference.decode import DecodeState, Mode, decode, initial_state, sample_next
from clara_jax.method.clara import ClaraModel
from clara_jax.model.cache import KVCache, kv_cache_spec
from clara_jax.model.sharding import BATCH


class Prompts(NamedTuple):
    """P prompts, padded on the right.

    Attributes:
      ids, memory_index: int32 [P, T].
      mask: bool [P, T].
      memories: [P, K, M, E].
    """

    ids: jax.Array
    mask: jax.Array
    memory_index: jax.Array
    memories: jax.Array


class SamplingArrays(NamedTuple):
    """Sampling parameters of P prompts, see `DecodeState`.

    Attributes:
      limit: int32 [P].
      temperature, top_p: float32 [P].
      seed: uint32 [P].
    """

    limit: jax.Array
    temperature: jax.Array
    top_p: jax.Array
    seed: jax.Array


@partial(jax.jit, static_argnames=("model", "mode", "end_ids"), donate_argnames=("cache", "state"))
def insert(
    model: ClaraModel,
    params: Any,
    states: Float[jax.Array, "P 1 E"],
    sampling: SamplingArrays,
    parts: tuple[KVCache, ...],
    cache: KVCache,
    state: DecodeState,
    source: Int32[jax.Array, " B"],
    mode: Mode,
    end_ids: tuple[int, ...],
) -> tuple[KVCache, DecodeState]:
    """Sample the first tokens of prefilled prompts, and insert the prompts into rows of the batch.

    It is separate from `prefill` because it depends on the size of the cache, and contains no block of the
    model: compiling it takes a fraction of the time.

    Args:
      model: backbone and hyperparameters.
      params: the model's parameters.
      states: of the prompts' last tokens, [P, 1, E].
      sampling: of the prompts.
      parts: the prompts' keys and values, in parts that follow each other, P rows.
      cache: of all rows; donated.
      state: of all rows; donated.
      source: int32 [B], the prompt that takes a row, -1 where the row does not change.
      mode: at least what the prompts' sampling needs.
      end_ids: tokens that end an answer.
    """
    new = sample_next(model, params, states, initial_state(*sampling), mode, end_ids)
    taken, source = source >= 0, jnp.maximum(source, 0)
    state = jax.tree.map(
        lambda old, first: jnp.where(taken, first.at[source].get(out_sharding=jax.P(BATCH)), old), state, new
    )
    lengths, at = cache.lengths, jnp.zeros_like(source)
    for part in parts:
        inserted = _pick(part, source, model)
        old = cache.cut(at, inserted.slots)
        cache = cache.put(old.replace_where(taken, inserted), at)
        at += inserted.lengths
    return dataclasses.replace(cache, lengths=jnp.where(taken, at, lengths)), state


@partial(jax.jit, static_argnames=("model", "steps", "mode", "end_ids"), donate_argnames=("cache", "state"))
def advance(
    model: ClaraModel,
    params: Any,
    cache: KVCache,
    state: DecodeState,
    live: Bool[jax.Array, " B"],
    steps: int,
    mode: Mode,
    end_ids: tuple[int, ...],
) -> tuple[KVCache, DecodeState, Int32[jax.Array, "B {steps}"]]:
    """Decode up to ``steps`` tokens of all rows that are not done.

    Args:
      model: backbone and hyperparameters.
      params: the model's parameters.
      cache: donated.
      state: donated.
      live: bool [B]; other rows are ended.
      steps: the largest number of tokens.
      mode: at least what the rows' sampling needs.
      end_ids: tokens that end an answer.

    Returns:
      cache and state; the sampled tokens, int32 [B, steps], valid up to the growth of ``state.count``.
    """
    state = dataclasses.replace(state, done=state.done | ~live)
    state, tokens, recent = decode(model, params, (cache,), state, steps, mode, end_ids)
    cache = cache.put(recent, cache.lengths)
    return dataclasses.replace(cache, lengths=jnp.where(state.done, 0, cache.lengths)), state, tokens


@partial(jax.jit, static_argnames=("model", "slots"))
def first_slots(
    model: ClaraModel, cache: KVCache, row: Int32[jax.Array, ""], length: Int32[jax.Array, ""], slots: int
) -> KVCache:
    """Copy the first slots of a row, [L, 1, G, slots, C], whole on every device; ``length`` of them are valid."""
    spec = kv_cache_spec(model.config, jax.sharding.get_abstract_mesh(), rows=False)
    k, v = (x[:, :, :, :slots].at[:, row[None]].get(out_sharding=spec) for x in (cache.k, cache.v))
    return KVCache(k, v, length[None])


@partial(jax.jit, static_argnames=("model",))
def stack(model: ClaraModel, parts: list[KVCache]) -> KVCache:
    """Concatenate single rows with equal numbers of slots to one batch, split over the mesh."""
    spec = kv_cache_spec(model.config, jax.sharding.get_abstract_mesh())
    k, v = (jax.reshard(jnp.concatenate(x, axis=1), spec) for x in zip(*((p.k, p.v) for p in parts), strict=True))
    return KVCache(k, v, jax.reshard(jnp.concatenate([part.lengths for part in parts]), jax.P(BATCH)))


@partial(jax.jit, static_argnames=("model", "slots"))
def resize(
    model: ClaraModel, cache: KVCache, state: DecodeState, source: Int32[jax.Array, " B"], slots: int
) -> tuple[KVCache, DecodeState]:
    """Return cache and state with another number of rows and with more slots.

    Args:
      model: backbone and hyperparameters.
      cache: of all rows.
      state: of all rows.
      source: int32 [B], the old row of each of the B new ones.
      slots: of the new cache.
    """
    cache = _pick(cache, source, model)
    more = [(0, 0)] * 3 + [(0, slots - cache.slots), (0, 0)]
    state = jax.tree.map(lambda x: x.at[source].get(out_sharding=jax.P(BATCH)), state)
    return dataclasses.replace(cache, k=jnp.pad(cache.k, more), v=jnp.pad(cache.v, more)), state


def _pick(part: KVCache, source: jax.Array, model: ClaraModel) -> KVCache:
    """Return the rows ``source`` of a cache, split over the mesh."""
    spec = kv_cache_spec(model.config, jax.sharding.get_abstract_mesh())
    k, v = (x.at[:, source].get(out_sharding=spec) for x in (part.k, part.v))
    return KVCache(k, v, part.lengths.at[source].get(out_sharding=jax.P(BATCH)))
