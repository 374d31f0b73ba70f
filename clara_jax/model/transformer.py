"""The backbone: embed, a stack of blocks, final norm, unembed.

The blocks are scanned over weights that are stacked along the layers; or, where ``params["layers"]`` is a tuple, they
follow each other, each with arrays of its own, which a CPU reads without a copy (`clara_jax.inference.weights`).

Flax Linen, used functionally: the collections are ``params`` (the frozen base), ``lora`` (one role's adapter, or
absent) and ``tokens`` (rows of added tokens). Choosing a role is choosing the subtree that goes into ``lora``. Modules
only look leaves up; what the leaves are is declared in `clara_jax.model.declare`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from clara_jax.model.attention import Scope, attention, make_scope
from clara_jax.model.cache import Past
from clara_jax.model.config import ModelConfig
from clara_jax.model.declare import Map, linear_units
from clara_jax.model.lora import Dropout, LoRALinear
from clara_jax.model.output_major import OutputMajor, stored_product
from clara_jax.model.products import product
from clara_jax.model.rope import rotate, rotations
from clara_jax.model.sharding import BATCH

REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "names": jax.checkpoint_policies.save_only_these_names("block_in", "attention_out"),
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["block_in", "attention_out"],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}

# What is only looked at: programs hold nothing of it, except where `apply` is told that this collection is mutable.
LOOKED_AT = "intermediates"
KeysValues = tuple[tuple[jax.Array, jax.Array], ...]  # of one layer, [B, G, S, C], part by part


class Context(NamedTuple):
    """What every block reads: the same for all layers."""

    scope: Scope  # which tokens each token attends to
    rotation: tuple[jax.Array, jax.Array]
    dropout: Dropout | None


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, in float32 (Zhang and Sennrich 2019)."""

    eps: float

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return (wide * self.get_variable("params", "scale").astype(jnp.float32)).astype(x.dtype)


def project(
    group: Mapping[str, Mapping[str, Map]], first_site: int, scale: float, operands, x, layer, dropout
) -> dict[str, jax.Array]:
    """Applies several units to one input; call it inside a module's compact method."""
    results = {}
    for site, (unit, maps) in enumerate(group.items(), first_site):
        results |= LoRALinear(maps, site, scale, operands, name=unit)(x, layer, dropout)
    return results


class Attention(nn.Module):
    """Rotary grouped-query attention."""

    config: ModelConfig
    lora_scale: float
    operands: Any

    @nn.compact
    def __call__(
        self, x: jax.Array, layer: jax.Array, past: KeysValues, context: Context
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """The output, and the keys and values [B, T, G, C] of the T tokens."""
        config = self.config
        group = linear_units(config)["attention"]
        out = {"o": group.pop("o")}
        y = project(group, 0, self.lora_scale, self.operands, x, layer, context.dropout)
        q, k, v = y["q"], y["k"], y["v"]
        if config.qk_norm:
            q = RMSNorm(config.norm_eps, name="q_norm")(q)
            k = RMSNorm(config.norm_eps, name="k_norm")(k)
        # LongRoPE may change tables while a sequence grows: as in the released code, a key that is kept keeps its own.
        q, k = rotate(q, context.rotation), rotate(k, context.rotation)
        self.sow(LOOKED_AT, "queries", q)
        mixed = attention(q, k, v, context.scope, past)
        return project(out, 4, self.lora_scale, self.operands, mixed, layer, context.dropout)["o"], (k, v)


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020)."""

    config: ModelConfig
    lora_scale: float
    operands: Any

    @nn.compact
    def __call__(self, x: jax.Array, layer: jax.Array, dropout: Dropout | None) -> jax.Array:
        group = linear_units(self.config)["mlp"]
        down = {"down": group.pop("down")}
        y = project(group, 8, self.lora_scale, self.operands, x, layer, dropout)
        y = jax.nn.silu(y["gate"]) * y["up"]
        return project(down, 12, self.lora_scale, self.operands, y, layer, dropout)["down"]


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): as a step of a scan over layers, x being the carry."""

    config: ModelConfig
    lora_scale: float
    operands: Any
    keep: bool

    @nn.compact
    def __call__(self, x: jax.Array, layer: jax.Array, past: KeysValues, context: Context):
        x = checkpoint_name(x, "block_in")
        eps = self.config.norm_eps
        y = RMSNorm(eps, name="attention_norm")(x)
        y, own = Attention(self.config, self.lora_scale, self.operands, name="attention")(y, layer, past, context)
        x = x + checkpoint_name(y, "attention_out")
        y = RMSNorm(eps, name="mlp_norm")(x)
        y = MLP(self.config, self.lora_scale, self.operands, name="mlp")(y, layer, context.dropout)
        return x + y, tuple(part.swapaxes(1, 2) for part in own) if self.keep else None


