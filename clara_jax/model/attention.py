"""Grouped-query attention on arrays whose heads are split over the mesh's model axis: one function, four ways.

"xla" materializes the scores and runs anywhere. "blockwise" (for CPUs), "splash" (a Pallas kernel for TPUs) and "cudnn"
(flash attention on NVIDIA GPUs) compute them block by block and recompute them in the backward pass, so that no [T, S]
array of a head is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int32

from clara_jax.errors import ClaraError
from clara_jax.model.blockwise import additive, blockwise
from clara_jax.model.sharding import BATCH, Array

IMPLEMENTATIONS = ("auto", "xla", "blockwise", "splash", "cudnn")
LANES = 128  # splash's blocks are multiples of a vector register's lanes
LONGEST_BLOCK = 512
KERNEL_OUT = "kernel_out"  # the name of what splash's backward pass needs of its forward pass


@flax.struct.dataclass
class AttentionMask:
    """Which tokens each token attends to, built once for all layers in the form that the implementation reads.

    A token attends to the tokens of the same sequence up to itself that lie inside the window. Padding is sequence 0,
    so that it attends to something too (to itself at least): its output is finite and meaningless.
    """

    implementation: str = flax.struct.field(pytree_node=False)
    operands: jnp.dtype = flax.struct.field(pytree_node=False)  # dtype of the products' inputs; not used by xla
    sequences: jax.Array | None = None  # int32 [B, T], for splash
    mask: jax.Array | None = None  # bool [B, T, T], for all but splash; for blockwise the float32 bias of the scores
    cached: tuple[jax.Array, ...] = ()  # bool [B, T, S] for each part of the KV cache


def make_attention_mask(
    implementation: str,
    sequences: Bool[Array, "B T"] | Int32[Array, "B T"],
    positions: Int32[jax.Array, "B T"],
    window: int | None,
    head_dim: int,
    dtype: Any,
    cached: Sequence[tuple[int, Int32[jax.Array, " B"]]] = (),
) -> AttentionMask:
    """Build the attention mask of T new tokens.

    Args:
      implementation: one of `IMPLEMENTATIONS`.
      sequences: bool or int32 [B, T], the number of the sequence that a token belongs to, 0 for padding.
      positions: int32 [B, T], positions of the tokens in their sequences, cached tokens counted.
      window: how many tokens, itself among them, a token attends to; None for all.
      head_dim: channels of a head.
      dtype: dtype of the inputs of attention's products.
      cached: for each part of the KV cache its slots, and how many of them are valid in each row, int32 [B].

    Raises:
      ClaraError: an implementation that the mesh's devices, the heads or the dtype do not allow.
    """
    length = sequences.shape[1]
    if window is not None and length + sum(slots for slots, _ in cached) <= window:
        window = None
    dtype = jnp.dtype(dtype)
    chosen = choose(implementation, head_dim, dtype, cached=bool(cached), windowed=window is not None)
    if chosen != "xla":  # kernels need rows that are split over the mesh; callers with few rows may have them whole
        sequences, positions = (jax.reshard(x, jax.P(BATCH, None)) for x in (sequences, positions))
    if chosen == "splash":
        return AttentionMask(chosen, dtype, sequences=jnp.asarray(sequences, jnp.int32))
    at = jnp.arange(length, dtype=jnp.int32)
    mask = (at <= at[:, None]) & (sequences[:, :, None] == sequences[:, None, :])
    if window is not None:
        mask &= positions[:, :, None] - positions[:, None, :] < window
    if chosen == "blockwise":
        return AttentionMask(chosen, dtype, mask=additive(mask))
    masks, before = [], 0
    for slots, lengths in cached:
        slot = jnp.arange(slots, dtype=jnp.int32)
        seen = jnp.broadcast_to((slot < lengths[:, None])[:, None, :], (len(lengths), length, slots))
        if window is not None:
            place = slot + (before if isinstance(before, int) else before[:, None])
            seen &= positions[:, :, None] - jnp.broadcast_to(place, (len(lengths), slots))[:, None, :] < window
        masks.append(seen)
        before = before + lengths
    return AttentionMask(chosen, dtype, mask=mask, cached=tuple(masks))


def choose(implementation: str, head_dim: int, dtype: jnp.dtype, cached: bool, windowed: bool) -> str:
    """Return the implementation for the devices of the current mesh (not this host's in ahead-of-time compilation).

    With a KV cache it is always "xla": the new tokens are few. It also replaces splash where a window cuts something
    off: a window counts attended tokens, splash could only count slots, and padding may stand between.

    Args:
      implementation: one of `IMPLEMENTATIONS`.
      head_dim: channels of a head.
      dtype: dtype of the inputs of attention's products.
      cached: whether there is a KV cache.
      windowed: whether a window cuts off part of the row.

    Raises:
      ClaraError: an implementation that the mesh's devices, the heads or the dtype do not allow.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    platform, kind = (device.platform, device.device_kind) if device is not None else ("cpu", "")
    flash = jnp.dtype(dtype).itemsize == 2 and head_dim % 8 == 0 and head_dim <= 128
    if implementation == "auto":
        # Device kinds such as "Tesla T4" are too old for flash attention, and other GPUs have no cuDNN.
        on_gpu = "cudnn" if kind.startswith("NVIDIA") and flash else "xla"
        implementation = {"tpu": "splash", "gpu": on_gpu, "cpu": "blockwise"}.get(platform, "xla")
    if cached or implementation == "xla" or (implementation == "splash" and windowed):
        return "xla"
    if implementation == "splash" and platform == "gpu":
        raise ClaraError('attention: "splash" needs TPUs, and the mesh has GPUs; choose "auto", "cudnn" or "xla"')
    if implementation == "cudnn" and platform != "gpu":
        raise ClaraError(f'attention: "cudnn" needs NVIDIA GPUs, and the mesh has {kind}; choose "auto" or "xla"')
    if implementation == "cudnn" and not flash:
        raise ClaraError(
            f'attention: "cudnn" needs bfloat16 and heads of at most 128 channels, a multiple of 8, not {dtype} and '
            f'{head_dim}; choose "auto" or "xla"'
        )
    return implementation


def attention(
    q: Float[jax.Array, "B T H C"],
    k: Float[jax.Array, "B T G C"],
    v: Float[jax.Array, "B T G C"],
    mask: AttentionMask,
    cached: Sequence[tuple[Float[jax.Array, "B G _ C"], Float[jax.Array, "B G _ C"]]] = (),
) -> Float[jax.Array, "B T H C"]:
    """Compute softmax(q kᵀ / √C) v over what the mask allows, scores and softmax in float32.

    Args:
      q: [B, T, H, C].
      k: [B, T, G, C], each key/value head serving H / G query heads.
      v: [B, T, G, C].
      mask: see `make_attention_mask`.
      cached: keys and values [B, G, S, C] of each part of the KV cache.

    Returns:
      [B, T, H, C].
    """
    heads = jax.typeof(q).sharding.spec[2]
    if heads != jax.typeof(k).sharding.spec[2]:
        # Too few key/value heads to split: they are whole everywhere, and each device repeats them for its queries.
        sharding = jax.P(BATCH, None, heads, None)
        times = q.shape[2] // k.shape[2]
        k, v = (jax.reshard(jnp.repeat(x, times, axis=2), sharding) for x in (k, v))
        sharding = jax.P(BATCH, heads, None, None)

        def repeat(x: jax.Array) -> jax.Array:
            return jax.reshard(jnp.repeat(x, times, axis=1), sharding)

        cached = [(repeat(keys), repeat(values)) for keys, values in cached]
    if mask.implementation == "xla":
        return _xla(q, k, v, mask, cached)
    # Kernels know nothing of meshes: each device calls them on the rows and heads that it holds.
    kernel, read = {
        "blockwise": (partial(blockwise, mask.operands), mask.mask),
        "splash": (_splash, mask.sequences),
        "cudnn": (_cudnn, mask.mask),
    }[mask.implementation]
    split, rows, carried = jax.P(BATCH, None, heads, None), jax.P(BATCH), q.dtype
    if mask.implementation != "blockwise":  # which casts its inputs itself
        q, k, v = (x.astype(mask.operands) for x in (q, k, v))
    run = jax.shard_map(kernel, in_specs=(split, split, split, rows), out_specs=split, check_vma=False)
    return run(q, k, v, read).astype(carried)


def _xla(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: AttentionMask, cached: Sequence[tuple[jax.Array, jax.Array]]
) -> jax.Array:
    heads = jax.typeof(q).sharding.spec[2]
    batch, length, _, channels = q.shape
    groups = k.shape[2]
    q = jnp.reshape(q, (batch, length, groups, -1, channels), out_sharding=jax.P(BATCH, None, heads, None, None))
    # Multiplied in the dtype of the activations: casting the KV cache for each new token would take longer than the
    # product, and XLA on CPUs has no products of bfloat16 with float32 sums in this order of axes (see `products`).
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    split = jax.P(BATCH, heads, None, None, None)
    # A head's queries in one axis: with two, XLA on CPU computes the scores of a cache transposed, and slowly.
    flat = jnp.reshape(q.transpose(0, 2, 3, 1, 4), (batch, groups, -1, channels), out_sharding=jax.P(*split[:4]))
    shape = batch, groups, q.shape[3], length
    scores = [jnp.reshape(product("BGNC,BGSC->BGNS", flat, x), (*shape, -1), out_sharding=split) for x, _ in cached]
    scores.append(product("BTGQC,BSGC->BGQTS", q, k))
    assert mask.mask is not None  # only splash has sequences in its place
    masks = [allowed[:, None, None] for allowed in (*mask.cached, mask.mask)]
    lowest = jnp.finfo(jnp.float32).min
    scores = [jnp.where(allowed, s * channels**-0.5, lowest) for allowed, s in zip(masks, scores, strict=True)]
    # One softmax over all parts.
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1) if cached else scores[0], axis=-1).astype(v.dtype)
    ends = list(accumulate(keys.shape[2] for keys, _ in cached))
    *before, new = jnp.split(weights, ends, axis=-1) if cached else [weights]
    mixed = jnp.einsum("BGQTS,BSGC->BTGQC", new, v)
    for part, (_, values) in zip(before, cached, strict=True):
        part = jnp.reshape(part, (batch, groups, -1, values.shape[2]), out_sharding=jax.P(*split[:4]))
        rows = jnp.einsum("BGNS,BGSC->BGNC", part, values)
        mixed += jnp.reshape(rows, (*shape, channels), out_sharding=split).transpose(0, 3, 1, 2, 4)
    return jnp.reshape(mixed, (batch, length, -1, channels), out_sharding=jax.P(BATCH, None, heads, None))


