"""Linear maps with an optional low-rank adapter (Hu et al. 2021): y = x W + b + (alpha / R) (dropout(x) A) B."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float, Int32, UInt32

from clara_jax.model.declare import ProjectionGroup
from clara_jax.model.output_major import OutputMajor, stored_product
from clara_jax.model.products import product
from clara_jax.model.quantization import is_quantized, quantized_product
from clara_jax.model.sharding import BATCH, join_rows, split_rows

# Where dropout is drawn in a block: a number for each projection group, which is folded into an example's key with the
# layer's. A group that is stored in the place of several has the first one's. Other numbers are other masks: they stay.
SITES = {"q": 0, "k": 1, "v": 2, "qkv": 0, "o": 4, "gate": 8, "up": 9, "gate_up": 8, "down": 12}
SITES_OF_LAYER = 16


@flax.struct.dataclass
class Dropout:
    """Dropout on the adapters' inputs with masks that depend on example and token, never on where it is computed.

    A key is folded per layer and projection, then per token position counted from the first attended token; so a batch
    that is sharded, accumulated, padded or packed otherwise, or resumed sees the same masks.
    """

    keys: jax.Array  # typed PRNG keys [B, S], one per example and step
    segment_ids: jax.Array  # int32 [B, T], the number of a token's sequence in its row, from 1; 0 for padding
    positions: jax.Array  # int32 [B, T]
    rate: float = flax.struct.field(pytree_node=False)

    def __call__(
        self, x: Float[jax.Array, "B T *channels"], site: Int32[jax.Array, ""]
    ) -> Float[jax.Array, "B T *channels"]:
        """Drop entries of x and scale the rest by 1 / (1 - rate).

        Args:
          x: input of a projection group.
          site: the group's, ``SITES_OF_LAYER * layer + SITES[group]``.
        """
        keys = jax.random.key_data(jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(self.keys, site))
        keys = jnp.take_along_axis(keys, jnp.maximum(self.segment_ids - 1, 0)[..., None], axis=1)  # of tokens
        keys = jax.random.wrap_key_data(keys, impl=jax.random.key_impl(self.keys))
        seeds = jax.vmap(jax.vmap(_seed))(keys, self.positions)  # uint32 [B, T]
        channels = jnp.arange(math.prod(x.shape[2:]), dtype=jnp.uint32).reshape(x.shape[2:])
        draw = mix(seeds.reshape(*seeds.shape, *[1] * channels.ndim) + channels * jnp.uint32(0x9E3779B9))
        keep = draw >= jnp.uint32(self.rate * 2**32)
        return jnp.where(keep, x / (1 - self.rate), 0).astype(x.dtype)


def _seed(key: jax.Array, position: jax.Array) -> jax.Array:
    return jax.random.bits(jax.random.fold_in(key, position))


def mix(x: UInt32[jax.Array, "*shape"]) -> UInt32[jax.Array, "*shape"]:
    """Scatter uint32 counters over all uint32 values: the finalizer of MurmurHash3 (Appleby 2011).

    Dropout needs a bit for every channel of every adapter's input. JAX's generator would take longer than the adapters,
    so that it only seeds each token, and this function spreads the seed over the channels.
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


class LoRALinear(nn.Module):
    """The projections of one group (see `projection_groups`): one input, one A, a kernel and a B for each.

    Attributes:
      projections: by name.
      site: of its dropout, one of `SITES`.
      scale: alpha / rank.
      operands: the dtype in which x is multiplied with a kernel; default x's. A and B are multiplied in x's: their rank
        is too small for a processor's bfloat16 instructions.
    """

    projections: ProjectionGroup
    site: int
    scale: float
    operands: Any = None

    def __call__(
        self, x: Float[jax.Array, "B T *inputs"], layer: Int32[jax.Array, ""], dropout: Dropout | None
    ) -> dict[str, Float[jax.Array, "B T ..."]]:
        """Map x [B, T, inputs...] to {name: [B, T, outputs...]} in x's dtype."""
        ins = next(iter(self.projections.values())).input_letters
        # After attention and inside the MLP the contracted axis is split over "model": the sum over it must be
        # requested.
        summed = jax.P(BATCH, None) if ins != "E" else None
        params = self.variables["params"]
        adapter = self.variables.get("lora")
        dropped = x if adapter is None or dropout is None else dropout(x, layer * SITES_OF_LAYER + self.site)
        # Rows and tokens become one axis N: with two, XLA on CPU computes every output's gradient a second time,
        # transposed, for the gradient of its kernel.
        length = x.shape[1]
        x, dropped = join_rows(x), join_rows(dropped)
        low_rank = None  # x A, and B by name
        if adapter is not None:
            a = adapter["a"].astype(x.dtype)
            low_rank = jnp.einsum(f"N{ins},{ins}R->NR", dropped, a, out_sharding=summed), adapter["b"]
        results = {}
        for name, linear in self.projections.items():
            outs = linear.output_letters
            kernel = params["kernel"][name]
            if isinstance(kernel, OutputMajor):
                y = stored_product(f"N{ins},{outs}{ins}->N{outs}", x, kernel.values, summed).astype(x.dtype)
            else:
                equation = f"N{ins},{ins}{outs}->N{outs}"
                if is_quantized(kernel):
                    y = quantized_product(equation, x, kernel, self.operands, summed)
                else:
                    y = product(equation, x, kernel, self.operands, summed)
            if linear.bias:
                y += params["bias"][name].astype(x.dtype)
            if low_rank is not None:
                low, b = low_rank[0], low_rank[1][name].astype(x.dtype)
                y += self.scale * jnp.einsum(f"NR,R{outs}->N{outs}", low, b, out_sharding=summed)
            results[name] = checkpoint_name(split_rows(y, length), name)  # see `transformer.REMAT_POLICIES`
        return results
