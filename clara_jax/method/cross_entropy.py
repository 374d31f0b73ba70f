"""The language-modelling loss L_CE (section 2.2): logits in chunks, and their gradient in the same pass."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Float, Float32, Int32

from clara_jax.input_pipeline.tokenization import IGNORED
from clara_jax.method.clara import ClaraModel
from clara_jax.model.sharding import Array, reshape_rows

LOGITS_BYTES = 2**28  # limit of a device's float32 logits in memory at one time

# The loss, and the number of tokens that greedy decoding gets right.
Sums = tuple[Float32[jax.Array, ""], Float32[jax.Array, ""]]
Chunk = tuple[jax.Array, jax.Array, jax.Array | None]  # states, labels and weights of some positions


def language_model_loss(
    model: ClaraModel,
    params: Any,
    states: Float[Array, "B A E"],
    labels: Int32[Array, "B A"],
    weights: Float32[Array, "B A"] | None = None,
) -> Sums:
    """Return L_CE = -Σ_t w_t log p(a_t | I, M, a_<t), summed over all labelled tokens (section 2.2).

    Args:
      model: backbone and hyperparameters.
      params: the model's parameters.
      states: [B, A, E], the generator's last-layer states at the positions before the labels'.
      labels: int32 [B, A], `IGNORED` where there is no loss.
      weights: float32 [B, A], w; constants, not differentiated. None is 1 everywhere.

    Returns:
      the sum, and the number of labelled tokens that greedy decoding gets right.
    """
    return _loss(model, _head(model, params), states, labels, weights)


def token_log_likelihoods(
    model: ClaraModel, params: Any, states: Float[jax.Array, "B A E"], labels: Int32[Array, "B A"]
) -> Float32[jax.Array, "B A"]:
    """Return log p(a_t | I, M, a_<t) of each labelled token, 0 elsewhere; float32 [B, A].

    Arguments as of `language_model_loss`. Do not differentiate it: its backward pass would recompute the logits of all
    chunks.
    """
    head = _head(model, params)

    def of_chunk(carry: None, chunk: Chunk) -> tuple[None, jax.Array]:
        states, labels, _ = chunk
        return carry, -_token_losses(model, head, states, labels)[0]

    _, chunks = jax.lax.scan(of_chunk, None, _chunks(head, states, labels))
    return reshape_rows(chunks.swapaxes(0, 1), -1)[:, : labels.shape[1]]


def target_log_likelihoods(
    model: ClaraModel, params: Any, states: Float[jax.Array, "B A E"], labels: Int32[Array, "B A"]
) -> Float32[jax.Array, " B"]:
    """Return log p(a | I, M) of each row's targets, the sum of `token_log_likelihoods`; float32 [B]."""
    return jnp.sum(token_log_likelihoods(model, params, states, labels), axis=1)


def _head(model: ClaraModel, params: Any) -> Any:
    table = "embed" if model.config.tied else "lm_head"
    return {"base": {table: params["base"][table]}, "tokens": params["tokens"]}