def blocks(length: int) -> tuple[int, int]:
    """Return the block size of splash, and how many such blocks hold ``length`` tokens with little padding."""
    count = -(-length // LONGEST_BLOCK)
    return -(-length // (count * LANES)) * LANES, count


def _splash(q: jax.Array, k: jax.Array, v: jax.Array, sequences: jax.Array) -> jax.Array:
    """Run splash on one device's rows and heads; on a CPU the kernel is interpreted, slowly, for tests."""
    length, heads, channels = q.shape[1:]
    block, count = blocks(length)
    padding = block * count - length  # on the right, where no token looks
    # The kernel does not scale the scores.
    q = (q.astype(jnp.float32) * channels**-0.5).astype(q.dtype)
    q, k, v = (jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))).swapaxes(1, 2) for x in (q, k, v))
    sequences = jnp.pad(sequences, ((0, 0), (0, padding)))
    from jax.experimental.pallas.ops.tpu import splash_attention  # a tenth of the time in which JAX is imported

    causal = splash_attention.CausalMask((length + padding, length + padding))
    kernel = splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([causal] * heads),
        block_sizes=splash_attention.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=KERNEL_OUT,
        interpret=jax.sharding.get_abstract_mesh().abstract_device.platform == "cpu",
    )
    mixed = jax.vmap(kernel)(q, k, v, splash_attention.SegmentIds(sequences, sequences))
    return mixed.swapaxes(1, 2)[:, :length]  # pyright: ignore[reportAttributeAccessIssue] no residuals: one array


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Run cuDNN's flash attention on one device's rows and heads."""
    length = q.shape[1]
    # cuDNN's backward pass with a mask needs even lengths. With ``is_causal`` it skips later blocks.
    even = length % 2
    q, k, v = (jnp.pad(x, ((0, 0), (0, even), (0, 0), (0, 0))) for x in (q, k, v))
    mask = jnp.pad(mask, ((0, 0), (0, even), (0, even)))[:, None]
    flash = partial(jax.nn.dot_product_attention, is_causal=True, implementation="cudnn")
    return flash(q, k, v, mask=mask)[:, :length]
