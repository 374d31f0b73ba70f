"""The backbone: embed, a stack of blocks, final norm, unembed.

The blocks are scanned over weights that are stacked along the layers; or, where ``params["layers"]`` is a tuple, they
are called one by one, each with separate arrays, which a CPU reads without a copy (`clara_jax.inference.weights`).

Flax Linen, used functionally: the collections are ``params`` (the frozen base), ``lora`` (one role's adapter, or
absent) and ``tokens`` (rows of added tokens). Choosing a role is choosing the subtree that goes into ``lora``. Modules
only look leaves up; they are declared in `clara_jax.model.declare`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Bool, Float, Float32, Int32, Key

from clara_jax.model.attention import KERNEL_OUT, AttentionMask, attention, make_attention_mask
from clara_jax.model.cache import KVCache
from clara_jax.model.config import ModelConfig
from clara_jax.model.declare import ProjectionGroup, declare_base, initialise, projection_groups
from clara_jax.model.lora import SITES, Dropout, LoRALinear
from clara_jax.model.output_major import OutputMajor, stored_product
from clara_jax.model.products import product
from clara_jax.model.rope import rotate, rotations
from clara_jax.model.sharding import BATCH, Array

# Values of a block by name, in the order in which the next one saves the most products for what it takes.
_STATES = ("block_in", "attention_out")
_MLP = ("gate", "up")
_ATTENTION = ("q", "k", "v", KERNEL_OUT)
REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "names": jax.checkpoint_policies.save_only_these_names(*_STATES),
    "mlp": jax.checkpoint_policies.save_only_these_names(*_STATES, *_MLP),
    "products": jax.checkpoint_policies.save_only_these_names(*_STATES, *_MLP, *_ATTENTION),
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=list(_STATES),
        offload_src="device",
        offload_dst="pinned_host",
    ),
}

# Collection of values for analysis: a program computes them only where `apply` gets it as mutable.
INTERMEDIATES = "intermediates"
Mask = Bool[Array, "B T"] | Int32[Array, "B T"]  # see `Transformer.__call__`
# Of one layer, part by part; parts differ in their number of slots.
KeysValues = tuple[tuple[Float[jax.Array, "B G _ C"], Float[jax.Array, "B G _ C"]], ...]


class Context(NamedTuple):
    """Inputs of every block that are the same for all layers."""

    attention_mask: AttentionMask
    rotation: tuple[jax.Array, jax.Array]
    dropout: Dropout | None


class RMSNorm(nn.Module):
    """Root mean square norm: x / rms(x) * scale over the last axis, in float32 (Zhang and Sennrich 2019)."""

    eps: float

    def __call__(self, x: Float[jax.Array, "*shape"]) -> Float[jax.Array, "*shape"]:
        """Normalize x [..., E] (or heads [..., C])."""
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return (wide * self.get_variable("params", "scale").astype(jnp.float32)).astype(x.dtype)


def project(
    groups: Mapping[str, ProjectionGroup],
    scale: float,
    operands: Any,
    x: Float[jax.Array, "B T *inputs"],
    layer: Int32[jax.Array, ""],
    dropout: Dropout | None,
) -> dict[str, Float[jax.Array, "B T ..."]]:
    """Apply several projection groups to one input; call it inside a module's compact method."""
    results = {}
    for name, group in groups.items():
        results |= LoRALinear(group, SITES[name], scale, operands, name=name)(x, layer, dropout)
    return results


class Attention(nn.Module):
    """Rotary grouped-query attention."""

    config: ModelConfig
    lora_scale: float
    operands: Any

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "B T E"], layer: Int32[jax.Array, ""], cached: KeysValues, context: Context
    ) -> tuple[Float[jax.Array, "B T E"], tuple[Float[jax.Array, "B T G C"], Float[jax.Array, "B T G C"]]]:
        """Return the output [B, T, E], and the keys and values [B, T, G, C] of the T tokens."""
        config = self.config
        groups = projection_groups(config)["attention"]
        out = {"o": groups.pop("o")}
        y = project(groups, self.lora_scale, self.operands, x, layer, context.dropout)
        q, k, v = y["q"], y["k"], y["v"]
        if config.qk_norm:
            q = RMSNorm(config.norm_eps, name="q_norm")(q)
            k = RMSNorm(config.norm_eps, name="k_norm")(k)
        # LongRoPE may change tables while a sequence grows: as in the released code, cached keys are not rotated again.
        q, k = rotate(q, context.rotation), rotate(k, context.rotation)
        self.sow(INTERMEDIATES, "queries", q)
        mixed = attention(q, k, v, context.attention_mask, cached)
        return project(out, self.lora_scale, self.operands, mixed, layer, context.dropout)["o"], (k, v)