class Transformer(nn.Module):
    """The whole backbone. Call its methods through `apply`, e.g. ``model.apply(variables, ids, method="embed")``.

    Attributes:
      config: the architecture.
      lora_scale: alpha / rank of the adapter in the ``lora`` collection.
      dtype: of everything between two products; norms, softmax and rotations are float32 whatever it is.
      operands: the dtype in which numbers are multiplied; default ``dtype``.
      remat: what the backward pass keeps of a block: "none" (everything), "full" (its input), "dots" (matrix products),
        "names" (its input and the output of attention), "offload" (the same, but in the host's memory).
      attention: how scores are computed, one of `attention.IMPLEMENTATIONS`; "auto" goes by the mesh's devices.
    """

    config: ModelConfig
    lora_scale: float = 1.0
    dtype: Any = jnp.bfloat16
    operands: Any = None
    remat: str = "none"
    attention: str = "auto"

    def embed(self, ids: jax.Array) -> jax.Array:
        """Token ids, int32 [B, T] -> embeddings [B, T, E]. Ids from V on are rows of the ``tokens`` collection."""
        table = self.variables["params"]["embed"]["table"]
        known, out = jnp.minimum(ids, self.config.vocab_size - 1), jax.P(BATCH, None, None)
        if isinstance(table, OutputMajor):
            table = table.values
        # Gathering the width first leaves one gather of the table and a local sum over "model".
        table = jax.reshard(table, jax.P(jax.typeof(table).sharding.spec[0], None))
        x = table.at[known].get(out_sharding=out).astype(self.dtype)
        if "tokens" not in self.variables:
            return x
        tokens = self.variables["tokens"]
        rows = jnp.concatenate([tokens["memory"], tokens["markers"]]).astype(self.dtype)
        added = rows.at[jnp.maximum(ids - self.config.vocab_size, 0)].get(out_sharding=out)
        return jnp.where((ids >= self.config.vocab_size)[..., None], added, x)

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array,
        past: Sequence[Past] = (),
        dropout: Dropout | None = None,
        keep: bool = False,
    ) -> tuple[jax.Array, Past | None]:
        """Runs the blocks and the final norm.

        Args:
          x: embeddings [B, T, E].
          mask: bool [B, T], which of the T tokens are attended; or int32 [B, T] where a row holds several sequences: 1,
            2, ... in order, and 0 where nothing is attended. Padding may stand anywhere; positions count the attended
            tokens of a sequence, so neither padding nor neighbours change a result beyond rounding. With a past a row
            is one sequence.
          past: keys and values of earlier tokens, in parts that follow each other.
          dropout: for the adapters' inputs, in training.
          keep: return the new tokens' keys and values. Padding must stand on the right then.

        Returns:
          the last layer's states after the final norm, [B, T, E]; what is to be kept, with T slots, or None.
        """
        context = self._context(mask, past, dropout)
        own = tuple((part.k, part.v) for part in past)
        apart = isinstance(self.variables["params"]["layers"], tuple)
        x, kept = (self._one_by_one if apart else self._scan)(x.astype(self.dtype), own, context, keep)
        x = RMSNorm(self.config.norm_eps, name="final_norm")(x)
        return x, Past(*kept, jnp.sum(mask != 0, axis=1, dtype=jnp.int32)) if keep else None

    def _scan(self, x: jax.Array, past: KeysValues, context: Context, keep: bool):
        """All blocks by one program of a block, over weights that are stacked along the layers."""
        block = Block
        if self.remat != "none":
            # Inside a scan nothing can be merged across the checkpoint's border, so CSE need not be prevented.
            block = nn.remat(Block, policy=REMAT_POLICIES[self.remat], prevent_cse=False)
        layers = nn.scan(
            block,
            variable_axes={"params": 0, "lora": 0, LOOKED_AT: 0},
            split_rngs={"params": False},
            in_axes=(0, 0, nn.broadcast),
            length=self.config.layers,
        )(self.config, self.lora_scale, self.operands, keep, name="layers")
        return layers(x, jnp.arange(self.config.layers, dtype=jnp.int32), past, context)

    def _one_by_one(self, x: jax.Array, past: KeysValues, context: Context, keep: bool):
        """The blocks after each other, each with weights of its own; for answers alone (no adapter, no gradient)."""
        block = Block(self.config, self.lora_scale, self.operands, keep, parent=None)
        kept = []
        for number, weights in enumerate(self.variables["params"]["layers"]):
            read = jax.tree.map(lambda part, number=number: part[number], past)
            x, own = block.apply({"params": weights}, x, jnp.int32(number), read, context)
            kept.append(own)
        return x, jax.tree.map(lambda *own: jnp.stack(own), *kept)

    def unembed(self, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """States [B, T, E] -> float32 logits of the base's vocabulary [B, T, V] and of the added tokens [B, T, added].

        They are kept apart because the first are split over "model" and the second whole; `join_logits` puts them
        together.
        """
        base = self.variables["params"]
        table = (base["embed"] if self.config.tied else base["lm_head"])["table"]
        values = table.values if isinstance(table, OutputMajor) else table
        split = jax.P(BATCH, None, jax.typeof(values).sharding.spec[0])
        if isinstance(table, OutputMajor):
            logits = stored_product("BTE,VE->BTV", x, values, split)
        else:
            logits = product("BTE,VE->BTV", x, table, self.operands, split, result=jnp.float32)
        if "tokens" not in self.variables:
            return logits, None
        tokens = self.variables["tokens"]
        rows = jnp.concatenate([tokens["memory"], tokens["markers"]]) if self.config.tied else tokens["output"]
        added = jnp.einsum("BTE,SE->BTS", x, rows.astype(x.dtype), preferred_element_type=jnp.float32)
        return logits, added

    def _context(self, mask: jax.Array, past: Sequence[Past], dropout: Dropout | None) -> Context:
        """Positions, rotations and what is attended to, once for all layers."""
        before = sum((part.lengths for part in past), jnp.int32(0))
        before = before[:, None] if past else before
        positions = positions_of(mask) + before  # [B, T]
        seen = (mask != 0)[:, None, :]
        if mask.dtype != bool:
            seen &= mask[:, :, None] == mask[:, None, :]
        attended = jnp.sum(seen, axis=-1, dtype=jnp.int32) + before  # [B, T], or [B, 1] where a row is one sequence
        heads = (self.config.head_channels, self.operands or self.dtype)
        parts = [(part.slots, part.lengths) for part in past]
        scope = make_scope(self.attention, mask, positions, self.config.sliding_window, *heads, parts)
        return Context(scope, rotations(self.config.rope, positions, attended), dropout)


def positions_of(mask: jax.Array) -> jax.Array:
    """Places in their sequence, int32 [B, T], with a mask as for `Transformer.__call__`."""
    before = jnp.cumsum(mask != 0, axis=1, dtype=jnp.int32) - 1
    if mask.dtype == bool:
        return jnp.maximum(before, 0)
    newest = jax.lax.cummax(mask, axis=1)
    begins = newest > jnp.pad(newest[:, :-1], ((0, 0), (1, 0)))
    return jnp.maximum(before - jax.lax.cummax(jnp.where(begins, before, 0), axis=1), 0)


def join_logits(base: jax.Array, added: jax.Array | None) -> jax.Array:
    """All logits in one array [B, T, V + added], whole along the vocabulary."""
    if added is None:
        return base
    return jnp.concatenate([jax.reshard(base, jax.P(BATCH, None, None)), added], axis=-1)
