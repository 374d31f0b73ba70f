"""Grouped-query attention on arrays whose heads are split over the mesh's model axis: one function, three ways.

"xla" writes the scores down and runs anywhere. "splash" (a Pallas kernel for TPUs) and "cudnn" (flash attention on
NVIDIA GPUs) compute them block by block and again in the backward pass, so that no [T, S] array exists for a head.
"""

from __future__ import annotations

from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention

from clara_jax.errors import ClaraError
from clara_jax.model.sharding import BATCH

IMPLEMENTATIONS = ("auto", "xla", "splash", "cudnn")
LANES = 128  # splash's blocks are multiples of a vector register's lanes
LONGEST_BLOCK = 512


@flax.struct.dataclass
class Scope:
    """Which slots a token attends to, made once for all layers in the form that the implementation reads.

    A token attends to the tokens of its own sequence up to itself that lie inside the window. Padding is sequence 0, so
    that padding, too, attends to something: to itself at least. What comes out there is finite and means nothing.
    """

    implementation: str = flax.struct.field(pytree_node=False)
    sequences: jax.Array | None = None  # int32 [B, T], for splash
    mask: jax.Array | None = None  # bool [B, T, S], for the others


def make_scope(
    implementation: str,
    sequences: jax.Array,
    positions: jax.Array,
    window: int | None,
    channels: int,
    dtype: jnp.dtype,
    start: jax.Array | None = None,
    length: int | None = None,
) -> Scope:
    """The scope of T tokens among S slots.

    Args:
      implementation: one of `IMPLEMENTATIONS`.
      sequences: bool or int32 [B, S], the number of the sequence that a slot belongs to, 0 for padding.
      positions: int32 [B, S], places of the tokens in their sequences.
      window: how many tokens, itself among them, a token attends to; None for all.
      channels, dtype: of the heads.
      start, length: where slots hold earlier tokens: the T = ``length`` tokens stand from slot ``start`` on.

    Raises:
      ClaraError: an implementation that the mesh's devices, the heads or the dtype do not allow.
    """
    slots = sequences.shape[1]
    if window is not None and slots <= window:
        window = None
    chosen = choose(implementation, channels, dtype, cached=start is not None, windowed=window is not None)
    if chosen == "splash":
        return Scope(chosen, sequences=sequences.astype(jnp.int32))
    queries, places, first = sequences, positions, 0
    if start is not None:
        queries, places = (jax.lax.dynamic_slice_in_dim(x, start, length, axis=1) for x in (sequences, positions))
        first = start
    at = first + jnp.arange(queries.shape[1], dtype=jnp.int32)
    mask = (jnp.arange(slots, dtype=jnp.int32) <= at[:, None]) & (queries[:, :, None] == sequences[:, None, :])
    if window is not None:
        mask &= places[:, :, None] - positions[:, None, :] < window
    return Scope(chosen, mask=mask)