class MLP(nn.Module):
    """Gated MLP: down(silu(gate(x)) * up(x)) (Shazeer 2020)."""

    config: ModelConfig
    lora_scale: float
    operands: Any

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "B T E"], layer: Int32[jax.Array, ""], dropout: Dropout | None
    ) -> Float[jax.Array, "B T E"]:
        """Return the output [B, T, E]."""
        groups = projection_groups(self.config)["mlp"]
        down = {"down": groups.pop("down")}
        y = project(groups, self.lora_scale, self.operands, x, layer, dropout)
        y = jax.nn.silu(y["gate"]) * y["up"]
        return project(down, self.lora_scale, self.operands, y, layer, dropout)["down"]


class Block(nn.Module):
    """Pre-norm block, x + attention(norm(x)), then x + mlp(norm(x)): a step of a scan over layers that carries x."""

    config: ModelConfig
    lora_scale: float
    operands: Any
    return_kv: bool

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "B T E"], layer: Int32[jax.Array, ""], cached: KeysValues, context: Context
    ) -> tuple[Float[jax.Array, "B T E"], tuple[Float[jax.Array, "B G T C"], ...] | None]:
        """Return the states [B, T, E], and the tokens' keys and values [B, G, T, C] or None."""
        x = checkpoint_name(x, "block_in")
        eps = self.config.norm_eps
        y = RMSNorm(eps, name="attention_norm")(x)
        y, kv = Attention(self.config, self.lora_scale, self.operands, name="attention")(y, layer, cached, context)
        x = x + checkpoint_name(y, "attention_out")
        y = RMSNorm(eps, name="mlp_norm")(x)
        y = MLP(self.config, self.lora_scale, self.operands, name="mlp")(y, layer, context.dropout)
        return x + y, tuple(part.swapaxes(1, 2) for part in kv) if self.return_kv else None


