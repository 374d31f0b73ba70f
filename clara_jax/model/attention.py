"""Grouped-query attention on arrays whose heads are split over the mesh's model axis: one function, four ways.

"xla" writes the scores down and runs anywhere. "blockwise" (for CPUs), "splash" (a Pallas kernel for TPUs) and "cudnn"
(flash attention on NVIDIA GPUs) compute them block by block and again in the backward pass, so that no [T, S] array of
a head is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate

import flax.struct
import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention

from clara_jax.errors import ClaraError
from clara_jax.model.blockwise import additive, blockwise
from clara_jax.model.sharding import BATCH

IMPLEMENTATIONS = ("auto", "xla", "blockwise", "splash", "cudnn")
LANES = 128  # splash's blocks are multiples of a vector register's lanes
LONGEST_BLOCK = 512


@flax.struct.dataclass
class Scope:
    """Which tokens a token attends to, made once for all layers in the form that the implementation reads.

    A token attends to the tokens of its own sequence up to itself that lie inside the window. Padding is sequence 0, so
    that padding, too, attends to something: to itself at least. What comes out there is finite and means nothing.
    """

    implementation: str = flax.struct.field(pytree_node=False)
    operands: jnp.dtype = flax.struct.field(pytree_node=False)  # in which numbers are multiplied, save by xla
    sequences: jax.Array | None = None  # int32 [B, T], for splash
    mask: jax.Array | None = None  # bool [B, T, T], for the others; for blockwise what is added to scores, float32
    past: tuple[jax.Array, ...] = ()  # bool [B, T, S], of the slots of each part of what was read before


def make_scope(
    implementation: str,
    sequences: jax.Array,
    positions: jax.Array,
    window: int | None,
    channels: int,
    dtype: jnp.dtype,
    past: Sequence[tuple[int, jax.Array]] = (),
) -> Scope:
    """The scope of T new tokens.

    Args:
      implementation: one of `IMPLEMENTATIONS`.
      sequences: bool or int32 [B, T], the number of the sequence that a token belongs to, 0 for padding.
      positions: int32 [B, T], places of the tokens in their sequences, all parts of the past counted.
      window: how many tokens, itself among them, a token attends to; None for all.
      channels: of the heads.
      dtype: in which their numbers are multiplied.
      past: of each part how many slots it has, and how many of them count in a row, int32 [B].

    Raises:
      ClaraError: an implementation that the mesh's devices, the heads or the dtype do not allow.
    """
    length = sequences.shape[1]
    if window is not None and length + sum(slots for slots, _ in past) <= window:
        window = None
    dtype = jnp.dtype(dtype)
    chosen = choose(implementation, channels, dtype, cached=bool(past), windowed=window is not None)
    if chosen != "xla":  # kernels take rows as they are split, and one who calls with few rows may have them whole
        sequences, positions = (jax.reshard(x, jax.P(BATCH, None)) for x in (sequences, positions))
    if chosen == "splash":
        return Scope(chosen, dtype, sequences=sequences.astype(jnp.int32))
    at = jnp.arange(length, dtype=jnp.int32)
    mask = (at <= at[:, None]) & (sequences[:, :, None] == sequences[:, None, :])
    if window is not None:
        mask &= positions[:, :, None] - positions[:, None, :] < window
    if chosen == "blockwise":
        return Scope(chosen, dtype, mask=additive(mask))
    masks, before = [], 0
    for slots, lengths in past:
        slot = jnp.arange(slots, dtype=jnp.int32)
        seen = jnp.broadcast_to((slot < lengths[:, None])[:, None, :], (len(lengths), length, slots))
        if window is not None:
            place = slot + (before if isinstance(before, int) else before[:, None])
            seen &= positions[:, :, None] - jnp.broadcast_to(place, (len(lengths), slots))[:, None, :] < window
        masks.append(seen)
        before = before + lengths
    return Scope(chosen, dtype, mask=mask, past=tuple(masks))


def choose(implementation: str, channels: int, dtype: jnp.dtype, cached: bool, windowed: bool) -> str:
    """The implementation for the devices of the current mesh, which for ahead-of-time compilation are not this host's.

    With a past it is XLA's, whatever is asked for: the new tokens are few. So it is with a window that cuts something
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
            f'{channels}; choose "auto" or "xla"'
        )
    return implementation


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, scope: Scope, past: Sequence[tuple[jax.Array, jax.Array]] = ()
) -> jax.Array:
    """softmax(q kᵀ / √C) v over the scope, scores and softmax in float32.

    Args:
      q: [B, T, H, C].
      k, v: [B, T, G, C], each key/value head serving H / G query heads.
      past: keys and values [B, G, S, C] of tokens that were read before, part by part.

    Returns:
      [B, T, H, C].
    """
    heads = jax.typeof(q).sharding.spec[2]
    if heads != jax.typeof(k).sharding.spec[2]:
        # Too few key/value heads to split: they are whole everywhere, and each device repeats them for its own queries.
        sharding = jax.P(BATCH, None, heads, None)
        times = q.shape[2] // k.shape[2]
        k, v = (jax.reshard(jnp.repeat(x, times, axis=2), sharding) for x in (k, v))
        sharding = jax.P(BATCH, heads, None, None)
        past = [[jax.reshard(jnp.repeat(x, times, axis=1), sharding) for x in part] for part in past]
    if scope.implementation == "xla":
        return _xla(q, k, v, scope, past)
    # Kernels know nothing of meshes: each device calls them on its own rows and heads.
    kernel, read = {
        "blockwise": (partial(blockwise, scope.operands), scope.mask),
        "splash": (_splash, scope.sequences),
        "cudnn": (_cudnn, scope.mask),
    }[scope.implementation]
    split, rows, carried = jax.P(BATCH, None, heads, None), jax.P(BATCH), q.dtype
    if scope.implementation != "blockwise":  # which casts by itself, and gives float32
        q, k, v = (x.astype(scope.operands) for x in (q, k, v))
    run = jax.shard_map(kernel, in_specs=(split, split, split, rows), out_specs=split, check_vma=False)
    return run(q, k, v, read).astype(carried)