def choose(implementation: str, channels: int, dtype: jnp.dtype, cached: bool, windowed: bool) -> str:
    """The implementation for the devices of the current mesh, which for ahead-of-time compilation are not this host's.

    Decoding is XLA's, whatever is asked for: T is 1, and S the same in every step. So is a window that cuts something
    off, instead of splash: a window counts attended tokens, splash could count slots, and padding may stand between.

    Raises:
      ClaraError: as `make_scope`.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    platform, kind = (device.platform, device.device_kind) if device is not None else ("cpu", "")
    flash = jnp.dtype(dtype).itemsize == 2 and channels % 8 == 0 and channels <= 128
    if implementation == "auto":
        # Device kinds such as "Tesla T4" are too old for flash attention, and other GPUs have no cuDNN.
        on_gpu = "cudnn" if kind.startswith("NVIDIA") and flash else "xla"
        implementation = {"tpu": "splash", "gpu": on_gpu}.get(platform, "xla")
    if cached or implementation == "xla" or (implementation == "splash" and windowed):
        return "xla"
    if implementation == "splash" and platform == "gpu":
        raise ClaraError('attention: "splash" needs TPUs, and the mesh has GPUs; choose "auto", "cudnn" or "xla"')
    if implementation == "cudnn" and platform != "gpu":
        raise ClaraError(f'attention: "cudnn" needs NVIDIA GPUs, and the mesh has {kind}; choose "auto" or "xla"')
    if implementation == "cudnn" and not flash:
        raise ClaraError(
            f'attention: "cudnn" needs bfloat16 and heads of at most 128 channels, a multiple of 8, not {dtype} and '
            f'{channels}; choose "auto" or "xla"'
        )
    return implementation


def attention(q: jax.Array, k: jax.Array, v: jax.Array, scope: Scope) -> jax.Array:
    """softmax(q kᵀ / √C) v over the scope, scores and softmax in float32.

    Args:
      q: [B, T, H, C].
      k, v: [B, S, G, C], each key/value head serving H / G query heads.

    Returns:
      [B, T, H, C].
    """
    heads = jax.typeof(q).sharding.spec[2]
    if heads != jax.typeof(k).sharding.spec[2]:
        # Too few key/value heads to split: they are whole everywhere, and each device repeats them for its own queries.
        sharding = jax.P(BATCH, None, heads, None)
        k, v = (jax.reshard(jnp.repeat(x, q.shape[2] // x.shape[2], axis=2), sharding) for x in (k, v))
    if scope.implementation == "xla":
        return _xla(q, k, v, scope.mask)
    # Kernels know nothing of meshes: each device calls them on its own rows and heads.
    kernel, read = {"splash": (_splash, scope.sequences), "cudnn": (_cudnn, scope.mask)}[scope.implementation]
    split, rows = jax.P(BATCH, None, heads, None), jax.P(BATCH)
    return jax.shard_map(kernel, in_specs=(split, split, split, rows), out_specs=split, check_vma=False)(q, k, v, read)


def _xla(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    heads = jax.typeof(q).sharding.spec[2]
    batch, length, _, channels = q.shape
    groups = k.shape[2]
    q = jnp.reshape(q, (batch, length, groups, -1, channels), out_sharding=jax.P(BATCH, None, heads, None, None))
    scores = jnp.einsum("BTGQC,BSGC->BGQTS", q, k, preferred_element_type=jnp.float32) * channels**-0.5
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    mixed = jnp.einsum("BGQTS,BSGC->BTGQC", weights, v)
    return jnp.reshape(mixed, (batch, length, -1, channels), out_sharding=jax.P(BATCH, None, heads, None))


def blocks(length: int) -> tuple[int, int]:
    """Tokens of a block of splash, and how many blocks hold ``length`` tokens: few, and little longer than they."""
    count = -(-length // LONGEST_BLOCK)
    return -(-length // (count * LANES)) * LANES, count


def _splash(q: jax.Array, k: jax.Array, v: jax.Array, sequences: jax.Array) -> jax.Array:
    """One device's rows and heads. On a CPU the kernel is interpreted, slowly: for tests."""
    length, heads, channels = q.shape[1:]
    block, count = blocks(length)
    padding = block * count - length  # on the right, where no token looks
    # The kernel does not scale the scores.
    q = (q.astype(jnp.float32) * channels**-0.5).astype(q.dtype)
    q, k, v = (jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))).swapaxes(1, 2) for x in (q, k, v))
    sequences = jnp.pad(sequences, ((0, 0), (0, padding)))
    causal = splash_attention.CausalMask((length + padding, length + padding))
    kernel = splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([causal] * heads),
        block_sizes=splash_attention.BlockSizes(
            **{f"block_{x}": block for x in ("q", "kv", "q_dkv", "kv_dkv", "q_dq", "kv_dq")}
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=jax.sharding.get_abstract_mesh().abstract_device.platform == "cpu",
    )
    mixed = jax.vmap(kernel)(q, k, v, splash_attention.SegmentIds(sequences, sequences))
    return mixed.swapaxes(1, 2)[:, :length]


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """One device's rows and heads."""
    length = q.shape[1]
    # cuDNN's backward pass with a mask wants even lengths. Told that the mask is causal, it leaves later blocks out.
    even = length % 2
    q, k, v = (jnp.pad(x, ((0, 0), (0, even), (0, 0), (0, 0))) for x in (q, k, v))
    mask = jnp.pad(mask, ((0, 0), (0, even), (0, even)))[:, None]
    flash = partial(jax.nn.dot_product_attention, is_causal=True, implementation="cudnn")
    return flash(q, k, v, mask=mask)[:, :length]