class Transformer(nn.Module):
    """The whole backbone. Call its methods through `apply`, e.g. ``model.apply(variables, ids, method="embed")``.

    Attributes:
      config: the architecture.
      lora_scale: alpha / rank of the adapter in the ``lora`` collection.
      dtype: of activations; norms, softmax and rotations are float32 whatever it is.
      operands: dtype of the products' inputs; default ``dtype``.
      remat: what is stored of a block for the backward pass: "none" (everything), "full" (its input), "dots" (matrix
        products, those of adapters as well), "names" (its input and the output of attention), "mlp" (these, and gate
        and up), "products" (these, queries, keys, values and what attention makes of them: no large product of the
        forward pass runs twice), "offload" (what "names" does, but in the host's memory).
      attention: one of `attention.IMPLEMENTATIONS`; "auto" depends on the mesh's devices.
    """

    config: ModelConfig
    lora_scale: float = 1.0
    dtype: Any = jnp.bfloat16
    operands: Any = None
    remat: str = "none"
    attention: str = "auto"

    def init(self, key: Key[jax.Array, ""], mesh: jax.sharding.Mesh) -> dict[str, Any]:
        """Return fresh values of the parameters that `clara_jax.model.declare` declares: ``{"params": ...}``.

        In place of flax's, which would trace a call to find them.

        Args:
          key: a PRNG key; each leaf depends on it, its path and its shape alone.
          mesh: on which they are made.
        """
        return {"params": initialise(declare_base(self.config, self.dtype), key, mesh)}

    def embed(self, ids: Int32[Array, "B T"]) -> Float[jax.Array, "B T E"]:
        """Return embeddings [B, T, E] of int32 [B, T]; ids from V on are rows of the ``tokens`` collection."""
        table = self.variables["params"]["embed"]["table"]
        known, out = jnp.minimum(ids, self.config.vocab_size - 1), jax.P(BATCH, None, None)
        if isinstance(table, OutputMajor):
            table = table.values
        # Gathering the embedding axis first leaves one gather of the table and a local sum over "model".
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
        x: Float[jax.Array, "B T E"],
        mask: Mask,
        caches: Sequence[KVCache] = (),
        dropout: Dropout | None = None,
        return_kv: bool = False,
    ) -> tuple[Float[jax.Array, "B T E"], KVCache | None]:
        """Run the blocks and the final norm.

        Args:
          x: embeddings [B, T, E].
          mask: bool [B, T], which of the T tokens are attended; or int32 [B, T] where a row holds several sequences: 1,
            2, ... in order, and 0 where nothing is attended. Padding may stand anywhere; positions count the attended
            tokens of a sequence, so neither padding nor neighbours change a result beyond rounding. With caches a row
            is one sequence.
          caches: keys and values of earlier tokens, in parts that follow each other.
          dropout: for the adapters' inputs, in training.
          return_kv: return the new tokens' keys and values. Padding must stand on the right then.

        Returns:
          the last layer's states after the final norm, [B, T, E]; keys and values of the T tokens, or None.
        """
        context = self._context(mask, caches, dropout)
        cached = tuple((part.k, part.v) for part in caches)
        unstacked = isinstance(self.variables["params"]["layers"], tuple)
        x, kv = (self._one_by_one if unstacked else self._scan)(x.astype(self.dtype), cached, context, return_kv)
        x = RMSNorm(self.config.norm_eps, name="final_norm")(x)
        if not return_kv:
            return x, None
        k, v = kv
        return x, KVCache(k, v, jnp.sum(mask != 0, axis=1, dtype=jnp.int32))

    def _scan(self, x: jax.Array, cached: Any, context: Context, return_kv: bool) -> tuple[jax.Array, Any]:
        """Run all blocks by one program of a block, over weights that are stacked along the layers."""
        block = Block
        if self.remat != "none":
            # Inside a scan nothing can be merged across the checkpoint's border, so CSE need not be prevented.
            block = nn.remat(Block, policy=REMAT_POLICIES[self.remat], prevent_cse=False)
        layers = nn.scan(
            block,
            variable_axes={"params": 0, "lora": 0, INTERMEDIATES: 0},
            split_rngs={"params": False},
            in_axes=(0, 0, nn.broadcast),  # pyright: ignore[reportArgumentType] flax annotates one int, and takes a tuple
            length=self.config.layers,
        )(self.config, self.lora_scale, self.operands, return_kv, name="layers")
        return layers(x, jnp.arange(self.config.layers, dtype=jnp.int32), cached, context)

    def _one_by_one(self, x: jax.Array, cached: Any, context: Context, return_kv: bool) -> tuple[jax.Array, Any]:
        """Run the blocks one by one over weights that are not stacked; for inference only (no adapter, no gradient)."""
        block = Block(self.config, self.lora_scale, self.operands, return_kv, parent=None)
        kvs = []
        for number, weights in enumerate(self.variables["params"]["layers"]):
            of_layer = jax.tree.map(lambda part, number=number: part[number], cached)
            x, kv = block.apply({"params": weights}, x, jnp.int32(number), of_layer, context)
            kvs.append(kv)
        return x, jax.tree.map(lambda *parts: jnp.stack(parts), *kvs)

    def unembed(
        self, x: Float[jax.Array, "B T E"]
    ) -> tuple[Float32[jax.Array, "B T V"], Float32[jax.Array, "B T added"] | None]:
        """Return float32 logits of the base's vocabulary [B, T, V] and of the added tokens [B, T, added].

        They are separate because the first are split over "model" and the second whole; `join_logits` concatenates
        them.
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

    def _context(self, mask: Mask, caches: Sequence[KVCache], dropout: Dropout | None) -> Context:
        """Compute positions, rotations and the attention mask, once for all layers."""
        before = sum((part.lengths for part in caches), jnp.int32(0))
        before = before[:, None] if caches else before
        positions = positions_of(mask) + before  # [B, T]
        seen = (mask != 0)[:, None, :]
        if mask.dtype != bool:
            seen = seen & (mask[:, :, None] == mask[:, None, :])
        attended = jnp.sum(seen, axis=-1, dtype=jnp.int32) + before  # [B, T], or [B, 1] where a row is one sequence
        heads = (self.config.head_dim, self.operands or self.dtype)
        parts = [(part.slots, part.lengths) for part in caches]
        attention_mask = make_attention_mask(self.attention, mask, positions, self.config.sliding_window, *heads, parts)
        return Context(attention_mask, rotations(self.config.rope, positions, attended), dropout)


def positions_of(mask: Mask) -> Int32[jax.Array, "B T"]:
    """Return the tokens' positions in their sequences, int32 [B, T], for a mask as of `Transformer.__call__`."""
    before = jnp.cumsum(mask != 0, axis=1, dtype=jnp.int32) - 1
    if mask.dtype == bool:
        return jnp.maximum(before, 0)
    newest = jax.lax.cummax(jnp.asarray(mask), axis=1)
    begins = newest > jnp.pad(newest[:, :-1], ((0, 0), (1, 0)))
    return jnp.maximum(before - jax.lax.cummax(jnp.where(begins, before, 0), axis=1), 0)


def join_logits(
    base: Float32[jax.Array, "B T V"], added: Float32[jax.Array, "B T added"] | None
) -> Float32[jax.Array, "B T _"]:
    """Concatenate the logits of `Transformer.unembed`: [B, T, V + added], whole along the vocabulary."""
    if added is None:
        return base
    return jnp.concatenate([jax.reshard(base, jax.P(BATCH, None, None)), added], axis=-1)
