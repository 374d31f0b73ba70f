"""Blockwise causal attention for CPUs: chunks of queries against the keys up to the chunk's end.

What CPUs gain over scores of whole rows: nothing is computed for keys that come after a chunk, heads stand before
tokens so that every product is a plain matrix product of a head, the mask is added, and weights are divided by their
sum after the product with the values, on [T, C] instead of [T, S] numbers. As in flash attention (Dao et al. 2022) the
backward pass recomputes the weights from the rows' log-sums, so that no [T, S] array is kept.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32

from clara_jax.model.products import contracted_last

FEWEST_QUERIES = 32  # of a chunk, where a row is short
MOST_QUERIES = 128  # of a chunk, where a row is long
USUAL_CHUNKS, MOST_CHUNKS = 4, 8  # they are unrolled: more of them compile longer and save less


def chunks(length: int) -> list[tuple[int, int]]:
    """Return (first query, query after the last) of each chunk of a row of ``length`` tokens."""
    count = max(min(USUAL_CHUNKS, -(-length // FEWEST_QUERIES)), -(-length // MOST_QUERIES))
    size = -(-length // min(MOST_CHUNKS, count))
    return [(begin, min(begin + size, length)) for begin in range(0, length, size)]


def additive(mask: Bool[jax.Array, "*shape"]) -> Float32[jax.Array, "*shape"]:
    """Return what is added to scores: 0 where ``mask`` is true, else the lowest float32."""
    return jnp.where(mask, jnp.float32(0), jnp.finfo(jnp.float32).min)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def blockwise(
    operands: jnp.dtype,
    q: Float[jax.Array, "B T H C"],
    k: Float[jax.Array, "B T G C"],
    v: Float[jax.Array, "B T G C"],
    bias: Float32[jax.Array, "B T T"],
) -> Float[jax.Array, "B T H C"]:
    """Compute softmax(q kᵀ / √C + bias) v of causal rows on one device, scores and softmax in float32.

    Args:
      operands: the dtype in which numbers are multiplied; products are summed in float32.
      q: [B, T, H, C].
      k: [B, T, G, C], each key/value head serving H / G query heads, in q's dtype.
      v: [B, T, G, C], in q's dtype.
      bias: float32 [B, T, T], see `additive`; later keys must be masked in it, and some key be visible to each query.

    Returns:
      [B, T, H, C] in q's dtype.
    """
    return _forward(operands, q, k, v, bias)[0]


def _forward(operands: jnp.dtype, q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array):
    product, channels = _product(operands), q.shape[-1]
    heads = _split_heads(q.astype(operands), k.shape[2])
    keys, values = (x.swapaxes(1, 2).astype(operands) for x in (k, v))
    mixed, log_sums = [], []
    for begin, end in chunks(q.shape[1]):
        scores = product("BGNC,BGSC->BGNS", _flat(heads[..., begin:end, :]), keys[:, :, :end])
        scores = _chunk(scores, end - begin) * channels**-0.5 + bias[:, None, None, begin:end, :end]
        largest = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - largest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        rows = product("BGNS,BGSC->BGNC", _flat(weights.astype(operands)), values[:, :, :end])
        mixed.append(_chunk(rows, end - begin) / total)
        log_sums.append(largest + jnp.log(total))
    out = _join_heads(jnp.concatenate(mixed, axis=3)).astype(q.dtype)
    return out, (heads, keys, values, bias, out, jnp.concatenate(log_sums, axis=3))


def _backward(operands: jnp.dtype, kept: tuple, gradient: jax.Array):
    heads, keys, values, bias, out, log_sums = kept
    product, length, scale, dtype = _product(operands), keys.shape[2], keys.shape[3] ** -0.5, gradient.dtype
    # What a row of weights' gradients loses to the softmax: Σ_s weight · gradient = gradient of the output · output.
    centre = jnp.sum(gradient.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    centre, gradient = (_split_heads(x, keys.shape[1]) for x in (centre, gradient.astype(operands)))
    of_q, of_k, of_v = [], jnp.float32(0), jnp.float32(0)
    for begin, end in chunks(length):
        queries, of_out = _flat(heads[..., begin:end, :]), _flat(gradient[..., begin:end, :])
        turned, turned_of_out = (contracted_last(x, "BGNC", "BGC")[0] for x in (queries, of_out))
        seen_keys, seen_values = keys[:, :, :end], values[:, :, :end]
        scores = _chunk(product("BGNC,BGSC->BGNS", queries, seen_keys), end - begin)
        weights = jnp.exp(scores * scale + bias[:, None, None, begin:end, :end] - log_sums[..., begin:end, :])
        of_weights = _chunk(product("BGNC,BGSC->BGNS", of_out, seen_values), end - begin)
        of_scores = _flat((weights * (of_weights - centre[..., begin:end, :])).astype(operands))
        of_q.append(_chunk(product("BGNS,BGSC->BGNC", of_scores, seen_keys), end - begin))
        room = ((0, 0), (0, 0), (0, 0), (0, length - end))
        of_k += jnp.pad(product("BGCN,BGNS->BGCS", turned, of_scores), room)
        of_v += jnp.pad(product("BGCN,BGNS->BGCS", turned_of_out, _flat(weights.astype(operands))), room)
    of_q = _join_heads(jnp.concatenate(of_q, axis=3)) * scale
    of_k, of_v = (x.transpose(0, 3, 1, 2) for x in (of_k * scale, of_v))
    return of_q.astype(dtype), of_k.astype(dtype), of_v.astype(dtype), None


blockwise.defvjp(_forward, _backward)


def _product(operands: jnp.dtype):
    exact = "highest" if operands == jnp.float32 else None
    return partial(jnp.einsum, precision=exact, preferred_element_type=jnp.float32)


def _split_heads(x: Float[jax.Array, "B T H C"], groups: int) -> Float[jax.Array, "B {groups} H//{groups} T C"]:
    """Reshape [B, T, H, C] to [B, G, H / G, T, C]."""
    batch, length, heads, channels = x.shape
    return x.reshape(batch, length, groups, heads // groups, channels).transpose(0, 2, 3, 1, 4)


def _join_heads(x: Float[jax.Array, "B G Q T C"]) -> Float[jax.Array, "B T G*Q C"]:
    """Undo `_split_heads`."""
    batch, groups, each, length, channels = x.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(batch, length, groups * each, channels)


def _flat(x: Float[jax.Array, "B G Q T X"]) -> Float[jax.Array, "B G Q*T X"]:
    """Reshape [B, G, H / G, T, ...] to [B, G, H / G · T, ...]: the queries of a key/value head in one axis."""
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _chunk(x: Float[jax.Array, "B G N X"], length: int) -> Float[jax.Array, "B G N//{length} {length} X"]:
    """Undo `_flat` for chunks of ``length`` queries."""
    return x.reshape(*x.shape[:2], -1, length, x.shape[-1])
