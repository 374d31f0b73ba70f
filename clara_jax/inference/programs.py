"""The programs of the engine: prompts are read, they get rows of a cache, and all rows go on by a few tokens."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from clara_jax.inference.decode import Mode, Rows, choose, decode, fresh, read
from clara_jax.method.clara import ClaraModel
from clara_jax.model.cache import Past, past_spec
from clara_jax.model.sharding import BATCH


class Prompts(NamedTuple):
    """P prompts, padded on the right.

    Attributes:
      ids, memory_index: int32 [P, T]; mask: bool [P, T].
      memories: [P, K, M, E].
    """

    ids: jax.Array
    mask: jax.Array
    memory_index: jax.Array
    memories: jax.Array


class Choice(NamedTuple):
    """How the answers of P prompts are to be written; limit: int32 [P]; temperature, top_p: float32 [P]; seed: uint32
    [P]; see `Rows`."""

    limit: jax.Array
    temperature: jax.Array
    top_p: jax.Array
    seed: jax.Array


@partial(jax.jit, static_argnames=("model",))
def read_prompts(
    model: ClaraModel, params: Any, prompts: Prompts, prefixes: tuple[Past, ...]
) -> tuple[jax.Array, Past]:
    """States of the prompts' last tokens, [P, 1, E], and their keys and values, P rows.

    Args:
      prefixes: nothing, or what stands before the prompts and was read before, P rows.
    """
    return read(model, params, prompts.ids, prompts.mask, prompts.memory_index, prompts.memories, prefixes)


@partial(jax.jit, static_argnames=("model", "mode", "end_ids"), donate_argnames=("past", "rows"))
def seat(
    model: ClaraModel,
    params: Any,
    states: jax.Array,
    chosen: Choice,
    parts: tuple[Past, ...],
    past: Past,
    rows: Rows,
    source: jax.Array,
    mode: Mode,
    end_ids: tuple[int, ...],
) -> tuple[Past, Rows]:
    """Chooses the first tokens of prompts that were read, and gives them rows.

    It is a program apart from `read_prompts`, for it depends on the cache, and holds no block of the model: compiling
    it takes a fraction of the time.

    Args:
      states: [P, 1, E].
      chosen: how their answers are to be written.
      parts: their keys and values, one after the other, P rows.
      past, rows: of all rows; given away.
      source: int32 [B], the prompt that takes a row, -1 where the row stays as it is.
    """
    new = choose(model, params, states, fresh(*chosen), mode, end_ids)
    taken, source = source >= 0, jnp.maximum(source, 0)
    rows = jax.tree.map(
        lambda old, own: jnp.where(taken, own.at[source].get(out_sharding=jax.P(BATCH)), old), rows, new
    )
    lengths, at = past.lengths, jnp.zeros_like(source)
    for part in parts:
        own = _pick(part, source, model)
        old = past.cut(at, own.slots)
        past = past.put(old.replace_where(taken, own), at)
        at += own.lengths
    return past.replace(lengths=jnp.where(taken, at, lengths)), rows


@partial(jax.jit, static_argnames=("model", "steps", "mode", "end_ids"), donate_argnames=("past", "rows"))
def advance(
    model: ClaraModel,
    params: Any,
    past: Past,
    rows: Rows,
    live: jax.Array,
    steps: int,
    mode: Mode,
    end_ids: tuple[int, ...],
) -> tuple[Past, Rows, jax.Array]:
    """All rows that are not done go on by up to ``steps`` tokens.

    Args:
      past, rows: given away.
      live: bool [B]; the others are given up.

    Returns:
      past and rows; the chosen tokens, int32 [B, steps], of which rows.count tells how many count.
    """
    rows = rows.replace(done=rows.done | ~live)
    rows, tokens, recent = decode(model, params, (past,), rows, steps, mode, end_ids)
    past = past.put(recent, past.lengths)
    return past.replace(lengths=jnp.where(rows.done, 0, past.lengths)), rows, tokens


@partial(jax.jit, static_argnames=("model", "slots"))
def first_slots(model: ClaraModel, kept: Past, row: jax.Array, length: jax.Array, slots: int) -> Past:
    """The beginning of one row, [L, 1, G, slots, C], whole on every device; ``length`` of its slots count."""
    spec = past_spec(model.config, jax.sharding.get_abstract_mesh(), rows=False)
    k, v = (x[:, :, :, :slots].at[:, row[None]].get(out_sharding=spec) for x in (kept.k, kept.v))
    return Past(k, v, length[None])


@partial(jax.jit, static_argnames=("model",))
def stack(model: ClaraModel, parts: list[Past]) -> Past:
    """Single rows of equal slots as one batch, split over the mesh."""
    spec = past_spec(model.config, jax.sharding.get_abstract_mesh())
    k, v = (jax.reshard(jnp.concatenate(x, axis=1), spec) for x in zip(*((p.k, p.v) for p in parts), strict=True))
    return Past(k, v, jax.reshard(jnp.concatenate([part.lengths for part in parts]), jax.P(BATCH)))


@partial(jax.jit, static_argnames=("model", "slots"))
def resize(model: ClaraModel, past: Past, rows: Rows, source: jax.Array, slots: int) -> tuple[Past, Rows]:
    """The same rows in another number and with more slots.

    Args:
      source: int32, which row stands at each place from now on.
    """
    past = _pick(past, source, model)
    more = [(0, 0)] * 3 + [(0, slots - past.slots), (0, 0)]
    rows = jax.tree.map(lambda x: x.at[source].get(out_sharding=jax.P(BATCH)), rows)
    return past.replace(k=jnp.pad(past.k, more), v=jnp.pad(past.v, more)), rows


def _pick(part: Past, source: jax.Array, model: ClaraModel) -> Past:
    spec = past_spec(model.config, jax.sharding.get_abstract_mesh())
    k, v = (x.at[:, source].get(out_sharding=spec) for x in (part.k, part.v))
    return Past(k, v, part.lengths.at[source].get(out_sharding=jax.P(BATCH)))