def _xla(q: jax.Array, k: jax.Array, v: jax.Array, scope: Scope, past: Sequence[tuple[jax.Array, jax.Array]]):
    heads = jax.typeof(q).sharding.spec[2]
    batch, length, _, channels = q.shape
    groups = k.shape[2]
    q = jnp.reshape(q, (batch, length, groups, -1, channels), out_sharding=jax.P(BATCH, None, heads, None, None))
    # Numbers are multiplied as they are carried: to cast a past for each new token would take longer than the product,
    # and of products in this order of axes XLA on CPUs has none with bfloat16 and float32 sums (see `products`).
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    split = jax.P(BATCH, heads, None, None, None)
    # A head's queries in one axis: with two, XLA on CPU computes the scores of a past transposed, and slowly.
    flat = jnp.reshape(q.transpose(0, 2, 3, 1, 4), (batch, groups, -1, channels), out_sharding=jax.P(*split[:4]))
    shape = batch, groups, q.shape[3], length
    scores = [jnp.reshape(product("BGNC,BGSC->BGNS", flat, x), (*shape, -1), out_sharding=split) for x, _ in past]
    scores.append(product("BTGQC,BSGC->BGQTS", q, k))
    masks = [mask[:, None, None] for mask in (*scope.past, scope.mask)]
    lowest = jnp.finfo(jnp.float32).min
    scores = [jnp.where(mask, s * channels**-0.5, lowest) for mask, s in zip(masks, scores, strict=True)]
    # One softmax over all parts.
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1) if past else scores[0], axis=-1).astype(v.dtype)
    ends = list(accumulate(keys.shape[2] for keys, _ in past))
    *before, own = jnp.split(weights, ends, axis=-1) if past else [weights]
    mixed = jnp.einsum("BGQTS,BSGC->BTGQC", own, v)
    for part, (_, values) in zip(before, past, strict=True):
        part = jnp.reshape(part, (batch, groups, -1, values.shape[2]), out_sharding=jax.P(*split[:4]))
        rows = jnp.einsum("BGNS,BGSC->BGNC", part, values)
        mixed += jnp.reshape(rows, (*shape, channels), out_sharding=split).transpose(0, 3, 1, 2, 4)
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