def chunk_length(states: jax.Array, table: jax.Array) -> int:
    """Return the length of chunks of target positions whose logits take at most `LOGITS_BYTES` on a device.

    The chunks that hold all positions have about equal lengths.

    Args:
      states: [B, A, E].
      table: [V, E], of the head.
    """
    rows, targets = states.shape[0] // _parts(states), states.shape[1]
    longest = max(1, LOGITS_BYTES // (rows * (table.shape[0] // _parts(table)) * 4))
    return -(-targets // -(-targets // longest))


def _parts(x: jax.Array) -> int:
    """Return the number of parts that the first axis is split into."""
    sharding = jax.typeof(x).sharding
    return x.shape[0] // sharding.shard_shape(x.shape)[0]


# [B, A, V] logits in float32 would take more memory than the model, so they exist for one chunk at a time. The loss is
# a sum over chunks, and its cotangent one number: each chunk's gradient is computed in the forward pass, while its
# logits are in memory, and multiplied by that number later. Recomputing them would cost a third product with the head.


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(model: ClaraModel, head: Any, states: jax.Array, labels: Array, weights: jax.Array | None) -> Sums:
    def add(sums: Sums, chunk: Chunk) -> tuple[Sums, None]:
        return jax.tree.map(jnp.add, sums, _chunk_loss(model, head, *chunk)), None

    return jax.lax.scan(add, (jnp.float32(0), jnp.float32(0)), _chunks(head, states, labels, weights))[0]


def _loss_and_gradients(model: ClaraModel, head: Any, states: Any, labels: Any, weights: Any) -> tuple[Sums, Any]:
    """Return the sums, and the loss's gradients with respect to the states and the trained leaves of the head."""
    leaves, structure = jax.tree.flatten(head)
    values, states, labels = [leaf.value for leaf in leaves], states.value, labels.value
    weights = None if weights is None else weights.value
    trained = [leaf.value for leaf in leaves if leaf.perturbed]

    def rebuild(trained: list[jax.Array], rest: list[Any]) -> Any:
        new = iter(trained)
        return structure.unflatten(
            [next(new) if leaf.perturbed else old for leaf, old in zip(leaves, rest, strict=True)]
        )

    def chunk_loss(trained: list[jax.Array], states: jax.Array, labels: jax.Array, weights: jax.Array | None) -> Sums:
        return _chunk_loss(model, rebuild(trained, values), states, labels, weights)

    def add(carry: Any, chunk: Chunk) -> tuple[Any, jax.Array]:
        sums, (of_trained, of_states) = jax.value_and_grad(chunk_loss, (0, 1), has_aux=True)(trained, *chunk)
        return jax.tree.map(jnp.add, carry, (sums, of_trained)), of_states

    zeros = ((jnp.float32(0), jnp.float32(0)), jax.tree.map(jnp.zeros_like, trained))
    chunks = _chunks(structure.unflatten(values), states, labels, weights)
    (sums, of_trained), of_states = jax.lax.scan(add, zeros, chunks)
    of_states = reshape_rows(of_states.swapaxes(0, 1), -1, states.shape[2])[:, : states.shape[1]]
    return sums, (rebuild(of_trained, [None] * len(leaves)), of_states)


def _scale(model: ClaraModel, gradients: Any, cotangents: Any) -> Any:
    of_loss = cotangents[0]
    if isinstance(of_loss, SymbolicZero):
        of_loss = jnp.float32(0)
    of_head, of_states = jax.tree.map(lambda x: (x * of_loss).astype(x.dtype), gradients)
    return of_head, of_states, None, None


_loss.defvjp(_loss_and_gradients, _scale, symbolic_zeros=True)


def _chunks(head: Any, states: jax.Array, labels: Array, weights: jax.Array | None = None) -> Chunk:
    """Reshape [B, A, ...] to [chunks, B, A of a chunk, ...]; the last chunk is padded with unlabelled positions."""
    (base,) = head["base"].values()
    length = chunk_length(states, base["table"])
    room = ((0, 0), (0, -labels.shape[1] % length))
    states, labels = jnp.pad(states, (*room, (0, 0))), jnp.pad(labels, room, constant_values=IGNORED)
    weights = None if weights is None else jnp.pad(weights, room)

    def cut(x: jax.Array) -> jax.Array:
        return reshape_rows(x, -1, length, *x.shape[2:]).swapaxes(0, 1)

    return jax.tree.map(cut, (states, labels, weights))


def _chunk_loss(
    model: ClaraModel, head: Any, states: jax.Array, labels: jax.Array, weights: jax.Array | None = None
) -> Sums:
    loss, right = _token_losses(model, head, states, labels)
    return jnp.sum(loss if weights is None else weights * loss), jnp.sum(right, dtype=jnp.float32)


def _token_losses(model: ClaraModel, head: Any, states: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return -log p of each label, 0 without one, float32 [B, C]; and whether greedy decoding would choose it."""
    base, added = model.logits(head, states)
    parts = [(base, 0)] + ([(added, model.config.vocab_size)] if added is not None else [])
    normalizer = jax.nn.logsumexp(jnp.stack([jax.nn.logsumexp(part, axis=-1) for part, _ in parts]), axis=0)
    # A sum over "is this the label" instead of a gather: each device reads only its slice of the vocabulary.
    picked = sum(
        jnp.sum(jnp.where(labels[..., None] == offset + jnp.arange(part.shape[-1]), part, 0), axis=-1)
        for part, offset in parts
    )
    best = jnp.max(jnp.stack([jnp.max(part, axis=-1) for part, _ in parts]), axis=0)
    counted = labels != IGNORED
    return jnp.where(counted, normalizer - picked, 0), counted & (picked >= best)
